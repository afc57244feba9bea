/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * futex.h - sleep on a 32-bit word and wake its sleepers, between threads or processes.
 *
 * The words live in memory that processes share, so the private flag is never used.  Time-outs
 * are relative, so a change of the wall clock neither shortens nor lengthens a sleep.
 */
#ifndef TRI_BASE_FUTEX_H
#define TRI_BASE_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Sleep while *word == expected.  timeout_ns < 0: for ever.  0, -EAGAIN, -EINTR or -ETIMEDOUT. */
static inline int tri_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec ts, *tp = NULL;

    if (timeout_ns >= 0) {
        ts.tv_sec = timeout_ns / 1000000000;
        ts.tv_nsec = timeout_ns % 1000000000;
        tp = &ts;
    }
    if (syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT, expected, tp, NULL, 0) == 0)
        return 0;
    return -errno;
}

static inline void tri_futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE, n, NULL, NULL, 0);
}

#endif
