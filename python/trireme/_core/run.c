/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run.c - the worker's side: hooks that run Python tasks.
 *
 * In a process the interpreter's main thread is the worker; it holds the GIL except while it
 * rests.  Unpickling arguments is user code and happens inside the task; so does pickling the
 * result.  Whatever a task raises, SystemExit and KeyboardInterrupt included, is its result.
 *
 * In a thread pool the worker is a thread of the owner's with its own thread state; arguments and
 * results are object pointers, kept alive by the future or job until the task has ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "ext.h"

#define FNS_MAX 256
#define GIL_LOAN_NS 1000000 /* a thread that runs only builtins lends the GIL this often */

struct local {
    struct state *st;
    PyObject *module; /* keeps st alive */
    PyObject *fns;    /* id -> callable */
    PyObject *worker; /* trireme._worker */
    PyObject *flush;
    PyObject *worker_dict, *written;
    uint64_t last_id;
    PyObject *last_fn; /* borrowed from fns */
    PyThreadState *ts; /* threads */
    int64_t lent_ns;
};

/* ------------------------------------------------------------------ results */

struct res_room {
    struct tri_worker *w;
};

static uint8_t *res_room(void *ctx, uint64_t bytes, uint64_t *off)
{
    return tri_worker_result_room(((struct res_room *)ctx)->w, bytes, off);
}

/* Bytes become the result.  -1 with MemoryError when the arena has no room. */
static int put_bytes(struct tri_worker *w, const void *bytes, uint64_t n, int code)
{
    struct tri_slot *s = w->slot;
    uint64_t off;
    uint8_t *p = tri_worker_result_room(w, n, &off);

    if (!p) {
        PyErr_Format(PyExc_MemoryError,
                     "a result of %llu bytes does not fit into the pool's shared memory",
                     (unsigned long long)n);
        return -1;
    }
    if (p != bytes)
        memcpy(p, bytes, n);
    s->res_off = off;
    s->res_len = n;
    s->code = code;
    return 0;
}

static int put_buf(struct tri_worker *w, struct tri_buf *b)
{
    struct tri_slot *s = w->slot;
    int err = 0;

    if (b->p == s->res) {
        s->res_off = 0;
        s->res_len = b->len;
    } else {
        err = put_bytes(w, b->p, b->len, s->code);
    }
    tri_buf_free(b);
    return err;
}

/* The exception that is set becomes the result.  Never fails: an empty report is one too. */
static void put_exception(struct tri_worker *w, struct state *st)
{
    PyObject *type, *exc, *tb, *data = NULL;

    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb)
        PyException_SetTraceback(exc, tb);
    w->slot->res_flags &= TRI_R_ARGS_KEPT;
    if (state_late_imports(st) == 0)
        data = PyObject_CallOneArg(st->encode_exception, exc);
    if (!data || !PyBytes_Check(data) ||
        put_bytes(w, PyBytes_AS_STRING(data), (uint64_t)PyBytes_GET_SIZE(data), R_EXCEPTION) < 0) {
        PyErr_Clear();
        w->slot->res_off = w->slot->res_len = 0;
        w->slot->code = R_EXCEPTION;
    }
    Py_XDECREF(data);
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
}

static int put_pickled(struct tri_worker *w, struct state *st, PyObject *value)
{
    struct res_room room = {w};
    PyObject *pair;
    int err;

    if (state_late_imports(st) < 0)
        return -1;
    pair = PyObject_CallOneArg(st->dumps_result, value);
    if (!pair)
        return -1;
    err = pickled_write(pair, res_room, &room, &w->slot->res_off, &w->slot->res_len);
    Py_DECREF(pair);
    w->slot->res_flags |= V_PICKLED;
    return err;
}

static int put_value(struct tri_worker *w, struct state *st, PyObject *value)
{
    struct tri_buf b;
    int err;

    tri_buf_init(&b, w->slot->res, TRI_RES_INLINE);
    err = tri_encode(&b, value);
    if (err == TRI_ENC_OK)
        return put_buf(w, &b);
    tri_buf_free(&b);
    return err == TRI_ENC_ERROR ? -1 : put_pickled(w, st, value);
}

/* ------------------------------------------------------------------ shared objects */

/*
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
static PyObject *arrive(struct state *st, PyObject *v)
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

/* ------------------------------------------------------------------ one task */

static PyObject *function_of(struct tri_worker *w, struct local *l, const struct tri_slot *s)
{
    PyObject *key, *fn, *data;

    if (l->last_fn && l->last_id == s->fn_id)
        return l->last_fn;
    key = PyLong_FromUnsignedLongLong(s->fn_id);
    if (!key)
        return NULL;
    fn = PyDict_GetItemWithError(l->fns, key);
    if (!fn && !PyErr_Occurred() && state_late_imports(l->st) == 0) {
        if (PyDict_GET_SIZE(l->fns) >= FNS_MAX) {
            l->last_fn = NULL;
            PyDict_Clear(l->fns);
        }
        data = PyMemoryView_FromMemory((char *)w->view.base + s->fn_off, s->fn_len, PyBUF_READ);
        fn = data ? PyObject_CallOneArg(l->st->loads, data) : NULL;
        Py_XDECREF(data);
        if (fn)
            Py_SETREF(fn, reveal_function(l->st, fn));
        if (fn && PyDict_SetItem(l->fns, key, fn) < 0)
            Py_CLEAR(fn);
        Py_XDECREF(fn); /* the dictionary holds it */
    }
    Py_DECREF(key);
    if (fn) {
        l->last_fn = fn;
        l->last_id = s->fn_id;
    }
    return fn;
}

static const uint8_t *arg_bytes(const struct tri_worker *w, const struct tri_slot *s)
{
    return s->arg_off ? w->view.base + s->arg_off : s->arg;
}

/* Unpickle the arguments: a tuple, a pair (tuple, dict) or a chunk's list.  *root is the Block that
 * the arrays among them lie in. */
static PyObject *args_unpickle(struct tri_worker *w, struct local *l, struct tri_slot *s,
                               PyObject **root)
{
    PyObject *args;

    *root = NULL;
    if (s->arg_off) {
        *root = block_of_args(l->st, &w->view, s->arg_off, s->arg_len);
        if (!*root)
            return NULL;
    }
    args = pickled_read(l->st, arg_bytes(w, s), s->arg_len, *root);
    if (args)
        Py_SETREF(args, arrive(l->st, args));
    return args;
}

/* Does anybody still look at the arguments?  Then the owner must leave their block alone. */
static void root_release(struct tri_slot *s, PyObject *root)
{
    if (!root)
        return;
    if (Py_REFCNT(root) > 1) {
        ((BlockObject *)root)->kept = true;
        s->res_flags |= TRI_R_ARGS_KEPT;
    }
    Py_DECREF(root);
}

#define STACK_ARGS 8

static PyObject *call_fast(struct tri_worker *w, struct tri_slot *s, PyObject *fn)
{
    PyObject *stack[STACK_ARGS], **args = stack, *r = NULL;
    Py_ssize_t n = (Py_ssize_t)s->items;

    if (n == 0)
        return PyObject_CallNoArgs(fn);
    if (n > STACK_ARGS) {
        args = n > 0 && n < 1 << 20 ? PyMem_Malloc((size_t)n * sizeof *args) : NULL;
        if (!args)
            return PyErr_NoMemory();
    }
    if (tri_decode_seq(arg_bytes(w, s), s->arg_len, args, n) == 0) {
        r = PyObject_Vectorcall(fn, args, (size_t)n, NULL);
        for (Py_ssize_t i = 0; i < n; i++)
            Py_DECREF(args[i]);
    }
    if (args != stack)
        PyMem_Free(args);
    return r;
}

static void run_call(struct tri_worker *w, struct local *l, struct tri_slot *s, PyObject *fn)
{
    PyObject *args = NULL, *root = NULL, *r = NULL;

    if (!(s->flags & (V_PICKLED | V_KWARGS))) {
        r = call_fast(w, s, fn);
    } else {
        args = s->flags & V_PICKLED ? args_unpickle(w, l, s, &root)
                                    : tri_decode(arg_bytes(w, s), s->arg_len, NULL);
        if (args && s->flags & V_KWARGS)
            r = PyObject_Call(fn, PyTuple_GET_ITEM(args, 0), PyTuple_GET_ITEM(args, 1));
        else if (args)
            r = PyObject_Call(fn, args, NULL);
        Py_XDECREF(args);
    }
    if (r && put_value(w, l->st, r) < 0)
        Py_CLEAR(r);
    if (!r)
        put_exception(w, l->st);
    Py_XDECREF(r);
    root_release(s, root);
}

/* ------------------------------------------------------------------ a chunk of a map */

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
        Py_SETREF(args, arrive(st, args));
    if (!args)
        return NULL;
    r = PyObject_Call(fn, args, NULL);
    Py_DECREF(args);
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

static void run_chunk(struct tri_worker *w, struct local *l, struct tri_slot *s, PyObject *fn)
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

static void run_process(struct tri_worker *w, struct tri_slot *s)
{
    struct local *l = w->local;
    PyObject *fn, *r;

    s->code = R_VALUE;
    s->res_flags = 0;
    s->res_off = s->res_len = 0;
    fn = function_of(w, l, s);
    if (!fn)
        put_exception(w, l->st);
    else if (s->flags & V_CHUNK) {
        Py_INCREF(fn);
        run_chunk(w, l, s, fn);
        Py_DECREF(fn);
    } else {
        Py_INCREF(fn);
        run_call(w, l, s, fn);
        Py_DECREF(fn);
    }
    /* _worker._written: has the task written anything?  A look-up is cheaper than a call. */
    if (PyDict_GetItemWithError(l->worker_dict, l->written) != Py_False) {
        r = PyObject_CallNoArgs(l->flush);
        if (!r)
            PyErr_Clear();
        Py_XDECREF(r);
    }
}

/* ------------------------------------------------------------------ threads */

PyObject *reveal(struct state *st, PyObject *args)
{
    return arrive(st, args);
}

PyObject *reveal_kwargs(struct state *st, PyObject *kwargs)
{
    return arrive(st, kwargs);
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
    args = named ? arrive(st, had) : NULL;
    kwargs = args ? arrive(st, named) : NULL;
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

PyObject *call_here(struct state *st, PyObject *fn, PyObject *item, bool star)
{
    PyObject *here = arrive(st, item), *r;

    if (!here)
        return NULL;
    r = star ? call_star(st, fn, here) : call_one(fn, here);
    Py_DECREF(here);
    return r;
}

/* In a slot's arguments: what the future or job keeps alive until the task has ended. */
struct objects {
    PyObject *fn, *args, *kwargs;
};

/* The exception that is set, taken away, with its traceback. */
static PyObject *take_exception(void)
{
    PyObject *type, *exc, *tb;

    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb)
        PyException_SetTraceback(exc, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    return exc;
}

static PyObject *thread_chunk(struct tri_slot *s, const struct objects *o, struct local *l)
{
    Py_ssize_t n = (Py_ssize_t)s->items;
    PyObject *list = PyList_New(n);

    for (Py_ssize_t i = 0; list && i < n; i++) {
        PyObject *r = call_here(l->st, o->fn, PyList_GET_ITEM(o->args, i), s->flags & V_STAR);

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

static void run_thread(struct tri_worker *w, struct tri_slot *s)
{
    struct local *l = w->local;
    const struct thread_ctx *c = w->hooks->ctx;
    struct objects o;
    PyObject *r;
    int64_t now;

    memcpy(&o, s->arg, sizeof o);
    s->code = R_VALUE;
    s->res_flags = 0;
    s->res_off = 0;
    if (c->error)
        r = NULL;
    else
        r = s->flags & V_CHUNK ? thread_chunk(s, &o, l) : PyObject_Call(o.fn, o.args, o.kwargs);
    if (!r) {
        r = c->error ? Py_NewRef(c->error) : take_exception();
        s->code = R_EXCEPTION;
    }
    memcpy(s->res, &r, sizeof r);
    s->res_len = sizeof r;
    now = tri_now_ns();
    if (now - l->lent_ns > GIL_LOAN_NS) {
        Py_BEGIN_ALLOW_THREADS Py_END_ALLOW_THREADS l->lent_ns = now;
    }
}

static void rest(struct tri_worker *w)
{
    Py_BEGIN_ALLOW_THREADS tri_worker_rest(w);
    Py_END_ALLOW_THREADS
}

static int thread_begin(struct tri_worker *w)
{
    struct thread_ctx *c = w->hooks->ctx;
    struct local *l = calloc(1, sizeof *l);

    if (!l)
        return -1;
    l->st = c->st;
    l->ts = PyThreadState_New(c->interp);
    if (!l->ts) {
        free(l);
        return -1;
    }
    PyEval_AcquireThread(l->ts);
    w->local = l;
    if (c->init && !c->error) {
        PyObject *r = PyObject_CallNoArgs(c->init);

        if (!r && !c->error)
            c->error = take_exception();
        PyErr_Clear();
        Py_XDECREF(r);
    }
    return 0;
}

static void thread_end(struct tri_worker *w)
{
    struct local *l = w->local;

    w->local = NULL;
    PyThreadState_Clear(l->ts);
    PyThreadState_DeleteCurrent();
    free(l);
}

const struct tri_hooks thread_hooks = {
    .begin = thread_begin, .run = run_thread, .rest = rest, .end = thread_end};

/* ------------------------------------------------------------------ processes */

static PyObject *send_output(PyObject *self, PyObject *args)
{
    struct tri_worker *w = PyCapsule_GetPointer(self, "trireme.worker");
    unsigned stream;
    const char *data;
    Py_ssize_t n;
    bool sent;

    if (!w || !PyArg_ParseTuple(args, "Iy#", &stream, &data, &n))
        return NULL;
    Py_BEGIN_ALLOW_THREADS sent = tri_worker_output(w, stream, data, (size_t)n);
    Py_END_ALLOW_THREADS if (!sent)
    {
        PyErr_SetString(PyExc_OSError, "the way to the owner was closed");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef send_output_def = {"send", send_output, METH_VARARGS,
                                      "send(stream, data): hand output to the owner."};

static int begin_python(struct tri_worker *w, struct local *l)
{
    const struct tri_ctl *c = w->view.ctl;
    PyObject *data = NULL, *info = NULL, *cap = NULL, *send = NULL, *r = NULL;
    int err = -1;

    l->worker = PyImport_ImportModule("trireme._worker");
    if (!l->worker || state_late_imports(l->st) < 0)
        goto out;
    l->flush = PyObject_GetAttrString(l->worker, "flush");
    l->fns = PyDict_New();
    l->worker_dict = PyModule_GetDict(l->worker);
    l->written = PyUnicode_InternFromString("_written");
    data = PyBytes_FromStringAndSize((const char *)w->view.base + c->setup_off,
                                     (Py_ssize_t)c->setup_len);
    info = data ? PyObject_CallOneArg(l->st->loads, data) : NULL;
    if (!l->flush || !l->fns || !l->written || !info || !PyDict_Check(info))
        goto out;
    if (w->output_fd >= 0) {
        cap = PyCapsule_New(w, "trireme.worker", NULL);
        send = cap ? PyCFunction_New(&send_output_def, cap) : NULL;
        if (!send || PyDict_SetItemString(info, "output", send) < 0)
            goto out;
    }
    r = PyObject_CallMethod(l->worker, "begin", "O", info);
    err = r ? 0 : -1;
out:
    Py_XDECREF(data);
    Py_XDECREF(info);
    Py_XDECREF(cap);
    Py_XDECREF(send);
    Py_XDECREF(r);
    return err;
}

static void note_exception(struct tri_worker *w, struct state *st)
{
    PyObject *type, *exc, *tb, *data;

    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb)
        PyException_SetTraceback(exc, tb);
    if (state_late_imports(st) == 0 &&
        (data = PyObject_CallOneArg(st->encode_exception, exc)) != NULL) {
        if (PyBytes_GET_SIZE(data) > TRI_WORKER_NOTE) {
            /* Too long with its traceback: send it without. */
            Py_DECREF(data);
            PyException_SetTraceback(exc, Py_None);
            data = PyObject_CallOneArg(st->encode_exception, exc);
        }
        if (data && PyBytes_Check(data))
            tri_worker_note(w, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data));
        Py_XDECREF(data);
    }
    PyErr_Clear();
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
}

static int process_begin(struct tri_worker *w)
{
    struct local *l = calloc(1, sizeof *l);
    PyObject *module;

    if (!l)
        return -1;
    w->local = l;
    module = PyImport_ImportModule("trireme._core");
    if (!module)
        return -1;
    l->module = module;
    l->st = state_of(module);
    if (begin_python(w, l) < 0) {
        note_exception(w, l->st);
        return -1;
    }
    return 0;
}

static void process_end(struct tri_worker *w)
{
    struct local *l = w->local;
    PyObject *r = PyObject_CallMethod(l->worker, "end", NULL);

    if (!r)
        PyErr_Clear();
    Py_XDECREF(r);
}

static void before_fork(void *ctx)
{
    (void)ctx;
    PyOS_BeforeFork();
}

static void after_fork_parent(void *ctx)
{
    (void)ctx;
    PyOS_AfterFork_Parent();
}

/* In a warden and in each worker.  What is alive now is frozen: a collection that walked over
 * inherited objects would copy every page they lie on. */
static void after_fork_child(void *ctx)
{
    PyObject *gc, *r;

    (void)ctx;
    PyOS_AfterFork_Child();
    gc = PyImport_ImportModule("gc");
    r = gc ? PyObject_CallMethod(gc, "freeze", NULL) : NULL;
    Py_XDECREF(r);
    Py_XDECREF(gc);
    PyErr_Clear();
}

const struct tri_hooks process_hooks = {.before_fork = before_fork,
                                        .after_fork_parent = after_fork_parent,
                                        .after_fork_child = after_fork_child,
                                        .begin = process_begin,
                                        .run = run_process,
                                        .rest = rest,
                                        .end = process_end};

/* ------------------------------------------------------------------ started by exec */

/* What the shared warden was told on its command line. */
struct warden_ctx {
    PyObject *preload; /* callable, run once the first workers are up */
    char **argv;       /* of a spawned worker, up to its numbers */
    int argc;
};

static bool run_preload(void *ctx)
{
    struct warden_ctx *c = ctx;
    PyObject *r = c->preload ? PyObject_CallNoArgs(c->preload) : NULL;
    bool more = r == Py_True;

    if (!r)
        PyErr_Clear();
    Py_XDECREF(r);
    return more;
}

static void exec_worker(void *ctx, int segment_fd, int output_fd, uint32_t worker, uint32_t gen)
{
    struct warden_ctx *c = ctx;
    char num[4][16];

    snprintf(num[0], sizeof num[0], "%d", segment_fd);
    snprintf(num[1], sizeof num[1], "%d", output_fd);
    snprintf(num[2], sizeof num[2], "%u", worker);
    snprintf(num[3], sizeof num[3], "%u", gen);
    for (int i = 0; i < 4; i++)
        c->argv[c->argc + i] = num[i];
    c->argv[c->argc + 4] = NULL;
    fcntl(segment_fd, F_SETFD, 0);
    if (output_fd >= 0)
        fcntl(output_fd, F_SETFD, 0);
    execv(c->argv[0], c->argv);
}

/* warden_main(main_fd, owner_pidfd, preload, spawn_argv): does not return. */
PyObject *warden_main(PyObject *module, PyObject *args)
{
    struct warden_ctx ctx = {0};
    struct tri_hooks hooks = process_hooks;
    struct tri_warden_start start = {.pool_fd = -1, .output_fd = -1, .hooks = &hooks};
    PyObject *argv;

    (void)module;
    if (!PyArg_ParseTuple(args, "iiOO!", &start.main_fd, &start.owner_pidfd, &ctx.preload,
                          &PyTuple_Type, &argv))
        return NULL;
    /* The process in between leaves, so that the owner's wait() never sees the warden. */
    prctl(PR_SET_NAME, "trireme-warden"); /* from its first moment, see fork_warden() */
    PyOS_BeforeFork();
    switch (fork()) {
    case -1:
        _exit(100 + (errno < 100 ? errno : EAGAIN)); /* _warden.started() makes it an OSError */
    case 0:
        PyOS_AfterFork_Child();
        break;
    default:
        _exit(0);
    }
    fcntl(start.main_fd, F_SETFD, FD_CLOEXEC);
    if (start.owner_pidfd >= 0)
        fcntl(start.owner_pidfd, F_SETFD, FD_CLOEXEC);
    if (ctx.preload == Py_None)
        ctx.preload = NULL;
    ctx.argc = (int)PyTuple_GET_SIZE(argv);
    ctx.argv = calloc((size_t)ctx.argc + 5, sizeof *ctx.argv);
    if (!ctx.argv)
        return PyErr_NoMemory();
    for (int i = 0; i < ctx.argc; i++) {
        ctx.argv[i] = (char *)(uintptr_t)PyUnicode_AsUTF8(PyTuple_GET_ITEM(argv, i));
        if (!ctx.argv[i]) {
            free(ctx.argv);
            return NULL;
        }
    }
    hooks.ctx = &ctx;
    hooks.warden_idle = run_preload;
    hooks.exec_worker = exec_worker;
    start.seg.fd = -1;
    tri_warden_run(&start);
}

static void no_action(int sig)
{
    (void)sig;
}

/* worker_main(segment_fd, output_fd, worker, generation): a spawned worker's life. */
PyObject *worker_main(PyObject *module, PyObject *args)
{
    static const struct tri_hooks *const hooks = &process_hooks;
    struct sigaction sa = {.sa_handler = no_action, .sa_flags = SA_RESTART};
    struct tri_worker w;
    struct tri_segment seg;
    sigset_t mask;
    int segment_fd, output_fd;
    unsigned worker, gen;

    (void)module;
    if (!PyArg_ParseTuple(args, "iiII", &segment_fd, &output_fd, &worker, &gen))
        return NULL;
    /* SIGINT was blocked across exec, lest Ctrl-C meets a half-started interpreter. */
    sigaction(SIGINT, &sa, NULL);
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    fcntl(segment_fd, F_SETFD, FD_CLOEXEC);
    if (output_fd >= 0)
        fcntl(output_fd, F_SETFD, FD_CLOEXEC);
    if (tri_segment_attach(&seg, segment_fd) == 0 &&
        tri_worker_attach(&w, &seg, hooks, worker, gen, output_fd, true) == 0)
        tri_worker_loop(&w);
    _exit(0);
}
