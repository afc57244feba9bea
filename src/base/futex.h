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
#include <stdbool.h>
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

/* Wake up to n.  How many there were. */
static inline long tri_futex_wake(_Atomic uint32_t *word, int n)
{
    return syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE, n, NULL, NULL, 0);
}

/* Of those that sleep on `from` while it is `expected`, one sleeps on `to` from now on.  False:
 * there is none, or the word has changed. */
static inline bool tri_futex_move(_Atomic uint32_t *from, uint32_t expected, _Atomic uint32_t *to)
{
    return syscall(SYS_futex, (uint32_t *)from, FUTEX_CMP_REQUEUE, 0, (void *)1, (uint32_t *)to,
                   expected) == 1;
}

#endif
