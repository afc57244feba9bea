/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * core - the C library without Python: how many tasks one submitting thread gets done per second.
 *
 * Two workers of each kind.  submit: futures in windows of 1024, each submitted, waited for and
 * freed.  map: items of an empty task; map8: 8 bytes in, 8 bytes out, every result looked at.
 * Each rate is the median of five runs.  idle: one future after 5 ms in which nobody did anything,
 * p50 of 300; one_cpu: a pool of one process, bound to one CPU with its owner, as futex_wake has
 * it.  Prints "name value" lines; process_ marks that kind.
 */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <trireme.h>

enum { RUNS = 5, WINDOW = 1024 };

static int empty(const void *in, void *out)
{
    (void)in;
    (void)out;
    return 0;
}

static int square(const void *in, void *out)
{
    const int64_t x = *(const int64_t *)in;

    *(int64_t *)out = x * x;
    return 0;
}

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(int err, const char *what)
{
    if (err) {
        fprintf(stderr, "core: %s: %s\n", what, tri_strerror(err));
        exit(1);
    }
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double submit_rate(tri_pool *pool, size_t n)
{
    static tri_future *fut[WINDOW];
    const double start = now_s();

    for (size_t done = 0; done < n; done += WINDOW) {
        for (int i = 0; i < WINDOW; i++)
            must(tri_submit(pool, empty, NULL, 0, 0, NULL, &fut[i]), "tri_submit");
        for (int i = 0; i < WINDOW; i++) {
            must(tri_future_get(fut[i], NULL, -1), "tri_future_get");
            tri_future_free(fut[i]);
        }
    }
    return (double)n / (now_s() - start);
}

static double map_rate(tri_pool *pool, size_t n)
{
    const double start = now_s();

    must(tri_map(pool, empty, NULL, 0, NULL, 0, n, NULL), "tri_map");
    return (double)n / (now_s() - start);
}

static double map8_rate(tri_pool *pool, size_t n)
{
    static int64_t *in, *out;
    double start, end;

    if (!in) {
        in = malloc(n * sizeof *in);
        out = malloc(n * sizeof *out);
        must(in && out ? 0 : -12, "malloc");
        for (size_t i = 0; i < n; i++)
            in[i] = (int64_t)i;
    }
    memset(out, 0, n * sizeof *out);
    start = now_s();
    must(tri_map(pool, square, in, sizeof *in, out, sizeof *out, n, NULL), "tri_map");
    end = now_s();
    for (size_t i = 0; i < n; i++)
        must(out[i] == (int64_t)(i * i) ? 0 : TRI_ECORRUPT, "a square");
    return (double)n / (end - start);
}

static void idle_trip(const char *name, tri_pool *pool, int n)
{
    const struct timespec idle = {0, 5000000};
    double *us = calloc((size_t)n, sizeof *us);

    must(us ? 0 : -1, "calloc");
    for (int i = 0; i < n; i++) {
        tri_future *fut;

        nanosleep(&idle, NULL);
        us[i] = now_s();
        must(tri_submit(pool, empty, NULL, 0, 0, NULL, &fut), "tri_submit");
        must(tri_future_wait(fut, -1), "tri_future_wait");
        us[i] = 1e6 * (now_s() - us[i]);
        tri_future_free(fut);
    }
    qsort(us, (size_t)n, sizeof *us, by_value);
    printf("%s_p50_us %.2f\n", name, us[n / 2]);
    free(us);
}

static void report(const char *kind, const char *name, tri_pool *pool,
                   double (*rate)(tri_pool *, size_t), size_t n)
{
    double per_s[RUNS];

    rate(pool, n); /* memory is touched and the workers are awake after this */
    for (int i = 0; i < RUNS; i++)
        per_s[i] = rate(pool, n);
    qsort(per_s, RUNS, sizeof *per_s, by_value);
    printf("%s%s_per_s %.0f\n", kind, name, per_s[RUNS / 2]);
}

static void on_one_cpu(int n)
{
    cpu_set_t all, one;
    tri_pool_config cfg;
    tri_pool *pool;
    int cpu = 0;

    must(sched_getaffinity(0, sizeof all, &all), "sched_getaffinity");
    while (!CPU_ISSET(cpu, &all))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    must(sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");
    tri_pool_config_init(&cfg);
    cfg.kind = TRI_PROCESS;
    cfg.workers = 1;
    must(tri_pool_open(&pool, &cfg), "tri_pool_open");
    idle_trip("process_one_cpu_idle", pool, n);
    tri_pool_close(pool);
    must(sched_setaffinity(0, sizeof all, &all), "sched_setaffinity");
}

int main(int argc, char **argv)
{
    const size_t scale = argc > 1 && strcmp(argv[1], "quick") == 0 ? 20 : 1;
    tri_pool_config cfg;

    for (int kind = TRI_PROCESS; kind <= TRI_THREAD; kind++) {
        const char *prefix = kind == TRI_THREAD ? "" : "process_";
        tri_pool *pool;

        tri_pool_config_init(&cfg);
        cfg.kind = kind;
        cfg.workers = 2;
        must(tri_pool_open(&pool, &cfg), "tri_pool_open");
        report(prefix, "submit", pool, submit_rate, WINDOW * (1000 / scale));
        report(prefix, "map", pool, map_rate, 20000000 / scale);
        report(prefix, "map8", pool, map8_rate, 4000000 / scale);
        idle_trip(kind == TRI_THREAD ? "idle" : "process_idle", pool, (int)(300 / scale));
        tri_pool_close(pool);
    }
    on_one_cpu((int)(300 / scale));
    return 0;
}
