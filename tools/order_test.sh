#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# order_test.sh - is each memory order that hands data over needed, and would we notice?
#
# For each row below: a copy of the core in which that one order is weakened to relaxed, and the
# test that must then fail under ThreadSanitizer.  A row that passes means that the order is not
# needed or that no test looks; both are worth knowing.  First the same tests must pass unchanged.
#
# Left out are orders that ThreadSanitizer cannot judge: the sequentially consistent pairs of
# sleep.c (between atomics only: see the proof there and models/), the ring's tail (its entries are
# atomic and only hints) and loads whose compare-and-swap acquires anyway.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-cc}
flags=(-std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=thread -Iinclude -fno-strict-aliasing)
export TSAN_OPTIONS=halt_on_error=1:die_after_fork=0:exitcode=66
still=()
if setarch "$(uname -m)" -R true 2>/dev/null; then
    still=(setarch "$(uname -m)" -R)
fi

# NAME | TEST, then for each change: | FILE | what the line holds | order before | order after
rows=$(sed -e ':more' -e '/\\$/{N;s/\\\n *//;b more' -e '}' <<'ROWS'
the task is whole before it is queued (A1 and A2)|queue\
    |src/pool/dispatch.c|A1 */|tri_store_rel|tri_store_rlx\
    |src/pool/dispatch.c|A2 */|tri_store_sc|tri_store_rlx
a claim sees the whole task (C1 and C2)|queue\
    |src/shm/queue.h|pairs with A2|tri_load_acq|tri_load_rlx\
    |src/shm/queue.h|C2 */|tri_cas_sc|tri_cas_rlx\
    |src/shm/queue.h|st = tri_load_acq|tri_load_acq|tri_load_rlx
the result is whole before the task is DONE (D1)|pool\
    |src/pool/worker.c|D1 */|tri_store_sc|tri_store_rlx
the owner reads a result only when DONE|pool\
    |src/pool/dispatch.c|pairs with the worker's DONE|tri_load_acq|tri_load_rlx\
    |src/pool/dispatch.c|uint64_t word = tri_load_acq(&s->state)|tri_load_acq|tri_load_rlx
a block is given back after its last use|heap\
    |src/shm/heap.c|pairs with the exchange|tri_cas_sc|tri_cas_rlx
a block comes home before it is used again|heap\
    |src/shm/heap.c|tri_swap_sc|tri_swap_sc|tri_swap_rlx
a future is filled before it is done|pool\
    |src/pool/future.c|pairs with the load in tri_future_wait|tri_store_rel|tri_store_rlx
a waiter reads a future only when it is done|pool\
    |src/pool/future.c|while (!tri_load_acq(&f->done))|tri_load_acq|tri_load_rlx\
    |src/pool/future.c|        if (tri_load_acq(&f->done))|tri_load_acq|tri_load_rlx
ROWS
)

# Orders that no code uses, for the weakened copies alone.
relaxed='
#define tri_cas_rlx(p, e, v) atomic_compare_exchange_strong_explicit((p), (e), (v), \
    memory_order_relaxed, memory_order_relaxed)
#define tri_swap_rlx(p, v) atomic_exchange_explicit((p), (v), memory_order_relaxed)
'

fresh() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree"
    cp -r src include tests "$work/tree/"
    printf '%s' "$relaxed" >"$work/relaxed.h"
}

run_test() { # NAME: build it from the copy and run it a few times; 0 when every run passes
    local name=$1
    (
        cd "$work/tree"
        "$cc" "${flags[@]}" -Isrc -Itests/c -include stdatomic.h -include "$work/relaxed.h" \
            src/base/*.c src/shm/*.c src/pool/*.c "tests/c/test_$name.c" \
            -o "$work/test_$name" -pthread -lrt -lm
    ) || { echo "order_test.sh: test_$name does not build" >&2; exit 2; }
    for _ in 1 2 3 4 5; do
        "${still[@]}" "$work/test_$name" >"$work/log" 2>&1 || return 1
    done
}

weaken() { # FILE LINE BEFORE AFTER
    local file=$work/tree/$1 lines
    lines=$(grep -cF -- "$2" "$file" || true)
    if [ "$lines" != 1 ]; then
        echo "order_test.sh: $1 has $lines lines with: $2" >&2
        exit 2
    fi
    python3 - "$file" "$2" "$3" "$4" <<'PY'
import sys
path, line, before, after = sys.argv[1:]
text = open(path).read().split("\n")
for i, t in enumerate(text):
    if line in t:
        # The operation may stand on the line before that of its comment.
        at = i if before in t else i - 1
        assert before in text[at], (path, line)
        text[at] = text[at].replace(before, after)
open(path, "w").write("\n".join(text))
PY
}

fresh
for name in queue heap pool; do
    run_test "$name" || {
        tail -n 40 "$work/log" >&2
        echo "order_test.sh: test_$name fails as it is" >&2
        exit 1
    }
done
echo "unchanged: queue, heap and pool pass"

status=0
while IFS= read -r row; do
    [ -n "$row" ] || continue
    IFS='|' read -r -a f <<<"$row"
    fresh
    for ((i = 2; i < ${#f[@]}; i += 4)); do
        weaken "${f[i]}" "${f[i + 1]}" "${f[i + 2]}" "${f[i + 3]}"
    done
    if run_test "${f[1]}"; then
        echo "PASSES though weakened: ${f[0]}"
        status=1
    else
        echo "noticed: ${f[0]}"
    fi
done <<<"$rows"
exit "$status"
