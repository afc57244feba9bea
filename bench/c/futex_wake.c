/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * futex_wake - what the kernel takes to wake another process, and nothing else.
 *
 * Two processes share two words.  After 5 ms in which both did nothing the first stores to `ask`
 * and wakes the second, which sleeps on it; that one stores to `answer`.  The first either sleeps
 * on the answer as well (p50_us: two wake-ups, there and back) or watches it come
 * (one_wake_p50_us).  The kernel decides where they run; one_cpu_p50_us and two_cpus_p50_us are of
 * two that sleep and are bound, to the same CPU or each to its own.
 */
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct words {
    _Alignas(128) _Atomic uint32_t ask;
    _Alignas(128) _Atomic uint32_t answer;
    _Alignas(128) _Atomic uint32_t asker_sleeps;
};

static void futex_sleep(_Atomic uint32_t *word, uint32_t while_it_is)
{
    syscall(SYS_futex, word, FUTEX_WAIT, while_it_is, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void answer_for_ever(struct words *w)
{
    for (uint32_t seen = 0;; seen++) {
        while (atomic_load(&w->ask) == seen)
            futex_sleep(&w->ask, seen);
        atomic_store(&w->answer, seen + 1);
        if (atomic_load(&w->asker_sleeps))
            futex_wake(&w->answer);
    }
}

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Measure n times, and leave the times sorted in us. */
static void measure(struct words *w, double *us, int n, int sleep)
{
    const struct timespec idle = {0, 5000000};

    atomic_store(&w->asker_sleeps, sleep);
    for (int i = 0; i < n; i++) {
        uint32_t old = atomic_load(&w->answer);

        nanosleep(&idle, NULL);
        us[i] = now_us();
        atomic_store(&w->ask, old + 1);
        futex_wake(&w->ask);
        while (atomic_load(&w->answer) == old) {
            if (sleep)
                futex_sleep(&w->answer, old);
        }
        us[i] = now_us() - us[i];
    }
    qsort(us, (size_t)n, sizeof *us, by_value);
}

/* Let a process run on the nth CPU of all, and nowhere else. */
static int bind_to(pid_t pid, const cpu_set_t *all, int nth)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, all) && nth-- == 0)
            CPU_SET(cpu, &one);
    return sched_setaffinity(pid, sizeof one, &one);
}

int main(int argc, char **argv)
{
    const int n = argc > 1 && strcmp(argv[1], "quick") == 0 ? 50 : 300;
    struct words *w =
        mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double *us = calloc((size_t)n, sizeof *us);
    cpu_set_t all;
    pid_t child;

    if (w == MAP_FAILED || !us || (child = fork()) < 0)
        return 1;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        answer_for_ever(w);
    }
    measure(w, us, n, 1);
    printf("p10_us %.3f\np50_us %.3f\n", us[n / 10], us[n / 2]);
    measure(w, us, n, 0);
    printf("one_wake_p50_us %.3f\n", us[n / 2]);
    if (sched_getaffinity(0, sizeof all, &all) == 0 && bind_to(0, &all, 0) == 0 &&
        bind_to(child, &all, 0) == 0) {
        measure(w, us, n, 1);
        printf("one_cpu_p50_us %.3f\n", us[n / 2]);
        if (CPU_COUNT(&all) > 1 && bind_to(child, &all, 1) == 0) {
            measure(w, us, n, 1);
            printf("two_cpus_p50_us %.3f\n", us[n / 2]);
        }
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    free(us);
    return 0;
}
