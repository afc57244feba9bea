#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# sanitize.sh asan|tsan - the C tests in a build of their own under a sanitizer.
#
# asan adds UBSan, and the Python tests marked `asan` (by a table in tests/py/conftest.py) with the
# extension under LD_PRELOAD of the runtime (the interpreter itself is not instrumented).  tsan
# covers workers that are threads: it sees nothing that crosses processes.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1
options=(-Dbuildtype=debugoptimized -Db_lundef=false -Db_ndebug=false)

# ThreadSanitizer's fixed shadow does not fit every address layout that a new kernel draws.
still=()
if setarch "$(uname -m)" -R true 2>/dev/null; then
    still=(setarch "$(uname -m)" -R)
fi

case $kind in
asan)
    tools/build_c.sh build-asan --werror -Db_sanitize=address,undefined "${options[@]}"
    # No detect_stack_use_after_return: under it gcc 12 misplaces locals of large alignment.
    export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    meson test -C build-asan --no-rebuild --print-errorlogs --timeout-multiplier 4
    [ "${PYTHON:-python3}" != none ] || exit 0
    venv=$(tools/venv.sh name)
    site=$(tools/site.sh asan-py -Dtests=false -Db_sanitize=address,undefined "${options[@]}")
    # Reports go to files: pytest would swallow what a process says before it is ended.
    reports=$(mktemp -d)
    trap 'rm -rf "$reports"' EXIT
    # The interpreter frees little at its end, so leaks are for the C tests to find.
    export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0
    ASAN_OPTIONS+=:log_path=$reports/asan
    UBSAN_OPTIONS+=:log_path=$reports/ubsan
    runtime="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
    status=0
    LD_PRELOAD=$runtime PYTHONPATH=$site PYTHONMALLOC=malloc timeout -s ABRT -k 20 900 \
        "$venv/bin/python" -m pytest -q -m asan --timeout 300 || status=$?
    # A report fails the run even if the test took the death of its worker for what it wanted;
    # pytest's exit code 5, for no test with the mark, is a failure like any other.
    if [ -n "$(ls -A "$reports")" ]; then
        cat "$reports"/* >&2
        exit 1
    fi
    exit "$status"
    ;;
tsan)
    tools/build_c.sh build-tsan --werror -Db_sanitize=thread "${options[@]}"
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:die_after_fork=0
    "${still[@]}" meson test -C build-tsan --no-rebuild --print-errorlogs --timeout-multiplier 8
    ;;
*)
    echo "sanitize.sh asan|tsan" >&2
    exit 2
    ;;
esac
