/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sync.c - counts, flags and waiters that no death leaves locked.
 *
 * There is no lock in here: each operation is committed by one compare-and-swap or store, and the
 * futex call that follows only makes it quicker.  Who is killed between the two leaves sleepers
 * that nobody woke; so all sleep in slices (5 ms, up to 100 ms) and look again.
 *
 * Semaphore   P1 waiters += 1   P2 futex wait while value == 0   P3 CAS value -> value - 1
 *             V1 CAS value -> value + 1   V2 if waiters > 0: futex wake one
 *   P1, V1, V2 are sequentially consistent: V2 sees the waiter, or P2 sees the value and returns.
 *   V1 pairs with P3: what was written before a release is seen after the acquire.
 *
 * Event       a word {set:1, times set:31}.  A waiter ends when the bit is set or the count has
 *             moved.  So set() followed at once by clear() wakes all who waited, and whoever comes
 *             between two sets does not take the first for the second.
 *
 * Condition   a table with a cell for each waiter, {name, state, order}.
 *             state   IDLE -> WAITING (waiter)   WAITING -> NOTIFIED (notifier)
 *                     WAITING -> IDLE (waiter: time is up)
 *                     NOTIFIED -> IDLE (waiter; notifier: the waiter's process is gone)
 *   The compare-and-swap on state decides between the notifier and the waiter's time-out, and
 *   between two notifiers.  So a notification counts for exactly one waiter that still waited.
 *   notify counts a waiter only if it lives: one that the kernel found asleep does, and of others
 *   it is asked.  So a waiter that was killed swallows no notification, and nobody waits for an
 *   answer from it.  Who is notified needs the notifier's lock next; so instead of waking for
 *   nothing it is moved to where that lock's waiters sleep.
 *   The name is taken by CAS 0 -> name, and put back to 0 after state is IDLE.  So a free cell is
 *   always IDLE, whoever died where:
 *     after the name, before WAITING: IDLE with a dead name, which enter() reuses when it must
 *     later: WAITING or NOTIFIED with a dead name, which notify() or enter() clears.
 *
 * Tried: three semaphores (sleeping, woken, wait), as the original does; its notify waits for each
 * sleeper to say that it woke, and hangs if one was killed.  Tickets (a head and a tail): nobody
 * knows whose ticket is a dead one's.
 */
#include "shm/sync.h"

#include <errno.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "base/cp.h"
#include "base/futex.h"
#include "base/self.h"
#include "shm/spin.h"
#include "trireme.h"

#define SLICE_NS 5000000
#define SLICE_MAX_NS 100000000

/* A wait in slices.  end_ns is only used with timeout_ns > 0. */
struct wait {
    int64_t timeout_ns, end_ns, slice_ns;
};

static struct wait wait_begin(int64_t timeout_ns)
{
    struct wait w = {timeout_ns, timeout_ns > 0 ? tri_now_ns() + timeout_ns : 0, SLICE_NS};

    return w;
}

/* One slice.  0: look again; -EINTR; TRI_ETIMEDOUT: time is up, a last look was just had. */
static int wait_slice(struct wait *w, _Atomic uint32_t *word, uint32_t expected)
{
    int64_t nap = w->slice_ns;
    int err;

    if (w->timeout_ns == 0)
        return TRI_ETIMEDOUT;
    if (w->timeout_ns > 0) {
        int64_t left = w->end_ns - tri_now_ns();

        if (left <= 0)
            return TRI_ETIMEDOUT;
        if (left < nap)
            nap = left;
    }
    err = tri_futex_wait(word, expected, nap);
    if (err == -ETIMEDOUT && w->slice_ns < SLICE_MAX_NS)
        w->slice_ns *= 2;
    return err == -EINTR ? err : 0;
}

/* ------------------------------------------------------------------ semaphore */

void tri_sem_init(tri_sem *s, uint32_t value, uint32_t max)
{
    s->max = max;
    tri_store_rlx(&s->waiters, 0);
    tri_store_rel(&s->value, value);
}

uint32_t tri_sem_value(tri_sem *s)
{
    return tri_load_acq(&s->value);
}

static bool sem_take(tri_sem *s)
{
    uint32_t v = tri_load_rlx(&s->value);

    while (v) {
        if (tri_cas_sc(&s->value, &v, v - 1)) { /* P3 */
            CP(sem_taken);
            return true;
        }
    }
    return false;
}

static bool sem_spin(tri_sem *s, int64_t timeout_ns)
{
    struct tri_spin spin = tri_spin_begin(&s->spins, timeout_ns);
    bool won = false;

    while (!won && tri_spin_next(&spin))
        won = sem_take(s);
    tri_spin_end(&spin, won);
    return won;
}

int tri_sem_acquire(tri_sem *s, int64_t timeout_ns)
{
    struct wait w;
    int err = 0;

    if (sem_take(s))
        return 0;
    if (timeout_ns == 0)
        return TRI_ETIMEDOUT;
    w = wait_begin(timeout_ns);
    if (sem_spin(s, timeout_ns))
        return 0;
    tri_add_sc(&s->waiters, 1); /* P1 */
    CP(sem_waits);
    while (!err && !sem_take(s)) {
        err = wait_slice(&w, &s->value, 0); /* P2 */
        if (err && sem_take(s)) {           /* woken, and interrupted at once: it is ours */
            err = 0;
            break;
        }
    }
    tri_add_sc(&s->waiters, UINT32_MAX);
    return err;
}

int tri_sem_release(tri_sem *s)
{
    uint32_t v = tri_load_rlx(&s->value);

    do {
        if (v >= s->max)
            return -EOVERFLOW;
    } while (!tri_cas_sc(&s->value, &v, v + 1)); /* V1 */
    CP(sem_given);
    if (tri_load_sc(&s->waiters)) /* V2 */
        tri_futex_wake(&s->value, 1);
    return 0;
}

/* ------------------------------------------------------------------ event */

bool tri_event_is_set(tri_event *e)
{
    return tri_load_acq(&e->word) & 1;
}

void tri_event_set(tri_event *e)
{
    uint32_t w = tri_load_rlx(&e->word);

    do {
        if (w & 1)
            return;
    } while (!tri_cas_sc(&e->word, &w, w + 3)); /* the next count, with the bit */
    CP(event_set);
    tri_futex_wake(&e->word, INT_MAX);
}

void tri_event_clear(tri_event *e)
{
    uint32_t w = tri_load_rlx(&e->word);

    while (w & 1 && !tri_cas_sc(&e->word, &w, w - 1)) { /* the count stays */
    }
}

int tri_event_wait(tri_event *e, int64_t timeout_ns)
{
    uint32_t before = tri_load_acq(&e->word), now = before;
    struct wait w;
    int err = 0;

    if (before & 1)
        return 0;
    w = wait_begin(timeout_ns);
    while (!err && now == before) {
        err = wait_slice(&w, &e->word, before);
        now = tri_load_acq(&e->word);
    }
    return now != before ? 0 : err; /* from "not set" it can only move by being set */
}

/* ------------------------------------------------------------------ condition */

enum { IDLE, WAITING, NOTIFIED };

void tri_cond_init(tri_cond *c)
{
    c->ns = tri_self_ns();
}

static bool swap_state(struct tri_cond_cell *cell, uint32_t from, uint32_t to)
{
    return tri_cas_sc(&cell->state, &from, to);
}

/* Take the cell from `from`: 0, or a name whose bearer is gone. */
static bool cell_take(tri_cond *c, uint32_t i, uint64_t from)
{
    struct tri_cond_cell *cell = &c->cell[i];
    uint32_t high = tri_load_rlx(&c->high);

    if (!tri_cas_sc(&cell->who, &from, tri_sign(c->ns)))
        return false;
    CP(cond_cell_taken);
    while (high <= i && !tri_cas_sc(&c->high, &high, i + 1)) {
    }
    tri_store_rlx(&cell->order, tri_add_sc(&c->order, 1));
    tri_store_sc(&cell->state, WAITING);
    CP(cond_waiting);
    return true;
}

int tri_cond_enter(tri_cond *c)
{
    for (uint32_t i = 0; i < TRI_COND_CELLS; i++) {
        if (tri_load_rlx(&c->cell[i].who) == 0 && cell_take(c, i, 0))
            return (int)i;
    }
    for (uint32_t i = 0; i < TRI_COND_CELLS; i++) {
        uint64_t who = tri_load_rlx(&c->cell[i].who);

        if (who && tri_signer_gone(c->ns, who) && cell_take(c, i, who))
            return (int)i;
    }
    return -ENOSPC;
}

bool tri_cond_leave(tri_cond *c, int cell)
{
    bool notified = !swap_state(&c->cell[cell], WAITING, IDLE);

    tri_store_rel(&c->cell[cell].state, IDLE);
    tri_store_rel(&c->cell[cell].who, 0); /* pairs with the CAS in cell_take: free is IDLE */
    return notified;
}

int tri_cond_wait(tri_cond *c, int cell, int64_t timeout_ns)
{
    struct tri_cond_cell *mine = &c->cell[cell];
    struct wait w = wait_begin(timeout_ns);
    int err = 0;

    while (!err && tri_load_acq(&mine->state) == WAITING)
        err = wait_slice(&w, &mine->state, WAITING);
    return tri_load_acq(&mine->state) == NOTIFIED ? 0 : err;
}

/*
 * The process of a notified waiter was killed: nobody waits there any more.  The lock that goes
 * with the condition keeps enter() from giving the cell to another meanwhile.
 */
static bool swept(tri_cond *c, struct tri_cond_cell *cell)
{
    uint64_t who = tri_load_acq(&cell->who);

    if (!who || !tri_signer_gone(c->ns, who))
        return false;
    if (swap_state(cell, NOTIFIED, IDLE))
        tri_cas_sc(&cell->who, &who, 0);
    return true;
}

/* The one that came first of those that wait; NULL: none. */
static struct tri_cond_cell *first_waiter(tri_cond *c)
{
    uint32_t high = tri_load_sc(&c->high), first = 0;
    struct tri_cond_cell *found = NULL;

    if (high > TRI_COND_CELLS)
        high = TRI_COND_CELLS;
    for (uint32_t i = 0; i < high; i++) {
        struct tri_cond_cell *cell = &c->cell[i];
        uint32_t order;

        if (tri_load_sc(&cell->state) != WAITING)
            continue;
        order = tri_load_rlx(&cell->order);
        if (!found || (int32_t)(order - first) < 0) {
            found = cell;
            first = order;
        }
    }
    return found;
}

uint32_t tri_cond_notify(tri_cond *c, uint32_t n, tri_lock *lock)
{
    uint32_t woken = 0;
    bool asleep;

    while (woken < n) {
        struct tri_cond_cell *cell = first_waiter(c);

        if (!cell)
            break;
        if (!swap_state(cell, WAITING, NOTIFIED))
            continue; /* its time was up just now */
        CP(cond_notified);
        asleep = lock && tri_lock_line_up(lock, &cell->state, NOTIFIED);
        if (!asleep)
            asleep = tri_futex_wake(&cell->state, 1) > 0;
        /* Whom the kernel finds asleep lives; to look after the others costs microseconds. */
        woken += asleep || !swept(c, cell);
    }
    return woken;
}

uint32_t tri_cond_waiters(tri_cond *c)
{
    uint32_t high = tri_load_sc(&c->high), n = 0;

    for (uint32_t i = 0; i < high && i < TRI_COND_CELLS; i++) {
        struct tri_cond_cell *cell = &c->cell[i];

        if (tri_load_acq(&cell->state) == WAITING &&
            !tri_signer_gone(c->ns, tri_load_acq(&cell->who)))
            n++;
    }
    return n;
}
