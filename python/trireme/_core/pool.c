/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool.c - type PoolBase: opening, submitting, ending.  For waiting see pool_wait.c.
 *
 * Tasks in flight refer to this object and do not hold it, so that it goes when the user drops it;
 * his futures hold nothing either before they have ended.  A pool that goes with tasks in flight
 * must therefore outlive them: Pool.__del__ hands it to a thread that takes what is still to come
 * and then ends it.  So it does where one of the pool's own threads drops it.  In a fork of the
 * owner, and when the interpreter is ending, nothing will come: there it is kept for ever.  Should
 * it be freed in spite of that (a subclass may have a __del__ of its own), what is in flight ends
 * first, and its futures are of no use to anybody meanwhile.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "base/clock.h"
#include "job.h"

/* ------------------------------------------------------------------ core */

void core_hold(struct core *c)
{
    c->refs++;
}

void core_drop(struct core *c)
{
    if (--c->refs > 0)
        return;
    tri_pool_free(c->p);
    Py_XDECREF(c->thread.init);
    Py_XDECREF(c->thread.error);
    free(c);
}

/* ------------------------------------------------------------------ is it of use */

int pool_check(PoolObject *pool)
{
    if (!pool->core) {
        PyErr_SetString(PyExc_ValueError, "the pool was not opened");
        return -1;
    }
    if (pool->dying) {
        PyErr_SetString(PyExc_RuntimeError, "the pool was freed before the task had ended");
        return -1;
    }
    if (tri_pool_is_fork(pool->core->p)) {
        raise_code(pool->st, NULL, TRI_EFORKED);
        return -1;
    }
    return 0;
}

int pool_check_open(PoolObject *pool)
{
    if (pool_check(pool) < 0)
        return -1;
    if (!pool->closed || !pool->iterators)
        return 0; /* or it is the runtime that refuses */
    raise_code(pool->st, pool->core->p, TRI_ECLOSED);
    return -1;
}

/* ------------------------------------------------------------------ opening */

static PyObject *pool_open(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {
        "threads",      "workers",     "shared_warden", "spawn",       "setup",
        "output",       "arena_bytes", "slots",         "spin_ns",     "max_tasks",
        "max_restarts", "fragile",     "serve",         "initializer", NULL};
    PoolObject *self = (PoolObject *)obj;
    struct tri_pool_inside in = {.shared_warden = -1};
    tri_pool_config cfg;
    struct core *core;
    const char *setup;
    Py_ssize_t setup_len;
    int threads, spawn, output, fragile, err;
    unsigned long long arena;
    long long spin;
    unsigned slots, max_tasks, max_restarts;
    PyObject *serve, *init = Py_None;

    tri_pool_config_init(&cfg);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "piipy#pKILIIpO|O", names, &threads,
                                     &cfg.workers, &in.shared_warden, &spawn, &setup, &setup_len,
                                     &output, &arena, &slots, &spin, &max_tasks, &max_restarts,
                                     &fragile, &serve, &init))
        return NULL;
    if (self->core) {
        PyErr_SetString(PyExc_RuntimeError, "the pool is open already");
        return NULL;
    }
    /* Workers forked from here need them all, and have them if they are here before the fork. */
    if (!threads && in.shared_warden < 0 && state_late_imports(self->st) < 0)
        return NULL;
    core = calloc(1, sizeof *core);
    if (!core)
        return PyErr_NoMemory();
    core->refs = 1;
    core->thread.st = self->st;
    core->thread.interp = PyInterpreterState_Get();
    if (threads && init != Py_None)
        core->thread.init = Py_NewRef(init);
    cfg.kind = threads ? TRI_THREAD : TRI_PROCESS;
    cfg.arena_bytes = arena;
    cfg.slots = slots;
    cfg.spin_ns = spin;
    cfg.max_tasks = max_tasks;
    in.hooks = threads ? thread_hooks : process_hooks;
    in.hooks.ctx = threads ? &core->thread : NULL;
    in.want_output = output;
    in.spawn = spawn;
    in.setup = setup;
    in.setup_len = (size_t)setup_len;
    in.max_restarts = max_restarts;
    in.fragile = fragile;
    err = tri_pool_open_inside(&core->p, &cfg, &in);
    if (err) {
        Py_XDECREF(core->thread.init);
        free(core);
        if (err == -ENOMEM) { /* the system's, not the arena's */
            errno = ENOMEM;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        raise_code(self->st, NULL, err);
        return NULL;
    }
    self->core = core;
    self->threads = threads;
    self->serve = Py_NewRef(serve);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ submit */

static PyObject *pool_submit_method(PyObject *obj, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames)
{
    PoolObject *self = (PoolObject *)obj;
    struct options opt = {0, 0, 0};
    PyObject *kwargs = NULL, *fut;

    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "submit() needs a function: submit(f, *args, **kwargs)");
        return NULL;
    }
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i), *value = args[nargs + i];
        int known = option_take(name, value, &opt);

        if (known == 0) {
            if (!kwargs)
                kwargs = PyDict_New();
            if (!kwargs || PyDict_SetItem(kwargs, name, value) < 0)
                known = -1;
        }
        if (known < 0) {
            Py_XDECREF(kwargs);
            return NULL;
        }
    }
    fut = options_fit(self, &opt) < 0 ? NULL : pool_submit(self, args, nargs, kwargs, &opt);
    Py_XDECREF(kwargs);
    return fut;
}

/* ------------------------------------------------------------------ ending */

/* _end(kill, timeout, tell=True, show=True) -> bool: have the workers ended?  tell: futures end
 * with it.  show: what tasks have printed arrives. */
static PyObject *pool_end(PyObject *obj, PyObject *args)
{
    PoolObject *self = (PoolObject *)obj;
    struct core *core = self->core;
    PyObject *kind = NULL, *exc = NULL, *tb = NULL;
    int kill, err, pumped, tell_them = 1, show = 1;
    double timeout;

    if (!PyArg_ParseTuple(args, "pd|pp", &kill, &timeout, &tell_them, &show))
        return NULL;
    if (!core || core->ended || tri_pool_is_fork(core->p))
        Py_RETURN_TRUE;
    core_hold(core);
    tri_pool_refuse(core->p); /* from now on also what iterators would send */
    Py_BEGIN_ALLOW_THREADS err = tri_pool_end(core->p, kill, (int64_t)(timeout * 1e9));
    Py_END_ALLOW_THREADS if (err == 0) core->ended = true;
    /* Everything is over: every future is to be so when the call returns. */
    do {
        pumped = tell_them ? pool_pump(self) : show && core->ended ? pool_show_output(self) : 0;
        if (pumped < 0 && !kind) /* Ctrl-C in a callback: when all are over */
            PyErr_Fetch(&kind, &exc, &tb);
        else if (pumped < 0)
            PyErr_Clear();
    } while (pumped != 0 && core->ended);
    core_drop(core);
    if (kind)
        PyErr_Restore(kind, exc, tb);
    if (PyErr_Occurred() || PyErr_CheckSignals() < 0)
        return NULL;
    return PyBool_FromLong(err == 0);
}

/* _refuse(): take no more tasks, but for those of iterators that are not at their input's end. */
static PyObject *pool_refuse(PyObject *obj, PyObject *none)
{
    PoolObject *self = (PoolObject *)obj;

    (void)none;
    self->closed = true;
    if (self->core && !self->iterators)
        tri_pool_refuse(self->core->p);
    Py_RETURN_NONE;
}

/* _nudge(): let a thread that waits on this pool look around. */
static PyObject *pool_nudge(PyObject *obj, PyObject *none)
{
    PoolObject *self = (PoolObject *)obj;

    (void)none;
    if (self->core)
        tri_wait_nudge(self->core->p);
    Py_RETURN_NONE;
}

/* _inside() -> bool: is this one of its threads, which cannot wait for their own end? */
static PyObject *pool_inside(PyObject *obj, PyObject *none)
{
    const struct core *core = ((PoolObject *)obj)->core;

    (void)none;
    return PyBool_FromLong(core && !core->ended && tri_worker_inside(core->p));
}

/* _pending() -> int: tasks that have not ended. */
static PyObject *pool_pending(PyObject *obj, PyObject *none)
{
    PoolObject *self = (PoolObject *)obj;

    (void)none;
    return PyLong_FromUnsignedLong(self->core ? self->core->p->outstanding + self->core->p->nlost
                                              : 0);
}

/* _step(seconds) -> int: take what has ended, waiting at most so long when there is nothing. */
static PyObject *pool_step(PyObject *obj, PyObject *arg)
{
    PoolObject *self = (PoolObject *)obj;
    int64_t ns;
    uint32_t key;
    int n;

    if (pool_check(self) < 0 || seconds_to_ns(arg, "seconds", &ns) < 0)
        return NULL;
    key = tri_wait_key(self->core->p);
    n = pool_pump(self);
    if (n == 0 && pool_wait(self, key, TRI_ANY_SLOT, 0, ns) >= 0)
        n = pool_pump(self);
    if (PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(n);
}

/* _kill(worker, signal): for tests and for stopping a task that was given up. */
static PyObject *pool_kill(PyObject *obj, PyObject *args)
{
    PoolObject *self = (PoolObject *)obj;
    int worker, sig, err;

    if (!PyArg_ParseTuple(args, "ii", &worker, &sig) || pool_check(self) < 0)
        return NULL;
    if (worker < 0 || (uint32_t)worker >= self->core->p->view.nworkers || sig < 0 || sig > 64) {
        PyErr_SetString(PyExc_ValueError, "no such worker or signal");
        return NULL;
    }
    pthread_mutex_lock(&self->core->p->lock);
    err = tri_control_send(self->core->p, TRI_M_KILL, (uint32_t)worker, sig);
    pthread_mutex_unlock(&self->core->p->lock);
    return PyBool_FromLong(err == 0);
}

static PyObject *pool_pids(PyObject *obj, PyObject *none)
{
    PoolObject *self = (PoolObject *)obj;
    PyObject *list = PyList_New(0), *pid;

    (void)none;
    if (!list || pool_check(self) < 0)
        goto fail;
    for (uint32_t i = 0; !self->threads && i < self->core->p->view.nworkers; i++) {
        const struct tri_worker_line *l = &self->core->p->view.worker[i];

        int32_t now = tri_load_acq(&l->status) == TRI_W_ABSENT ? 0 : tri_load_rlx(&l->pid);

        if (now <= 0) /* it is being started */
            continue;
        pid = PyLong_FromLong(now);
        if (!pid || PyList_Append(list, pid) < 0) {
            Py_XDECREF(pid);
            goto fail;
        }
        Py_DECREF(pid);
    }
    return list;
fail:
    Py_XDECREF(list);
    return NULL;
}

static PyObject *pool_stats(PyObject *obj, PyObject *none)
{
    PoolObject *self = (PoolObject *)obj;
    tri_stats s = {.size = sizeof s};

    (void)none;
    if (!self->core) {
        PyErr_SetString(PyExc_ValueError, "the pool was not opened");
        return NULL;
    }
    tri_pool_stats(self->core->p, &s);
#define U(field) #field, (unsigned long long)s.field
    return Py_BuildValue(
        "{s:i,s:i,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "workers",
        s.workers, "workers_alive", s.workers_alive, U(submitted), U(completed), U(failed),
        U(cancelled), U(lost), U(retried), U(timed_out), U(deaths), U(restarts), U(owner_sleeps),
        U(owner_spins_hit), U(owner_spins_missed), U(wakes), U(arena_live_bytes),
        U(arena_peak_bytes), U(slots), U(slots_free));
#undef U
}

/* _keep(): never free this pool; what refers to it will not end. */
static PyObject *pool_keep(PyObject *obj, PyObject *none)
{
    (void)none;
    Py_INCREF(obj);
    Py_RETURN_NONE;
}

static PyObject *pool_forget(PyObject *obj, PyObject *none)
{
    PoolObject *self = (PoolObject *)obj;

    (void)none;
    PyDict_Clear(self->fns);
    Py_CLEAR(self->last_fn);
    Py_CLEAR(self->born);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ the type */

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PoolObject *self = (PoolObject *)type->tp_alloc(type, 0);

    (void)args;
    (void)kwargs;
    if (!self)
        return NULL;
    self->st = state_of_type(type);
    self->fns = PyDict_New();
    if (!self->st || !self->fns) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int pool_traverse(PyObject *obj, visitproc visit, void *arg)
{
    PoolObject *self = (PoolObject *)obj;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->fns);
    Py_VISIT(self->last_fn);
    Py_VISIT(self->told);
    Py_VISIT(self->serve);
    Py_VISIT(self->born);
    Py_VISIT(self->future_class);
    if (self->core)
        Py_VISIT(self->core->thread.error); /* its traceback has frames, and those the pool */
    return 0;
}

static int pool_clear(PyObject *obj)
{
    PoolObject *self = (PoolObject *)obj;

    Py_CLEAR(self->fns);
    Py_CLEAR(self->last_fn);
    Py_CLEAR(self->told);
    Py_CLEAR(self->serve);
    Py_CLEAR(self->born);
    Py_CLEAR(self->future_class);
    return 0;
}

static void pool_dealloc(PyObject *obj)
{
    PoolObject *self = (PoolObject *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    struct core *core = self->core;
    bool kept = false;

    PyObject_GC_UnTrack(obj);
    if (core) {
        /* Pending futures refer to us still, and other threads may ask them while we wait. */
        self->dying = true;
        if (!core->ended && tri_worker_inside(core->p)) {
            kept = true;
        } else if (!core->ended && !tri_pool_is_fork(core->p)) {
            Py_BEGIN_ALLOW_THREADS tri_pool_end(core->p, true, 2000000000ll);
            Py_END_ALLOW_THREADS core->ended = true;
        }
        if (core->p->outstanding + core->p->nlost > 0) {
            PyObject *kind, *exc, *tb;

            PyErr_Fetch(&kind, &exc, &tb);
            while (tri_pump(core->p) > 0)
                continue;
            PyErr_Restore(kind, exc, tb);
        }
        /* In a fork nothing ends, and pending futures refer to this object for ever. */
        kept = kept || core->p->outstanding + core->p->nlost > 0;
    }
    pool_clear(obj);
    if (!kept) {
        if (core)
            core_drop(core);
        type->tp_free(obj);
    }
    Py_DECREF(type);
}

static PyMethodDef pool_methods[] = {
    {"_open", (PyCFunction)(void (*)(void))pool_open, METH_VARARGS | METH_KEYWORDS, NULL},
    {"submit", (PyCFunction)(void (*)(void))pool_submit_method, METH_FASTCALL | METH_KEYWORDS,
     "submit($self, f, /, *args, timeout=None, retries=0, priority=0, **kwargs)\n--\n\n"
     "Start f(*args, **kwargs) on a worker and return its Future.\n\n"
     "timeout: seconds after which the task's worker is killed and the future ends with\n"
     "TaskTimeout.  retries: how often the task is run again after its worker died.\n"
     "priority: -2 (last) to 2 (first).  Use functools.partial for arguments of these names.\n"
     "Blocks only while very many tasks are in flight."},
    {"_job", (PyCFunction)(void (*)(void))job_make, METH_VARARGS | METH_KEYWORDS, NULL},
    {"_end", pool_end, METH_VARARGS, NULL},
    {"_refuse", pool_refuse, METH_NOARGS, NULL},
    {"_nudge", pool_nudge, METH_NOARGS, NULL},
    {"_pending", pool_pending, METH_NOARGS, NULL},
    {"_inside", pool_inside, METH_NOARGS, NULL},
    {"_step", pool_step, METH_O, NULL},
    {"_kill", pool_kill, METH_VARARGS, NULL},
    {"_pids", pool_pids, METH_NOARGS, NULL},
    {"_stats", pool_stats, METH_NOARGS, NULL},
    {"_forget", pool_forget, METH_NOARGS, NULL},
    {"_keep", pool_keep, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *pool_get_watched(PyObject *obj, void *closure)
{
    (void)closure;
    return PyLong_FromSsize_t(((PoolObject *)obj)->watched);
}

static PyObject *pool_get_broken(PyObject *obj, void *closure)
{
    PoolObject *self = (PoolObject *)obj;

    (void)closure;
    return PyBool_FromLong(self->core && self->core->p->broken);
}

static PyObject *pool_get_refused(PyObject *obj, void *closure)
{
    PoolObject *self = (PoolObject *)obj;

    (void)closure;
    return PyBool_FromLong(!self->core || self->closed || self->core->p->refusing);
}

static PyObject *pool_get_fork(PyObject *obj, void *closure)
{
    PoolObject *self = (PoolObject *)obj;

    (void)closure;
    return PyBool_FromLong(self->core && tri_pool_is_fork(self->core->p));
}

static PyObject *pool_get_untold(PyObject *obj, void *closure)
{
    (void)closure;
    return PyLong_FromSsize_t(((PoolObject *)obj)->untold);
}

static int pool_set_born(PyObject *obj, PyObject *value, void *closure)
{
    PoolObject *self = (PoolObject *)obj;

    (void)closure;
    Py_XSETREF(self->born, value && value != Py_None ? Py_NewRef(value) : NULL);
    return 0;
}

static int pool_set_future_class(PyObject *obj, PyObject *value, void *closure)
{
    PoolObject *self = (PoolObject *)obj;

    (void)closure;
    if (value && state_check_future(self->st, value) < 0)
        return -1;
    Py_XSETREF(self->future_class, Py_XNewRef(value));
    return 0;
}

static PyGetSetDef pool_getset[] = {
    {"_born", NULL, pool_set_born, NULL, NULL},
    {"_future_class", NULL, pool_set_future_class, NULL, NULL},
    {"_watched", pool_get_watched, NULL, NULL, NULL},
    {"_untold", pool_get_untold, NULL, NULL, NULL},
    {"_broken", pool_get_broken, NULL, NULL, NULL},
    {"_refused", pool_get_refused, NULL, NULL, NULL},
    {"_is_fork", pool_get_fork, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_getset},
    {Py_tp_doc, "The part of a pool that is C; trireme.Pool is made from it."},
    {0, NULL},
};

PyType_Spec pool_spec = {
    .name = "trireme._core.PoolBase",
    .basicsize = sizeof(PoolObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pool_slots,
};
