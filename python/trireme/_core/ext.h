/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ext.h - the extension's inside: what its files know of each other.
 *
 *   module.c   module state, the functions of the module, warden and worker entry points
 *   pool.c     type PoolBase: opening, submit, ending
 *   pool_wait.c  what whoever waits for a pool does: take, tell, show, help, sleep
 *   options.c  the options that every call takes
 *   digest.c   bytes in brief, to tell whether they are what they were
 *   fn.c       type Function: a callable as it travels, sent once per pool
 *   value.c    arguments and results: fast form, or pickle with buffers beside it
 *   block.c    type Block: arena memory as a Python buffer
 *   chunk.c    the worker's side: many items in one task
 *   errors.c   what the runtime's codes and losses are in Python
 *   future.c   type FutureBase
 *   job*.c     type Job (job.h): a map, as one call, as an iterator, or in the background
 *   handle.c   type JobHandle: what the user holds of a job that nobody need wait for
 *   mailbox.c  types Mailbox and Parcel: queues between processes
 *   reveal.c   what a task gets in the place of a Shared
 *   run*.c     the worker's side: the hooks that run Python tasks, in a process and in a thread;
 *              signals there, and what is left of a crash
 *   sync.c     types SemLock, EventSlot, CondSlot: what locks and their kin stand on
 *
 * All state is in the module state or in objects; no PyObject * ever enters memory that another
 * process sees (a thread pool's memory is private to this process, there they do).
 * Everything here runs with the GIL held, except where a comment says otherwise.
 */
#ifndef TRI_EXT_H
#define TRI_EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/clock.h"
#include "codec.h"
#include "pool/pool.h"
#include "shm/slots.h"

struct state {
    PyTypeObject *pool_type, *future_type, *block_type, *fn_type, *job_type, *handle_type;
    PyTypeObject *semlock_type, *event_type, *cond_type;
    struct tri_slots slots; /* pages of locks and their kin */
    PyTypeObject *mailbox_type, *parcel_type;
    PyObject *future_class; /* trireme._future.Future, once it is imported */
    /* functions of the Python modules, imported when first needed */
    PyObject *dumps, *dumps_result, *dumps_function, *function_watch, *loads, *missing;
    PyObject *encode_exception, *decode_exception, *lost, *deliver, *failed_type;
    PyObject *shared_type; /* trireme._share.Shared once it is imported; NULL: none exists yet */
    PyObject *give_way;    /* a function of Python that does nothing: see struct pace */
    bool own_arguments;    /* in a facade's worker: what a task is given is its own, to write to */
    uint64_t rebindings;   /* worker: of globals of functions that were loaded before */
    uint64_t reloads;      /* of modules: functions that were sent before are not right any more */
    uint64_t secret[8];    /* of digests; 0: not yet drawn */
    bool signals_said;     /* by a fork server: see own_signals() */
    unsigned epoch;        /* more in a process that holds no lock of the one it was forked from */
    struct tri_worker *worker; /* that this process is, of a pool of processes; else NULL */
};

/* How many functions a pool remembers, on either side, and how many bytes they may have together:
 * as objects, pickled, and in the arena they take up to three times as much at the owner. */
#define FNS_MAX 256
#define FNS_BYTES (128ull << 20)

struct state *state_of(PyObject *module);
struct state *state_of_type(PyTypeObject *type);
extern struct PyModuleDef trireme_core_module;
/* Import what pickling and errors need; cheap when done.  -1 with an exception. */
int state_late_imports(struct state *st);

/*
 * For a loop in C that calls users' functions, before each call: once in a tick of the clock let
 * the interpreter do what it does where a function of Python begins, which is to hand its lock to a
 * thread that has waited for the switch interval and to run the handlers of signals.  Calls of
 * builtins, one after the other, would put that off until the last of them.  -1 with an exception:
 * a handler's, or one that another thread has set.
 *
 * Not Py_BEGIN_ALLOW_THREADS: who lets go of the lock without having been asked has it again before
 * a waiting thread is awake, and that thread's interval begins anew, each time.  The program of
 * CPython's test_hang_global_shutdown_lock took 47 to 155 s so, and takes 1.8 (the original's 3.3).
 */
struct pace { /* one thread's, as signals and exceptions may be for this one only; begins as {0} */
    int64_t tick_ns;
};
int pace_turn(struct state *st);
static inline int pace_call(struct pace *p, struct state *st, PyObject *fn)
{
    const int none = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR;
    int64_t now;

    /* A function of Python's does it itself, unless its call only makes a generator. */
    if (PyFunction_Check(fn) && !(((PyCodeObject *)PyFunction_GET_CODE(fn))->co_flags & none))
        return 0;
    now = tri_tick_ns();
    if (now == p->tick_ns)
        return 0;
    p->tick_ns = now;
    return pace_turn(st);
}

/* Can submit() make such futures?  0 or -1 with an exception. */
int state_check_future(const struct state *st, PyObject *cls);

/* ------------------------------------------------------------------ pools */

/* The runtime's pool with a count of who still needs its memory: result views outlive the Pool. */
struct thread_ctx { /* what the hooks of a thread pool need */
    struct state *st;
    PyInterpreterState *interp;
    PyObject *init;  /* called in each thread before its first task; NULL: none, or all have */
    uint32_t begun;  /* threads that have called it */
    PyObject *error; /* what it raised: every task ends with that */
};

struct core {
    struct tri_pool *p;
    Py_ssize_t refs;
    bool ended;
    struct thread_ctx thread;
    struct FnObject *newest_fn; /* of those that live; each knows the next older one */
};
void core_hold(struct core *c);
void core_drop(struct core *c);

typedef struct PoolObject {
    PyObject_HEAD struct state *st;
    struct core *core;
    bool threads, closed; /* closed: by its user; its iterators still send */
    Py_ssize_t iterators; /* that have more to send */
    bool dying;           /* it is being freed: nobody may refer to it any more */
    PyObject *fns;        /* id(function) -> Function */
    PyObject *last_fn;    /* the Function used last */
    uint64_t next_fn_id;
    PyObject *told;         /* futures that ended and have somebody to tell */
    Py_ssize_t untold;      /* of those, and of others being told now: not told yet */
    uint64_t ends;          /* how many futures have ended */
    Py_ssize_t watched;     /* futures not ended that somebody will be told of */
    PyObject *serve;        /* starts the thread that watches them; set from Python */
    PyObject *future_class; /* what submit() makes; NULL: trireme._future.Future */
    PyObject *born; /* a facade's: born(dumps, ...) pickles for workers that inherit; or NULL */
    uint64_t outputs_seen;
} PoolObject;

/* Options that every call takes. */
struct options {
    int64_t timeout_ns;
    int retries, priority;
};

/* Check and note one option.  0 or -1 with an exception. */
int option_timeout(PyObject *value, struct options *opt);
int option_retries(PyObject *value, struct options *opt);
int option_priority(PyObject *value, struct options *opt);
/* The argument `name` of a call.  1: it is an option and was taken; 0: the task's; -1: exception */
int option_take(PyObject *name, PyObject *value, struct options *opt);
/* Can a pool of this kind do that?  0 or -1 with an exception. */
int options_fit(const PoolObject *pool, const struct options *opt);

/* Take results, show output, tell watchers.  Number of results, or -1 with an exception. */
int pool_pump(PoolObject *pool);
int pool_show_output(PoolObject *pool); /* what workers printed and logged: 0, or -1 raised */
/* The rest of a pump, after taking: output, watchers.  0 or -1 with an exception. */
int pool_after(PoolObject *pool);
/* Wait for news without the GIL.  timeout_ns < 0: for ever.  0; 1: timed out; -1: an exception
 * (a signal handler raised). */
int pool_wait(PoolObject *pool, uint32_t key, uint32_t slot, uint64_t ticket, int64_t timeout_ns);
/* The next pump calls whose._tell(). */
void pool_tell_later(PoolObject *pool, PyObject *whose);
/* In a thread of the pool: run this task here unless somebody has claimed it, or with TRI_ANY_SLOT
 * whichever is first.  True: it is done. */
bool pool_help(PoolObject *pool, uint32_t slot, uint64_t ticket);
/* A slot; waits while all are in use.  -1 with an exception. */
int pool_slot(PoolObject *pool, uint32_t *slot);
/* tri_task_push, waiting while its lane is full.  0 or a code of the runtime's for raise_code. */
int pool_push(PoolObject *pool, uint32_t slot, const struct options *opt, void *user,
              uint64_t *ticket);
/* Raise what a negative code of the runtime means. */
void raise_code(struct state *st, struct tri_pool *p, int err);
/* The exception for a task that ended without running to its end; new reference or NULL. */
PyObject *loss_exception(struct state *st, struct tri_pool *p, const struct tri_done *d,
                         PyObject *task);
int pool_check(PoolObject *pool);
/* The same, and may its user send it something new? */
int pool_check_open(PoolObject *pool);
/* Seconds as an object (None: no limit) to nanoseconds, -1 for None.  0 or -1 with an exception. */
int seconds_to_ns(PyObject *seconds, const char *what, int64_t *ns);
/* A lock's acquire(block=True, timeout=None) in ns: < 0 for ever, 0 only a try.  0 or -1 too. */
int options_of_acquire(PyObject *const *args, Py_ssize_t n, PyObject *names, int64_t *timeout_ns);

/* ------------------------------------------------------------------ functions */

typedef struct FnObject {
    PyObject_HEAD struct core *core;
    PyObject *fn, *watch; /* watch: what function_watch said; NULL for threads */
    PyObject *pickled;    /* bytes, to see whether a new pickle is the same */
    uint64_t id, off;
    uint64_t reloads; /* of modules, when it was pickled */
    uint32_t len;
    bool remembered;                /* in the pool's table */
    struct FnObject *older, *newer; /* of its pool, while they live */
} FnObject;

#define FN_HEAD 8 /* bytes before the pickle: see fn.c */

/* The Function for fn in this pool: cached, or sent now. */
FnObject *pool_function(PoolObject *pool, PyObject *fn);

/* ------------------------------------------------------------------ values */

enum {
    V_PICKLED = 1u << TRI_F_USER_SHIFT,  /* else the fast form */
    V_KWARGS = 2u << TRI_F_USER_SHIFT,   /* arguments are a pair (tuple, dict) */
    V_CHUNK = 4u << TRI_F_USER_SHIFT,    /* a sequence of items, one call each */
    V_STAR = 8u << TRI_F_USER_SHIFT,     /* items are tuples of arguments */
    V_ALL = 16u << TRI_F_USER_SHIFT,     /* go on after an item's exception */
    V_OBJECTS = 32u << TRI_F_USER_SHIFT, /* thread pool: object pointers */
    V_AGAIN = 64u << TRI_F_USER_SHIFT,   /* may be run again: nobody writes to its arguments */
};

enum { R_VALUE = 0, R_EXCEPTION = 1, R_FAILURES = 2 };

/* Where pickled bytes and their buffers go. */
typedef uint8_t *(*room_fn)(void *ctx, uint64_t bytes, uint64_t *off);

/* Write a pickle and its buffers: header, pickle, each buffer aligned to 64. */
int pickled_write(PyObject *pair, room_fn room, void *ctx, uint64_t *off, uint64_t *len);
/* Read them back.  root: the Block they lie in (buffers become its slices), or NULL: copied. */
PyObject *pickled_read(struct state *st, const uint8_t *p, uint64_t len, PyObject *root);

/* Put the arguments of one call into a slot. */
int args_write(PoolObject *pool, struct tri_slot *s, PyObject *const *args, Py_ssize_t n,
               PyObject *kwargs);
/* What items_write returns, with MemoryError, when the arena has no room for so many items. */
#define NO_ROOM (-2)
/* Items [first, first + n) of a range, as tri_encode_range. */
int range_encode(struct tri_buf *b, PyObject *range, Py_ssize_t first, Py_ssize_t n);
/* Are a map's items up to `end` still there?  A list is its user's, who may have shortened it while
 * other code of his ran.  0 or -1 with RuntimeError. */
int items_there(PyObject *seq, Py_ssize_t end);
/* Items [first, first + n) as a list of n; NULL with an exception. */
PyObject *items_part(PyObject *seq, Py_ssize_t first, Py_ssize_t n);
/* Put items [first, first + n) into a slot: of a list or tuple, or of a range. */
int items_write(PoolObject *pool, struct tri_slot *s, PyObject *seq, Py_ssize_t first,
                Py_ssize_t n);
/* The value in a result, consumed: its block is freed or belongs to the value. */
PyObject *result_read(PoolObject *pool, struct tri_done *d);
void ask_facade(PoolObject *pool, const char *name);
/* The bytes of an encoded exception in a result become the exception. */
PyObject *result_exception(PoolObject *pool, struct tri_done *d);
void result_drop(PoolObject *pool, struct tri_done *d);

/* ------------------------------------------------------------------ blocks */

typedef struct BlockObject {
    PyObject_HEAD struct core *core; /* owner's side: freed through it.  NULL in a worker */
    const struct tri_view *view;     /* worker's side */
    PyObject *parent;                /* a slice's whole */
    uint64_t off;
    uint8_t *ptr;
    Py_ssize_t len;
    bool readonly, kept, mapped; /* mapped: not in the arena; unmapped at the end */
    bool shy;                    /* read-only unless one asks to write */
} BlockObject;

PyObject *block_of_result(struct state *st, struct core *core, uint64_t off, uint64_t len);
PyObject *block_of_mapping(struct state *st, void *at, uint64_t len, bool readonly);
PyObject *block_of_args(struct state *st, const struct tri_view *v, uint64_t off, uint64_t len,
                        bool readonly);
PyObject *block_slice(struct state *st, PyObject *whole, uint64_t at, uint64_t len, bool shy);
/* Memory of its own, shy. */
PyObject *block_of_copy(struct state *st, const uint8_t *p, uint64_t len);
/* Functions of the module: see there. */
PyObject *own_arguments(PyObject *module, PyObject *none);
/* _digest(data): 128 bits that stand for these bytes in this process (digest.c). */
PyObject *digest(PyObject *module, PyObject *data);
PyObject *map_file(PyObject *module, PyObject *args);
PyObject *fill_file(PyObject *module, PyObject *args);
PyObject *populate_memory(PyObject *module, PyObject *memory);

/* ------------------------------------------------------------------ futures and jobs */

typedef struct FutureObject {
    PyObject_HEAD struct tri_user user;
    PoolObject *pool; /* until it has ended and was read; held only in between */
    uint64_t ticket;
    uint32_t slot;
    uint8_t phase; /* enum future_phase */
    bool watched, announced;
    bool attributes; /* some were set from outside */
    PyObject *value; /* result, or exception */
    PyObject *held;  /* (function, args, kwargs) of a thread's task to run, or the function */
    FnObject *fn;
    PyObject *condition, *waiters, *callbacks;
    struct tri_done *raw; /* a pickled result not yet read */
    unsigned long reader; /* the thread that is reading it now; 0: none */
    bool awaited;         /* another thread waits for that one */
    uint64_t nth;         /* of the pool's futures to end, from 1; 0: it has not */
} FutureObject;

enum future_phase { F_PENDING = 0, F_VALUE, F_EXCEPTION, F_CANCELLED, F_BARE };

PyObject *pool_submit(PoolObject *pool, PyObject *const *args, Py_ssize_t nargs, PyObject *kwargs,
                      const struct options *opt);

extern PyType_Spec pool_spec, future_spec, block_spec, fn_spec, job_spec, handle_spec;
extern PyType_Spec semlock_spec, event_spec, cond_spec;
extern PyType_Spec mailbox_spec, parcel_spec;

/* ------------------------------------------------------------------ tasks */

/* Call fn in this process, with what a Shared stands for in its place. */
PyObject *call_here(struct state *st, PyObject *fn, PyObject *item, bool star);
/* What a task gets for v, an argument or a tuple, list or dict of them.  A new reference. */
PyObject *reveal(struct state *st, PyObject *v);
/* The arguments that a functools.partial has already are arguments too. */
PyObject *reveal_function(struct state *st, PyObject *fn);
extern const struct tri_hooks process_hooks, thread_hooks;
PyObject *warden_main(PyObject *module, PyObject *args);
PyObject *worker_main(PyObject *module, PyObject *args);
PyObject *worker_serve(PyObject *module, PyObject *none);
/* _expect_forks(): in a fork server, what crash_begin() and own_signals() would do in each fork. */
PyObject *expect_forks(PyObject *module, PyObject *none);

#endif
