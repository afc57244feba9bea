/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool.c - opening and ending a pool.
 *
 * Opening makes the segment, lays it out, takes heap 0 for the owner and has the warden fork the
 * workers (or starts threads).  It either does all of that or leaves nothing behind.
 *
 * Each heap may grow to the size of the machine's memory: address space costs nothing.  Where the
 * address space is limited (ulimit -v, small page tables) heaps shrink until they fit.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/futex.h"
#include "base/pages.h"
#include "pool/pool.h"

#define HEAP_MIN (8ull << 20)
#define SPIN_NS 25000
#define SPIN_MOST_NS 1000000000ll
#define LONGEST_NS (INT_MAX * 1000000ll) /* poll() counts milliseconds in an int */

/* ------------------------------------------------------------------ forks of the owner */

static uint32_t fork_count; /* how many forks lie between the program's start and this process */
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void forked(void)
{
    fork_count++;
    tri_control_forked();
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forked);
}

uint32_t tri_fork_count(void)
{
    pthread_once(&fork_once, watch_forks);
    return fork_count;
}

bool tri_pool_is_fork(const struct tri_pool *p)
{
    return p->fork_stamp != fork_count;
}

/* ------------------------------------------------------------------ configuration */

void tri_pool_config_init(tri_pool_config *cfg)
{
#ifdef TRI_CHECKPOINTS
    const char *limit = getenv("TRIREME_START_TIMEOUT_MS");
#endif

    if (!cfg)
        return;
    memset(cfg, 0, sizeof *cfg);
    cfg->size = sizeof *cfg;
    cfg->kind = TRI_PROCESS;
    cfg->spin_ns = -1;
    cfg->start_timeout_ns = 30000000000ll;
#ifdef TRI_CHECKPOINTS
    /* For tests of what happens when it is over; Python has no other way to say so. */
    if (limit)
        cfg->start_timeout_ns = strtoll(limit, NULL, 10) * 1000000;
#endif
}

_Static_assert(TRI_MAX_SLOTS_IN_FLIGHT == TRI_MAX_SLOTS / 2, "a lane has two cells per slot");

static int check(tri_pool_config *c, const tri_pool_config *given)
{
    tri_pool_config_init(c);
    if (!given)
        given = c;
    if (given->size != sizeof *given)
        return -EINVAL;
    *c = *given;
    if (c->kind != TRI_PROCESS && c->kind != TRI_THREAD)
        return -EINVAL;
    if (c->workers < 0 || c->workers > TRI_MAX_WORKERS || c->slots > TRI_MAX_SLOTS_IN_FLIGHT)
        return -EINVAL;
    if (c->spin_ns < -1 || c->start_timeout_ns < 0)
        return -EINVAL;
    if (c->spin_ns > SPIN_MOST_NS)
        c->spin_ns = SPIN_MOST_NS;
    if (c->workers == 0)
        c->workers = tri_cpu_count(0);
    if (c->workers > TRI_MAX_WORKERS)
        c->workers = TRI_MAX_WORKERS;
    if (c->slots == 0)
        c->slots = 8192;
    if (c->slots < 64)
        c->slots = 64;
    while (c->slots & (c->slots - 1))
        c->slots += c->slots & -c->slots;
    if (c->start_timeout_ns == 0)
        c->start_timeout_ns = 30000000000ll;
    if (c->start_timeout_ns > LONGEST_NS)
        c->start_timeout_ns = LONGEST_NS;
    return 0;
}

/* ------------------------------------------------------------------ opening */

static int make_segment(struct tri_pool *p)
{
    struct tri_ctl plan, *c;
    struct rlimit as;
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    int err;

    memset(&plan, 0, sizeof plan);
    plan.nworkers = (uint32_t)p->cfg.workers;
    plan.nslots = p->cfg.slots;
    /* A worker that dies while the owner holds its results leaves its heap behind for a while. */
    plan.nheaps = 3 * plan.nworkers + 5;
    plan.heap_bytes = p->cfg.arena_bytes ? p->cfg.arena_bytes : memory;
    /* Under a limit of address space the heaps, which are address space first of all, leave most
     * of it to the program and to each participant's own tables. */
    if (getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY &&
        plan.heap_bytes > as.rlim_cur / 4 / plan.nheaps)
        plan.heap_bytes = as.rlim_cur / 4 / plan.nheaps;
    if (plan.heap_bytes > (1ull << 46) / plan.nheaps)
        plan.heap_bytes = (1ull << 46) / plan.nheaps;
    if (plan.heap_bytes < HEAP_MIN)
        plan.heap_bytes = HEAP_MIN;
    for (;; plan.heap_bytes /= 2) {
        plan.heap_bytes &= ~((1ull << 21) - 1);
        tri_layout_plan(&plan);
        err = tri_segment_make(&p->seg, plan.total_bytes, p->cfg.kind == TRI_PROCESS);
        /* EINVAL is what valgrind says. */
        if ((err != -ENOMEM && err != -EINVAL) || plan.heap_bytes / 2 < HEAP_MIN)
            break;
    }
    if (err)
        return err;
    c = p->seg.base;
    tri_layout_plan(memcpy(c, &plan, offsetof(struct tri_ctl, closing)));
    c->max_tasks = p->cfg.max_tasks;
    c->cpus = (uint32_t)tri_cpu_count(0);
    c->kind = (uint32_t)p->cfg.kind;
    c->spin_ns = p->cfg.spin_ns >= 0 ? p->cfg.spin_ns : c->cpus > 1 ? SPIN_NS : 0;
    return tri_view_init(&p->view, c, p->seg.bytes);
}

static void *thread_main(void *arg)
{
    struct tri_worker *w = arg;

    /* With the signal mask of whoever opened the pool: what a task starts inherits it. */
    tri_worker_loop(w);
    tri_heap_drop(&w->heap);
    return NULL;
}

static void wake_all(struct tri_pool *p)
{
    for (uint32_t i = 0; i < p->view.nworkers; i++) {
        tri_store_rel(&p->view.worker[i].bell, 1);
        tri_futex_wake(&p->view.worker[i].bell, INT_MAX);
    }
}

static void stop_threads(struct tri_pool *p, uint32_t n)
{
    if (!tri_load_rlx(&p->view.ctl->closing))
        tri_store_sc(&p->view.ctl->closing, TRI_CLOSING);
    wake_all(p);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(p->thread[i], NULL);
}

static int start_threads(struct tri_pool *p)
{
    uint32_t n = p->view.nworkers;
    int err = 0;

    p->thread = calloc(n, sizeof *p->thread);
    p->tworker = calloc(n, sizeof *p->tworker);
    if (!p->thread || !p->tworker)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        err = tri_worker_attach(&p->tworker[i], &p->seg, &p->hooks, i, 0, -1, false);
        if (!err)
            err = -pthread_create(&p->thread[i], NULL, thread_main, &p->tworker[i]);
        if (err) {
            stop_threads(p, i);
            return err;
        }
        p->member[i].alive = true;
    }
    return 0;
}

static int own_memory(struct tri_pool *p, const struct tri_pool_inside *in)
{
    uint64_t off;

    p->priv = tri_pages_new(p->view.nslots * sizeof *p->priv);
    p->member = calloc(p->view.nworkers, sizeof *p->member);
    p->held = calloc(p->view.nheaps, sizeof *p->held);
    if (!p->priv || !p->member || !p->held)
        return -ENOMEM;
    p->free_slot = UINT32_MAX;
    tri_store_rel(&p->view.heap[0].state, TRI_H_OWNED);
    if (tri_heap_init(&p->heap, &p->view, &p->seg, 0) != 0)
        return -ENOMEM;
    p->heap.home = tri_kept_home;
    p->heap.home_ctx = p;
    if (in->setup_len) {
        off = tri_heap_alloc(&p->heap, in->setup_len);
        if (!off)
            return -ENOMEM;
        memcpy(p->view.base + off, in->setup, in->setup_len);
        p->view.ctl->setup_off = off;
        p->view.ctl->setup_len = in->setup_len;
    }
    return 0;
}

int tri_pool_open_inside(tri_pool **out, const struct tri_pool_config *cfg,
                         const struct tri_pool_inside *in)
{
    struct tri_pool *p = calloc(1, sizeof *p);
    int err;

    if (!p)
        return -ENOMEM;
    p->seg.fd = p->ctl_fd = p->output_fd = -1;
    p->output_tail = &p->output_head;
    p->hooks = in->hooks;
    p->fork_stamp = tri_fork_count();
    pthread_mutex_init(&p->lock, NULL);
    err = check(&p->cfg, cfg);
    if (!err)
        err = make_segment(p);
    if (!err)
        err = own_memory(p, in);
    if (!err)
        err = p->cfg.kind == TRI_THREAD ? start_threads(p) : tri_control_open(p, in);
    if (err) {
        tri_pool_free(p);
        return err == -ENOSYS ? TRI_EPLATFORM : err;
    }
    *out = p;
    return 0;
}

int tri_pool_open(tri_pool **out, const tri_pool_config *cfg)
{
    struct tri_pool_inside in = {.shared_warden = -1};

    if (!out)
        return -EINVAL;
    return tri_pool_open_inside(out, cfg, &in);
}

/* ------------------------------------------------------------------ ending */

int tri_pool_end(struct tri_pool *p, bool kill, int64_t timeout_ns)
{
    int64_t until = tri_now_ns() + timeout_ns;
    int err = 0;

    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    pthread_mutex_lock(&p->lock);
    if (p->cfg.kind == TRI_THREAD) {
        bool first = !p->ended;

        p->closing = p->ended = true;
        if (kill) {
            tri_store_sc(&p->view.ctl->closing, TRI_CLOSING_NOW);
            tri_repair_queued(p, TRI_ECLOSED);
        }
        pthread_mutex_unlock(&p->lock);
        if (first)
            stop_threads(p, p->view.nworkers);
        return 0;
    }
    if (!p->ended && (!p->closing || kill)) {
        p->closing = true;
        p->killing = kill;
        if (tri_control_send(p, kill ? TRI_M_END : TRI_M_CLOSE, 0, 0) < 0)
            tri_control_poll(p);
        tri_store_sc(&p->view.ctl->closing, TRI_CLOSING);
        wake_all(p);
    }
    while (!p->ended) {
        struct pollfd pf = {p->ctl_fd, POLLIN, 0};
        int64_t left = until - tri_now_ns();

        if (timeout_ns >= 0 && left <= 0) {
            err = TRI_ETIMEDOUT;
            break;
        }
        pthread_mutex_unlock(&p->lock);
        /* In slices: another thread may take the message that all have ended. */
        err = poll(&pf, 1, timeout_ns < 0 || left > 10000000 ? 10 : (int)(left / 1000000) + 1);
        err = err < 0 ? -errno : 0;
        pthread_mutex_lock(&p->lock);
        tri_control_poll(p);
        if (err == -EINTR && !p->ended)
            break;
        err = 0;
    }
    if (p->ended || kill)
        tri_repair_broken(p, TRI_ECLOSED);
    if (p->ended && !p->trimmed) {
        /* Nothing more is sent.  Workers' heaps are retired and go by themselves. */
        p->trimmed = true;
        tri_heap_collect(&p->heap);
        tri_heap_trim(&p->heap);
    }
    pthread_mutex_unlock(&p->lock);
    tri_wait_nudge(p);
    return err;
}

void tri_pool_refuse(struct tri_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->refusing = true;
    pthread_mutex_unlock(&p->lock);
}

void tri_pool_free(struct tri_pool *p)
{
    if (!tri_pool_is_fork(p)) {
        /* Forks of this process, among them the wardens of later pools, hold copies of the socket
         * and may map the memory: they must keep neither this warden nor a page alive. */
        if (p->ctl_fd >= 0)
            shutdown(p->ctl_fd, SHUT_RDWR);
        if (p->seg.base && p->seg.shared)
            tri_segment_punch(&p->seg, 0, p->seg.bytes);
    }
    if (p->ctl_fd >= 0)
        close(p->ctl_fd);
    if (p->output_fd >= 0)
        close(p->output_fd);
    tri_shares_free(p);
    tri_spill_free(p);
    tri_futures_end(p);
    for (uint32_t i = 0; i < tri_load_rlx(&p->nlost); i++)
        if (p->lost[i].spill) /* it ended, and nobody came for it */
            munmap(p->lost[i].spill, p->lost[i].res_len);
    for (uint32_t i = 0; p->priv && i < p->nfree; i++)
        free(p->priv[i].past);
    tri_heap_drop(&p->heap);
    tri_segment_drop(&p->seg);
    tri_pages_free(p->priv, p->view.nslots * sizeof *p->priv);
    free(p->member);
    free(p->held);
    free(p->kept);
    free(p->early);
    free(p->lost);
    free(p->thread);
    free(p->tworker);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* Let every task end and reach its future. */
static void finish(tri_pool *p)
{
    for (;;) {
        uint32_t key = tri_wait_key(p);
        uint32_t left;

        tri_pump(p);
        pthread_mutex_lock(&p->lock);
        left = p->outstanding + p->nlost;
        pthread_mutex_unlock(&p->lock);
        if (!left)
            return;
        tri_wait(p, key, TRI_ANY_SLOT, 0, -1);
    }
}

void tri_pool_close(tri_pool *p)
{
    if (!p)
        return;
    if (!tri_pool_is_fork(p)) {
        finish(p);
        while (tri_pool_end(p, false, 5000000000ll) == -EINTR)
            ;
    }
    tri_pool_free(p);
}

void tri_pool_terminate(tri_pool *p)
{
    if (!p)
        return;
    if (!tri_pool_is_fork(p)) {
        while (tri_pool_end(p, true, 2000000000ll) == -EINTR)
            ;
        while (tri_pump(p) > 0)
            ;
    }
    tri_pool_free(p);
}

/* ------------------------------------------------------------------ counters */

int tri_pool_stats(tri_pool *p, tri_stats *st)
{
    if (!p || !st || st->size != sizeof *st)
        return -EINVAL;
    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    pthread_mutex_lock(&p->lock);
    if (p->ctl_fd >= 0)
        tri_control_poll(p);
    /* What workers have sent home would count as live until the next block is needed. */
    if (tri_load_rlx(&p->view.heap[0].freed))
        tri_heap_collect(&p->heap);
    *st = p->stats;
    st->owner_sleeps = tri_load_rlx(&p->sleeps);
    st->owner_spins_hit = tri_load_rlx(&p->spins_hit);
    st->owner_spins_missed = tri_load_rlx(&p->spins_missed);
    st->size = sizeof *st;
    st->workers = (int)p->view.nworkers;
    st->workers_alive = 0;
    st->arena_live_bytes = p->heap.live;
    st->arena_peak_bytes = p->heap.peak;
    for (uint32_t i = 0; i < p->view.nworkers; i++) {
        if (!p->member[i].alive)
            continue; /* its line tells of a heap that is retired or gone */
        st->workers_alive++;
        st->arena_live_bytes += tri_load_rlx(&p->view.worker[i].arena_live);
        st->arena_peak_bytes += tri_load_rlx(&p->view.worker[i].arena_peak);
    }
    st->slots = p->view.nslots;
    st->slots_free = p->view.nslots - p->outstanding;
    pthread_mutex_unlock(&p->lock);
    return 0;
}
