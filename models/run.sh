#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Check every model exhaustively: the protocols as they are must pass, and each mistake named in a
# model (-D...) must be found; a model that finds nothing wrong in a wrong protocol proves nothing.
# One line each.  Exit status 0: all as expected; 1: not; 77: the model checker is not installed.
#
#   models/run.sh           all of them, JOBS=2 at a time
#   models/run.sh sleep     those whose line contains the word
#   KEEP=folder models/run.sh WANT_TAKEN_ONCE     keeps the trail there (see README.md)
set -u
here=$(cd "$(dirname "$0")" && pwd)

# expected | property | model and flags
checks() {
    cat <<'LIST'
pass safety claim
pass safety claim -DRETRIES -DNT=2 -DND=2 -DNX=0
pass safety claim -DNC=4 -DNX=0
pass cycles claim -DNT=2
fail cycles claim -DNT=2 -DNO_HELP
fail safety claim -DHEAD_ADD
fail safety claim -DCELL_NO_POSITION
fail safety claim -DCLAIM_NO_NAME
fail safety claim -DCLAIM_NO_CAS
fail safety claim -DCLAIM_IGNORES_TICKET
fail safety claim -DNOT_STARTED
fail safety claim -DDONE_BEFORE_RESULT
fail safety claim -DSTARTED_AGAIN
fail safety claim -DNO_REQUEUE
fail safety claim -DNO_GENERATION
fail safety claim -DDONE_NOT_TAKEN
fail safety claim -DRING_TRUSTED
fail safety claim -DCANCEL_NO_CAS
fail safety claim -DTURN_DROPS
fail safety claim -DTURN_LOOKS_TWICE
pass safety sleep -DNW=2
pass safety sleep -DNW=2 -DND=2
pass safety sleep -DNT=3 -DND=0
pass cycles sleep -DNW=2
pass safety sleep -DNW=2 -DNH=1 -DNT=1
pass safety sleep -DNW=2 -DNH=2 -DND=0
pass safety sleep -DNW=2 -DNH=1 -DND=0 -DNT=3 -DNS=1
pass cycles sleep -DNW=2 -DNH=1 -DND=0
pass cycles sleep -DNW=2 -DNT=3 -DNS=1 -DND=0
fail safety sleep -DNW=2 -DNO_SECOND_LOOK
fail safety sleep -DNW=2 -DLOOK_BEFORE_BIT
fail safety sleep -DNW=2 -DSPINNER_LATE
fail safety sleep -DNW=2 -DWAIT_NOT_COMPARED
fail safety sleep -DNW=2 -DLOOK_THEN_APPEND
fail safety sleep -DNW=2 -DNO_CHAIN
fail safety sleep -DNW=2 -DWARDEN_KEEPS_SPINNER
fail safety sleep -DNW=2 -DWARDEN_KEEPS_SLEEPER
fail safety sleep -DNW=2 -DOWNER_CLEARS
fail safety sleep -DNW=2 -DREPAIR_WAKES_NONE
fail safety sleep -DNW=2 -DNOT_STRANDED
fail safety sleep -DNW=2 -DFREE_COUNTS_BUSY
fail safety sleep -DNW=2 -DNH=1 -DND=0 -DNT=1 -DPARKED_LOOKS_NOT
fail safety sleep -DNW=2 -DNH=1 -DND=0 -DNT=1 -DPARKED_LOOKS_FIRST
fail safety sleep -DNW=2 -DNH=1 -DND=0 -DNT=1 -DBEGIN_LOOKS_NOT
fail safety sleep -DNW=2 -DNH=1 -DND=0 -DEND_LOOKS_NOT
fail safety sleep -DNW=2 -DNH=1 -DND=0 -DEND_WAKES_FIRST
fail cycles sleep -DNW=2 -DNH=1 -DND=0 -DPARKED_GOES_ROUND
fail cycles sleep -DNW=2 -DNH=1 -DND=0 -DWAKES_PARKED
fail safety sleep -DNW=2 -DNT=3 -DNS=1 -DND=0 -DNAP_NO_LIMIT
pass safety owner
pass safety owner -DNO_ANY
fail safety owner -DNO_SECOND_LOOK
fail safety owner -DKEY_LATE
fail safety owner -DWANT_UNLOCKED
fail safety owner -DWANT_TAKEN_ONCE
fail safety owner -DLEAVE_NONE
fail safety owner -DNO_DEATH_NEWS
fail safety owner -DNO_NUDGE
fail safety owner -DNUDGE_WAITERS_ONLY
pass safety lock
pass safety lock -DND=2 -DNW=2 -DNR=2
pass safety lock -DND=2
pass safety lock -DND=0 -DNR=2 -DNO_CLOCK
pass safety lock -DNW=4 -DND=0 -DNO_CLOCK
fail safety lock -DNAME_AFTER
fail safety lock -DRECOVER_BY_NUMBER
fail safety lock -DRECOVER_NO_CAS
fail safety lock -DRECOVER_WHOEVER
fail safety lock -DND=0 -DNO_CLOCK -DWAIT_NOT_COMPARED
fail safety lock -DND=0 -DNO_CLOCK -DWAKES_NOBODY
fail safety lock -DNW=4 -DND=0 -DNO_CLOCK -DBEHIND_FORGOTTEN
fail safety lock -DND=0 -DNO_CLOCK -DGIVE_BLIND
fail safety lock -DND=0 -DNO_CLOCK -DUNMARK_WHATEVER
pass safety mailbox -DAWAKE -DNR=1
pass safety mailbox -DAWAKE -DNM1=1
pass safety mailbox -DAWAKE -DNM1=1 -DMOST=1
pass safety mailbox -DAWAKE -DNM1=1 -DNR=1 -DTRIM
pass safety mailbox -DAWAKE -DNM1=1 -DNR=1 -DND=2
pass cycles mailbox -DAWAKE -DNM1=1 -DNR=1
pass safety mailbox -DFLAT -DNM1=1
pass safety mailbox -DFLAT -DNR=1 -DMOST=1
pass cycles mailbox -DFLAT -DNM1=1 -DNR=1
pass safety mailbox -DFLAT -DND=0 -DNO_CLOCK
pass safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DMOST=1
pass safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DNR=1 -DNJ=2
pass safety mailbox -DBELL -DLEN=0 -DNT=0 -DNM=1
pass safety mailbox -DBELL -DLEN=0 -DNT=0 -DNR=1
pass safety mailbox -DBELL -DLEN=0 -DNR=1 -DND=0
pass safety mailbox -DNM=1 -DNR=1 -DMOST=1
fail safety mailbox -DAWAKE -DNM1=1 -DWRITERS_UNLOCKED
fail safety mailbox -DAWAKE -DNM1=1 -DREADERS_UNLOCKED
fail safety mailbox -DAWAKE -DNM1=1 -DTAIL_EARLY
fail safety mailbox -DAWAKE -DNM1=1 -DTAIL_TWICE
fail safety mailbox -DAWAKE -DNM1=1 -DHEAD_EARLY
fail safety mailbox -DAWAKE -DNM1=1 -DHEAD_TWICE
fail safety mailbox -DAWAKE -DNM1=1 -DENDS_KEPT
fail safety mailbox -DAWAKE -DNM1=1 -DOLD_NOT_FREE
fail safety mailbox -DAWAKE -DNM1=1 -DNR=1 -DNO_SWEEP
fail safety mailbox -DAWAKE -DNM1=1 -DNR=1 -DBEGUN_LATE
fail safety mailbox -DAWAKE -DNM1=1 -DNR=1 -DTRIM -DTRIM_UNLOCKED
fail safety mailbox -DAWAKE -DNM1=1 -DMOST=1 -DFULL_UNLOCKED
fail safety mailbox -DFLAT -DNM1=1 -DNO_CLOCK
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DNO_RING
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DRING_EARLY
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DLOOK_FIRST
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DRUNG_LATE
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DWAIT_NOT_COMPARED
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DMOVES_LATE
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DMOST=1 -DTAKEN_NO_RING
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DMOST=1 -DWOKEN_LEAVES
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM1=1 -DMOST=1 -DBLINDLY
fail safety mailbox -DFLAT -DND=0 -DNO_CLOCK -DNM=1 -DNJ=2 -DRING_ONE
fail safety mailbox -DBELL -DLEN=0 -DND=0 -DNR=1 -DCALL_LATE
fail safety mailbox -DBELL -DLEN=0 -DND=0 -DNR=1 -DSILENCE_UNLOCKED
fail safety mailbox -DBELL -DLEN=0 -DND=0 -DNR=1 -DWATCH_UNLOCKED
LIST
}

one() {
    local expected=$1 property=$2 model=$3 states line verdict started
    local flags=(-DSAFETY) args=()
    shift 3
    started=$(date +%s.%N)
    dir=$(mktemp -d "${TMPDIR:-/tmp}/trireme-model.XXXXXX")
    trap 'rm -rf "$dir"' EXIT
    cp "$here"/*.pml "$dir"
    cd "$dir" || exit 1
    if [ "$property" = cycles ]; then
        flags=(-DNP)
        args=(-l)
    fi
    # Counterexamples are found at once: for those an optimised checker costs more than it saves.
    flags+=("$([ "$expected" = pass ] && echo -O2 || echo -O0)" -DCOLLAPSE -DMEMLIM=2048)
    if ! { spin -a "$@" "$model.pml" && "${CC:-cc}" -w "${flags[@]}" -o pan pan.c; } >log 2>&1; then
        verdict=unusable
    elif ! ./pan -m1000000 -w24 -n "${args[@]}" >log 2>&1; then
        verdict=incomplete
    elif grep -Eq '^error: |reached -DMEMLIM|out of memory|Search not completed$' log &&
        ! grep -q '^pan:1: ' log; then
        verdict=incomplete
    elif grep -Eq 'errors: 0$' log; then
        verdict=pass
    elif grep -Eq '^pan:1: (assertion violated|invalid end state|non-progress cycle)' log; then
        verdict=fail
    else
        verdict=incomplete
    fi
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' log)
    line=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%5.1f s", b - a }')
    line=$(printf '%-7s %-54s %10s states %s' "$property" "$model $*" "${states:-?}" "$line")
    line="$([ $verdict = "$expected" ] && echo ok || echo BAD)   $line"
    if [ "$expected" = fail ]; then
        line="$line   found: $(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' log)"
    fi
    echo "$line"
    if [ -n "${KEEP:-}" ] && [ -f "$model.pml.trail" ]; then
        mkdir -p "$KEEP"
        spin -t -p -g "$@" "$model.pml" >"$KEEP/$model$(printf '%s' "$@").txt" 2>&1
    fi
    if [ $verdict != "$expected" ]; then
        echo "      expected $expected, got $verdict:"
        tail -n 15 log
        exit 1
    fi
}

if [ "${1:-}" = --one ]; then
    shift
    one "$@"
    exit
fi
for tool in spin "${CC:-cc}"; do
    if ! command -v "$tool" >/dev/null; then
        echo "models: skipped, $tool is not installed"
        exit 77
    fi
done
[ -z "${KEEP:-}" ] || KEEP=$(mkdir -p "$KEEP" && cd "$KEEP" && pwd)
export KEEP CC
if checks | grep -e "${1:-.}" | xargs -P "${JOBS:-2}" -L 1 "$here/run.sh" --one; then
    echo "models: all as expected, $SECONDS s"
else
    echo "models: NOT as expected, $SECONDS s"
    exit 1
fi
