/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * heap.h - one participant's part of the arena.
 *
 * The arena is a row of heaps: the owner's, then more than one per worker.  A heap is allocated
 * from by exactly one participant, and everything that participant knows about it (free lists,
 * what is allocated, how far it has grown) lives in its *private* memory.  So nothing another
 * process scribbles into shared memory can mislead an allocator, and a participant that dies in
 * the middle of an allocation leaves nothing to repair: its heap is retired whole and its pages go
 * back to the system when the last block that others hold is freed.
 *
 * Blocks come in classes 256 x {1, 1.5} x 2^k bytes, the first 64 of which are a header, so data
 * is aligned to 64.  Free lists are last in, first out: a block just freed is warm, and a warm
 * page costs a tenth of a fresh one (2.2 us per fresh page of shared memory).
 *
 * The header's second word says how much of a block its participant has populated.  A hint: when
 * the pages were given back it may be gone or may have stayed.
 *
 * When neither a free block of the class nor untouched room is left, free blocks that lie side by
 * side are joined and cut anew (tri_heap_join): sizes that the program no longer uses must not keep
 * the arena from those it uses now.
 *
 * A block freed by another process goes on the heap line's stack `freed` and comes home when its
 * participant next allocates, or goes idle.
 *
 * Free blocks keep their pages up to a limit, the participant's share of an eighth of the machine's
 * memory or of 1 GiB: an idle pool must not hold what its largest burst took.  Beyond it a large
 * block gives its pages back as it is freed, and small ones, which share pages, all do together
 * (tri_heap_trim).  Lists being last in, first out, blocks without pages are the last to be taken:
 *
 *     cold = min(cold, free)          bytes of free blocks that have no pages, about
 *
 *     live + free + (bytes never handed out) = heap_bytes          checked by tri_heap_check()
 */
#ifndef TRI_SHM_HEAP_H
#define TRI_SHM_HEAP_H

#include <stdbool.h>

#include "shm/layout.h"
#include "shm/segment.h"

#define TRI_GRANULE 256u
#define TRI_BLOCK_HEADER 64u
#define TRI_CLASSES 80u

struct tri_stack {
    uint64_t *off;
    uint32_t n, cap;
};

struct tri_heap {
    const struct tri_view *view;
    const struct tri_segment *seg;
    uint32_t id;
    uint64_t base, bytes, top; /* top: first offset in the heap never handed out */
    uint64_t granted;          /* top may grow to here before memory limits are read again */
    uint64_t live, peak, idle; /* bytes allocated now, most ever, in free lists */
    uint64_t cold;             /* of the idle ones: their pages were given back */
    uint64_t idle_max;         /* idle bytes with pages, at most; 0: not known yet */
    uint8_t *kind;             /* per granule: 0 no block starts here, c + 1 free, 128 + c live */
    struct tri_stack free[TRI_CLASSES];
    /* asked about each block that others freed, whoever collects it: false, it is not to be freed
     * yet, and the one asked has taken note of it.  May be NULL: free them all */
    bool (*home)(void *ctx, uint64_t off);
    void *home_ctx;
};

int tri_heap_init(struct tri_heap *h, const struct tri_view *v, const struct tri_segment *seg,
                  uint32_t id);
void tri_heap_drop(struct tri_heap *h);
/* Offset of the data of a new block of at least bytes, or 0: no memory. */
uint64_t tri_heap_alloc(struct tri_heap *h, uint64_t bytes);
/* Free one of this heap's blocks.  0, or TRI_ECORRUPT when no block lives at off. */
int tri_heap_free(struct tri_heap *h, uint64_t off);
/* Take home what others freed.  Returns the bytes. */
uint64_t tri_heap_collect(struct tri_heap *h);
/* Bytes that the block at off can hold, 0 when none lives there. */
uint64_t tri_heap_block_bytes(const struct tri_heap *h, uint64_t off);
/*
 * Join free blocks that lie side by side, and cut what comes of it into blocks of at least `bytes`
 * as long as it lasts.  Takes time in proportion to the blocks there are; tri_heap_alloc does it
 * before it gives up.
 */
void tri_heap_join(struct tri_heap *h, uint64_t bytes);
/* Give back the pages of all free blocks.  Takes time in proportion to the blocks there are. */
void tri_heap_trim(struct tri_heap *h);
int tri_heap_check(const struct tri_heap *h);

/*
 * Have the pages of a block before its first `bytes` bytes at `data` are written: one system call
 * instead of a fault for each page that was never written, and nothing where all were.  For large
 * blocks; from the one that allocated it.  A hint: what cannot be had, the write faults on.
 */
void tri_block_populate(uint8_t *data, uint64_t bytes);

/* Give a block of heap `id` back to its participant; any process. */
void tri_block_push(const struct tri_view *v, uint64_t off);

#endif
