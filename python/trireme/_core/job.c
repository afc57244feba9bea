/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job.c - type Job: one function over many items.
 *
 * Items travel in chunks, each one task: job_chunks.c decides how large they are and how many are
 * in flight.  The same chunks serve a blocking map (job_map.c: results into a list by index),
 * iterators (job_iter.c: ordered or as they end) and a map in the background, which sends
 * everything at once because nobody will come by to send more.
 *
 * Here is the type: making a job, its methods and its end.
 */
#include "job.h"

/* ------------------------------------------------------------------ methods */

void job_loosen(JobObject *j)
{
    if (j->in_flight == 0 || j->watched || j->loose)
        return; /* it goes with its last reference, and so does its hold */
    j->loose = true;
    Py_DECREF(j->pool);
}

static PyObject *job_get(PyObject *obj, PyObject *timeout)
{
    JobObject *j = (JobObject *)obj;
    PyObject *kind, *exc, *tb;
    int64_t ns;
    int err;

    if (seconds_to_ns(timeout, "timeout", &ns) < 0)
        return NULL;
    err = run_map(j, ns);
    if (err == 1) {
        PyErr_SetNone(PyExc_TimeoutError);
        return NULL;
    }
    if (err < 0) {
        if (j->error && !PyErr_Occurred())
            PyErr_SetObject((PyObject *)Py_TYPE(j->error), j->error);
        if (j->mode == J_MAP) {
            /* What still runs holds the job, and a traceback the frames of those who called. */
            Py_CLEAR(j->error);
            PyErr_Fetch(&kind, &exc, &tb);
            job_loosen(j);
            PyErr_Restore(kind, exc, tb);
        }
        return NULL;
    }
    return Py_NewRef(j->results);
}

/* _wait(timeout) -> bool: has it ended, well or badly? */
static PyObject *job_wait(PyObject *obj, PyObject *timeout)
{
    JobObject *j = (JobObject *)obj;
    int64_t ns;
    int err;

    if (seconds_to_ns(timeout, "timeout", &ns) < 0)
        return NULL;
    err = run_map(j, ns);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(err != 1);
}

/* _watch(callable): call it when the job has ended, even if nobody waits. */
static PyObject *job_watch(PyObject *obj, PyObject *fn)
{
    JobObject *j = (JobObject *)obj;
    PyObject *r;

    j->on_done = Py_NewRef(fn);
    if (!j->watched) {
        j->watched = true;
        j->pool->watched++;
    }
    /* It may be over already, without anybody having been told. */
    if (j->ready || j->error || j->done_items >= j->n)
        tell_later(j);
    r = PyObject_CallOneArg(j->pool->serve, (PyObject *)j->pool);
    if (!r && j->watched) { /* no thread could be started, so nobody would be told */
        j->watched = false;
        j->pool->watched--;
        Py_CLEAR(j->on_done);
    }
    return r;
}

/* Called by a pump when a chunk of a watched job has ended. */
static PyObject *job_tell(PyObject *obj, PyObject *none)
{
    JobObject *j = (JobObject *)obj;
    PyObject *fn, *r, *interrupt = NULL;
    int got = 0;

    (void)none;
    while (!j->error && (got = collect(j)) == INTERRUPTED)
        fetch_error(&interrupt); /* for who waits, once the job's have been told */
    if (got == -1) {
        fetch_error(&j->error);
        job_forget(j);
    }
    r = Py_NewRef(Py_None);
    if (j->watched && (j->error || j->done_items >= j->n)) {
        j->watched = false;
        j->pool->watched--;
        fn = j->on_done;
        j->on_done = NULL;
        if (fn)
            Py_SETREF(r, PyObject_CallNoArgs(fn));
        Py_XDECREF(fn);
    }
    if (interrupt) {
        if (!r)
            PyErr_WriteUnraisable(obj);
        Py_CLEAR(r);
        PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
        Py_DECREF(interrupt);
    }
    return r;
}

static PyObject *job_stop(PyObject *obj, PyObject *none)
{
    (void)none;
    job_forget((JobObject *)obj);
    Py_RETURN_NONE;
}

static PyObject *job_ended(PyObject *obj, void *closure)
{
    JobObject *j = (JobObject *)obj;

    (void)closure;
    return PyBool_FromLong(j->error || j->done_items >= j->n);
}

static PyObject *job_error(PyObject *obj, void *closure)
{
    JobObject *j = (JobObject *)obj;

    (void)closure;
    return Py_NewRef(j->error ? j->error : Py_None);
}

/* ------------------------------------------------------------------ making one */

/* pool._job(fn, items, n, mode, star=, chunk=, timeout=, retries=, priority=, progress=, caller=,
 *           finish=)
 * items: a list, tuple or range of n items, or with n = -1 an iterator. */
PyObject *job_make(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fn",     "items",   "n",       "mode",     "star",
                            "chunk",  "timeout", "retries", "priority", "progress",
                            "caller", "finish",  NULL};
    PoolObject *pool = (PoolObject *)obj;
    PyObject *fn, *items, *timeout = Py_None, *progress = Py_None;
    PyObject *retries = NULL, *priority = NULL, *finished = Py_None;
    struct options opt = {0, 0, 0};
    Py_ssize_t n, chunk = 0;
    int mode, star = 0, caller = 0, sent;
    JobObject *j;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOni|pnOOOOpO", names, &fn, &items, &n, &mode,
                                     &star, &chunk, &timeout, &retries, &priority, &progress,
                                     &caller, &finished) ||
        pool_check_open(pool) < 0)
        return NULL;
    if (option_timeout(timeout, &opt) < 0 || (retries && option_retries(retries, &opt) < 0) ||
        (priority && option_priority(priority, &opt) < 0) || options_fit(pool, &opt) < 0)
        return NULL;
    if (chunk < 0) {
        PyErr_SetString(PyExc_ValueError, "chunk must not be negative");
        return NULL;
    }
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "a map needs a callable, not %.200s: %R",
                     Py_TYPE(fn)->tp_name, fn);
        return NULL;
    }
    if (n >= 0 && !PyList_Check(items) && !PyTuple_Check(items) && !PyRange_Check(items)) {
        PyErr_SetString(PyExc_TypeError, "items must be a list, a tuple or a range");
        return NULL;
    }
    if (state_late_imports(pool->st) < 0)
        return NULL;
    j = (JobObject *)pool->st->job_type->tp_alloc(pool->st->job_type, 0);
    if (!j)
        return NULL;
    j->turn = PyThread_allocate_lock();
    if (!j->turn) {
        Py_DECREF(j);
        return PyErr_NoMemory();
    }
    j->tail = &j->head;
    j->ready_tail = &j->ready;
    j->pool = (PoolObject *)Py_NewRef(pool);
    j->callable = reveal_function(pool->st, fn);
    j->opt = opt;
    j->mode = (enum mode)mode;
    j->star = star;
    j->caller = caller;
    j->chunk = chunk;
    j->n = n;
    j->last_size = 1;
    if (progress != Py_None)
        j->progress = Py_NewRef(progress);
    if (finished != Py_None)
        j->on_done = Py_NewRef(finished);
    if (n >= 0)
        j->seq = Py_NewRef(items);
    else
        j->iter = PyObject_GetIter(items);
    if ((mode == J_MAP || mode == J_ASYNC) && n >= 0)
        j->results = PyList_New(n);
    if (!pool->threads)
        j->fn = pool_function(pool, fn);
    if (!j->callable || (n < 0 && !j->iter) || (!pool->threads && !j->fn) ||
        ((mode == J_MAP || mode == J_ASYNC) && !j->results))
        goto fail;
    if (mode == J_ORDERED || mode == J_UNORDERED) {
        j->open = true;
        pool->iterators++;
    }
    sent = mode == J_MAP ? 0 : send_some(j);
    if (sent < 0) {
        /* In the background, items that cannot be sent fail the job, not the call. */
        if (mode != J_ASYNC || sent == CANNOT_SEND || pool->core->p->refusing ||
            pool->core->p->broken || !PyErr_ExceptionMatches(PyExc_Exception)) {
            job_forget(j);
            goto fail;
        }
        fetch_error(&j->error);
        job_forget(j);
    }
    return (PyObject *)j;
fail:
    job_loosen(j); /* what was sent before it failed is in flight */
    Py_DECREF(j);
    return NULL;
}

static int job_traverse(PyObject *obj, visitproc visit, void *arg)
{
    JobObject *j = (JobObject *)obj;

    /* A chunk whose task runs holds the job, which is then not collected. */
    for (const struct chunk *c = j->head; c; c = c->next) {
        Py_VISIT(c->items);
        Py_VISIT(c->values);
        Py_VISIT(c->error);
    }
    Py_VISIT(Py_TYPE(j));
    if (!j->loose)
        Py_VISIT(j->pool);
    Py_VISIT(j->fn);
    Py_VISIT(j->callable);
    Py_VISIT(j->seq);
    Py_VISIT(j->iter);
    Py_VISIT(j->results);
    Py_VISIT(j->progress);
    Py_VISIT(j->error);
    Py_VISIT(j->again);
    Py_VISIT(j->on_done);
    return 0;
}

static int job_clear(PyObject *obj)
{
    JobObject *j = (JobObject *)obj;

    job_forget(j);
    Py_CLEAR(j->progress);
    Py_CLEAR(j->on_done);
    Py_CLEAR(j->error);
    Py_CLEAR(j->again);
    return 0;
}

static void job_dealloc(PyObject *obj)
{
    JobObject *j = (JobObject *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    PyObject_GC_UnTrack(obj);
    /* Chunks in flight hold the job, so none is left; ended ones may be. */
    if (j->pool)
        job_forget(j);
    job_clear(obj);
    Py_CLEAR(j->fn);
    Py_CLEAR(j->callable);
    Py_CLEAR(j->seq);
    Py_CLEAR(j->iter);
    Py_CLEAR(j->results);
    if (!j->loose)
        Py_CLEAR(j->pool);
    if (j->turn)
        PyThread_free_lock(j->turn);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyMethodDef job_methods[] = {
    {"_get", job_get, METH_O, NULL},
    {"_wait", job_wait, METH_O, NULL},
    {"_watch", job_watch, METH_O, NULL},
    {"_tell", job_tell, METH_NOARGS, NULL},
    {"_stop", job_stop, METH_NOARGS, NULL},
    {"_handle", job_handle, METH_NOARGS, NULL},
    {"next", (PyCFunction)(void (*)(void))job_next_timeout, METH_FASTCALL | METH_KEYWORDS,
     "next($self, timeout=None)\n--\n\nThe next result; TimeoutError after timeout seconds."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef job_getset[] = {
    {"_ended", job_ended, NULL, NULL, NULL},
    {"_error", job_error, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot job_slots[] = {
    {Py_tp_dealloc, job_dealloc},
    {Py_tp_traverse, job_traverse},
    {Py_tp_clear, job_clear},
    {Py_tp_methods, job_methods},
    {Py_tp_getset, job_getset},
    {Py_tp_iter, job_self},
    {Py_tp_iternext, job_next},
    {Py_tp_doc, "A map in progress: an iterator over its results."},
    {0, NULL},
};

PyType_Spec job_spec = {
    .name = "trireme._core.Job",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = job_slots,
};
