/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sleep.c - when a participant stops searching, and who wakes it.
 *
 * Workers.  The danger is a lost wake-up.  Q: the queue.  M: the mask of declared sleepers.
 * P: the mask of spinners.  b: the worker's own bell.
 *
 *   submitter  S1 append to Q (sc)   S2 if P is empty and M is not: take one bit of M (sc RMW);
 *              if it was set: b = 1, futex wake on b
 *   worker     W1 set own bit in M (sc RMW)   W2 look at Q (sc)   W3 if empty: futex wait while
 *              b == 0   W4 clear own bit, b = 0, search again
 *
 * S1, S2, W1, W2 are all sequentially consistent, so either W2 sees the append or S2 sees the bit.
 * A bell rung between W2 and W3 makes W3 return at once.  A spare bell is harmless.
 * A spinner counts as awake: S2 leaves the task to it.  It clears its bit of P *before* W1, W2, so
 * the last look is always after it stopped being counted; and one that finds a task clears its
 * bit and wakes the next sleeper if there is more (tri_wake_worker), so wake-ups travel on.
 * S2 is also left out when R, the workers that are ready, has more members awake than there are
 * other tasks in flight: each of those holds at most one worker, so at least one is searching and
 * has not come to W1 yet; its W2 will see S1.  That is the usual case of one task after the other.
 * A worker is parked (its id is one of the last ctl->parked) when a caller works in its place.  To
 * it the queue is empty, and it is not woken.  It may have been counted on before it was parked:
 * so it looks at the queue once more after W1 and, if there is something, wakes another.  Who is
 * let out again is told by tri_helper_end, whose store comes before its look at the queue.
 * tri_helper_begin looks too: who was not yet parked after W1 may be by W2, and looks no more.
 * A worker killed with its bit set in P or M would hold wake-ups back: the warden clears the bits,
 * then tells the owner, whose repair wakes one.  A waker killed between taking a sleeper's bit and
 * ringing its bell would leave a sleeper whom nobody sees any more: so after a death the warden
 * rings everybody whose bit is not set (tri_wake_stranded).  A worker that was woken but stopped
 * (SIGSTOP) keeps its task's wake-up to itself: an owner that waits in vain wakes the next one.
 *
 * Owner.  E: ctl->bell, an event count.  want: the slot the owner sleeps for, or ANY.
 *
 *   owner   O1 e = E   O2 look   O3 want = slot (sc)   O4 look again (sc)   O5 futex wait E == e
 *   worker  D1 state = DONE, ring tail (sc)   D2 if want matches: CAS want -> NONE;
 *           if won: E += 1, futex wake all on E
 *
 * Again D1/D2 against O3/O4 are sequentially consistent.  The CAS makes one worker pay for the
 * system call.  Several waiting threads share one want: ANY.
 * The warden's news of a death also rings E.  Only the warden's own death rings nothing: so an
 * owner sleeps at most WARDEN_LOOK_NS at a time and looks at the socket, whose end tells.  It
 * looks by the clock, not by the sleep: lazy naps are shorter, and polls do not sleep at all.
 *
 * Laziness.  When many tasks are out and the waiter drains faster than workers work, a wake-up per
 * task would cost more than the tasks.  The owner then waits for a task further down the queue
 * (an eighth of what is out, at most 512), but never more than LAZY_NS at a time.
 *
 * A worker on the owner's CPU does not spin at all: it would spin in the place of the owner whom it
 * expects work from, and the kernel leaves the two together for seconds (36 us a round trip,
 * 3 otherwise).  Asleep, it is put on another CPU by the next wake-up.
 * Who has just woken a worker does not spin at once: the kernel may have put it on this very CPU,
 * where a quarter of the wake-ups of an idle pool on two CPUs then cost the whole spin.  It yields
 * first, which costs less than the worker takes to come.  On a busy machine others come first, each
 * for its slice: 1.7 ms where a sleep takes 0.05.  So who has lost its CPU for long sleeps at once
 * the next times, twice as many each time in a row that it happens.  Always to sleep would take
 * 5 us longer where nobody else is there.
 *
 * Spinning is bounded, and only tried when waits of late were short enough for it to pay (a moving
 * average of how long waits took), when a CPU is free for it, and by few workers at once.
 *
 * Tried: a wake per submit (one system call per task); one shared event count for workers (wakes
 * the wrong one, no last-in-first-out); hit counting instead of wait times (cannot leave the slow
 * mode in which both sides always sleep).
 */
#include <errno.h>
#include <sched.h>

#include "base/clock.h"
#include "base/futex.h"
#include "pool/pool.h"
#include "shm/queue.h"

#define WARDEN_LOOK_NS 200000000
#define LAZY_NS 1000000
#define NAP_NS 1000000
#define TINY_NS 4000
#define GIVE_WAY_NS 100000
#define LAZY_ABOVE 64
#define YIELD_LONG_NS 100000
#define YIELD_SKIPS_LEAST 16
#define YIELD_SKIPS_MOST 1024
#define SPIN_PAYS_FACTOR 3 /* spin when waits of late took less than this times the spin */

static uint32_t mask_words(const struct tri_view *v)
{
    return (v->nworkers + 63) / 64;
}

static uint32_t mask_count(const _Atomic uint64_t *m, uint32_t words)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < words; i++)
        n += (uint32_t)__builtin_popcountll(tri_load_rlx(&m[i]));
    return n;
}

static bool mask_any(_Atomic uint64_t *m, uint32_t words)
{
    for (uint32_t i = 0; i < words; i++)
        if (tri_load_sc(&m[i]))
            return true;
    return false;
}

/* ------------------------------------------------------------------ workers */

/* How many workers, the first ones, may take tasks. */
static uint32_t unparked(const struct tri_view *v)
{
    uint32_t n = tri_load_sc(&v->ctl->parked);

    return n < v->nworkers ? v->nworkers - n : 1; /* whatever the word says, one works */
}

bool tri_worker_parked(const struct tri_worker *w)
{
    return w->id >= unparked(&w->view);
}

bool tri_wake_worker(const struct tri_view *v)
{
    uint32_t words = mask_words(v), awake = unparked(v);

    if (mask_any(v->ctl->spinners, words))
        return false;
    for (uint32_t i = 0; i < words; i++) {
        uint64_t m;

        while ((m = tri_load_sc(&v->ctl->sleepers[i])) != 0) {
            uint64_t bit = m & -m; /* the lowest: few workers stay warm when few are needed */
            uint32_t w = i * 64 + (uint32_t)__builtin_ctzll(m);

            if (w >= awake)
                return false;
            if (!(tri_and_sc(&v->ctl->sleepers[i], ~bit) & bit))
                continue;
            CP(wake_taken);
            tri_store_rel(&v->worker[w].bell, 1);
            tri_futex_wake(&v->worker[w].bell, 1);
            return true;
        }
    }
    return false;
}

/* After an append: is a worker awake that cannot be busy with another task?  p->lock held. */
bool tri_worker_free(const struct tri_pool *p)
{
    const struct tri_ctl *c = p->view.ctl;
    uint32_t awake = 0;

    for (uint32_t i = 0; i < mask_words(&p->view); i++)
        awake += (uint32_t)__builtin_popcountll(tri_load_rlx(&c->ready[i]) &
                                                ~tri_load_sc(&c->sleepers[i]));
    return awake >= p->outstanding; /* this task is one of them */
}

void tri_wake_stranded(const struct tri_view *v)
{
    for (uint32_t w = 0; w < v->nworkers; w++)
        if (!(tri_load_sc(&v->ctl->sleepers[w / 64]) & 1ull << (w & 63))) {
            tri_store_rel(&v->worker[w].bell, 1);
            tri_futex_wake(&v->worker[w].bell, 1);
        }
}

static void average(int64_t *avg, int64_t sample)
{
    if (sample > 400000)
        sample = 400000; /* one long wait must not forbid spinning for ever after */
    *avg += (sample - *avg) / 4;
}

/* Spin until there may be work.  At most one worker in four CPUs' worth spins at a time. */
static bool worker_spins(struct tri_worker *w, int64_t *took)
{
    const struct tri_view *v = &w->view;
    struct tri_ctl *c = v->ctl;
    uint32_t words = mask_words(v), most = c->cpus / 4 ? c->cpus / 4 : 1;
    uint64_t bit = 1ull << (w->id & 63);
    int64_t start = 0, now = 0;
    bool found = false;

    *took = 0;
    if (mask_count(c->spinners, words) >= most || tri_load_rlx(&c->owner_cpu) == sched_getcpu())
        return false;
    tri_or_sc(&c->spinners[w->id / 64], bit);
    CP(spin_declared);
    for (uint32_t i = 1;; i++) {
        found = tri_queue_ready(v) || tri_load_rlx(&c->closing);
        if (found || tri_worker_parked(w))
            break;
        tri_pause();
        /* The clock is read only when the search is not a short one: it costs 20 ns a look. */
        if ((i & 31) == 0) {
            now = tri_now_ns();
            if (!start)
                start = now;
            if (now - start >= c->spin_ns)
                break;
        }
    }
    *took = now - start;
    tri_and_sc(&c->spinners[w->id / 64], ~bit);
    CP(spin_undeclared);
    return found;
}

void tri_worker_rest(struct tri_worker *w)
{
    const struct tri_view *v = &w->view;
    struct tri_ctl *c = v->ctl;
    struct tri_worker_line *line = &v->worker[w->id];
    int64_t start, spun = 0;
    uint64_t bit = 1ull << (w->id & 63);

    if (w->idle_avg_ns < SPIN_PAYS_FACTOR * c->spin_ns && !tri_worker_parked(w) &&
        worker_spins(w, &spun)) {
        average(&w->idle_avg_ns, spun);
        return;
    }
    /* Before anybody counts on us.  It costs a tenth of what waking up does. */
    if (w->output_fd >= 0 && !tri_worker_output_ok(w))
        return;
    start = tri_now_ns() - spun;
    tri_or_sc(&c->sleepers[w->id / 64], bit); /* W1 */
    CP(sleep_declared);
    if (tri_worker_parked(w) && tri_queue_ready(v))
        tri_wake_worker(v);
    while ((!tri_queue_ready(v) || tri_worker_parked(w)) && /* W2 */
           !tri_load_sc(&c->closing) && tri_load_acq(&line->bell) == 0)
        if (tri_futex_wait(&line->bell, 0, -1) == -EINTR) /* W3 */
            break; /* a handler of the program's: an interpreter has more to do than what it did */
    tri_and_sc(&c->sleepers[w->id / 64], ~bit); /* W4 */
    CP(sleep_undeclared);
    tri_store_rlx(&line->bell, 0);
    average(&w->idle_avg_ns, tri_now_ns() - start);
}

static void park(struct tri_pool *p)
{
    uint32_t workers = p->view.nworkers, cpus = p->view.ctl->cpus, all = workers + p->helpers;
    uint32_t many = all > cpus ? all - cpus : 0;

    tri_store_sc(&p->view.ctl->parked, many < p->helpers ? many : p->helpers);
    if (tri_queue_ready(&p->view))
        tri_wake_worker(&p->view);
}

void tri_helper_begin(struct tri_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->helpers++;
    park(p);
    pthread_mutex_unlock(&p->lock);
}

void tri_helper_end(struct tri_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->helpers--;
    park(p);
    pthread_mutex_unlock(&p->lock);
}

/*
 * A stream of tasks of a microsecond each, while the owner runs too: one worker more than there
 * are CPUs for it makes the stream slower, not faster.  It takes the queue's cache lines from one
 * that works, and its CPU from the owner who feeds them.  Such a worker naps.  It stays out of the
 * mask of sleepers, like one whom the kernel has not let run for a while, so nothing changes for
 * those who wake; what it costs a task that nobody else can take is NAP_NS at most.
 */
void tri_worker_make_room(struct tri_worker *w)
{
    const struct tri_ctl *c = w->view.ctl;
    uint32_t others = 0, enough = c->cpus > 2 ? c->cpus - 1 : 1;
    int64_t now = tri_now_ns(), took = now - w->looked_ns;

    w->looked_ns = now;
    if (took > TRI_ROOM_EVERY * TINY_NS || tri_load_rlx(&c->want) != TRI_WANT_NONE)
        return;
    for (uint32_t i = 0; i <= w->id / 64; i++) {
        uint64_t m = tri_load_rlx(&c->ready[i]) & ~tri_load_rlx(&c->sleepers[i]);

        if (i == w->id / 64)
            m &= (1ull << (w->id & 63)) - 1;
        others += (uint32_t)__builtin_popcountll(m);
    }
    if (others >= enough)
        tri_futex_wait(&w->view.worker[w->id].bell, 0, NAP_NS);
}

/*
 * Of a map's chunks the owner has more of ours to read than the last one: it is behind, perhaps
 * because it waits for this very CPU, and then all would wait for it in the end.  It goes first.
 */
void tri_worker_give_way(struct tri_worker *w, int64_t took_ns)
{
    const struct tri_worker_line *line = &w->view.worker[w->id];

    if (took_ns > GIVE_WAY_NS && w->done_tail - tri_load_rlx(&line->taken) > 1)
        sched_yield();
}

/* ------------------------------------------------------------------ the owner */

void tri_wake_owner(const struct tri_view *v)
{
    tri_add_sc(&v->ctl->bell, 1);
    tri_futex_wake(&v->ctl->bell, INT_MAX);
}

void tri_owner_here(struct tri_pool *p)
{
    int32_t cpu = sched_getcpu();

    if (tri_load_rlx(&p->view.ctl->owner_cpu) != cpu)
        tri_store_rlx(&p->view.ctl->owner_cpu, cpu);
}

uint32_t tri_wait_key(struct tri_pool *p)
{
    return tri_load_acq(&p->view.ctl->bell);
}

/* The count moves even when nobody sleeps: a thread between its look and its sleep must see it. */
void tri_wait_nudge(struct tri_pool *p)
{
    tri_add_sc(&p->view.ctl->bell, 1);
    if (tri_load_sc(&p->waiters) > 0)
        tri_futex_wake(&p->view.ctl->bell, INT_MAX);
}

static bool slot_moved(const struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    uint64_t w = tri_load_sc(&p->view.slot[slot].state);

    return tri_word_state(w) == TRI_S_DONE || tri_word_ticket(w) != ticket;
}

static bool any_ended(const struct tri_pool *p)
{
    for (uint32_t w = 0; w < p->view.nworkers; w++)
        if (tri_load_sc(&p->view.worker[w].done_tail) != tri_load_rlx(&p->member[w].ring_head))
            return true;
    return tri_load_rlx(&p->nlost) > 0;
}

static bool news(const struct tri_pool *p, uint32_t key, uint32_t slot, uint64_t ticket)
{
    if (slot == TRI_ANY_SLOT ? any_ended(p) : slot_moved(p, slot, ticket))
        return true;
    return tri_load_sc(&p->view.ctl->bell) != key ||
           tri_load_acq(&p->view.ctl->deaths) != tri_load_rlx(&p->deaths_seen);
}

static void wait_took(struct tri_pool *p, int64_t ns)
{
    int64_t avg = tri_load_rlx(&p->wait_avg_ns);

    average(&avg, ns);
    tri_store_rlx(&p->wait_avg_ns, avg);
}

/* Is a CPU left for a spinning owner? */
static bool cpu_free(const struct tri_pool *p)
{
    uint32_t words = mask_words(&p->view);
    uint32_t awake = p->view.nworkers - mask_count(p->view.ctl->sleepers, words);

    return awake < p->view.ctl->cpus;
}

/* The slot to sleep for: ours, or one further down the queue when much is out. */
static uint32_t lazy_slot(struct tri_pool *p, uint32_t slot)
{
    uint32_t lane = p->priv[slot].lane, ahead = p->outstanding / 8, far;
    uint64_t word;
    uint64_t head = tri_load_acq(&p->view.ctl->lane[lane].head), pos;

    if (p->outstanding <= LAZY_ABOVE || p->tail[lane] <= head)
        return slot;
    pos = head + (ahead > 512 ? 512 : ahead);
    if (pos >= p->tail[lane])
        pos = p->tail[lane] - 1;
    far = tri_cell_slot(tri_load_acq(tri_lane_cell(&p->view, lane, pos)));
    /* A cell is a hint.  Only a task still waiting there will end later than now. */
    if (far >= p->view.nslots)
        return slot;
    word = tri_word(TRI_S_QUEUED, 0, 0, p->priv[far].ticket);
    return tri_load_acq(&p->view.slot[far].state) == word ? far : slot;
}

/* The end of the socket is all that a warden's death leaves: look there now and then. */
static void look_at_warden(struct tri_pool *p)
{
    int64_t now = tri_now_ns();

    pthread_mutex_lock(&p->lock);
    if (p->ctl_fd >= 0 && now - p->looked_ns >= WARDEN_LOOK_NS) {
        p->looked_ns = now;
        tri_control_poll(p);
        tri_lanes_mend(p);
        if (tri_queue_ready(&p->view))
            tri_wake_worker(&p->view); /* whoever was woken for it may have been stopped */
    }
    pthread_mutex_unlock(&p->lock);
}

/* After a wake-up: let the worker come.  False: the wait had better be a sleep. */
static bool give_turn(struct tri_pool *p)
{
    uint32_t skips = tri_load_rlx(&p->yield_skips), next = tri_load_rlx(&p->yield_next);
    int64_t start;

    tri_store_rlx(&p->woke, 0);
    if (skips > 0) {
        tri_store_rlx(&p->yield_skips, skips - 1);
        return false;
    }
    start = tri_now_ns();
    sched_yield();
    if (tri_now_ns() - start <= YIELD_LONG_NS) {
        next = 0;
    } else {
        next = next ? next * 2 : YIELD_SKIPS_LEAST;
        next = next < YIELD_SKIPS_MOST ? next : YIELD_SKIPS_MOST;
        tri_store_rlx(&p->yield_skips, next);
    }
    tri_store_rlx(&p->yield_next, next);
    return true;
}

int tri_wait(struct tri_pool *p, uint32_t key, uint32_t slot, uint64_t ticket, int64_t timeout_ns)
{
    struct tri_ctl *c = p->view.ctl;
    int64_t start = timeout_ns > 0 ? tri_now_ns() : 0, spin = c->spin_ns, left, nap, now = start;
    uint64_t target_ticket = ticket;
    uint32_t want, target = slot;
    int err = 0;
    bool lazy = false;

    if (tri_pool_is_fork(p))
        return TRI_EFORKED;
    if (news(p, key, slot, ticket))
        return 0;
    if (timeout_ns == 0) {
        look_at_warden(p);
        return TRI_ETIMEDOUT;
    }
    /* Another language's tasks are for its own extension to run: it knows what they need. */
    if (timeout_ns < 0 && slot != TRI_ANY_SLOT && !p->hooks.run && tri_worker_help(p, slot, ticket))
        return 0;
    if (spin > 0 && tri_load_rlx(&p->wait_avg_ns) < SPIN_PAYS_FACTOR * spin && cpu_free(p) &&
        (!tri_load_rlx(&p->woke) || give_turn(p))) {
        if (timeout_ns > 0 && timeout_ns < spin)
            spin = timeout_ns;
        tri_owner_here(p);
        for (uint32_t i = 1;; i++) {
            /* Not too often: each look takes the line from the worker that is about to write it. */
            tri_pause();
            tri_pause();
            if (news(p, key, slot, ticket)) {
                wait_took(p, now - start);
                tri_add_rlx(&p->spins_hit, 1);
                return 0;
            }
            if ((i & 31) == 0) {
                now = tri_now_ns();
                if (!start)
                    start = now;
                if (now - start >= spin)
                    break;
            }
        }
        tri_add_rlx(&p->spins_missed, 1);
    }
    if (!start)
        start = tri_now_ns();

    /* want belongs to all who wait: it and their number change together. */
    pthread_mutex_lock(&p->lock);
    if (tri_add_sc(&p->waiters, 1) == 0 && slot != TRI_ANY_SLOT) {
        target = lazy_slot(p, slot);
        target_ticket = p->priv[target].ticket;
        lazy = target != slot;
        want = target + 1;
    } else {
        want = TRI_WANT_ANY;
    }
    tri_store_sc(&c->want, want); /* O3 */
    pthread_mutex_unlock(&p->lock);
    tri_add_rlx(&p->sleeps, 1);
    if (!news(p, key, slot, ticket) && /* O4 */
        !(lazy && news(p, key, target, target_ticket))) {
        nap = lazy ? LAZY_NS : WARDEN_LOOK_NS;
        if (timeout_ns >= 0) {
            left = timeout_ns - (tri_now_ns() - start);
            nap = left < nap ? left : nap;
        }
        if (nap <= 0)
            err = TRI_ETIMEDOUT;
        else
            err = tri_futex_wait(&c->bell, key, nap); /* O5 */
        /* A program's timer may end each of these sleeps early. */
        if (err == -ETIMEDOUT || err == -EINTR)
            look_at_warden(p);
        if (err != -EINTR && err != TRI_ETIMEDOUT)
            err = 0;
    }
    pthread_mutex_lock(&p->lock);
    tri_store_sc(&c->want, tri_add_sc(&p->waiters, -1) == 1 ? TRI_WANT_NONE : TRI_WANT_ANY);
    pthread_mutex_unlock(&p->lock);
    wait_took(p, tri_now_ns() - start);
    return err;
}
