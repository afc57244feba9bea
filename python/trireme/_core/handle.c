/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * handle.c - type JobHandle: what the user holds of a job that nobody need wait for.
 *
 * Chunks in flight hold their job, and a job its pool, so neither is freed when the user drops it
 * half-way: `for x in pool.imap(...): break`.  A handle is what he drops.  It is the iterator of an
 * imap() and a part of a map_async()'s AsyncResult; only the job knows it not.  With it goes
 *   - what an iterator has not started: nobody can take its results;
 *   - the job's hold on the pool.  What is in flight needs the pool's memory only, and a pool that
 *     is dropped with tasks in flight sees to it that it outlives them (pool.c).
 * A map in the background goes on: its function may be called for what it does.
 */
#include "job.h"

typedef struct HandleObject {
    PyObject_HEAD JobObject *job;
} HandleObject;

PyObject *job_handle(PyObject *job, PyObject *none)
{
    JobObject *j = (JobObject *)job;
    PyTypeObject *type = (PyTypeObject *)j->pool->st->handle_type;
    HandleObject *h = (HandleObject *)type->tp_alloc(type, 0);

    (void)none;
    if (h)
        h->job = (JobObject *)Py_NewRef(job);
    return (PyObject *)h;
}

static PyObject *handle_next(PyObject *obj)
{
    return job_next((PyObject *)((HandleObject *)obj)->job);
}

static PyObject *handle_next_timeout(PyObject *obj, PyObject *const *args, Py_ssize_t n,
                                     PyObject *names)
{
    return job_next_timeout((PyObject *)((HandleObject *)obj)->job, args, n, names);
}

static int handle_traverse(PyObject *obj, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(((HandleObject *)obj)->job);
    return 0;
}

static void handle_dealloc(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    JobObject *j = ((HandleObject *)obj)->job;
    PyObject *kind, *exc, *tb;

    PyObject_GC_UnTrack(obj);
    PyErr_Fetch(&kind, &exc, &tb); /* what is freed here may run code of the user's */
    if (j->mode != J_ASYNC)
        job_forget(j);
    job_loosen(j);
    Py_DECREF(j);
    PyErr_Restore(kind, exc, tb);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyMethodDef handle_methods[] = {
    {"next", (PyCFunction)(void (*)(void))handle_next_timeout, METH_FASTCALL | METH_KEYWORDS,
     "next($self, timeout=None)\n--\n\nThe next result; TimeoutError after timeout seconds."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_methods, handle_methods},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, handle_next},
    {Py_tp_doc,
     "The results of a map as they come; when it is dropped, so is what has not started."},
    {0, NULL},
};

PyType_Spec handle_spec = {
    .name = "trireme._core.JobHandle",
    .basicsize = sizeof(HandleObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = handle_slots,
};
