/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * spin.h - how long to look before going to sleep, learned per object.
 *
 * A hand-over between two CPUs takes less than a sleep and a wake-up; but only the object's own
 * history tells whether its waits are such hand-overs, and where processes share a CPU spinning
 * only keeps the other from running.  So: spin about twice as long as it took of late; when it was
 * in vain, half as long; when that is nothing, not at all for the next SKIPS waits, then probe.
 *
 * The hint (>= 0: looks that it took of late, < 0: waits left without spinning) is written by all
 * and relied on by none.  Tried: glibc's rule for adaptive mutexes, which spins longer after it was
 * in vain: twice the original's time for a hand-over between processes on one busy CPU.
 */
#ifndef TRI_SHM_SPIN_H
#define TRI_SHM_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/self.h"

#define TRI_SPIN_LOOKS 100
#define TRI_SPIN_SKIPS 32

/* How often to look; 0: sleep at once. */
static inline int32_t tri_spin_begin(_Atomic int32_t *hint)
{
    int32_t usual = tri_load_rlx(hint);

    if (tri_self_cpus() < 2)
        return 0;
    if (usual < 0) {
        tri_store_rlx(hint, usual + 1);
        return 0;
    }
    /* Shared memory may hold any number: no arithmetic before it is known to be small. */
    if (usual == 0 || usual > (TRI_SPIN_LOOKS - 10) / 2)
        return TRI_SPIN_LOOKS;
    return usual * 2 + 10;
}

/* What came of it after n looks. */
static inline void tri_spin_end(_Atomic int32_t *hint, int32_t n, bool won)
{
    int32_t usual = tri_load_rlx(hint);

    if (usual < 0)
        usual = 0;
    if (won)
        usual = usual ? usual + (n - usual) / 8 : n;
    else
        usual = usual > 8 ? usual / 2 : -TRI_SPIN_SKIPS;
    tri_store_rlx(hint, usual ? usual : 1);
}

#endif
