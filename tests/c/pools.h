/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pools.h - what the tests of pools share: opening one, gates, pids of its processes, waiting for a
 * condition, and a pool without workers.
 *
 * A gate is a word in tri_share memory that tasks wait for.  Each test that needs "the workers are
 * busy now" closes it, waits until as many tasks stand there as it sent, and opens it when done: no
 * test guesses how long something takes.
 */
#ifndef TRI_TESTS_POOLS_H
#define TRI_TESTS_POOLS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/pages.h"
#include "check.h"
#include "pool/pool.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define TRI_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define TRI_SANITIZED 1
#endif
#endif
#ifndef TRI_SANITIZED
#define TRI_SANITIZED 0
#endif
/* What takes so long on a machine of its own may take this many times longer here. */
#define TRI_SLOW (TRI_SANITIZED ? 10 : 1)

#define MS 1000000ll
#define SECOND (1000 * MS)

/* Evaluate cond until it holds; abort when it has not after ns. */
#define WAIT_UNTIL(cond, ns)                           \
    do {                                               \
        int64_t until_ = tri_now_ns() + (ns)*TRI_SLOW; \
        while (!(cond)) {                              \
            CHECK(tri_now_ns() < until_ && #cond);     \
            usleep(200);                               \
        }                                              \
    } while (0)

static inline tri_pool *pool_with(int kind, int workers, void (*change)(tri_pool_config *))
{
    tri_pool_config cfg;
    tri_pool *p = NULL;
    int err;

    tri_pool_config_init(&cfg);
    cfg.kind = kind;
    cfg.workers = workers;
    if (change)
        change(&cfg);
    err = tri_pool_open(&p, &cfg);
    if (err)
        fprintf(stderr, "tri_pool_open: %s\n", tri_strerror(err));
    CHECK(err == 0);
    return p;
}

static inline tri_pool *pool_of(int kind, int workers)
{
    return pool_with(kind, workers, NULL);
}

static inline tri_pool *pool_inside(int workers, struct tri_pool_inside in)
{
    tri_pool_config cfg;
    tri_pool *p;

    in.shared_warden = -1;
    tri_pool_config_init(&cfg);
    cfg.workers = workers;
    CHECK(tri_pool_open_inside(&p, &cfg, &in) == 0);
    return p;
}

/* For tests in which more workers die than a program may lose. */
static inline tri_pool *durable_pool(int workers)
{
    return pool_inside(workers, (struct tri_pool_inside){.max_restarts = 100000});
}

static inline tri_stats stats_of(tri_pool *p)
{
    tri_stats st = {.size = sizeof st};

    CHECK(tri_pool_stats(p, &st) == 0);
    return st;
}

static inline tri_future *submit(tri_pool *p, tri_fn fn, const void *in, size_t in_bytes,
                                 size_t out_bytes)
{
    tri_future *f = NULL;

    CHECK(tri_submit(p, fn, in, in_bytes, out_bytes, NULL, &f) == 0);
    return f;
}

/* get, then free */
static inline int ended(tri_future *f, void *out)
{
    int err = tri_future_get(f, out, -1);

    tri_future_free(f);
    return err;
}

static inline int square(const void *in, void *out)
{
    int64_t x;

    memcpy(&x, in, sizeof x);
    x *= x;
    memcpy(out, &x, sizeof x);
    return 0;
}

static inline bool squares_work(tri_pool *p, int64_t n)
{
    int64_t *in = malloc((size_t)n * sizeof *in), *out = calloc((size_t)n, sizeof *out);
    bool right = in && out;

    for (int64_t i = 0; i < n && right; i++)
        in[i] = i - 3;
    right = right && tri_map(p, square, in, sizeof *in, out, sizeof *out, (size_t)n, NULL) == 0;
    for (int64_t i = 0; i < n && right; i++)
        right = out[i] == in[i] * in[i];
    free(in);
    free(out);
    return right;
}

/* ------------------------------------------------------------------ gates */

struct gate {
    _Atomic uint32_t open, inside, passed;
};

static inline int stand_at_gate(const void *in, void *out)
{
    struct gate *g;

    (void)out;
    memcpy(&g, in, sizeof g);
    atomic_fetch_add(&g->inside, 1);
    while (!atomic_load(&g->open))
        usleep(100);
    atomic_fetch_add(&g->passed, 1);
    return 0;
}

static inline struct gate *gate_of(tri_pool *p, tri_share **share)
{
    CHECK(tri_share_open(p, sizeof(struct gate), share) == 0);
    return tri_share_data(*share);
}

/* n tasks stand at the gate; more than there are workers never do. */
static inline void occupy(tri_pool *p, struct gate *g, int n, tri_future **f)
{
    for (int i = 0; i < n; i++)
        f[i] = submit(p, stand_at_gate, &g, sizeof g, 0);
    WAIT_UNTIL(atomic_load(&g->inside) == (uint32_t)n, 10 * SECOND);
}

/* ------------------------------------------------------------------ processes */

static inline int open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    CHECK(d != NULL);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static inline int pid_of_worker(const void *in, void *out)
{
    int32_t pid = (int32_t)getpid();

    (void)in;
    memcpy(out, &pid, sizeof pid);
    return 0;
}

static inline int pid_of_warden(const void *in, void *out)
{
    int32_t pid = (int32_t)getppid();

    (void)in;
    memcpy(out, &pid, sizeof pid);
    return 0;
}

/* What one of these two tells, from any worker. */
static inline int32_t pid_from(tri_pool *p, tri_fn fn)
{
    int32_t pid;

    CHECK(ended(submit(p, fn, NULL, 0, sizeof pid), &pid) == 0);
    return pid;
}

static inline int pid_behind_gate(const void *in, void *out)
{
    stand_at_gate(in, NULL);
    return pid_of_worker(NULL, out);
}

/* The pids of all workers: as many tasks at one gate. */
static inline void pids_of(tri_pool *p, int n, int32_t *pid)
{
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_future *f[16];

    CHECK(n <= 16);
    for (int i = 0; i < n; i++)
        f[i] = submit(p, pid_behind_gate, &g, sizeof g, sizeof *pid);
    WAIT_UNTIL(atomic_load(&g->inside) == (uint32_t)n, 10 * SECOND);
    atomic_store(&g->open, 1);
    for (int i = 0; i < n; i++)
        CHECK(ended(f[i], &pid[i]) == 0);
    tri_share_free(s);
}

static inline void block_all_signals(void)
{
    sigset_t all;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
}

/* For ever, and only SIGKILL ends it.  It has an argument, so that the compiler sees an end. */
static inline int deaf_for_ever(const void *in, void *out)
{
    (void)out;
    block_all_signals();
    while (in)
        pause();
    return 0;
}

/* Is there such a process, and is it more than a zombie? */
static inline bool process_lives(int pid)
{
    char path[64], text[256], *state;
    ssize_t n;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = 0;
    state = strrchr(text, ')');
    return state && state[2] != 'Z' && state[2] != 'X';
}

/* ------------------------------------------------------------------ a pool without workers */

/* The owner's half alone: the test plays the workers, by the very functions they use. */
static inline struct tri_pool *bare_pool(uint32_t nworkers, uint32_t nslots, uint64_t heap_bytes)
{
    struct tri_pool *p = calloc(1, sizeof *p);
    struct tri_ctl plan;

    CHECK(p != NULL);
    memset(&plan, 0, sizeof plan);
    plan.nworkers = nworkers;
    plan.nslots = nslots;
    plan.nheaps = nworkers + 2;
    plan.heap_bytes = heap_bytes;
    tri_layout_plan(&plan);
    CHECK(tri_segment_make(&p->seg, plan.total_bytes, false) == 0);
    memcpy(p->seg.base, &plan, offsetof(struct tri_ctl, closing));
    CHECK(tri_view_init(&p->view, p->seg.base, p->seg.bytes) == 0);
    p->view.ctl->cpus = 2;
    p->ctl_fd = p->output_fd = -1;
    p->fork_stamp = tri_fork_count();
    pthread_mutex_init(&p->lock, NULL);
    p->cfg.kind = TRI_THREAD;
    p->priv = tri_pages_new(nslots * sizeof *p->priv);
    p->member = calloc(nworkers, sizeof *p->member);
    p->held = calloc(plan.nheaps, sizeof *p->held);
    CHECK(p->priv && p->member && p->held);
    p->free_slot = UINT32_MAX;
    tri_store_rel(&p->view.heap[0].state, TRI_H_OWNED);
    CHECK(tri_heap_init(&p->heap, &p->view, &p->seg, 0) == 0);
    p->heap.home = tri_kept_home;
    p->heap.home_ctx = p;
    return p;
}

/* The owner's half of a pool of processes, and workers that the test plays: they have an output
 * socket, the same one.  The caller closes w->output_fd. */
static inline struct tri_pool *bare_pool_played(struct tri_worker *w, uint32_t nworkers)
{
    static const struct tri_hooks none;
    struct tri_pool *p = bare_pool(nworkers, 64, 8u << 20);
    int fd[2];

    p->output_tail = &p->output_head;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) == 0);
    p->output_fd = fd[0];
    for (uint32_t i = 0; i < nworkers; i++)
        CHECK(tri_worker_attach(&w[i], &p->seg, &none, i, 0, fd[1], true) == 0);
    return p;
}

#endif
