/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * errors.c - what a code of the runtime, or a task's loss, is in Python.
 *
 * The runtime answers with negative codes and facts (tri_done, tri_loss); the exceptions that users
 * see are made by Python code (trireme._losses, trireme._errors), which is imported when the first
 * one is needed.  A pool that its own initializer broke carries that exception in `note`; whoever
 * uses the pool then gets it instead of a loss.
 */
#include <errno.h>
#include <string.h>

#include "ext.h"

void raise_code(struct state *st, struct tri_pool *p, int err)
{
    PyObject *exc;

    if (PyErr_Occurred())
        return;
    switch (err) {
    case -ENOMEM:
        PyErr_SetString(PyExc_MemoryError, "the pool's shared memory is used up");
        return;
    case -EINVAL:
        PyErr_SetString(PyExc_ValueError, "a pool's option is out of range");
        return;
    case TRI_EFORKED:
        PyErr_SetString(PyExc_RuntimeError,
                        "this process is a fork of the pool's owner; open a pool of its own here");
        return;
    case TRI_ECLOSED:
        PyErr_SetString(PyExc_ValueError, "the pool is closed");
        return;
    case TRI_EBROKEN:
        exc = loss_exception(st, p, NULL, NULL);
        if (exc)
            PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_XDECREF(exc);
        return;
    default:
        if (err < 0 && err > -4096) {
            errno = -err;
            PyErr_SetFromErrno(PyExc_OSError);
        } else {
            PyErr_SetString(PyExc_RuntimeError, tri_strerror(err));
        }
    }
}

PyObject *loss_exception(struct state *st, struct tri_pool *p, const struct tri_done *d,
                         PyObject *task)
{
    int status = d ? d->status : TRI_EBROKEN;
    struct tri_loss loss = {0}, past[TRI_PAST_MAX] = {{0}};
    char words[TRI_WORKER_LAST];
    uint32_t skip = 0;
    size_t nwords;
    PyObject *deaths;

    if (state_late_imports(st) < 0)
        return NULL;
    if (status == TRI_EBROKEN && p && p->note_len) {
        PyObject *data = PyBytes_FromStringAndSize((const char *)p->note, p->note_len), *exc;

        exc = data ? PyObject_CallOneArg(st->decode_exception, data) : NULL;
        Py_XDECREF(data);
        return exc;
    }
    if (status == TRI_EBROKEN && p)
        loss = p->broken_loss;
    else if (d)
        loss = d->loss;
    deaths = PyList_New(d ? (Py_ssize_t)d->npast : 0);
    if (!deaths)
        return NULL;
    if (d)
        memcpy(past, d->res, d->npast * sizeof *past);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(deaths); i++) {
        PyObject *one = Py_BuildValue("(iiii)", (int)past[i].pid, (int)past[i].signal,
                                      (int)past[i].exitcode, (int)past[i].oom);

        if (!one) {
            Py_DECREF(deaths);
            return NULL;
        }
        PyList_SET_ITEM(deaths, i, one);
    }
    nwords = p ? tri_last_words(p, &loss, words, sizeof words, &skip) : 0;
    return PyObject_CallFunction(
        st->lost, "isiiiiINdOy#I", status,
        status == TRI_EBROKEN ? p ? tri_broken_why(p) : "its warden died" : tri_strerror(status),
        (int)loss.pid, (int)loss.signal, (int)loss.exitcode, (int)loss.oom,
        d ? (unsigned)d->deaths : 0, deaths, d ? (double)d->exec_ns / 1e9 : 0.0,
        task ? task : Py_None, words, (Py_ssize_t)nwords, (unsigned)skip);
}
