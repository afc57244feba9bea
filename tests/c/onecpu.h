/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * onecpu.h - for tests of what processes do that share a CPU.
 */
#ifndef TRI_TEST_ONECPU_H
#define TRI_TEST_ONECPU_H

#include <sched.h>

#include "base/self.h"
#include "check.h"
#include "shm/lock.h"
#include "shm/spin.h"
#include "trireme.h"

/* Bind this thread to one of its CPUs, and have it notice: a wait that spins in vain does. */
static inline void bind_to_one(void)
{
    cpu_set_t all, one;
    tri_lock lock;
    int cpu = 0;

    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    CHECK(tri_self_cpus() == CPU_COUNT(&all));
    while (!CPU_ISSET(cpu, &all))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    tri_lock_init(&lock);
    CHECK(tri_lock_acquire(&lock, 0, NULL) == 0);
    CHECK(tri_lock_acquire(&lock, 200000000, NULL) == TRI_ETIMEDOUT);
    CHECK(tri_self_cpus() == 1);
}

/* Has this process let others have its CPU instead of sleeping? */
static inline bool has_yielded(void)
{
    return tri_load_rlx(&tri_spin_turns.good) || tri_load_rlx(&tri_spin_turns.skips);
}

#endif
