/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * queue.h - the shared task queue: append by the owner, claim by any worker.
 *
 * Written over a view so that threads on one mapping and processes run the same lines.  The
 * protocol and its proof are in layout.h; what dies where:
 *
 *   owner   A1 state = QUEUED(ticket), release      A2 cell = {pos, slot}, sc
 *   worker  C1 read head, cell   C2 CAS state QUEUED -> CLAIMED(me)   C3 CAS head h -> h + 1
 *
 * A2 pairs with C1 (the slot is fully written), and, being sc, with the sleeper's last look
 * (sleep.c).  Killed after C2: state names the dead worker, the owner appends the slot again.
 * Killed before C3: the next participant finds state != QUEUED at head and does C3 itself.
 * A claim may win a slot that was cancelled and queued anew behind: the state word it swapped
 * is the newer one, so it runs that newer task, early; the newer cell is then skipped.
 * A thread's task that waits for a QUEUED one does C2 alone (tri_worker_help): its cell is skipped.
 * A task may have several cells, once its lane was full (dispatch.c: lane_turn): the first that is
 * come to is its claim.
 */
#ifndef TRI_SHM_QUEUE_H
#define TRI_SHM_QUEUE_H

#include <stdbool.h>

#include "base/cp.h"
#include "shm/layout.h"

static inline _Atomic uint64_t *tri_lane_cell(const struct tri_view *v, uint32_t lane, uint64_t pos)
{
    return &v->cells[(uint64_t)lane * v->ncells + (pos & (v->ncells - 1))];
}

/* Is there a cell at the lane's head?  (It may be stale; a claim then skips it.) */
static inline bool tri_lane_ready(const struct tri_view *v, uint32_t lane)
{
    uint64_t h = tri_load_sc(&v->ctl->lane[lane].head);
    uint64_t c = tri_load_sc(tri_lane_cell(v, lane, h));

    return c != 0 && tri_cell_pos(c) >= h;
}

static inline bool tri_queue_ready(const struct tri_view *v)
{
    uint32_t used = tri_load_sc(&v->ctl->lanes_used);

    for (uint32_t lane = 0; used; lane++, used >>= 1)
        if ((used & 1) && lane < TRI_LANES && tri_lane_ready(v, lane))
            return true;
    return false;
}

/* Claim the oldest task of the best lane.  On success *slot is its index and *word its state. */
static inline bool tri_queue_claim(const struct tri_view *v, uint32_t worker, uint32_t gen,
                                   uint32_t *slot, uint64_t *word)
{
    uint32_t used = tri_load_acq(&v->ctl->lanes_used);

    for (uint32_t lane = TRI_LANES; lane-- > 0;) {
        _Atomic uint64_t *head = &v->ctl->lane[lane].head;

        if (!(used & 1u << lane))
            continue;
        for (;;) {
            uint64_t h = tri_load_acq(head);                      /* C1 */
            uint64_t c = tri_load_acq(tri_lane_cell(v, lane, h)); /* pairs with A2 */
            uint32_t s = tri_cell_slot(c);
            uint64_t st, mine;
            bool won = false;

            if (c == 0 || tri_cell_pos(c) != h) {
                if (tri_load_acq(head) != h)
                    continue; /* others moved on and the cell was written again */
                break;
            }
            if (s < v->nslots) {
                st = tri_load_acq(&v->slot[s].state);
                if (tri_word_state(st) == TRI_S_QUEUED) {
                    mine = tri_word(TRI_S_CLAIMED, worker, gen, tri_word_ticket(st));
                    CP(claim_before);
                    won = tri_cas_sc(&v->slot[s].state, &st, mine); /* C2 */
                    CP(claim_after);
                }
            }
            st = h;
            tri_cas_sc(head, &st, h + 1); /* C3 */
            if (won) {
                CP(claim_head_moved);
                *slot = s;
                *word = mine;
                return true;
            }
        }
    }
    return false;
}

#endif
