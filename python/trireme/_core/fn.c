/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fn.c - a callable as it travels: pickled once per pool, referred to by an id afterwards.
 *
 * A pool remembers the Function of every callable it was given.  A callable that travels by value
 * takes the values of globals and closure cells along, so the memory is only right while those are
 * the same objects.  They are compared by identity, one dictionary look-up each.  A callable that
 * captured something which can change in place is pickled anew, and the bytes are compared.
 * Workers cache by id, so the same bytes get the same id.  After a reload of any module all are
 * pickled anew: see _reload.py.
 *
 * Before the pickle a worker reads the id of the oldest Function that still had tasks when this one
 * was sent: what only older ones need it may forget, see _bindings.py.  Whether one has tasks is
 * told by who else refers to it than the pool's own memory.
 */
#include "ext.h"

static bool has_tasks(const PoolObject *pool, FnObject *f)
{
    return Py_REFCNT(f) > (f->remembered ? 1 : 0) + (pool->last_fn == (PyObject *)f ? 1 : 0);
}

/* The id of the oldest Function of the pool that has tasks, and `own` if none has. */
static uint64_t oldest_with_tasks(const PoolObject *pool, uint64_t own)
{
    for (FnObject *f = pool->core->newest_fn; f; f = f->older) {
        if (has_tasks(pool, f))
            own = f->id; /* ids grow */
    }
    return own;
}

static void fn_link(FnObject *f)
{
    f->older = f->core->newest_fn;
    if (f->older)
        f->older->newer = f;
    f->core->newest_fn = f;
}

static void fn_unlink(FnObject *f)
{
    if (f->newer)
        f->newer->older = f->older;
    else if (f->core->newest_fn == f)
        f->core->newest_fn = f->older;
    if (f->older)
        f->older->newer = f->newer;
}

static void fn_dealloc(FnObject *f)
{
    PyTypeObject *type = Py_TYPE(f);

    PyObject_GC_UnTrack(f);
    fn_unlink(f);
    if (f->off && !tri_pool_is_fork(f->core->p))
        tri_pool_block_free(f->core->p, f->off);
    core_drop(f->core);
    Py_XDECREF(f->fn);
    Py_XDECREF(f->watch);
    Py_XDECREF(f->pickled);
    type->tp_free(f);
    Py_DECREF(type);
}

static int fn_traverse(FnObject *f, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(f));
    Py_VISIT(f->fn);
    Py_VISIT(f->watch);
    return 0;
}

static int fn_clear(FnObject *f)
{
    Py_CLEAR(f->fn);
    Py_CLEAR(f->watch);
    return 0;
}

static PyType_Slot fn_slots[] = {
    {Py_tp_dealloc, fn_dealloc},
    {Py_tp_traverse, fn_traverse},
    {Py_tp_clear, fn_clear},
    {Py_tp_doc, "A callable as it was sent to a pool."},
    {0, NULL},
};

PyType_Spec fn_spec = {
    .name = "trireme._core.Function",
    .basicsize = sizeof(FnObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = fn_slots,
};

static bool same_or_none(PyObject *now, PyObject *then)
{
    return (now ? now : Py_None) == then;
}

/* Does the dictionary hold these names with these values, in this order, and nothing else? */
static bool holds_only(PyObject *dict, PyObject *names, PyObject *values)
{
    PyObject *name, *value;
    Py_ssize_t pos = 0, n = PyTuple_GET_SIZE(names);

    if (PyDict_Size(dict) != n)
        return false;
    for (Py_ssize_t i = 0; i < n && PyDict_Next(dict, &pos, &name, &value); i++) {
        if (name != PyTuple_GET_ITEM(names, i) || value != PyTuple_GET_ITEM(values, i))
            return false;
    }
    return true;
}

/* Is all that the pickle captured still bound to the same object?  1, 0, -1.  The tuple is
 * function_watch()'s. */
static int captures_same(struct state *st, PyObject *watch)
{
    PyObject *names, *cells, *functions, *namespaces;

    if (watch == Py_None)
        return 1;
    if (PyTuple_GET_ITEM(watch, 2) != Py_False)
        return 0;
    names = PyTuple_GET_ITEM(watch, 0);
    cells = PyTuple_GET_ITEM(watch, 1);
    functions = PyTuple_GET_ITEM(watch, 3);
    namespaces = PyTuple_GET_ITEM(watch, 4);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        PyObject *t = PyList_GET_ITEM(names, i);
        PyObject *now = PyDict_GetItemWithError(PyTuple_GET_ITEM(t, 0), PyTuple_GET_ITEM(t, 1));

        if (!now && PyErr_Occurred())
            return -1;
        if ((now ? now : st->missing) != PyTuple_GET_ITEM(t, 2))
            return 0;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(cells); i++) {
        PyObject *t = PyList_GET_ITEM(cells, i), *now = PyCell_GET(PyTuple_GET_ITEM(t, 0));

        if ((now ? now : st->missing) != PyTuple_GET_ITEM(t, 1))
            return 0;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(functions); i++) {
        PyObject *t = PyList_GET_ITEM(functions, i), *fn = PyTuple_GET_ITEM(t, 0);

        if (PyFunction_GetCode(fn) != PyTuple_GET_ITEM(t, 1) ||
            !same_or_none(PyFunction_GetDefaults(fn), PyTuple_GET_ITEM(t, 2)) ||
            !same_or_none(PyFunction_GetKwDefaults(fn), PyTuple_GET_ITEM(t, 3)))
            return 0;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(namespaces); i++) {
        PyObject *t = PyList_GET_ITEM(namespaces, i);

        if (!holds_only(PyTuple_GET_ITEM(t, 0), PyTuple_GET_ITEM(t, 1), PyTuple_GET_ITEM(t, 2)))
            return 0;
    }
    return 1;
}

static int watch_ok(PyObject *w)
{
    return w == Py_None ||
           (PyTuple_Check(w) && PyTuple_GET_SIZE(w) == 5 && PyList_Check(PyTuple_GET_ITEM(w, 0)) &&
            PyList_Check(PyTuple_GET_ITEM(w, 1)) && PyList_Check(PyTuple_GET_ITEM(w, 3)) &&
            PyList_Check(PyTuple_GET_ITEM(w, 4)));
}

/* Pickle fn and put it into the arena, or find that `old` already holds these bytes. */
static FnObject *fn_send(PoolObject *pool, PyObject *fn, FnObject *old)
{
    struct state *st = pool->st;
    struct tri_pool *p = pool->core->p;
    FnObject *f;
    PyObject *pickled, *watch;
    uint64_t oldest;
    char *to;

    if (state_late_imports(st) < 0)
        return NULL;
    pickled = pool->born ? PyObject_CallFunctionObjArgs(pool->born, st->dumps_function, fn, NULL)
                         : PyObject_CallOneArg(st->dumps_function, fn);
    if (!pickled)
        return NULL;
    watch = PyObject_CallOneArg(st->function_watch, fn);
    if (!watch || !PyBytes_Check(pickled) || !watch_ok(watch)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_SystemError, "trireme: function_watch gave no watch");
        Py_DECREF(pickled);
        Py_XDECREF(watch);
        return NULL;
    }
    if (old && PyBytes_GET_SIZE(pickled) == PyBytes_GET_SIZE(old->pickled) &&
        memcmp(PyBytes_AS_STRING(pickled), PyBytes_AS_STRING(old->pickled),
               (size_t)PyBytes_GET_SIZE(pickled)) == 0) {
        Py_XSETREF(old->watch, watch);
        old->reloads = st->reloads;
        Py_DECREF(pickled);
        return (FnObject *)Py_NewRef(old);
    }
    /* A slot has 32 bits for the length. */
    if (PyBytes_GET_SIZE(pickled) > UINT32_MAX - FN_HEAD) {
        PyErr_Format(PyExc_ValueError,
                     "the function and what it captured are %zd bytes; 4 GiB is the most that "
                     "travels with a function: pass large objects as arguments, or share() them",
                     PyBytes_GET_SIZE(pickled));
        Py_DECREF(pickled);
        Py_DECREF(watch);
        return NULL;
    }
    f = PyObject_GC_New(FnObject, st->fn_type);
    if (!f) {
        Py_DECREF(pickled);
        Py_DECREF(watch);
        return NULL;
    }
    f->core = pool->core;
    core_hold(pool->core);
    f->fn = Py_NewRef(fn);
    f->watch = watch;
    f->pickled = pickled;
    f->reloads = st->reloads;
    f->id = ++pool->next_fn_id;
    f->older = f->newer = NULL;
    f->remembered = false;
    oldest = oldest_with_tasks(pool, f->id);
    fn_link(f);
    f->len = FN_HEAD + (uint32_t)PyBytes_GET_SIZE(pickled);
    f->off = tri_pool_block_new(p, f->len);
    PyObject_GC_Track(f);
    if (!f->off) {
        Py_DECREF(f);
        PyErr_NoMemory();
        return NULL;
    }
    to = tri_pool_at(p, f->off);
    memcpy(to, &oldest, FN_HEAD);
    memcpy(to + FN_HEAD, PyBytes_AS_STRING(pickled), f->len - FN_HEAD);
    return f;
}

/* Take one from the pool's memory; f: its entry.  0 or -1 with an exception. */
static int forget_function(PoolObject *pool, PyObject *key, FnObject *f)
{
    int err;

    f->remembered = false; /* before it may be freed */
    Py_INCREF(key);        /* the entry's own */
    err = PyDict_DelItem(pool->fns, key);
    Py_DECREF(key);
    return err;
}

/* Functions made anew for every call must not pile up, nor must what they have captured. */
static int keep_function(PoolObject *pool, PyObject *key, FnObject *f)
{
    uint64_t bytes = f->len;
    PyObject *one = PyDict_GetItemWithError(pool->fns, key); /* an older version of it */
    Py_ssize_t at = 0;

    if ((one && forget_function(pool, key, (FnObject *)one) < 0) || (!one && PyErr_Occurred()))
        return -1;
    while (PyDict_Next(pool->fns, &at, NULL, &one))
        bytes += ((FnObject *)one)->len;
    while (PyDict_GET_SIZE(pool->fns) >= FNS_MAX ||
           (bytes > FNS_BYTES && PyDict_GET_SIZE(pool->fns) > 0)) {
        PyObject *oldest;

        at = 0;
        PyDict_Next(pool->fns, &at, &oldest, &one);
        bytes -= ((FnObject *)one)->len;
        if (forget_function(pool, oldest, (FnObject *)one) < 0)
            return -1;
    }
    if (PyDict_SetItem(pool->fns, key, (PyObject *)f) < 0)
        return -1;
    f->remembered = true;
    return 0;
}

FnObject *pool_function(PoolObject *pool, PyObject *fn)
{
    FnObject *f = (FnObject *)pool->last_fn;
    PyObject *key;
    int same;

    if (!f || f->fn != fn) {
        key = PyLong_FromVoidPtr(fn);
        if (!key)
            return NULL;
        f = (FnObject *)PyDict_GetItemWithError(pool->fns, key);
        Py_DECREF(key);
        if (!f && PyErr_Occurred())
            return NULL;
    }
    if (f) {
        same = f->reloads == pool->st->reloads ? captures_same(pool->st, f->watch) : 0;
        if (same < 0)
            return NULL;
        if (same) {
            Py_INCREF(f);
            goto remember;
        }
    }
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "a task needs a callable, not %.200s: %R",
                     Py_TYPE(fn)->tp_name, fn);
        return NULL;
    }
    f = fn_send(pool, fn, f);
    if (!f)
        return NULL;
    key = PyLong_FromVoidPtr(fn);
    if (!key || keep_function(pool, key, f) < 0) {
        Py_XDECREF(key);
        Py_DECREF(f);
        return NULL;
    }
    Py_DECREF(key);
remember:
    if (pool->last_fn != (PyObject *)f)
        Py_XSETREF(pool->last_fn, Py_NewRef(f));
    return f;
}
