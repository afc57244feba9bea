/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job.c - type Job: one function over many items.
 *
 * Items travel in chunks, each one task.  A job keeps a window of chunks in flight, so that a
 * worker never waits for the owner to come by; results are decoded while the workers compute the
 * next ones.  Two chunks per worker do when each takes long.  Where they are short and small, it
 * is WINDOW_MANY: the owner shares a CPU with a worker, and may not get it back for milliseconds.
 *
 * Chunk sizes are measured, not asked for: the first chunks hold one item; then a chunk aims at
 * CHUNK_NS of work by what the items so far took, grows at most eightfold at a time, and takes at
 * most a share of what is left, so that the workers end together.
 *
 * The same chunks serve a blocking map (results into a list by index), iterators (ordered or as
 * they end; input is pulled as results are taken, so it may be endless) and a map in the
 * background, which sends everything at once because nobody will come by to send more.
 *
 * A chunk is alive until its task has ended, whatever becomes of the job: an abandoned job leaves
 * its chunks to whoever takes them.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "ext.h"

#define CHUNK_NS 500000
#define CHUNK_LEAST_NS 20000
#define CHUNK_MAX 16384
#define WINDOW_FEW 2   /* chunks in flight per worker */
#define WINDOW_MANY 24 /* of at most SMALL_BYTES each way and CHUNK_NS or so */
#define SMALL_BYTES (256 << 10)
#define BEHIND 4 /* chunks found ended at one look: the owner does not keep up */

enum mode { J_MAP = 0, J_ORDERED = 1, J_UNORDERED = 2, J_ASYNC = 3 };

struct chunk {
    struct tri_user user;
    struct JobObject *job;
    struct chunk *next;         /* in the order sent */
    struct chunk *next_ready;   /* in the order ended */
    Py_ssize_t first, n, given; /* given: items handed out so far */
    PyObject *items;            /* threads, or what the iterator gave: kept alive */
    PyObject *values;           /* list of results, once read */
    PyObject *error;            /* it failed as a whole: what each of its items raises */
    struct tri_done done;
    uint64_t ticket;
    uint32_t slot;
    bool ended, cancelled;
};

typedef struct JobObject {
    PyObject_HEAD PoolObject *pool;
    FnObject *fn;
    PyObject *callable;
    PyObject *seq; /* list, tuple or range; NULL: iter */
    PyObject *iter;
    PyObject *results;  /* list, for J_MAP and J_ASYNC */
    PyObject *progress; /* called with the number of new results */
    PyObject *error;    /* the first failure of a map; of an iterator, what its input raised */
    PyObject *again;    /* items pulled with one that cannot be sent: they go one by one */
    PyObject *on_done;  /* called once: a background job has ended, an iterator is exhausted */
    struct options opt;
    enum mode mode;
    bool star, caller, helping, exhausted, watched, stopped;
    Py_ssize_t n, next, chunk, in_flight, done_items, last_size;
    double item_ns, most_ns;           /* most_ns: of a whole chunk */
    uint64_t most_bytes;               /* of a chunk's arguments or results */
    struct chunk *head, **tail;        /* sent, not yet given out */
    struct chunk *ready, **ready_tail; /* ended, not yet given out; not kept by J_ORDERED */
    PyThread_type_lock turn;           /* held by the thread inside next() */
    unsigned long turn_of;             /* that thread */
} JobObject;

/* ------------------------------------------------------------------ chunks */

static void chunk_free(struct chunk *c)
{
    Py_XDECREF(c->items);
    Py_XDECREF(c->values);
    Py_XDECREF(c->error);
    free(c);
}

static void make_ready(JobObject *j, struct chunk *c)
{
    c->ended = true;
    if (j->mode == J_ORDERED)
        return;
    *j->ready_tail = c;
    j->ready_tail = &c->next_ready;
}

/* Have the next pump look whether this job is over. */
static void tell_later(JobObject *j)
{
    PoolObject *pool = j->pool;

    if (!pool->told)
        pool->told = PyList_New(0);
    if (!pool->told || PyList_Append(pool->told, (PyObject *)j) < 0)
        PyErr_WriteUnraisable((PyObject *)j);
}

static void chunk_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d)
{
    struct chunk *c = (struct chunk *)u;
    JobObject *j = c->job;

    (void)p;
    c->done = *d;
    j->in_flight--;
    if (d->res_len > j->most_bytes)
        j->most_bytes = d->res_len;
    if ((double)d->exec_ns > j->most_ns)
        j->most_ns = (double)d->exec_ns;
    if (d->exec_ns > 0 && c->n > 0) {
        double ns = (double)d->exec_ns / (double)c->n;

        /* Down at once, up slowly: the first items also pay for imports. */
        if (j->item_ns <= 0 || ns < j->item_ns)
            j->item_ns = ns;
        else
            j->item_ns += (ns - j->item_ns) / 4;
    }
    if (j->stopped) {
        result_drop(j->pool, &c->done);
        chunk_free(c);
        Py_DECREF(j);
        return;
    }
    make_ready(j, c);
    if (j->mode == J_ASYNC && j->watched)
        tell_later(j);
    Py_DECREF(j); /* the chunk's hold */
}

static Py_ssize_t next_size(const JobObject *j)
{
    Py_ssize_t left = j->n >= 0 ? j->n - j->next : PY_SSIZE_T_MAX, size, share, least;
    Py_ssize_t workers = (Py_ssize_t)j->pool->core->p->view.nworkers;

    if (j->chunk > 0)
        return j->chunk < left ? j->chunk : left;
    if (j->opt.timeout_ns > 0)
        return 1;
    if (j->mode == J_ASYNC) {
        /* Nobody comes by to send more: as many chunks as balance the load, all at once. */
        size = j->n / (16 * workers) + 1;
        if (size < j->n / 1024 + 1)
            size = j->n / 1024 + 1;
        return size < left ? size : left;
    }
    if (j->item_ns <= 0)
        return 1;
    size = j->item_ns >= CHUNK_NS ? 1 : (Py_ssize_t)(CHUNK_NS / j->item_ns);
    share = left / (2 * workers) + 1;
    if (size > CHUNK_MAX)
        size = CHUNK_MAX;
    if (size > 8 * j->last_size)
        size = 8 * j->last_size;
    if (size > share) {
        /* Towards the end smaller, but never so small that sending costs more than computing. */
        least = (Py_ssize_t)(CHUNK_LEAST_NS / j->item_ns);
        size = share > least ? share : least < size ? least : size;
    }
    if (size > left)
        size = left;
    return size < 1 ? 1 : size;
}

static void fetch_error(PyObject **into)
{
    PyObject *type, *exc, *tb;

    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb && exc)
        PyException_SetTraceback(exc, tb);
    if (!*into)
        *into = Py_XNewRef(exc);
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
}

/* Items for the next chunk out of an iterator: a list, empty at its end.  If the iterator fails,
 * what it gave before is still run, and its exception waits in j->error for its turn. */
static PyObject *pull(JobObject *j, Py_ssize_t n)
{
    PyObject *list, *item;

    if (j->again) {
        list = PyList_GetSlice(j->again, 0, 1);
        if (list && PyList_SetSlice(j->again, 0, 1, NULL) < 0)
            Py_CLEAR(list);
        if (list && PyList_GET_SIZE(j->again) == 0)
            Py_CLEAR(j->again);
        return list;
    }
    list = PyList_New(0);
    while (list && !j->exhausted && n-- > 0) {
        item = PyIter_Next(j->iter);
        if (!item) {
            j->exhausted = true;
            if (PyErr_Occurred())
                fetch_error(&j->error);
            break;
        }
        if (PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_DECREF(item);
    }
    return list;
}

static int fill_slot(JobObject *j, struct chunk *c, struct tri_slot *s)
{
    s->timeout_ns = j->opt.timeout_ns;
    s->arg_off = 0;
    s->flags = TRI_F_PY | TRI_F_TIMED | (j->star ? V_STAR : 0) |
               (j->mode == J_ORDERED || j->mode == J_UNORDERED ? V_ALL : 0);
    if (!j->pool->threads) {
        s->fn_id = j->fn->id;
        s->fn_off = j->fn->off;
        s->fn_len = j->fn->len;
        return c->items ? items_write(j->pool, s, c->items, 0, c->n)
                        : items_write(j->pool, s, j->seq, c->first, c->n);
    }
    if (!c->items) {
        PyObject *part = PySequence_GetSlice(j->seq, c->first, c->first + c->n);

        c->items = part ? PySequence_List(part) : NULL;
        Py_XDECREF(part);
        if (!c->items)
            return -1;
    }
    {
        PyObject *objects[3] = {j->callable, c->items, NULL};

        s->flags |= V_OBJECTS | V_CHUNK;
        s->items = (uint64_t)c->n;
        memcpy(s->arg, objects, sizeof objects);
    }
    return 0;
}

static void link_chunk(JobObject *j, struct chunk *c)
{
    *j->tail = c;
    j->tail = &c->next;
    j->next += c->n;
}

/*
 * An iterator's chunk could not be sent, because an item cannot be pickled.  The others must not
 * suffer: they go one by one, and the one that fails alone raises at its place.
 * 1: dealt with; -1: an exception that is none of the items' (Ctrl-C).
 */
static int set_aside(JobObject *j, struct chunk *c)
{
    if (!j->iter || !PyErr_ExceptionMatches(PyExc_Exception))
        goto fail;
    if (c->n > 1) {
        PyErr_Clear();
        if (j->again || !(j->again = PySequence_List(c->items)))
            goto fail;
        chunk_free(c);
        return 1;
    }
    fetch_error(&c->error);
    link_chunk(j, c);
    make_ready(j, c);
    return 1;
fail:
    chunk_free(c);
    return -1;
}

/* Send one chunk.  1: sent; 0: nothing to send; -1: exception */
static int send_chunk(JobObject *j)
{
    struct tri_pool *p = j->pool->core->p;
    Py_ssize_t size = next_size(j);
    struct chunk *c;
    uint32_t slot;
    int err;

    if ((j->exhausted && !j->again) || (j->n >= 0 && j->next >= j->n))
        return 0;
    c = calloc(1, sizeof *c);
    if (!c) {
        PyErr_NoMemory();
        return -1;
    }
    if (j->iter) {
        c->items = pull(j, size);
        size = c->items ? PyList_GET_SIZE(c->items) : 0;
        if (size == 0) {
            chunk_free(c);
            return PyErr_Occurred() ? -1 : 0;
        }
    }
    c->first = j->next;
    c->n = size;
    c->user.ended = chunk_ended;
    c->job = j;
    if (pool_slot(j->pool, &slot) < 0) {
        chunk_free(c);
        return -1;
    }
    c->slot = slot;
    if (fill_slot(j, c, &p->view.slot[slot]) < 0) {
        tri_task_drop(p, slot);
        return set_aside(j, c);
    }
    if (!j->pool->threads && p->view.slot[slot].arg_len > j->most_bytes)
        j->most_bytes = p->view.slot[slot].arg_len;
    Py_INCREF(j);
    err = pool_push(j->pool, slot, &j->opt, c, &c->ticket);
    if (err) {
        Py_DECREF(j);
        tri_task_drop(p, slot);
        chunk_free(c);
        raise_code(j->pool->st, p, err);
        return -1;
    }
    link_chunk(j, c);
    j->last_size = size;
    j->in_flight++;
    return 1;
}

/* How many chunks may be in flight. */
static Py_ssize_t window(const JobObject *j)
{
    Py_ssize_t workers = (Py_ssize_t)j->pool->core->p->view.nworkers;

    if (j->mode == J_ASYNC)
        return PY_SSIZE_T_MAX;
    /* An iterator's input is pulled no further ahead than it must; a caller who works takes what
     * is not sent. */
    if (j->mode != J_MAP || j->caller || j->most_ns <= 0 || j->most_ns > 4.0 * CHUNK_NS ||
        j->most_bytes > SMALL_BYTES)
        return WINDOW_FEW * workers + 2;
    return WINDOW_MANY * workers + 2;
}

/* Keep the window full. */
static int send_some(JobObject *j, Py_ssize_t waiting)
{
    int sent = 1;

    while (sent > 0 && !j->stopped && j->in_flight + waiting < window(j))
        sent = send_chunk(j);
    return sent < 0 ? -1 : 0;
}

/* Forget everything: chunks not started are cancelled, the others end on their own. */
static void stop(JobObject *j)
{
    struct chunk *c, *next;
    struct tri_pool *p = j->pool && j->pool->core ? j->pool->core->p : NULL;

    if (j->stopped)
        return;
    j->stopped = true;
    for (c = j->head; c; c = next) {
        next = c->next;
        if (c->ended) {
            result_drop(j->pool, &c->done);
            chunk_free(c);
        } else if (p && !tri_pool_is_fork(p) && tri_task_cancel(p, c->slot, c->ticket) == 0) {
            j->in_flight--;
            chunk_free(c);
            Py_DECREF(j);
        }
    }
    j->head = j->ready = NULL;
    j->tail = &j->head;
    j->ready_tail = &j->ready;
}

/* ------------------------------------------------------------------ results */

/* Read an ended chunk: its values into out[0..n) or, when out is NULL, into c->values.
 * 0; 1: it failed as a whole, the exception is set; */
static int chunk_read(JobObject *j, struct chunk *c, PyObject **out)
{
    struct tri_done *d = &c->done;
    PyObject *list, *exc = NULL;
    int err;

    if (d->status)
        exc = loss_exception(j->pool->st, j->pool->core->p, d, j->callable);
    else if (d->code == R_EXCEPTION)
        exc = result_exception(j->pool, d);
    if (exc)
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_XDECREF(exc);
    if (d->status || d->code == R_EXCEPTION)
        return 1;
    if (!j->pool->threads && (d->res_flags & V_CHUNK)) {
        if (!out) {
            c->values = PyList_New(c->n);
            if (!c->values)
                return 1;
            out = ((PyListObject *)c->values)->ob_item;
        }
        err = tri_decode_seq(tri_done_bytes(j->pool->core->p, d), d->res_len, out, c->n);
        result_drop(j->pool, d);
        return err < 0;
    }
    list = result_read(j->pool, d);
    if (!list)
        return 1;
    if (!PyList_Check(list) || PyList_GET_SIZE(list) != c->n) {
        Py_DECREF(list);
        PyErr_SetString(PyExc_ValueError, "trireme: a chunk's results are malformed");
        return 1;
    }
    if (!out) {
        c->values = list;
        return 0;
    }
    for (Py_ssize_t i = 0; i < c->n; i++)
        out[i] = Py_NewRef(PyList_GET_ITEM(list, i));
    Py_DECREF(list);
    return 0;
}

static int report(JobObject *j, Py_ssize_t n)
{
    PyObject *r;

    j->done_items += n;
    if (!j->progress)
        return 0;
    r = PyObject_CallFunction(j->progress, "n", n);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

static void unlink_chunk(JobObject *j, struct chunk *c)
{
    struct chunk **at = &j->head;

    while (*at && *at != c)
        at = &(*at)->next;
    if (*at)
        *at = c->next;
    if (j->tail == &c->next)
        j->tail = at;
}

static struct chunk *pop_ready(JobObject *j)
{
    struct chunk *c = j->ready;

    if (c) {
        j->ready = c->next_ready;
        if (!j->ready)
            j->ready_tail = &j->ready;
    }
    return c;
}

/* Move what has ended into the result list.  How many chunks, or -1 with an exception. */
static int collect(JobObject *j)
{
    struct chunk *c;
    int n = 0, err = 0;

    while ((c = pop_ready(j)) != NULL) {
        unlink_chunk(j, c);
        err = chunk_read(j, c, ((PyListObject *)j->results)->ob_item + c->first);
        if (!err)
            err = report(j, c->n);
        chunk_free(c);
        if (err)
            return -1;
        n++;
    }
    return n;
}

/*
 * The owner works, so a worker may have to make room (tri_helper_begin): when it computes items
 * itself, and when results come faster than it reads them, since then it is what all wait for.
 */
static void start_helping(JobObject *j)
{
    if (!j->helping)
        tri_helper_begin(j->pool->core->p);
    j->helping = true;
}

static void stop_helping(JobObject *j)
{
    if (j->helping)
        tri_helper_end(j->pool->core->p);
    j->helping = false;
}

/* The caller's own share of a map. */
static int work_here(JobObject *j)
{
    Py_ssize_t n = next_size(j), first = j->next;
    int64_t start = tri_now_ns();
    bool list = PyList_CheckExact(j->seq), ints = false;
    struct tri_seqr range;
    uint8_t room[32];
    struct tri_buf b;
    Py_ssize_t i;

    start_helping(j);
    j->next += n;
    j->last_size = n;
    if (PyRange_Check(j->seq)) {
        int err;

        tri_buf_init(&b, room, sizeof room);
        err = range_encode(&b, j->seq, first, n);
        if (err == TRI_ENC_OK)
            err = tri_seqr_init(&range, b.p, b.len);
        if (err < 0)
            return -1;
        ints = err == 0;
        if (ints)
            tri_seqr_reuse(&range);
    }
    for (i = first; i < first + n; i++) {
        PyObject *item, *r = NULL;

        if (ints)
            item = tri_seqr_next(&range);
        else if (list && i < PyList_GET_SIZE(j->seq)) /* the function may have shortened it */
            item = Py_NewRef(PyList_GET_ITEM(j->seq, i));
        else
            item = PySequence_GetItem(j->seq, i);
        if (item)
            r = call_here(j->pool->st, j->callable, item, j->star);
        Py_XDECREF(item);
        if (!r)
            break;
        PyList_SET_ITEM(j->results, i, r);
    }
    if (ints)
        tri_seqr_clear(&range);
    if (i < first + n)
        return -1;
    if (j->item_ns <= 0)
        j->item_ns = (double)(tri_now_ns() - start) / (double)n;
    return report(j, n);
}

static int run_map_steps(JobObject *j, int64_t timeout_ns)
{
    int64_t until = timeout_ns > 0 ? tri_now_ns() + timeout_ns : 0, left = timeout_ns;

    while (!j->error && j->done_items < j->n) {
        uint32_t key;
        int moved;

        if (pool_check(j->pool) < 0)
            goto failed;
        key = tri_wait_key(j->pool->core->p);
        if (send_some(j, 0) < 0)
            goto failed;
        moved = pool_pump(j->pool);
        if (moved >= BEHIND)
            start_helping(j);
        if (moved >= 0) {
            int got = collect(j);

            moved = got < 0 ? -1 : moved + got;
        }
        if (moved < 0)
            goto failed;
        if (moved)
            continue;
        if (j->caller && j->next < j->n) {
            if (work_here(j) < 0)
                goto failed;
            continue;
        }
        stop_helping(j);
        if (timeout_ns > 0 && (left = until - tri_now_ns()) <= 0)
            left = 0;
        moved = pool_wait(j->pool, key, j->head && !j->head->ended ? j->head->slot : TRI_ANY_SLOT,
                          j->head ? j->head->ticket : 0, left);
        if (moved < 0)
            goto failed;
        if (moved == 1 && !j->ready)
            return 1;
    }
    return j->error ? -1 : 0;
failed:
    fetch_error(&j->error);
    stop(j);
    return -1;
}

/* Run a map to its end: 0, 1 timed out, -1 exception.  Whatever ends it stops it. */
static int run_map(JobObject *j, int64_t timeout_ns)
{
    int err = run_map_steps(j, timeout_ns);

    stop_helping(j);
    return err;
}

/* ------------------------------------------------------------------ methods */

static PyObject *job_get(PyObject *obj, PyObject *timeout)
{
    JobObject *j = (JobObject *)obj;
    int64_t ns;
    int err;

    if (seconds_to_ns(timeout, "timeout", &ns) < 0)
        return NULL;
    err = run_map(j, ns);
    if (err == 1) {
        PyErr_SetNone(PyExc_TimeoutError);
        return NULL;
    }
    if (err < 0) {
        if (j->error)
            PyErr_SetObject((PyObject *)Py_TYPE(j->error), j->error);
        return NULL;
    }
    return Py_NewRef(j->results);
}

/* _wait(timeout) -> bool: has it ended, well or badly? */
static PyObject *job_wait(PyObject *obj, PyObject *timeout)
{
    JobObject *j = (JobObject *)obj;
    int64_t ns;
    int err;

    if (seconds_to_ns(timeout, "timeout", &ns) < 0)
        return NULL;
    err = run_map(j, ns);
    if (err < 0 && j->error && (PyErr_GivenExceptionMatches(j->error, PyExc_KeyboardInterrupt))) {
        PyErr_SetObject((PyObject *)Py_TYPE(j->error), j->error);
        return NULL;
    }
    return PyBool_FromLong(err != 1);
}

/* _watch(callable): call it when the job has ended, even if nobody waits. */
static PyObject *job_watch(PyObject *obj, PyObject *fn)
{
    JobObject *j = (JobObject *)obj;
    PyObject *r;

    j->on_done = Py_NewRef(fn);
    if (!j->watched) {
        j->watched = true;
        j->pool->watched++;
    }
    /* It may be over already, without anybody having been told. */
    if (j->ready || j->error || j->done_items >= j->n)
        tell_later(j);
    r = PyObject_CallOneArg(j->pool->serve, (PyObject *)j->pool);
    return r;
}

/* Called by a pump when a chunk of a watched job has ended. */
static PyObject *job_tell(PyObject *obj, PyObject *none)
{
    JobObject *j = (JobObject *)obj;
    PyObject *fn, *r;

    (void)none;
    if (!j->error && collect(j) < 0) {
        fetch_error(&j->error);
        stop(j);
    }
    if (!j->watched || (!j->error && j->done_items < j->n))
        Py_RETURN_NONE;
    j->watched = false;
    j->pool->watched--;
    fn = j->on_done;
    j->on_done = NULL;
    r = fn ? PyObject_CallNoArgs(fn) : Py_NewRef(Py_None);
    Py_XDECREF(fn);
    return r;
}

static PyObject *job_stop(PyObject *obj, PyObject *none)
{
    (void)none;
    stop((JobObject *)obj);
    Py_RETURN_NONE;
}

/* All of a chunk's items were given out. */
static void chunk_over(JobObject *j, struct chunk *c)
{
    unlink_chunk(j, c);
    if (j->mode == J_UNORDERED)
        pop_ready(j); /* it is the first one: nothing else is given out in between */
    chunk_free(c);
}

/* Give out the next value of a chunk that has been read, or raise what stands in its place. */
static PyObject *give(JobObject *j, struct chunk *c)
{
    PyObject *v = NULL, *exc = NULL, *data;

    if (c->error) {
        exc = Py_NewRef(c->error);
    } else {
        v = Py_NewRef(PyList_GET_ITEM(c->values, c->given));
        if (c->done.code == R_FAILURES && Py_TYPE(v) == (PyTypeObject *)j->pool->st->failed_type) {
            data = PyObject_GetAttrString(v, "data");
            exc = data && !PyExceptionInstance_Check(data)
                      ? PyObject_CallOneArg(j->pool->st->decode_exception, data)
                      : Py_XNewRef(data);
            Py_XDECREF(data);
            Py_CLEAR(v);
        }
    }
    if (++c->given >= c->n)
        chunk_over(j, c);
    if (report(j, 1) < 0)
        Py_CLEAR(v);
    else if (exc)
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_XDECREF(exc);
    return v;
}

static Py_ssize_t waiting_chunks(const JobObject *j)
{
    Py_ssize_t n = 0;

    for (const struct chunk *c = j->head; c; c = c->next)
        n += c->ended;
    return n;
}

/* next(), waiting at most timeout_ns.  NULL without an exception: the end. */
static PyObject *next_value(JobObject *j, int64_t timeout_ns)
{
    int64_t until = timeout_ns > 0 ? tri_now_ns() + timeout_ns : 0;
    PyObject *late = NULL;

    for (;;) {
        struct chunk *c = j->mode == J_ORDERED ? j->head : j->ready;
        uint32_t key;
        int moved;

        if (j->stopped)
            return NULL;
        if (c && c->ended) {
            if (!c->values && !c->error && chunk_read(j, c, NULL)) {
                if (!PyErr_ExceptionMatches(PyExc_Exception)) {
                    chunk_over(j, c);
                    return NULL;
                }
                fetch_error(&c->error);
            }
            if (send_some(j, waiting_chunks(j)) < 0)
                fetch_error(&j->error); /* the input failed: told after what came before it */
            return give(j, c);
        }
        if (pool_check(j->pool) < 0)
            return NULL;
        key = tri_wait_key(j->pool->core->p);
        if (send_some(j, waiting_chunks(j)) < 0)
            fetch_error(&j->error);
        if (!j->head) {
            late = j->error;
            j->error = NULL;
            if (late)
                PyErr_SetObject((PyObject *)Py_TYPE(late), late);
            Py_XDECREF(late);
            return NULL;
        }
        moved = pool_pump(j->pool);
        if (moved == 0 && !(j->mode == J_ORDERED ? j->head->ended : j->ready != NULL)) {
            if (timeout_ns > 0 && (timeout_ns = until - tri_now_ns()) <= 0)
                timeout_ns = 0;
            moved = pool_wait(j->pool, key, j->mode == J_ORDERED ? j->head->slot : TRI_ANY_SLOT,
                              j->head->ticket, timeout_ns);
            if (moved == 1 && !(j->mode == J_ORDERED ? j->head->ended : j->ready != NULL)) {
                PyErr_SetNone(PyExc_TimeoutError);
                return NULL;
            }
        }
        if (moved < 0)
            return NULL;
    }
}

/* An iterator is at its end, or failed there: say so, without losing its exception. */
static void finish(JobObject *j)
{
    PyObject *type, *exc, *tb, *fn = j->on_done, *r;

    j->on_done = NULL;
    PyErr_Fetch(&type, &exc, &tb);
    r = PyObject_CallNoArgs(fn);
    if (!r && type)
        PyErr_WriteUnraisable(fn);
    if (type)
        PyErr_Restore(type, exc, tb);
    Py_XDECREF(r);
    Py_DECREF(fn);
}

/* One thread at a time: pulling input and reading results run code of the user's. */
static PyObject *next_in_turn(JobObject *j, int64_t timeout_ns)
{
    unsigned long me = PyThread_get_thread_ident();
    PyObject *v;

    if (!PyThread_acquire_lock(j->turn, NOWAIT_LOCK)) {
        PyLockStatus got = PY_LOCK_FAILURE;

        if (j->turn_of == me) {
            PyErr_SetString(PyExc_ValueError, "this iterator is already executing");
            return NULL;
        }
        do {
            Py_BEGIN_ALLOW_THREADS got = PyThread_acquire_lock_timed(
                j->turn, timeout_ns < 0 ? -1 : (PY_TIMEOUT_T)(timeout_ns / 1000), 1);
            Py_END_ALLOW_THREADS if (got == PY_LOCK_INTR && PyErr_CheckSignals() < 0) return NULL;
        } while (got == PY_LOCK_INTR);
        if (got == PY_LOCK_FAILURE) {
            PyErr_SetNone(PyExc_TimeoutError);
            return NULL;
        }
    }
    j->turn_of = me;
    Py_INCREF(j);
    v = next_value(j, timeout_ns);
    if (!v && !j->head && j->on_done)
        finish(j);
    j->turn_of = 0;
    PyThread_release_lock(j->turn);
    Py_DECREF(j);
    return v;
}

static PyObject *job_next(PyObject *obj)
{
    return next_in_turn((JobObject *)obj, -1);
}

static PyObject *job_next_timeout(PyObject *obj, PyObject *const *args, Py_ssize_t n)
{
    int64_t ns;
    PyObject *v;

    if (n > 1 || seconds_to_ns(n ? args[0] : NULL, "timeout", &ns) < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "next() takes at most one argument, the timeout");
        return NULL;
    }
    v = next_in_turn((JobObject *)obj, ns);
    if (!v && !PyErr_Occurred())
        PyErr_SetNone(PyExc_StopIteration);
    return v;
}

static PyObject *job_self(PyObject *obj)
{
    JobObject *j = (JobObject *)obj;

    if (j->mode != J_ORDERED && j->mode != J_UNORDERED) {
        PyErr_SetString(PyExc_TypeError, "this job is not an iterator");
        return NULL;
    }
    return Py_NewRef(obj);
}

static PyObject *job_ended(PyObject *obj, void *closure)
{
    JobObject *j = (JobObject *)obj;

    (void)closure;
    return PyBool_FromLong(j->error || j->done_items >= j->n);
}

static PyObject *job_error(PyObject *obj, void *closure)
{
    JobObject *j = (JobObject *)obj;

    (void)closure;
    return Py_NewRef(j->error ? j->error : Py_None);
}

/* ------------------------------------------------------------------ making one */

/* pool._job(fn, items, n, mode, star=, chunk=, timeout=, retries=, priority=, progress=, caller=,
 *           finish=)
 * items: a list, tuple or range of n items, or with n = -1 an iterator. */
PyObject *job_make(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fn",     "items",   "n",       "mode",     "star",
                            "chunk",  "timeout", "retries", "priority", "progress",
                            "caller", "finish",  NULL};
    PoolObject *pool = (PoolObject *)obj;
    PyObject *fn, *items, *timeout = Py_None, *progress = Py_None;
    PyObject *retries = NULL, *priority = NULL, *finished = Py_None;
    struct options opt = {0, 0, 0};
    Py_ssize_t n, chunk = 0;
    int mode, star = 0, caller = 0;
    JobObject *j;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOni|pnOOOOpO", names, &fn, &items, &n, &mode,
                                     &star, &chunk, &timeout, &retries, &priority, &progress,
                                     &caller, &finished) ||
        pool_check(pool) < 0)
        return NULL;
    if (option_timeout(timeout, &opt) < 0 || (retries && option_retries(retries, &opt) < 0) ||
        (priority && option_priority(priority, &opt) < 0))
        return NULL;
    if (chunk < 0) {
        PyErr_SetString(PyExc_ValueError, "chunk must not be negative");
        return NULL;
    }
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "a map needs a callable, not %.200s: %R",
                     Py_TYPE(fn)->tp_name, fn);
        return NULL;
    }
    if (n >= 0 && !PyList_Check(items) && !PyTuple_Check(items) && !PyRange_Check(items)) {
        PyErr_SetString(PyExc_TypeError, "items must be a list, a tuple or a range");
        return NULL;
    }
    if (state_late_imports(pool->st) < 0)
        return NULL;
    j = (JobObject *)pool->st->job_type->tp_alloc(pool->st->job_type, 0);
    if (!j)
        return NULL;
    j->turn = PyThread_allocate_lock();
    if (!j->turn) {
        Py_DECREF(j);
        return PyErr_NoMemory();
    }
    j->tail = &j->head;
    j->ready_tail = &j->ready;
    j->pool = (PoolObject *)Py_NewRef(pool);
    j->callable = reveal_function(pool->st, fn);
    j->opt = opt;
    j->mode = (enum mode)mode;
    j->star = star;
    j->caller = caller;
    j->chunk = chunk;
    j->n = n;
    j->last_size = 1;
    if (progress != Py_None)
        j->progress = Py_NewRef(progress);
    if (finished != Py_None)
        j->on_done = Py_NewRef(finished);
    if (n >= 0)
        j->seq = Py_NewRef(items);
    else
        j->iter = PyObject_GetIter(items);
    if ((mode == J_MAP || mode == J_ASYNC) && n >= 0)
        j->results = PyList_New(n);
    if (!pool->threads)
        j->fn = pool_function(pool, fn, true);
    if (!j->callable || (n < 0 && !j->iter) || (!pool->threads && !j->fn) ||
        ((mode == J_MAP || mode == J_ASYNC) && !j->results))
        goto fail;
    if (mode != J_MAP && send_some(j, 0) < 0) {
        /* In the background, items that cannot be sent fail the job, not the call. */
        if (mode != J_ASYNC || pool->core->p->refusing || pool->core->p->broken ||
            !PyErr_ExceptionMatches(PyExc_Exception)) {
            stop(j);
            goto fail;
        }
        fetch_error(&j->error);
        stop(j);
    }
    return (PyObject *)j;
fail:
    Py_DECREF(j);
    return NULL;
}

static int job_traverse(PyObject *obj, visitproc visit, void *arg)
{
    JobObject *j = (JobObject *)obj;

    /* A chunk whose task runs holds the job, which is then not collected. */
    for (const struct chunk *c = j->head; c; c = c->next) {
        Py_VISIT(c->items);
        Py_VISIT(c->values);
        Py_VISIT(c->error);
    }
    Py_VISIT(Py_TYPE(j));
    Py_VISIT(j->pool);
    Py_VISIT(j->fn);
    Py_VISIT(j->callable);
    Py_VISIT(j->seq);
    Py_VISIT(j->iter);
    Py_VISIT(j->results);
    Py_VISIT(j->progress);
    Py_VISIT(j->error);
    Py_VISIT(j->again);
    Py_VISIT(j->on_done);
    return 0;
}

static int job_clear(PyObject *obj)
{
    JobObject *j = (JobObject *)obj;

    stop(j);
    Py_CLEAR(j->progress);
    Py_CLEAR(j->on_done);
    Py_CLEAR(j->error);
    Py_CLEAR(j->again);
    return 0;
}

static void job_dealloc(PyObject *obj)
{
    JobObject *j = (JobObject *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    PyObject_GC_UnTrack(obj);
    /* Chunks in flight hold the job, so none is left; ended ones may be. */
    if (j->pool)
        stop(j);
    job_clear(obj);
    Py_CLEAR(j->fn);
    Py_CLEAR(j->callable);
    Py_CLEAR(j->seq);
    Py_CLEAR(j->iter);
    Py_CLEAR(j->results);
    Py_CLEAR(j->pool);
    if (j->turn)
        PyThread_free_lock(j->turn);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyMethodDef job_methods[] = {
    {"_get", job_get, METH_O, NULL},
    {"_wait", job_wait, METH_O, NULL},
    {"_watch", job_watch, METH_O, NULL},
    {"_tell", job_tell, METH_NOARGS, NULL},
    {"_stop", job_stop, METH_NOARGS, NULL},
    {"next", (PyCFunction)(void (*)(void))job_next_timeout, METH_FASTCALL,
     "next($self, timeout=None)\n--\n\nThe next result; TimeoutError after timeout seconds."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef job_getset[] = {
    {"_ended", job_ended, NULL, NULL, NULL},
    {"_error", job_error, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot job_slots[] = {
    {Py_tp_dealloc, job_dealloc},
    {Py_tp_traverse, job_traverse},
    {Py_tp_clear, job_clear},
    {Py_tp_methods, job_methods},
    {Py_tp_getset, job_getset},
    {Py_tp_iter, job_self},
    {Py_tp_iternext, job_next},
    {Py_tp_doc, "A map in progress: an iterator over its results."},
    {0, NULL},
};

PyType_Spec job_spec = {
    .name = "trireme._core.Job",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = job_slots,
};
