/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * map.c - tri_map and tri_share for C programs.
 *
 * Items travel in chunks, each one task.  Threads read and write the caller's arrays in place; so
 * do processes when the arrays are in tri_share memory, otherwise a chunk's input is copied into
 * the arena and its output copied back, by the owner, while the workers compute.
 *
 * Chunk sizes are measured: the first chunks are of one item, then a chunk aims at CHUNK_NS of work
 * by the time of those that came back, never more than a share of what is left, so that the
 * workers end together.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "pool/pool.h"
#include "pool/worker.h"
#include "shm/huge.h"

#define CHUNK_NS 400000
#define COPY_MAX (1u << 20) /* bytes of one copied chunk */
#define BLOCK_ALIGN 64      /* where the blocks of the arena begin */
#define ALIGN_MAX 4096      /* more is not kept up for copies */

struct chunk {
    struct tri_user user;
    struct map *map;
    _Atomic uint32_t done;
    uint64_t first, n;
    uint64_t in_off, out_off; /* blocks */
    uint64_t out_at;          /* where its results are: the part of the block that is used */
    int err, code;
    int64_t exec_ns;
    uint64_t ticket;
    uint32_t slot;
    bool busy;
};

struct map {
    struct tri_pool *pool;
    tri_fn fn;
    const uint8_t *in;
    uint8_t *out;
    size_t in_bytes, out_bytes, n;
    const tri_call *opt;
    uint64_t in_arena, out_arena; /* offset of the whole array when it is in the arena */
    bool copies;
    double item_ns;
    size_t next;
    size_t most; /* items of a chunk for which there was room, once there was none; 0 */
    uint32_t nchunks;
    struct chunk *chunk;
};

static void chunk_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d)
{
    struct chunk *c = (struct chunk *)u;

    c->err = d->status;
    c->code = d->code;
    c->exec_ns = d->exec_ns;
    if (d->spill)
        munmap(d->spill, d->res_len);
    if (d->res_off)
        tri_pool_block_free(p, d->res_off);
    tri_store_rel(&c->done, 1);
}

static uint64_t in_arena(const struct tri_pool *p, const void *at, size_t bytes)
{
    const uint8_t *b = at;

    if (b < p->view.base || b + bytes > p->view.base + p->view.total_bytes)
        return 0;
    return (uint64_t)(b - p->view.base);
}

static size_t chunk_size(const struct map *m)
{
    size_t left = m->n - m->next, size, share = left / (2 * m->pool->view.nworkers) + 1;
    size_t widest = m->in_bytes > m->out_bytes ? m->in_bytes : m->out_bytes;

    if (m->opt->chunk)
        return m->opt->chunk < left ? m->opt->chunk : left;
    if (m->opt->timeout_ns)
        return 1;
    size = m->item_ns > 0 ? (size_t)(CHUNK_NS / m->item_ns) + 1 : 1;
    if (size > share)
        size = share;
    if (m->most && size > m->most)
        size = m->most;
    if (m->copies && widest && size > COPY_MAX / widest + 1)
        size = COPY_MAX / widest + 1;
    return size < left ? size : left;
}

/* A block for a chunk's part of an array, aligned as that is: where in *at, or 0. */
static uint64_t part_room(struct tri_pool *p, const uint8_t *part, size_t bytes, uint64_t *at)
{
    uintptr_t align = (uintptr_t)part & -(uintptr_t)part, pad;
    uint64_t off;

    if (align > ALIGN_MAX)
        align = ALIGN_MAX;
    pad = align > BLOCK_ALIGN ? align : 0;
    off = tri_pool_block_new(p, bytes + pad);
    *at = off;
    if (off && pad)
        *at += -(uintptr_t)(p->view.base + off) & (align - 1);
    return off;
}

static int try_chunk(struct map *m, struct chunk *c, size_t n)
{
    struct tri_pool *p = m->pool;
    struct tri_cmap a = {.in_bytes = m->in_bytes, .out_bytes = m->out_bytes};
    struct tri_slot *s;
    int err;

    c->first = m->next;
    c->n = n;
    c->in_off = c->out_off = 0;
    err = tri_task_new(p, &c->slot);
    if (err)
        return err;
    s = &p->view.slot[c->slot];
    s->arg_off = 0;
    if (m->copies) {
        if (m->in_bytes) {
            const uint8_t *in = m->in + c->first * m->in_bytes;

            c->in_off = part_room(p, in, c->n * m->in_bytes, &a.in_off);
            if (a.in_off)
                memcpy(p->view.base + a.in_off, in, c->n * m->in_bytes);
        }
        if (m->out_bytes)
            c->out_off =
                part_room(p, m->out + c->first * m->out_bytes, c->n * m->out_bytes, &a.out_off);
        c->out_at = a.out_off;
        if ((m->in_bytes && !a.in_off) || (m->out_bytes && !a.out_off)) {
            if (c->in_off)
                tri_pool_block_free(p, c->in_off);
            if (c->out_off)
                tri_pool_block_free(p, c->out_off);
            tri_task_drop(p, c->slot);
            return -ENOMEM;
        }
    } else if (m->in_arena || m->out_arena) {
        a.in_off = m->in_arena + c->first * m->in_bytes;
        a.out_off = m->out_arena + c->first * m->out_bytes;
    } else {
        a.in = (uint64_t)(uintptr_t)(m->in + c->first * m->in_bytes);
        a.out = (uint64_t)(uintptr_t)(m->out + c->first * m->out_bytes);
    }
    s->flags = TRI_F_CMAP | TRI_F_TIMED;
    s->fn_id = (uint64_t)(uintptr_t)m->fn;
    s->fn_off = 0;
    s->arg_len = sizeof a;
    s->items = c->n;
    s->timeout_ns = m->opt->timeout_ns;
    memcpy(s->arg, &a, sizeof a);
    c->user.ended = chunk_ended;
    c->map = m;
    c->done = 0;
    c->err = c->code = 0;
    err = tri_task_push(p, c->slot, m->opt->priority, m->opt->retries, c, &c->ticket);
    if (err) {
        tri_task_drop(p, c->slot);
        if (c->in_off)
            tri_pool_block_free(p, c->in_off);
        if (c->out_off)
            tri_pool_block_free(p, c->out_off);
        return err;
    }
    c->busy = true;
    m->next += c->n;
    return 0;
}

/* With a part of its items where there is no room for all. */
static int send_chunk(struct map *m, struct chunk *c)
{
    size_t n = chunk_size(m);
    int err;

    while ((err = try_chunk(m, c, n)) == -ENOMEM && n > 1 && !m->opt->chunk)
        n = m->most = n / 2;
    return err;
}

static int receive_chunk(struct map *m, struct chunk *c)
{
    struct tri_pool *p = m->pool;

    c->busy = false;
    if (!c->err && !c->code && c->out_off)
        memcpy(m->out + c->first * m->out_bytes, p->view.base + c->out_at, c->n * m->out_bytes);
    if (c->in_off)
        tri_pool_block_free(p, c->in_off);
    if (c->out_off)
        tri_pool_block_free(p, c->out_off);
    if (c->exec_ns > 0) {
        double ns = (double)c->exec_ns / (double)c->n;

        m->item_ns = m->item_ns > 0 ? m->item_ns + (ns - m->item_ns) / 4 : ns;
    }
    return c->err ? c->err : c->code ? TRI_EFAILED : 0;
}

/* The caller's own share: straight on its arrays. */
static int work_here(struct map *m)
{
    size_t n = chunk_size(m), first = m->next;
    int64_t start = tri_now_ns();
    int code = 0;

    m->next += n;
    for (size_t i = first; i < first + n && !code; i++)
        code = m->fn(m->in + i * m->in_bytes, m->out + i * m->out_bytes);
    if (m->item_ns <= 0)
        m->item_ns = (double)(tri_now_ns() - start) / (double)n;
    return code ? TRI_EFAILED : 0;
}

/* The caller is a task of this very pool, and every worker may be in one that waits like this. */
static bool help(struct map *m)
{
    for (uint32_t i = 0; i < m->nchunks; i++) {
        struct chunk *c = &m->chunk[i];

        if (c->busy && !tri_load_acq(&c->done) && tri_worker_help(m->pool, c->slot, c->ticket))
            return true;
    }
    return false;
}

static int run_map(struct map *m)
{
    struct tri_pool *p = m->pool;
    int err = 0;
    uint32_t busy = 0;

    do {
        uint32_t key = tri_wait_key(p);
        bool moved = tri_pump(p) > 0;

        for (uint32_t i = 0; i < m->nchunks; i++) {
            struct chunk *c = &m->chunk[i];
            int e;

            if (c->busy && tri_load_acq(&c->done)) {
                e = receive_chunk(m, c);
                busy--;
                moved = true;
                err = err ? err : e;
            }
            if (!c->busy && !err && m->next < m->n) {
                e = send_chunk(m, c);
                if (e == 0) {
                    busy++;
                    moved = true;
                } else if (e != -EAGAIN &&
                           !(e == -ENOMEM && (busy || m->opt->caller))) { /* there will be room */
                    err = e;
                }
            }
        }
        if (err) {
            for (uint32_t i = 0; i < m->nchunks; i++) {
                struct chunk *c = &m->chunk[i];

                if (!c->busy || tri_load_acq(&c->done))
                    continue;
                if (tri_task_cancel(p, c->slot, c->ticket) == 0) {
                    c->err = TRI_ECANCELLED;
                    receive_chunk(m, c);
                    busy--;
                    moved = true;
                } else {
                    tri_task_stop(p, c->slot, c->ticket);
                }
            }
        } else if (m->opt->caller && m->next < m->n) {
            err = work_here(m);
            moved = true;
        }
        if (moved || (!busy && (err || m->next == m->n)))
            continue;
        if (tri_worker_inside(p)) {
            if (help(m))
                continue;
            if (!busy) { /* there is no slot for it */
                err = work_here(m);
                continue;
            }
        }
        tri_wait(p, key, TRI_ANY_SLOT, 0, -1);
    } while (busy || (!err && m->next < m->n));
    return err;
}

int tri_map(tri_pool *p, tri_fn fn, const void *in, size_t in_bytes, void *out, size_t out_bytes,
            size_t n, const tri_call *opt)
{
    static const tri_call defaults = TRI_CALL_INIT;
    struct map m = {.pool = p,
                    .fn = fn,
                    .in = in,
                    .out = out,
                    .in_bytes = in_bytes,
                    .out_bytes = out_bytes,
                    .n = n,
                    .opt = opt ? opt : &defaults};
    int err;

    if (!p || !fn || (in_bytes && !in) || (out_bytes && !out) || m.opt->size != sizeof *opt ||
        m.opt->priority < -2 || m.opt->priority > 2 || m.opt->timeout_ns < 0 || m.opt->retries < 0)
        return -EINVAL;
    /* No array is that long; below it, an offset into one is always a number. */
    if ((in_bytes && n > PTRDIFF_MAX / in_bytes) || (out_bytes && n > PTRDIFF_MAX / out_bytes))
        return -EINVAL;
    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    if (n == 0)
        return 0;
    if (p->cfg.kind == TRI_PROCESS) {
        m.in_arena = in_bytes ? in_arena(p, in, n * in_bytes) : 0;
        m.out_arena = out_bytes ? in_arena(p, out, n * out_bytes) : 0;
        m.copies = (in_bytes && !m.in_arena) || (out_bytes && !m.out_arena);
    }
    m.nchunks = 2 * p->view.nworkers + 2;
    m.chunk = calloc(m.nchunks, sizeof *m.chunk);
    if (!m.chunk)
        return -ENOMEM;
    err = run_map(&m);
    free(m.chunk);
    return err;
}

/* ------------------------------------------------------------------ tri_share */

struct tri_share {
    struct tri_share *next, **prev; /* of the pool's open handles */
    struct tri_pool *pool;
    uint64_t off;
    size_t bytes;
};

int tri_share_open(tri_pool *p, size_t bytes, tri_share **out)
{
    struct tri_share *s;

    if (!p || !out || bytes == 0)
        return -EINVAL;
    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    s = malloc(sizeof *s);
    if (!s)
        return -ENOMEM;
    s->pool = p;
    s->bytes = bytes;
    s->off = tri_pool_block_new(p, bytes);
    if (!s->off) {
        free(s);
        return -ENOMEM;
    }
    if (bytes >= TRI_HUGE)
        tri_block_populate(p->view.base + s->off, bytes);
    memset(p->view.base + s->off, 0, bytes);
    pthread_mutex_lock(&p->lock);
    s->next = p->shares;
    s->prev = &p->shares;
    if (s->next)
        s->next->prev = &s->next;
    p->shares = s;
    pthread_mutex_unlock(&p->lock);
    *out = s;
    return 0;
}

void tri_shares_free(struct tri_pool *p)
{
    while (p->shares) {
        struct tri_share *s = p->shares;

        p->shares = s->next;
        free(s); /* its block goes with the arena */
    }
}

void *tri_share_data(tri_share *s)
{
    return s ? s->pool->view.base + s->off : NULL;
}

size_t tri_share_bytes(const tri_share *s)
{
    return s ? s->bytes : 0;
}

void tri_share_free(tri_share *s)
{
    if (!s)
        return;
    if (!tri_pool_is_fork(s->pool)) {
        pthread_mutex_lock(&s->pool->lock);
        *s->prev = s->next;
        if (s->next)
            s->next->prev = s->prev;
        pthread_mutex_unlock(&s->pool->lock);
        tri_pool_block_free(s->pool, s->off);
    } else { /* alone in this process, and the block is not ours */
        *s->prev = s->next;
        if (s->next)
            s->next->prev = s->prev;
    }
    free(s);
}
