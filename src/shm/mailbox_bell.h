/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox_bell.h - how those who wait for a mailbox sleep, and who wakes them.
 *
 * One word: `credits` in the high half, a count of who is about to sleep; in the low half `rung`,
 * to sleep on.  It changes by read-modify-write only, so both halves move in one step.
 *
 *   sleeper  S1 credits += 1, e = rung   S2 look   S3 futex wait while rung == e
 *            S4 unless woken: credits -= 1 if rung is still e
 *   ringer   R1 store what is looked for   R2 if credits > 0: credits -= 1, rung += 1
 *            R3 futex wake one
 *
 * R1, R2, S1 and S2 are sequentially consistent: either S2 sees R1, or R2 sees S1.  In the second
 * case rung moves after S1, and S3 ends; or the wake ends another one's S3, and then a credit is
 * left for the next ringer.  Always, a wake being due between R2 and R3:
 *
 *     sleepers <= credits + wakes that are due
 *
 * S1 and R2 keep it.  S4 does, because no ring has spent a credit since S1; where one has, it may
 * have been ours, and a credit too many costs a system call and no more.
 *
 * Who is killed between R2 and R3, or is killed or gives up between its waking and its taking,
 * leaves others asleep beside what they wait for.  So callers sleep in slices.  models/mailbox.pml
 * tries all of this, and shows that without deaths nobody needs the slices.
 *
 * Tried: credits and rung as two words.  A sleeper whose time was up took its credit back although
 * a ring had just spent it; so it took another's, who then slept on.  The model found that.
 */
#ifndef TRI_SHM_MAILBOX_BELL_H
#define TRI_SHM_MAILBOX_BELL_H

#include <limits.h>
#include <stdalign.h>
#include <stdbool.h>

#include "base/atomic.h"
#include "base/cp.h"
#include "base/futex.h"

#define TRI_BELL_CREDIT (UINT64_C(1) << 32)

/* Lives in shared memory.  All zeros: nobody sleeps. */
struct tri_mailbox_bell {
    alignas(TRI_LINE) _Atomic uint64_t word;
};

static inline _Atomic uint32_t *tri_bell_rung(struct tri_mailbox_bell *b)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (_Atomic uint32_t *)&b->word + 1;
#else
    return (_Atomic uint32_t *)&b->word;
#endif
}

/* Wake one sleeper, or everybody.  R1 was the caller's. */
static inline void tri_bell_ring(struct tri_mailbox_bell *b, bool everybody)
{
    uint64_t w = tri_load_sc(&b->word), left;

    do {
        if (w < TRI_BELL_CREDIT)
            return;
        left = everybody ? 0 : w / TRI_BELL_CREDIT - 1;
    } while (!tri_cas_sc(&b->word, &w, left << 32 | (uint32_t)(w + 1))); /* R2 */
    CP(mail_credit_taken);
    tri_futex_wake(tri_bell_rung(b), everybody ? INT_MAX : 1); /* R3 */
}

/* S1: who is about to sleep says so.  Gives e. */
static inline uint32_t tri_bell_enter(struct tri_mailbox_bell *b)
{
    uint32_t e = (uint32_t)tri_add_sc(&b->word, TRI_BELL_CREDIT);

    CP(mail_sleep_declared);
    return e;
}

/* S4 */
static inline void tri_bell_leave(struct tri_mailbox_bell *b, uint32_t e)
{
    uint64_t w = tri_load_sc(&b->word);

    while ((uint32_t)w == e && w >= TRI_BELL_CREDIT &&
           !tri_cas_sc(&b->word, &w, w - TRI_BELL_CREDIT))
        ;
}

#endif
