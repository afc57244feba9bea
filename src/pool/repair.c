/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * repair.c - what a worker's death left behind.
 *
 * Runs in the owner, p->lock held, after the warden has reaped the worker: nothing of it moves
 * any more, and all its stores are visible.  A successor has another generation, so every state
 * word that names (worker, gen) is the dead one's and now the owner's to write.
 *
 *   CLAIMED   appended again: it had not started
 *   STARTED   lost, or run again if the task has retries left
 *   DONE      its value is whole; found here even if its ring entry was never written
 *
 * Its heap is retired, the argument blocks it kept are freed, and one worker is woken in case the
 * dead one had been the one to wake it, or was to be woken (the warden has cleared its bits in the
 * masks, before it told us and before there was a successor).
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "pool/pool.h"

/* Room for one more ended task on the list that tri_take() reads first. */
static struct tri_done *ended_new(struct tri_pool *p)
{
    uint32_t n = tri_load_rlx(&p->nlost);

    if (n == p->lost_cap) {
        uint32_t cap = p->lost_cap ? 2 * p->lost_cap : 8;
        struct tri_done *l = realloc(p->lost, cap * sizeof *l);

        if (!l)
            abort();
        p->lost = l;
        p->lost_cap = cap;
    }
    tri_store_rlx(&p->nlost, n + 1);
    return &p->lost[n];
}

void tri_lose(struct tri_pool *p, uint32_t slot, int status, const struct tri_loss *loss)
{
    struct tri_done *d = ended_new(p);

    memset(d, 0, sizeof *d);
    d->user = p->priv[slot].user;
    d->slot = slot;
    d->status = status;
    d->deaths = p->priv[slot].deaths;
    d->items = p->view.slot[slot].items;
    if (loss)
        d->loss = *loss;
    if (status == TRI_ETASKTIMEOUT)
        d->exec_ns = p->view.slot[slot].timeout_ns;
    if (p->priv[slot].past && d->deaths > 1) {
        d->npast = d->deaths - 1 < TRI_PAST_MAX ? d->deaths - 1 : (uint32_t)TRI_PAST_MAX;
        memcpy(d->res, p->priv[slot].past, d->npast * sizeof *loss);
    }
    tri_slot_release(p, slot);
}

size_t tri_last_words(const struct tri_pool *p, const struct tri_loss *loss, void *buf, size_t size,
                      uint32_t *skip)
{
    const struct tri_worker_line *line;
    size_t n;

    if (!loss->signal || loss->pid <= 0 || loss->worker >= p->view.nworkers)
        return 0;
    line = &p->view.worker[loss->worker];
    if (tri_load_acq(&line->last_pid) != loss->pid)
        return 0;
    n = tri_load_acq(&line->last_len);
    n = n < TRI_WORKER_LAST ? n : TRI_WORKER_LAST;
    n = n < size ? n : size;
    memcpy(buf, line->last, n);
    *skip = line->last_skip;
    atomic_thread_fence(memory_order_acquire);
    return tri_load_rlx(&line->last_pid) == loss->pid ? n : 0; /* or a successor has crashed */
}

/* A retired heap whose last block came back: its pages go home and it can be claimed again. */
void tri_heap_released(struct tri_pool *p, uint32_t heap)
{
    struct tri_heap_line *h = &p->view.heap[heap];

    if (p->held[heap] || tri_word_state(tri_load_acq(&h->state)) != TRI_H_RETIRED)
        return;
    tri_segment_punch(&p->seg, tri_heap_base(&p->view, heap), p->view.heap_bytes);
    tri_store_rel(&h->freed, 0);
    tri_store_rel(&h->state, TRI_H_FREE);
}

static void retire_heaps(struct tri_pool *p, uint32_t worker, uint32_t gen)
{
    uint64_t owned = tri_word(TRI_H_OWNED, worker, gen, 0);

    for (uint32_t i = 1; i < p->view.nheaps; i++)
        if (tri_load_acq(&p->view.heap[i].state) == owned) {
            tri_store_rel(&p->view.heap[i].state, tri_word(TRI_H_RETIRED, worker, gen, 0));
            tri_heap_released(p, i);
        }
}

static void free_kept(struct tri_pool *p, uint32_t worker, uint32_t gen)
{
    for (uint32_t i = 0; i < p->nkept;) {
        if (p->kept[i].worker == worker && p->kept[i].gen == (gen & TRI_GEN_MASK)) {
            tri_heap_free(&p->heap, p->kept[i].off);
            p->kept[i] = p->kept[--p->nkept];
        } else {
            i++;
        }
    }
}

static void died_with(struct tri_pool *p, uint32_t slot, const struct tri_loss *loss)
{
    struct tri_slot *s = &p->view.slot[slot];
    struct tri_slot_priv *pr = &p->priv[slot];
    /* Unsigned: both numbers come from shared memory and may be anything. */
    bool late = s->timeout_ns > 0 && (loss->signal == SIGKILL || loss->signal == SIGALRM) &&
                (uint64_t)tri_now_ns() - (uint64_t)s->started_ns >= (uint64_t)s->timeout_ns;

    pr->deaths++;
    if (p->killing) { /* by tri_pool_end, not by a fault */
        tri_lose(p, slot, TRI_ECLOSED, loss);
        return;
    }
    if (pr->retries > 0 && pr->user && !p->broken && !late) {
        pr->retries--;
        p->stats.retried++;
        if (!pr->past)
            pr->past = calloc(TRI_PAST_MAX, sizeof *pr->past);
        if (pr->past && pr->deaths <= TRI_PAST_MAX)
            pr->past[pr->deaths - 1] = *loss;
        tri_early_forget(p, pr->arg_off); /* the dead one's word; the next one needs the block */
        if (tri_slot_append(p, slot, true) == 0)
            return;
    }
    if (late)
        p->stats.timed_out++;
    else
        p->stats.lost++;
    tri_lose(p, slot, late ? TRI_ETASKTIMEOUT : TRI_EWORKERLOST, loss);
}

/* Taken without its ring, where its entry may be missing. */
static void take_done(struct tri_pool *p, uint32_t slot)
{
    struct tri_done d;

    tri_slot_detach(p, slot, &d);
    if (d.user)
        *ended_new(p) = d;
}

void tri_repair_done(struct tri_pool *p, uint32_t worker)
{
    for (uint32_t i = 0; i < p->nfree; i++) {
        uint64_t w = tri_load_acq(&p->view.slot[i].state);

        if (p->priv[i].used && tri_word_state(w) == TRI_S_DONE && tri_word_worker(w) == worker &&
            tri_word_ticket(w) == p->priv[i].ticket)
            take_done(p, i);
    }
}

void tri_repair_death(struct tri_pool *p, const struct tri_msg *m)
{
    struct tri_loss loss = {m->pid, m->signal, m->exitcode, m->oom, m->worker};

    for (uint32_t i = 0; i < p->nfree; i++) {
        uint64_t w;

        if (!p->priv[i].used)
            continue;
        w = tri_load_acq(&p->view.slot[i].state);
        if (tri_word_worker(w) != m->worker || tri_word_gen(w) != (m->gen & TRI_GEN_MASK))
            continue;
        switch (tri_word_state(w)) {
        case TRI_S_CLAIMED:
            if (tri_slot_append(p, i, true) != 0)
                tri_lose(p, i, TRI_EWORKERLOST, &loss);
            break;
        case TRI_S_STARTED:
            died_with(p, i, &loss);
            break;
        case TRI_S_DONE:
            take_done(p, i);
            break;
        default:
            break;
        }
    }
    /* What the dead one had given back comes home first: freed by free_kept while still on the
     * stack, such a block would be freed once more when it is somebody else's. */
    tri_heap_collect(&p->heap);
    tri_spill_forget(p, m->worker, m->gen);
    free_kept(p, m->worker, m->gen);
    retire_heaps(p, m->worker, m->gen);
    tri_wake_worker(&p->view);
}

void tri_repair_queued(struct tri_pool *p, int status)
{
    for (uint32_t i = 0; i < p->nfree; i++) {
        uint64_t w = tri_word(TRI_S_QUEUED, 0, 0, p->priv[i].ticket);

        if (p->priv[i].used && tri_cas_sc(&p->view.slot[i].state, &w, 0))
            tri_lose(p, i, status, NULL);
    }
}

void tri_repair_broken(struct tri_pool *p, int status)
{
    for (uint32_t i = 0; i < p->nfree; i++) {
        uint64_t w;

        /* One being filled is another thread's, whose push will fail. */
        if (p->priv[i].used != 2)
            continue;
        w = tri_load_acq(&p->view.slot[i].state);
        /* A DONE one is whole, and nobody may be left to write its ring entry. */
        if (tri_word_state(w) == TRI_S_DONE && tri_word_ticket(w) == p->priv[i].ticket)
            take_done(p, i);
        else
            tri_lose(p, i, status, NULL);
    }
}
