/* SPDX-License-Identifier: BSD-3-Clause */
/* layout.c - where the parts of a pool's shared memory begin.  The map is in layout.h. */
#include "shm/layout.h"

#include "trireme.h"

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

void tri_layout_plan(struct tri_ctl *ctl)
{
    uint64_t at = round_up(sizeof *ctl, TRI_LINE);

    ctl->magic = TRI_SHM_MAGIC;
    ctl->abi = TRI_SHM_ABI;
    /* A lane holds cells of tasks that were cancelled behind a head not started yet, and keeps one
     * cell per worker free for tasks that come back from the dead (tri_slot_append). */
    ctl->ncells = 2 * ctl->nslots;
    while (ctl->ncells < ctl->nslots + 2 * ctl->nworkers + 2)
        ctl->ncells *= 2;
    ctl->off_workers = at;
    at += (uint64_t)ctl->nworkers * sizeof(struct tri_worker_line);
    ctl->off_heap_lines = at;
    at += (uint64_t)ctl->nheaps * sizeof(struct tri_heap_line);
    ctl->off_cells = at = round_up(at, 4096);
    at += (uint64_t)TRI_LANES * ctl->ncells * sizeof(uint64_t);
    ctl->off_rings = at = round_up(at, 4096);
    at += (uint64_t)ctl->nworkers * 2 * ctl->nslots * sizeof(uint64_t);
    ctl->off_slots = at = round_up(at, 4096);
    at += (uint64_t)ctl->nslots * sizeof(struct tri_slot);
    ctl->off_backlogs = at = round_up(at, 4096);
    at += ctl->nworkers * TRI_BACKLOG;
    ctl->off_heaps = at = round_up(at, 1u << 21);
    ctl->total_bytes = at + ctl->nheaps * ctl->heap_bytes;
}

int tri_view_init(struct tri_view *v, void *base, uint64_t bytes)
{
    struct tri_ctl *c = base, plan;

    if (bytes < sizeof *c || c->magic != TRI_SHM_MAGIC || c->abi != TRI_SHM_ABI)
        return TRI_ECORRUPT;
    if (c->nworkers == 0 || c->nworkers > TRI_MAX_WORKERS || c->nslots == 0 ||
        c->nslots > TRI_MAX_SLOTS || (c->nslots & (c->nslots - 1)) != 0 || c->nheaps == 0 ||
        c->nheaps > 8 * TRI_MAX_WORKERS || c->heap_bytes == 0 || c->heap_bytes > bytes)
        return TRI_ECORRUPT;
    plan.nworkers = c->nworkers;
    plan.nslots = c->nslots;
    plan.nheaps = c->nheaps;
    plan.heap_bytes = c->heap_bytes;
    tri_layout_plan(&plan);
    if (plan.total_bytes != c->total_bytes || plan.total_bytes > bytes ||
        plan.ncells != c->ncells || plan.off_workers != c->off_workers ||
        plan.off_heap_lines != c->off_heap_lines || plan.off_cells != c->off_cells ||
        plan.off_rings != c->off_rings || plan.off_slots != c->off_slots ||
        plan.off_backlogs != c->off_backlogs || plan.off_heaps != c->off_heaps)
        return TRI_ECORRUPT;

    v->base = base;
    v->ctl = c;
    v->nworkers = plan.nworkers;
    v->nslots = plan.nslots;
    v->ncells = plan.ncells;
    v->nheaps = plan.nheaps;
    v->heap_bytes = plan.heap_bytes;
    v->total_bytes = plan.total_bytes;
    v->off_backlogs = plan.off_backlogs;
    v->off_heaps = plan.off_heaps;
    v->worker = (struct tri_worker_line *)(v->base + plan.off_workers);
    v->heap = (struct tri_heap_line *)(v->base + plan.off_heap_lines);
    v->cells = (_Atomic uint64_t *)(v->base + plan.off_cells);
    v->rings = (_Atomic uint64_t *)(v->base + plan.off_rings);
    v->slot = (struct tri_slot *)(v->base + plan.off_slots);
    return 0;
}
