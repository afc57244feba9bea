/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * layout.h - what lies in a pool's shared memory, and who writes each word.
 *
 * One mapping holds everything:  control block | worker lines | heap lines | lanes of cells |
 * completion rings | task slots | backlogs | heaps.  It is a sparse file: pages nobody touched cost
 * nothing, and all-zero pages are a valid empty structure, so opening a pool touches a handful of
 * pages.
 * Positions inside it are offsets; no pointer of one process means anything in another.
 *
 * A task lives in a *slot*.  Its state word says everything about it in one atomic store:
 *
 *     FREE -> QUEUED -> CLAIMED(worker, gen) -> STARTED(worker, gen) -> DONE(worker, gen) -> FREE
 *
 *   owner   FREE -> QUEUED (store), QUEUED -> FREE (CAS: cancel), DONE -> FREE (store),
 *           and any state that names a dead worker
 *   worker  QUEUED -> CLAIMED (CAS), CLAIMED -> STARTED -> DONE (stores; the claim made it the
 *           only writer)
 *
 * The claim is one CAS that writes the worker's name, so there is no moment at which a task is
 * taken and nobody is named: a death leaves its name on exactly what it held.
 *
 * A *lane* is a ring of cells in FIFO order, one lane per priority.  A cell {position, slot} is a
 * hint: the right to run comes from the slot's state word alone.  Only the owner appends cells.
 * head is advanced by whoever finds the task at head no longer QUEUED, so a worker killed between
 * its claim and head's advance blocks nobody (helping, as in Michael and Scott's queue).
 *
 * A worker tells the owner of a finished task through its own *completion ring* (one producer,
 * one consumer).  An entry is a hint too: the slot's DONE state with the same ticket is the truth.
 * A ring has twice as many entries as there are slots, and the owner empties it at least once per
 * half that many tasks, so it cannot fill: a worker never waits for the owner to read results.
 */
#ifndef TRI_SHM_LAYOUT_H
#define TRI_SHM_LAYOUT_H

#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"

#define TRI_SHM_MAGIC 0x31656d6572697254ull /* "Trireme1" */
#define TRI_SHM_ABI 2

#define TRI_LANES 5
#define TRI_MASK_WORDS 16 /* 16 x 64 = TRI_MAX_WORKERS */

/* ------------------------------------------------------------------ the state word */

enum tri_state {
    TRI_S_FREE = 0,
    TRI_S_QUEUED = 1,
    TRI_S_CLAIMED = 2,
    TRI_S_STARTED = 3,
    TRI_S_DONE = 4,
};

/* state:4 | worker:12 | generation:12 | ticket:36.  A ticket is given once per append. */
#define TRI_TICKET_MASK ((1ull << 36) - 1)
#define TRI_GEN_MASK 0xfffu

static inline uint64_t tri_word(uint32_t s, uint32_t worker, uint32_t gen, uint64_t ticket)
{
    return (uint64_t)s | (uint64_t)worker << 4 | (uint64_t)(gen & TRI_GEN_MASK) << 16 |
           (ticket & TRI_TICKET_MASK) << 28;
}

static inline uint32_t tri_word_state(uint64_t w)
{
    return (uint32_t)(w & 0xf);
}

static inline uint32_t tri_word_worker(uint64_t w)
{
    return (uint32_t)(w >> 4) & 0xfff;
}

static inline uint32_t tri_word_gen(uint64_t w)
{
    return (uint32_t)(w >> 16) & TRI_GEN_MASK;
}

static inline uint64_t tri_word_ticket(uint64_t w)
{
    return w >> 28;
}

/* ------------------------------------------------------------------ slots */

enum tri_slot_flags {
    TRI_F_TIMED = 1u << 0, /* the worker reports exec_ns */
    TRI_F_CMAP = 1u << 1,  /* a chunk of tri_map: args hold struct tri_cmap */
    TRI_F_PY = 1u << 2,    /* run by the extension's hook */
    TRI_F_USER_SHIFT = 8,  /* bits 8..31 belong to the hook */
};

enum tri_result_flags {
    TRI_R_ARGS_KEPT = 1u << 0, /* somebody in the worker still reads the argument block */
    TRI_R_SPILLED = 1u << 1,   /* the result is in a descriptor on the output socket */
    TRI_R_NOMEM = 1u << 2,     /* the arena had no room for the result; the task did not run */
    TRI_R_USER_SHIFT = 8,
};

#define TRI_ARG_INLINE 64
#define TRI_RES_INLINE 80

struct tri_slot {
    /* written by the owner before QUEUED */
    _Atomic uint64_t state;
    uint32_t flags;
    uint32_t fn_len;
    uint64_t fn_id;   /* C: the function's address.  Python: unique for the life of the pool */
    uint64_t fn_off;  /* Python: the pickled function */
    uint64_t arg_off; /* 0: inline */
    uint64_t arg_len;
    uint64_t items;
    int64_t timeout_ns;
    uint8_t arg[TRI_ARG_INLINE];
    /* written by the worker before DONE */
    uint32_t res_flags;
    int32_t code;
    uint64_t res_off; /* 0: inline */
    uint64_t res_len;
    int64_t started_ns;
    int64_t exec_ns;
    uint64_t res_spare;
    uint8_t res[TRI_RES_INLINE];
};
_Static_assert(sizeof(struct tri_slot) == 256, "a slot is four 64-byte lines");
_Static_assert(offsetof(struct tri_slot, arg) == 64, "arguments start a line");
_Static_assert(offsetof(struct tri_slot, res) % 16 == 0, "results are aligned to 16");

/* A cell: position + 1 (44 bits) and slot (20 bits); 0 is "never written". */
#define TRI_CELL_SLOT_BITS 20
#define TRI_MAX_SLOTS (1u << TRI_CELL_SLOT_BITS)

static inline uint64_t tri_cell(uint64_t pos, uint32_t slot)
{
    return (pos + 1) << TRI_CELL_SLOT_BITS | slot;
}

static inline uint64_t tri_cell_pos(uint64_t c)
{
    return (c >> TRI_CELL_SLOT_BITS) - 1;
}

static inline uint32_t tri_cell_slot(uint64_t c)
{
    return (uint32_t)c & (TRI_MAX_SLOTS - 1);
}

/* ------------------------------------------------------------------ lines */

struct tri_lane {
    alignas(TRI_LINE) _Atomic uint64_t head; /* advanced by CAS by any participant */
};

enum tri_worker_status {
    TRI_W_ABSENT = 0,
    TRI_W_STARTING = 1, /* attached; its initializer runs */
    TRI_W_READY = 2,
    TRI_W_RETIRED = 3, /* max_tasks reached; it exits by itself */
    TRI_W_LEFT = 5,    /* the pool closes and has nothing more to do; it exits by itself */
    TRI_W_FORKED = 4,  /* the program's own handlers of a fork run, or another interpreter starts */
};

#define TRI_BACKLOG (1ull << 20) /* bytes of a worker's backlog */
#define TRI_WORKER_NOTE 1536
#define TRI_WORKER_LAST 8128

struct tri_worker_line {
    /* written by the worker; gen and pid also by a successor */
    alignas(TRI_LINE) _Atomic uint32_t status;
    _Atomic uint32_t gen;
    _Atomic int32_t pid;
    _Atomic uint32_t note_len; /* initializer's failure, encoded by the hook */
    _Atomic uint64_t tasks;
    _Atomic uint64_t arena_live; /* bytes in its heap's blocks */
    _Atomic uint64_t arena_peak;
    /* records sent on the output socket; the owner looks at it after each result, so it is not
     * on the line that changes with each task */
    alignas(TRI_LINE) _Atomic uint64_t outputs;
    /* its backlog of output, pool/output.c: bytes ever written to it, and read from it */
    _Atomic uint64_t backlog_put;
    alignas(TRI_LINE) _Atomic uint64_t backlog_got; /* the owner writes it */
    /* futex word: 1 = wake up.  Set by the waker, cleared by the worker. */
    alignas(TRI_LINE) _Atomic uint32_t bell;
    /* of its completion ring: entries the owner has taken.  The owner writes it. */
    alignas(TRI_LINE) _Atomic uint64_t taken;
    /* completion ring: only the worker writes tail */
    alignas(TRI_LINE) _Atomic uint64_t done_tail;
    alignas(TRI_LINE) uint8_t note[TRI_WORKER_NOTE];
    /* Last words, written in a handler of the signal that it dies of; whose they are is 0 while
     * they are written.  A successor leaves them alone until it crashes itself. */
    alignas(TRI_LINE) _Atomic int32_t last_pid;
    _Atomic uint32_t last_len;
    uint32_t last_skip; /* of their lowest lines, how many tell of what was before any task */
    uint8_t last[TRI_WORKER_LAST];
};

enum tri_heap_state { TRI_H_FREE = 0, TRI_H_OWNED = 1, TRI_H_RETIRED = 2 };

struct tri_heap_line {
    /* state:4 | worker:12 | gen:12.  FREE -> OWNED by the worker's CAS; the rest by the owner. */
    alignas(TRI_LINE) _Atomic uint64_t state;
    /* blocks freed by others: a stack of offsets linked through the blocks' first word.
     * Pushed by CAS, taken whole by exchange by the heap's participant, so no ABA. */
    alignas(TRI_LINE) _Atomic uint64_t freed;
};

/* ctl->closing: workers leave when the queue is empty; threads, which nobody can kill, also leave
 * their chunks between two items. */
#define TRI_CLOSING 1u
#define TRI_CLOSING_NOW 2u

#define TRI_WANT_NONE 0u
#define TRI_WANT_ANY 0xffffffffu

struct tri_ctl {
    /* constant after the owner made it */
    uint64_t magic;
    uint32_t abi;
    uint32_t nworkers;
    uint32_t nslots;
    uint32_t ncells; /* per lane; a power of two, at least twice nslots (layout.c) */
    uint32_t nheaps; /* heap 0 is the owner's */
    uint32_t max_tasks;
    uint64_t total_bytes;
    uint64_t heap_bytes; /* each */
    uint64_t off_workers, off_heap_lines, off_cells, off_rings, off_slots, off_backlogs, off_heaps;
    int64_t spin_ns;
    uint32_t cpus; /* usable when the pool opened */
    uint32_t kind;
    uint64_t setup_off, setup_len; /* what the hook's workers read at their start */

    alignas(TRI_LINE) _Atomic uint32_t closing; /* owner: TRI_CLOSING; 0: it is open */
    _Atomic uint32_t lanes_used;                /* owner: bit per lane ever used */
    _Atomic uint32_t parked;   /* owner: the last this many workers take no tasks just now */
    _Atomic int32_t owner_cpu; /* owner: where it last submitted or waited */
    alignas(TRI_LINE) _Atomic uint32_t bell;   /* event count; anybody adds 1 to wake the owner */
    alignas(TRI_LINE) _Atomic uint32_t want;   /* owner sets; the waker takes it by CAS to NONE */
    alignas(TRI_LINE) _Atomic uint32_t deaths; /* warden adds 1 per message it sent */
    alignas(TRI_LINE) _Atomic uint64_t sleepers[TRI_MASK_WORDS]; /* bit set by the worker */
    alignas(TRI_LINE) _Atomic uint64_t spinners[TRI_MASK_WORDS]; /* bit set by the worker */
    alignas(TRI_LINE) _Atomic uint64_t ready[TRI_MASK_WORDS];    /* bit set when it takes tasks */
    struct tri_lane lane[TRI_LANES];
};

/* A participant's view of the mapping: plain pointers, private to its process. */
struct tri_view {
    uint8_t *base;
    struct tri_ctl *ctl;
    struct tri_worker_line *worker;
    struct tri_heap_line *heap;
    _Atomic uint64_t *cells; /* [lane][ncells] */
    _Atomic uint64_t *rings; /* [worker][2 * nslots] */
    struct tri_slot *slot;
    /* constants copied out of the mapping and checked once, so that a scribble there later
     * cannot send an index astray */
    uint32_t nworkers, nslots, ncells, nheaps;
    uint64_t total_bytes, heap_bytes, off_backlogs, off_heaps;
};

/* Fill sizes and offsets of *ctl from nworkers, nslots, heap_bytes, nheaps. */
void tri_layout_plan(struct tri_ctl *ctl);
/* Make pointers for a mapping at base.  @return 0, TRI_ECORRUPT if it is not one of ours */
int tri_view_init(struct tri_view *v, void *base, uint64_t bytes);

static inline uint64_t tri_backlog_at(const struct tri_view *v, uint32_t worker)
{
    return v->off_backlogs + worker * TRI_BACKLOG;
}

static inline uint64_t tri_heap_base(const struct tri_view *v, uint32_t heap)
{
    return v->off_heaps + (uint64_t)heap * v->heap_bytes;
}

/* Which heap an offset lies in; v->nheaps when in none. */
static inline uint32_t tri_heap_of(const struct tri_view *v, uint64_t off)
{
    if (off < v->off_heaps || off >= v->total_bytes)
        return v->nheaps;
    return (uint32_t)((off - v->off_heaps) / v->heap_bytes);
}

#endif
