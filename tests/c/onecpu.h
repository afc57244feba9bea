/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * onecpu.h - for tests of what processes do that share a CPU.
 */
#ifndef TRI_TEST_ONECPU_H
#define TRI_TEST_ONECPU_H

#include <sched.h>

#include "base/self.h"
#include "check.h"

/* Bind this thread to one of its CPUs. */
static inline void bind_to_one(void)
{
    cpu_set_t all, one;
    int cpu = 0;

    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    while (!CPU_ISSET(cpu, &all))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    tri_self_cpus_again();
    CHECK(tri_self_cpus() == 1);
}

#endif
