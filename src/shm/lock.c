/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * lock.c - one word that says who holds the lock, and a futex in its low half.
 *
 *     word   63..32 start time | 31 CONTENDED | 30 FOREIGN | 29..0 process id   no name: free
 *
 *   take     T1 CAS w, free -> w | own name       the lock and the name in one step: no instant in
 *                                                 which it is held and nobody knows by whom
 *   wait     W1 CAS w -> w | CONTENDED   W2 futex wait while low half == w | CONTENDED
 *            W3 again, from T1 with CONTENDED     others may sleep behind the one that was woken
 *   give     G1 CAS w -> w & CONTENDED   G2 if w has CONTENDED: futex wake one
 *            G3 there was none: CAS CONTENDED -> 0
 *   line up  L1 CAS w -> w | CONTENDED   L2 move one that sleeps elsewhere into the line of W2.
 *            The holder does both, so G2 comes after; who was moved takes with CONTENDED, as in W3
 *   recover  R1 W2 slept its slice out and the bearer of the name is gone: CAS w -> own name
 *
 * The mark stays until nobody sleeps.  Were it the woken one's to set it again, a holder that takes
 * the lock again at once would wake no other before the first has run: of four processes that held
 * a lock for 1 ms each on one CPU, one had it once in 1.5 s and another 1,490 times.
 *
 * T1 (and R1) pairs with G1: what was written under the lock is seen by the next holder.
 * W2 compares in the kernel: a G1 between W1 and W2 changes the low half, and W2 returns at once.
 * A compare-and-swap from the very word that was judged decides R1: of several that see the same
 * death one wins, and a lock that was released meanwhile is never taken twice.
 *
 * Deaths.  Between T1 and G1: R1, within a slice.  Between G1 and G2, or when the one that was
 * woken is killed: the lock is free and somebody sleeps, until its slice ends or another gives the
 * lock.  Between G2 and G3: one futex wake for nobody.  So slices (5 ms, up to 50 ms) bound
 * everything that a SIGKILL can do, and no step needs to be repaired.
 *
 * A pool shares no lock between processes (principle 2 of the design), because a SIGKILL of a
 * holder would stop everybody.  Here it does not: the lock is taken over.  What is left is that
 * the dead one's work under the lock is half done.  So nothing may be put under such a lock that
 * is not sound at every store: what Trireme keeps under it is committed by single stores; what
 * users keep under theirs is theirs, and they had no lock at all after a death before.
 *
 * Names are judged only in the pid namespace in which the lock was made (ns).  A holder from
 * another one marks itself FOREIGN; nobody judges it, and it judges nobody: then a death is not
 * recovered from, as with a POSIX semaphore.
 *
 * Tried: robust futex lists (kernel-walked): per thread, one list head per thread that glibc owns,
 * and a release by another process, which multiprocessing.Lock allows, breaks them.
 */
#include "shm/lock.h"

#include <errno.h>
#include <string.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "base/cp.h"
#include "base/futex.h"
#include "base/self.h"
#include "shm/spin.h"
#include "trireme.h"

#define CONTENDED (UINT64_C(1) << 31)
#define SLICE_NS 5000000
#define SLICE_MAX_NS 50000000
#define LOOK_NS 1000000 /* tries that fail look for a death no more often than this */

struct tri_spin_turns tri_spin_turns;

static _Atomic uint32_t *low_half(tri_lock *l)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (_Atomic uint32_t *)&l->word + 1;
#else
    return (_Atomic uint32_t *)&l->word;
#endif
}

void tri_lock_init(tri_lock *l)
{
    l->ns = tri_self_ns();
    tri_store_rlx(&l->spins, 0);
    tri_store_rel(&l->word, 0);
}

uint64_t tri_lock_holder(tri_lock *l)
{
    return tri_load_acq(&l->word) & TRI_NAME_MASK;
}

static bool held(uint64_t w)
{
    return w & TRI_NAME_MASK;
}

static bool take(tri_lock *l, uint64_t from, uint64_t to)
{
    if (!tri_cas_sc(&l->word, &from, to)) /* T1, R1 pair with G1 */
        return false;
    CP(lock_taken);
    return true;
}

/* T1, whoever else tries; false: somebody holds it. */
static bool take_free(tri_lock *l, uint64_t to)
{
    uint64_t w = tri_load_rlx(&l->word);

    while (!held(w)) {
        if (take(l, w, to | (w & CONTENDED)))
            return true;
        w = tri_load_rlx(&l->word);
    }
    return false;
}

static bool spin(tri_lock *l, uint64_t me, int64_t timeout_ns)
{
    struct tri_spin s = tri_spin_begin(&l->spins, timeout_ns);
    bool won = false;

    while (!won && tri_spin_next(&s))
        won = take_free(l, me);
    tri_spin_end(&s, won);
    return won;
}

/* A try that failed: was the holder dead?  Looks rarely, as programs may try in a loop. */
static int try_recover(tri_lock *l, uint64_t me, bool *recovered)
{
    static _Thread_local int64_t looked_ns;
    static _Thread_local tri_lock *looked_at;
    int64_t now = tri_now_ns();
    uint64_t w = tri_load_rlx(&l->word);

    if (!held(w) || (looked_at == l && now - looked_ns < LOOK_NS))
        return TRI_ETIMEDOUT;
    looked_at = l;
    looked_ns = now;
    if (!tri_signer_gone(l->ns, w) || !take(l, w, me | (w & CONTENDED)))
        return TRI_ETIMEDOUT;
    if (recovered)
        *recovered = true;
    return 0;
}

/* behind: CONTENDED if others may sleep that have not marked the word. */
static int acquire(tri_lock *l, int64_t timeout_ns, bool *recovered, uint64_t behind)
{
    uint64_t me = tri_sign(l->ns), w;
    int64_t slice = SLICE_NS, end = 0;
    bool dead = false;

    if (take_free(l, me | behind))
        goto taken;
    if (timeout_ns == 0)
        return try_recover(l, me, recovered);
    if (timeout_ns > 0)
        end = tri_now_ns() + timeout_ns;
    if (spin(l, me | behind, timeout_ns))
        goto taken;
    for (;;) {
        int64_t nap = slice;
        int err;

        if (take_free(l, me | behind))
            goto taken;
        w = tri_load_rlx(&l->word);
        if (!held(w))
            continue;
        if (!(w & CONTENDED)) {
            if (!tri_cas_sc(&l->word, &w, w | CONTENDED)) /* W1 */
                continue;
            w |= CONTENDED;
        }
        if (timeout_ns > 0) {
            int64_t left = end - tri_now_ns();

            if (left <= 0)
                return try_recover(l, me, recovered);
            if (left < nap)
                nap = left;
        }
        err = tri_futex_wait(low_half(l), (uint32_t)w, nap); /* W2 */
        behind = CONTENDED;
        if (err == -EINTR) /* signals may come faster than slices end */
            return try_recover(l, me, recovered) == 0 ? 0 : err;
        if (err != -ETIMEDOUT)
            continue;
        if (tri_load_rlx(&l->word) == w && tri_signer_gone(l->ns, w) &&
            take(l, w, me | CONTENDED)) { /* R1 */
            dead = true;
            goto taken;
        }
        if (slice < SLICE_MAX_NS)
            slice *= 2;
        if (slice > SLICE_MAX_NS)
            slice = SLICE_MAX_NS;
    }
taken:
    if (recovered)
        *recovered = dead;
    return 0;
}

int tri_lock_acquire(tri_lock *l, int64_t timeout_ns, bool *recovered)
{
    return acquire(l, timeout_ns, recovered, 0);
}

int tri_lock_acquire_again(tri_lock *l, int64_t timeout_ns, bool *recovered)
{
    return acquire(l, timeout_ns, recovered, CONTENDED);
}

bool tri_lock_line_up(tri_lock *l, _Atomic uint32_t *word, uint32_t expected)
{
    uint64_t w = tri_load_rlx(&l->word);

    while (held(w) && !(w & CONTENDED))
        tri_cas_sc(&l->word, &w, w | CONTENDED);
    return held(w) && tri_futex_move(word, expected, low_half(l));
}

int tri_lock_release(tri_lock *l)
{
    uint64_t w = tri_load_rlx(&l->word);

    do {
        if (!held(w))
            return -EPERM;
    } while (!tri_cas_sc(&l->word, &w, w & CONTENDED)); /* G1 */
    CP(lock_given);
    if (w & CONTENDED && tri_futex_wake(low_half(l), 1) == 0) { /* G2 */
        CP(lock_woke_nobody);
        w = CONTENDED;
        tri_cas_sc(&l->word, &w, 0); /* G3 */
    }
    return 0;
}
