/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cp.h - kill points: CP(name) stands at every step that changes shared memory.
 *
 * In a build with -Dcheckpoints=true a process in which tri_cp_arm(n) was called kills itself
 * with SIGKILL at the n-th point it passes, so that a test can visit each instruction boundary in
 * turn (tests/c/test_killpoints.c).  In release builds the macro is nothing.
 */
#ifndef TRI_BASE_CP_H
#define TRI_BASE_CP_H

#ifdef TRI_CHECKPOINTS
void tri_cp_hit(const char *name);
/* Die at the n-th point from now, 1 being the next; 0 disarms. */
void tri_cp_arm(long n);
#define CP(name) tri_cp_hit(#name)
#else
#define CP(name) ((void)0)
#endif

#endif
