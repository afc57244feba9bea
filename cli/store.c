/* SPDX-License-Identifier: BSD-3-Clause */
/* store.c - queues of output in memory and in one unlinked file; see store.h. */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Room of a piece in memory at least, so that many small writes share one. */
#define PIECE_LEAST 512

/* [start, end) of data[] or, when at >= 0, of the file from at on, is still wanted. */
struct tri_piece {
    struct tri_piece *next;
    off_t at; /* -1: in memory */
    size_t start, end, room;
    int stream;
    char data[];
};

void tri_store_init(struct tri_store *store, size_t memory_max)
{
    memset(store, 0, sizeof *store);
    store->memory_max = memory_max;
    store->fd = -1;
}

void tri_store_end(struct tri_store *store)
{
    if (store->fd >= 0)
        close(store->fd);
    store->fd = -1;
}

bool tri_store_full(struct tri_store *store)
{
    if (store->stuck && store->memory < store->memory_max / 2)
        store->stuck = false;
    return store->stuck;
}

/* A file without a name, in the user's folder for such; memory when there is no such folder. */
static int open_file(void)
{
    const char *dir = getenv("TMPDIR");
    char path[PATH_MAX];
    int fd, n;

    if (!dir || !*dir)
        dir = "/tmp";
    fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
    n = snprintf(path, sizeof path, "%s/trireme-run-XXXXXX", dir);
    if (n > 0 && (size_t)n < sizeof path) {
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0) {
            unlink(path);
            return fd;
        }
    }
    return memfd_create("trireme-run", MFD_CLOEXEC);
}

static bool file_write(struct tri_store *store, const char *data, size_t bytes)
{
    off_t at = store->end;

    if (store->fd < 0)
        store->fd = open_file();
    if (store->fd < 0)
        return false;
    while (bytes > 0) {
        ssize_t n = pwrite(store->fd, data, bytes, at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

static struct tri_piece *piece_add(struct tri_queue *queue, int stream, size_t room)
{
    struct tri_piece *piece = malloc(sizeof *piece + room);

    if (!piece)
        return NULL;
    memset(piece, 0, sizeof *piece);
    piece->at = -1;
    piece->room = room;
    piece->stream = stream;
    if (queue->tail)
        queue->tail->next = piece;
    else
        queue->head = piece;
    queue->tail = piece;
    return piece;
}

static int add_to_file(struct tri_store *store, struct tri_queue *queue, int stream, size_t bytes)
{
    struct tri_piece *tail = queue->tail;

    if (!tail || tail->stream != stream || tail->at < 0 ||
        tail->at + (off_t)tail->end != store->end) {
        tail = piece_add(queue, stream, 0);
        if (!tail)
            return -ENOMEM;
        tail->at = store->end;
        store->memory += sizeof *tail;
    }
    tail->end += bytes;
    store->end += (off_t)bytes;
    store->live += (off_t)bytes;
    return 0;
}

int tri_queue_add(struct tri_store *store, struct tri_queue *queue, int stream, const char *data,
                  size_t bytes, bool spill)
{
    struct tri_piece *tail = queue->tail;

    if (bytes == 0)
        return 0;
    if (spill && store->memory + bytes > store->memory_max) {
        if (file_write(store, data, bytes)) {
            int err = add_to_file(store, queue, stream, bytes);

            if (!err)
                queue->bytes += bytes;
            return err;
        }
        store->stuck = true;
    }
    if (!tail || tail->stream != stream || tail->at >= 0 || tail->room - tail->end < bytes) {
        tail = piece_add(queue, stream, bytes > PIECE_LEAST ? bytes : PIECE_LEAST);
        if (!tail)
            return -ENOMEM;
        store->memory += sizeof *tail + tail->room;
    }
    memcpy(tail->data + tail->end, data, bytes);
    tail->end += bytes;
    queue->bytes += bytes;
    return 0;
}

int tri_queue_stream(const struct tri_queue *queue)
{
    return queue->head ? queue->head->stream : -1;
}

const char *tri_queue_peek(struct tri_store *store, const struct tri_queue *queue, char *buf,
                           size_t most, int *stream, size_t *bytes)
{
    const struct tri_piece *piece = queue->head;
    size_t n = piece ? piece->end - piece->start : 0;
    ssize_t got;

    *bytes = n = n < most ? n : most;
    *stream = piece ? piece->stream : -1;
    if (n == 0)
        return buf;
    if (piece->at < 0)
        return piece->data + piece->start;
    do {
        got = pread(store->fd, buf, n, piece->at + (off_t)piece->start);
    } while (got < 0 && errno == EINTR);
    if (got > 0)
        *bytes = (size_t)got;
    return got > 0 ? buf : NULL;
}

static void piece_free(struct tri_store *store, struct tri_piece *piece)
{
    store->memory -= sizeof *piece + piece->room;
    if (piece->at >= 0) {
        store->live -= (off_t)piece->end;
        if (store->live == 0) {
            if (ftruncate(store->fd, 0) == 0)
                store->end = 0;
        } else {
            /* Only saves space; a file system that cannot do it keeps the bytes until the end. */
            fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, piece->at,
                      (off_t)piece->end);
        }
    }
    free(piece);
}

void tri_queue_drop(struct tri_store *store, struct tri_queue *queue, size_t bytes)
{
    struct tri_piece *piece = queue->head;

    queue->bytes -= bytes;
    piece->start += bytes;
    if (piece->start < piece->end)
        return;
    queue->head = piece->next;
    if (!queue->head)
        queue->tail = NULL;
    piece_free(store, piece);
}

void tri_queue_clear(struct tri_store *store, struct tri_queue *queue)
{
    while (queue->head) {
        struct tri_piece *piece = queue->head;

        queue->head = piece->next;
        piece_free(store, piece);
    }
    queue->tail = NULL;
    queue->bytes = 0;
}
