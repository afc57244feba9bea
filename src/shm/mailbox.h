/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox.h - messages between any number of writers and readers, for multiprocessing.Queue.
 *
 * First in, first out; bytes in, bytes out, each message copied once on either side.  A message is
 * there whole or not at all, whoever dies when.  Writers wait only where a mailbox was made with a
 * most of messages; otherwise it grows up to the size of its segment, which is that of the
 * machine's memory.  Memory that a burst has used goes back to the system soon after.
 *
 * The segment and the bell are descriptors that the caller hands to other processes; a fork has
 * the mailbox as it is.  Deadlines are times of tri_now_ns(): -1 is never, 0 long ago.
 */
#ifndef TRI_SHM_MAILBOX_H
#define TRI_SHM_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "shm/segment.h"

struct tri_mailbox_ctl;
struct tri_mailbox_chunk;

/* One process's hold on a mailbox.  Read `seg.fd` and `bell_fd`; the rest is private. */
struct tri_mailbox {
    struct tri_segment seg;
    int bell_fd; /* readable while there are messages, once tri_mailbox_watch() was called; or -1 */
    struct tri_mailbox_ctl *ctl;
    struct tri_mailbox_chunk *chunk;
    uint8_t *data;
    uint32_t nchunks;
    bool spins; /* there is a CPU for the other side meanwhile */
    _Atomic uint32_t spin_skip, spin_vain;
};

/* A message as a reader gets it: in the caller's area if it fits there, else in `big`. */
struct tri_letter {
    void *big; /* malloc'ed, the caller's to free; NULL: the bytes are in the area */
    size_t len;
    uint8_t kind; /* the writer's own mark */
};

/* Make one.  most: of messages, 0 for any number.  0, -ENOMEM, -EMFILE, -errno. */
int tri_mailbox_make(struct tri_mailbox *m, uint32_t most);

/* Take over both descriptors (bell_fd may be -1), which are closed on failure, too.  0,
 * TRI_ECORRUPT when it is no mailbox, -errno. */
int tri_mailbox_attach(struct tri_mailbox *m, int fd, int bell_fd);

/* Unmap and close, once.  Messages stay for who else has it. */
void tri_mailbox_drop(struct tri_mailbox *m);

/*
 * Put the message that v[0..n) make up.
 *
 * Threads: any.
 * Blocks:  while the mailbox is full, until the deadline, and while another writer copies.  Not at
 *          all with `try_only`.
 *
 * @return 0, or
 *   TRI_ETIMEDOUT  full, and so it was until the deadline
 *   -EBUSY         try_only, and another writer is at it
 *   -EINTR         a signal handler ran, or may have (every 100 ms); nothing was put: call again
 *   -ENOSPC        the segment is full
 *   TRI_ECORRUPT   what the shared memory says cannot be
 */
int tri_mailbox_put(struct tri_mailbox *m, const struct iovec *v, int n, uint8_t kind,
                    int64_t deadline, bool try_only);

/*
 * Take the oldest message.
 *
 * @param area  Room for a small message.
 *
 * Threads, Blocks: as above, while it is empty.  With try_only a message larger than cap is left
 * there and -EBUSY returned: the caller may want to be without a lock of its own for the copy.
 *
 * @return 0, TRI_ETIMEDOUT (empty), -EBUSY, -EINTR, -ENOMEM (the message is still there),
 *         TRI_ECORRUPT
 */
int tri_mailbox_get(struct tri_mailbox *m, void *area, size_t cap, struct tri_letter *letter,
                    int64_t deadline, bool try_only);

/* Wait until there is a message.  0, TRI_ETIMEDOUT, -EINTR. */
int tri_mailbox_await(struct tri_mailbox *m, int64_t deadline);

/* Messages in it, and whether there are as many as may be. */
uint32_t tri_mailbox_count(const struct tri_mailbox *m);
bool tri_mailbox_full(const struct tri_mailbox *m);

/* Messages ever put in it, by all processes, modulo 2^30. */
uint32_t tri_mailbox_sent(const struct tri_mailbox *m);

/* Of all messages ever put one more is done with.  0, or -EINVAL: all of them were. */
int tri_mailbox_done(struct tri_mailbox *m);
/* Wait until all are.  0, TRI_ETIMEDOUT, -EINTR. */
int tri_mailbox_join(struct tri_mailbox *m, int64_t deadline);

/* From now on bell_fd is readable while there are messages.  Who finds it so gets one, even without
 * waiting, unless another was first or the writer died.  0, -ENOSYS (there is no bell), -EINTR. */
int tri_mailbox_watch(struct tri_mailbox *m);

#endif
