/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job_map.c - a map as one call: the loop that whoever waits for all results is in.
 *
 * It sends while the window has room, takes what ended, decodes that into the result list by
 * index, and sleeps only when there is nothing to take.  A caller who works too computes items
 * that were not sent, a chunk of them between two looks.  A map in the background is run by the
 * same loop when somebody waits for it, and by pumps otherwise (job.c: job_tell).
 *
 * What is raised while somebody waits (by the handler of a signal, by a callback of some other
 * task's) ends a blocking map, whose results nobody else has.  A map in the background goes on: it
 * is only the wait that ends by it.  What its tasks, its results and its progress callable raise
 * is the error of either.
 */
#include "base/clock.h"
#include "job.h"

#define PROBE_NS 20000 /* how long a tiny map waits for a chunk's way there and back */
#define BEHIND 4       /* chunks found ended at one look: the owner does not keep up */

/*
 * Ctrl-C in code of the user's that collecting runs, which is for who waits.  The progress callable
 * has been told; a result that was being unpickled is lost, and fails the job.
 */
static int ctrl_c_in_collect(JobObject *j, bool lost)
{
    PyObject *exc = NULL;

    if (!lost)
        return INTERRUPTED;
    fetch_error(&exc);
    if (!j->error)
        j->error = Py_NewRef(exc);
    job_forget(j);
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_DECREF(exc);
    return INTERRUPTED;
}

int collect(JobObject *j)
{
    struct chunk *c;
    int n = 0, err = 0;
    bool lost, tasks;

    while ((c = pop_ready(j)) != NULL) {
        unlink_chunk(j, c);
        err = chunk_read(j, c, ((PyListObject *)j->results)->ob_item + c->first);
        lost = err != 0;
        if (!lost)
            err = report(j, c->n);
        tasks = c->done.status || c->done.code == R_EXCEPTION;
        chunk_free(c);
        if (err && j->mode == J_ASYNC && !tasks && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
            return ctrl_c_in_collect(j, lost);
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
    bool ints = false;
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
        else if (items_there(j->seq, i + 1) < 0)
            break;
        else
            item = PySequence_GetItem(j->seq, i);
        if (item && pace_call(&j->pace, j->pool->st, j->callable) == 0)
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
    int64_t until_wide = 0;

    while (!j->error && j->done_items < j->n) {
        int64_t probe = 0;
        uint32_t key;
        int moved, got;

        if (pool_check(j->pool) < 0)
            goto failed;
        key = tri_wait_key(j->pool->core->p);
        if (send_some(j) < 0)
            goto failed;
        moved = pool_pump(j->pool);
        if (moved < 0)
            goto interrupted;
        if (moved >= BEHIND)
            start_helping(j);
        got = collect(j);
        if (got == INTERRUPTED)
            goto interrupted;
        if (got < 0)
            goto failed;
        if (moved + got) {
            until_wide = 0;
            continue;
        }
        /* By the clock: others who wait may rouse this one again and again. */
        if (until_wide && tri_now_ns() >= until_wide) {
            j->wide = true;
            until_wide = 0;
            continue; /* there is more to send now */
        }
        if (is_tiny(j) && j->in_flight > 0) {
            probe = PROBE_NS + 2 * (int64_t)(j->item_ns * (double)j->last_size);
            if (!until_wide)
                until_wide = tri_now_ns() + probe;
        }
        if (j->caller && j->next < j->n && !probe) {
            if (work_here(j) < 0)
                goto failed;
            continue;
        }
        stop_helping(j);
        if (timeout_ns > 0 && (left = until - tri_now_ns()) <= 0)
            left = 0;
        if (left < 0 && j->head && !j->head->ended &&
            pool_help(j->pool, j->head->slot, j->head->ticket))
            continue;
        if (j->next == j->n || (left >= 0 && left <= probe))
            probe = 0;
        moved = pool_wait(j->pool, key, j->head && !j->head->ended ? j->head->slot : TRI_ANY_SLOT,
                          j->head ? j->head->ticket : 0, probe ? probe : left);
        if (moved < 0)
            goto interrupted;
        if (moved == 1 && !j->ready) {
            if (!probe)
                return 1;
            j->wide = true;
        }
    }
    return j->error ? -1 : 0;
interrupted:
    if (j->mode == J_ASYNC)
        return -1;
failed:
    fetch_error(&j->error);
    job_forget(j);
    return -1;
}

int run_map(JobObject *j, int64_t timeout_ns)
{
    int err = run_map_steps(j, timeout_ns);

    stop_helping(j);
    return err;
}
