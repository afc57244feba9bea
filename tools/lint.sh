#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# lint.sh - formatting, static analysis and types.  Every part runs, then the worst answer counts.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(tools/venv.sh name)
status=0
part() {
    local name=$1 log
    shift
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        echo "lint: $name: ok"
    else
        cat "$log"
        echo "lint: $name: FAILED"
        status=1
    fi
    rm -f "$log"
}
c_files() {
    find include src cli python tests/c examples/c bench fuzz -name '*.[ch]' -print0 | sort -z
}

part_format() { c_files | xargs -0 clang-format --dry-run -Werror; }

# The flags of a file are those of the build that compiles it.  gcc's own flags are unknown to
# clang, hence the two switches.
part_tidy() {
    local quiet=(--quiet --extra-arg=-Wno-unknown-warning-option
        --extra-arg=-Wno-ignored-optimization-argument)
    find src cli -name '*.c' -print0 | sort -z |
        xargs -0 -n 4 -P "$(nproc)" clang-tidy -p build "${quiet[@]}" 2>/dev/null || return 1
    local py=build-py${venv#.venv}
    [ ! -e "$py/compile_commands.json" ] || find python -name '*.c' -print0 | sort -z |
        xargs -0 -r -n 4 -P "$(nproc)" clang-tidy -p "$py" "${quiet[@]}" 2>/dev/null
}

# Away from the tree, so that the installed package is what is looked at.
away() {
    local folder status=0
    folder=$(mktemp -d)
    (cd "$folder" && "$@") || status=$?
    rm -rf "$folder"
    return "$status"
}
part_stubs() { away "$PWD/$venv/bin/python" -m mypy.stubtest --concise trireme._core; }
part_types() {
    away "$PWD/$venv/bin/python" -m mypy --strict --cache-dir=/dev/null "$PWD"/tests/types/*.py
}

part clang-format part_format
part clang-tidy part_tidy
if [ -x "$venv/bin/ruff" ]; then
    part ruff "$venv/bin/ruff" check --quiet --no-cache python tests tools examples bench
else
    echo "lint: ruff: skipped, no wheel for this interpreter"
fi
if "$venv/bin/python" -c 'import mypy' 2>/dev/null; then
    part stubtest part_stubs
    part mypy "$venv/bin/python" -m mypy --cache-dir=/dev/null python/trireme
    part types part_types
else
    echo "lint: mypy, stubtest, types: skipped, no wheel for this interpreter"
fi
if command -v shellcheck >/dev/null; then
    part shellcheck shellcheck tools/*.sh .ci/run
fi
part style tools/check_style.py
part layers tools/check_layers.py
exit "$status"
