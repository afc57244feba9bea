/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * self.h - the name that a process leaves in shared memory, and whether its bearer still lives.
 *
 * A process id alone is no name: ids are used again.  A name is the id in the low half and the
 * low 32 bits of the process's start time (clock ticks since boot, field 22 of /proc/PID/stat) in
 * the high half, so that one 64-bit store or compare-and-swap writes all of it.  A start time of 0
 * means "unknown" (no /proc); then the id alone decides, and errs towards "lives".
 *
 * Names are comparable only within one pid namespace.  tri_self_ns() tells which; who keeps a name
 * in shared memory keeps that beside it and asks tri_name_gone() only about names of its own.
 */
#ifndef TRI_BASE_SELF_H
#define TRI_BASE_SELF_H

#include <stdbool.h>
#include <stdint.h>

#define TRI_NAME_PID_BITS 30 /* the kernel's ids have 22 at most: two bits are free for flags */
#define TRI_NAME_PID ((UINT64_C(1) << TRI_NAME_PID_BITS) - 1)
#define TRI_NAME_MASK (~UINT64_C(0) << 32 | TRI_NAME_PID)
#define TRI_NAME_FOREIGN (UINT64_C(1) << 30) /* signed in another namespace: nobody judges it */

/* This process's name, never 0.  A few ns; read anew after every kind of fork.  Threads: any. */
uint64_t tri_self_name(void);
/* Its pid namespace; 0: unknown. */
uint64_t tri_self_ns(void);
/* CPUs in its affinity mask when it started or forked, or was last asked to look again; at least 1.
 * The mask is the calling thread's; looking takes a system call. */
int tri_self_cpus(void);
void tri_self_cpus_again(void);

/*
 * Is the bearer of this name, a process of the caller's pid namespace, gone for good?  A zombie is:
 * it runs no more code.  false whenever that is not certain.  Threads: any.  Costs microseconds.
 */
bool tri_name_gone(uint64_t name);

/* This process's name for memory made in namespace ns, with FOREIGN set if that is not its own. */
uint64_t tri_sign(uint64_t ns);
/* tri_name_gone() for what tri_sign(ns) gave to some process; other flags of word do not matter. */
bool tri_signer_gone(uint64_t ns, uint64_t word);

#endif
