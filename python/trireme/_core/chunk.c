/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * chunk.c - the items of one task, called one after the other.
 *
 * A chunk's items are decoded one by one and its results encoded one by one, between the calls,
 * so that neither all items nor all results are objects at the same time.  Results that have no
 * simple form are kept in a list and pickled together.
 *
 * The first exception ends a chunk and becomes its result; with V_ALL it takes the place of its
 * item's result, and the calls go on with the next item.
 *
 * Tried: a Python loop, `for item in items: result = f(item)`, whose iterator takes the results
 * out of a cell, since the interpreter enters a Python function with less ado from Python than
 * from C.  What it gains there (3 to 10 ns) it loses in the iterator: a map of x*x took as long
 * in 3.11 and 8 % longer in 3.13.
 */
#include "run.h"

/* As PyObject_CallOneArg, without its second look at what came back. */
static inline PyObject *call_one(PyObject *fn, PyObject *item)
{
    PyObject *args[2] = {NULL, item}; /* the first is room for a bound method's self */
    PyTypeObject *type = Py_TYPE(fn);
    vectorcallfunc call = NULL;

    if (type->tp_flags & Py_TPFLAGS_HAVE_VECTORCALL)
        memcpy(&call, (char *)fn + type->tp_vectorcall_offset, sizeof call);
    return call ? call(fn, args + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
                : PyObject_CallOneArg(fn, item);
}

static PyObject *call_star(struct state *st, PyObject *fn, PyObject *item)
{
    PyObject *args = PySequence_Tuple(item), *r;

    /* Of what is neither, the parts have not been looked at. */
    if (args && !PyTuple_CheckExact(item) && !PyList_CheckExact(item))
        Py_SETREF(args, reveal(st, args));
    if (!args)
        return NULL;
    r = PyObject_Call(fn, args, NULL);
    Py_DECREF(args);
    return r;
}

PyObject *call_here(struct state *st, PyObject *fn, PyObject *item, bool star)
{
    PyObject *here = reveal(st, item), *r;

    if (!here)
        return NULL;
    r = star ? call_star(st, fn, here) : call_one(fn, here);
    Py_DECREF(here);
    return r;
}

/* Results of a chunk: streamed into a column while they are simple, else kept in a list. */
struct sink {
    struct tri_worker *w;
    struct state *st;
    struct tri_buf b;
    struct tri_seqw seq;
    PyObject *list;
    Py_ssize_t n;
    bool failures;
};

static int sink_add(struct sink *k, PyObject *r)
{
    int err;

    if (!k->list) {
        err = tri_seqw_add(&k->seq, r);
        if (err == TRI_ENC_OK) {
            k->n++;
            return 0;
        }
        if (err == TRI_ENC_ERROR || tri_seqw_finish(&k->seq) < 0)
            return -1;
        k->list = PyList_New(k->n);
        if (!k->list)
            return -1;
        if (k->n && tri_decode_seq(k->b.p, k->b.len, ((PyListObject *)k->list)->ob_item, k->n) < 0)
            return -1;
    }
    k->n++;
    return PyList_Append(k->list, r);
}

/* An exception of one item becomes a marker in its place. */
static int sink_failure(struct sink *k)
{
    PyObject *type, *exc, *tb, *data, *mark;
    int err = -1;

    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb)
        PyException_SetTraceback(exc, tb);
    data = NULL;
    if (state_late_imports(k->st) == 0)
        data = PyObject_CallOneArg(k->st->encode_exception, exc);
    mark = data ? PyObject_CallOneArg(k->st->failed_type, data) : NULL;
    if (mark)
        err = sink_add(k, mark);
    k->failures = true;
    Py_XDECREF(data);
    Py_XDECREF(mark);
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
    return err;
}

/* Results that cannot be pickled give way to markers, so that the others arrive.  0 or -1. */
static int sink_sieve(struct sink *k)
{
    PyObject *list = k->list, *pair;
    int err = 0;

    k->list = PyList_New(0);
    k->n = 0;
    for (Py_ssize_t i = 0; k->list && !err && i < PyList_GET_SIZE(list); i++) {
        pair = PyObject_CallOneArg(k->st->dumps_result, PyList_GET_ITEM(list, i));
        err = pair ? sink_add(k, PyList_GET_ITEM(list, i)) : sink_failure(k);
        Py_XDECREF(pair);
    }
    Py_DECREF(list);
    return k->list ? err : -1;
}

static int sink_put(struct sink *k)
{
    struct tri_slot *s = k->w->slot;

    if (k->list) {
        if (put_pickled(k->w, k->st, k->list) < 0) {
            if (!(s->flags & V_ALL) || PyErr_ExceptionMatches(PyExc_MemoryError))
                return -1;
            PyErr_Clear();
            s->res_flags &= ~(uint32_t)V_PICKLED;
            if (sink_sieve(k) < 0 || put_pickled(k->w, k->st, k->list) < 0)
                return -1;
        }
        if (k->n > 1)
            s->res_flags |= s->flags & V_ALL; /* result_read() may take them apart */
        s->code = k->failures ? R_FAILURES : R_VALUE;
        return 0;
    }
    if (tri_seqw_finish(&k->seq) < 0)
        return -1;
    s->res_flags |= V_CHUNK;
    return put_buf(k->w, &k->b);
}

void run_chunk(struct tri_worker *w, struct local *l, struct tri_slot *s, PyObject *fn)
{
    struct sink k = {.w = w, .st = l->st};
    struct tri_seqr in;
    PyObject *list = NULL, *root = NULL;
    Py_ssize_t n = (Py_ssize_t)s->items, i = 0;
    bool star = s->flags & V_STAR, pickled = s->flags & V_PICKLED;
    int err = 0;

    tri_buf_init(&k.b, s->res, TRI_RES_INLINE);
    tri_seqw_init(&k.seq, &k.b, n);
    if (pickled) {
        list = args_unpickle(w, l, s, &root);
        if (!list || !PyList_Check(list) || PyList_GET_SIZE(list) != n)
            err = -1;
    } else {
        err = tri_seqr_init(&in, arg_bytes(w, s), s->arg_len);
        if (!err && tri_seqr_len(&in) != n)
            err = -2;
        if (!err)
            tri_seqr_reuse(&in);
    }
    for (; i < n && !err; i++) {
        PyObject *item, *r;

        if (i)
            tri_worker_item(w);
        item = pickled ? Py_NewRef(PyList_GET_ITEM(list, i)) : tri_seqr_next(&in);
        if (!item) {
            err = -1;
            break;
        }
        r = NULL;
        if (pace_call(&l->pace, l->st, fn) == 0)
            r = star ? call_star(l->st, fn, item) : call_one(fn, item);
        Py_DECREF(item);
        if (r)
            err = sink_add(&k, r);
        else if (s->flags & V_ALL)
            err = sink_failure(&k);
        else
            err = -1;
        Py_XDECREF(r);
    }
    if (!pickled)
        tri_seqr_clear(&in);
    Py_XDECREF(list);
    if (!err)
        err = sink_put(&k);
    if (err) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "trireme: a chunk in shared memory is malformed");
        s->res_spare = (uint64_t)i;
        put_exception(w, l->st);
    }
    tri_buf_free(&k.b);
    Py_XDECREF(k.list);
    root_release(s, root);
}

/* The pool was terminated, and these are the items that were not called. */
static PyObject *cut_short(struct state *st)
{
    struct tri_done d = {.status = TRI_ECLOSED};
    PyObject *exc = loss_exception(st, NULL, &d, NULL);

    if (exc)
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_XDECREF(exc);
    return NULL;
}

PyObject *thread_chunk(struct tri_worker *w, struct tri_slot *s, const struct objects *o)
{
    struct local *l = w->local;
    Py_ssize_t n = (Py_ssize_t)s->items;
    PyObject *list = PyList_New(n);

    for (Py_ssize_t i = 0; list && i < n; i++) {
        PyObject *r = NULL;

        if (tri_worker_killed(w)) {
            Py_DECREF(list);
            return cut_short(l->st);
        }
        if (pace_call(&l->pace, l->st, o->fn) == 0)
            r = call_here(l->st, o->fn, PyList_GET_ITEM(o->args, i), s->flags & V_STAR);
        if (!r && (s->flags & V_ALL) && state_late_imports(l->st) == 0) {
            PyObject *exc = take_exception();

            r = PyObject_CallOneArg(l->st->failed_type, exc);
            Py_XDECREF(exc);
            s->code = R_FAILURES;
        }
        if (!r)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, r);
    }
    return list;
}
