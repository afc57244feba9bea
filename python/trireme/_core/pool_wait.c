/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool_wait.c - what whoever waits for a pool does: take, tell, show, help, sleep.
 *
 * There is no helper thread: whoever waits takes results, for himself and for everybody else.
 * Taking happens with the GIL, sleeping without it.  What ended and has somebody to tell (a
 * condition, callbacks, asyncio) is told after the batch was taken, outside of any lock.  Output
 * of the workers is shown before that, so that what a task printed is there when its result is.
 */
#include "job.h"

#define OUTPUT_MAX (64u << 10)

int pool_show_output(PoolObject *pool)
{
    struct tri_pool *p = pool->core->p;
    uint64_t sent = 0;
    char *buf;
    uint32_t stream;
    int32_t pid;
    size_t n;
    int err = 0;

    if (p->output_fd < 0)
        return 0;
    for (uint32_t i = 0; i < p->view.nworkers; i++)
        sent += tri_load_acq(&p->view.worker[i].outputs);
    if (sent == pool->outputs_seen || state_late_imports(pool->st) < 0)
        return PyErr_Occurred() ? -1 : 0;
    pool->outputs_seen = sent;
    buf = PyMem_Malloc(OUTPUT_MAX);
    if (!buf) {
        PyErr_NoMemory();
        return -1;
    }
    while (!err && tri_pool_output(p, &stream, &pid, buf, OUTPUT_MAX, &n)) {
        PyObject *r = PyObject_CallFunction(pool->st->deliver, "iy#i", (int)(stream & 0xffff), buf,
                                            (Py_ssize_t)n, (int)pid);

        err = r ? 0 : -1;
        Py_XDECREF(r);
    }
    PyMem_Free(buf);
    return err;
}

void pool_tell_later(PoolObject *pool, PyObject *whose)
{
    if (!pool->told)
        pool->told = PyList_New(0);
    if (pool->told && PyList_Append(pool->told, whose) == 0)
        pool->untold++;
    else
        PyErr_WriteUnraisable(whose);
}

static int tell(PoolObject *pool)
{
    PyObject *told = pool->told, *name, *r, *kind = NULL, *exc = NULL, *tb = NULL;

    if (!told || PyList_GET_SIZE(told) == 0)
        return 0;
    /* The very string of the class: its cache of look-ups would keep each other one. */
    name = PyUnicode_InternFromString("_tell");
    if (!name)
        return -1;
    pool->told = NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(told); i++) {
        r = PyObject_CallMethodNoArgs(PyList_GET_ITEM(told, i), name);
        /* Ctrl-C while a callback ran here is for who waits here, once all have been told. */
        if (!r && !kind && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
            PyErr_Fetch(&kind, &exc, &tb);
        else if (!r)
            PyErr_WriteUnraisable(PyList_GET_ITEM(told, i));
        Py_XDECREF(r);
        pool->untold--;
    }
    Py_DECREF(name);
    Py_DECREF(told);
    if (!kind)
        return 0;
    PyErr_Restore(kind, exc, tb);
    return -1;
}

int pool_after(PoolObject *pool)
{
    if (pool_show_output(pool) < 0)
        return -1;
    return pool->told ? tell(pool) : 0;
}

int pool_pump(PoolObject *pool)
{
    int n = tri_pump(pool->core->p);

    return pool_after(pool) < 0 ? -1 : n;
}

/*
 * A task runs on the stack of one that waits, and is to find nothing of that: no context variable,
 * and no exception that is being handled.  What threading.local() holds both see.
 */
bool pool_help(PoolObject *pool, uint32_t slot, uint64_t ticket)
{
    struct tri_pool *p = pool->core->p;
    PyObject *context, *handled;
    bool done = false;

    if (!pool->threads || pool->core->ended || !tri_worker_inside(p))
        return false;
    context = PyContext_New();
    if (!context || PyContext_Enter(context) < 0) {
        PyErr_Clear();
        Py_XDECREF(context);
        return false;
    }
    handled = PyErr_GetHandledException();
    PyErr_SetHandledException(NULL);
    done = slot == TRI_ANY_SLOT ? tri_worker_help_any(p) : tri_worker_help(p, slot, ticket);
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    if (PyContext_Exit(context) < 0)
        PyErr_Clear();
    Py_DECREF(context);
    return done;
}

int pool_wait(PoolObject *pool, uint32_t key, uint32_t slot, uint64_t ticket, int64_t timeout_ns)
{
    int err;

    /* A thread of the pool waits in a task: see tri_worker_help(). */
    if (timeout_ns < 0 && slot != TRI_ANY_SLOT && pool_help(pool, slot, ticket))
        return PyErr_CheckSignals() < 0 ? -1 : 0;
    Py_BEGIN_ALLOW_THREADS err = tri_wait(pool->core->p, key, slot, ticket, timeout_ns);
    Py_END_ALLOW_THREADS if (PyErr_CheckSignals() < 0) return -1;
    return err == TRI_ETIMEDOUT;
}

int pool_slot(PoolObject *pool, uint32_t *slot)
{
    for (;;) {
        uint32_t key = tri_wait_key(pool->core->p);
        int err = tri_task_new(pool->core->p, slot), n;

        if (!err) {
            pool->core->p->view.slot[*slot].arg_off = 0; /* see value.c: room_to_come */
            return 0;
        }
        if (err != -EAGAIN) {
            raise_code(pool->st, pool->core->p, err);
            return -1;
        }
        n = pool_pump(pool);
        if (n == 0 && pool_help(pool, TRI_ANY_SLOT, 0))
            continue;
        if (n < 0 || (n == 0 && pool_wait(pool, key, TRI_ANY_SLOT, 0, -1) < 0))
            return -1;
    }
}

int pool_push(PoolObject *pool, uint32_t slot, const struct options *opt, void *user,
              uint64_t *ticket)
{
    struct tri_pool *p = pool->core->p;

    for (;;) {
        uint32_t key = tri_wait_key(p);
        int err = tri_task_push(p, slot, opt->priority, opt->retries, user, ticket), n;

        if (err != -EAGAIN)
            return err;
        n = pool_pump(pool);
        if (n == 0 && pool_help(pool, TRI_ANY_SLOT, 0))
            continue;
        if (n < 0 || (n == 0 && pool_wait(pool, key, TRI_ANY_SLOT, 0, -1) < 0))
            return -EINTR; /* with an exception */
    }
}
