/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job_iter.c - a job as an iterator, ordered or as chunks end.
 *
 * Input is pulled as results are taken, a window ahead and no further, so it may be endless.  It is
 * pulled by whoever calls, so where it is slow, a result that is there goes first.  The
 * chunk to give out from is the first one sent, or the first one ended; it is read as a whole when
 * its turn comes and then given out value by value.  An item that failed raises at its place and
 * the next call goes on behind it; an exception of the input itself comes after all that was
 * pulled before it.  StopIteration is the end and nothing else: an item that raised it raises
 * RuntimeError from it, as a generator would (PEP 479).  One thread at a time is inside next(), the
 * others queue for `turn`.
 */
#include "base/clock.h"
#include "job.h"

#define MOMENT_NS 2000000

/* All of a chunk's items were given out. */
static void chunk_over(JobObject *j, struct chunk *c)
{
    unlink_chunk(j, c);
    if (j->mode == J_UNORDERED)
        pop_ready(j); /* it is the first one: nothing else is given out in between */
    chunk_free(c);
}

/* What an item raises whose task raised exc, which is consumed.  NULL with an exception. */
static PyObject *no_end(PyObject *exc)
{
    PyObject *other;

    if (!exc || !PyErr_GivenExceptionMatches(exc, PyExc_StopIteration))
        return exc;
    other = PyObject_CallFunction(PyExc_RuntimeError, "s", "a task raised StopIteration");
    if (other) {
        PyException_SetContext(other, Py_NewRef(exc));
        PyException_SetCause(other, Py_NewRef(exc));
    }
    Py_DECREF(exc);
    return other;
}

/* Give out the next value of a chunk that has been read, or raise what stands in its place. */
static PyObject *give(JobObject *j, struct chunk *c)
{
    PyObject *v = NULL, *exc = NULL, *data;

    j->reported = false;
    if (c->error) {
        exc = Py_NewRef(c->error);
    } else {
        v = Py_NewRef(PyList_GET_ITEM(c->values, c->given));
        if (c->done.code == R_FAILURES && Py_TYPE(v) == (PyTypeObject *)j->pool->st->failed_type) {
            data = PyObject_GetAttrString(v, "data");
            exc = data && !PyExceptionInstance_Check(data)
                      ? PyObject_CallOneArg(j->pool->st->decode_exception, data)
                      : Py_XNewRef(data);
            Py_XDECREF(data);
            Py_CLEAR(v);
        }
    }
    exc = no_end(exc);
    if (++c->given >= c->n)
        chunk_over(j, c);
    if (exc)
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_XDECREF(exc);
    return v;
}

/*
 * Nothing is there yet.  In a task of the same pool's, with nobody else to compute it: that is done
 * here.  Whoever wants any result leaves it to threads that are free, however long it takes them to
 * come, and to those that are not for a moment: what they give may be what the first chunk waits
 * for.
 */
static int wait_some(JobObject *j, uint32_t key, int64_t timeout_ns)
{
    uint32_t slot = j->head->slot;
    uint64_t ticket = j->head->ticket;

    if (j->mode == J_ORDERED)
        return pool_wait(j->pool, key, slot, ticket, timeout_ns);
    if (timeout_ns < 0 && tri_worker_inside(j->pool->core->p)) {
        int64_t now = tri_now_ns(), left, moved;

        /* By the clock: others who wait rouse this one again and again. */
        if (!j->waits_ns)
            j->waits_ns = now;
        left = j->waits_ns + MOMENT_NS - now;
        if (left <= 0 && tri_worker_spared(j->pool->core->p, slot, ticket))
            left = MOMENT_NS; /* nobody tells when the last of them gets other work */
        if (left > 0 && j->pool->core->p->view.nworkers > 1) {
            moved = pool_wait(j->pool, key, TRI_ANY_SLOT, 0, left);
            return moved < 0 ? -1 : 0;
        }
        if (pool_help(j->pool, slot, ticket))
            return PyErr_CheckSignals() < 0 ? -1 : 0;
    }
    return pool_wait(j->pool, key, TRI_ANY_SLOT, ticket, timeout_ns);
}

/* next(), waiting at most timeout_ns.  NULL without an exception: the end. */
static PyObject *next_value(JobObject *j, int64_t timeout_ns)
{
    int64_t until = timeout_ns > 0 ? tri_now_ns() + timeout_ns : 0;
    PyObject *late = NULL;

    for (;;) {
        struct chunk *c = next_to_give(j);
        uint32_t key;
        int moved, more;

        if (j->stopped)
            return NULL;
        if (c) {
            j->waits_ns = 0;
            if (!c->values && !c->error && chunk_read(j, c, NULL)) {
                if (!PyErr_ExceptionMatches(PyExc_Exception)) {
                    chunk_over(j, c);
                    return NULL;
                }
                fetch_error(&c->error);
            }
            if (send_some(j) < 0)
                fetch_error(&j->error); /* the input failed: told after what came before it */
            if (j->reported)
                return give(j, c);
            /* What the progress callable raises comes in between.  It may have ended the job, too,
             * so we look again. */
            j->reported = true;
            if (report(j, 1) < 0)
                return NULL;
            continue;
        }
        if (pool_check(j->pool) < 0)
            return NULL;
        key = tri_wait_key(j->pool->core->p);
        more = send_some(j);
        if (more < 0)
            fetch_error(&j->error);
        if (!j->head) {
            late = j->error;
            j->error = NULL;
            if (late)
                PyErr_SetObject((PyObject *)Py_TYPE(late), late);
            Py_XDECREF(late);
            return NULL;
        }
        moved = pool_pump(j->pool);
        if (moved == 0 && !next_to_give(j)) {
            if (timeout_ns > 0 && (timeout_ns = until - tri_now_ns()) <= 0)
                timeout_ns = 0;
            if (more <= 0)
                moved = wait_some(j, key, timeout_ns);
            else if (timeout_ns == 0)
                moved = 1;
            if (moved == 1 && !next_to_give(j)) {
                PyErr_SetNone(PyExc_TimeoutError);
                return NULL;
            }
        }
        if (moved < 0)
            return NULL;
    }
}

/* An iterator is at its end, or failed there: say so, without losing its exception. */
static void finish(JobObject *j)
{
    PyObject *type, *exc, *tb, *fn = j->on_done, *r;

    j->on_done = NULL;
    PyErr_Fetch(&type, &exc, &tb);
    r = PyObject_CallNoArgs(fn);
    if (!r && type)
        PyErr_WriteUnraisable(fn);
    if (type)
        PyErr_Restore(type, exc, tb);
    Py_XDECREF(r);
    Py_DECREF(fn);
}

/* One thread at a time: pulling input and reading results run code of the user's. */
static PyObject *next_in_turn(JobObject *j, int64_t timeout_ns)
{
    unsigned long me = PyThread_get_thread_ident();
    PyObject *v;

    if (!PyThread_acquire_lock(j->turn, NOWAIT_LOCK)) {
        PyLockStatus got = PY_LOCK_FAILURE;

        if (j->turn_of == me) {
            PyErr_SetString(PyExc_ValueError, "this iterator is already executing");
            return NULL;
        }
        do {
            Py_BEGIN_ALLOW_THREADS got = PyThread_acquire_lock_timed(
                j->turn, timeout_ns < 0 ? -1 : (PY_TIMEOUT_T)(timeout_ns / 1000), 1);
            Py_END_ALLOW_THREADS if (got == PY_LOCK_INTR && PyErr_CheckSignals() < 0) return NULL;
        } while (got == PY_LOCK_INTR);
        if (got == PY_LOCK_FAILURE) {
            PyErr_SetNone(PyExc_TimeoutError);
            return NULL;
        }
    }
    j->turn_of = me;
    Py_INCREF(j);
    v = next_value(j, timeout_ns);
    if (!v && !j->head && j->on_done)
        finish(j);
    j->turn_of = 0;
    PyThread_release_lock(j->turn);
    Py_DECREF(j);
    return v;
}

PyObject *job_next(PyObject *obj)
{
    return next_in_turn((JobObject *)obj, -1);
}

PyObject *job_next_timeout(PyObject *obj, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    int64_t ns;
    PyObject *v;

    if (n + named > 1 ||
        (named && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "timeout") != 0)) {
        PyErr_SetString(PyExc_TypeError, "next() takes at most one argument, timeout=");
        return NULL;
    }
    if (seconds_to_ns(n + named ? args[0] : NULL, "timeout", &ns) < 0)
        return NULL;
    v = next_in_turn((JobObject *)obj, ns);
    if (!v && !PyErr_Occurred())
        PyErr_SetNone(PyExc_StopIteration);
    return v;
}

PyObject *job_self(PyObject *obj)
{
    JobObject *j = (JobObject *)obj;

    if (j->mode != J_ORDERED && j->mode != J_UNORDERED) {
        PyErr_SetString(PyExc_TypeError, "this job is not an iterator");
        return NULL;
    }
    return Py_NewRef(obj);
}
