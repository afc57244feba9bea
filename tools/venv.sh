#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# venv.sh [name] - the virtual environment that belongs to PYTHON (default python3).
#
# `name` prints its folder: .venv for the default interpreter, .venv-X.Y for any other.
# Without it the folder is brought up to date: made, its requirements installed, the package built
# and installed.  Each of the three is skipped when nothing it depends on has changed, so that a
# second call takes a tenth of a second.  Not an editable install: those rebuild at import, and an
# import in a test is then something else than an import at a user's.
set -euo pipefail
cd "$(dirname "$0")/.."

. tools/python.sh
if [ "$PYTHON" = none ]; then
    [ "${1:-}" != name ] || echo .venv
    exit 0
fi

# Version, the binary behind all links, patch level.
whoami_of() {
    "$1" -ISc 'import os, sys
flag = "t" if "t" in getattr(sys, "abiflags", "") else ""
print("%d.%d%s" % (*sys.version_info[:2], flag), os.path.realpath(sys.executable),
      sys.version_info[2])'
}

venv=.venv
if [ "$PYTHON" != python3 ]; then
    wanted=$(whoami_of "$PYTHON")
    default=$(whoami_of python3 2>/dev/null || true)
    [ "$wanted" = "$default" ] || venv=.venv-${wanted%% *}
fi
if [ "${1:-}" = name ]; then
    echo "$venv"
    exit 0
fi

build=build-py${venv#.venv}
python=$venv/bin/python
say() { echo "trireme: $*" >&2; }

# Two calls at once (a matrix, two terminals) must not install over each other.
mkdir -p build-state
exec 9>"build-state/${venv#.}.lock"
flock 9

# A venv is tied to its interpreter's path and version; when either changes it is made anew.
origin=$(whoami_of "$PYTHON")
if ! "$python" -c '' 2>/dev/null || [ "$(cat "$venv/.made-with" 2>/dev/null)" != "$origin" ]; then
    say "making $venv"
    rm -rf "$venv" "$build"
    "$PYTHON" -m venv "$venv"
    echo "$origin" >"$venv/.made-with"
fi

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }
lines_of() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1"; }

sum=$(cksum tools/requirements-build.txt tools/requirements-extra.txt)
missing=$venv/.missing
# Missing wheels are asked for again after an hour: it may have been the network.
if [ "$(cat "$venv/.requirements" 2>/dev/null)" != "$sum" ] ||
   { [ -s "$missing" ] && [ -n "$(find "$missing" -mmin +60)" ]; }; then
    say "installing the requirements into $venv"
    pip install -q -r tools/requirements-build.txt
    : >"$missing"
    if ! pip install -q --only-binary=:all: -r tools/requirements-extra.txt 2>/dev/null; then
        while read -r line; do
            pip install -q --only-binary=:all: "$line" >/dev/null 2>&1 </dev/null ||
                echo "$line" >>"$missing"
        done < <(lines_of tools/requirements-extra.txt)
    fi
    echo "$sum" >"$venv/.requirements"
fi
[ ! -s "$missing" ] || say "no wheels here for: $(tr '\n' ' ' <"$missing")(what needs them skips)"

# Folders are compared too: their time changes when a file is removed.
inputs=(include src cli python meson.build meson_options.txt pyproject.toml README.md LICENSE)
if [ ! -e "$venv/.installed" ] ||
   [ -n "$(find "${inputs[@]}" -name __pycache__ -prune \
        -o -newer "$venv/.installed" -print -quit)" ]; then
    say "building the package for $("$python" -V)"
    started=$(mktemp)
    log=build-state/${venv#.}.log
    if ! PATH="$PWD/$venv/bin:$PATH" pip install -q --no-build-isolation --no-deps --no-index \
        --force-reinstall --config-settings=build-dir="$build" . >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$started"
        exit 1
    fi
    # The time of the start, so that a file saved during the build counts as newer.
    touch -r "$started" "$venv/.installed"
    rm -f "$started"
fi
