/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run.c - the worker's side: hooks that run Python tasks.
 *
 * In a process the interpreter's main thread is the worker; it holds the GIL except while it
 * rests.  Unpickling arguments is user code and happens inside the task; so does pickling the
 * result.  Whatever a task raises, SystemExit and KeyboardInterrupt included, is its result.
 * Threads are in run_thread.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "run.h"

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

int put_buf(struct tri_worker *w, struct tri_buf *b)
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

void put_exception(struct tri_worker *w, struct state *st)
{
    PyObject *type, *exc, *tb, *data = NULL;
    int tries = 2; /* what a signal's handler raises meanwhile is not to spoil the report */

    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb)
        PyException_SetTraceback(exc, tb);
    w->slot->res_flags &= TRI_R_ARGS_KEPT;
    while (!data && tries-- > 0) {
        PyErr_Clear();
        if (state_late_imports(st) == 0)
            data = PyObject_CallOneArg(st->encode_exception, exc);
    }
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

int put_pickled(struct tri_worker *w, struct state *st, PyObject *value)
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

/* ------------------------------------------------------------------ one task */

/* What follows uses these of _bindings.py, once a function comes by value.  0 or -1. */
static int find_bindings(struct local *l)
{
    PyObject *module = l->load_function ? NULL : imported("trireme._bindings");

    if (module) {
        l->load_function = PyObject_GetAttrString(module, "load_function");
        l->run_again = PyObject_GetAttrString(module, "run_again");
        l->sent_with = PyObject_GetAttrString(module, "_sent_with");
        l->aside = PyObject_GetAttrString(module, "_aside");
        Py_DECREF(module);
    }
    if (!l->load_function || !l->run_again || !l->sent_with || !l->aside)
        return -1;
    if (PyDict_Check(l->sent_with) && PyDict_Check(l->aside))
        return 0;
    PyErr_SetString(PyExc_SystemError, "trireme: _bindings has no tables");
    return -1;
}

/*
 * The other functions are not its business: a fork of the owner that runs Python for each would
 * write to the pages of that.
 */
static bool has_bindings(const char *pickled, size_t n)
{
    static const char name[] = "trireme._bindings";

    return memmem(pickled, n, name, sizeof name - 1) != NULL;
}

static PyObject *function_read(const struct tri_worker *w, struct local *l,
                               const struct tri_slot *s)
{
    char *at = (char *)w->view.base + s->fn_off;
    PyObject *fn = NULL, *data;
    uint64_t oldest;

    if (state_late_imports(l->st) < 0)
        return NULL;
    if (s->fn_len < FN_HEAD) {
        PyErr_SetString(PyExc_RuntimeError, "a task came without its function");
        return NULL;
    }
    memcpy(&oldest, at, FN_HEAD);
    at += FN_HEAD;
    data = PyMemoryView_FromMemory(at, s->fn_len - FN_HEAD, PyBUF_READ);
    if (data && !has_bindings(at, s->fn_len - FN_HEAD))
        fn = PyObject_CallOneArg(l->st->loads, data);
    else if (data && find_bindings(l) == 0)
        fn = PyObject_CallFunction(l->load_function, "OKK", data, (unsigned long long)s->fn_id,
                                   (unsigned long long)oldest);
    Py_XDECREF(data);
    if (fn)
        Py_SETREF(fn, reveal_function(l->st, fn));
    return fn;
}

/* A function that was loaded before has its globals as they were when it was sent.  0 or -1. */
static int function_again(struct local *l, PyObject *key)
{
    PyObject *r;

    if (!l->aside || PyDict_GET_SIZE(l->aside) == 0)
        return 0;
    r = PyObject_CallOneArg(l->run_again, key);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

/*
 * Is fn for the next tasks, too?  To the facade's every task has an object of its own, as the
 * originals pickle it for each: a method's self, what a partial() holds.  1, 0, -1
 */
static int function_stays(const struct local *l, PyObject *fn)
{
    PyObject *ask, *r;
    int stays;

    if (!l->st->own_arguments || PyFunction_Check(fn))
        return 1;
    ask = PyDict_GetItemString(l->worker_dict, "stateless");
    if (!ask) {
        PyErr_SetString(PyExc_SystemError, "trireme: _worker has no stateless()");
        return -1;
    }
    r = PyObject_CallOneArg(ask, fn);
    stays = r ? PyObject_IsTrue(r) : -1;
    Py_XDECREF(r);
    return stays;
}

/* A new reference.  Of a function that is made anew for each task the table holds None. */
static PyObject *function_of(struct tri_worker *w, struct local *l, const struct tri_slot *s)
{
    PyObject *key, *known, *fn = NULL;
    int stays = 0;

    if (l->last_fn && l->last_id == s->fn_id && l->rebindings == l->st->rebindings)
        return Py_NewRef(l->last_fn);
    key = PyLong_FromUnsignedLongLong(s->fn_id);
    if (!key)
        return NULL;
    known = PyDict_GetItemWithError(l->fns, key);
    if (known && known != Py_None) {
        fn = function_again(l, key) == 0 ? Py_NewRef(known) : NULL;
        stays = 1;
    } else if (known || !PyErr_Occurred()) {
        fn = function_read(w, l, s);
        if (fn && !known) {
            l->fns_bytes += s->fn_len;
            if (PyDict_GET_SIZE(l->fns) >= FNS_MAX || l->fns_bytes > FNS_BYTES) {
                l->last_fn = NULL;
                l->fns_bytes = s->fn_len;
                PyDict_Clear(l->fns);
                if (l->sent_with)
                    PyDict_Clear(l->sent_with);
            }
            stays = function_stays(l, fn);
            if (stays < 0 || PyDict_SetItem(l->fns, key, stays ? fn : Py_None) < 0)
                Py_CLEAR(fn);
        }
    }
    Py_DECREF(key);
    if (fn && stays > 0) {
        l->last_fn = fn; /* the table holds it */
        l->last_id = s->fn_id;
        l->rebindings = l->st->rebindings;
    }
    return fn;
}

const uint8_t *arg_bytes(const struct tri_worker *w, const struct tri_slot *s)
{
    return s->arg_off ? w->view.base + s->arg_off : s->arg;
}

PyObject *args_unpickle(struct tri_worker *w, struct local *l, struct tri_slot *s, PyObject **root)
{
    PyObject *args;

    *root = NULL;
    if (s->arg_off && !(l->st->own_arguments && s->flags & V_AGAIN)) {
        *root = block_of_args(l->st, &w->view, s->arg_off, s->arg_len, !l->st->own_arguments);
        if (!*root)
            return NULL;
    }
    args = pickled_read(l->st, arg_bytes(w, s), s->arg_len, *root);
    if (args)
        Py_SETREF(args, reveal(l->st, args));
    return args;
}

/* Does anybody still look at the arguments?  Then the owner must leave their block alone. */
void root_release(struct tri_slot *s, PyObject *root)
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

static void run_process(struct tri_worker *w, struct tri_slot *s)
{
    struct local *l = w->local;
    PyObject *fn, *r;

    s->code = R_VALUE;
    s->res_flags = 0;
    s->res_off = s->res_len = 0;
    fn = function_of(w, l, s);
    if (!fn || (!(s->flags & V_CHUNK) && pace_call(&l->pace, l->st, fn) < 0))
        put_exception(w, l->st);
    else if (s->flags & V_CHUNK)
        run_chunk(w, l, s, fn);
    else
        run_call(w, l, s, fn);
    Py_XDECREF(fn);
    /* _worker._written: has the task written anything?  A look-up is cheaper than a call. */
    if (PyDict_GetItemWithError(l->worker_dict, l->written) != Py_False) {
        r = PyObject_CallNoArgs(l->flush);
        if (!r)
            PyErr_Clear();
        Py_XDECREF(r);
    }
}

/* ------------------------------------------------------------------ processes */

static PyObject *send_output(PyObject *self, PyObject *args)
{
    struct tri_worker *w = PyCapsule_GetPointer(self, "trireme.worker");
    unsigned stream;
    const char *data;
    Py_ssize_t n;
    int err;

    if (!w || !PyArg_ParseTuple(args, "Iy#", &stream, &data, &n))
        return NULL;
    do {
        Py_BEGIN_ALLOW_THREADS err = tri_worker_output(w, stream, data, (size_t)n);
        Py_END_ALLOW_THREADS if (err == -EINTR && PyErr_CheckSignals() < 0) return NULL;
    } while (err == -EINTR);
    return PyBool_FromLong(err == 0);
}

static PyMethodDef send_output_def = {
    "send", send_output, METH_VARARGS,
    "send(stream, data): hand output to the owner.\n\nFalse: the way there was closed."};

static int begin_python(struct tri_worker *w, struct local *l)
{
    const struct tri_ctl *c = w->view.ctl;
    PyObject *data = NULL, *info = NULL, *cap = NULL, *send = NULL, *r = NULL;
    int err = -1;

    l->worker = imported("trireme._worker");
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
    bool said;

    if (!l)
        return -1;
    w->local = l;
    module = imported("trireme._core");
    if (!module)
        return -1;
    l->module = module;
    l->st = state_of(module);
    l->st->own_arguments = false; /* a fork may have it from where it comes from */
    l->st->epoch++;               /* a worker holds none of its owner's locks */
    crash_begin(w);
    said = l->st->signals_said; /* and not in forks of this one */
    l->st->signals_said = false;
    l->st->worker = w;
    if ((!said && own_signals() < 0) || begin_python(w, l) < 0) {
        if (!w->served) {
            note_exception(w, l->st);
            return -1;
        }
        PyErr_Clear(); /* of what the program has around its tasks: they have been run */
    }
    return 0;
}

/* _worker_serve(): inside of begin(), run the tasks. */
PyObject *worker_serve(PyObject *module, PyObject *none)
{
    struct tri_worker *w = state_of(module)->worker;

    (void)none;
    if (!w || w->served) {
        PyErr_SetString(PyExc_RuntimeError, "not in a worker that begins");
        return NULL;
    }
    crash_serve();
    tri_worker_serve(w);
    Py_RETURN_NONE;
}

void process_end(struct tri_worker *w)
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
    crash_fork();
    PyOS_BeforeFork();
}

static void after_fork_parent(void *ctx)
{
    (void)ctx;
    PyOS_AfterFork_Parent();
}

/* In each worker.  What is alive now is frozen: a collection that walked over
 * inherited objects would copy every page they lie on. */
static void after_fork_child(void *ctx)
{
    PyObject *gc, *r;

    (void)ctx;
    PyOS_AfterFork_Child();
    gc = imported("gc");
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
                                        .rest = run_rest,
                                        .end = process_end};

/* ------------------------------------------------------------------ started by exec */

/* What the shared warden was told on its command line. */
struct warden_ctx {
    PyObject *first;   /* callable, run before the first fork of a worker; None: it has been */
    PyObject *preload; /* callable, run once the first workers are up */
    struct state *st;  /* the module's */
    char **argv;       /* of a spawned worker, up to its numbers */
    int argc;
};

/* Not when the warden starts: workers that are exec'ed have no use for what it imports. */
static void before_worker(void *ctx)
{
    struct warden_ctx *c = ctx;
    PyObject *r = c->first != Py_None ? PyObject_CallNoArgs(c->first) : NULL;

    PyErr_Clear();
    Py_XDECREF(r);
    c->first = Py_None;
    if (state_late_imports(c->st) < 0) /* each worker would, on pages of its own */
        PyErr_Clear();
    crash_fork();
    PyOS_BeforeFork();
}

static bool run_preload(void *ctx)
{
    struct warden_ctx *c = ctx;
    PyObject *r = PyObject_CallNoArgs(c->preload);
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

/* warden_main(main_fd, owner_pidfd, first, preload, spawn_argv): does not return. */
PyObject *warden_main(PyObject *module, PyObject *args)
{
    struct warden_ctx ctx = {0};
    struct tri_hooks hooks = process_hooks;
    struct tri_warden_start start = {.pool_fd = -1, .output_fd = -1, .hooks = &hooks};
    PyObject *argv;

    ctx.st = state_of(module);
    if (!PyArg_ParseTuple(args, "iiOOO!", &start.main_fd, &start.owner_pidfd, &ctx.first,
                          &ctx.preload, &PyTuple_Type, &argv))
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
    hooks.before_fork = before_worker;
    hooks.warden_idle = run_preload;
    hooks.exec_worker = exec_worker;
    start.seg.fd = -1;
    tri_warden_run(&start);
}

/* worker_main(segment_fd, output_fd, worker, generation): a spawned worker's life. */
PyObject *worker_main(PyObject *module, PyObject *args)
{
    static const struct tri_hooks *const hooks = &process_hooks;
    struct tri_worker w;
    struct tri_segment seg;
    int segment_fd, output_fd;
    unsigned worker, gen;

    (void)module;
    if (!PyArg_ParseTuple(args, "iiII", &segment_fd, &output_fd, &worker, &gen))
        return NULL;
    /* SIGINT was blocked across exec, lest Ctrl-C meets a half-started interpreter. */
    tri_worker_signals_end(false);
    fcntl(segment_fd, F_SETFD, FD_CLOEXEC);
    if (output_fd >= 0)
        fcntl(output_fd, F_SETFD, FD_CLOEXEC);
    if (tri_segment_attach(&seg, segment_fd) == 0 &&
        tri_worker_attach(&w, &seg, hooks, worker, gen, output_fd, true) == 0)
        tri_worker_loop(&w);
    _exit(0);
}
