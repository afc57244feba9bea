/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * check.h - what every C test uses, and all that it uses.
 *
 * A test program is a set of `static void property_that_holds(void)` functions and a main() that
 * calls RUN(property_that_holds) for each.  CHECK(cond) aborts with file, line and expression, so
 * that a debugger or a core file stands where the property broke.  It stays on in release builds.
 *
 * A hung test is a failed test: every RUN arms an alarm of TRI_TEST_SECONDS (60 unless the
 * environment says otherwise; sanitizer builds want more), and an expired alarm aborts with the
 * test's name.  Forked children inherit the handler but not the alarm.
 *
 * A stress test takes its seed from tri_test_seed(), which prints it; TRI_SEED gives it back.
 * Everything is written to stderr, unbuffered, so that a fork never repeats a line.
 */
#ifndef TRI_TESTS_CHECK_H
#define TRI_TESTS_CHECK_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *tri_test_name = "main";

#define CHECK(cond)                                                                             \
    do {                                                                                        \
        if (!(cond)) {                                                                          \
            fprintf(stderr, "%s:%d: %s: CHECK(%s) failed\n", __FILE__, __LINE__, tri_test_name, \
                    #cond);                                                                     \
            abort();                                                                            \
        }                                                                                       \
    } while (0)

#define RUN(fn) tri_test_run(#fn, fn)

static void tri_test_hung(int sig)
{
    static const char text[] = ": hung, aborted by the alarm (TRI_TEST_SECONDS)\n";

    (void)sig;
    if (write(2, tri_test_name, strlen(tri_test_name)) < 0 || write(2, text, sizeof text - 1) < 0)
        _exit(3);
    abort();
}

static inline void tri_test_run(const char *name, void (*fn)(void))
{
    const char *text = getenv("TRI_TEST_SECONDS");
    int seconds = text ? atoi(text) : 60;

    tri_test_name = name;
    fprintf(stderr, "%s\n", name);
    signal(SIGALRM, tri_test_hung);
    alarm(seconds > 0 ? (unsigned)seconds : 60);
    fn();
    alarm(0);
}

static inline uint64_t tri_test_seed(void)
{
    const char *text = getenv("TRI_SEED");
    struct timespec t;
    uint64_t seed;

    clock_gettime(CLOCK_REALTIME, &t);
    seed = text ? strtoull(text, NULL, 0) : (uint64_t)t.tv_nsec ^ (uint64_t)t.tv_sec << 20;
    fprintf(stderr, "%s: TRI_SEED=%llu\n", tri_test_name, (unsigned long long)seed);
    return seed;
}

#endif
