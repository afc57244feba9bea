/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * lock.h - a lock in shared memory that survives its holder's death.
 *
 * For the objects that users lock by (multiprocessing.Lock) and for queues, whose cells several
 * processes write.  Not for the pool: nothing there waits for a lock of another process.
 *
 * Whoever takes the lock leaves its name in it.  A waiter that finds that the holder is dead takes
 * the lock over and is told so (*recovered).  What the lock protects must therefore be sound at
 * every instant: change it under the lock, but commit each change by one store.  A new holder with
 * *recovered set may have to tidy up what the dead one had begun and not committed.
 */
#ifndef TRI_SHM_LOCK_H
#define TRI_SHM_LOCK_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/self.h"

#define TRI_SLOT 64 /* the line that an object of lock.h or sync.h fills */

/* Lives in shared memory.  All zeros: free, and its holders' deaths are not looked for. */
typedef struct tri_lock {
    alignas(TRI_SLOT) _Atomic uint64_t word; /* no name: free; else the holder's; and flags */
    uint64_t ns;                             /* pid namespace of names; constant after init */
    _Atomic int32_t spins;                   /* spin.h */
    uint32_t unused[11];
} tri_lock;
_Static_assert(sizeof(tri_lock) == TRI_SLOT, "one line");

/* Make it free and note whose deaths can be seen.  The caller is the only one who knows it yet. */
void tri_lock_init(tri_lock *l);

/*
 * Take it.  timeout_ns < 0: wait for ever; 0: only try.  recovered may be NULL; set to whether the
 * lock was taken from a dead holder (untouched unless 0 is returned).
 *
 * Threads: any.  Blocks: up to the time-out; not recursive.  A dead holder is noticed within 50 ms
 * (a zombie counts as dead, whether or not its parent has reaped it).
 *
 * @return 0, or
 *   TRI_ETIMEDOUT  not to be had in time
 *   -EINTR         a signal handler ran: run what it asks for, then call again
 */
int tri_lock_acquire(tri_lock *l, int64_t timeout_ns, bool *recovered);
/* The same for who comes from tri_cond_wait: others, moved by tri_lock_line_up, may sleep behind
 * it. */
int tri_lock_acquire_again(tri_lock *l, int64_t timeout_ns, bool *recovered);

/*
 * Take it if it is free, with the signature that tri_sign(l->ns) gives this process: for callers
 * that keep it.  Looks for no death, never blocks.
 */
static inline bool tri_lock_try(tri_lock *l, uint64_t signature)
{
    uint64_t w = tri_load_rlx(&l->word);

    return !(w & TRI_NAME_MASK) && tri_cas_sc(&l->word, &w, signature | w);
}

/* Give it back; any thread of any process may.  0, or -EPERM: nobody holds it. */
int tri_lock_release(tri_lock *l);

/*
 * One that sleeps on `word` while it is `expected` is to sleep for the lock instead; the holder's
 * tri_lock_release will wake it.  For the holder.  False: it was not moved, so wake it.
 */
bool tri_lock_line_up(tri_lock *l, _Atomic uint32_t *word, uint32_t expected);

/* The holder's name (base/self.h); 0: free.  Old by the time it is read. */
uint64_t tri_lock_holder(tri_lock *l);

#endif
