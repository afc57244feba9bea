/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * reveal.c - what a task gets in the place of a Shared.
 *
 * A Shared that is an argument gives way to the object that it stands for, and so does one in a
 * tuple, a list or a dict (of exactly these types) among the arguments.  What a functools.partial
 * holds are arguments.  Anywhere else, in an attribute or a closure, it stays what it is.  The rule
 * is the same for every kind of pool, so it is applied behind the unpickling and not by it;
 * _share.reveal() is the same for a serial pool.
 *
 * A container in which something is replaced becomes a copy, the others remain themselves: a task
 * on a thread may be given a list to put something in.  Nothing is walked while this process holds
 * no Shared.
 */
#include <string.h>

#include "ext.h"

#define DEPTH_MAX 64 /* of containers in each other; further down nothing is looked for */

struct search {
    PyTypeObject *shared;
    PyObject *seen; /* id of a container -> what takes its place: against cycles */
    PyObject *kept; /* containers that gave way; their ids must not be used again */
    int depth;
};

static bool is_container(PyObject *v)
{
    return PyTuple_CheckExact(v) || PyList_CheckExact(v) || PyDict_CheckExact(v);
}

/* Is there anything in a container that a search must look at? */
static bool worth_a_look(const struct search *k, PyObject *v)
{
    PyObject *name, *item;
    Py_ssize_t at = 0;

    if (PyDict_CheckExact(v)) {
        while (PyDict_Next(v, &at, &name, &item))
            if (Py_TYPE(item) == k->shared || is_container(item))
                return true;
        return false;
    }
    for (; at < PySequence_Fast_GET_SIZE(v); at++) {
        item = PySequence_Fast_GET_ITEM(v, at);
        if (Py_TYPE(item) == k->shared || is_container(item))
            return true;
    }
    return false;
}

static PyObject *search(struct search *k, PyObject *v);

/* The items are held while they are looked at, and the size is asked for each time: replacing one
 * may run a destructor or, in a dict, a key's comparison, which may change the container. */
static PyObject *search_sequence(struct search *k, PyObject *v)
{
    PyObject *out = NULL;

    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(v); i++) {
        PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(v, i)), *now = search(k, item);

        if (now && now != item && !out && !(out = PySequence_List(v)))
            Py_CLEAR(now);
        Py_DECREF(item);
        if (!now) {
            Py_XDECREF(out);
            return NULL;
        }
        if (out && i < PyList_GET_SIZE(out))
            PyList_SetItem(out, i, now);
        else
            Py_DECREF(now);
    }
    if (out && PyTuple_CheckExact(v))
        Py_SETREF(out, PyList_AsTuple(out));
    else if (!out)
        out = Py_NewRef(v);
    return out;
}

static PyObject *search_dict(struct search *k, PyObject *v)
{
    PyObject *out = NULL, *name, *item, *now;
    Py_ssize_t at = 0;
    int err = 0;

    while (!err && PyDict_Next(v, &at, &name, &item)) {
        Py_INCREF(name);
        Py_INCREF(item);
        now = search(k, item);
        if (!now || (now != item && !out && !(out = PyDict_Copy(v))))
            err = -1;
        else if (now != item)
            err = PyDict_SetItem(out, name, now);
        Py_XDECREF(now);
        Py_DECREF(item);
        Py_DECREF(name);
    }
    if (err) {
        Py_XDECREF(out);
        return NULL;
    }
    return out ? out : Py_NewRef(v);
}

/* What takes v's place: a new reference to v itself, to an object, or to a copy. */
static PyObject *search(struct search *k, PyObject *v)
{
    PyObject *id, *out;

    if (Py_TYPE(v) == k->shared)
        return PyObject_GetAttrString(v, "value");
    if (!is_container(v) || k->depth >= DEPTH_MAX || !worth_a_look(k, v))
        return Py_NewRef(v);
    id = PyLong_FromVoidPtr(v);
    if (!id)
        return NULL;
    out = PyDict_GetItemWithError(k->seen, id);
    if (out || PyErr_Occurred()) {
        Py_DECREF(id);
        return Py_XNewRef(out);
    }
    if (PyDict_SetItem(k->seen, id, v) == 0) {
        k->depth++;
        out = PyDict_CheckExact(v) ? search_dict(k, v) : search_sequence(k, v);
        k->depth--;
    }
    if (out && out != v && (PyDict_SetItem(k->seen, id, out) < 0 || PyList_Append(k->kept, v) < 0))
        Py_CLEAR(out);
    Py_DECREF(id);
    return out;
}

/* What a task gets for v: an argument, or a tuple, list or dict of them.  A new reference. */
PyObject *reveal(struct state *st, PyObject *v)
{
    struct search k = {.shared = (PyTypeObject *)st->shared_type};
    PyObject *live, *out = NULL;
    bool any;

    if (!k.shared || (Py_TYPE(v) != k.shared && (!is_container(v) || !worth_a_look(&k, v))))
        return Py_NewRef(v);
    live = PyObject_GetAttrString((PyObject *)k.shared, "_live");
    if (!live)
        return NULL;
    any = PyDict_Check(live) && PyDict_GET_SIZE(live) > 0;
    Py_DECREF(live);
    if (!any)
        return Py_NewRef(v);
    k.seen = PyDict_New();
    k.kept = PyList_New(0);
    if (k.seen && k.kept)
        out = search(&k, v);
    Py_XDECREF(k.seen);
    Py_XDECREF(k.kept);
    return out;
}

/* The arguments that a functools.partial has already are arguments too. */
PyObject *reveal_function(struct state *st, PyObject *fn)
{
    PyObject *func, *had, *named, *args = NULL, *kwargs = NULL, *out = NULL, *all = NULL;

    if (strcmp(Py_TYPE(fn)->tp_name, "functools.partial") != 0)
        return Py_NewRef(fn);
    func = PyObject_GetAttrString(fn, "func");
    had = func ? PyObject_GetAttrString(fn, "args") : NULL;
    named = had ? PyObject_GetAttrString(fn, "keywords") : NULL;
    args = named ? reveal(st, had) : NULL;
    kwargs = args ? reveal(st, named) : NULL;
    if (kwargs && args == had && kwargs == named) {
        out = Py_NewRef(fn);
    } else if (kwargs && (all = PyTuple_New(PyTuple_GET_SIZE(args) + 1)) != NULL) {
        PyTuple_SET_ITEM(all, 0, Py_NewRef(func));
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++)
            PyTuple_SET_ITEM(all, i + 1, Py_NewRef(PyTuple_GET_ITEM(args, i)));
        out = PyObject_Call((PyObject *)Py_TYPE(fn), all, kwargs);
    }
    Py_XDECREF(func);
    Py_XDECREF(had);
    Py_XDECREF(named);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(all);
    return out;
}
