/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * future.c - type FutureBase: the owner's handle on one call.
 *
 * trireme.Future is made from it and from concurrent.futures.Future, so the standard library's
 * wait(), as_completed() and asyncio.wrap_future() accept it.  What they look at (_condition,
 * _state, _waiters, ...) are attributes computed here, and a condition is made only when somebody
 * asks for it: a future that is only waited for with result() costs no lock and no thread.
 * Asking for the condition of a pending future *watches* it: from then on the pool's watching
 * thread runs until it has ended, because nobody else might take its result.
 *
 * A pending future refers to its pool without holding it: else a pool that everybody has dropped
 * would live on by tasks that nobody waits for.  The pool sees to it that it outlives whatever is
 * pending (pool.c).  One whose result was taken and not read holds it until that is read.
 *
 * The garbage collector does not see a future while it is pending, when the pool's hold keeps it
 * alive in any case, nor afterwards while nothing hangs on it that could lead back to it (a pool
 * can, by the functions it remembers).  With
 * 50,000 futures out, the collector's walks over them cost a third of submitting them.
 *
 * A result that is a pickle stays bytes until somebody asks for the value: unpickling is user code
 * and runs on the thread that wants the value, never on one that happens to take it.  It may run
 * for long and let other threads run; those that want the value too wait until it is there.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "run.h"

static FutureObject *of_user(struct tri_user *u)
{
    return (FutureObject *)((char *)u - offsetof(FutureObject, user));
}

/* ------------------------------------------------------------------ ending */

/* Something may now hang on this future that refers to it: show it to the collector. */
static void show(FutureObject *f)
{
    if (f->phase != F_PENDING && !PyObject_GC_IsTracked((PyObject *)f) &&
        ((f->value && PyObject_IS_GC(f->value)) || f->raw || f->held || f->condition ||
         f->waiters || f->callbacks || f->attributes))
        PyObject_GC_Track(f);
}

/* The task is over: release what it needed, and note who must be told.  What f says of the pool is
 * right before: a collection may begin here, and counts what refers to what. */
static void settle(FutureObject *f, PoolObject *pool)
{
    if (f->raw)
        Py_INCREF(pool);
    else
        f->pool = NULL;
    f->nth = ++pool->ends;
    Py_CLEAR(f->fn);
    if (f->phase == F_VALUE || f->phase == F_CANCELLED)
        Py_CLEAR(f->held);
    show(f);
    if (!f->watched)
        return;
    pool->watched--;
    pool_tell_later(pool, (PyObject *)f);
}

static void set_error(FutureObject *f, PyObject *exc)
{
    if (!exc) {
        PyObject *type, *tb;

        PyErr_Fetch(&type, &exc, &tb);
        PyErr_NormalizeException(&type, &exc, &tb);
        if (tb && exc)
            PyException_SetTraceback(exc, tb);
        Py_XDECREF(type);
        Py_XDECREF(tb);
    }
    Py_XSETREF(f->value, exc);
    f->phase = F_EXCEPTION;
}

static void future_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d)
{
    FutureObject *f = of_user(u);
    PoolObject *pool = f->pool;

    (void)p;
    if (pool->dying) {
        result_drop(pool, d);
        PyErr_SetString(PyExc_RuntimeError, "the pool was freed before the task had ended");
        set_error(f, NULL);
    } else if (!d->status && pool->threads) {
        f->value = result_read(pool, d);
        f->phase = d->code == R_EXCEPTION ? F_EXCEPTION : F_VALUE;
    } else if (!d->status && d->code == R_VALUE && !(d->res_flags & V_PICKLED)) {
        f->value = result_read(pool, d);
        f->phase = F_VALUE;
        if (!f->value)
            set_error(f, NULL);
    } else {
        f->raw = PyMem_RawMalloc(sizeof *d);
        if (f->raw) {
            *f->raw = *d;
            f->phase = d->status || d->code == R_EXCEPTION ? F_EXCEPTION : F_VALUE;
        } else {
            result_drop(pool, d);
            PyErr_NoMemory();
            set_error(f, NULL);
        }
    }
    settle(f, pool);
    Py_DECREF(f); /* the pool's hold */
}

/* Unpickle, or make the exception, that has been waiting for somebody to want it.  (Most are not
 * wanted: a program that ends with a thousand tasks in flight should not make a thousand.) */
static void thaw(FutureObject *f)
{
    struct tri_done *d = f->raw;
    PoolObject *pool = f->pool;
    PyObject *v;

    if (!d)
        return;
    f->reader = PyThread_get_thread_ident(); /* other threads see that the value is to come */
    if (d->status)
        v = loss_exception(pool->st, pool->core->p, d, f->held);
    else
        v = f->phase == F_EXCEPTION ? result_exception(pool, d) : result_read(pool, d);
    if (v)
        Py_XSETREF(f->value, v);
    else
        set_error(f, NULL);
    f->raw = NULL;
    f->pool = NULL;
    f->reader = 0;
    PyMem_RawFree(d);
    show(f);
    if (f->awaited)
        tri_wait_nudge(pool->core->p);
    Py_DECREF(pool);
}

/* ------------------------------------------------------------------ submit */

/* What cannot be pickled costs its own future, not the caller's loop.  Ctrl-C is raised here. */
static PyObject *unsent(PoolObject *pool, FutureObject *f)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        Py_DECREF(f);
        return NULL;
    }
    ask_facade(pool, "_unsent");
    set_error(f, NULL);
    show(f);
    return (PyObject *)f;
}

/*
 * What submit() makes.  Future derives from concurrent.futures.Future, whose import takes longer
 * than a fork: the first submit() of all does it, while the pool's workers start.
 */
static PyTypeObject *future_class(PoolObject *pool)
{
    if (pool->future_class)
        return (PyTypeObject *)pool->future_class;
    if (!pool->st->future_class) {
        PyObject *module = PyImport_ImportModule("trireme._future");

        if (!module)
            return NULL;
        Py_DECREF(module);
        if (!pool->st->future_class)
            PyErr_SetString(PyExc_SystemError, "trireme: no future class is set");
    }
    return (PyTypeObject *)pool->st->future_class;
}

PyObject *pool_submit(PoolObject *pool, PyObject *const *args, Py_ssize_t nargs, PyObject *kwargs,
                      const struct options *opt)
{
    PyTypeObject *cls = future_class(pool);
    struct tri_pool *p;
    struct tri_slot *s;
    FutureObject *f;
    FnObject *fn = NULL;
    uint32_t slot;
    int err;

    if (!cls || pool_check_open(pool) < 0)
        return NULL;
    p = pool->core->p;
    if (!PyCallable_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "a task needs a callable, not %.200s: %R",
                     Py_TYPE(args[0])->tp_name, args[0]);
        return NULL;
    }
    f = (FutureObject *)cls->tp_alloc(cls, 0);
    if (!f)
        return NULL;
    PyObject_GC_UnTrack(f);
    if (!pool->threads && !(fn = pool_function(pool, args[0])))
        return unsent(pool, f);
    if (pool_slot(pool, &slot) < 0) {
        Py_XDECREF(fn);
        Py_DECREF(f);
        return NULL;
    }
    s = &p->view.slot[slot];
    s->timeout_ns = opt->timeout_ns;
    s->arg_off = 0;
    s->flags = TRI_F_PY | (opt->retries > 0 ? V_AGAIN : 0);
    f->user.ended = future_ended;
    f->fn = fn;
    f->slot = slot;
    if (!fn) { /* a thread's task needs no pickle */
        PyObject *tuple = PyTuple_New(nargs - 1), *fn_now = NULL;
        struct objects objects;

        for (Py_ssize_t i = 1; tuple && i < nargs; i++)
            PyTuple_SET_ITEM(tuple, i - 1, Py_NewRef(args[i]));
        if (tuple)
            Py_SETREF(tuple, reveal(pool->st, tuple));
        kwargs = kwargs && tuple ? reveal(pool->st, kwargs) : NULL;
        if (tuple && !PyErr_Occurred())
            fn_now = reveal_function(pool->st, args[0]);
        if (tuple && fn_now && !PyErr_Occurred())
            f->held = PyTuple_Pack(3, fn_now, tuple, kwargs ? kwargs : Py_None);
        objects = (struct objects){fn_now, tuple, kwargs, f};
        Py_XDECREF(fn_now); /* held holds them */
        Py_XDECREF(tuple);
        Py_XDECREF(kwargs);
        s->flags |= V_OBJECTS;
        s->items = 1;
        memcpy(s->arg, &objects, sizeof objects);
        err = f->held ? 0 : -1;
    } else {
        s->fn_id = fn->id;
        s->fn_off = fn->off;
        s->fn_len = fn->len;
        f->held = Py_NewRef(args[0]);
        err = args_write(pool, s, args + 1, nargs - 1, kwargs);
    }
    if (!err) {
        f->pool = pool;
        Py_INCREF(f);
        err = pool_push(pool, slot, opt, &f->user, &f->ticket);
        if (!err)
            return (PyObject *)f;
        Py_DECREF(f);
        f->pool = NULL;
        tri_task_drop(p, slot);
        Py_DECREF(f);
        raise_code(pool->st, p, err);
        return NULL;
    }
    tri_task_drop(p, slot);
    return unsent(pool, f);
}

/* ------------------------------------------------------------------ waiting */

/* Has the task not ended, or does another thread read its result? */
static bool to_come(const FutureObject *f)
{
    return f->phase == F_PENDING || f->reader;
}

/* 0 ended, and thaw() may follow; 1 timed out; -1 exception */
static int wait_for(FutureObject *f, int64_t timeout_ns)
{
    int64_t until = timeout_ns > 0 ? tri_now_ns() + timeout_ns : 0;
    int err = 0;

    while (to_come(f)) {
        PoolObject *pool = f->pool;
        struct tri_pool *p;
        struct tri_done d;
        uint32_t key;

        if (!pool) {
            PyErr_SetString(PyExc_RuntimeError, "this future belongs to no pool");
            return -1;
        }
        if (f->reader == PyThread_get_thread_ident()) {
            PyErr_SetString(PyExc_RuntimeError, "what unpickles this result asks for it");
            return -1;
        }
        if (pool_check(pool) < 0)
            return -1;
        p = pool->core->p;
        key = tri_wait_key(p);
        f->awaited = f->reader != 0;
        Py_INCREF(pool);
        /* Output of a task is shown before its result is given: a look at the counters. */
        if (f->phase == F_PENDING && tri_take_one(p, f->slot, f->ticket, &d)) {
            future_ended(d.user, p, &d);
            tri_wait_nudge(p);
            err = pool_after(pool);
        } else {
            err = pool_pump(pool);
            if (err == 0 && to_come(f)) {
                if (timeout_ns > 0 && (timeout_ns = until - tri_now_ns()) <= 0)
                    timeout_ns = 0;
                err =
                    pool_wait(pool, key, f->reader ? TRI_ANY_SLOT : f->slot, f->ticket, timeout_ns);
                if (err == 1 && to_come(f)) {
                    Py_DECREF(pool);
                    return 1;
                }
            }
        }
        Py_DECREF(pool);
        if (err < 0)
            return -1;
    }
    return 0;
}

static int settled(FutureObject *f, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t nkw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    PyObject *timeout = nargs + nkw == 1 ? args[0] : NULL;
    int64_t ns;
    int err;

    if (nargs + nkw > 1 || (nkw == 1 && PyUnicode_CompareWithASCIIString(
                                            PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0)) {
        PyErr_SetString(PyExc_TypeError, "the only argument is timeout, in seconds");
        return -1;
    }
    if (to_come(f)) {
        if (seconds_to_ns(timeout, "timeout", &ns) < 0)
            return -1;
        err = wait_for(f, ns);
        if (err < 0)
            return -1;
        if (err) {
            PyErr_SetNone(PyExc_TimeoutError);
            return -1;
        }
    }
    if (f->phase == F_CANCELLED) {
        PyObject *base = PyImport_ImportModule("concurrent.futures");
        PyObject *cls = base ? PyObject_GetAttrString(base, "CancelledError") : NULL;

        if (cls)
            PyErr_SetNone(cls);
        Py_XDECREF(cls);
        Py_XDECREF(base);
        return -1;
    }
    thaw(f);
    if (!f->value) { /* the collector has cleared it: somebody's end asks */
        PyErr_SetString(PyExc_RuntimeError, "this future is being freed");
        return -1;
    }
    return 0;
}

static PyObject *future_result(PyObject *obj, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    FutureObject *f = (FutureObject *)obj;

    if (settled(f, args, nargs, kwnames) < 0)
        return NULL;
    if (f->phase == F_EXCEPTION) {
        PyErr_SetObject((PyObject *)Py_TYPE(f->value), f->value);
        return NULL;
    }
    return Py_NewRef(f->value);
}

static PyObject *future_exception(PyObject *obj, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames)
{
    FutureObject *f = (FutureObject *)obj;

    if (settled(f, args, nargs, kwnames) < 0)
        return NULL;
    return Py_NewRef(f->phase == F_EXCEPTION ? f->value : Py_None);
}

/* ------------------------------------------------------------------ state */

/* Take what has ended, so that done() is true as soon as the task is. */
static int look(FutureObject *f)
{
    if (f->phase == F_PENDING && f->pool && f->pool->core && !f->pool->dying &&
        !tri_pool_is_fork(f->pool->core->p)) {
        PoolObject *pool = (PoolObject *)Py_NewRef(f->pool);
        int n = pool_pump(pool);

        Py_DECREF(pool);
        return n < 0 ? -1 : 0;
    }
    return 0;
}

static bool started(const FutureObject *f)
{
    uint64_t w;

    if (f->phase != F_PENDING || !f->pool || !f->pool->core)
        return false;
    w = tri_load_acq(&f->pool->core->p->view.slot[f->slot].state);
    return tri_word_ticket(w) == f->ticket && tri_word_state(w) == TRI_S_STARTED;
}

static PyObject *future_done(PyObject *obj, PyObject *none)
{
    FutureObject *f = (FutureObject *)obj;

    (void)none;
    return look(f) < 0 ? NULL : PyBool_FromLong(f->phase != F_PENDING);
}

static PyObject *future_running(PyObject *obj, PyObject *none)
{
    FutureObject *f = (FutureObject *)obj;

    (void)none;
    return look(f) < 0 ? NULL : PyBool_FromLong(started(f));
}

static PyObject *future_cancelled(PyObject *obj, PyObject *none)
{
    (void)none;
    return PyBool_FromLong(((FutureObject *)obj)->phase == F_CANCELLED);
}

static PyObject *future_cancel(PyObject *obj, PyObject *none)
{
    FutureObject *f = (FutureObject *)obj;
    PoolObject *pool = f->pool;

    (void)none;
    if (f->phase != F_PENDING)
        return PyBool_FromLong(f->phase == F_CANCELLED);
    if (!pool || !pool->core || pool->dying || tri_pool_is_fork(pool->core->p) ||
        tri_task_cancel(pool->core->p, f->slot, f->ticket) != 0)
        Py_RETURN_FALSE;
    Py_INCREF(pool);
    f->phase = F_CANCELLED;
    settle(f, pool);
    Py_DECREF(f);
    if (pool->told && pool_pump(pool) < 0) {
        Py_DECREF(pool);
        return NULL;
    }
    Py_DECREF(pool);
    Py_RETURN_TRUE;
}

/* _announce(): called with the condition held, just before the waiters are told. */
static PyObject *future_announce(PyObject *obj, PyObject *none)
{
    (void)none;
    ((FutureObject *)obj)->announced = true;
    Py_RETURN_NONE;
}

static PyObject *get_condition(PyObject *obj, void *closure)
{
    FutureObject *f = (FutureObject *)obj;
    PyObject *threading, *name, *c, *r;

    (void)closure;
    if (!f->condition) {
        threading = PyImport_ImportModule("threading");
        name = threading ? PyUnicode_InternFromString("Condition") : NULL; /* see pool.c: tell */
        c = name ? PyObject_CallMethodNoArgs(threading, name) : NULL;
        Py_XDECREF(name);
        Py_XDECREF(threading);
        if (!c)
            return NULL;
        if (f->condition)
            Py_DECREF(c);
        else
            f->condition = c;
        show(f);
    }
    if (!f->watched && f->phase == F_PENDING && f->pool && f->pool->serve && !f->pool->dying) {
        f->watched = true;
        f->pool->watched++;
        r = PyObject_CallOneArg(f->pool->serve, (PyObject *)f->pool);
        if (!r) { /* no thread could be started: the next who asks tries again */
            if (f->phase == F_PENDING) {
                f->watched = false;
                f->pool->watched--;
            }
            return NULL;
        }
        Py_DECREF(r);
    }
    return Py_NewRef(f->condition);
}

static PyObject *list_of(FutureObject *f, PyObject **list)
{
    if (!*list)
        *list = PyList_New(0);
    show(f);
    return Py_XNewRef(*list);
}

static PyObject *get_waiters(PyObject *obj, void *closure)
{
    (void)closure;
    return list_of((FutureObject *)obj, &((FutureObject *)obj)->waiters);
}

static PyObject *get_callbacks(PyObject *obj, void *closure)
{
    (void)closure;
    return list_of((FutureObject *)obj, &((FutureObject *)obj)->callbacks);
}

static int set_callbacks(PyObject *obj, PyObject *value, void *closure)
{
    (void)closure;
    Py_XSETREF(((FutureObject *)obj)->callbacks, Py_XNewRef(value));
    show((FutureObject *)obj);
    return 0;
}

static PyObject *get_state(PyObject *obj, void *closure)
{
    FutureObject *f = (FutureObject *)obj;

    (void)closure;
    /* Whoever is told of the end must not have seen it before: wait() would count it twice. */
    if (f->phase == F_PENDING || (f->watched && !f->announced))
        return PyUnicode_InternFromString(started(f) ? "RUNNING" : "PENDING");
    return PyUnicode_InternFromString(f->phase == F_CANCELLED ? "CANCELLED_AND_NOTIFIED"
                                                              : "FINISHED");
}

static PyObject *get_value(PyObject *obj, void *closure)
{
    FutureObject *f = (FutureObject *)obj;
    bool want_exc = closure != NULL;

    if (f->reader && wait_for(f, -1) < 0)
        return NULL;
    if (f->phase == F_VALUE || f->phase == F_EXCEPTION)
        thaw(f);
    if ((f->phase == F_EXCEPTION) == want_exc && f->value)
        return Py_NewRef(f->value);
    Py_RETURN_NONE;
}

static PyObject *get_nth(PyObject *obj, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((FutureObject *)obj)->nth);
}

/* An attribute of the user's own. */
static int future_setattro(PyObject *obj, PyObject *name, PyObject *value)
{
    FutureObject *f = (FutureObject *)obj;

    f->attributes = true;
    show(f);
    return PyObject_GenericSetAttr(obj, name, value);
}

/* ------------------------------------------------------------------ the type */

static int future_traverse(PyObject *obj, visitproc visit, void *arg)
{
    FutureObject *f = (FutureObject *)obj;

    Py_VISIT(Py_TYPE(f));
    if (f->phase != F_PENDING)
        Py_VISIT(f->pool);
    Py_VISIT(f->value);
    Py_VISIT(f->held);
    Py_VISIT(f->fn);
    Py_VISIT(f->condition);
    Py_VISIT(f->waiters);
    Py_VISIT(f->callbacks);
    return 0;
}

static int future_clear(PyObject *obj)
{
    FutureObject *f = (FutureObject *)obj;

    Py_CLEAR(f->value);
    Py_CLEAR(f->held);
    Py_CLEAR(f->condition);
    Py_CLEAR(f->waiters);
    Py_CLEAR(f->callbacks);
    return 0;
}

static void future_dealloc(PyObject *obj)
{
    FutureObject *f = (FutureObject *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    PyObject_GC_UnTrack(obj);
    if (f->raw) {
        result_drop(f->pool, f->raw);
        PyMem_RawFree(f->raw);
    }
    future_clear(obj);
    Py_CLEAR(f->fn);
    if (f->phase != F_PENDING)
        Py_CLEAR(f->pool);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyMethodDef future_methods[] = {
    {"result", (PyCFunction)(void (*)(void))future_result, METH_FASTCALL | METH_KEYWORDS,
     "result($self, timeout=None)\n--\n\n"
     "The value of the call, or its exception raised with the worker's traceback as __cause__.\n\n"
     "Blocks for at most timeout seconds, then raises TimeoutError; None waits for ever."},
    {"exception", (PyCFunction)(void (*)(void))future_exception, METH_FASTCALL | METH_KEYWORDS,
     "exception($self, timeout=None)\n--\n\n"
     "The exception of the call, or None.  Blocks like result()."},
    {"done", future_done, METH_NOARGS, "done($self)\n--\n\nHas the call ended or been cancelled?"},
    {"running", future_running, METH_NOARGS, "running($self)\n--\n\nHas a worker started it?"},
    {"cancelled", future_cancelled, METH_NOARGS, "cancelled($self)\n--\n\nWas it cancelled?"},
    {"cancel", future_cancel, METH_NOARGS,
     "cancel($self)\n--\n\nCancel a call that has not started; True if it never will."},
    {"_announce", future_announce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef future_getset[] = {
    {"_condition", get_condition, NULL, NULL, NULL},
    {"_waiters", get_waiters, NULL, NULL, NULL},
    {"_done_callbacks", get_callbacks, set_callbacks, NULL, NULL},
    {"_state", get_state, NULL, NULL, NULL},
    {"_result", get_value, NULL, NULL, NULL},
    {"_exception", get_value, NULL, NULL, "exception"},
    {"_nth", get_nth, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot future_slots[] = {
    {Py_tp_dealloc, future_dealloc},
    {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},
    {Py_tp_setattro, future_setattro},
    {Py_tp_methods, future_methods},
    {Py_tp_getset, future_getset},
    {Py_tp_doc, "The part of a future that is C."},
    {0, NULL},
};

PyType_Spec future_spec = {
    .name = "trireme._core.FutureBase",
    .basicsize = sizeof(FutureObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = future_slots,
};
