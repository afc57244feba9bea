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
 * wake-up if they are the ones to run.  When it was in vain, not for the next SKIPS waits; when
 * somebody else had the CPU meanwhile, for more, four times as many each time that this comes
 * again before CALM turns went well: a kernel that takes a yield for the rest of a time slice
 * (Linux 6.18) lets him run for milliseconds.  A hand-over beside a process that only computes
 * took 30 us where one good turn undid that, 6 without any yield, and 6 so (8 in the first 6,000).
 *
 * The hint is written by all and relied on by none.
 *   >= 0   steps:11 | good turns:10 | looks that it took of late:10
 *   < 0    minus (steps:15 | waits left without spinning:16)
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
#define TRI_SPIN_CALM 1024
#define TRI_SPIN_SLOW_NS 100000
#define TRI_SPIN_STEPS 4 /* each four times the waits */

struct tri_spin { /* one wait's */
    _Atomic int32_t *hint;
    int32_t n, most; /* looks taken and allowed */
    bool yield, slow;
};

static inline struct tri_spin tri_spin_begin(_Atomic int32_t *hint)
{
    int32_t h = tri_load_rlx(hint), usual = h < 0 ? 0 : h & 0x3ff;
    struct tri_spin s = {.hint = hint, .yield = tri_self_cpus() < 2};

    if (h < 0 && (-(uint32_t)h & 0xffff) > 0)
        tri_store_rlx(hint, h + 1);
    else if (s.yield)
        s.most = 1;
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
static inline int32_t tri_spin_turn(int32_t h, bool slow, bool won)
{
    uint32_t steps = h < 0 ? -(uint32_t)h >> 16 : (uint32_t)h >> 20;
    uint32_t good = h < 0 ? 0 : (uint32_t)h >> 10 & 0x3ff;

    /* Shared memory may hold any number. */
    if (steps > TRI_SPIN_STEPS)
        steps = TRI_SPIN_STEPS;
    if (slow) {
        if (steps < TRI_SPIN_STEPS)
            steps++;
        return -(int32_t)(steps << 16 | TRI_SPIN_SKIPS << 2 * steps);
    }
    if (!won)
        return -(int32_t)(steps << 16 | TRI_SPIN_SKIPS);
    if (++good == TRI_SPIN_CALM) {
        good = 0;
        steps -= steps > 0;
    }
    return (int32_t)(steps << 20 | good << 10 | 1);
}

/* What came of it. */
static inline void tri_spin_end(const struct tri_spin *s, bool won)
{
    int32_t h = tri_load_rlx(s->hint), usual = h < 0 ? 0 : h & 0x3ff;

    if (s->most == 0)
        return;
    if (!won)
        tri_self_cpus_again(); /* it may have been bound, or set free, since */
    if (s->yield)
        h = tri_spin_turn(h, s->slow, won);
    else if (won)
        h = usual ? usual + (s->n - usual) / 8 : s->n;
    else
        h = usual > 8 ? usual / 2 : -TRI_SPIN_SKIPS;
    tri_store_rlx(s->hint, h ? h : 1);
}

#endif
