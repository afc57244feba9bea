/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * spill.c - results for which the arena has no room.
 *
 * The worker makes a memfd of the result's size, writes there, seals it, and sends the descriptor
 * over the output socket, before it stores DONE.  So when the owner finds DONE with
 * TRI_R_SPILLED, the descriptor is in the socket or has been read from it already: the owner reads
 * what is there, keeps what is output for its turn, and maps the descriptor that names this task.
 *
 * A descriptor is named by the STARTED word: worker, generation and ticket.  A worker that died
 * between sending and DONE leaves one that nobody will ask for; repair drops those of the dead.
 * What a worker killed before sending had written goes with it: only its descriptor held the pages.
 *
 * The socket is the tasks' to scribble on as the arena is.  Whatever comes is read to its end and
 * every descriptor that is not the one of a result is closed.
 *
 * Without an output socket (pools of C programs) there is no spilling: the arena is the limit.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cp.h"
#include "base/cpu.h"
#include "pool/pool.h"
#include "pool/worker.h"

/* ------------------------------------------------------------------ worker */

void tri_spill_drop(struct tri_worker *w)
{
    if (w->spill_base)
        munmap(w->spill_base, w->spill_bytes);
    if (w->spill_fd > 0)
        close(w->spill_fd);
    w->spill_base = NULL;
    w->spill_fd = 0;
}

uint8_t *tri_spill_room(struct tri_worker *w, uint64_t bytes)
{
    uint64_t headroom = tri_memory_headroom();
    struct tri_segment s;

    tri_spill_drop(w);
    if (!tri_worker_output_ok(w) || bytes > headroom - headroom / 16)
        return NULL;
    if (tri_segment_make(&s, bytes, true) < 0)
        return NULL;
    if (s.fd < 0) { /* it could not be sent */
        tri_segment_drop(&s);
        return NULL;
    }
    w->spill_fd = s.fd;
    w->spill_base = s.base;
    w->spill_bytes = bytes;
    w->slot->res_flags |= TRI_R_SPILLED;
    CP(spill_room);
    return s.base;
}

void tri_spill_send(struct tri_worker *w)
{
    struct tri_worker_line *line = &w->view.worker[w->id];
    struct tri_output_head head = {TRI_OUT_SPILL, (int32_t)getpid(), 0};
    uint64_t word = tri_load_rlx(&w->slot->state);
    struct iovec iov[2] = {{&head, sizeof head}, {&word, sizeof word}};
    char room[CMSG_SPACE(sizeof(int))];
    struct msghdr msg = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c;
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT;

    memset(room, 0, sizeof room);
    c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &w->spill_fd, sizeof(int));
    CP(spill_before);
    while (sendmsg(w->output_fd, &msg, flags) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == ETOOMANYREFS) {
            struct timespec nap = {0, 1000000};

            tri_wake_owner(&w->view);
            CP(spill_waits);
            nanosleep(&nap, NULL);
        } else if (errno == EAGAIN || errno == ENOBUFS) {
            tri_wake_owner(&w->view);
            CP(spill_waits);
            flags = MSG_NOSIGNAL;
        } else {
            break; /* the owner is gone; so are we, soon */
        }
    }
    CP(spill_sent);
    tri_store_rel(&line->outputs, tri_load_rlx(&line->outputs) + 1);
    CP(spill_counted);
    tri_spill_drop(w);
}

/* ------------------------------------------------------------------ owner; p->lock held */

static void keep_spill(struct tri_pool *p, uint64_t word, int fd)
{
    if (p->nspill == p->spill_cap) {
        uint32_t cap = p->spill_cap ? 2 * p->spill_cap : 8;
        void *s = realloc(p->spill, cap * sizeof *p->spill);

        if (!s) {
            close(fd);
            return;
        }
        p->spill = s;
        p->spill_cap = cap;
    }
    p->spill[p->nspill++] = (struct tri_spilled){word, fd};
}

/* The one descriptor that came along; -1: none, or several, which no sound worker sends. */
static int only_fd(struct msghdr *msg)
{
    int fd = -1, all[8], n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        size_t k;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(all, CMSG_DATA(c), k * sizeof(int));
        for (size_t i = 0; i < k; i++) {
            if (n++)
                close(all[i]);
            else
                fd = all[i];
        }
    }
    if (n > 1) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Nothing was read: because nobody is left to write, or because an empty datagram was sent? */
static bool no_writer(int fd)
{
    struct pollfd pf = {fd, POLLRDHUP, 0};

    return poll(&pf, 1, 0) != 0;
}

int tri_output_read(struct tri_pool *p, struct tri_output *out)
{
    struct tri_output_head head;
    uint8_t *buf = out ? out->buf : malloc(TRI_OUTPUT_MAX);
    size_t cap = out ? out->cap : TRI_OUTPUT_MAX;
    struct iovec iov[2] = {{&head, sizeof head}, {buf, cap}};
    char room[CMSG_SPACE(8 * sizeof(int))];
    struct msghdr msg = {
        .msg_iov = iov, .msg_iovlen = 2, .msg_control = room, .msg_controllen = sizeof room};
    struct tri_output *o;
    uint64_t word;
    ssize_t got;
    int fd = -1;

    if (!buf)
        return 0;
    do
        got = recvmsg(p->output_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got >= 0)
        fd = only_fd(&msg);
    if (got <= (ssize_t)sizeof head) {
        if (fd >= 0)
            close(fd);
        if (out)
            out->n = 0;
        else
            free(buf);
        return got > 0 || (got == 0 && !no_writer(p->output_fd));
    }
    if (head.stream == TRI_OUT_SPILL || fd >= 0) {
        if (fd >= 0 && head.stream == TRI_OUT_SPILL &&
            got == (ssize_t)(sizeof head + sizeof word)) {
            memcpy(&word, buf, sizeof word);
            keep_spill(p, word, fd);
        } else if (fd >= 0) {
            close(fd);
        }
        if (out)
            out->n = 0;
        else
            free(buf);
        return 1;
    }
    o = out ? out : malloc(sizeof *o);
    if (!o) {
        free(buf);
        return 1;
    }
    o->stream = head.stream;
    o->pid = head.pid;
    o->n = (size_t)got - sizeof head;
    if (!out) {
        o->buf = buf;
        o->next = NULL;
        *p->output_tail = o;
        p->output_tail = &o->next;
    }
    return 1;
}

static int find_spill(const struct tri_pool *p, uint64_t word)
{
    for (uint32_t i = 0; i < p->nspill; i++)
        if (p->spill[i].word == word)
            return (int)i;
    return -1;
}

void *tri_spill_take(struct tri_pool *p, uint64_t done_word, uint64_t bytes)
{
    uint64_t word = tri_word(TRI_S_STARTED, tri_word_worker(done_word), tri_word_gen(done_word),
                             tri_word_ticket(done_word));
    struct tri_segment s;
    int i = find_spill(p, word), fd, err;

    while (i < 0 && p->output_fd >= 0 && tri_output_read(p, NULL))
        i = find_spill(p, word);
    if (i < 0)
        return NULL;
    fd = p->spill[i].fd;
    p->spill[i] = p->spill[--p->nspill];
    /* Sealed and of the size it says: whoever still holds it cannot make us fault. */
    err = tri_segment_attach(&s, fd);
    close(fd);
    if (err)
        return NULL;
    if (s.bytes != bytes) {
        munmap(s.base, s.bytes);
        return NULL;
    }
    return s.base;
}

void tri_spill_forget(struct tri_pool *p, uint32_t worker, uint32_t gen)
{
    if (p->output_fd < 0)
        return;
    while (tri_output_read(p, NULL))
        ;
    for (uint32_t i = 0; i < p->nspill;) {
        if (tri_word_worker(p->spill[i].word) == worker &&
            tri_word_gen(p->spill[i].word) == (gen & TRI_GEN_MASK)) {
            close(p->spill[i].fd);
            p->spill[i] = p->spill[--p->nspill];
        } else {
            i++;
        }
    }
}

void tri_spill_free(struct tri_pool *p)
{
    while (p->output_head) {
        struct tri_output *o = p->output_head;

        p->output_head = o->next;
        free(o->buf);
        free(o);
    }
    while (p->nspill)
        close(p->spill[--p->nspill].fd);
    free(p->spill);
}
