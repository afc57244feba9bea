#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# build_c.sh DIR [MESON OPTION...] - the C library, command line, tests and examples, no Python.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/quiet.sh
dir=$1
shift
# What is no build folder's own: logs, locks, native files.
mkdir -p build-state
log=build-state/$dir.log
if [ ! -e "$dir/build.ninja" ]; then
    mkdir -p "$dir"
    quiet "$log" meson setup "$dir" -Dpython=disabled "$@" || { rm -rf "$dir"; exit 1; }
fi
quiet "$log" meson compile -C "$dir"
