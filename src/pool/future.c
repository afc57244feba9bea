/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * future.c - tri_submit and what it gives.
 *
 * A future has two holders: the caller, until tri_future_free, and the pool, until the task has
 * ended.  `ended` fills it and drops the pool's hold; after that it needs the pool no more.
 * To submit takes the pool's lock once, for the slot, the future and the queue.
 * Any thread that waits on the pool may be the one that fills it (tri_pump).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "pool/pool.h"

#define SPARE_MOST 4096            /* futures kept for the next ones */
#define LARGE (1u << 20)           /* a result for which a look at the memory limits is nothing */
#define PUMP_EVERY 64              /* submits: futures that nobody waits for hold memory, too */
#define FOREVER_NS (INT64_MAX / 2) /* 146 years: now plus this is still a number */

struct tri_future {
    struct tri_user user; /* first: the pool knows only this */
    _Atomic uint32_t done;
    _Atomic uint32_t holds;
    struct tri_pool *pool;
    struct tri_future_store *store;
    struct tri_future *next; /* in the store */
    uint64_t ticket;
    uint32_t slot;
    int status, code;
    size_t out_bytes;
    void *big; /* results that do not fit below */
    uint8_t small[TRI_RES_INLINE] __attribute__((aligned(16)));
};

/*
 * Futures that were freed, for the next ones.  By malloc's lights a window of them, submitted and
 * got, is memory to take from the system and to give back, each time: a sixth of an empty task's
 * time went there.  A future may outlive its pool, so the store does; it goes with the last one.
 */
struct tri_future_store {
    _Atomic(struct tri_future *) back; /* pushed by CAS, taken whole by exchange, so no ABA */
    _Atomic uint32_t nback;            /* in it, or a few more or less: nobody counts on it */
    _Atomic int64_t left; /* minus those freed while the pool is there; then those still alive */
    struct tri_future *spare; /* this and made: p->lock */
    int64_t made;
};

static void future_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d);

static void store_free(struct tri_future_store *st)
{
    struct tri_future *f, *next;

    for (f = tri_load_acq(&st->back); f; f = next) {
        next = f->next;
        free(f);
    }
    for (f = st->spare; f; f = next) {
        next = f->next;
        free(f);
    }
    free(st);
}

/* p->lock held. */
static struct tri_future *future_new(struct tri_pool *p, size_t out_bytes)
{
    struct tri_future_store *st = p->futures;
    struct tri_future *f;

    if (!st)
        st = p->futures = calloc(1, sizeof *st);
    if (!st)
        return NULL;
    if (!st->spare && tri_load_rlx(&st->back)) {
        st->spare = atomic_exchange_explicit(&st->back, NULL, memory_order_acquire);
        tri_store_rlx(&st->nback, 0);
    }
    f = st->spare;
    if (f)
        st->spare = f->next;
    else
        f = malloc(sizeof *f);
    if (!f)
        return NULL;
    st->made++;
    f->user.ended = future_ended;
    f->done = 0;
    f->holds = 2;
    f->pool = p;
    f->store = st;
    f->status = f->code = 0;
    f->out_bytes = out_bytes;
    f->big = NULL;
    return f;
}

static void future_free(struct tri_future *f)
{
    struct tri_future_store *st = f->store;

    if (tri_load_rlx(&st->nback) < SPARE_MOST) {
        f->next = tri_load_rlx(&st->back);
        while (!atomic_compare_exchange_weak_explicit(&st->back, &f->next, f, memory_order_release,
                                                      memory_order_relaxed))
            ;
        atomic_fetch_add_explicit(&st->nback, 1, memory_order_relaxed);
    } else {
        free(f);
    }
    if (atomic_fetch_sub_explicit(&st->left, 1, memory_order_acq_rel) == 1)
        store_free(st);
}

void tri_futures_end(struct tri_pool *p)
{
    struct tri_future_store *st = p->futures;
    int64_t made = st ? st->made : 0;

    p->futures = NULL;
    /* From here on it may be gone: another thread may free the last future. */
    if (st && atomic_fetch_add_explicit(&st->left, made, memory_order_acq_rel) == -made)
        store_free(st);
}

static void let_go(struct tri_future *f)
{
    if (atomic_fetch_sub_explicit(&f->holds, 1, memory_order_acq_rel) == 1) {
        free(f->big);
        future_free(f);
    }
}

static void future_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d)
{
    struct tri_future *f = (struct tri_future *)u;

    f->status = d->status;
    if (!d->status && d->res_flags & TRI_R_NOMEM)
        f->status = -ENOMEM;
    else if (!d->status)
        f->code = d->code;
    /* A result comes with code 0 only, and only one of the size asked for is read. */
    if (!f->status && !f->code && d->res_len != f->out_bytes)
        f->status = TRI_ECORRUPT;
    if (!f->status && !f->code && f->out_bytes > sizeof f->small) {
        /* The caller may have freed it; and the limit of a container is a kill: read it first. */
        if (tri_load_acq(&f->holds) > 1 &&
            (f->out_bytes < LARGE || f->out_bytes < tri_memory_headroom()))
            f->big = malloc(f->out_bytes);
        if (f->big)
            memcpy(f->big, tri_done_bytes(p, d), f->out_bytes);
        else
            f->status = -ENOMEM;
    } else if (!f->status && !f->code) {
        memcpy(f->small, tri_done_bytes(p, d), f->out_bytes);
    }
    if (d->spill)
        munmap(d->spill, d->res_len);
    if (d->res_off)
        tri_pool_block_free(p, d->res_off);
    tri_store_rel(&f->done, 1); /* pairs with the load in tri_future_wait */
    let_go(f);
}

int tri_pump(struct tri_pool *p)
{
    struct tri_done d[16];
    int n = tri_take(p, d, 16);

    for (int i = 0; i < n; i++) {
        struct tri_user *u = d[i].user;

        u->ended(u, p, &d[i]);
    }
    if (n)
        tri_wait_nudge(p);
    return n;
}

/* One try, p->lock held: slot, fill, append.  off: the argument's block, 0 if it fits the slot. */
static int submit_locked(struct tri_pool *p, tri_fn fn, const void *in, size_t in_bytes,
                         uint64_t off, const tri_call *opt, struct tri_future *f)
{
    struct tri_slot *s;
    uint32_t slot;
    int err = tri_task_new_locked(p, &slot);

    if (err)
        return err;
    s = &p->view.slot[slot];
    s->flags = 0;
    s->fn_id = (uint64_t)(uintptr_t)fn;
    s->fn_off = f->out_bytes;
    s->arg_len = in_bytes;
    s->arg_off = off;
    s->items = 1;
    s->timeout_ns = opt->timeout_ns;
    if (in_bytes && !off)
        memcpy(s->arg, in, in_bytes);
    f->slot = slot;
    err = tri_task_push_locked(p, slot, opt->priority, opt->retries, f, &f->ticket);
    if (err) { /* the block stays the caller's */
        s->arg_off = p->priv[slot].arg_off = 0;
        tri_slot_release(p, slot);
    }
    return err;
}

/* Does a task in flight hold a block for its argument? */
static bool args_in_flight(struct tri_pool *p)
{
    bool found = false;

    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < p->nfree && !found; i++)
        found = p->priv[i].used == 2 && p->priv[i].arg_off;
    pthread_mutex_unlock(&p->lock);
    return found;
}

uint64_t tri_args_room(struct tri_pool *p, uint64_t bytes)
{
    for (;;) {
        uint32_t key = tri_wait_key(p);
        uint64_t off;

        while (tri_pump(p) > 0)
            ;
        off = tri_pool_block_new(p, bytes);
        if (off || bytes > p->view.heap_bytes || tri_worker_inside(p) || !args_in_flight(p))
            return off;
        if (tri_wait(p, key, TRI_ANY_SLOT, 0, -1) == TRI_EFORKED)
            return 0;
    }
}

/* A task of the pool submits and there is no slot: would it wait, so might all who hold one.  The
 * submit is the call then. */
static int call_here(struct tri_pool *p, tri_fn fn, const void *in, size_t in_bytes, uint64_t off,
                     struct tri_future *f)
{
    uint8_t copy[TRI_ARG_INLINE] __attribute__((aligned(16)));

    if (f->out_bytes > sizeof f->small && !(f->big = malloc(f->out_bytes)))
        return -ENOMEM;
    if (in_bytes && !off)
        memcpy(copy, in, in_bytes);
    f->code = fn(off ? p->view.base + off : copy, f->big ? f->big : f->small);
    if (off)
        tri_pool_block_free(p, off);
    pthread_mutex_lock(&p->lock);
    p->stats.submitted++;
    p->stats.completed++;
    p->stats.failed += f->code != 0;
    pthread_mutex_unlock(&p->lock);
    tri_store_rel(&f->done, 1);
    let_go(f);
    return 0;
}

int tri_submit(tri_pool *p, tri_fn fn, const void *in, size_t in_bytes, size_t out_bytes,
               const tri_call *opt, tri_future **fut)
{
    static const tri_call defaults = TRI_CALL_INIT;
    struct tri_future *f = NULL;
    uint64_t off = 0;
    int err;

    if (!opt)
        opt = &defaults;
    if (!p || !fn || !fut || (in_bytes && !in) || opt->size != sizeof *opt || opt->priority < -2 ||
        opt->priority > 2 || opt->timeout_ns < 0 || opt->retries < 0)
        return -EINVAL;
    if (tri_pool_is_fork(p)) /* not even the lock: another thread may have held it at the fork */
        return TRI_EFORKED;
    if (in_bytes > TRI_ARG_INLINE) {
        off = tri_args_room(p, in_bytes);
        if (!off)
            return -ENOMEM;
        memcpy(p->view.base + off, in, in_bytes);
    }
    for (;;) {
        uint32_t key = tri_wait_key(p);

        pthread_mutex_lock(&p->lock);
        if (!f)
            f = future_new(p, out_bytes);
        err = f ? submit_locked(p, fn, in, in_bytes, off, opt, f) : -ENOMEM;
        pthread_mutex_unlock(&p->lock);
        if (err != -EAGAIN)
            break;
        if (tri_pump(p))
            continue;
        if (!p->hooks.run && tri_worker_inside(p)) {
            err = call_here(p, fn, in, in_bytes, off, f);
            if (err)
                break;
            *fut = f;
            return 0;
        }
        tri_wait(p, key, TRI_ANY_SLOT, 0, -1);
    }
    if (!err) {
        if (out_bytes > TRI_RES_INLINE || f->ticket % PUMP_EVERY == 0)
            while (tri_pump(p) > 0)
                ;
        *fut = f;
        return 0;
    }
    if (f)
        future_free(f);
    if (off)
        tri_pool_block_free(p, off);
    return err;
}

int tri_future_wait(tri_future *f, int64_t timeout_ns)
{
    int64_t until = 0;

    if (!f)
        return -EINVAL;
    if (timeout_ns > FOREVER_NS)
        timeout_ns = -1;
    if (timeout_ns > 0)
        until = tri_now_ns() + timeout_ns;
    while (!tri_load_acq(&f->done)) {
        struct tri_pool *p = f->pool;
        uint32_t key = tri_wait_key(p);
        struct tri_done d;
        int err;

        if (tri_pool_is_fork(p))
            return TRI_EFORKED;
        if (tri_take_one(p, f->slot, f->ticket, &d)) {
            future_ended(d.user, p, &d);
            tri_wait_nudge(p);
            break;
        }
        if (tri_pump(p))
            continue;
        if (tri_load_acq(&f->done))
            break;
        if (timeout_ns > 0 && (timeout_ns = until - tri_now_ns()) <= 0)
            return TRI_ETIMEDOUT;
        err = tri_wait(p, key, f->slot, f->ticket, timeout_ns);
        if (err)
            return err;
    }
    return 0;
}

int tri_future_get(tri_future *f, void *out, int64_t timeout_ns)
{
    int err = tri_future_wait(f, timeout_ns);

    if (err)
        return err;
    if (f->status)
        return f->status;
    if (f->code)
        return TRI_EFAILED;
    if (out && f->out_bytes)
        memcpy(out, f->big ? f->big : f->small, f->out_bytes);
    return 0;
}

int tri_future_code(const tri_future *f)
{
    return f && tri_load_acq(&f->done) ? f->code : 0;
}

int tri_future_cancel(tri_future *f)
{
    int err;

    if (!f)
        return -EINVAL;
    if (tri_load_acq(&f->done))
        return f->status == TRI_ECANCELLED ? 0 : -EBUSY;
    err = tri_task_cancel(f->pool, f->slot, f->ticket);
    if (err)
        return err;
    f->status = TRI_ECANCELLED;
    tri_store_rel(&f->done, 1);
    let_go(f);
    return 0;
}

void tri_future_free(tri_future *f)
{
    if (f)
        let_go(f);
}
