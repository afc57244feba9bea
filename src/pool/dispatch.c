/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * dispatch.c - the owner's way of a task: slot, queue, result.
 *
 * Everything private to the owner is guarded by p->lock; what workers see follows layout.h.
 * Results are taken out of their slots under the lock and handed to the caller afterwards, so no
 * user code ever runs with the lock held.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "pool/pool.h"
#include "shm/queue.h"

/* ------------------------------------------------------------------ slots */

static int usable(struct tri_pool *p)
{
    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    if (p->broken)
        return TRI_EBROKEN;
    if (p->closing || p->refusing)
        return TRI_ECLOSED;
    return 0;
}

int tri_task_new_locked(struct tri_pool *p, uint32_t *slot)
{
    int err = usable(p);

    if (!err && p->free_slot == UINT32_MAX && p->nfree < p->view.nslots) {
        *slot = p->nfree++; /* slots never used are not on the list: it costs no page to open */
        p->priv[*slot].used = 1;
        p->outstanding++;
    } else if (!err && p->free_slot == UINT32_MAX) {
        err = -EAGAIN;
    } else if (!err) {
        *slot = p->free_slot;
        p->free_slot = p->priv[*slot].next_free;
        p->priv[*slot].used = 1;
        p->outstanding++;
    }
    return err;
}

int tri_task_new(struct tri_pool *p, uint32_t *slot)
{
    int err;

    if (tri_pool_is_fork(p)) /* not even the lock: another thread may have held it at the fork */
        return TRI_EFORKED;
    pthread_mutex_lock(&p->lock);
    err = tri_task_new_locked(p, slot);
    pthread_mutex_unlock(&p->lock);
    return err;
}

/* The slot goes back on the list; its argument block must have been dealt with. */
static void slot_free(struct tri_pool *p, uint32_t slot)
{
    struct tri_slot_priv *pr = &p->priv[slot];

    tri_store_rel(&p->view.slot[slot].state, 0);
    pr->used = 0;
    pr->user = NULL;
    if (pr->past) {
        free(pr->past);
        pr->past = NULL;
    }
    pr->next_free = p->free_slot;
    p->free_slot = slot;
    p->outstanding--;
}

static void args_free(struct tri_pool *p, uint32_t slot)
{
    struct tri_slot_priv *pr = &p->priv[slot];

    if (pr->arg_off) {
        tri_early_forget(p, pr->arg_off);
        tri_heap_free(&p->heap, pr->arg_off);
    }
    p->view.slot[slot].arg_off = pr->arg_off = 0;
    if (pr->cmap_off)
        tri_heap_free(&p->heap, pr->cmap_off);
    pr->cmap_off = 0;
}

void tri_slot_release(struct tri_pool *p, uint32_t slot)
{
    args_free(p, slot);
    slot_free(p, slot);
}

void tri_task_drop(struct tri_pool *p, uint32_t slot)
{
    if (tri_pool_is_fork(p))
        return;
    pthread_mutex_lock(&p->lock);
    p->priv[slot].arg_off = p->view.slot[slot].arg_off;
    tri_slot_release(p, slot);
    pthread_mutex_unlock(&p->lock);
}

/* ------------------------------------------------------------------ append */

/* A head that no claim can have put where it is goes back to the oldest cell: those whose tasks
 * were claimed are skipped. */
void tri_lanes_mend(struct tri_pool *p)
{
    for (uint32_t lane = 0; lane < TRI_LANES; lane++) {
        _Atomic uint64_t *head = &p->view.ctl->lane[lane].head;
        uint64_t tail = p->tail[lane], h = tri_load_acq(head);

        if (h > tail || tail - h > p->view.ncells)
            tri_cas_sc(head, &h, tail > p->view.ncells ? tail - p->view.ncells : 0);
    }
}

static void put_cell(struct tri_pool *p, uint32_t lane, uint32_t slot)
{
    uint64_t pos = p->tail[lane];

    tri_store_sc(tri_lane_cell(&p->view, lane, pos), tri_cell(pos, slot)); /* A2 */
    p->priv[slot].cell = pos;
    p->tail[lane] = pos + 1;
}

/*
 * The lane is full and the task at its head waits: the cells behind it are of tasks that were
 * cancelled, or run by those who wait for them.  One turn: each task that waits gets a new cell,
 * in the same order, and the head moves on past all others.  At most half of the cells are of
 * tasks, so this makes room for as many as it looked at.
 *
 * The new cell comes first, so that a task always has one that is between head and tail; who finds
 * the old one meanwhile claims the same task, and the new one is then skipped.
 */
static void lane_turn(struct tri_pool *p, uint32_t lane)
{
    _Atomic uint64_t *head = &p->view.ctl->lane[lane].head;
    uint64_t end = p->tail[lane], h;

    while ((h = tri_load_acq(head)) < end && p->tail[lane] - h < p->view.ncells) {
        uint32_t i = tri_cell_slot(tri_load_acq(tri_lane_cell(&p->view, lane, h)));

        if (i < p->view.nslots && p->priv[i].lane == lane && p->priv[i].cell == h &&
            tri_word_state(tri_load_acq(&p->view.slot[i].state)) == TRI_S_QUEUED)
            put_cell(p, lane, i);
        tri_cas_sc(head, &h, h + 1);
    }
}

/*
 * 0, or -EAGAIN: the lane has no cell left.
 *
 * again: the task has been in the lane before.  Each worker holds at most one task, whose claim
 * took a cell, so a reserve of one cell per worker always has room for those that come back; one
 * more is for the turn of a lane.
 * Such a task keeps its ticket, which is its name to whoever waits for it or cancels it.  That is
 * safe: a worker that still looks at the old QUEUED word claims the very same task.
 */
int tri_slot_append(struct tri_pool *p, uint32_t slot, bool again)
{
    struct tri_slot_priv *pr = &p->priv[slot];
    struct tri_slot *s = &p->view.slot[slot];
    _Atomic uint64_t *head = &p->view.ctl->lane[pr->lane].head;
    uint64_t pos = p->tail[pr->lane], h = p->head_seen[pr->lane];
    uint64_t room = p->view.ncells - (again ? 0 : p->view.nworkers + 1);
    bool turned = false;

    if (pos - h >= room) /* head's line belongs to the workers: look only when it matters */
        h = p->head_seen[pr->lane] = tri_load_acq(head);

    for (uint64_t tries = 0; h > pos || pos - h >= room; tries++) {
        uint64_t c = tri_load_acq(tri_lane_cell(&p->view, pr->lane, h));
        uint32_t i = tri_cell_slot(c);

        if (tries > 4ull * p->view.ncells)
            return -EAGAIN; /* somebody scribbles on head all the time */
        if (h > pos || pos - h > p->view.ncells) {
            tri_lanes_mend(p);
        } else {
            if (i >= p->view.nslots ||
                tri_word_state(tri_load_acq(&p->view.slot[i].state)) != TRI_S_QUEUED) {
                tri_cas_sc(head, &h, h + 1);
            } else if (turned) {
                return -EAGAIN;
            } else {
                lane_turn(p, pr->lane);
                pos = p->tail[pr->lane];
                turned = true;
            }
        }
        h = tri_load_acq(head);
    }
    if (!again)
        pr->ticket = ++p->ticket & TRI_TICKET_MASK;
    tri_store_rel(&s->state, tri_word(TRI_S_QUEUED, 0, 0, pr->ticket)); /* A1 */
    put_cell(p, pr->lane, slot);
    return 0;
}

int tri_task_push_locked(struct tri_pool *p, uint32_t slot, int priority, int retries, void *user,
                         uint64_t *ticket)
{
    struct tri_slot_priv *pr = &p->priv[slot];
    uint32_t lane = (uint32_t)(priority + 2);
    const struct tri_slot *s = &p->view.slot[slot];
    int err = lane < TRI_LANES ? usable(p) : -EINVAL;

    /* Nobody can stop a thread; a limit that is not kept would be worse than none. */
    if (!err && p->cfg.kind == TRI_THREAD && s->timeout_ns > 0 && !(s->flags & TRI_F_PY))
        err = -EINVAL;
    if (!err) {
        pr->user = user;
        pr->arg_off = p->view.slot[slot].arg_off;
        pr->lane = (uint8_t)lane;
        pr->retries = (uint16_t)(retries < 0 ? 0 : retries > 65535 ? 65535 : retries);
        pr->deaths = 0;
        if (!(tri_load_rlx(&p->view.ctl->lanes_used) & 1u << lane))
            tri_or_sc(&p->view.ctl->lanes_used, 1u << lane);
        err = tri_slot_append(p, slot, false);
    }
    if (!err) {
        *ticket = pr->ticket;
        pr->used = 2;
        p->stats.submitted++;
        tri_owner_here(p);
        if (!tri_worker_free(p) && tri_wake_worker(&p->view)) {
            tri_store_rlx(&p->woke, 1);
            p->stats.wakes++;
        }
    }
    return err;
}

int tri_task_push(struct tri_pool *p, uint32_t slot, int priority, int retries, void *user,
                  uint64_t *ticket)
{
    int err;

    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    pthread_mutex_lock(&p->lock);
    err = tri_task_push_locked(p, slot, priority, retries, user, ticket);
    pthread_mutex_unlock(&p->lock);
    return err;
}

/* ------------------------------------------------------------------ cancel, orphan */

static bool still(const struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    return slot < p->view.nslots && p->priv[slot].used && p->priv[slot].ticket == ticket;
}

int tri_task_cancel(struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    uint64_t st;
    int err = -EBUSY;

    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    pthread_mutex_lock(&p->lock);
    if (still(p, slot, ticket)) {
        st = tri_word(TRI_S_QUEUED, 0, 0, ticket);
        if (tri_cas_sc(&p->view.slot[slot].state, &st, 0)) {
            tri_slot_release(p, slot);
            p->stats.cancelled++;
            err = 0;
        }
    }
    pthread_mutex_unlock(&p->lock);
    if (!err)
        tri_wait_nudge(p); /* somebody may wait for this task, or for its slot */
    return err;
}

void tri_task_stop(struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    pthread_mutex_lock(&p->lock);
    if (still(p, slot, ticket)) /* the worker reads it before each item */
        __atomic_store_n(&p->view.slot[slot].items, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&p->lock);
}

void tri_task_orphan(struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    if (tri_pool_is_fork(p))
        return;
    pthread_mutex_lock(&p->lock);
    if (still(p, slot, ticket))
        p->priv[slot].user = NULL;
    pthread_mutex_unlock(&p->lock);
}

/* ------------------------------------------------------------------ blocks */

/* Room for one more element of a list that grows; without it nothing sensible is left to do. */
static void *grown(void *list, uint32_t n, uint32_t *cap, size_t each)
{
    if (n < *cap)
        return list;
    *cap = *cap ? 2 * *cap : 16;
    list = realloc(list, *cap * each);
    if (!list)
        abort();
    return list;
}

/*
 * A worker gave an argument block back.  Its task was DONE by then, but perhaps nobody has taken it
 * yet: then the block still belongs to the slot.  Freed now, it would be another task's when the
 * slot is taken and the block put on the list of those in use.  So it waits on the list `early`.
 */
bool tri_kept_home(void *ctx, uint64_t off)
{
    struct tri_pool *p = ctx;

    for (uint32_t i = 0; i < p->nkept; i++)
        if (p->kept[i].off == off) {
            p->kept[i] = p->kept[--p->nkept];
            return true;
        }
    for (uint32_t i = 0; i < p->nearly; i++)
        if (p->early[i] == off)
            return false;
    p->early = grown(p->early, p->nearly, &p->early_cap, sizeof *p->early);
    p->early[p->nearly++] = off;
    return false;
}

bool tri_early_forget(struct tri_pool *p, uint64_t off)
{
    for (uint32_t i = 0; i < p->nearly; i++)
        if (p->early[i] == off) {
            p->early[i] = p->early[--p->nearly];
            return true;
        }
    return false;
}

uint64_t tri_pool_block_new(struct tri_pool *p, uint64_t bytes)
{
    uint64_t off;

    if (tri_pool_is_fork(p))
        return 0;
    pthread_mutex_lock(&p->lock);
    if (tri_load_rlx(&p->view.heap[0].freed))
        tri_heap_collect(&p->heap);
    off = tri_heap_alloc(&p->heap, bytes);
    pthread_mutex_unlock(&p->lock);
    return off;
}

static void block_free(struct tri_pool *p, uint64_t off)
{
    uint32_t heap = tri_heap_of(&p->view, off);

    if (heap == 0) {
        tri_heap_free(&p->heap, off);
    } else if (heap < p->view.nheaps) {
        if (tri_word_state(tri_load_acq(&p->view.heap[heap].state)) == TRI_H_OWNED)
            tri_block_push(&p->view, off);
        if (p->held[heap])
            p->held[heap]--;
        tri_heap_released(p, heap);
    }
}

void tri_pool_block_free(struct tri_pool *p, uint64_t off)
{
    if (tri_pool_is_fork(p)) /* the pages are the owner's still */
        return;
    pthread_mutex_lock(&p->lock);
    block_free(p, off);
    pthread_mutex_unlock(&p->lock);
}

/* ------------------------------------------------------------------ results */

/* The argument block stays while somebody in the worker still reads it. */
static void keep_args(struct tri_pool *p, uint32_t slot, uint64_t word)
{
    struct tri_slot_priv *pr = &p->priv[slot];

    if (!pr->arg_off)
        return;
    if (tri_early_forget(p, pr->arg_off))
        return; /* given back already: it goes with the slot */
    p->kept = grown(p->kept, p->nkept, &p->kept_cap, sizeof *p->kept);
    p->kept[p->nkept++] = (struct tri_kept){pr->arg_off, tri_word_worker(word), tri_word_gen(word)};
    pr->arg_off = 0;
}

/* Can a worker's block be there, with so many bytes? */
static bool block_ok(const struct tri_pool *p, uint64_t off, uint64_t len)
{
    uint32_t heap = tri_heap_of(&p->view, off);
    uint64_t rel;

    if (heap == 0 || heap >= p->view.nheaps)
        return false;
    rel = off - tri_heap_base(&p->view, heap);
    return rel % TRI_GRANULE == TRI_BLOCK_HEADER && len <= p->view.heap_bytes - rel;
}

/* Move a DONE task out of its slot and free the slot.  What it says is checked: a worker gone mad
 * may cost its own results, never the owner's memory. */
void tri_slot_detach(struct tri_pool *p, uint32_t slot, struct tri_done *d)
{
    struct tri_slot *s = &p->view.slot[slot];
    struct tri_slot_priv *pr = &p->priv[slot];
    uint64_t word = tri_load_acq(&s->state);

    d->user = pr->user;
    d->status = 0;
    d->slot = slot;
    d->res_flags = s->res_flags;
    d->code = s->code;
    d->worker = tri_word_worker(word);
    d->deaths = pr->deaths;
    d->npast = 0;
    d->res_off = s->res_off;
    d->res_len = s->res_len;
    d->spill = NULL;
    d->exec_ns = s->exec_ns;
    d->items = s->items;
    if (d->res_flags & TRI_R_SPILLED) {
        d->res_off = 0;
        d->spill = tri_spill_take(p, word, d->res_len);
        if (!d->spill) {
            d->status = -ENOMEM;
            d->res_len = 0;
        }
    } else if (d->res_off) {
        if (!block_ok(p, d->res_off, d->res_len)) {
            d->status = TRI_ECORRUPT;
            d->res_off = d->res_len = 0;
        } else {
            p->held[tri_heap_of(&p->view, d->res_off)]++;
        }
    } else if (d->res_len > TRI_RES_INLINE) {
        d->status = TRI_ECORRUPT;
        d->res_len = 0;
    } else {
        memcpy(d->res, s->res, d->res_len);
    }
    if (d->res_flags & TRI_R_ARGS_KEPT)
        keep_args(p, slot, word);
    tri_slot_release(p, slot);
    p->stats.completed++;
    if (d->status || d->code || d->res_flags & TRI_R_NOMEM)
        p->stats.failed++;
    if (!d->user && d->spill)
        munmap(d->spill, d->res_len);
    if (!d->user && d->res_off) {
        block_free(p, d->res_off);
        d->res_off = 0;
    }
}

static bool done_with(const struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    uint64_t w;

    if (!still(p, slot, ticket))
        return false;
    w = tri_load_acq(&p->view.slot[slot].state); /* pairs with the worker's DONE */
    return tri_word_state(w) == TRI_S_DONE && tri_word_ticket(w) == ticket;
}

/* One entry of worker w's ring: 1 taken, 0 ring empty, 2 entry was stale. */
static int ring_pop(struct tri_pool *p, uint32_t w, struct tri_done *out)
{
    struct tri_member *m = &p->member[w];
    uint64_t tail = tri_load_acq(&p->view.worker[w].done_tail), entry;
    uint64_t head = tri_load_rlx(&m->ring_head);
    uint32_t cap = 2 * p->view.nslots, slot;

    if (tail == head)
        return 0;
    if (tail - head > cap) {
        /* Only a scribble can do that.  Skip to the end, and look for what the ring did not say. */
        tri_store_rlx(&m->ring_head, tail);
        tri_store_rlx(&p->view.worker[w].taken, tail);
        tri_repair_done(p, w);
        return 2;
    }
    entry = tri_load_rlx(&p->view.rings[(uint64_t)w * cap + (head & (cap - 1))]);
    tri_store_rlx(&m->ring_head, head + 1);
    tri_store_rlx(&p->view.worker[w].taken, head + 1);
    slot = (uint32_t)entry & (TRI_MAX_SLOTS - 1);
    if (!done_with(p, slot, entry >> TRI_CELL_SLOT_BITS))
        return 2;
    tri_slot_detach(p, slot, out);
    return 1;
}

static int lost_pop(struct tri_pool *p, struct tri_done *out, int max)
{
    uint32_t left = tri_load_rlx(&p->nlost);
    int n = 0;

    while (n < max && left) {
        out[n] = p->lost[--left];
        n += out[n].user != NULL;
    }
    tri_store_rlx(&p->nlost, left);
    return n;
}

static int take_locked(struct tri_pool *p, struct tri_done *out, int max)
{
    int n = 0;

    if (tri_load_acq(&p->view.ctl->deaths) != tri_load_rlx(&p->deaths_seen))
        tri_control_poll(p);
    n = lost_pop(p, out, max);
    for (uint32_t i = 0; i < p->view.nworkers && n < max; i++) {
        uint32_t w = p->next_ring;
        int got = 1;

        while (n < max && (got = ring_pop(p, w, &out[n])) != 0)
            n += got == 1 && out[n].user;
        if (!got)
            p->next_ring = w + 1 == p->view.nworkers ? 0 : w + 1;
    }
    if (n < max) {
        p->direct = 0;
        n += lost_pop(p, out + n, max - n); /* a ring may have told lies */
    }
    return n;
}

int tri_take(struct tri_pool *p, struct tri_done *out, int max)
{
    int n;

    if (tri_pool_is_fork(p)) /* what ends is for the owner to take */
        return 0;
    pthread_mutex_lock(&p->lock);
    n = take_locked(p, out, max);
    pthread_mutex_unlock(&p->lock);
    return n;
}

int tri_take_one(struct tri_pool *p, uint32_t slot, uint64_t ticket, struct tri_done *out)
{
    bool full = false;
    int got = 0;

    if (tri_pool_is_fork(p))
        return 0;
    pthread_mutex_lock(&p->lock);
    if (p->direct < p->view.nslots / 2 && done_with(p, slot, ticket)) {
        full = p->outstanding == p->view.nslots;
        tri_slot_detach(p, slot, out);
        p->direct++;
        got = 1;
    }
    pthread_mutex_unlock(&p->lock);
    if (full)
        tri_wait_nudge(p); /* others may wait for a slot */
    return got;
}
