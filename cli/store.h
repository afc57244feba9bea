/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * store.h - output that waits for its turn.
 *
 * Each script has a queue of what it wrote, in the order in which it was read, every piece marked
 * with its stream.  All queues share one store: an amount of memory, and beyond it one unlinked
 * temporary file, so that a thousand scripts cost one descriptor.  Space in the file is given
 * back as pieces are dropped.  When the file cannot grow, tri_store_full() says so and the caller
 * stops reading: the scripts then wait in write(), and nothing is lost.
 */
#ifndef TRI_CLI_STORE_H
#define TRI_CLI_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct tri_piece;

struct tri_store {
    size_t memory;     /* bytes that pieces occupy in memory */
    size_t memory_max; /* above this, pieces go to the file */
    int fd;            /* the file; -1 until it is needed */
    off_t end;         /* where the next piece goes */
    off_t live;        /* bytes in the file that are still wanted */
    bool stuck;        /* the file could not take the last piece */
};

struct tri_queue {
    struct tri_piece *head, *tail;
    size_t bytes;
};

void tri_store_init(struct tri_store *store, size_t memory_max);
void tri_store_end(struct tri_store *store);

/* Must readers whose turn has not come wait?  Clears itself when memory has become free. */
bool tri_store_full(struct tri_store *store);

/*
 * Append; the data is copied.  spill: may go to the file.
 * @return 0, -ENOMEM.  A file that cannot grow is no error: the piece stays in memory.
 */
int tri_queue_add(struct tri_store *store, struct tri_queue *queue, int stream, const char *data,
                  size_t bytes, bool spill);

/*
 * The first bytes of the queue, at most `most`, all of one stream; *bytes is 0 when it is empty.
 * buf, of `most` bytes, may be used to hold them.  @return the bytes, or NULL: lost to an I/O error
 */
const char *tri_queue_peek(struct tri_store *store, const struct tri_queue *queue, char *buf,
                           size_t most, int *stream, size_t *bytes);

/* Drop the first bytes of the queue: no more than tri_queue_peek gave. */
void tri_queue_drop(struct tri_store *store, struct tri_queue *queue, size_t bytes);

/* The stream of the first byte, -1 when the queue is empty. */
int tri_queue_stream(const struct tri_queue *queue);

void tri_queue_clear(struct tri_store *store, struct tri_queue *queue);

#endif
