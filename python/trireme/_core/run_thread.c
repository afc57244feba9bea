/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run_thread.c - the hooks of a thread pool's workers.
 *
 * The worker is a thread of the owner's with its own thread state; arguments and results are
 * object pointers, kept alive by the future or job until the task has ended.  The thread is none
 * of threading's: what that does for its own, and tasks or tools rely on, is done here.
 */
#include <stdlib.h>
#include <string.h>

#include "run.h"

PyObject *take_exception(void)
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

static void run_thread(struct tri_worker *w, struct tri_slot *s)
{
    struct local *l = w->local;
    const struct thread_ctx *c = w->hooks->ctx;
    struct objects o;
    PyObject *r;

    memcpy(&o, s->arg, sizeof o);
    s->code = R_VALUE;
    s->res_flags = 0;
    s->res_off = 0;
    if (c->error)
        r = NULL;
    else if (s->flags & V_CHUNK)
        r = thread_chunk(w, s, &o);
    else
        r = pace_call(&l->pace, l->st, o.fn) < 0 ? NULL : PyObject_Call(o.fn, o.args, o.kwargs);
    if (!r) {
        r = c->error ? Py_NewRef(c->error) : take_exception();
        s->code = R_EXCEPTION;
    }
    /* Nobody may ever take this result: a method's own object that has the pool, and nobody else
     * has, must not be kept by it. */
    if (!(s->flags & V_CHUNK))
        Py_CLEAR(o.future->held);
    memcpy(s->res, &r, sizeof r);
    s->res_len = sizeof r;
}

/* What threading.settrace() and setprofile() ask of new threads, which coverage lives by. */
static void follow_hooks(void)
{
    static const char *const hooks[][2] = {{"gettrace", "settrace"}, {"getprofile", "setprofile"}};
    PyObject *name = PyUnicode_FromString("threading");
    PyObject *threading = name ? PyImport_GetModule(name) : NULL;

    for (int i = 0; threading && i < 2; i++) {
        PyObject *hook = PyObject_CallMethod(threading, hooks[i][0], NULL);
        PyObject *set = hook && hook != Py_None ? PySys_GetObject(hooks[i][1]) : NULL, *r;

        if (set) {
            r = PyObject_CallOneArg(set, hook);
            Py_XDECREF(r);
        }
        Py_XDECREF(hook);
        PyErr_Clear();
    }
    Py_XDECREF(threading);
    Py_XDECREF(name);
    PyErr_Clear();
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
    follow_hooks();
    if (c->init && !c->error) {
        PyObject *r = PyObject_CallNoArgs(c->init);

        if (!r && !c->error)
            c->error = take_exception();
        PyErr_Clear();
        Py_XDECREF(r);
    }
    /* The collector cannot be shown what a thread is about to call, and a method of the pool's own
     * holder would keep both for ever: so it goes as soon as nobody will call it any more. */
    if (++c->begun == w->view.nworkers)
        Py_CLEAR(c->init);
    return 0;
}

/*
 * Who asks for current_thread() in a thread that is none of threading's gets an entry there, which
 * up to Python 3.12 nobody removes.  The next thread of that number would be taken for this one.
 */
static void forget_dummy(void)
{
    PyObject *name = PyUnicode_FromString("threading"), *entry = NULL, *me = NULL;
    PyObject *threading = name ? PyImport_GetModule(name) : NULL;
    PyObject *active = threading ? PyObject_GetAttrString(threading, "_active") : NULL;
    PyObject *dummy = active ? PyObject_GetAttrString(threading, "_DummyThread") : NULL;

    if (dummy && PyDict_Check(active))
        me = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (me)
        entry = Py_XNewRef(PyDict_GetItemWithError(active, me));
    if (entry && PyObject_IsInstance(entry, dummy) == 1)
        PyDict_DelItem(active, me);
    PyErr_Clear();
    Py_XDECREF(entry);
    Py_XDECREF(me);
    Py_XDECREF(dummy);
    Py_XDECREF(active);
    Py_XDECREF(threading);
    Py_XDECREF(name);
}

static void thread_end(struct tri_worker *w)
{
    struct local *l = w->local;

    w->local = NULL;
    forget_dummy();
    PyThreadState_Clear(l->ts);
    PyThreadState_DeleteCurrent();
    free(l);
}

const struct tri_hooks thread_hooks = {
    .begin = thread_begin, .run = run_thread, .rest = run_rest, .end = thread_end};
