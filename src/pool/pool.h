/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool.h - the runtime's inside, for src/pool and the Python extension.
 *
 * Who does what:
 *   owner    makes the shared memory, appends tasks (dispatch.c), sleeps for results (sleep.c),
 *            takes them, repairs what a death left (repair.c), talks to the warden (control.c)
 *   warden   forks, reaps, kills and replaces workers (warden.c); never reads a task
 *   worker   claims, runs, publishes (worker.c)
 *
 * The functions here are thread-safe in the owner: p->lock guards everything private to it.  It
 * is never held while a task, a callback or a sleep runs.
 */
#ifndef TRI_POOL_POOL_H
#define TRI_POOL_POOL_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "shm/heap.h"
#include "shm/layout.h"
#include "shm/segment.h"
#include "trireme.h"

struct tri_worker;

/*
 * What a language adds.  All may be NULL except where said.  ctx is the owner's; workers of a
 * forked warden see a copy of it.
 */
struct tri_hooks {
    void *ctx;
    /* in the owner round the fork of a warden, in a shared warden round that of each worker */
    void (*before_fork)(void *ctx);
    void (*after_fork_parent)(void *ctx);
    /* in each worker, which is the first to run it after the owner's or warden's before_fork */
    void (*after_fork_child)(void *ctx);
    /* in a worker, before its first task; -1: failed, it has left a note (tri_worker_note).  It
     * may call tri_worker_serve(w) itself, to be around the tasks, and then returns 0 */
    int (*begin)(struct tri_worker *w);
    /* run a TRI_F_PY task: read slot->arg..., fill slot->res...  The state is STARTED */
    void (*run)(struct tri_worker *w, struct tri_slot *slot);
    /* in a worker that found nothing to do, before it sleeps */
    void (*idle)(struct tri_worker *w);
    /* instead of tri_worker_rest(w), which it must call: an interpreter lets others run then */
    void (*rest)(struct tri_worker *w);
    /* in a worker that leaves by itself; a process then calls _exit(0) */
    void (*end)(struct tri_worker *w);
    /* in a freshly forked child of the warden, instead of running the worker loop there: exec.
     * The descriptors are the segment's and the output socket's */
    void (*exec_worker)(void *ctx, int segment_fd, int output_fd, uint32_t worker, uint32_t gen);
    /* in a warden that serves many pools, once the first workers have been started: do a small
     * part of what may be done ahead; true: there is more */
    bool (*warden_idle)(void *ctx);
};

/* ------------------------------------------------------------------ worker side */

struct tri_worker {
    struct tri_view view;
    struct tri_segment seg;
    const struct tri_hooks *hooks;
    uint32_t id, gen;
    uint32_t forks; /* tri_fork_count() of this process */
    bool process;
    int output_fd; /* datagrams to the owner; -1: none */
    bool has_heap;
    _Atomic bool busy; /* with a task of the queue; other threads of the pool look at it */
    struct tri_heap heap;
    uint64_t done_tail;
    uint64_t tasks;
    int64_t looked_ns;     /* when it last had a look whether it is one too many */
    int64_t idle_avg_ns;   /* how long a search for work took of late: decides about spinning */
    struct tri_slot *slot; /* task in hand */
    uint64_t word;         /* its state word */
    int spill_fd;          /* a result outside the arena, see spill.c; 0: none */
    void *spill_base;
    uint64_t spill_bytes;
    uint64_t output_dev, output_ino; /* what output_fd was when we got it */
    pthread_mutex_t output_lock;     /* of the backlog: output.c */
    bool backlogged;                 /* the backlog has pages */
    bool retire;                     /* leave after this task: something of ours was damaged */
    bool served, retired;            /* it has run its tasks; and left to be replaced */
    int limited;                     /* how the time limit of the task in hand is kept; 0: none */
    timer_t timer;
    void *local; /* the hook's */
};

/* Run until told to leave.  In a process the caller then _exits. */
void tri_worker_loop(struct tri_worker *w);
/* The part of it between hooks.begin and hooks.end, once: the tasks. */
void tri_worker_serve(struct tri_worker *w);
int tri_worker_attach(struct tri_worker *w, const struct tri_segment *seg,
                      const struct tri_hooks *hooks, uint32_t id, uint32_t gen, int output_fd,
                      bool process);
/*
 * Where the result of the task in hand goes: inline when it fits, else a block of this worker's
 * heap.  NULL: the arena has no room for it.
 */
uint64_t tri_worker_block_new(struct tri_worker *w, uint64_t bytes);
uint8_t *tri_worker_result_room(struct tri_worker *w, uint64_t bytes, uint64_t *off);
void tri_worker_block_free(struct tri_worker *w, uint64_t off);
/* Is output_fd still the pool's socket?  A task may have closed it, and opened something else. */
bool tri_worker_output_ok(struct tri_worker *w);
/* The next item of a chunk begins: its time limit starts anew. */
void tri_worker_item(struct tri_worker *w);
/* A thread cannot be killed, but can be asked to leave its chunk between two items. */
static inline bool tri_worker_killed(const struct tri_worker *w)
{
    return tri_load_rlx(&w->view.ctl->closing) == TRI_CLOSING_NOW;
}
/* The process dies (SIGKILL by the kernel's timer) unless the limit is cleared in time. */
void tri_deadline_set(struct tri_worker *w, int64_t ns);
void tri_deadline_clear(struct tri_worker *w);
/* Is the caller one of the threads of this pool? */
bool tri_worker_inside(const struct tri_pool *p);
/* Is this task still in the queue, and another of the threads free to take it? */
bool tri_worker_spared(const struct tri_pool *p, uint32_t slot, uint64_t ticket);
/* Then run this task here, as hooks.run expects it, unless somebody has claimed it.  True: it is
 * done. */
bool tri_worker_help(struct tri_pool *p, uint32_t slot, uint64_t ticket);
/* The same with the first task of the queue: for who has no room for another one. */
bool tri_worker_help_any(struct tri_pool *p);
/* Leave a note of at most TRI_WORKER_NOTE bytes for the owner: why begin() failed. */
void tri_worker_note(struct tri_worker *w, const void *text, size_t bytes);
/* In a handler of the signal that this process dies of: leave what can be read from fd for the
 * owner; `first` begins the part that is to be there in any case.  For skip see the layout. */
void tri_worker_last(struct tri_worker *w, int fd, uint32_t skip, const char *first);
/* Send (stream, bytes) to the owner, in pieces; blocks while the backlog is full.  0; -EBADF: this
 * process has no socket any more; -EINTR: a signal came before anything was sent. */
int tri_worker_output(struct tri_worker *w, uint32_t stream, const void *bytes, size_t n);

/* exit codes by which a worker tells the warden what happened */
#define TRI_EXIT_RETIRED 76 /* max_tasks reached: replace me */
#define TRI_EXIT_BEGIN 77   /* begin() failed: do not */

/* ------------------------------------------------------------------ messages and warden */

enum tri_msg_type {
    TRI_M_OPEN = 1, /* owner: a pool, with descriptors {segment, output} or none when forked */
    TRI_M_KILL,     /* owner: signal a worker */
    TRI_M_CLOSE,    /* owner: workers leave by themselves; do not replace them */
    TRI_M_END,      /* owner: kill all workers */
    TRI_M_ADOPT,    /* owner to a shared warden: serve the socket that comes along */
    TRI_M_OPENED,   /* warden: all workers forked, or err */
    TRI_M_DIED,     /* warden: a worker ended unasked */
    TRI_M_REPLACED, /* warden: worker, gen, pid runs now */
    TRI_M_BROKEN,   /* warden: will not replace workers any more; err says why */
    TRI_M_STOPPED,  /* warden: a worker was stopped (SIGSTOP) or went on */
    TRI_M_ENDED,    /* warden: no worker is left */
    TRI_M_BORN,     /* who forked the warden: its pid, and a pidfd where there is one; or err */
};

struct tri_msg {
    uint32_t type;
    uint32_t worker, gen;
    int32_t pid;
    int32_t err;      /* OPENED, BROKEN, BORN; DIED: 1, it retired; STOPPED: 1, 0 it goes on */
    int32_t signal;   /* DIED: signal or 0; KILL: signal */
    int32_t exitcode; /* DIED: exit code when signal is 0 */
    uint32_t oom;     /* DIED: the kernel's OOM killer did it */
    uint32_t nworkers;
    uint32_t max_restarts; /* OPEN: in 10 s */
    uint32_t shared;       /* OPEN: anonymous segment (no descriptor) */
    uint32_t spawn;        /* OPEN: exec workers */
    uint32_t fragile;      /* OPEN: BROKEN when a worker dies unasked, instead of REPLACED */
};

/* Read one message of a socket.  1: got one; 0: none now; -1: the peer is gone.  fds receives up
 * to two descriptors, -1 where none came.  Anything that is not a whole message is dropped. */
int tri_msg_recv(int fd, struct tri_msg *m, int fds[2], int flags);
int tri_msg_send(int fd, const struct tri_msg *m, const int *fds, int nfds);
/* Is this message well-formed for the side that received it? */
bool tri_msg_ok(const void *bytes, size_t n, bool to_warden);

struct tri_warden_start {
    int main_fd;            /* shared warden: pools arrive here; -1 */
    int pool_fd;            /* forked warden: its one pool; -1 */
    int owner_pidfd;        /* -1: none; the sockets' end tells */
    struct tri_segment seg; /* forked warden: already mapped */
    int output_fd;
    sigset_t mask;              /* forked warden: the program's own signal mask */
    const struct tri_msg *open; /* forked warden: what TRI_M_OPEN would say; NULL: that will come */
    const struct tri_hooks *hooks;
    int64_t handlers_ns; /* longest time that after_fork_child may take; 0: any */
};

/* The warden's whole life; does not return. */
_Noreturn void tri_warden_run(const struct tri_warden_start *start);

/* warden_signals.c: a descriptor that is readable after deaths.  mask: what workers are to block;
 * NULL: what this process blocks.  The two in a worker: before it runs code of others, and when
 * that is over or it is about to exec. */
int tri_warden_signals(const sigset_t *mask);
void tri_worker_signals_begin(void);
void tri_worker_signals_end(bool execs);

/* orphans.c: kill this process's children but for its workers and other wardens.  True: there were
 * some, and what these leave behind will come to us in turn. */
bool tri_orphans_kill(bool (*is_worker)(const void *ctx, pid_t pid), const void *ctx);

/* pass_on.c: this process ends, and a child goes on in its place, with its memory and on its stack.
 * It has one thread, blocks all signals, and the child never returns to what called the caller.
 * 0: we are the child.  Negative: nothing has happened. */
int tri_pass_on(void);
void tri_pass_on_prepare(void); /* before the fork of the process that is to do so */

/* ------------------------------------------------------------------ owner side */

struct tri_loss {
    int32_t pid, signal, exitcode;
    uint32_t oom, worker;
};

#define TRI_PAST_MAX (TRI_RES_INLINE / sizeof(struct tri_loss))

/* A task that has ended, taken out of its slot. */
struct tri_done {
    void *user;
    int status; /* 0: ran to its end; TRI_EWORKERLOST, TRI_ETASKTIMEOUT, TRI_EBROKEN, ... */
    uint32_t slot;
    uint32_t res_flags;
    int32_t code;
    uint32_t worker;
    uint32_t deaths;  /* how many workers this task has cost */
    uint32_t npast;   /* in res: how the first of them died, struct tri_loss each */
    uint64_t res_off; /* a block: the receiver frees it with tri_pool_block_free */
    uint64_t res_len;
    void *spill; /* a mapping of res_len bytes instead: the receiver unmaps it */
    int64_t exec_ns;
    uint64_t items;
    struct tri_loss loss;
    uint8_t res[TRI_RES_INLINE] __attribute__((aligned(16)));
};

struct tri_slot_priv {
    void *user;
    uint64_t ticket;
    uint64_t arg_off;  /* of the task pushed: the slot's own copy is a worker's to scribble on */
    uint64_t cmap_off; /* block that goes back with the slot besides the arguments */
    uint64_t cell;     /* where in its lane it was appended last: other cells of it are stale */
    uint32_t next_free;
    uint16_t retries, deaths;
    struct tri_loss *past; /* the first TRI_PAST_MAX of those deaths, once there is one */
    uint8_t lane;
    uint8_t used; /* 0: free; 1: being filled; 2: pushed */
};

struct tri_member {             /* what the owner knows of a worker */
    _Atomic uint64_t ring_head; /* written under the lock, looked at by waiters without it */
    int32_t pid;
    uint32_t gen;
    bool alive, stopped;
    uint64_t backlog_got, backlog_goal; /* output.c */
};

/* Output that was read while looking for something else. */
struct tri_output {
    struct tri_output *next;
    uint32_t stream;
    int32_t pid;
    size_t n, cap;
    uint8_t *buf;
};

struct tri_pool {
    struct tri_pool_config cfg;
    struct tri_hooks hooks;
    struct tri_segment seg;
    struct tri_view view;
    pthread_mutex_t lock;
    uint32_t fork_stamp;
    int refs;

    struct tri_heap heap; /* the owner's: arguments, functions, shares */
    struct tri_slot_priv *priv;
    uint32_t free_slot, nfree;
    uint64_t ticket, tail[TRI_LANES];
    uint64_t head_seen[TRI_LANES]; /* a lane's head as last read, may lag: err towards "full" */
    uint32_t outstanding;          /* slots in use */
    uint32_t direct;               /* results taken past the rings since they were last emptied */
    uint32_t next_ring;
    struct tri_member *member;
    _Atomic uint32_t woke; /* a worker was woken, and nobody has waited since */
    /* of waits after a wake-up: how many are to sleep at once, and how many when it is bad again */
    _Atomic uint32_t yield_skips, yield_next;
    struct tri_future_store *futures;
    uint32_t *held; /* per heap: result blocks the owner still holds */
    struct tri_kept {
        uint64_t off;
        uint32_t worker, gen;
    } * kept; /* argument blocks in use */
    uint32_t nkept, kept_cap;
    uint64_t *early; /* argument blocks given back before their task was taken */
    uint32_t nearly, early_cap;
    struct tri_done *lost;  /* ended without a result, not yet taken */
    _Atomic uint32_t nlost; /* written under the lock, looked at by waiters without it */
    uint32_t lost_cap;

    int ctl_fd, output_fd;
    struct tri_output *output_head, **output_tail;
    struct tri_spilled {
        uint64_t word;
        int fd;
    } * spill; /* read, and not yet asked for */
    uint32_t nspill, spill_cap;
    _Atomic uint32_t deaths_seen; /* as nlost */
    int64_t looked_ns;            /* when the socket was last looked at without being told to */
    bool broken, refusing, closing, ended, trimmed, warden_gone;
    bool killing;                  /* the workers were told to die at once */
    int broken_err;                /* TRI_EBROKEN: the warden died; else what BROKEN said */
    struct tri_loss broken_loss;   /* the last death before that */
    uint8_t note[TRI_WORKER_NOTE]; /* the failed initializer's words */
    uint32_t note_len;

    uint32_t helpers;            /* callers that work too: tri_helper_begin */
    _Atomic uint32_t waiters;    /* changed under the lock, together with ctl->want */
    _Atomic int64_t wait_avg_ns; /* an estimate; waiters may overwrite each other's */
    _Atomic uint64_t sleeps, spins_hit, spins_missed;
    struct tri_share *shares; /* handles not yet freed */
    pthread_t *thread;
    struct tri_worker *tworker;
    struct tri_stats stats;
};

/* How workers are started. */
enum tri_start { TRI_START_FORK, TRI_START_SHARED };

struct tri_pool_inside {
    struct tri_hooks hooks;
    /* >= 0: send the pool to this warden instead of forking one.  When it does not answer in time
     * the socket is shut down, and to kill the warden is left to the caller, who started it and
     * knows whether it serves other pools. */
    int shared_warden;
    bool want_output;
    bool spawn;        /* with a shared warden: workers are exec'ed, hooks.exec_worker */
    const void *setup; /* copied into the arena; what hooks.begin reads */
    size_t setup_len;
    uint32_t max_restarts; /* 0: max(10, 3 x workers) */
    bool fragile;          /* the death of a worker breaks the pool, retries or not */
};

int tri_pool_open_inside(tri_pool **out, const struct tri_pool_config *cfg,
                         const struct tri_pool_inside *in);
/* End the workers.  kill: at once.  Tasks that did not finish become takeable with TRI_ECLOSED.
 * 0; TRI_ETIMEDOUT when not kill and timeout_ns passed; -EINTR. */
int tri_pool_end(struct tri_pool *p, bool kill, int64_t timeout_ns);
/* Take no more tasks; those in flight go on. */
void tri_pool_refuse(struct tri_pool *p);
/* Free the memory.  Workers must have ended (or this is a fork of the owner). */
void tri_pool_free(struct tri_pool *p);
bool tri_pool_is_fork(const struct tri_pool *p);
/* In a few words why a broken pool is broken; static. */
const char *tri_broken_why(const struct tri_pool *p);
uint32_t tri_fork_count(void);

/*
 * What a task's `user` points to.  Whoever takes a task calls its user's `ended`, on whatever
 * thread that is, without p->lock; so a thread that waits for one thing serves the others too.
 */
struct tri_user {
    void (*ended)(struct tri_user *u, struct tri_pool *p, struct tri_done *d);
};
/* Take what has ended, hand it to its users, let other waiters look.  How many. */
int tri_pump(struct tri_pool *p);
/* The pool ends: the memory of freed futures goes, that of the others with the last of them. */
void tri_futures_end(struct tri_pool *p);

/* dispatch.c: a task goes  task_new -> fill -> task_push  and comes back through a take. */
/* 0; -EAGAIN: every slot is in use; TRI_EBROKEN, TRI_ECLOSED, TRI_EFORKED */
int tri_task_new(struct tri_pool *p, uint32_t *slot);
/* Give an unpushed slot back. */
void tri_task_drop(struct tri_pool *p, uint32_t slot);
/* Fill flags, fn*, arg*, items, timeout_ns of p->view.slot[slot] first.  0; -EINVAL; TRI_EBROKEN,
 * TRI_ECLOSED, TRI_EFORKED; -EAGAIN: the lane is full of tasks cancelled behind one that has not
 * started; wait for any task (TRI_ANY_SLOT) and push again. */
int tri_task_push(struct tri_pool *p, uint32_t slot, int priority, int retries, void *user,
                  uint64_t *ticket);
/* The same two with p->lock held, and not in a fork. */
int tri_task_new_locked(struct tri_pool *p, uint32_t *slot);
int tri_task_push_locked(struct tri_pool *p, uint32_t slot, int priority, int retries, void *user,
                         uint64_t *ticket);
/* 0: it will never run, its slot is free; -EBUSY */
int tri_task_cancel(struct tri_pool *p, uint32_t slot, uint64_t ticket);
/* A chunk of tri_map that was claimed: its items that have not begun are not to be run. */
void tri_task_stop(struct tri_pool *p, uint32_t slot, uint64_t ticket);
/* A block for an argument, or 0.  Blocks while there is no room and tasks in flight have theirs. */
uint64_t tri_args_room(struct tri_pool *p, uint64_t bytes);
/* Nobody waits for it any more: what it leaves is dropped when it is taken. */
void tri_task_orphan(struct tri_pool *p, uint32_t slot, uint64_t ticket);
/* Take up to max ended tasks.  Tasks without a user are dropped here. */
int tri_take(struct tri_pool *p, struct tri_done *out, int max);
/* Take this one if it has ended: 1; else 0.  The fast way for one task in flight. */
int tri_take_one(struct tri_pool *p, uint32_t slot, uint64_t ticket, struct tri_done *out);
/* Free a block of any heap, as the owner. */
void tri_pool_block_free(struct tri_pool *p, uint64_t off);
uint64_t tri_pool_block_new(struct tri_pool *p, uint64_t bytes);
static inline void *tri_pool_at(const struct tri_pool *p, uint64_t off)
{
    return p->view.base + off;
}
/* The result's bytes, wherever they are. */
static inline const uint8_t *tri_done_bytes(const struct tri_pool *p, const struct tri_done *d)
{
    return d->spill ? d->spill : d->res_off ? p->view.base + d->res_off : d->res;
}

/* sleep.c */
/* Capture before looking at your own condition, pass to tri_wait: news in between end it. */
uint32_t tri_wait_key(struct tri_pool *p);
#define TRI_ANY_SLOT 0xffffffffu
/* Sleep until slot (with ticket) or, for TRI_ANY_SLOT, any task has ended, another thread took
 * something, or a worker died.  May also return 0 for no reason: look again, wait again.
 * 0; TRI_ETIMEDOUT; -EINTR; TRI_EFORKED */
int tri_wait(struct tri_pool *p, uint32_t key, uint32_t slot, uint64_t ticket, int64_t timeout_ns);
/* Another thread took a result that a waiter may want: let waiters look again. */
void tri_wait_nudge(struct tri_pool *p);
/* Somebody may sleep though there is work: wake one.  From owner (after an append) or worker. */
bool tri_wake_worker(const struct tri_view *v);
/*
 * A caller runs tasks itself until tri_helper_end.  Where it would be one too many for the CPUs, a
 * worker is parked for it: three that share two CPUs take turns, and whoever waits for the one
 * whose turn it is not waits milliseconds.
 */
void tri_helper_begin(struct tri_pool *p);
void tri_helper_end(struct tri_pool *p);
bool tri_worker_free(const struct tri_pool *p);
/* For workers: the owner runs on this CPU. */
void tri_owner_here(struct tri_pool *p);
/* After a death: wake those whose waker it may have been.  To who is awake it is a spare bell. */
void tri_wake_stranded(const struct tri_view *v);
void tri_wake_owner(const struct tri_view *v);
/* A worker's search for work: spins, then sleeps; returns when there may be some. */
void tri_worker_rest(struct tri_worker *w);
/* Between two tasks: leave the CPU to the owner for a moment, where that pays.  See sleep.c. */
#define TRI_ROOM_EVERY 64
void tri_worker_make_room(struct tri_worker *w);
/* After a task of so long: let the owner have this CPU if it does not keep up.  May yield it. */
void tri_worker_give_way(struct tri_worker *w, int64_t took_ns);
/* Has it to leave the queue alone, because a caller works in its place? */
bool tri_worker_parked(const struct tri_worker *w);

/* control.c; p->lock held */
int tri_control_open(struct tri_pool *p, const struct tri_pool_inside *in);
void tri_control_poll(struct tri_pool *p);
/* In the child of any fork. */
void tri_control_forked(void);
int tri_control_send(struct tri_pool *p, enum tri_msg_type type, uint32_t worker, int sig);

/* output.c: receive one record: 1 and *stream, *pid, *n; 0 none. */
int tri_pool_output(struct tri_pool *p, uint32_t *stream, int32_t *pid, void *buf, size_t cap,
                    size_t *n);

/* repair.c; p->lock held */
void tri_repair_death(struct tri_pool *p, const struct tri_msg *m);
/* End with status: what nobody has claimed; everything not done (workers must be dead or dying). */
void tri_repair_queued(struct tri_pool *p, int status);
/* Take the DONE tasks of this worker whatever its ring says. */
void tri_repair_done(struct tri_pool *p, uint32_t worker);
void tri_repair_broken(struct tri_pool *p, int status);
void tri_lose(struct tri_pool *p, uint32_t slot, int status, const struct tri_loss *loss);
/* What the dead worker left by tri_worker_last(), if that is still there: how many bytes. */
size_t tri_last_words(const struct tri_pool *p, const struct tri_loss *loss, void *buf, size_t size,
                      uint32_t *skip);
void tri_heap_released(struct tri_pool *p, uint32_t heap);

/* spill.c: the worker's side ... */
uint8_t *tri_spill_room(struct tri_worker *w, uint64_t bytes);
void tri_spill_send(struct tri_worker *w);
void tri_spill_drop(struct tri_worker *w);
/* ... and the owner's; p->lock held.  One datagram of the output socket: 1 read, 0 none.  A
 * descriptor is kept; output is too, unless out asks for it; out->n is 0 when it was no output. */
int tri_output_read(struct tri_pool *p, struct tri_output *out);
/* The result of a DONE word, mapped; NULL: it is not there. */
void *tri_spill_take(struct tri_pool *p, uint64_t done_word, uint64_t bytes);
void tri_spill_forget(struct tri_pool *p, uint32_t worker, uint32_t gen);
void tri_spill_free(struct tri_pool *p);

/* dispatch.c, for repair.c; p->lock held */
void tri_slot_release(struct tri_pool *p, uint32_t slot);
int tri_slot_append(struct tri_pool *p, uint32_t slot, bool again);
void tri_lanes_mend(struct tri_pool *p);
bool tri_kept_home(void *ctx, uint64_t off);
bool tri_early_forget(struct tri_pool *p, uint64_t off);
/* map.c: the handles that the pool outlived. */
void tri_shares_free(struct tri_pool *p);
void tri_slot_detach(struct tri_pool *p, uint32_t slot, struct tri_done *d);

#endif
