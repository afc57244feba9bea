/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sync.h - semaphore, event and condition in shared memory, beside the lock of lock.h.
 *
 * All live in memory that is zeros before their init, hold no pointers, and may be used by any
 * thread of any process that maps them.  Every wait takes timeout_ns (< 0: for ever, 0: only
 * look) and returns 0, TRI_ETIMEDOUT, or -EINTR when a signal handler ran (call it again).
 *
 * What a SIGKILL costs: a semaphore's units that the dead one held (nobody knows who held them).
 * A wake-up that it owed or took with it is made good within 100 ms.
 */
#ifndef TRI_SHM_SYNC_H
#define TRI_SHM_SYNC_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#include "shm/lock.h"

/* ------------------------------------------------------------------ semaphore */

typedef struct tri_sem {
    alignas(TRI_SLOT) _Atomic uint32_t value;
    _Atomic uint32_t waiters; /* at least as many as sleep; the dead are never taken off */
    uint32_t max;             /* constant after init */
    _Atomic int32_t spins;    /* spin.h */
    uint32_t unused[12];
} tri_sem;
_Static_assert(sizeof(tri_sem) == TRI_SLOT, "one line");

void tri_sem_init(tri_sem *s, uint32_t value, uint32_t max);
int tri_sem_acquire(tri_sem *s, int64_t timeout_ns);
/* 0, or -EOVERFLOW: it stands at its maximum. */
int tri_sem_release(tri_sem *s);
uint32_t tri_sem_value(tri_sem *s);

/* ------------------------------------------------------------------ event */

typedef struct tri_event {
    alignas(TRI_SLOT) _Atomic uint32_t word; /* bit 0: set; above: how often it was set */
    uint32_t unused[15];
} tri_event;
_Static_assert(sizeof(tri_event) == TRI_SLOT, "one line");

bool tri_event_is_set(tri_event *e);
void tri_event_set(tri_event *e);
void tri_event_clear(tri_event *e);
/* Ends when it is set, even if it is cleared again before the waiter runs. */
int tri_event_wait(tri_event *e, int64_t timeout_ns);

/* ------------------------------------------------------------------ condition */

#define TRI_COND_BYTES 32768

struct tri_cond_cell {
    _Atomic uint64_t who;   /* the waiter's name; 0: free */
    _Atomic uint32_t state; /* what it sleeps on */
    _Atomic uint32_t order; /* smaller: came earlier */
};
_Static_assert(sizeof(struct tri_cond_cell) == 16, "layout");

#define TRI_COND_CELLS ((TRI_COND_BYTES - TRI_SLOT) / 16)

typedef struct tri_cond {
    alignas(TRI_SLOT) uint64_t ns; /* pid namespace of names; constant after init */
    _Atomic uint32_t order;        /* the next waiter's */
    _Atomic uint32_t high;         /* no cell from here on was ever used */
    uint32_t unused[12];
    struct tri_cond_cell cell[TRI_COND_CELLS];
} tri_cond;
_Static_assert(sizeof(tri_cond) == TRI_COND_BYTES, "layout");

void tri_cond_init(tri_cond *c);
/*
 * Become a waiter, before giving up the lock that goes with the condition.  The cell, which ends
 * with tri_cond_leave; or -ENOSPC: TRI_COND_CELLS wait already.
 */
int tri_cond_enter(tri_cond *c);
/* 0: notified.  The cell is still the caller's. */
int tri_cond_wait(tri_cond *c, int cell, int64_t timeout_ns);
/* Wait no more.  Was it notified? */
bool tri_cond_leave(tri_cond *c, int cell);
/*
 * Wake the n that came first of those that live.  How many there were.  Like tri_cond_enter, with
 * the lock held that goes with the condition.  With that lock, they wake when it is given back, one
 * after the other (they could do nothing before); NULL: at once.
 */
uint32_t tri_cond_notify(tri_cond *c, uint32_t n, tri_lock *lock);
/* How many living processes' threads wait. */
uint32_t tri_cond_waiters(tri_cond *c);

#endif
