/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_pool.c - what the public header promises of the calls of a pool that nothing befalls:
 * values, sizes, shared memory, order, cancelling, slots, threads that submit and wait, counters.
 *
 * How a pool ends and what it does to its process is in test_pool_life.c, deaths in test_deaths.c
 * and test_warden.c.  tools/order_test.sh runs this program with weakened memory orders.
 */
#include "pools.h"

#include <pthread.h>

static const int kinds[] = {TRI_PROCESS, TRI_THREAD};

/* ------------------------------------------------------------------ values */

static void every_item_of_a_map_gets_its_value(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);

        for (int64_t n = 1; n < 60000; n *= 7)
            CHECK(squares_work(p, n));
        for (size_t chunk = 1; chunk < 2000; chunk = chunk * 9 + 1)
            for (int caller = 0; caller < 2; caller++) {
                tri_call opt = TRI_CALL_INIT;
                int64_t in[1000], out[1000] = {0};

                opt.chunk = chunk;
                opt.caller = caller;
                for (int i = 0; i < 1000; i++)
                    in[i] = i;
                CHECK(tri_map(p, square, in, 8, out, 8, 1000, &opt) == 0);
                for (int64_t i = 0; i < 1000; i++)
                    CHECK(out[i] == i * i);
            }
        CHECK(tri_map(p, square, NULL, 0, NULL, 0, 0, NULL) == 0);
        tri_pool_close(p);
    }
}

static int fails_at_500(const void *in, void *out)
{
    int64_t x;

    memcpy(&x, in, sizeof x);
    memcpy(out, &x, sizeof x);
    return x == 500 ? 77 : 0;
}

static void an_item_that_fails_fails_the_map_and_nothing_else(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        int64_t in[1000], out[1000];
        tri_future *f;

        for (int i = 0; i < 1000; i++)
            in[i] = i;
        CHECK(tri_map(p, fails_at_500, in, 8, out, 8, 1000, NULL) == TRI_EFAILED);
        f = submit(p, fails_at_500, &in[500], 8, 8);
        CHECK(tri_future_get(f, out, -1) == TRI_EFAILED && tri_future_code(f) == 77);
        CHECK(ended(f, out) == TRI_EFAILED);
        CHECK(squares_work(p, 1000));
        tri_pool_close(p);
    }
}

struct sizes {
    uint64_t in, out;
};

/* Every byte of the argument is in the sum, every byte of the result in the pattern. */
static int echo(const void *in, void *out)
{
    struct sizes s;
    const uint8_t *b = in;
    uint8_t *o = out;
    uint8_t sum = 0;

    memcpy(&s, in, sizeof s);
    for (uint64_t i = 0; i < s.in; i++)
        sum = (uint8_t)(sum * 31 + b[i]);
    for (uint64_t i = 0; i < s.out; i++)
        o[i] = (uint8_t)(sum + i * 7);
    return ((uintptr_t)in & 15) || ((uintptr_t)out & 15) ? 9 : 0;
}

static int fills_ten(const void *in, void *out)
{
    if (in && out)
        memset(out, 10, 10);
    return 0;
}

static void arguments_and_results_of_every_size_travel(void)
{
    static const uint64_t size[] = {16, 63, 64, 65, 80, 81, 192, 193, 4096, 1 << 20, 64 << 20};

    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        uint8_t *in = malloc(64 << 20), *out = malloc(64 << 20), ten[10];
        uint64_t n = sizeof size / sizeof *size - (TRI_SANITIZED ? 1 : 0);

        for (uint64_t i = 0; i < 64 << 20; i++)
            in[i] = (uint8_t)(i ^ i >> 9);
        for (uint64_t i = 0; i < n; i++) {
            struct sizes s = {size[i], size[n - 1 - i]};
            uint8_t sum = 0;

            memcpy(in, &s, sizeof s);
            for (uint64_t b = 0; b < s.in; b++)
                sum = (uint8_t)(sum * 31 + in[b]);
            CHECK(ended(submit(p, echo, in, s.in, s.out), out) == 0);
            for (uint64_t b = 0; b < s.out; b++)
                CHECK(out[b] == (uint8_t)(sum + b * 7));
        }
        CHECK(ended(submit(p, fills_ten, NULL, 0, 10), ten) == 0 && ten[9] == 10);
        free(in);
        free(out);
        tri_pool_close(p);
    }
}

static void small_arena(tri_pool_config *c)
{
    c->arena_bytes = 8 << 20;
}

static void an_arena_too_small_costs_that_task_only(void)
{
    tri_pool *p = pool_with(TRI_PROCESS, 2, small_arena);
    struct sizes s = {16, 64 << 20};
    uint8_t *in = calloc(1, 64 << 20);
    tri_future *f;

    for (int i = 0; i < 3; i++)
        CHECK(ended(submit(p, echo, &s, sizeof s, s.out), in) == -ENOMEM);
    CHECK(tri_submit(p, echo, in, 64 << 20, 8, NULL, &f) == -ENOMEM);
    s.out = 7 << 19;
    memcpy(in, &s, sizeof s);
    CHECK(ended(submit(p, echo, &s, sizeof s, s.out), in) == 0);
    CHECK(squares_work(p, 1000));
    CHECK(stats_of(p).slots_free == stats_of(p).slots);
    free(in);
    tri_pool_close(p);
}

static int nothing(const void *in, void *out)
{
    (void)in;
    (void)out;
    return 0;
}

static void a_chunk_that_cannot_be_copied_leaves_no_block(void)
{
    tri_pool *p = pool_with(TRI_PROCESS, 1, small_arena);
    uint64_t live = stats_of(p).arena_live_bytes;
    size_t wide = 64u << 20;
    void *in = calloc(1, wide);
    int64_t out;

    CHECK(in != NULL);
    CHECK(tri_map(p, nothing, in, wide, &out, sizeof out, 1, NULL) == -ENOMEM);
    CHECK(stats_of(p).arena_live_bytes == live);
    CHECK(stats_of(p).slots_free == stats_of(p).slots);
    free(in);
    tri_pool_close(p);
}

/* With one descriptor more in each round, the opening fails at each place that needs one. */

static int add_to_share(const void *in, void *out)
{
    int64_t *word;

    memcpy(&word, in, sizeof word);
    *word += 1;
    memcpy(out, word, sizeof *word);
    return 0;
}

static void shared_memory_is_zeroed_seen_by_all_and_freed_with_the_pool(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        tri_share *a, *b, *left;
        int64_t *word, out = 0;

        CHECK(tri_share_open(p, 1 << 20, &a) == 0 && tri_share_bytes(a) == 1 << 20);
        memset(tri_share_data(a), 0xff, 1 << 20);
        tri_share_free(a);
        CHECK(tri_share_open(p, 1 << 20, &b) == 0);
        CHECK(tri_share_open(p, 8, &left) == 0);
        word = tri_share_data(b);
        for (size_t i = 0; i < (1 << 20) / 8; i++)
            CHECK(word[i] == 0);
        *word = 41;
        CHECK(ended(submit(p, add_to_share, &word, 8, 8), &out) == 0);
        CHECK(out == 42 && *word == 42);
        for (int i = 0; i < 1000; i++)
            word[i] = i;
        CHECK(tri_map(p, square, word, 8, word + 1000, 8, 1000, NULL) == 0); /* in place */
        for (int i = 0; i < 1000; i++)
            CHECK(word[1000 + i] == (int64_t)i * i);
        tri_share_free(b);
        tri_pool_close(p); /* `left` is freed by this: the leak checker looks */
    }
}

static void wrong_arguments_are_refused(void)
{
    tri_pool *p = pool_of(TRI_THREAD, 1), *q = NULL;
    tri_pool_config cfg;
    tri_call opt = TRI_CALL_INIT;
    tri_future *f = NULL;
    int64_t x = 1;
    tri_share *s;

    CHECK(tri_submit(p, NULL, &x, 8, 8, NULL, &f) == -EINVAL);
    CHECK(tri_submit(p, square, NULL, 8, 8, NULL, &f) == -EINVAL);
    opt.priority = 3;
    CHECK(tri_submit(p, square, &x, 8, 8, &opt, &f) == -EINVAL);
    CHECK(tri_map(p, square, &x, 8, &x, 8, 1, &opt) == -EINVAL);
    opt.priority = 0;
    opt.size = 3;
    CHECK(tri_submit(p, square, &x, 8, 8, &opt, &f) == -EINVAL);
    CHECK(tri_share_open(p, 0, &s) == -EINVAL);
    CHECK(tri_pool_stats(p, &(tri_stats){.size = 3}) == -EINVAL);
    tri_pool_config_init(&cfg);
    cfg.kind = 9;
    CHECK(tri_pool_open(&q, &cfg) == -EINVAL && !q);
    tri_pool_config_init(&cfg);
    cfg.workers = TRI_MAX_WORKERS + 1;
    CHECK(tri_pool_open(&q, &cfg) == -EINVAL && !q);
    CHECK(tri_pool_open(NULL, NULL) == -EINVAL);
    tri_pool_close(NULL);
    tri_pool_terminate(NULL);
    tri_future_free(NULL);
    tri_share_free(NULL);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ order and cancelling */

struct logged {
    _Atomic uint32_t n;
    uint32_t who[64];
};
struct log_entry {
    struct logged *log;
    uint32_t who;
};

static int write_log(const void *in, void *out)
{
    struct log_entry e;

    (void)out;
    memcpy(&e, in, sizeof e);
    e.log->who[atomic_fetch_add(&e.log->n, 1)] = e.who;
    return 0;
}

static void tasks_start_by_priority_and_then_in_order(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 1);
        tri_share *sg, *sl;
        struct gate *g = gate_of(p, &sg);
        tri_future *busy, *f[50];
        struct logged *log;

        CHECK(tri_share_open(p, sizeof *log, &sl) == 0);
        log = tri_share_data(sl);
        occupy(p, g, 1, &busy);
        for (uint32_t i = 0; i < 50; i++) {
            tri_call opt = TRI_CALL_INIT;
            struct log_entry e = {log, i};

            opt.priority = (int)(i * 7 % 5) - 2;
            CHECK(tri_submit(p, write_log, &e, sizeof e, 0, &opt, &f[i]) == 0);
        }
        atomic_store(&g->open, 1);
        CHECK(ended(busy, NULL) == 0);
        for (int i = 0; i < 50; i++)
            CHECK(ended(f[i], NULL) == 0);
        for (int i = 1; i < 50; i++) {
            uint32_t a = log->who[i - 1], b = log->who[i];

            CHECK(a * 7 % 5 > b * 7 % 5 || (a * 7 % 5 == b * 7 % 5 && a < b));
        }
        tri_share_free(sg);
        tri_share_free(sl);
        tri_pool_close(p);
    }
}

static void a_cancelled_task_never_runs(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *busy[2], *f[100];

        occupy(p, g, 2, busy);
        for (int i = 0; i < 100; i++)
            f[i] = submit(p, stand_at_gate, &g, sizeof g, 0);
        for (int i = 0; i < 100; i += 2) {
            CHECK(tri_future_cancel(f[i]) == 0);
            CHECK(tri_future_cancel(f[i]) == 0);
        }
        CHECK(tri_future_cancel(busy[0]) == -EBUSY);
        atomic_store(&g->open, 1);
        for (int i = 0; i < 100; i++)
            CHECK(ended(f[i], NULL) == (i % 2 ? 0 : TRI_ECANCELLED));
        CHECK(ended(busy[0], NULL) == 0 && ended(busy[1], NULL) == 0);
        CHECK(g->passed == 52 && stats_of(p).cancelled == 50);
        CHECK(stats_of(p).slots_free == stats_of(p).slots);
        tri_share_free(s);
        tri_pool_close(p);
    }
}

static void *wait_for_cancelled(void *f)
{
    CHECK(tri_future_get(f, NULL, -1) == TRI_ECANCELLED);
    return NULL;
}

static void cancelling_releases_who_waits(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 1);
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_future *busy, *f;
    pthread_t t;
    int64_t start;

    occupy(p, g, 1, &busy);
    f = submit(p, stand_at_gate, &g, sizeof g, 0);
    CHECK(pthread_create(&t, NULL, wait_for_cancelled, f) == 0);
    WAIT_UNTIL(stats_of(p).owner_sleeps > 0, 5 * SECOND);
    start = tri_now_ns();
    CHECK(tri_future_cancel(f) == 0);
    pthread_join(t, NULL);
    CHECK(tri_now_ns() - start < 150 * MS * TRI_SLOW); /* not by the look at the warden */
    tri_future_free(f);
    atomic_store(&g->open, 1);
    CHECK(ended(busy, NULL) == 0);
    tri_share_free(s);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ slots and threads */

static void few_slots(tri_pool_config *c)
{
    c->slots = 64;
}

static void more_tasks_than_slots_wait_their_turn(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_with(kinds[k], 2, few_slots);
        tri_future *f[1000];
        int64_t out;

        CHECK(stats_of(p).slots == 64);
        for (int64_t i = 0; i < 1000; i++)
            f[i] = submit(p, square, &i, 8, 8);
        for (int64_t i = 999; i >= 0; i--)
            CHECK(ended(f[i], &out) == 0 && out == i * i);
        CHECK(stats_of(p).completed == 1000 && stats_of(p).slots_free == 64);
        tri_pool_close(p);
    }
}

struct opener {
    struct gate *gate;
    _Atomic int submitted;
};

static void *opens_late(void *arg)
{
    struct opener *o = arg;

    while (atomic_load(&o->submitted) < 100)
        usleep(100);
    atomic_store(&o->gate->open, 1);
    return NULL;
}

/* Cells of cancelled tasks stay in the lane until its head moves; submitting then waits, as it does
 * for slots, and does not fail. */
static void cancelled_tasks_do_not_clog_a_lane(void)
{
    tri_pool *p = pool_with(TRI_PROCESS, 1, few_slots);
    tri_share *s;
    struct opener o = {.gate = gate_of(p, &s)};
    tri_future *busy, *first, *f;
    pthread_t t;

    occupy(p, o.gate, 1, &busy);
    first = submit(p, stand_at_gate, &o.gate, sizeof o.gate, 0);
    CHECK(pthread_create(&t, NULL, opens_late, &o) == 0);
    for (int i = 0; i < 400; i++) {
        f = submit(p, stand_at_gate, &o.gate, sizeof o.gate, 0);
        tri_future_cancel(f);
        tri_future_free(f);
        atomic_fetch_add(&o.submitted, 1);
    }
    pthread_join(t, NULL);
    CHECK(ended(busy, NULL) == 0 && ended(first, NULL) == 0);
    CHECK(squares_work(p, 500));
    tri_share_free(s);
    tri_pool_close(p);
}

static void *submits_many(void *arg)
{
    tri_pool *p = arg;
    tri_future *f[40];
    int64_t out;

    for (int round = 0; round < 25; round++) {
        for (int64_t i = 0; i < 40; i++)
            f[i] = submit(p, square, &(int64_t){round * 40 + i}, 8, 8);
        for (int64_t i = 0; i < 40; i++) {
            int64_t x = round * 40 + i;

            CHECK(ended(f[i], &out) == 0 && out == x * x);
        }
    }
    CHECK(squares_work(p, 3000));
    return NULL;
}

static void threads_may_submit_and_wait_at_once(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_with(kinds[k], 2, few_slots);
        pthread_t t[4];

        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&t[i], NULL, submits_many, p) == 0);
        for (int i = 0; i < 4; i++)
            pthread_join(t[i], NULL);
        CHECK(stats_of(p).slots_free == 64);
        tri_pool_close(p);
    }
}

static void *waits_for_future(void *f)
{
    CHECK(tri_future_wait(f, -1) == 0);
    return NULL;
}

static void threads_may_wait_for_one_future_together(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);

    for (int round = 0; round < 30; round++) {
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *f;
        pthread_t t[3];

        occupy(p, g, 1, &f);
        for (int i = 0; i < 3; i++)
            CHECK(pthread_create(&t[i], NULL, waits_for_future, f) == 0);
        atomic_store(&g->open, 1);
        for (int i = 0; i < 3; i++)
            pthread_join(t[i], NULL);
        CHECK(ended(f, NULL) == 0);
        tri_share_free(s);
    }
    tri_pool_close(p);
}

static void waiting_has_a_limit(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 1);
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_future *f;
    int64_t start = tri_now_ns();

    occupy(p, g, 1, &f);
    CHECK(tri_future_wait(f, 0) == TRI_ETIMEDOUT);
    CHECK(tri_future_wait(f, 20 * MS) == TRI_ETIMEDOUT);
    CHECK(tri_now_ns() - start >= 20 * MS);
    CHECK(tri_future_get(f, NULL, 1) == TRI_ETIMEDOUT);
    atomic_store(&g->open, 1);
    CHECK(tri_future_wait(f, INT64_MAX) == 0);
    tri_future_free(f);
    tri_share_free(s);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ counters */

static void counters_and_the_arena_are_exact(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        struct sizes s = {sizeof s, 5000};
        uint64_t live = stats_of(p).arena_live_bytes;
        uint8_t out[5000];
        tri_future *f[200];
        tri_stats st;

        for (int i = 0; i < 200; i++)
            f[i] = submit(p, echo, i % 2 ? (const void *)&s : (const void *)memset(out, 0, 300),
                          i % 2 ? sizeof s : 300, 5000);
        for (int i = 0; i < 200; i++)
            CHECK(ended(f[i], out) == 0);
        st = stats_of(p);
        CHECK(st.submitted == 200 && st.completed == 200 && st.failed == 0 && st.lost == 0);
        CHECK(st.slots_free == st.slots && st.workers_alive == 2 && st.deaths == 0);
        /* Workers take home what the owner freed when they next look around. */
        WAIT_UNTIL((squares_work(p, 64), stats_of(p).arena_live_bytes == live), 5 * SECOND);
        CHECK(stats_of(p).arena_peak_bytes >= 5000);
        pthread_mutex_lock(&p->lock);
        CHECK(tri_heap_check(&p->heap) == 0);
        pthread_mutex_unlock(&p->lock);
        tri_pool_close(p);
    }
}
int main(void)
{
    RUN(every_item_of_a_map_gets_its_value);
    RUN(an_item_that_fails_fails_the_map_and_nothing_else);
    RUN(arguments_and_results_of_every_size_travel);
    RUN(an_arena_too_small_costs_that_task_only);
    RUN(shared_memory_is_zeroed_seen_by_all_and_freed_with_the_pool);
    RUN(wrong_arguments_are_refused);
    RUN(tasks_start_by_priority_and_then_in_order);
    RUN(a_cancelled_task_never_runs);
    RUN(cancelling_releases_who_waits);
    RUN(more_tasks_than_slots_wait_their_turn);
    RUN(cancelled_tasks_do_not_clog_a_lane);
    RUN(threads_may_submit_and_wait_at_once);
    RUN(threads_may_wait_for_one_future_together);
    RUN(waiting_has_a_limit);
    RUN(a_chunk_that_cannot_be_copied_leaves_no_block);
    RUN(counters_and_the_arena_are_exact);
    return 0;
}
