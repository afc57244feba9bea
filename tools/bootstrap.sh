#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# bootstrap.sh GROUP... - see to it that the system packages of these groups are there.
#
#   c       compiler, Meson, ninja, pkg-config, hwloc
#   python  an interpreter (PYTHON, default python3) with headers and venv
#   lint    clang-format, clang-tidy
#   models  spin
#   fuzz    clang with libFuzzer, a Python to embed
#   conformance    an interpreter with CPython's own tests
#
# Looks first and is done within a tenth of a second when nothing is missing.  Otherwise it installs
# exactly what is missing with apt-get, as root or through a sudo that asks no password.  Where it
# may not, it prints what to install and exits 1; it never changes anything else.
set -euo pipefail

. "$(dirname "$0")/python.sh"
packages=()   # Debian's names of what is missing
trouble=()    # what no package can mend

have() { command -v "$1" >/dev/null 2>&1; }
want() { packages+=("$@"); }

look_c() {
    have gcc || want gcc
    have g++ || want g++
    [ -e /usr/include/stdio.h ] || want libc6-dev
    have meson || want meson
    have ninja || want ninja-build
    if have pkg-config; then
        pkg-config --exists hwloc || want libhwloc-dev
    else
        want pkg-config libhwloc-dev
    fi
}

look_python() {
    [ "$PYTHON" != none ] || return 0
    local name=${PYTHON##*/} report version executable missing
    if ! report=$("$PYTHON" -ISc '
import importlib.util, os, sys, sysconfig
missing = []
if sys.version_info < (3, 11):
    missing.append("old")
if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
    missing.append("venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    missing.append("dev")
print("%d.%d" % sys.version_info[:2], sys.base_prefix, *missing)' 2>/dev/null); then
        if have "$PYTHON"; then
            trouble+=("$PYTHON does not run")
        elif [[ $PYTHON == "$name" && $name =~ ^python3(\.[0-9]+)?$ ]]; then
            want "$name" "$name-dev" "$name-venv"
        else
            trouble+=("there is no $PYTHON")
        fi
        return 0
    fi
    read -r version executable missing <<<"$report"
    [ -n "$missing" ] || return 0
    if [[ $missing == *old* ]]; then
        trouble+=("$PYTHON is Python $version; 3.11 or later is needed: make PYTHON=python3.X ...")
    elif [ "$executable" != /usr ]; then
        trouble+=("$PYTHON (in $executable) lacks: $missing")
    else
        for part in $missing; do
            want "python$version-$part"
        done
    fi
}

look_lint() {
    have clang-format || want clang-format
    have clang-tidy || want clang-tidy
}

look_models() {
    have spin || want spin
}

look_fuzz() {
    have clang || want clang
    # The Python that runs Meson is the one that the fuzzers embed.
    compgen -G '/usr/include/python3*/Python.h' >/dev/null || want python3-dev
    local fuzzer
    for fuzzer in /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a \
        /usr/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a \
        /usr/lib/clang/*/lib/*/libclang_rt.fuzzer*.a; do
        [ ! -e "$fuzzer" ] || return 0
    done
    want libclang-rt-dev
}

look_conformance() {
    "$(dirname "$0")/suites.sh" >/dev/null ||
        want python3.11 python3.11-dev python3.11-venv libpython3.11-testsuite
}

look() {
    packages=()
    trouble=()
    local group
    for group in "$@"; do
        "look_$group"
    done
}

give_up() {
    {
        echo "trireme: this machine lacks what the build needs."
        for line in "${trouble[@]}"; do
            echo "  $line"
        done
        if [ ${#packages[@]} -gt 0 ]; then
            echo "  Please install (names of Debian's packages): ${packages[*]}"
            echo "      sudo apt-get install ${packages[*]}"
        fi
    } >&2
    exit 1
}

look "${@:-c}"
[ ${#packages[@]} -gt 0 ] || [ ${#trouble[@]} -gt 0 ] || exit 0
[ ${#trouble[@]} -eq 0 ] || give_up
have apt-get || give_up

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    else
        give_up
    fi
fi

echo "trireme: installing ${packages[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$log" 2>&1
}
# The lists of a fresh machine are empty and those of an old one point to packages that are gone.
if ! { apt update && apt install -y --no-install-recommends "${packages[@]}"; }; then
    tail -n 5 "$log" >&2
    give_up
fi
look "${@:-c}"
[ ${#packages[@]} -eq 0 ] && [ ${#trouble[@]} -eq 0 ] || give_up
