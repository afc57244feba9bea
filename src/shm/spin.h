/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * spin.h - how long to look before going to sleep, learned per object.
 *
 * A hand-over between two CPUs takes less than a sleep and a wake-up; but only the object's own
 * history tells whether its waits are such hand-overs, and where processes share a CPU spinning
 * only keeps the other from running.  So: spin about twice as long as it took of late; when it was
 * in vain, half as long; when that is nothing, not at all for the next SKIPS waits, then probe.
 *
 * A process with one CPU lets the others have it once, which spares both sides the sleep and the
 * wake-up if they are the ones to run.  When it was in vain, not for the next SKIPS waits on this
 * object.  When it was not, but somebody else had the CPU meanwhile, this process does not yield
 * for the next waits on any object, four times as many each time that this comes again before CALM
 * turns went well: a kernel that takes a yield for the rest of a time slice (Linux 6.18) lets him
 * run for milliseconds, where it lets one that is woken run at once.  Beside a process that only
 * computes a hand-over took 30 us where one good turn undid that, and 2,000 locks waited for once
 * each 3 s where it was learned for each lock.  Long and in vain tells nothing: whoever runs then,
 * most often the other side before it is ready, would run as long while this one slept.  Where that
 * counted, a few partners that came one after the other (some 1 ms to start and to end, 900
 * hand-overs each) left a process without yields.
 *
 * The hint (>= 0: looks that it took of late, < 0: waits left without spinning) is written by all
 * and relied on by none.
 *
 * Tried: glibc's rule for adaptive mutexes, which spins longer after it was in vain: twice the
 * original's time for a hand-over between processes on one busy CPU.
 */
#ifndef TRI_SHM_SPIN_H
#define TRI_SHM_SPIN_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "base/self.h"

#define TRI_SPIN_LOOKS 100
#define TRI_SPIN_SKIPS 32
#define TRI_SPIN_SLOW_NS 100000
#define TRI_SPIN_SLOW_SKIPS 128
#define TRI_SPIN_SLOW_MOST 32768
#define TRI_SPIN_CALM 512
#define TRI_SPIN_YIELD_LEAST_NS 100000000 /* a shorter wait could end late */

/* This process's turns on one CPU (lock.c).  Its threads may disturb each other: it is a hint. */
struct tri_spin_turns {
    _Atomic uint32_t left, skips, good; /* waits without a yield: left, of how many; good turns */
};
extern struct tri_spin_turns tri_spin_turns;

struct tri_spin { /* one wait's */
    _Atomic int32_t *hint;
    int32_t n, most; /* looks taken and allowed */
    bool yield, slow;
};

/* May this wait begin with a yield? */
static inline bool tri_spin_may_yield(int64_t timeout_ns)
{
    uint32_t left = tri_load_rlx(&tri_spin_turns.left);

    if (timeout_ns >= 0 && timeout_ns < TRI_SPIN_YIELD_LEAST_NS)
        return false;
    if (left)
        tri_store_rlx(&tri_spin_turns.left, left - 1);
    return !left;
}

/* timeout_ns: of the wait; < 0: none. */
static inline struct tri_spin tri_spin_begin(_Atomic int32_t *hint, int64_t timeout_ns)
{
    int32_t usual = tri_load_rlx(hint);
    struct tri_spin s = {.hint = hint, .yield = tri_self_cpus() < 2};

    /* Shared memory may hold any number: no arithmetic before it is known to be small. */
    if (usual < 0)
        tri_store_rlx(hint, usual + 1);
    else if (s.yield)
        s.most = tri_spin_may_yield(timeout_ns);
    else if (usual == 0 || usual > (TRI_SPIN_LOOKS - 10) / 2)
        s.most = TRI_SPIN_LOOKS;
    else
        s.most = usual * 2 + 10;
    return s;
}

/* Pause before the next look.  False: there is none, it is time to sleep. */
static inline bool tri_spin_next(struct tri_spin *s)
{
    int64_t start;

    if (s->n == s->most)
        return false;
    s->n++;
    if (!s->yield) {
        tri_pause();
        return true;
    }
    start = tri_now_ns();
    sched_yield();
    s->slow = tri_now_ns() - start > TRI_SPIN_SLOW_NS;
    return true;
}

/* After a turn on one CPU. */
static inline void tri_spin_turn(bool slow)
{
    struct tri_spin_turns *t = &tri_spin_turns;
    uint32_t skips = tri_load_rlx(&t->skips), good = tri_load_rlx(&t->good) + 1;

    if (slow) {
        skips = skips ? skips * 4 : TRI_SPIN_SLOW_SKIPS;
        skips = skips < TRI_SPIN_SLOW_MOST ? skips : TRI_SPIN_SLOW_MOST;
        tri_store_rlx(&t->left, skips);
        good = 0;
    } else if (good == TRI_SPIN_CALM) {
        skips = skips > TRI_SPIN_SLOW_SKIPS ? skips / 4 : 0;
        good =
            1; /* this one is the first of the next: 0 and no skips is a process that never did */
    }
    tri_store_rlx(&t->skips, skips);
    tri_store_rlx(&t->good, good);
}

/* What came of it. */
static inline void tri_spin_end(const struct tri_spin *s, bool won)
{
    int32_t usual = tri_load_rlx(s->hint);

    if (s->most == 0)
        return;
    if (!won)
        tri_self_cpus_again(); /* it may have been bound, or set free, since */
    if (s->yield && (won || !s->slow))
        tri_spin_turn(s->slow);
    if (usual < 0)
        usual = 0;
    if (won)
        usual = usual ? usual + (s->n - usual) / 8 : s->n;
    else
        usual = usual > 8 ? usual / 2 : -TRI_SPIN_SKIPS;
    tri_store_rlx(s->hint, usual ? usual : 1);
}

#endif
