/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job.h - what the files of type Job share: job.c, job_chunks.c, job_map.c and job_iter.c.
 *
 * A job and its chunks are touched with the GIL held only.  A chunk that was sent holds a
 * reference to its job until its task has ended, so a job in flight is never freed.  A job holds
 * its pool until nobody can ask it for results any more (loose); then what is in flight keeps the
 * pool (pool.c), and nothing else needs it.
 */
#ifndef TRI_JOB_H
#define TRI_JOB_H

#include "ext.h"

enum mode { J_MAP = 0, J_ORDERED = 1, J_UNORDERED = 2, J_ASYNC = 3 };

struct chunk {
    struct tri_user user;
    struct JobObject *job;
    struct chunk *next;         /* in the order sent */
    struct chunk *next_ready;   /* in the order ended */
    Py_ssize_t first, n, given; /* given: items handed out so far */
    PyObject *items;            /* threads, or what the iterator gave: kept alive */
    PyObject *values;           /* list of results, once read */
    PyObject *error;            /* it failed as a whole: what each of its items raises */
    struct tri_done done;
    uint64_t ticket;
    uint32_t slot;
    bool ended, cancelled;
};

typedef struct JobObject {
    PyObject_HEAD PoolObject *pool;
    FnObject *fn;
    PyObject *callable;
    PyObject *seq; /* list, tuple or range; NULL: iter */
    PyObject *iter;
    PyObject *results;  /* list, for J_MAP and J_ASYNC */
    PyObject *progress; /* called with the number of new results */
    PyObject *error;    /* the first failure of a map; of an iterator, what its input raised */
    PyObject *again;    /* items pulled with one that cannot be sent: they go one by one */
    PyObject *on_done;  /* called once: a background job has ended, an iterator is exhausted */
    struct options opt;
    enum mode mode;
    struct pace pace; /* of the caller who works too */
    bool star, caller, helping, exhausted, watched, stopped;
    bool loose; /* does not hold the pool */
    bool open;  /* an iterator of the pool's that has more to send */
    bool wide;  /* is no map of next to nothing: all workers are to have a part of it */
    Py_ssize_t n, next, chunk, in_flight, done_items, last_size;
    double item_ns, most_ns;           /* most_ns: of a whole chunk */
    double item_bytes;                 /* of the last chunk's arguments */
    uint64_t most_bytes;               /* of a chunk's arguments or results */
    struct chunk *head, **tail;        /* sent, not yet given out */
    struct chunk *ready, **ready_tail; /* ended, not yet given out; not kept by J_ORDERED */
    bool reported;    /* the progress callable was told of the item that is to be given out next */
    int64_t waits_ns; /* since when an iterator has nothing to give; 0 */
    PyThread_type_lock turn; /* held by the thread inside next() */
    unsigned long turn_of;   /* that thread */
} JobObject;

/* The ended chunk that an iterator gives out from next; NULL: it must wait. */
static inline struct chunk *next_to_give(const JobObject *j)
{
    struct chunk *c = j->mode == J_ORDERED ? j->head : j->ready;

    return c && c->ended ? c : NULL;
}

/* Tell the progress bar of n new results.  0 or -1 with the exception it raised. */
static inline int report(JobObject *j, Py_ssize_t n)
{
    PyObject *r;

    j->done_items += n;
    if (!j->progress)
        return 0;
    r = PyObject_CallFunction(j->progress, "n", n);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

/* ------------------------------------------------------------------ job_chunks.c */

void chunk_free(struct chunk *c);
/* Read an ended chunk: its values into out[0..n) or, when out is NULL, into c->values.
 * 0; 1: it failed as a whole, the exception is set. */
int chunk_read(JobObject *j, struct chunk *c, PyObject **out);
/* Is this a map that may be done before a second worker is awake?  One chunk at a time then. */
bool is_tiny(const JobObject *j);
/* Take a chunk out of those sent. */
void unlink_chunk(JobObject *j, struct chunk *c);
/* The chunk that ended first of those not yet given out, taken; NULL: none. */
struct chunk *pop_ready(JobObject *j);
/* How many items the next chunk is to have. */
Py_ssize_t next_size(const JobObject *j);
/* An iterator has sent all: the pool may refuse tasks if it was closed meanwhile. */
void job_all_sent(JobObject *j);
/* send_some(): an exception that is not the items': of a signal, or no task is to be had. */
#define CANNOT_SEND (-2)
/*
 * Keep the window full.  0; -1 or CANNOT_SEND with an exception; 1: the input of an iterator took a
 * while, and there is room for more of it.  It is the user's and may wait, so look for results
 * first.
 */
int send_some(JobObject *j);
/* Have the next pump look whether this job is over. */
void tell_later(JobObject *j);
/* Forget everything: chunks not started are cancelled, the others end on their own. */
void job_forget(JobObject *j);
/* The exception that is set, taken away; it is noted in *into unless one is there already. */
void fetch_error(PyObject **into);

/* ------------------------------------------------------------------ job_map.c */

/* collect(): there is an exception, which who waits is to have. */
#define INTERRUPTED (-2)

/* Move what has ended into the result list.  How many chunks, INTERRUPTED, or -1 with what the job
 * fails by. */
int collect(JobObject *j);
/*
 * Run a map to its end: 0, 1 timed out, -1: it has failed, and j->error says by what.  Or there is
 * an exception, which has ended the wait for a map in the background and not the map.
 */
int run_map(JobObject *j, int64_t timeout_ns);

/* ------------------------------------------------------------------ job_iter.c */

PyObject *job_self(PyObject *obj); /* iter() */
PyObject *job_next(PyObject *obj);
PyObject *job_next_timeout(PyObject *obj, PyObject *const *args, Py_ssize_t n, PyObject *names);

/* ------------------------------------------------------------------ job.c */

/* Nobody will ask this job for results any more: it holds its pool no longer. */
void job_loosen(JobObject *j);
/* Method _job of a pool. */
PyObject *job_make(PyObject *obj, PyObject *args, PyObject *kwargs);

/* ------------------------------------------------------------------ handle.c */

/* _handle() -> JobHandle: to be called once, for who holds the job on behalf of the user. */
PyObject *job_handle(PyObject *obj, PyObject *none);

#endif
