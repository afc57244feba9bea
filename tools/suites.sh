#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# suites.sh - name an interpreter that has CPython's own tests of multiprocessing and
# concurrent.futures: one that is on PATH, else Debian's.  Exits 1, silently, when there is none.
set -euo pipefail

for python in python3.13 python3.14 python3.15 /usr/bin/python3.11; do
    if "$python" -c 'import test._test_multiprocessing, test.test_concurrent_futures' \
        >/dev/null 2>&1; then
        echo "$python"
        exit 0
    fi
done
exit 1
