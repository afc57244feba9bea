/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_pool_room.c - programs that ask for more than there is room for at once, or in an unusual
 * order: futures nobody waits for, cancelled tasks, recursion, maps that fail or do not fit; and
 * what a task's children and the program's own timers may do to a pool.
 */
#include <stddef.h>
#include <sys/time.h>

#include "pools.h"

#define MIB (1 << 20)

static const int kinds[] = {TRI_PROCESS, TRI_THREAD};

static void small(tri_pool_config *c)
{
    c->slots = 64;
    c->arena_bytes = 8 << 20;
}

static int nothing(const void *in, void *out)
{
    (void)in;
    (void)out;
    return 0;
}

static int fill_mib(const void *in, void *out)
{
    memset(out, in ? 7 : 8, MIB);
    return 0;
}

/* Whoever frees a future at once never waits, and yet what it held is there for the next ones. */
static void futures_nobody_waits_for_give_their_memory_back(void)
{
    char *arg = calloc(1, MIB);

    CHECK(arg);
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_with(kinds[k], 2, small);
        char *got = calloc(1, MIB);

        for (int i = 0; i < 100; i++)
            tri_future_free(submit(p, nothing, arg, MIB, 0));
        for (int i = 0; i < 40; i++) {
            uint64_t before = stats_of(p).completed;

            tri_future_free(submit(p, fill_mib, NULL, 0, MIB));
            WAIT_UNTIL(squares_work(p, 3) && stats_of(p).completed > before + 1, 10 * SECOND);
        }
        CHECK(ended(submit(p, fill_mib, NULL, 0, MIB), got) == 0 && got[0] == 7);
        free(got);
        tri_pool_close(p);
    }
    free(arg);
}

/* One copied part of these items needs more than the half of the arena. */
static int first_word(const void *in, void *out)
{
    memset(out, 0, 3 * MIB / 2);
    memcpy(out, in, 8);
    return 0;
}

static void a_map_that_does_not_fit_at_once_goes_in_parts(void)
{
    enum { N = 9, BYTES = 3 * MIB / 2 };
    tri_pool *p = pool_with(TRI_PROCESS, 2, small);
    char *in = calloc(N, BYTES), *out = calloc(N, BYTES);

    CHECK(in && out);
    for (int64_t i = 0; i < N; i++)
        memcpy(in + i * BYTES, &i, 8);
    CHECK(tri_map(p, first_word, in, BYTES, out, BYTES, N, NULL) == 0);
    for (int64_t i = 0; i < N; i++)
        CHECK(memcmp(out + i * BYTES, &i, 8) == 0);
    CHECK(stats_of(p).arena_live_bytes == 0);
    free(in);
    free(out);
    tri_pool_close(p);
}

/* Behind tasks that have not started, tasks are cancelled again and again. */
static void cancelled_tasks_leave_room(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_with(kinds[k], 2, small);
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *f[2], *waits;

        occupy(p, g, 2, f);
        waits = submit(p, nothing, NULL, 0, 0);
        for (int i = 0; i < 5000; i++) {
            tri_future *one = submit(p, nothing, NULL, 0, 0);

            CHECK(tri_future_cancel(one) == 0);
            tri_future_free(one);
        }
        atomic_store(&g->open, 1);
        CHECK(ended(f[0], NULL) == 0 && ended(f[1], NULL) == 0 && ended(waits, NULL) == 0);
        tri_share_free(s);
        tri_pool_close(p);
    }
}

struct fib {
    tri_pool *pool;
    int64_t n;
};

static int fib(const void *in, void *out)
{
    struct fib a, b;
    int64_t x, y;
    tri_future *f, *g;

    memcpy(&a, in, sizeof a);
    b = a;
    if (a.n > 1) {
        a.n -= 1;
        b.n -= 2;
        f = submit(a.pool, fib, &a, sizeof a, sizeof x);
        g = submit(a.pool, fib, &b, sizeof b, sizeof y);
        CHECK(ended(f, &x) == 0 && ended(g, &y) == 0);
        x += y;
    } else {
        x = a.n;
    }
    memcpy(out, &x, sizeof x);
    return 0;
}

/* Far more tasks than slots, each of which waits for two of them. */
static void recursion_ends_whatever_the_slots(void)
{
    for (int workers = 1; workers < 4; workers++) {
        tri_pool *p = pool_with(TRI_THREAD, workers, small);
        struct fib a = {p, 16};
        tri_future *f[100];
        int64_t got;

        for (int i = 0; i < 100; i++)
            f[i] = submit(p, fib, &a, sizeof a, sizeof got);
        for (int i = 0; i < 100; i++)
            CHECK(ended(f[i], &got) == 0 && got == 987);
        CHECK(stats_of(p).slots_free == 64);
        tri_pool_close(p);
    }
}

struct count {
    _Atomic uint32_t begun;
};

struct item {
    struct count *count;
    int64_t i;
};

static int fail_first(const void *in, void *out)
{
    struct item it;

    (void)out;
    memcpy(&it, in, sizeof it);
    atomic_fetch_add(&it.count->begun, 1);
    usleep(it.i ? 20000 : 1000);
    return it.i == 0;
}

/* Of 400 items of 20 ms the first fails: those that have not begun then are not run. */
static void a_map_that_fails_runs_few_items_more(void)
{
    for (size_t k = 0; k < 2; k++) {
        for (size_t chunk = 0; chunk < 400; chunk += 200) {
            tri_call opt = TRI_CALL_INIT;
            tri_pool *p = pool_of(kinds[k], 2);
            struct item it[400];
            tri_share *s;

            CHECK(tri_share_open(p, sizeof(struct count), &s) == 0);
            for (int i = 0; i < 400; i++)
                it[i] = (struct item){tri_share_data(s), i};
            opt.chunk = chunk;
            CHECK(tri_map(p, fail_first, it, sizeof *it, NULL, 0, 400, &opt) == TRI_EFAILED);
            CHECK(atomic_load(&it[0].count->begun) < 100);
            CHECK(squares_work(p, 100));
            tri_share_free(s);
            tri_pool_close(p);
        }
    }
}

/* An ordinary slip: the child was to exec, which failed, and it returns. */
static int forks(const void *in, void *out)
{
    pid_t child = fork();
    int status = -1;

    (void)in;
    if (child == 0)
        return 5;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    memcpy(out, &status, sizeof status);
    return 0;
}

static void a_child_that_returns_from_a_task_is_no_worker(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        int status = -1;

        for (int i = 0; i < 20; i++)
            CHECK(ended(submit(p, forks, NULL, 0, sizeof status), &status) == 0 && status == 0);
        CHECK(squares_work(p, 1000) && stats_of(p).deaths == 0);
        tri_pool_close(p);
    }
}

static int blocked_signals(const void *in, void *out)
{
    sigset_t set;
    int n = 0;

    (void)in;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0);
    for (int sig = 1; sig < 32; sig++)
        n += sigismember(&set, sig) == 1;
    memcpy(out, &n, sizeof n);
    return 0;
}

/* What a task starts inherits its mask, and is to be ended by SIGTERM. */
static void tasks_have_the_mask_of_who_opened_the_pool(void)
{
    for (size_t k = 0; k < 2; k++) {
        sigset_t two;
        tri_pool *p = pool_of(kinds[k], 1);
        int n = -1;

        CHECK(ended(submit(p, blocked_signals, NULL, 0, sizeof n), &n) == 0 && n == 0);
        tri_pool_close(p);
        sigemptyset(&two);
        sigaddset(&two, SIGUSR1);
        sigaddset(&two, SIGTERM);
        CHECK(pthread_sigmask(SIG_BLOCK, &two, NULL) == 0);
        p = pool_of(kinds[k], 1);
        CHECK(ended(submit(p, blocked_signals, NULL, 0, sizeof n), &n) == 0 && n == 2);
        tri_pool_close(p);
        CHECK(pthread_sigmask(SIG_UNBLOCK, &two, NULL) == 0);
    }
}

struct wide {
    int64_t x[32];
};

static int aligned(const void *in, void *out)
{
    return ((uintptr_t)in | (uintptr_t)out) % sizeof(struct wide) != 0;
}

static void items_are_aligned_as_the_arrays_are(void)
{
    enum { N = 3000 };
    struct wide *in, *out;

    CHECK(posix_memalign((void **)&in, 4096, N * sizeof *in) == 0);
    CHECK(posix_memalign((void **)&out, 4096, N * sizeof *out) == 0);
    memset(in, 0, N * sizeof *in);
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);

        for (size_t n = 1; n <= N; n *= 3)
            CHECK(tri_map(p, aligned, in, sizeof *in, out, sizeof *out, n, NULL) == 0);
        CHECK(stats_of(p).arena_live_bytes == 0);
        tri_pool_close(p);
    }
    free(in);
    free(out);
}

static void rings(int sig)
{
    (void)sig;
}

/* A timer of the program's ends each sleep of a wait early: the warden's death is seen anyway. */
static void a_dead_warden_is_seen_under_a_timer(void)
{
    struct itimerspec each = {{0, 50 * MS}, {0, 50 * MS}}, none = {{0, 0}, {0, 0}};
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct sigaction act = {.sa_handler = rings, .sa_flags = SA_RESTART};
    tri_pool *p = pool_of(TRI_PROCESS, 1);
    int32_t warden = pid_from(p, pid_of_warden);
    tri_future *f = submit(p, deaf_for_ever, "", 1, 0);
    timer_t timer;
    int err;

    CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
    CHECK(timer_create(CLOCK_MONOTONIC, &ev, &timer) == 0);
    CHECK(timer_settime(timer, 0, &each, NULL) == 0);
    CHECK(kill(warden, SIGKILL) == 0);
    while ((err = tri_future_wait(f, -1)) == -EINTR)
        ;
    CHECK(err == 0 && ended(f, NULL) == TRI_EBROKEN);
    CHECK(timer_settime(timer, 0, &none, NULL) == 0);
    timer_delete(timer);
    tri_pool_close(p);
}

int main(void)
{
    RUN(futures_nobody_waits_for_give_their_memory_back);
    RUN(a_map_that_does_not_fit_at_once_goes_in_parts);
    RUN(cancelled_tasks_leave_room);
    RUN(recursion_ends_whatever_the_slots);
    RUN(a_map_that_fails_runs_few_items_more);
    RUN(a_child_that_returns_from_a_task_is_no_worker);
    RUN(tasks_have_the_mask_of_who_opened_the_pool);
    RUN(items_are_aligned_as_the_arrays_are);
    RUN(a_dead_warden_is_seen_under_a_timer);
    return 0;
}
