/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job_chunks.c - the owner's side of chunks: how large, when sent, how read.
 *
 * A job keeps a window of chunks in flight, so that a worker never waits for the owner to come
 * by; results are decoded while the workers compute the next ones.  Two chunks per worker do when
 * each takes long.  Where they are short and small, it is WINDOW_MANY: the owner shares a CPU with
 * a worker, and may not get it back for milliseconds.
 *
 * Chunk sizes are measured, not asked for: the first chunks hold one item; then a chunk aims at
 * CHUNK_NS of work (in a long map, up to CHUNK_LONG_NS) by what the items so far took, grows at
 * most eightfold at a time, and takes at most a share of what is left, so that the workers end
 * together.
 *
 * A map's first chunk goes alone.  To wake a second worker takes longer than a map of a few cheap
 * items: 16 of them, 6 us in one worker and 200 us with two.  So while what is left is worth less
 * than TINY_NS by what the items so far took, one chunk is in flight; it is given PROBE_NS and
 * twice what it should take (job_map.c), and if it is not back by then, everybody gets work.
 *
 * The arena is to have room for a few chunks at a time, and one that does not fit is halved.
 *
 * A chunk is alive until its task has ended, whatever becomes of the job: an abandoned job leaves
 * its chunks to whoever takes them.  Those not yet given out are in a list in the order sent (head,
 * next); unless results go out in that order, those of them that have ended are also in one in the
 * order of ending (ready, next_ready).
 */
#include <stdlib.h>

#include "base/clock.h"
#include "job.h"

#define CHUNK_NS 500000
#define CHUNK_LONG_NS 8000000 /* of a long map, whose CHUNKS_EACH-th part for a worker is more */
#define CHUNKS_EACH 64
#define CHUNK_LEAST_NS 20000
#define TINY_NS 100000 /* of work left: less than two workers, woken, would take for it */
#define CHUNK_MAX 16384
#define WINDOW_FEW 2   /* chunks in flight per worker */
#define WINDOW_MANY 24 /* of at most SMALL_BYTES each way and CHUNK_NS or so */
#define SMALL_BYTES (256 << 10)
#define PULL_NS 8000000 /* that input may take before what came so far is sent */

/* ------------------------------------------------------------------ chunks */

void chunk_free(struct chunk *c)
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

void tell_later(JobObject *j)
{
    pool_tell_later(j->pool, (PyObject *)j);
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

/* How long a chunk should run.  Each costs the worker a switch to the owner who takes its result
 * and, where they share a CPU, a cold cache: a map of seconds goes in longer ones, still so many
 * that the workers end together. */
static double aim_ns(const JobObject *j, Py_ssize_t left, Py_ssize_t workers)
{
    double part;

    if (j->mode != J_MAP || j->n < 0)
        return CHUNK_NS;
    part = (double)left * j->item_ns / (double)(CHUNKS_EACH * workers);
    return part < CHUNK_NS ? CHUNK_NS : part > CHUNK_LONG_NS ? CHUNK_LONG_NS : part;
}

static Py_ssize_t size_by_time(const JobObject *j)
{
    Py_ssize_t left = j->n >= 0 ? j->n - j->next : PY_SSIZE_T_MAX, size, share, least;
    Py_ssize_t workers = (Py_ssize_t)j->pool->core->p->view.nworkers;
    double aim;

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
    aim = aim_ns(j, left, workers);
    size = j->item_ns >= aim ? 1 : (Py_ssize_t)(aim / j->item_ns);
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

Py_ssize_t next_size(const JobObject *j)
{
    const struct tri_view *v = &j->pool->core->p->view;
    Py_ssize_t size = size_by_time(j);
    double room = (double)v->heap_bytes / (double)(WINDOW_FEW * v->nworkers + 2);

    if (j->chunk > 0 || j->item_bytes <= 0 || (double)size * j->item_bytes <= room)
        return size;
    size = (Py_ssize_t)(room / j->item_bytes);
    return size < 1 ? 1 : size;
}

void fetch_error(PyObject **into)
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
 * what it gave before is still run, and its exception waits in j->error for its turn.  Where input
 * comes slowly, what has come is not kept until there is more. */
static PyObject *pull(JobObject *j, Py_ssize_t n)
{
    int64_t until = tri_tick_ns() + PULL_NS;
    PyObject *list, *item;
    Py_ssize_t len;

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
        if (!list)
            break;
        /* Slow input is seen at its first item, the end of a burst some items later. */
        len = PyList_GET_SIZE(list);
        if ((len == 1 || len % 8 == 0) && tri_tick_ns() >= until)
            break;
    }
    return list;
}

static int fill_slot(JobObject *j, struct chunk *c, struct tri_slot *s)
{
    s->timeout_ns = j->opt.timeout_ns;
    s->arg_off = 0;
    s->flags = TRI_F_PY | TRI_F_TIMED | (j->star ? V_STAR : 0) |
               (j->mode == J_ORDERED || j->mode == J_UNORDERED ? V_ALL : 0) |
               (j->opt.retries > 0 ? V_AGAIN : 0);
    if (!j->pool->threads) {
        s->fn_id = j->fn->id;
        s->fn_off = j->fn->off;
        s->fn_len = j->fn->len;
        return c->items ? items_write(j->pool, s, c->items, 0, c->n)
                        : items_write(j->pool, s, j->seq, c->first, c->n);
    }
    if (!c->items)
        c->items = items_part(j->seq, c->first, c->n);
    if (!c->items)
        return -1;
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

void job_all_sent(JobObject *j)
{
    PoolObject *pool = j->pool;

    if (!j->open || !pool)
        return;
    j->open = false;
    if (--pool->iterators == 0 && pool->closed && pool->core)
        tri_pool_refuse(pool->core->p);
}

/* Send one chunk.  1: sent; 0: nothing to send; -1, CANNOT_SEND: exception */
static int send_chunk(JobObject *j)
{
    struct tri_pool *p = j->pool->core->p;
    Py_ssize_t size = next_size(j);
    struct chunk *c;
    uint32_t slot;
    int err;

    if ((j->exhausted && !j->again) || (j->n >= 0 && j->next >= j->n)) {
        job_all_sent(j);
        return 0;
    }
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
        return CANNOT_SEND;
    }
    c->slot = slot;
    while ((err = fill_slot(j, c, &p->view.slot[slot])) == NO_ROOM && !j->iter && c->n > 1) {
        PyErr_Clear();
        size = c->n = c->n / 2;
    }
    if (err < 0) {
        tri_task_drop(p, slot);
        return set_aside(j, c);
    }
    if (!j->pool->threads) {
        uint64_t bytes = p->view.slot[slot].arg_len;

        if (bytes > j->most_bytes)
            j->most_bytes = bytes;
        j->item_bytes = (double)bytes / (double)size;
    }
    Py_INCREF(j);
    err = pool_push(j->pool, slot, &j->opt, c, &c->ticket);
    if (err) {
        Py_DECREF(j);
        tri_task_drop(p, slot);
        chunk_free(c);
        raise_code(j->pool->st, p, err);
        return CANNOT_SEND;
    }
    link_chunk(j, c);
    j->last_size = size;
    j->in_flight++;
    return 1;
}

bool is_tiny(const JobObject *j)
{
    if (j->mode != J_MAP || j->wide || j->n < 0 || j->chunk > 0 || j->opt.timeout_ns > 0)
        return false;
    if (j->item_ns <= 0)
        return true;
    /* What one item took alone is mostly what a chunk costs: some more are to tell. */
    return (double)(j->n - j->next) * j->item_ns < (j->last_size == 1 ? 4 * TINY_NS : TINY_NS);
}

/* How many chunks may be in flight. */
static Py_ssize_t window(const JobObject *j)
{
    Py_ssize_t workers = (Py_ssize_t)j->pool->core->p->view.nworkers;

    if (is_tiny(j))
        return j->caller && j->item_ns > 0 ? 0 : 1;

    if (j->mode == J_ASYNC)
        return PY_SSIZE_T_MAX;
    /* An iterator's input is pulled no further ahead than it must; a caller who works takes what
     * is not sent. */
    if (j->mode != J_MAP || j->caller || j->most_ns <= 0 || j->most_ns > 4.0 * CHUNK_NS ||
        j->most_bytes > SMALL_BYTES)
        return WINDOW_FEW * workers + 2;
    return WINDOW_MANY * workers + 2;
}

static Py_ssize_t waiting_chunks(const JobObject *j)
{
    Py_ssize_t n = 0;

    for (const struct chunk *c = j->head; c; c = c->next)
        n += c->ended;
    return n;
}

int send_some(JobObject *j)
{
    Py_ssize_t waiting = j->iter ? waiting_chunks(j) : 0;
    int64_t until = 0;

    while (!j->stopped && j->in_flight + waiting < window(j)) {
        int sent;

        if (j->iter && !until)
            until = tri_now_ns() + PULL_NS;
        sent = send_chunk(j);
        if (sent <= 0)
            return sent;
        if (j->iter && tri_now_ns() >= until)
            return 1;
    }
    return 0;
}

void job_forget(JobObject *j)
{
    struct chunk *c, *next;
    struct tri_pool *p = j->pool && j->pool->core ? j->pool->core->p : NULL;

    if (j->stopped)
        return;
    job_all_sent(j);
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

int chunk_read(JobObject *j, struct chunk *c, PyObject **out)
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

void unlink_chunk(JobObject *j, struct chunk *c)
{
    struct chunk **at = &j->head;

    while (*at && *at != c)
        at = &(*at)->next;
    if (*at)
        *at = c->next;
    if (j->tail == &c->next)
        j->tail = at;
}

struct chunk *pop_ready(JobObject *j)
{
    struct chunk *c = j->ready;

    if (c) {
        j->ready = c->next_ready;
        if (!j->ready)
            j->ready_tail = &j->ready;
    }
    return c;
}
