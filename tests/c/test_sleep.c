/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_sleep.c - no wake-up is lost, in either direction.
 *
 * A lost wake-up does not fail, it lasts: an owner looks around by itself after 200 ms, a worker
 * never.  So each round measures how long it took, and a round that needed a look has lost one.
 */
#include "pools.h"

#include <pthread.h>

static const int kinds[] = {TRI_THREAD, TRI_PROCESS};

static void no_spin(tri_pool_config *c)
{
    c->spin_ns = 0;
}

static void long_spin(tri_pool_config *c)
{
    c->spin_ns = 300000;
}

static int64_t pause_for(uint64_t *seed, uint64_t most_ns)
{
    struct timespec ts = {0, 0};

    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    ts.tv_nsec = (long)((*seed >> 33) % most_ns);
    if (ts.tv_nsec & 1)
        nanosleep(&ts, NULL);
    return ts.tv_nsec;
}

/* One task after the other, with pauses about as long as it takes to fall asleep. */
static void a_task_that_comes_while_workers_fall_asleep_is_run(void)
{
    void (*const how[])(tri_pool_config *) = {NULL, no_spin, long_spin};
    uint64_t seed = tri_test_seed();
    int rounds = TRI_SANITIZED ? 500 : 3000, slow = 0;

    for (size_t k = 0; k < 2; k++)
        for (size_t h = 0; h < 3; h++) {
            tri_pool *p = pool_with(kinds[k], 3, how[h]);

            for (int i = 0; i < rounds; i++) {
                int64_t out, x = i, start = tri_now_ns();
                tri_future *f = submit(p, square, &x, 8, 8);

                pause_for(&seed, 40000);
                CHECK(ended(f, &out) == 0 && out == x * x);
                slow += tri_now_ns() - start > 150 * MS;
                pause_for(&seed, 60000);
            }
            tri_pool_close(p);
        }
    CHECK(slow <= 2); /* a machine that is busy may be late by itself now and then */
}

struct waiter {
    tri_pool *p;
    uint64_t seed;
    int slow;
};

static void *waits(void *arg)
{
    struct waiter *w = arg;

    for (int i = 0; i < (TRI_SANITIZED ? 200 : 800); i++) {
        int64_t out, x = i, start = tri_now_ns();
        tri_future *f = submit(w->p, square, &x, 8, 8);

        pause_for(&w->seed, 50000);
        CHECK(ended(f, &out) == 0 && out == x * x);
        w->slow += tri_now_ns() - start > 150 * MS;
    }
    return NULL;
}

/* Several sleep on one word: the last to lie down must not hide what the others wait for. */
static void threads_that_wait_do_not_hide_each_others_results(void)
{
    uint64_t seed = tri_test_seed();

    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_with(kinds[k], 2, no_spin);
        struct waiter w[4];
        pthread_t t[4];
        int slow = 0;

        for (int i = 0; i < 4; i++) {
            w[i] = (struct waiter){p, seed + (uint64_t)i, 0};
            CHECK(pthread_create(&t[i], NULL, waits, &w[i]) == 0);
        }
        for (int i = 0; i < 4; i++) {
            pthread_join(t[i], NULL);
            slow += w[i].slow;
        }
        CHECK(slow <= 2);
        tri_pool_close(p);
    }
}

static int meet(const void *in, void *out)
{
    struct gate *g;

    (void)out;
    memcpy(&g, in, sizeof g);
    atomic_fetch_add(&g->inside, 1);
    while (atomic_load(&g->inside) < 3)
        usleep(50);
    return 0;
}

/* Three tasks that wait for each other: each needs a worker of its own, so each worker must be
 * woken, by the owner or by another worker that was. */
static void as_many_workers_wake_as_there_are_tasks(void)
{
    void (*const how[])(tri_pool_config *) = {NULL, no_spin, long_spin};
    uint64_t seed = tri_test_seed();
    int slow = 0;

    for (size_t k = 0; k < 2; k++)
        for (size_t h = 0; h < 3; h++) {
            tri_pool *p = pool_with(kinds[k], 3, how[h]);
            tri_share *s;
            struct gate *g = gate_of(p, &s);

            for (int i = 0; i < (TRI_SANITIZED ? 100 : 400); i++) {
                tri_future *f[3];
                int64_t start = tri_now_ns();

                atomic_store(&g->inside, 0);
                for (int j = 0; j < 3; j++) {
                    f[j] = submit(p, meet, &g, sizeof g, 0);
                    pause_for(&seed, 20000);
                }
                for (int j = 0; j < 3; j++)
                    CHECK(ended(f[j], NULL) == 0);
                slow += tri_now_ns() - start > 150 * MS;
                pause_for(&seed, 400000);
            }
            tri_share_free(s);
            tri_pool_close(p);
        }
    CHECK(slow <= 2);
}

static void an_owner_with_much_out_still_gets_the_first_at_once(void)
{
    tri_pool *p = pool_with(TRI_PROCESS, 2, no_spin);
    int64_t out;

    for (int round = 0; round < 20; round++) {
        tri_future *f[1000];
        int64_t start;

        for (int64_t i = 0; i < 1000; i++)
            f[i] = submit(p, square, &i, 8, 8);
        start = tri_now_ns();
        for (int64_t i = 0; i < 1000; i++)
            CHECK(ended(f[i], &out) == 0 && out == i * i);
        CHECK(tri_now_ns() - start < SECOND * TRI_SLOW);
    }
    CHECK(stats_of(p).owner_sleeps < 20 * 1000 / 4); /* it sleeps for many, not for each */
    tri_pool_close(p);
}

int main(void)
{
    RUN(a_task_that_comes_while_workers_fall_asleep_is_run);
    RUN(threads_that_wait_do_not_hide_each_others_results);
    RUN(as_many_workers_wake_as_there_are_tasks);
    RUN(an_owner_with_much_out_still_gets_the_first_at_once);
    return 0;
}
