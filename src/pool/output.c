/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * output.c - what workers print, on its way to the owner.
 *
 * A record (stream, bytes) is a datagram on the pool's output socket.  The socket of an owner that
 * does something else has room for some 280 of them, of all workers together; what does not fit
 * goes to the worker's *backlog*, a ring of bytes in the shared memory that survives its death, so
 * that a task runs on while nobody looks.  Only when that is full, too, the worker waits.
 *
 *   worker  writes a record behind `put`, then moves put
 *   owner   copies one from behind `got`, then moves got
 *
 * Both only grow; the byte at position i lies at i modulo the ring's size.
 *
 * ORDER.  A worker's records come out as it wrote them:
 *   B1  While anything is in its backlog (put != got), a worker writes there only.  So no datagram
 *       of its follows a record of the backlog that the owner has not copied.
 *   B2  The owner reads a backlog up to its goal, a value of put that it saw before it last found
 *       the socket empty.  A record goes to an empty backlog only after the socket was full, so all
 *       datagrams before it were in the socket when put moved, and have been read by then.
 *
 * A record may be cut by nothing but a death: it is there once put has moved.  A successor goes on
 * where its predecessor stopped.  Children that a task forks share the mapping, not the right to
 * write: they have the socket alone.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cp.h"
#include "base/cpu.h"
#include "pool/pool.h"
#include "pool/worker.h"

/* Before each record of a backlog.  Records begin at multiples of 8. */
struct record {
    struct tri_output_head head;
    uint32_t bytes;
};

static uint64_t record_bytes(uint64_t bytes)
{
    return sizeof(struct record) + ((bytes + 7) & ~7ull);
}

/* The ring's bytes [pos, pos + n), which may go round its end. */
static void ring_copy(uint8_t *ring, uint64_t pos, void *bytes, size_t n, bool write)
{
    uint64_t at = pos % TRI_BACKLOG;
    size_t first = n < TRI_BACKLOG - at ? n : (size_t)(TRI_BACKLOG - at);

    if (write) {
        memcpy(ring + at, bytes, first);
        memcpy(ring, (uint8_t *)bytes + first, n - first);
    } else {
        memcpy(bytes, ring + at, first);
        memcpy((uint8_t *)bytes + first, ring, n - first);
    }
}

/* ------------------------------------------------------------------ worker */

bool tri_worker_output_ok(struct tri_worker *w)
{
    struct stat st;

    if (w->output_fd < 0)
        return false;
    if (fstat(w->output_fd, &st) == 0 && st.st_dev == w->output_dev && st.st_ino == w->output_ino)
        return true;
    w->output_fd = -1; /* not ours to close: it may be the task's own file by now */
    w->retire = true;
    return false;
}

/* Is there a backlog?  One that was read to its end gives back its pages.  One that cannot be is no
 * reason to wait for ever: a task has scribbled over it. */
static bool behind(struct tri_worker *w)
{
    struct tri_worker_line *line = &w->view.worker[w->id];
    uint64_t there = tri_load_rlx(&line->backlog_put) - tri_load_acq(&line->backlog_got);

    if (there && there <= TRI_BACKLOG)
        return true;
    if (w->backlogged && !there)
        tri_segment_punch(&w->seg, tri_backlog_at(&w->view, w->id), TRI_BACKLOG);
    w->backlogged = false;
    return false;
}

/* False: there is no room, or no memory. */
static bool put_off(struct tri_worker *w, const struct tri_output_head *head, const void *bytes,
                    size_t n)
{
    struct tri_worker_line *line = &w->view.worker[w->id];
    uint8_t *ring = w->view.base + tri_backlog_at(&w->view, w->id);
    uint64_t put = tri_load_rlx(&line->backlog_put);
    uint64_t used = put - tri_load_acq(&line->backlog_got);
    struct record r;

    if (used > TRI_BACKLOG || TRI_BACKLOG - used < record_bytes(n))
        return false;
    if (!w->backlogged && tri_memory_headroom() < 4 * TRI_BACKLOG)
        return false;
    w->backlogged = true;
    memset(&r, 0, sizeof r);
    r.head = *head;
    r.bytes = (uint32_t)n;
    ring_copy(ring, put, &r, sizeof r, true);
    ring_copy(ring, put + sizeof r, (void *)(uintptr_t)bytes, n, true);
    CP(backlog_written);
    tri_store_rel(&line->backlog_put, put + record_bytes(n));
    CP(backlog_put);
    return true;
}

/* One datagram.  0; -errno. */
static int send_record(struct tri_worker *w, const struct tri_output_head *head, const void *bytes,
                       size_t n, int flags)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)head, sizeof *head}, {(void *)(uintptr_t)bytes, n}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n ? 2 : 1};

    return sendmsg(w->output_fd, &msg, MSG_NOSIGNAL | flags) < 0 ? -errno : 0;
}

/* Without waiting: 0; -EAGAIN: there is no room anywhere; another -errno: there is no owner. */
static int pass(struct tri_worker *w, const struct tri_output_head *head, const void *bytes,
                size_t n)
{
    bool own = w->process && head->pid == tri_load_rlx(&w->view.worker[w->id].pid);
    int err;

    if (own)
        pthread_mutex_lock(&w->output_lock);
    err = own && behind(w) ? -EAGAIN : send_record(w, head, bytes, n, MSG_DONTWAIT);
    if (err == -ENOBUFS)
        err = -EAGAIN;
    if (err == -EAGAIN && own && put_off(w, head, bytes, n))
        err = 0;
    if (own)
        pthread_mutex_unlock(&w->output_lock);
    return err;
}

int tri_worker_output(struct tri_worker *w, uint32_t stream, const void *bytes, size_t n)
{
    struct tri_worker_line *line = &w->view.worker[w->id];
    const uint8_t *p = bytes;
    struct tri_output_head head = {stream, (int32_t)getpid(), 0};
    const struct tri_output_head nothing = {0, head.pid, 0};

    if (!tri_worker_output_ok(w))
        return -EBADF;
    while (n) {
        size_t piece = n < TRI_OUTPUT_PIECE ? n : TRI_OUTPUT_PIECE;
        int err;

        head.more = piece < n;
        err = pass(w, &head, p, piece);
        if (err == -EAGAIN) {
            /* The owner is far behind: let it know, then wait until it reads. */
            tri_wake_owner(&w->view);
            err = send_record(w, &nothing, NULL, 0, 0);
            if (err == -EINTR && p == bytes)
                return -EINTR;
            if (!err || err == -EINTR)
                continue;
        } else if (err == -EINTR) {
            continue;
        }
        if (err)
            return 0; /* the owner is gone; so are we, soon */
        p += piece;
        n -= piece;
        tri_store_rel(&line->outputs, tri_load_rlx(&line->outputs) + 1);
        /* An owner asleep for a result should show it now. */
        if (tri_load_sc(&w->view.ctl->want) != TRI_WANT_NONE)
            tri_wake_owner(&w->view);
    }
    return 0;
}

/* ------------------------------------------------------------------ owner; p->lock held */

/* The next record of a worker's backlog, up to its goal.  False: there is none. */
static bool backlog_read(struct tri_pool *p, uint32_t worker, struct tri_output *out)
{
    struct tri_worker_line *line = &p->view.worker[worker];
    struct tri_member *m = &p->member[worker];
    uint8_t *ring = p->view.base + tri_backlog_at(&p->view, worker);
    uint64_t there = m->backlog_goal - m->backlog_got;
    struct record r;

    if (!there)
        return false;
    /* All of it is the worker's word, and a worker's tasks may write anything. */
    r.bytes = 0;
    if (there <= TRI_BACKLOG && there >= sizeof r)
        ring_copy(ring, m->backlog_got, &r, sizeof r, false);
    if (!r.bytes || r.bytes > TRI_OUTPUT_PIECE || record_bytes(r.bytes) > there) {
        m->backlog_got = m->backlog_goal;
        tri_store_rel(&line->backlog_got, m->backlog_got);
        return false;
    }
    out->stream = r.head.stream;
    out->pid = r.head.pid;
    out->n = r.bytes < out->cap ? r.bytes : out->cap;
    ring_copy(ring, m->backlog_got + sizeof r, out->buf, out->n, false);
    m->backlog_got += record_bytes(r.bytes);
    tri_store_rel(&line->backlog_got, m->backlog_got);
    return true;
}

/* Set the goals.  False: no backlog has more than was seen. */
static bool look_at_backlogs(struct tri_pool *p)
{
    bool more = false;

    for (uint32_t i = 0; i < p->view.nworkers; i++) {
        uint64_t put = tri_load_acq(&p->view.worker[i].backlog_put);

        more = more || put != p->member[i].backlog_goal;
        p->member[i].backlog_goal = put;
    }
    return more;
}

/* The first that was read while looking for something else. */
static bool kept_output(struct tri_pool *p, struct tri_output *out)
{
    struct tri_output *o = p->output_head;

    if (!o)
        return false;
    p->output_head = o->next;
    if (!p->output_head)
        p->output_tail = &p->output_head;
    out->stream = o->stream;
    out->pid = o->pid;
    out->n = o->n < out->cap ? o->n : out->cap;
    memcpy(out->buf, o->buf, out->n);
    free(o->buf);
    free(o);
    return true;
}

static bool next_output(struct tri_pool *p, struct tri_output *out)
{
    do {
        if (kept_output(p, out))
            return true;
        while (tri_output_read(p, out))
            if (out->n)
                return true;
        for (uint32_t i = 0; i < p->view.nworkers; i++)
            if (backlog_read(p, i, out))
                return true;
    } while (look_at_backlogs(p));
    return false;
}

int tri_pool_output(struct tri_pool *p, uint32_t *stream, int32_t *pid, void *buf, size_t cap,
                    size_t *n)
{
    struct tri_output out = {.buf = buf, .cap = cap};
    bool got;

    if (p->output_fd < 0)
        return 0;
    pthread_mutex_lock(&p->lock);
    got = next_output(p, &out);
    pthread_mutex_unlock(&p->lock);
    *stream = out.stream;
    *pid = out.pid;
    *n = got ? out.n : 0;
    return got;
}
