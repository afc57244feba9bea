#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# fuzz.sh [SECONDS] - every fuzzer for so long, with ASan and UBSan.  What is found stays:
# fuzz/corpus/NAME grows from run to run, a crashing input is left in build-fuzz/.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/quiet.sh
seconds=${1:-20}
mkdir -p build-state
if [ ! -e build-fuzz/build.ninja ]; then
    rm -rf build-fuzz
    mkdir -p build-fuzz
    options=(-Dpython=disabled -Dtests=false -Dfuzz=true -Dbuildtype=debugoptimized)
    options+=(-Db_sanitize=address,undefined -Db_lundef=false)
    CC=clang CXX=clang++ quiet build-state/fuzz.log meson setup build-fuzz "${options[@]}" ||
        { rm -rf build-fuzz; exit 1; }
fi
quiet build-state/fuzz.log meson compile -C build-fuzz

status=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
for program in build-fuzz/fuzz/fuzz_*; do
    [ -f "$program" ] && [ -x "$program" ] || continue
    name=$(basename "$program")
    mkdir -p "fuzz/corpus/$name"
    log=build-fuzz/$name.log
    if "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="build-fuzz/$name-" "fuzz/corpus/$name" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$name: $runs inputs, no fault"
    else
        tail -n 40 "$log" >&2
        echo "$name: FAULT, the input is in build-fuzz/"
        status=1
    fi
done
exit "$status"
