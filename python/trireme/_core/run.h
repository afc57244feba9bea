/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run.h - what the files of the worker's side share: run.c, run_thread.c, run_signals.c,
 * run_crash.c and chunk.c.
 */
#ifndef TRI_RUN_H
#define TRI_RUN_H

#include "ext.h"

/* One worker's own. */
struct local {
    struct state *st;
    PyObject *module; /* keeps st alive */
    PyObject *fns;    /* id -> callable */
    uint64_t fns_bytes;
    PyObject *worker; /* trireme._worker */
    PyObject *flush;
    PyObject *worker_dict, *written;
    PyObject *load_function, *run_again, *sent_with, *aside; /* of _bindings.py */
    uint64_t last_id;
    PyObject *last_fn;   /* borrowed from fns */
    uint64_t rebindings; /* state's, when last_fn had all its globals as they are to be */
    PyThreadState *ts;   /* threads */
    struct pace pace;
};

/* In a slot's arguments: what the future or job keeps alive until the task has ended. */
struct objects {
    PyObject *fn, *args, *kwargs;
    FutureObject *future; /* of one call; the job of a chunk is nobody's business here */
};

/* Where the slot's encoded arguments are. */
const uint8_t *arg_bytes(const struct tri_worker *w, const struct tri_slot *s);

/* Unpickle the arguments: a tuple, a pair (tuple, dict) or a chunk's list.  *root is the Block that
 * the arrays among them lie in; give it to root_release when they are not used any more. */
PyObject *args_unpickle(struct tri_worker *w, struct local *l, struct tri_slot *s, PyObject **root);
void root_release(struct tri_slot *s, PyObject *root);

/* The exception that is set becomes the result.  Never fails: an empty report is one too. */
void put_exception(struct tri_worker *w, struct state *st);
/* A value, pickled, becomes the result.  0 or -1 with an exception. */
int put_pickled(struct tri_worker *w, struct state *st, PyObject *value);
/* Encoded bytes become the result; b is freed.  0 or -1 with an exception. */
int put_buf(struct tri_worker *w, struct tri_buf *b);

/* The exception that is set, taken away, with its traceback. */
PyObject *take_exception(void);

/* Like PyImport_ImportModule(), and cheap when it is imported. */
PyObject *imported(const char *name);
/* Have Python's table of signals say what is so in a worker.  0 or -1 with an exception. */
int own_signals(void);
/* From now on a crash of this process leaves word of where it was.  Does nothing if it cannot. */
void crash_begin(struct tri_worker *w);
/* Before a fork of workers, or of the warden that will fork them: tasks run on top of what is here
 * (with start="fork" where the program opened the pool). */
void crash_fork(void);
/* Tasks run on top of what is here, by worker_serve(). */
void crash_serve(void);
/* What it needs ahead, in a process whose forks are workers. */
void crash_expect(void);
/* The hook: others may have the interpreter while this worker waits for work. */
void run_rest(struct tri_worker *w);
/* The hook: finalizers, and all output. */
void process_end(struct tri_worker *w);

/* A process's chunk: its results, or an exception, become the slot's result. */
void run_chunk(struct tri_worker *w, struct local *l, struct tri_slot *s, PyObject *fn);
/* A thread's chunk: the list of results, or NULL with an exception. */
PyObject *thread_chunk(struct tri_worker *w, struct tri_slot *s, const struct objects *o);

#endif
