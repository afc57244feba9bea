/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sync.c - the types that multiprocessing's locks, semaphores, events and conditions stand on.
 *
 *   SemLock     a lock, recursive lock or semaphore, with the methods of the original's type
 *   EventSlot   an event
 *   CondSlot    the waiters of a condition, without its lock
 *
 * Each object holds one slot of shared memory (src/shm/slots.c).  What the slot holds is src/shm's
 * to argue about; here is what is private to a process: for a SemLock how often and by which
 * thread it was taken.  That is the owner of a recursive lock, and a fork owns nothing: the count
 * goes with the process's name, so no handler has to run after a fork.
 *
 * Waits first try with the GIL held, then sleep without it, at most SECTION_NS at a time: a signal
 * that came just before the sleep is seen by then, one that comes in it at once.
 *
 * _lend() gives (uid, slot, descriptor), which is what another process needs for _rebuild().
 */
#include "ext.h"

#include <errno.h>
#include <pythread.h>

#include "base/clock.h"
#include "base/self.h"
#include "shm/sync.h"

#define SECTION_NS 500000000

enum { RECURSIVE, SEMAPHORE, LOCK }; /* the first two are the original's kinds */

typedef struct SyncObject {
    PyObject_HEAD struct state *st;
    struct tri_page *page;
    uint32_t slot;
    union {
        void *at;
        tri_lock *lock;
        tri_sem *sem;
        tri_event *event;
        tri_cond *cond;
    };
    /* of a SemLock */
    int kind;
    long max;
    long count;           /* taken by this process, less given back */
    unsigned long thread; /* the last that took it */
    uint64_t process;     /* whose count that is */
    uint64_t signature;   /* what that process leaves in the lock */
    unsigned epoch;       /* struct state's when it was counted */
} SyncObject;

/* ------------------------------------------------------------------ all three */

static SyncObject *sync_alloc(PyTypeObject *type)
{
    struct state *st = state_of_type(type);
    SyncObject *s = st ? (SyncObject *)type->tp_alloc(type, 0) : NULL;

    if (s) {
        s->st = st;
        s->epoch = st->epoch;
    }
    return s;
}

/* Raise what a code of src/shm means; -1. */
static int sync_failed(int err)
{
    if (err == -ENOMEM) {
        PyErr_NoMemory();
    } else if (err == TRI_ECORRUPT) {
        PyErr_SetString(PyExc_ValueError, "the memory that was sent holds no such lock");
    } else {
        errno = -err;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return -1;
}

static int sync_make(SyncObject *s, uint32_t bytes)
{
    int err = tri_slot_new(&s->st->slots, bytes, &s->page, &s->slot);

    if (err) {
        s->page = NULL;
        return sync_failed(err);
    }
    s->at = tri_slot_at(s->page, s->slot);
    return 0;
}

static void sync_dealloc(SyncObject *s)
{
    PyTypeObject *type = Py_TYPE(s);

    if (s->page)
        tri_slot_drop(&s->st->slots, s->page, s->slot);
    type->tp_free(s);
    Py_DECREF(type);
}

PyDoc_STRVAR(lend_doc, "What another process needs: (uid of the page, slot, its descriptor or -1)");

static PyObject *sync_lend(SyncObject *s, PyObject *none)
{
    (void)none;
    return Py_BuildValue("y#Ii", (const char *)s->page->uid, (Py_ssize_t)TRI_UID_BYTES, s->slot,
                         tri_slot_lend(s->page, s->slot));
}

/* Hold the slot that another process lent.  fd -1: the page must be known. */
static int sync_join(SyncObject *s, const Py_buffer *uid, unsigned slot, int fd, uint32_t bytes)
{
    struct tri_page *page;
    int err = 0;

    if (uid->len != TRI_UID_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a page's uid has 16 bytes");
        return -1;
    }
    page = tri_slot_find(&s->st->slots, uid->buf);
    if (page && fd >= 0)
        close(fd);
    else if (!page && fd < 0) {
        PyErr_SetString(PyExc_LookupError, "the page is not known in this process");
        return -1;
    } else if (!page)
        err = tri_slot_attach(&s->st->slots, uid->buf, fd, &page);
    if (!err)
        err = tri_slot_hold(page, slot, bytes);
    if (err)
        return sync_failed(err);
    s->page = page;
    s->slot = slot;
    s->at = tri_slot_at(page, slot);
    return 0;
}

PyDoc_STRVAR(rebuild_doc, "The object for what another process's _lend() gave");

/* _rebuild(uid, slot, fd, kind=0, max=0) */
static PyObject *sync_rebuild(PyObject *cls, PyObject *args)
{
    PyTypeObject *type = (PyTypeObject *)cls;
    SyncObject *s;
    Py_buffer uid;
    unsigned slot;
    int fd, kind = 0, err;
    long max = 0;

    if (!PyArg_ParseTuple(args, "y*Ii|il", &uid, &slot, &fd, &kind, &max))
        return NULL;
    s = sync_alloc(type);
    err = !s ||
          sync_join(s, &uid, slot, fd, type == s->st->cond_type ? TRI_COND_BYTES : TRI_SLOT) < 0;
    PyBuffer_Release(&uid);
    if (err) {
        Py_XDECREF(s);
        return NULL;
    }
    s->kind = kind;
    s->max = max;
    return (PyObject *)s;
}

/* What one slice of waiting is; returns a code of src/shm. */
typedef int (*wait_fn)(SyncObject *s, int arg, int64_t timeout_ns);

/* 1: had it; 0: time is up; -1: an exception (a signal handler raised).  Not inlined: what a lock
 * that nobody holds takes counts in nanoseconds. */
static __attribute__((noinline)) int wait_for(SyncObject *s, wait_fn wait, int arg,
                                              int64_t timeout_ns)
{
    int64_t end = timeout_ns > 0 ? tri_now_ns() + timeout_ns : 0, nap;
    int err;

    for (;;) {
        nap = SECTION_NS;
        if (timeout_ns >= 0) {
            int64_t left = timeout_ns ? end - tri_now_ns() : 0;

            if (left < nap)
                nap = left > 0 ? left : 0;
        }
        Py_BEGIN_ALLOW_THREADS err = wait(s, arg, nap);
        Py_END_ALLOW_THREADS if (!err) return 1;
        if (err != -EINTR && err != TRI_ETIMEDOUT)
            return sync_failed(err);
        if (PyErr_CheckSignals() < 0)
            return -1;
        if (timeout_ns >= 0 && err == TRI_ETIMEDOUT && nap < SECTION_NS)
            return 0;
    }
}

/* ------------------------------------------------------------------ SemLock */

/*
 * A worker and a Process forget what the one that they were forked from had taken: their epoch is
 * another.  After os.fork() alone the child takes itself for a holder, too, as with the original:
 * code that locks, forks and locks again would wait for ever otherwise.
 */
static void own_count(SyncObject *s)
{
    uint64_t me = tri_self_name();

    if (s->process != me || s->epoch != s->st->epoch) {
        if (s->epoch != s->st->epoch)
            s->count = 0;
        s->process = me;
        s->epoch = s->st->epoch;
        if (s->kind != SEMAPHORE)
            s->signature = tri_sign(s->lock->ns);
    }
}

static PyObject *semlock_begin_free(PyTypeObject *type, PyObject *none)
{
    (void)none;
    state_of_type(type)->epoch++;
    Py_RETURN_NONE;
}

/* After own_count(). */
static bool is_mine(const SyncObject *s)
{
    return s->count > 0 && s->thread == PyThread_get_thread_ident();
}

static PyObject *semlock_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"kind", "value", "maxvalue", NULL};
    int kind, value, max;
    SyncObject *s;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "iii", names, &kind, &value, &max))
        return NULL;
    if (kind != RECURSIVE && kind != SEMAPHORE && kind != LOCK) {
        PyErr_SetString(PyExc_ValueError, "unknown kind of lock");
        return NULL;
    }
    if (value < 0 || max < 0) {
        errno = EINVAL; /* as from the system call that the original makes */
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    s = sync_alloc(type);
    if (!s || sync_make(s, TRI_SLOT) < 0) {
        Py_XDECREF(s);
        return NULL;
    }
    s->kind = kind;
    s->max = max;
    if (kind == SEMAPHORE)
        tri_sem_init(s->sem, (uint32_t)value, (uint32_t)max);
    else
        tri_lock_init(s->lock);
    return (PyObject *)s;
}

static int wait_lock(SyncObject *s, int arg, int64_t timeout_ns)
{
    (void)arg;
    return tri_lock_acquire(s->lock, timeout_ns, NULL);
}

static int wait_lock_again(SyncObject *s, int arg, int64_t timeout_ns)
{
    (void)arg;
    return tri_lock_acquire_again(s->lock, timeout_ns, NULL);
}

static int wait_sem(SyncObject *s, int arg, int64_t timeout_ns)
{
    (void)arg;
    return tri_sem_acquire(s->sem, timeout_ns);
}

/* 1, 0 or -1 as wait_for(). */
static int semlock_take(SyncObject *s, int64_t timeout_ns)
{
    int got;

    own_count(s);
    if (s->kind == RECURSIVE && is_mine(s)) {
        s->count++;
        return 1;
    }
    if (s->kind == SEMAPHORE)
        got = tri_sem_acquire(s->sem, 0) == 0 ? 1 : wait_for(s, wait_sem, 0, timeout_ns);
    else if (tri_lock_try(s->lock, s->signature))
        got = 1;
    else
        got = wait_for(s, wait_lock, 0, timeout_ns);
    if (got > 0) {
        s->count++;
        s->thread = PyThread_get_thread_ident();
    }
    return got;
}

static PyObject *semlock_enter(SyncObject *s, PyObject *none)
{
    (void)none;
    return semlock_take(s, -1) < 0 ? NULL : Py_NewRef(Py_True);
}

static PyObject *semlock_acquire(SyncObject *s, PyObject *const *args, Py_ssize_t n,
                                 PyObject *names)
{
    int64_t timeout_ns;
    int got;

    if (n == 0 && !names)
        return semlock_enter(s, NULL);
    if (options_of_acquire(args, n, names, &timeout_ns) < 0)
        return NULL;
    got = semlock_take(s, timeout_ns);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *semlock_release(SyncObject *s, PyObject *none)
{
    int err;

    (void)none;
    own_count(s);
    if (s->kind == RECURSIVE) {
        if (!is_mine(s)) {
            PyErr_SetString(PyExc_AssertionError, "this thread does not hold the recursive lock");
            return NULL;
        }
        if (s->count > 1) {
            s->count--;
            Py_RETURN_NONE;
        }
        if (tri_lock_holder(s->lock) != (s->signature & TRI_NAME_MASK)) {
            s->count = 0; /* counted before os.fork(): it is the parent's to give, or was */
            Py_RETURN_NONE;
        }
    }
    err = s->kind == SEMAPHORE ? tri_sem_release(s->sem) : tri_lock_release(s->lock);
    if (err) {
        PyErr_SetString(PyExc_ValueError, s->kind == SEMAPHORE
                                              ? "the semaphore stands at its maximum already"
                                              : "the lock is not held");
        return NULL;
    }
    s->count--;
    Py_RETURN_NONE;
}

/* For who was notified: others may have been moved to this lock's line with it. */
static PyObject *semlock_take_again(SyncObject *s, PyObject *none)
{
    int got;

    (void)none;
    own_count(s);
    if (s->kind == SEMAPHORE || is_mine(s)) {
        got = semlock_take(s, -1);
    } else {
        got = wait_for(s, wait_lock_again, 0, -1);
        s->count += got > 0;
        if (got > 0)
            s->thread = PyThread_get_thread_ident();
    }
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *semlock_exit(SyncObject *s, PyObject *const *args, Py_ssize_t n)
{
    (void)args;
    if (n > 3) {
        PyErr_Format(PyExc_TypeError, "__exit__() takes at most 3 arguments (%zd given)", n);
        return NULL;
    }
    return semlock_release(s, NULL);
}

static uint32_t value_of(SyncObject *s)
{
    return s->kind == SEMAPHORE ? tri_sem_value(s->sem) : tri_lock_holder(s->lock) == 0;
}

static PyObject *semlock_get_value(SyncObject *s, PyObject *none)
{
    (void)none;
    return PyLong_FromUnsignedLong(value_of(s));
}

static PyObject *semlock_is_zero(SyncObject *s, PyObject *none)
{
    (void)none;
    return PyBool_FromLong(value_of(s) == 0);
}

static PyObject *semlock_is_mine(SyncObject *s, PyObject *none)
{
    (void)none;
    own_count(s);
    return PyBool_FromLong(is_mine(s));
}

static PyObject *semlock_count(SyncObject *s, PyObject *none)
{
    (void)none;
    own_count(s);
    return PyLong_FromLong(s->count);
}

static PyObject *semlock_after_fork(SyncObject *s, PyObject *none)
{
    (void)none;
    s->count = 0;
    Py_RETURN_NONE;
}

static PyObject *semlock_kind(SyncObject *s, void *none)
{
    (void)none;
    return PyLong_FromLong(s->kind == LOCK ? SEMAPHORE : s->kind);
}

static PyObject *semlock_own_kind(SyncObject *s, void *none)
{
    (void)none;
    return PyLong_FromLong(s->kind);
}

static PyObject *semlock_max(SyncObject *s, void *none)
{
    (void)none;
    return PyLong_FromLong(s->max);
}

static PyObject *semlock_handle(SyncObject *s, void *none)
{
    (void)none;
    return PyLong_FromVoidPtr(s->at);
}

static PyObject *semlock_name(SyncObject *s, void *none)
{
    (void)s;
    (void)none;
    Py_RETURN_NONE;
}

#define FAST(f) ((PyCFunction)(void (*)(void))(f))

static PyMethodDef semlock_methods[] = {
    {"acquire", FAST(semlock_acquire), METH_FASTCALL | METH_KEYWORDS,
     "acquire(block=True, timeout=None) -> bool"},
    {"release", (PyCFunction)semlock_release, METH_NOARGS, "release() -> None"},
    {"__enter__", (PyCFunction)semlock_enter, METH_NOARGS, NULL},
    {"__exit__", FAST(semlock_exit), METH_FASTCALL, NULL},
    {"_take_again", (PyCFunction)semlock_take_again, METH_NOARGS,
     "_take_again() -> True: acquire() of who was notified by a condition"},
    {"_get_value", (PyCFunction)semlock_get_value, METH_NOARGS, NULL},
    {"_is_zero", (PyCFunction)semlock_is_zero, METH_NOARGS, NULL},
    {"_is_mine", (PyCFunction)semlock_is_mine, METH_NOARGS, NULL},
    {"_count", (PyCFunction)semlock_count, METH_NOARGS, NULL},
    {"_after_fork", (PyCFunction)semlock_after_fork, METH_NOARGS, NULL},
    {"_begin_free", (PyCFunction)semlock_begin_free, METH_NOARGS | METH_CLASS,
     "This process holds no lock, whatever the one that it was forked from held."},
    {"_lend", (PyCFunction)sync_lend, METH_NOARGS, lend_doc},
    {"_rebuild", (PyCFunction)sync_rebuild, METH_VARARGS | METH_CLASS, rebuild_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef semlock_getset[] = {
    {"kind", (getter)semlock_kind, NULL, "0: recursive lock, 1: semaphore or lock", NULL},
    {"_kind", (getter)semlock_own_kind, NULL, "as kind, but 2: lock", NULL},
    {"maxvalue", (getter)semlock_max, NULL, NULL, NULL},
    {"handle", (getter)semlock_handle, NULL, NULL, NULL},
    {"name", (getter)semlock_name, NULL, "None: it has no name", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot semlock_slots[] = {
    {Py_tp_new, semlock_new},
    {Py_tp_dealloc, sync_dealloc},
    {Py_tp_methods, semlock_methods},
    {Py_tp_getset, semlock_getset},
    {Py_tp_doc, "SemLock(kind, value, maxvalue): a lock or semaphore in memory without a name"},
    {0, NULL},
};

PyType_Spec semlock_spec = {
    .name = "trireme._core.SemLock",
    .basicsize = sizeof(SyncObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = semlock_slots,
};

/* ------------------------------------------------------------------ EventSlot */

/* EventSlot() and CondSlot() take no arguments. */
static SyncObject *plain_new(PyTypeObject *type, PyObject *args, PyObject *kwds, uint32_t bytes)
{
    SyncObject *s;

    if (PyTuple_GET_SIZE(args) || (kwds && PyDict_GET_SIZE(kwds))) {
        PyErr_SetString(PyExc_TypeError, "no arguments are taken");
        return NULL;
    }
    s = sync_alloc(type);
    if (s && sync_make(s, bytes) < 0)
        Py_CLEAR(s);
    return s;
}

static PyObject *event_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    return (PyObject *)plain_new(type, args, kwds, TRI_SLOT);
}

static PyObject *event_is_set(SyncObject *s, PyObject *none)
{
    (void)none;
    return PyBool_FromLong(tri_event_is_set(s->event));
}

static PyObject *event_set(SyncObject *s, PyObject *none)
{
    (void)none;
    tri_event_set(s->event);
    Py_RETURN_NONE;
}

static PyObject *event_clear(SyncObject *s, PyObject *none)
{
    (void)none;
    tri_event_clear(s->event);
    Py_RETURN_NONE;
}

static int wait_event(SyncObject *s, int arg, int64_t timeout_ns)
{
    (void)arg;
    return tri_event_wait(s->event, timeout_ns);
}

static PyObject *event_wait(SyncObject *s, PyObject *timeout)
{
    int64_t timeout_ns;
    int got;

    if (seconds_to_ns(timeout, "timeout", &timeout_ns) < 0)
        return NULL;
    got = tri_event_is_set(s->event) ? 1 : wait_for(s, wait_event, 0, timeout_ns);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyMethodDef event_methods[] = {
    {"is_set", (PyCFunction)event_is_set, METH_NOARGS, NULL},
    {"set", (PyCFunction)event_set, METH_NOARGS, NULL},
    {"clear", (PyCFunction)event_clear, METH_NOARGS, NULL},
    {"wait", (PyCFunction)event_wait, METH_O, "wait(timeout or None) -> bool"},
    {"_lend", (PyCFunction)sync_lend, METH_NOARGS, lend_doc},
    {"_rebuild", (PyCFunction)sync_rebuild, METH_VARARGS | METH_CLASS, rebuild_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot event_slots[] = {
    {Py_tp_new, event_new},
    {Py_tp_dealloc, sync_dealloc},
    {Py_tp_methods, event_methods},
    {Py_tp_doc, "EventSlot(): an event in memory without a name"},
    {0, NULL},
};

PyType_Spec event_spec = {
    .name = "trireme._core.EventSlot",
    .basicsize = sizeof(SyncObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = event_slots,
};

/* ------------------------------------------------------------------ CondSlot */

static PyObject *cond_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    SyncObject *s = plain_new(type, args, kwds, TRI_COND_BYTES);

    if (s)
        tri_cond_init(s->cond);
    return (PyObject *)s;
}

static PyObject *cond_enter(SyncObject *s, PyObject *none)
{
    int cell = tri_cond_enter(s->cond);

    (void)none;
    if (cell < 0) {
        PyErr_SetString(PyExc_OSError, "2044 threads wait for this condition, which is the most");
        return NULL;
    }
    return PyLong_FromLong(cell);
}

static int cell_of(PyObject *number)
{
    long cell = PyLong_AsLong(number);

    if (cell >= 0 && cell < (long)TRI_COND_CELLS)
        return (int)cell;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "no such waiter");
    return -1;
}

static int wait_cond(SyncObject *s, int cell, int64_t timeout_ns)
{
    return tri_cond_wait(s->cond, cell, timeout_ns);
}

static PyObject *cond_wait(SyncObject *s, PyObject *args)
{
    PyObject *number, *timeout;
    int64_t timeout_ns;
    int cell, got;

    if (!PyArg_ParseTuple(args, "OO", &number, &timeout))
        return NULL;
    cell = cell_of(number);
    if (cell < 0 || seconds_to_ns(timeout, "timeout", &timeout_ns) < 0)
        return NULL;
    got = wait_for(s, wait_cond, cell, timeout_ns);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *cond_leave(SyncObject *s, PyObject *number)
{
    int cell = cell_of(number);

    return cell < 0 ? NULL : PyBool_FromLong(tri_cond_leave(s->cond, cell));
}

static PyObject *cond_notify(SyncObject *s, PyObject *args)
{
    SyncObject *lock = NULL;
    Py_ssize_t n;

    if (!PyArg_ParseTuple(args, "n|O!", &n, s->st->semlock_type, &lock))
        return NULL;
    if (n < 0)
        n = 0;
    return PyLong_FromUnsignedLong(
        tri_cond_notify(s->cond, n > UINT32_MAX ? UINT32_MAX : (uint32_t)n,
                        lock && lock->kind != SEMAPHORE ? lock->lock : NULL));
}

static PyObject *cond_waiters(SyncObject *s, PyObject *none)
{
    (void)none;
    return PyLong_FromUnsignedLong(tri_cond_waiters(s->cond));
}

static PyMethodDef cond_methods[] = {
    {"enter", (PyCFunction)cond_enter, METH_NOARGS, "enter() -> number of this waiter"},
    {"wait", (PyCFunction)cond_wait, METH_VARARGS, "wait(number, timeout or None) -> notified"},
    {"leave", (PyCFunction)cond_leave, METH_O, "leave(number) -> was it notified"},
    {"notify", (PyCFunction)cond_notify, METH_VARARGS,
     "notify(most, lock held) -> how many were woken, or will be when the lock is given back"},
    {"waiters", (PyCFunction)cond_waiters, METH_NOARGS, "waiters() -> how many wait"},
    {"_lend", (PyCFunction)sync_lend, METH_NOARGS, lend_doc},
    {"_rebuild", (PyCFunction)sync_rebuild, METH_VARARGS | METH_CLASS, rebuild_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot cond_slots[] = {
    {Py_tp_new, cond_new},
    {Py_tp_dealloc, sync_dealloc},
    {Py_tp_methods, cond_methods},
    {Py_tp_doc, "CondSlot(): the waiters of a condition, in memory without a name"},
    {0, NULL},
};

PyType_Spec cond_spec = {
    .name = "trireme._core.CondSlot",
    .basicsize = sizeof(SyncObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cond_slots,
};
