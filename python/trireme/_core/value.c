/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * value.c - arguments and results between Python and the arena.
 *
 * Simple values take the codec's form.  Everything else is one pickle per task or chunk, with its
 * large buffers beside it:
 *
 *     u64 pickle length | u64 number of buffers | u64 length of each | pickle | buffers, each at a
 *     multiple of 64
 *
 * The length of a buffer that was read-only says so in its highest bit; see block.c.
 *
 * The reader checks every length against what is there: shared memory is data, not trust.
 */
#include <sys/mman.h>

#include "base/copy.h"
#include "ext.h"
#include "shm/huge.h"

#define FROM_READONLY (1ull << 63)
#define COPY_BELOW (64u << 10) /* results smaller than this do not pin a block */

static uint64_t up64(uint64_t n)
{
    return (n + 63) & ~(uint64_t)63;
}

/* ------------------------------------------------------------------ pickles with buffers */

int pickled_write(PyObject *pair, room_fn room, void *ctx, uint64_t *off, uint64_t *len)
{
    PyObject *data, *bufs;
    Py_ssize_t nbuf;
    uint64_t total, at, head[2];
    uint8_t *p;

    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 ||
        !PyBytes_Check(PyTuple_GET_ITEM(pair, 0)) || !PyList_Check(PyTuple_GET_ITEM(pair, 1))) {
        PyErr_SetString(PyExc_SystemError, "trireme: dumps gave no (bytes, list)");
        return -1;
    }
    data = PyTuple_GET_ITEM(pair, 0);
    bufs = PyTuple_GET_ITEM(pair, 1);
    nbuf = PyList_GET_SIZE(bufs);
    head[0] = (uint64_t)PyBytes_GET_SIZE(data);
    head[1] = (uint64_t)nbuf;
    total = 16 + 8 * (uint64_t)nbuf + head[0];
    for (Py_ssize_t i = 0; i < nbuf; i++) {
        PyObject *m = PyList_GET_ITEM(bufs, i);

        if (!PyMemoryView_Check(m)) {
            PyErr_SetString(PyExc_SystemError, "trireme: dumps gave no memoryview");
            return -1;
        }
        total = up64(total) + (uint64_t)PyMemoryView_GET_BUFFER(m)->len;
    }
    p = room(ctx, total, off);
    if (!p) {
        if (PyErr_Occurred())
            return -1;
        PyErr_Format(PyExc_MemoryError, "%llu bytes do not fit into the pool's shared memory",
                     (unsigned long long)total);
        return NO_ROOM;
    }
    if (total >= TRI_STREAM_FROM) {
        Py_BEGIN_ALLOW_THREADS if (*off) tri_block_populate(p, total);
        else tri_huge_populate(p, total, (struct tri_room){p, p + total});
        Py_END_ALLOW_THREADS
    }
    memcpy(p, head, 16);
    at = 16 + 8 * (uint64_t)nbuf;
    memcpy(p + at, PyBytes_AS_STRING(data), head[0]);
    at += head[0];
    for (Py_ssize_t i = 0; i < nbuf; i++) {
        const Py_buffer *b = PyMemoryView_GET_BUFFER(PyList_GET_ITEM(bufs, i));
        uint64_t n = (uint64_t)b->len, word = b->readonly ? n | FROM_READONLY : n;

        memcpy(p + 16 + 8 * i, &word, 8);
        at = up64(at);
        if (n >= TRI_STREAM_FROM) {
            Py_BEGIN_ALLOW_THREADS tri_copy(p + at, b->buf, n);
            Py_END_ALLOW_THREADS
        } else {
            memcpy(p + at, b->buf, n);
        }
        at += n;
    }
    *len = total;
    return 0;
}

/* The pickle and the tuple of its buffers, as loads() wants them.  0 or -1 with an exception. */
static int pickled_parts(struct state *st, const uint8_t *p, uint64_t len, PyObject *root,
                         PyObject **data, PyObject **bufs)
{
    uint64_t head[2], at, n;
    bool shy;

    *data = *bufs = NULL;
    if (len < 16)
        goto bad;
    memcpy(head, p, 16);
    if (head[1] > (len - 16) / 8)
        goto bad;
    at = 16 + 8 * head[1];
    if (head[0] > len - at)
        goto bad;
    *bufs = PyTuple_New((Py_ssize_t)head[1]);
    if (!*bufs)
        return -1;
    *data = PyMemoryView_FromMemory((char *)(uintptr_t)(p + at), (Py_ssize_t)head[0], PyBUF_READ);
    if (!*data)
        goto fail;
    at += head[0];
    for (uint64_t i = 0; i < head[1]; i++) {
        PyObject *b;

        memcpy(&n, p + 16 + 8 * i, 8);
        shy = n & FROM_READONLY;
        n &= ~FROM_READONLY;
        at = up64(at);
        if (at > len || n > len - at)
            goto bad;
        b = root  ? block_slice(st, root, at, n, shy)
            : shy ? block_of_copy(st, p + at, n)
                  : PyByteArray_FromStringAndSize((const char *)p + at, (Py_ssize_t)n);
        if (!b)
            goto fail;
        PyTuple_SET_ITEM(*bufs, (Py_ssize_t)i, b);
        at += n;
    }
    return 0;
bad:
    PyErr_SetString(PyExc_ValueError, "trireme: a pickle in shared memory is malformed");
fail:
    Py_CLEAR(*data);
    Py_CLEAR(*bufs);
    return -1;
}

PyObject *pickled_read(struct state *st, const uint8_t *p, uint64_t len, PyObject *root)
{
    PyObject *data, *bufs, *value;

    if (state_late_imports(st) < 0 || pickled_parts(st, p, len, root, &data, &bufs) < 0)
        return NULL;
    value = PyObject_CallFunctionObjArgs(st->loads, data, bufs, NULL);
    Py_DECREF(data);
    Py_DECREF(bufs);
    return value;
}

/* ------------------------------------------------------------------ the owner writes arguments */

/*
 * When the arena is full of the arguments of tasks in flight, the next ones wait for some of these
 * to end, as they wait for a slot.  They fail at once where that cannot help, because no task has
 * a block of that size to give back, and where they can go in parts and would take most of the
 * arena.
 */
#define ROOM_NS 50000000 /* between two looks, if no task ends: a worker may give a block back */

struct arg_room {
    PoolObject *pool;
    struct tri_slot *s;
    Py_ssize_t items; /* of a chunk; 0: a call's arguments */
};

/* Is there a task with so large a block, in flight or soon to be?  The slot of one that is being
 * filled names its block already; that of a thread which waits here, too, names none. */
static bool room_to_come(struct tri_pool *p, uint64_t bytes)
{
    bool any = false;

    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < p->nfree && !any; i++) {
        uint64_t off = p->priv[i].used == 2   ? p->priv[i].arg_off
                       : p->priv[i].used == 1 ? p->view.slot[i].arg_off
                                              : 0;

        any = off && tri_heap_block_bytes(&p->heap, off) >= bytes;
    }
    pthread_mutex_unlock(&p->lock);
    return any;
}

/* A block for arguments, or 0, with an exception unless there is no room. */
static uint64_t args_block(PoolObject *pool, uint64_t bytes, Py_ssize_t items)
{
    struct tri_pool *p = pool->core->p;
    bool waits = items <= 1 || bytes <= p->view.heap_bytes / 2;

    for (;;) {
        uint32_t key = tri_wait_key(p);
        uint64_t off = tri_pool_block_new(p, bytes);
        int n;

        if (off || !waits)
            return off;
        if (!room_to_come(p, bytes))
            return tri_pool_block_new(p, bytes); /* the last one may have ended since */
        n = pool_pump(pool);
        if (n < 0 || (n == 0 && pool_wait(pool, key, TRI_ANY_SLOT, 0, ROOM_NS) < 0))
            return 0;
        if (p->broken || p->refusing) {
            raise_code(pool->st, p, p->broken ? TRI_EBROKEN : TRI_ECLOSED);
            return 0;
        }
    }
}

static uint8_t *arg_room(void *ctx, uint64_t bytes, uint64_t *off)
{
    struct arg_room *r = ctx;

    *off = 0;
    if (bytes <= TRI_ARG_INLINE)
        return r->s->arg;
    *off = args_block(r->pool, bytes, r->items);
    return *off ? tri_pool_at(r->pool->core->p, *off) : NULL;
}

/* Encoded bytes go inline if they still are there, else into a block. */
static int args_place(PoolObject *pool, struct tri_slot *s, struct tri_buf *b, Py_ssize_t items)
{
    int err = 0;

    s->arg_off = 0;
    s->arg_len = b->len;
    if (b->p != s->arg) {
        s->arg_off = args_block(pool, b->len, items);
        if (s->arg_off)
            memcpy(tri_pool_at(pool->core->p, s->arg_off), b->p, b->len);
        else
            err = PyErr_Occurred() ? -1 : NO_ROOM;
    }
    if (err == NO_ROOM)
        PyErr_Format(PyExc_MemoryError, "%zu bytes do not fit into the pool's shared memory",
                     b->len);
    tri_buf_free(b);
    return err;
}

static int args_pickle(PoolObject *pool, struct tri_slot *s, PyObject *obj, const char *what,
                       Py_ssize_t items)
{
    struct arg_room room = {pool, s, items};
    PyObject *name, *pair = NULL;
    int err;

    if (state_late_imports(pool->st) < 0)
        return -1;
    name = PyUnicode_FromString(what);
    if (name && pool->born)
        pair = PyObject_CallFunctionObjArgs(pool->born, pool->st->dumps, obj, name, NULL);
    else if (name)
        pair = PyObject_CallFunctionObjArgs(pool->st->dumps, obj, name, NULL);
    Py_XDECREF(name);
    if (!pair)
        return -1;
    s->arg_off = 0;
    err = pickled_write(pair, arg_room, &room, &s->arg_off, &s->arg_len);
    Py_DECREF(pair);
    s->flags |= V_PICKLED;
    return err;
}

int args_write(PoolObject *pool, struct tri_slot *s, PyObject *const *args, Py_ssize_t n,
               PyObject *kwargs)
{
    struct tri_buf b;
    PyObject *tuple, *pair = NULL;
    int err;

    tri_buf_init(&b, s->arg, TRI_ARG_INLINE);
    s->items = (uint64_t)n;
    s->arg_len = 0;
    if (!kwargs || PyDict_GET_SIZE(kwargs) == 0) {
        if (n == 0)
            return 0;
        err = tri_encode_args(&b, args, n);
        if (err == TRI_ENC_OK)
            return args_place(pool, s, &b, 0);
        tri_buf_free(&b);
        if (err == TRI_ENC_ERROR)
            return -1;
        kwargs = NULL;
    }
    tuple = PyTuple_New(n);
    if (!tuple)
        return -1;
    for (Py_ssize_t i = 0; i < n; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
    if (!kwargs) {
        err = args_pickle(pool, s, tuple, "args", 0);
        Py_DECREF(tuple);
        return err;
    }
    pair = PyTuple_Pack(2, tuple, kwargs);
    Py_DECREF(tuple);
    if (!pair)
        return -1;
    s->flags |= V_KWARGS;
    err = tri_encode(&b, pair);
    if (err == TRI_ENC_OK) {
        err = args_place(pool, s, &b, 0);
    } else {
        tri_buf_free(&b);
        err = err == TRI_ENC_ERROR ? -1 : args_pickle(pool, s, pair, "(args, kwargs)", 0);
    }
    Py_DECREF(pair);
    return err;
}

int range_encode(struct tri_buf *b, PyObject *range, Py_ssize_t first, Py_ssize_t n)
{
    PyObject *start = PySequence_GetItem(range, first);
    PyObject *step = start ? PyObject_GetAttrString(range, "step") : NULL;
    int err = -1;

    if (step)
        err = tri_encode_range(b, start, step, n);
    Py_XDECREF(start);
    Py_XDECREF(step);
    return err;
}

static int range_write(PoolObject *pool, struct tri_slot *s, PyObject *range, Py_ssize_t first,
                       Py_ssize_t n)
{
    struct tri_buf b;
    int err;

    tri_buf_init(&b, s->arg, TRI_ARG_INLINE);
    err = range_encode(&b, range, first, n);
    return err == TRI_ENC_OK ? args_place(pool, s, &b, n) : err;
}

int items_there(PyObject *seq, Py_ssize_t end)
{
    if (!PyList_Check(seq) || end <= PyList_GET_SIZE(seq))
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "the list that is mapped has become shorter meanwhile;"
                                        " map over a copy of it");
    return -1;
}

PyObject *items_part(PyObject *seq, Py_ssize_t first, Py_ssize_t n)
{
    PyObject *slice = NULL, *part = NULL;

    if (items_there(seq, first + n) == 0)
        slice = PySequence_GetSlice(seq, first, first + n);
    if (slice)
        part = PySequence_List(slice);
    Py_XDECREF(slice);
    /* To make a list may run a collection, and that code that shortens the other. */
    if (part && items_there(part, n) < 0)
        Py_CLEAR(part);
    return part;
}

int items_write(PoolObject *pool, struct tri_slot *s, PyObject *seq, Py_ssize_t first, Py_ssize_t n)
{
    struct tri_buf b;
    PyObject *part;
    int err;

    s->items = (uint64_t)n;
    s->flags |= V_CHUNK;
    if (PyRange_Check(seq)) {
        err = range_write(pool, s, seq, first, n);
        if (err <= 0)
            return err;
        part = items_part(seq, first, n);
        if (!part)
            return -1;
        err = items_write(pool, s, part, 0, n);
        Py_DECREF(part);
        return err;
    }
    if (items_there(seq, first + n) < 0)
        return -1;
    tri_buf_init(&b, s->arg, TRI_ARG_INLINE);
    err = tri_encode_seq(&b, PySequence_Fast_ITEMS(seq) + first, n);
    if (err == TRI_ENC_OK)
        return args_place(pool, s, &b, n);
    tri_buf_free(&b);
    if (err == TRI_ENC_ERROR)
        return -1;
    part = items_part(seq, first, n);
    if (!part)
        return -1;
    err = args_pickle(pool, s, part, "items", n);
    Py_DECREF(part);
    return err;
}

/* ------------------------------------------------------------------ the owner reads results */

void result_drop(PoolObject *pool, struct tri_done *d)
{
    if (pool->threads) {
        PyObject *o;

        if (d->status == 0 && d->res_len == sizeof o) {
            memcpy(&o, d->res, sizeof o);
            Py_XDECREF(o);
        }
    } else if (d->spill) {
        munmap(d->spill, d->res_len);
    } else if (d->res_off) {
        tri_pool_block_free(pool->core->p, d->res_off);
    }
    d->spill = NULL;
    d->res_off = d->res_len = 0;
}

/*
 * Unpickling a result is user code.  An exit that it raises belongs to its future and must not end
 * the program of whoever reads it; KeyboardInterrupt may be the user's own Ctrl-C and stays.
 */
static void contain(void)
{
    PyObject *type, *exc, *tb, *errors, *error = NULL;

    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_Exception) ||
        PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    errors = PyImport_ImportModule("trireme._errors");
    if (errors && exc)
        error = PyObject_CallMethod(errors, "unreadable_result", "O", exc);
    if (error)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(errors);
    Py_XDECREF(error);
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
}

/* A facade may have something to say about a result that cannot be read, Pool._unreadable, or an
 * argument that cannot be sent, Pool._unsent: called with the exception, its word *name* returns
 * the one that takes its place. */
void ask_facade(PoolObject *pool, const char *name)
{
    PyObject *type, *exc, *tb, *hook, *other = NULL;

    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb && exc)
        PyException_SetTraceback(exc, tb);
    hook = PyObject_GetAttrString((PyObject *)pool, name);
    if (hook && hook != Py_None && exc)
        other = PyObject_CallOneArg(hook, exc);
    Py_XDECREF(hook);
    if (other && PyExceptionInstance_Check(other)) {
        PyErr_SetObject((PyObject *)Py_TYPE(other), other);
        Py_DECREF(type);
        Py_XDECREF(exc);
        Py_XDECREF(tb);
    } else {
        PyErr_Restore(type, exc, tb); /* in place of whatever the hook raised */
    }
    Py_XDECREF(other);
}

/*
 * An iterator's chunk did not unpickle, for which the exception is set: take the pickle to pieces,
 * so that only the items that cannot be read fail.  The list with a marker in the place of each of
 * these; where even that fails, NULL with the exception of before.
 */
static PyObject *items_read_apart(PoolObject *pool, struct tri_done *d, const uint8_t *bytes,
                                  PyObject *root)
{
    PyObject *type, *exc, *tb, *data, *bufs, *module, *list = NULL;

    PyErr_Fetch(&type, &exc, &tb);
    if (pickled_parts(pool->st, bytes, d->res_len, root, &data, &bufs) == 0) {
        module = PyImport_ImportModule("trireme._salvage");
        if (module)
            list = PyObject_CallMethod(module, "loads_apart", "OO", data, bufs);
        Py_XDECREF(module);
        Py_DECREF(data);
        Py_DECREF(bufs);
    }
    if (!list && (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))) {
        Py_XDECREF(type);
        Py_XDECREF(exc);
        Py_XDECREF(tb);
        return NULL;
    }
    if (!list) {
        PyErr_Restore(type, exc, tb);
        return NULL;
    }
    d->code = R_FAILURES;
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
    return list;
}

static PyObject *result_unpickle(PoolObject *pool, struct tri_done *d, const uint8_t *bytes,
                                 PyObject *root)
{
    PyObject *value = pickled_read(pool->st, bytes, d->res_len, root);

    if (!value && (d->res_flags & V_ALL) && !PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        value = items_read_apart(pool, d, bytes, root);
    return value;
}

PyObject *result_read(PoolObject *pool, struct tri_done *d)
{
    struct tri_pool *p = pool->core->p;
    const uint8_t *bytes = tri_done_bytes(p, d);
    PyObject *value, *root;

    if (pool->threads) {
        memcpy(&value, d->res, sizeof value);
        d->res_len = 0;
        return value;
    }
    if (!(d->res_flags & V_PICKLED)) {
        value = tri_decode(bytes, d->res_len, NULL);
        result_drop(pool, d);
        return value;
    }
    if (d->spill || (d->res_off && d->res_len >= COPY_BELOW)) {
        root = d->spill ? block_of_mapping(pool->st, d->spill, d->res_len, false)
                        : block_of_result(pool->st, pool->core, d->res_off, d->res_len);
        if (!root) {
            result_drop(pool, d);
            return NULL;
        }
        d->res_off = 0; /* the Block's now */
        d->spill = NULL;
        value = result_unpickle(pool, d, bytes, root);
        Py_DECREF(root);
    } else {
        value = result_unpickle(pool, d, bytes, NULL);
        result_drop(pool, d);
    }
    if (!value) {
        contain();
        ask_facade(pool, "_unreadable");
    }
    return value;
}

PyObject *result_exception(PoolObject *pool, struct tri_done *d)
{
    PyObject *data, *exc;

    if (pool->threads)
        return result_read(pool, d);
    if (state_late_imports(pool->st) < 0)
        return NULL;
    data = PyBytes_FromStringAndSize((const char *)tri_done_bytes(pool->core->p, d),
                                     (Py_ssize_t)d->res_len);
    result_drop(pool, d);
    if (!data)
        return NULL;
    exc = PyObject_CallOneArg(pool->st->decode_exception, data);
    Py_DECREF(data);
    return exc;
}
