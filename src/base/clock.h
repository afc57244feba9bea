/* SPDX-License-Identifier: BSD-3-Clause */
/* clock.h - the one clock: monotonic nanoseconds, so that a clock set by hand moves nothing. */
#ifndef TRI_BASE_CLOCK_H
#define TRI_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t tri_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* The same as of the last tick (1 to 10 ms), in a fifth of the time. */
static inline int64_t tri_tick_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

#endif
