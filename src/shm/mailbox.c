/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox.c - a chain of chunks, one word where it begins and one where it ends.
 *
 *     head                                   tail
 *      |                                      |
 *     [c 5 ....] -> [c 0 ........] -> [c 2 ...|    ]      the others are free
 *
 * The stream of messages (a header of 8 bytes, the bytes, up to a multiple of 8) runs through
 * chunks of 64 KiB, each filled to its end.  A place is one word: chunk, offset in it, and how
 * many messages have been written (tail) or read (head) in all, modulo 2^30.
 *
 *   writer, under the writers' lock    P1 write beyond the tail   P2 store tail
 *   reader, under the readers' lock    G1 load tail   G2 copy out   G3 store head
 *
 * P2 pairs with G1: a message that is seen is fully written.  G3 pairs with the writer's load of
 * head (P0): a chunk that is written again has been read.  Each is one store, so who is killed
 * anywhere has put its message or not, has taken it or not, and left nothing that a reader could
 * see or that a writer must know: all else is derived from the two words.
 *
 * Which chunks are free?  A chunk that joins the chain gets the stamp of the one before it plus
 * one.  So the chain from head to tail has consecutive stamps, and a chunk is free exactly when
 * its stamp is outside of [stamp of head's chunk, stamp of the one being written].  Chunks that a
 * writer had begun who was killed, or refused for want of room, have stamps beyond the tail's:
 * free, but the chain would come to have these stamps itself.  `begun` tells the next writer of
 * such chunks, which takes the stamps away first.
 *
 * A writer looks for a free chunk among the first L * 3/2 + 2, where L is the chain's length: so
 * two looks suffice on average, a mailbox that is emptied as it is filled goes round in three
 * chunks that stay in the cache, and the high numbers are left alone once a burst is over.
 * Then trim() gives their pages back, under the writers' lock, so that none is in use.
 *
 * Sleep.  Each side has a bell (mailbox_bell.h) that the other one rings when it has stored what is
 * waited for.  Who is killed, or gives up, between its waking and its taking leaves others asleep
 * beside a message: so sleeps are cut into slices of SLICE_NS, and a reader that leaves messages
 * behind rings on, for those whose slice has just begun.
 *
 * The bell of descriptors (a pipe) is written by the writer who finds the mailbox empty, before
 * P2, and emptied by the reader who empties the mailbox, both under the writers' lock: it holds a
 * byte whenever there is a message.
 *
 * Nothing read here is trusted: chunk numbers, offsets, lengths and stamps are checked as the
 * chain is walked, and it is walked no further than to the tail.
 *
 * Tried on paper: a ring of fixed size (put would block), a ring as large as memory (page tables
 * and page faults for every byte), chunks in a circle that grows (a burst's chunks stay in use), a
 * list of free chunks (a death leaves it half done).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cp.h"
#include "shm/mailbox_inside.h"
#include "trireme.h"

#define COUNT_MASK ((1u << 30) - 1)
#define LENGTH_MASK ((UINT64_C(1) << 48) - 1)
#define KEEP 64u /* chunks whose pages stay: 4 MiB */
#define TRIM_EVERY_NS UINT64_C(100000000)
#define SLICE_NS 100000000
#define SPIN_NS 20000
#define SPIN_SKIP_MAX 1000u
#define LOCK_PATIENCE_NS 100000000 /* of a call that must not wait, for a lock held for a copy */

/* ------------------------------------------------------------------ places */

struct place {
    uint32_t chunk;
    uint32_t off; /* may be TRI_MAILBOX_CHUNK: the next byte is the next chunk's first */
    uint32_t count;
};

static uint64_t pack(struct place p)
{
    return (uint64_t)p.chunk << 44 | (uint64_t)(p.off / 8) << 30 | p.count;
}

static int unpack(const struct tri_mailbox *m, uint64_t word, struct place *p)
{
    p->chunk = (uint32_t)(word >> 44);
    p->off = (uint32_t)(word >> 30 & 0x3fff) * 8;
    p->count = (uint32_t)word & COUNT_MASK;
    return p->chunk < m->nchunks && p->off <= TRI_MAILBOX_CHUNK ? 0 : TRI_ECORRUPT;
}

static uint32_t between(uint64_t head, uint64_t tail)
{
    return ((uint32_t)tail - (uint32_t)head) & COUNT_MASK;
}

static uint64_t stamp_of(const struct tri_mailbox *m, uint32_t chunk)
{
    return tri_load_rlx(&m->chunk[chunk].stamp);
}

/* In this order a count is never of a head beyond the tail. */
uint32_t tri_mailbox_count(const struct tri_mailbox *m)
{
    uint64_t head = tri_load_sc(&m->ctl->head);

    return between(head, tri_load_sc(&m->ctl->tail));
}

bool tri_mailbox_full(const struct tri_mailbox *m)
{
    uint32_t most = m->ctl->most;

    return tri_mailbox_count(m) >= (most && most < COUNT_MASK ? most : COUNT_MASK);
}

/* For people, so the load pairs with nothing. */
uint32_t tri_mailbox_sent(const struct tri_mailbox *m)
{
    return (uint32_t)tri_load_rlx(&m->ctl->tail) & COUNT_MASK;
}

static bool has_mail(const struct tri_mailbox *m)
{
    return tri_load_sc(&m->ctl->head) != tri_load_sc(&m->ctl->tail);
}

/* ------------------------------------------------------------------ bells and deadlines */

static int64_t left_of(int64_t deadline)
{
    int64_t left;

    if (deadline < 0)
        return -1;
    left = deadline ? deadline - tri_now_ns() : 0;
    return left > 0 ? left : 0;
}

/*
 * Sleep until `there(m)`, at most for a slice.  0: look again; TRI_ETIMEDOUT; -EINTR, after a slice
 * as well: a signal that came just before the sleep did not end it, and its handler is waited for.
 */
static int sleep_for(struct tri_mailbox *m, struct tri_mailbox_bell *b,
                     bool (*there)(const struct tri_mailbox *), int64_t deadline)
{
    int64_t left = left_of(deadline), slice = left;
    uint32_t e;
    int err;

    if (left == 0)
        return there(m) ? 0 : TRI_ETIMEDOUT;
    e = tri_bell_enter(b); /* S1 */
    if (there(m)) {        /* S2 */
        tri_bell_leave(b, e);
        return 0;
    }
    if (left < 0 || left > SLICE_NS)
        slice = SLICE_NS;
    err = tri_futex_wait(tri_bell_rung(b), e, slice); /* S3 */
    if (err != -ETIMEDOUT && err != -EINTR)
        return 0;
    tri_bell_leave(b, e);
    return err == -EINTR || slice != left ? -EINTR : 0;
}

/* Take a lock by the deadline, in slices, too; with `try_only` -EBUSY when it is held. */
static int lock(tri_lock *l, int64_t deadline, bool try_only)
{
    int64_t left = deadline ? left_of(deadline) : LOCK_PATIENCE_NS;
    bool slice = left < 0 || left > SLICE_NS;
    int err = tri_lock_acquire(l, try_only ? 0 : slice ? SLICE_NS : left, NULL);

    if (err == TRI_ETIMEDOUT && try_only)
        return -EBUSY;
    return err == TRI_ETIMEDOUT && slice ? -EINTR : err;
}

static bool has_room(const struct tri_mailbox *m)
{
    return !tri_mailbox_full(m);
}

/* ------------------------------------------------------------------ writing */

struct pen {
    struct tri_mailbox *m;
    struct place at;
    uint64_t stamp;
};

static bool is_free(const struct tri_mailbox *m, uint32_t c, uint64_t first, uint64_t last)
{
    uint64_t s = stamp_of(m, c);

    return s < first || s > last;
}

/* How many chunks, the first ones, a chain of that length makes do with. */
static uint64_t enough_for(const struct tri_mailbox *m, uint64_t length)
{
    uint64_t n = length + length / 2 + 2;

    return n < m->nchunks ? n : m->nchunks;
}

/*
 * Have the pages of a chunk that has none, in one system call instead of a fault for each.  Where
 * there is no memory left this is an error; the fault would be a SIGBUS.
 */
static int populate(const struct tri_mailbox *m, uint32_t c)
{
#ifdef MADV_POPULATE_WRITE
    if (madvise(m->data + (size_t)c * TRI_MAILBOX_CHUNK, TRI_MAILBOX_CHUNK, MADV_POPULATE_WRITE) &&
        (errno == ENOMEM || errno == EFAULT))
        return -ENOSPC;
#else
    (void)m;
    (void)c;
#endif
    return 0;
}

/* Take the stamps away that are beyond the tail's: nothing in the chain has such a one. */
static void sweep(struct tri_mailbox *m, uint64_t last)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    uint32_t top = tri_load_rlx(&ctl->top);

    for (uint32_t c = 0; c < top && c < m->nchunks; c++)
        if (stamp_of(m, c) > last)
            tri_store_rlx(&m->chunk[c].stamp, 0);
    CP(mail_swept);
    tri_store_rlx(&ctl->begun, last);
}

/* Go on to a free chunk. */
static int pen_next(struct pen *w)
{
    struct tri_mailbox *m = w->m;
    struct tri_mailbox_ctl *ctl = m->ctl;
    struct place head;
    uint64_t first, among;
    uint32_t c, tries = 0;
    int err;

    if (unpack(m, tri_load_acq(&ctl->head), &head)) /* P0 */
        return TRI_ECORRUPT;
    first = stamp_of(m, head.chunk);
    if (first > w->stamp || w->stamp - first >= m->nchunks)
        return TRI_ECORRUPT;
    among = enough_for(m, w->stamp - first + 1);
    c = tri_load_rlx(&ctl->cursor);
    for (;; tries++, c++) {
        if (tries > among) {
            if (among == m->nchunks)
                return -ENOSPC;
            among = m->nchunks;
            tries = 0;
        }
        if (c >= among)
            c = 0;
        if (c != head.chunk && c != w->at.chunk && is_free(m, c, first, w->stamp))
            break;
    }
    tri_store_rlx(&ctl->cursor, c + 1);
    if (c >= tri_load_rlx(&ctl->touched)) {
        err = populate(m, c);
        if (err)
            return err;
        tri_store_rlx(&ctl->touched, c + 1);
    }
    if (c >= tri_load_rlx(&ctl->top))
        tri_store_rlx(&ctl->top, c + 1);
    tri_store_rlx(&ctl->begun, ++w->stamp);
    CP(mail_begun);
    tri_store_rlx(&m->chunk[c].stamp, w->stamp);
    CP(mail_stamped);
    tri_store_rlx(&m->chunk[w->at.chunk].next, c);
    CP(mail_chained);
    w->at.chunk = c;
    w->at.off = 0;
    return 0;
}

static int pen_write(struct pen *w, const void *from, size_t n)
{
    const uint8_t *p = from;

    while (n) {
        uint32_t room = TRI_MAILBOX_CHUNK - w->at.off;
        size_t part = n < room ? n : room;

        if (room == 0) {
            int err = pen_next(w);

            if (err)
                return err;
            continue;
        }
        memcpy(w->m->data + (size_t)w->at.chunk * TRI_MAILBOX_CHUNK + w->at.off, p, part);
        CP(mail_written);
        w->at.off += (uint32_t)part;
        p += part;
        n -= part;
    }
    return 0;
}

/* The writers' lock is held; there is room for one more. */
static int write_message(struct tri_mailbox *m, const struct iovec *v, int n, uint8_t kind)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    uint64_t tail = tri_load_rlx(&ctl->tail), header, total = 0;
    struct pen w = {.m = m};
    int err;

    for (int i = 0; i < n; i++)
        total += v[i].iov_len;
    if (total > (uint64_t)m->nchunks * TRI_MAILBOX_CHUNK || total > LENGTH_MASK)
        return -ENOSPC;
    err = unpack(m, tail, &w.at);
    if (err)
        return err;
    w.stamp = stamp_of(m, w.at.chunk);
    if (tri_load_rlx(&ctl->begun) != w.stamp)
        sweep(m, w.stamp);
    header = (uint64_t)kind << 48 | total;
    err = pen_write(&w, &header, sizeof header);
    for (int i = 0; i < n && !err; i++)
        err = pen_write(&w, v[i].iov_base, v[i].iov_len);
    if (err)
        return err;
    w.at.off = (w.at.off + 7) & ~7u;
    w.at.count = (w.at.count + 1) & COUNT_MASK;
    if (tri_load_sc(&ctl->watched) && tri_load_sc(&ctl->head) == tail && m->bell_fd >= 0 &&
        write(m->bell_fd, "", 1) < 0) {
        /* A full pipe is readable. */
    }
    CP(mail_before_tail);
    tri_store_sc(&ctl->tail, pack(w.at)); /* P2 */
    CP(mail_tail);
    return 0;
}

int tri_mailbox_put(struct tri_mailbox *m, const struct iovec *v, int n, uint8_t kind,
                    int64_t deadline, bool try_only)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    int err;

    for (;;) {
        bool full;

        err = lock(&ctl->writers, deadline, try_only);
        if (err)
            return err;
        CP(mail_writers_locked);
        full = tri_mailbox_full(m);
        if (!full)
            err = write_message(m, v, n, kind);
        CP(mail_writers_unlock);
        tri_lock_release(&ctl->writers);
        if (!full)
            break;
        if (try_only)
            return -EBUSY;
        err = sleep_for(m, &ctl->emptied, has_room, deadline);
        if (err)
            return err;
    }
    if (!err)
        tri_bell_ring(&ctl->filled, false);
    return err;
}

/* ------------------------------------------------------------------ reading */

struct eye {
    const struct tri_mailbox *m;
    struct place at, end;
};

/* Bytes that can be read at once; 0: there are none, or the chain is broken. */
static uint32_t eye_ahead(struct eye *r)
{
    const struct tri_mailbox *m = r->m;
    uint32_t next;

    if (r->at.off == TRI_MAILBOX_CHUNK && r->at.chunk != r->end.chunk) {
        next = tri_load_rlx(&m->chunk[r->at.chunk].next);
        if (next >= m->nchunks || stamp_of(m, next) != stamp_of(m, r->at.chunk) + 1)
            return 0;
        r->at.chunk = next;
        r->at.off = 0;
    }
    if (r->at.chunk == r->end.chunk)
        return r->end.off > r->at.off ? r->end.off - r->at.off : 0;
    return TRI_MAILBOX_CHUNK - r->at.off;
}

static bool eye_read(struct eye *r, void *into, size_t n)
{
    uint8_t *p = into;

    while (n) {
        uint32_t ahead = eye_ahead(r);
        size_t part = n < ahead ? n : ahead;

        if (!ahead)
            return false;
        memcpy(p, r->m->data + (size_t)r->at.chunk * TRI_MAILBOX_CHUNK + r->at.off, part);
        r->at.off += (uint32_t)part;
        p += part;
        n -= part;
    }
    return true;
}

/* The readers' lock is held.  0, -ENOMSG (none), -EBUSY (too large), -ENOMEM, TRI_ECORRUPT. */
static int read_message(struct tri_mailbox *m, void *area, size_t cap, struct tri_letter *letter,
                        bool only_small)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    uint64_t head = tri_load_rlx(&ctl->head), tail = tri_load_sc(&ctl->tail); /* G1 */
    uint64_t header, length, chunks;
    struct eye r = {.m = m};
    void *big = NULL;

    if (head == tail)
        return -ENOMSG;
    if (unpack(m, head, &r.at) || unpack(m, tail, &r.end))
        return TRI_ECORRUPT;
    chunks = stamp_of(m, r.end.chunk) - stamp_of(m, r.at.chunk);
    if (chunks >= m->nchunks || r.at.count == r.end.count || !eye_read(&r, &header, sizeof header))
        return TRI_ECORRUPT;
    length = header & LENGTH_MASK;
    if (length > (chunks + 1) * TRI_MAILBOX_CHUNK || header >> 56)
        return TRI_ECORRUPT;
    if (length > cap) {
        if (only_small)
            return -EBUSY;
        big = malloc(length);
        if (!big)
            return -ENOMEM;
    }
    if (!eye_read(&r, big ? big : area, length)) { /* G2 */
        free(big);
        return TRI_ECORRUPT;
    }
    CP(mail_copied);
    letter->big = big;
    letter->len = length;
    letter->kind = (uint8_t)(header >> 48);
    r.at.off = (r.at.off + 7) & ~7u;
    r.at.count = (r.at.count + 1) & COUNT_MASK;
    tri_store_sc(&ctl->head, pack(r.at)); /* G3 */
    CP(mail_head);
    return 0;
}

/* Give back the pages of chunks that the chain needs no more.  The writers' lock is held. */
static void trim_locked(struct tri_mailbox *m)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    uint32_t touched = tri_load_rlx(&ctl->touched), c, run;
    struct place head, tail;
    uint64_t first, last, from;

    if (unpack(m, tri_load_acq(&ctl->head), &head) || unpack(m, tri_load_rlx(&ctl->tail), &tail))
        return;
    first = stamp_of(m, head.chunk);
    last = stamp_of(m, tail.chunk);
    if (last < first || last - first >= m->nchunks)
        return;
    from = enough_for(m, last - first + 1) + KEEP;
    if (touched > m->nchunks)
        touched = m->nchunks;
    tri_store_rlx(&ctl->trimmed_ns, (uint64_t)tri_now_ns());
    for (c = (uint32_t)from, run = c; c <= touched; c++)
        if (c == touched || !is_free(m, c, first, last)) {
            if (c > run)
                tri_segment_punch(&m->seg,
                                  (uint64_t)(m->data - (uint8_t *)m->seg.base) +
                                      (uint64_t)run * TRI_MAILBOX_CHUNK,
                                  (uint64_t)(c - run) * TRI_MAILBOX_CHUNK);
            if (c < touched)
                from = c + 1;
            run = c + 1;
        }
    if (from < touched)
        tri_store_rlx(&ctl->touched, (uint32_t)from);
    CP(mail_trimmed);
}

static void trim(struct tri_mailbox *m)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    uint32_t touched = tri_load_rlx(&ctl->touched);
    struct place head, tail;
    uint64_t length;

    if (touched <= KEEP || unpack(m, tri_load_rlx(&ctl->head), &head) ||
        unpack(m, tri_load_rlx(&ctl->tail), &tail))
        return;
    length = stamp_of(m, tail.chunk) - stamp_of(m, head.chunk) + 1;
    if (length > m->nchunks || touched < 2 * (enough_for(m, length) + KEEP) ||
        (uint64_t)tri_now_ns() - tri_load_rlx(&ctl->trimmed_ns) < TRIM_EVERY_NS ||
        tri_lock_acquire(&ctl->writers, 0, NULL) != 0)
        return;
    CP(mail_trim_locked);
    trim_locked(m);
    tri_lock_release(&ctl->writers);
}

/* The mailbox was just emptied, or found empty: silence the bell, if it still is. */
static void silence(struct tri_mailbox *m)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    char bytes[64];

    if (!tri_load_sc(&ctl->watched) || m->bell_fd < 0 ||
        tri_lock_acquire(&ctl->writers, LOCK_PATIENCE_NS, NULL) != 0)
        return;
    if (!has_mail(m))
        while (read(m->bell_fd, bytes, sizeof bytes) == sizeof bytes)
            ;
    tri_lock_release(&ctl->writers);
}

/*
 * Wait a little without sleeping, unless that was in vain of late.  Where the writer runs on
 * another CPU it takes a third of what a sleep takes; where it waits for this CPU, it makes things
 * slower by all of SPIN_NS.  So each try in vain forbids the next ones, twice as many as the last
 * time.
 */
static bool spin(struct tri_mailbox *m)
{
    uint32_t skip = tri_load_rlx(&m->spin_skip), vain = tri_load_rlx(&m->spin_vain);
    int64_t start;

    if (!m->spins)
        return false;
    if (skip) {
        tri_store_rlx(&m->spin_skip, skip - 1);
        return false;
    }
    start = tri_now_ns();
    for (uint32_t i = 1;; i++) {
        if (has_mail(m)) {
            tri_store_rlx(&m->spin_vain, vain / 2);
            return true;
        }
        tri_pause();
        if ((i & 15) == 0 && tri_now_ns() - start >= SPIN_NS)
            break;
    }
    vain = vain < SPIN_SKIP_MAX / 2 ? 2 * vain + 1 : SPIN_SKIP_MAX;
    tri_store_rlx(&m->spin_vain, vain);
    tri_store_rlx(&m->spin_skip, vain);
    return false;
}

/*
 * Nothing in time.  If the bell is used, it may have called us: then a writer is about to store the
 * tail and has the lock that silence() waits for, or it died and left the bell ringing.
 */
static int last_look(struct tri_mailbox *m)
{
    silence(m);
    return has_mail(m) ? 0 : TRI_ETIMEDOUT;
}

int tri_mailbox_await(struct tri_mailbox *m, int64_t deadline)
{
    int err = 0;

    if (has_mail(m))
        return 0;
    if (left_of(deadline) == 0)
        return last_look(m);
    if (!spin(m))
        while (!has_mail(m) && !err) {
            err = sleep_for(m, &m->ctl->filled, has_mail, deadline);
            trim(m);
        }
    return err == TRI_ETIMEDOUT ? last_look(m) : err;
}

/* What is due once a message is taken and the lock given back. */
static void after_reading(struct tri_mailbox *m)
{
    struct tri_mailbox_ctl *ctl = m->ctl;

    tri_bell_ring(&ctl->emptied, false);
    if (has_mail(m))
        tri_bell_ring(&ctl->filled, false);
    else
        silence(m);
    trim(m);
}

int tri_mailbox_get(struct tri_mailbox *m, void *area, size_t cap, struct tri_letter *letter,
                    int64_t deadline, bool try_only)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    int err;

    for (;;) {
        if (!try_only) {
            err = tri_mailbox_await(m, deadline);
            if (err)
                return err;
        } else if (!has_mail(m)) {
            return -EBUSY;
        }
        err = lock(&ctl->readers, deadline, try_only);
        if (err)
            return err;
        CP(mail_readers_locked);
        err = read_message(m, area, cap, letter, try_only);
        tri_lock_release(&ctl->readers);
        CP(mail_readers_unlocked);
        if (err == -ENOMSG && !try_only)
            continue; /* another reader was first */
        if (!err)
            after_reading(m);
        return err == -ENOMSG ? -EBUSY : err;
    }
}

/* ------------------------------------------------------------------ accounts */

static uint32_t undone(const struct tri_mailbox *m)
{
    uint32_t done = tri_load_sc(&m->ctl->done);

    return ((uint32_t)tri_load_sc(&m->ctl->tail) - done) & COUNT_MASK;
}

static bool all_done(const struct tri_mailbox *m)
{
    return undone(m) == 0;
}

int tri_mailbox_done(struct tri_mailbox *m)
{
    uint32_t done = tri_load_sc(&m->ctl->done);

    do {
        if ((((uint32_t)tri_load_sc(&m->ctl->tail) - done) & COUNT_MASK) == 0)
            return -EINVAL;
    } while (!tri_cas_sc(&m->ctl->done, &done, done + 1));
    CP(mail_done);
    if (all_done(m))
        tri_bell_ring(&m->ctl->joined, true);
    return 0;
}

int tri_mailbox_join(struct tri_mailbox *m, int64_t deadline)
{
    int err = 0;

    while (!all_done(m) && !err)
        err = sleep_for(m, &m->ctl->joined, all_done, deadline);
    return err;
}

int tri_mailbox_watch(struct tri_mailbox *m)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    int err;

    if (m->bell_fd < 0)
        return -ENOSYS;
    if (tri_load_sc(&ctl->watched))
        return 0;
    err = lock(&ctl->writers, -1, false);
    if (err)
        return err;
    if (has_mail(m) && write(m->bell_fd, "", 1) < 0) {
        /* A full pipe is readable. */
    }
    tri_store_sc(&ctl->watched, 1);
    tri_lock_release(&ctl->writers);
    return 0;
}
