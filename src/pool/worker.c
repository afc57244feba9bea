/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * worker.c - claim, run, publish.
 *
 * The same loop runs in a process and in a thread.  It holds at most one task; the order of its
 * stores is what makes a death at any instruction repairable (see queue.h for the claim):
 *
 *   started_ns, STARTED   then user code may run: from here on the task is never run twice
 *   result, then DONE     a result is whole or absent
 *   ring entry, tail      a hint; a DONE without it is found by repair
 *   want -> wake          an owner not woken is woken by the news of the death
 */
#include "pool/worker.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/futex.h"
#include "pool/pool.h"
#include "shm/queue.h"

int tri_worker_attach(struct tri_worker *w, const struct tri_segment *seg,
                      const struct tri_hooks *hooks, uint32_t id, uint32_t gen, int output_fd,
                      bool process)
{
    struct tri_worker_line *line;
    struct stat st;
    int err;

    memset(w, 0, sizeof *w);
    err = tri_view_init(&w->view, seg->base, seg->bytes);
    if (err)
        return err;
    if (id >= w->view.nworkers)
        return TRI_ECORRUPT;
    w->seg = *seg;
    w->hooks = hooks;
    w->id = id;
    w->gen = gen & TRI_GEN_MASK;
    w->process = process;
    w->forks = tri_fork_count();
    w->output_fd = output_fd;
    pthread_mutex_init(&w->output_lock, NULL);
    if (output_fd >= 0 && fstat(output_fd, &st) == 0) {
        w->output_dev = st.st_dev;
        w->output_ino = st.st_ino;
    }
    line = &w->view.worker[id];
    w->done_tail = tri_load_acq(&line->done_tail);
    tri_store_rlx(&line->bell, 0);
    tri_store_rlx(&line->arena_live, 0);
    tri_store_rlx(&line->gen, w->gen);
    tri_store_rlx(&line->pid, (int32_t)getpid());
    if (tri_load_rlx(&line->last_pid) == (int32_t)getpid())
        tri_store_rlx(&line->last_pid, 0); /* another's, of the same number */
    tri_store_rel(&line->status, TRI_W_STARTING);
    return 0;
}

/* ------------------------------------------------------------------ arena */

static bool heap_ready(struct tri_worker *w)
{
    uint64_t mine = tri_word(TRI_H_OWNED, w->id, w->gen, 0);

    if (w->has_heap)
        return true;
    for (uint32_t i = 1; i < w->view.nheaps; i++) {
        uint64_t none = TRI_H_FREE;

        /* The CAS names us: should we die before the first block, repair finds the heap. */
        if (tri_load_rlx(&w->view.heap[i].state) == none &&
            tri_cas_sc(&w->view.heap[i].state, &none, mine)) {
            CP(heap_claimed);
            w->has_heap = tri_heap_init(&w->heap, &w->view, &w->seg, i) == 0;
            if (!w->has_heap)
                tri_store_rel(&w->view.heap[i].state, TRI_H_FREE);
            return w->has_heap;
        }
    }
    return false;
}

static void heap_report(struct tri_worker *w)
{
    struct tri_worker_line *line = &w->view.worker[w->id];

    tri_store_rlx(&line->arena_live, w->heap.live);
    tri_store_rlx(&line->arena_peak, w->heap.peak);
}

uint64_t tri_worker_block_new(struct tri_worker *w, uint64_t bytes)
{
    uint64_t off = heap_ready(w) ? tri_heap_alloc(&w->heap, bytes) : 0;

    CP(result_block);
    if (w->has_heap)
        heap_report(w); /* who is refused a block has taken home what others freed, too */
    return off;
}

uint8_t *tri_worker_result_room(struct tri_worker *w, uint64_t bytes, uint64_t *off)
{
    *off = 0;
    if (w->spill_fd) { /* of a result that this one takes the place of */
        tri_spill_drop(w);
        w->slot->res_flags &= ~(uint32_t)TRI_R_SPILLED;
    }
    if (bytes <= TRI_RES_INLINE)
        return w->slot->res;
    *off = tri_worker_block_new(w, bytes);
    return *off ? w->view.base + *off : tri_spill_room(w, bytes);
}

void tri_worker_block_free(struct tri_worker *w, uint64_t off)
{
    if (w->has_heap) {
        tri_heap_free(&w->heap, off);
        heap_report(w);
    }
}

/* ------------------------------------------------------------------ words to the owner */

void tri_worker_note(struct tri_worker *w, const void *text, size_t bytes)
{
    struct tri_worker_line *line = &w->view.worker[w->id];

    if (bytes > TRI_WORKER_NOTE)
        bytes = TRI_WORKER_NOTE;
    memcpy(line->note, text, bytes);
    tri_store_rel(&line->note_len, (uint32_t)bytes);
}

static size_t read_more(int fd, char *to, size_t got, size_t room)
{
    ssize_t n;

    while (got < room && (n = read(fd, to + got, room - got)) > 0)
        got += (size_t)n;
    return got;
}

/* Of what is too much for `to`: its beginning, then `rest` bytes from `at` on, and what follows. */
static size_t keep_part(int fd, char *to, size_t room, const char *at, size_t rest)
{
    static const char dots[] = "  ...\n\n";
    size_t cut = room / 2;

    while (cut > 0 && to[cut - 1] != '\n')
        cut--;
    memmove(to + cut + sizeof dots - 1, at, rest);
    memcpy(to + cut, dots, sizeof dots - 1);
    return read_more(fd, to, cut + sizeof dots - 1 + rest, room);
}

/* Read what there is; where that is too much, its beginning and what begins with `first`. */
static size_t read_last(int fd, char *to, size_t room, const char *first)
{
    size_t got = read_more(fd, to, 0, room), len = strlen(first), kept = 0;
    char buf[512], *at = memmem(to, got, first, len);
    ssize_t n;

    if (got < room || (at && at < to + room / 2))
        return got;
    if (at)
        return keep_part(fd, to, room, at, (size_t)(to + got - at));
    memcpy(buf, to + got - len, len); /* it may begin there */
    kept = len;
    while ((n = read(fd, buf + kept, sizeof buf - kept)) > 0) {
        size_t have = kept + (size_t)n;

        at = memmem(buf, have, first, len);
        if (at)
            return keep_part(fd, to, room, at, have - (size_t)(at - buf));
        kept = have < len ? have : len;
        memmove(buf, buf + have - kept, kept);
    }
    return got;
}

/* Async-signal-safe. */
void tri_worker_last(struct tri_worker *w, int fd, uint32_t skip, const char *first)
{
    struct tri_worker_line *line = &w->view.worker[w->id];
    size_t got;

    tri_store_rel(&line->last_pid, 0);
    got = read_last(fd, (char *)line->last, TRI_WORKER_LAST, first);
    line->last_skip = skip;
    tri_store_rel(&line->last_len, (uint32_t)got);
    tri_store_rel(&line->last_pid, getpid());
}

/* ------------------------------------------------------------------ running */

/*
 * A time limit that the kernel keeps: SIGKILL by a timer, whatever the task does, stopped or not.
 * Where the timer is refused (ulimit -i, seccomp) SIGALRM takes its place, which ends the process
 * unless the task blocks or stops it.
 */
enum { NO_LIMIT, BY_TIMER, BY_ALARM };

static void deadline_arm(struct tri_worker *w, int64_t ns)
{
    struct timespec at = {ns / 1000000000, ns % 1000000000};

    if (w->limited == BY_TIMER) {
        struct itimerspec t = {.it_value = at};

        timer_settime(w->timer, 0, &t, NULL);
    } else if (w->limited == BY_ALARM) {
        struct itimerval t = {.it_value = {at.tv_sec, at.tv_nsec / 1000 + (ns && ns < 1000)}};

        setitimer(ITIMER_REAL, &t, NULL);
    }
}

void tri_deadline_set(struct tri_worker *w, int64_t ns)
{
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};

    w->limited = BY_TIMER;
    if (timer_create(CLOCK_MONOTONIC, &ev, &w->timer) != 0) {
        sigset_t alrm;

        w->limited = BY_ALARM;
        sigemptyset(&alrm);
        sigaddset(&alrm, SIGALRM);
        signal(SIGALRM, SIG_DFL);
        sigprocmask(SIG_UNBLOCK, &alrm, NULL);
    }
    deadline_arm(w, ns);
}

void tri_deadline_clear(struct tri_worker *w)
{
    if (w->limited == BY_TIMER)
        timer_delete(w->timer);
    else
        deadline_arm(w, 0);
    w->limited = NO_LIMIT;
}

void tri_worker_item(struct tri_worker *w)
{
    if (!w->limited)
        return;
    w->slot->started_ns = tri_now_ns();
    deadline_arm(w, w->slot->timeout_ns);
}

/* A worker leaves by _exit or is killed: what C tasks printed would stay in the buffer for ever. */
static void flush_stdout(void)
{
    if (__fpending(stdout) && ftrylockfile(stdout) == 0) {
        fflush(stdout);
        funlockfile(stdout);
    }
}

/* A task forked and its child returned, too: that is no worker, and there its task ends. */
static void leave_if_forked(const struct tri_worker *w)
{
    if (tri_fork_count() == w->forks)
        return;
    if (w->process)
        flush_stdout();
    _exit(0);
}

static void run_cmap(struct tri_worker *w, struct tri_slot *s)
{
    struct tri_cmap m;
    tri_fn fn = (tri_fn)(uintptr_t)s->fn_id;
    const uint8_t *in;
    uint8_t *out;
    int code = 0;

    memcpy(&m, s->arg, sizeof m);
    in = m.in_off ? w->view.base + m.in_off : (const uint8_t *)(uintptr_t)m.in;
    out = m.out_off ? w->view.base + m.out_off : (uint8_t *)(uintptr_t)m.out;
    /* Of a map that has failed meanwhile no item is left: tri_task_stop. */
    for (uint64_t i = 0; i < __atomic_load_n(&s->items, __ATOMIC_RELAXED) && code == 0; i++)
        code = fn(in + i * m.in_bytes, out + i * m.out_bytes);
    leave_if_forked(w);
    s->res_off = 0;
    s->res_len = 0;
    s->code = code;
}

static void run_c(struct tri_worker *w, struct tri_slot *s)
{
    tri_fn fn = (tri_fn)(uintptr_t)s->fn_id;
    const void *in = s->arg_off ? w->view.base + s->arg_off : s->arg;
    uint64_t out_bytes = s->fn_off; /* a C task has no pickled function: the field says this */
    uint64_t off;
    uint8_t *out;

    s->res_flags = 0;
    out = tri_worker_result_room(w, out_bytes, &off);
    if (!out) {
        s->res_off = s->res_len = 0;
        s->res_flags = TRI_R_NOMEM;
        s->code = 0;
        return;
    }
    s->code = fn(in, out);
    leave_if_forked(w);
    s->res_off = off;
    s->res_len = out_bytes;
}

static void publish(struct tri_worker *w, uint32_t idx)
{
    const struct tri_view *v = &w->view;
    struct tri_worker_line *line = &v->worker[w->id];
    uint64_t ticket = tri_word_ticket(w->word), cap = 2 * (uint64_t)v->nslots;
    uint32_t want;

    CP(result_written);
    tri_store_sc(&v->slot[idx].state, tri_word(TRI_S_DONE, w->id, w->gen, ticket)); /* D1 */
    CP(done_stored);
    tri_store_rlx(&v->rings[w->id * cap + (w->done_tail & (cap - 1))],
                  ticket << TRI_CELL_SLOT_BITS | idx);
    CP(ring_written);
    tri_store_sc(&line->done_tail, ++w->done_tail);
    CP(ring_published);
    /* Again when it changed under us: another thread of the owner may have made it ANY. */
    want = tri_load_sc(&v->ctl->want); /* D2 */
    while (want == TRI_WANT_ANY || want == idx + 1)
        if (tri_cas_sc(&v->ctl->want, &want, TRI_WANT_NONE)) {
            CP(want_taken);
            tri_wake_owner(v);
            break;
        }
}

static void run(struct tri_worker *w, uint32_t idx)
{
    struct tri_slot *s = &w->view.slot[idx];
    bool timed = s->flags & TRI_F_TIMED, limited = s->timeout_ns > 0 && w->process;
    int64_t start = 0, took = 0;

    if (timed || s->timeout_ns > 0)
        s->started_ns = start = tri_now_ns();
    CP(start_before);
    w->slot = s;
    tri_store_rel(&s->state, tri_word(TRI_S_STARTED, w->id, w->gen, tri_word_ticket(w->word)));
    CP(start_after);
    if (limited)
        tri_deadline_set(w, s->timeout_ns);
    if (s->flags & TRI_F_PY) {
        w->hooks->run(w, s);
    } else if (s->flags & TRI_F_CMAP) {
        s->res_flags = 0;
        run_cmap(w, s);
    } else {
        run_c(w, s);
    }
    if (w->process && !w->hooks->run)
        flush_stdout();
    if (limited)
        tri_deadline_clear(w);
    if (timed)
        s->exec_ns = took = tri_now_ns() - start;
    if (w->spill_fd && s->res_flags & TRI_R_SPILLED)
        tri_spill_send(w);
    else if (w->spill_fd)
        tri_spill_drop(w);
    w->slot = NULL;
    publish(w, idx);
    if (w->process)
        tri_worker_give_way(w, took);
}

/* ------------------------------------------------------------------ tasks that wait for tasks */

/* The worker that the caller is.  Every thread is known before the pool is anybody's. */
static struct tri_worker *caller_of(const struct tri_pool *p)
{
    pthread_t me = pthread_self();

    if (!p->thread)
        return NULL;
    for (uint32_t i = 0; i < p->view.nworkers; i++)
        if (pthread_equal(p->thread[i], me))
            return p->hooks.run && !p->tworker[i].local ? NULL : &p->tworker[i]; /* it is leaving */
    return NULL;
}

bool tri_worker_inside(const struct tri_pool *p)
{
    return caller_of(p) != NULL;
}

/* One that still starts will be free.  One that leaves, with the pool, takes nothing any more. */
static bool other_free(const struct tri_pool *p)
{
    const struct tri_worker *me = caller_of(p);

    for (uint32_t i = 0; me && i < p->view.nworkers; i++) {
        const struct tri_worker *w = &p->tworker[i];

        if (w != me && !tri_load_rlx(&w->busy) && !tri_worker_parked(w))
            return !tri_load_acq(&p->view.ctl->closing);
    }
    return false;
}

bool tri_worker_spared(const struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    uint64_t queued = tri_word(TRI_S_QUEUED, 0, 0, ticket);

    return tri_load_acq(&p->view.slot[slot].state) == queued && other_free(p);
}

/* Run a claimed task in the middle of another one. */
static void run_inside(struct tri_worker *w, uint32_t slot, uint64_t mine)
{
    struct tri_slot *outer = w->slot;
    uint64_t outer_word = w->word;

    w->word = mine;
    run(w, slot);
    w->slot = outer;
    w->word = outer_word;
    tri_store_rlx(&w->view.worker[w->id].tasks, ++w->tasks);
}

/*
 * A task of a thread pool waits for another task of the same pool.  Would each worker sleep in such
 * a task, nobody were left to run what they wait for; so the one that waits runs it, if nobody has
 * claimed it.  Only that task, never any other: so the stack is as deep as tasks wait for tasks.
 * The state word is the claim, as in tri_queue_claim; the cell is skipped by whoever comes to it.
 */
bool tri_worker_help(struct tri_pool *p, uint32_t slot, uint64_t ticket)
{
    struct tri_worker *w = caller_of(p);
    uint64_t queued = tri_word(TRI_S_QUEUED, 0, 0, ticket), mine;

    if (!w || slot >= w->view.nslots)
        return false;
    mine = tri_word(TRI_S_CLAIMED, w->id, w->gen, ticket);
    if (!tri_cas_sc(&w->view.slot[slot].state, &queued, mine))
        return false;
    run_inside(w, slot, mine);
    return true;
}

bool tri_worker_help_any(struct tri_pool *p)
{
    struct tri_worker *w = caller_of(p);
    uint64_t mine;
    uint32_t slot;

    if (!w || !tri_queue_claim(&w->view, w->id, w->gen, &slot, &mine))
        return false;
    run_inside(w, slot, mine);
    return true;
}

void tri_worker_serve(struct tri_worker *w)
{
    const struct tri_view *v = &w->view;
    struct tri_worker_line *line = &v->worker[w->id];
    uint32_t idx;

    w->served = true;
    tri_store_rel(&line->status, TRI_W_READY);
    tri_or_sc(&v->ctl->ready[w->id / 64], 1ull << (w->id & 63));
    for (;;) {
        bool rested = false;

        while (tri_worker_parked(w) || !tri_queue_claim(v, w->id, w->gen, &idx, &w->word)) {
            if (tri_load_acq(&v->ctl->closing)) {
                /* What was appended before closing was set can be seen only now. */
                if (tri_queue_claim(v, w->id, w->gen, &idx, &w->word))
                    break;
                goto leave;
            }
            if (w->has_heap && tri_load_rlx(&v->heap[w->heap.id].freed)) {
                tri_heap_collect(&w->heap);
                heap_report(w);
            }
            if (w->hooks->idle)
                w->hooks->idle(w);
            if (w->hooks->rest)
                w->hooks->rest(w);
            else
                tri_worker_rest(w);
            rested = true;
            if (w->retire)
                goto retire;
        }
        /* We may be the only one who was woken: pass it on while there is more. */
        if (rested && tri_queue_ready(v))
            tri_wake_worker(v);
        tri_store_rlx(&w->busy, true);
        run(w, idx);
        tri_store_rlx(&w->busy, false);
        tri_store_rlx(&line->tasks, ++w->tasks);
        if (w->process && w->tasks % TRI_ROOM_EVERY == 0) {
            tri_worker_make_room(w);
            tri_worker_output_ok(w);
        }
        if (w->process && (w->retire || (v->ctl->max_tasks && w->tasks >= v->ctl->max_tasks)))
            goto retire;
    }
leave:
    if (w->process)
        tri_store_rel(&line->status, TRI_W_LEFT);
    return;
retire:
    tri_and_sc(&v->ctl->ready[w->id / 64], ~(1ull << (w->id & 63)));
    /* Before: what the program does at the end of a worker changes nothing any more. */
    tri_store_rel(&line->status, TRI_W_RETIRED);
    w->retired = true;
}

void tri_worker_loop(struct tri_worker *w)
{
    if (w->hooks->begin && w->hooks->begin(w) != 0) {
        if (w->process)
            _exit(TRI_EXIT_BEGIN);
        return;
    }
    if (!w->served)
        tri_worker_serve(w);
    if (w->hooks->end)
        w->hooks->end(w);
    if (w->retired)
        _exit(TRI_EXIT_RETIRED);
}
