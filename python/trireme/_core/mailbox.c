/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox.c - type Mailbox: objects through src/shm/mailbox.c, for queues between processes.
 *
 * A simple value takes the codec's form.  Anything else is pickled by a function given when the
 * Mailbox was made; its large buffers follow the pickle:
 *
 *     u64 pickle length | u64 number of buffers | u64 length of each | pickle | buffers, each at a
 *     multiple of 64
 *
 * They are copied once into shared memory, straight from the object, and once out of it; what the
 * reader gets lies in that copy, which is freed with the last view of it (type Parcel).
 *
 * A call first tries without giving up the GIL, which costs more than a small message.  It does not
 * wait then: when it would have to, or when there is much to copy, it starts again without the GIL.
 */
#include "ext.h"

#include <errno.h>
#include <limits.h>

#include "base/clock.h"
#include "shm/mailbox.h"

#define AREA 1024         /* a message of this size needs no memory of its own */
#define SMALL (16u << 10) /* copied with the GIL held */
#define BYTES_FROM 4096   /* bytes objects from this size on are not encoded first */
#define BUFFERS_MAX 200   /* of one message; more travel in the pickle */

enum { K_SIMPLE = 0, K_BYTES, K_PICKLE, K_BUFFERS };

typedef struct {
    PyObject_HEAD struct tri_mailbox m;
    struct state *st;
    PyObject *dumps, *loads; /* obj -> (bytes, list of memoryviews); (data, buffers=) -> obj */
    PyObject *full, *empty;  /* exceptions */
} MailboxObject;

/* ------------------------------------------------------------------ parcels */

typedef struct {
    PyObject_HEAD void *p; /* malloc'ed */
    Py_ssize_t len;
} ParcelObject;

static void parcel_dealloc(ParcelObject *b)
{
    PyTypeObject *type = Py_TYPE(b);

    free(b->p);
    type->tp_free(b);
    Py_DECREF(type);
}

static int parcel_getbuffer(ParcelObject *b, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)b, b->p, b->len, 0, flags);
}

static PyType_Slot parcel_slots[] = {
    {Py_tp_dealloc, parcel_dealloc},
    {Py_bf_getbuffer, parcel_getbuffer},
    {Py_tp_doc, "A large message of a queue; freed with the last view of it."},
    {0, NULL},
};

PyType_Spec parcel_spec = {
    .name = "trireme._core.Parcel",
    .basicsize = sizeof(ParcelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = parcel_slots,
};

/* A writable memoryview of p[0..len), which becomes its property, also on failure. */
static PyObject *parcel_view(struct state *st, void *p, size_t len)
{
    ParcelObject *b = (ParcelObject *)st->parcel_type->tp_alloc(st->parcel_type, 0);
    PyObject *view;

    if (!b) {
        free(p);
        return NULL;
    }
    b->p = p;
    b->len = (Py_ssize_t)len;
    view = PyMemoryView_FromObject((PyObject *)b);
    Py_DECREF(b);
    return view;
}

/* ------------------------------------------------------------------ waiting */

/* The deadline for `timeout`, an object (None: never) that counts only when `block` is true. */
static int deadline_of(int block, PyObject *timeout, int64_t *deadline)
{
    int64_t ns;

    *deadline = 0;
    if (!block)
        return 0;
    if (seconds_to_ns(timeout, "timeout", &ns) < 0)
        return -1;
    *deadline = ns < 0 ? -1 : ns ? tri_now_ns() + ns : 0;
    return 0;
}

/* True: a call that was interrupted is to be made again.  The GIL is held. */
static bool again(int err)
{
    return err == -EINTR && PyErr_CheckSignals() == 0;
}

/* err = call, without the GIL, as often as it takes. */
#define WAIT(err, call)                      \
    do {                                     \
        Py_BEGIN_ALLOW_THREADS err = (call); \
        Py_END_ALLOW_THREADS                 \
    } while (again(err))

/*
 * The arguments of a call whose last two are block=True and timeout=None, both by position, behind
 * `before` others.  -1 with an exception, which names the call.
 */
static int arguments(const char *call, PyObject *const *args, Py_ssize_t n, Py_ssize_t before,
                     int64_t *deadline)
{
    int block = 1;

    if (n < before || n > before + 2) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments", call, before, before + 2);
        return -1;
    }
    if (n > before) {
        block = PyObject_IsTrue(args[before]);
        if (block < 0)
            return -1;
    }
    return deadline_of(block, n > before + 1 ? args[before + 1] : Py_None, deadline);
}

static PyObject *raise_for(int err)
{
    if (PyErr_Occurred())
        return NULL;
    if (err == -ENOMEM)
        return PyErr_NoMemory();
    if (err == -ENOSPC)
        PyErr_SetString(PyExc_MemoryError, "the queue's shared memory is full");
    else if (err == TRI_ECORRUPT)
        PyErr_SetString(PyExc_OSError, "the queue's shared memory holds what no queue writes");
    else
        PyErr_SetString(PyExc_OSError, tri_strerror(err));
    return NULL;
}

/* How a put or a get ended: 0, or -1 with an exception, `late` when its time was up. */
static int ended(int err, PyObject *late)
{
    if (err == TRI_ETIMEDOUT)
        PyErr_SetNone(late);
    else if (err)
        raise_for(err);
    return err ? -1 : 0;
}

/* ------------------------------------------------------------------ putting */

static int send(MailboxObject *self, const struct iovec *v, int n, uint8_t kind, int64_t deadline)
{
    size_t total = 0;
    int err = -EBUSY;

    for (int i = 0; i < n; i++)
        total += v[i].iov_len;
    if (total <= SMALL)
        err = tri_mailbox_put(&self->m, v, n, kind, deadline, true);
    if (err == -EBUSY)
        WAIT(err, tri_mailbox_put(&self->m, v, n, kind, deadline, false));
    return ended(err, self->full);
}

static int send_pickled(MailboxObject *self, PyObject *pair, int64_t deadline)
{
    static const uint8_t zeros[64];
    struct iovec v[3 + 2 * BUFFERS_MAX];
    uint64_t head[2 + BUFFERS_MAX];
    PyObject *data, *bufs;
    Py_ssize_t nbuf;
    uint64_t at;
    int n = 2;

    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 ||
        !PyBytes_Check(PyTuple_GET_ITEM(pair, 0)) || !PyList_Check(PyTuple_GET_ITEM(pair, 1)) ||
        PyList_GET_SIZE(PyTuple_GET_ITEM(pair, 1)) > BUFFERS_MAX) {
        PyErr_SetString(PyExc_SystemError, "trireme: dumps gave no (bytes, list)");
        return -1;
    }
    data = PyTuple_GET_ITEM(pair, 0);
    bufs = PyTuple_GET_ITEM(pair, 1);
    nbuf = PyList_GET_SIZE(bufs);
    v[1] = (struct iovec){PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data)};
    if (nbuf == 0)
        return send(self, v + 1, 1, K_PICKLE, deadline);
    head[0] = v[1].iov_len;
    head[1] = (uint64_t)nbuf;
    v[0] = (struct iovec){head, 16 + 8 * (size_t)nbuf};
    at = v[0].iov_len + v[1].iov_len;
    for (Py_ssize_t i = 0; i < nbuf; i++) {
        PyObject *item = PyList_GET_ITEM(bufs, i);
        const Py_buffer *b;

        if (!PyMemoryView_Check(item)) {
            PyErr_SetString(PyExc_SystemError, "trireme: dumps gave no memoryview");
            return -1;
        }
        b = PyMemoryView_GET_BUFFER(item);
        head[2 + i] = (uint64_t)b->len;
        v[n++] = (struct iovec){(void *)(uintptr_t)zeros, -at & 63};
        v[n++] = (struct iovec){b->buf, (size_t)b->len};
        at += (-at & 63) + (uint64_t)b->len;
    }
    return send(self, v, n, K_BUFFERS, deadline);
}

PyDoc_STRVAR(put_doc, "put($self, obj, block=True, timeout=None, /)\n--\n\n"
                      "Put an object.  Raises what was given as `full`, and what pickling raises.");

static PyObject *mailbox_put(MailboxObject *self, PyObject *const *args, Py_ssize_t n)
{
    uint8_t area[AREA];
    struct tri_buf b;
    struct iovec v;
    PyObject *pair, *obj;
    int64_t deadline;
    int err;

    if (arguments("put", args, n, 1, &deadline) < 0)
        return NULL;
    obj = args[0];
    if (PyBytes_CheckExact(obj) && PyBytes_GET_SIZE(obj) >= BYTES_FROM) {
        v = (struct iovec){PyBytes_AS_STRING(obj), (size_t)PyBytes_GET_SIZE(obj)};
        if (send(self, &v, 1, K_BYTES, deadline) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    tri_buf_init(&b, area, sizeof area);
    err = tri_encode(&b, obj);
    if (err == TRI_ENC_OK) {
        v = (struct iovec){b.p, b.len};
        err = send(self, &v, 1, K_SIMPLE, deadline);
        tri_buf_free(&b);
        if (err < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    tri_buf_free(&b);
    if (err == TRI_ENC_ERROR)
        return NULL;
    pair = PyObject_CallOneArg(self->dumps, obj);
    if (!pair)
        return NULL;
    err = send_pickled(self, pair, deadline);
    Py_DECREF(pair);
    if (err < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(put_pickle_doc, "put_pickle($self, data, block=True, timeout=None, /)\n--\n\n"
                             "Put the object that a pickle stands for.");

static PyObject *mailbox_put_pickle(MailboxObject *self, PyObject *const *args, Py_ssize_t n)
{
    int64_t deadline;
    struct iovec v;
    Py_buffer data;
    int err;

    if (arguments("put_pickle", args, n, 1, &deadline) < 0 ||
        PyObject_GetBuffer(args[0], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    v = (struct iovec){data.buf, (size_t)data.len};
    err = send(self, &v, 1, K_PICKLE, deadline);
    PyBuffer_Release(&data);
    if (err < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ getting */

static int receive(MailboxObject *self, void *area, struct tri_letter *l, int64_t deadline)
{
    int err = tri_mailbox_get(&self->m, area, AREA, l, deadline, true);

    if (err == -EBUSY)
        WAIT(err, tri_mailbox_get(&self->m, area, AREA, l, deadline, false));
    return ended(err, self->empty);
}

/* The object of a pickle with buffers.  p is this function's. */
static PyObject *open_buffers(MailboxObject *self, void *p, size_t len)
{
    PyObject *whole = parcel_view(self->st, p, len), *bufs = NULL, *data = NULL, *value = NULL;
    PyObject *args[3], *names = NULL;
    uint64_t head[2], at, n;

    if (!whole)
        return NULL;
    if (len < 16)
        goto bad;
    memcpy(head, p, 16);
    if (head[1] > BUFFERS_MAX || head[1] > (len - 16) / 8)
        goto bad;
    at = 16 + 8 * head[1];
    if (head[0] > len - at)
        goto bad;
    data = PyMemoryView_FromMemory((char *)p + at, (Py_ssize_t)head[0], PyBUF_READ);
    bufs = data ? PyTuple_New((Py_ssize_t)head[1]) : NULL;
    if (!bufs)
        goto out;
    at += head[0];
    for (uint64_t i = 0; i < head[1]; i++) {
        PyObject *part;

        memcpy(&n, (uint8_t *)p + 16 + 8 * i, 8);
        at += -at & 63;
        if (at > len || n > len - at)
            goto bad;
        part = PySequence_GetSlice(whole, (Py_ssize_t)at, (Py_ssize_t)(at + n));
        if (!part)
            goto out;
        PyTuple_SET_ITEM(bufs, (Py_ssize_t)i, part);
        at += n;
    }
    names = Py_BuildValue("(s)", "buffers");
    if (!names)
        goto out;
    args[0] = NULL;
    args[1] = data;
    args[2] = bufs;
    value = PyObject_Vectorcall(self->loads, args + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
    goto out;
bad:
    raise_for(TRI_ECORRUPT);
out:
    Py_XDECREF(names);
    Py_XDECREF(bufs);
    Py_XDECREF(data);
    Py_DECREF(whole); /* the value's views keep the memory */
    return value;
}

/* The object in a letter, whose memory is this function's. */
static PyObject *open_letter(MailboxObject *self, const uint8_t *area, struct tri_letter *l)
{
    const uint8_t *p = l->big ? l->big : area;
    PyObject *value = NULL, *data;

    switch (l->kind) {
    case K_SIMPLE:
        value = tri_decode(p, l->len, NULL);
        break;
    case K_BYTES:
        value = PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)l->len);
        break;
    case K_PICKLE:
        data = PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)l->len);
        free(l->big);
        l->big = NULL;
        value = data ? PyObject_CallOneArg(self->loads, data) : NULL;
        Py_XDECREF(data);
        break;
    case K_BUFFERS:
        if (!l->big) {
            l->big = malloc(l->len + 1);
            if (!l->big)
                return PyErr_NoMemory();
            memcpy(l->big, area, l->len);
        }
        return open_buffers(self, l->big, l->len);
    default:
        raise_for(TRI_ECORRUPT);
    }
    free(l->big);
    return value;
}

PyDoc_STRVAR(get_doc, "get($self, block=True, timeout=None, /)\n--\n\n"
                      "Take the oldest object.  Raises what was given as `empty`.");

static PyObject *mailbox_get(MailboxObject *self, PyObject *const *args, Py_ssize_t n)
{
    uint8_t area[AREA];
    struct tri_letter l;
    int64_t deadline;

    if (arguments("get", args, n, 0, &deadline) < 0 || receive(self, area, &l, deadline) < 0)
        return NULL;
    return open_letter(self, area, &l);
}

/* ------------------------------------------------------------------ the rest */

static PyObject *mailbox_wait(MailboxObject *self, PyObject *timeout)
{
    int64_t deadline;
    int err;

    if (deadline_of(1, timeout, &deadline) < 0)
        return NULL;
    WAIT(err, tri_mailbox_await(&self->m, deadline));
    if (err && err != TRI_ETIMEDOUT)
        return raise_for(err);
    return PyBool_FromLong(err == 0);
}

static PyObject *mailbox_join(MailboxObject *self, PyObject *none)
{
    int err;

    (void)none;
    WAIT(err, tri_mailbox_join(&self->m, -1));
    if (err)
        return raise_for(err);
    Py_RETURN_NONE;
}

static PyObject *mailbox_done(MailboxObject *self, PyObject *none)
{
    (void)none;
    return PyBool_FromLong(tri_mailbox_done(&self->m) == 0);
}

static PyObject *mailbox_count(MailboxObject *self, PyObject *none)
{
    (void)none;
    return PyLong_FromUnsignedLong(tri_mailbox_count(&self->m));
}

static PyObject *mailbox_sent(MailboxObject *self, PyObject *none)
{
    (void)none;
    return PyLong_FromUnsignedLong(tri_mailbox_sent(&self->m));
}

static PyObject *mailbox_full(MailboxObject *self, PyObject *none)
{
    (void)none;
    return PyBool_FromLong(tri_mailbox_full(&self->m));
}

static PyObject *mailbox_watch(MailboxObject *self, PyObject *none)
{
    int err;

    (void)none;
    WAIT(err, tri_mailbox_watch(&self->m));
    return err ? raise_for(err) : PyLong_FromLong(self->m.bell_fd);
}

static PyObject *mailbox_fds(MailboxObject *self, PyObject *none)
{
    (void)none;
    return Py_BuildValue("(ii)", self->m.seg.fd, self->m.bell_fd);
}

static PyMethodDef methods[] = {
    {"put", (PyCFunction)(void (*)(void))mailbox_put, METH_FASTCALL, put_doc},
    {"put_pickle", (PyCFunction)(void (*)(void))mailbox_put_pickle, METH_FASTCALL, put_pickle_doc},
    {"get", (PyCFunction)(void (*)(void))mailbox_get, METH_FASTCALL, get_doc},
    {"wait", (PyCFunction)mailbox_wait, METH_O,
     "wait($self, timeout, /)\n--\n\nWait for a message; whether there is one."},
    {"count", (PyCFunction)mailbox_count, METH_NOARGS, "count($self)\n--\n\nMessages in it."},
    {"sent", (PyCFunction)mailbox_sent, METH_NOARGS,
     "sent($self)\n--\n\nMessages ever put in it, by all processes, modulo 2**30."},
    {"full", (PyCFunction)mailbox_full, METH_NOARGS,
     "full($self)\n--\n\nWhether put() would wait."},
    {"done", (PyCFunction)mailbox_done, METH_NOARGS,
     "done($self)\n--\n\nOne message more is done with; False if all were already."},
    {"join", (PyCFunction)mailbox_join, METH_NOARGS,
     "join($self)\n--\n\nWait until every message was done with."},
    {"watch", (PyCFunction)mailbox_watch, METH_NOARGS,
     "watch($self)\n--\n\nA descriptor that is readable while there are messages."},
    {"fds", (PyCFunction)mailbox_fds, METH_NOARGS,
     "fds($self)\n--\n\nThe descriptors that another process needs; -1 is one that cannot be had."},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    mailbox_doc,
    "Mailbox(dumps, loads, full, empty, most=0, fd=-1, bell_fd=-1)\n--\n\n"
    "Objects between processes.  A new one for at most `most` messages (0: any number), or\n"
    "one that another process has made, by its descriptors, which become this object's.");

static PyObject *mailbox_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dumps", "loads", "full", "empty", "most", "fd", "bell_fd", NULL};
    PyObject *dumps, *loads, *full, *empty;
    struct state *st = state_of_type(type);
    MailboxObject *self;
    unsigned int most = 0;
    int fd = -1, bell_fd = -1, err;

    if (!st || !PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|Iii:Mailbox", names, &dumps, &loads,
                                            &full, &empty, &most, &fd, &bell_fd))
        return NULL;
    self = (MailboxObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->m.seg.fd = self->m.bell_fd = -1;
    self->st = st;
    self->dumps = Py_NewRef(dumps);
    self->loads = Py_NewRef(loads);
    self->full = Py_NewRef(full);
    self->empty = Py_NewRef(empty);
    err = fd < 0 ? tri_mailbox_make(&self->m, most) : tri_mailbox_attach(&self->m, fd, bell_fd);
    if (err) {
        if (err > -4096) {
            errno = -err;
            PyErr_SetFromErrno(PyExc_OSError);
        } else {
            raise_for(err);
        }
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int mailbox_traverse(MailboxObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->dumps);
    Py_VISIT(self->loads);
    Py_VISIT(self->full);
    Py_VISIT(self->empty);
    return 0;
}

static int mailbox_clear(MailboxObject *self)
{
    Py_CLEAR(self->dumps);
    Py_CLEAR(self->loads);
    Py_CLEAR(self->full);
    Py_CLEAR(self->empty);
    return 0;
}

static void mailbox_dealloc(MailboxObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    mailbox_clear(self);
    tri_mailbox_drop(&self->m);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot mailbox_slots[] = {
    {Py_tp_new, mailbox_new},
    {Py_tp_dealloc, mailbox_dealloc},
    {Py_tp_traverse, mailbox_traverse},
    {Py_tp_clear, mailbox_clear},
    {Py_tp_methods, methods},
    {Py_tp_doc, (void *)mailbox_doc},
    {0, NULL},
};

PyType_Spec mailbox_spec = {
    .name = "trireme._core.Mailbox",
    .basicsize = sizeof(MailboxObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mailbox_slots,
};
