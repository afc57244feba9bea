/* SPDX-License-Identifier: BSD-3-Clause */
/* heap.c - the arena's allocator.  Idea and invariant are in heap.h. */
#include "shm/heap.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cp.h"
#include "base/cpu.h"
#include "base/pages.h"
#include "shm/huge.h"
#include "trireme.h"

#define IDLE_MIN (64ull << 20) /* a participant's free blocks keep that much in any case */
#define IDLE_ALL (1ull << 30)  /* and those of all together that much, where each has more */
#define PUNCH_ALONE 65536      /* a free block that gives its pages back by itself */

static uint32_t class_of(uint64_t bytes)
{
    uint64_t units = (bytes + TRI_GRANULE - 1) / TRI_GRANULE;
    uint32_t k = 0;

    if (units <= 1)
        return 0;
    k = 63 - (uint32_t)__builtin_clzll(units - 1); /* 2^k < units <= 2^(k+1) */
    if (k >= 1 && units <= (3ull << (k - 1)))
        return 2 * k + 1;
    return 2 * (k + 1);
}

/* Even classes are 256 x 2^(c/2); odd ones are 1.5 times the even one below. */
static uint64_t class_bytes(uint32_t c)
{
    uint64_t b = (uint64_t)TRI_GRANULE << (c / 2);

    return c & 1 ? b + b / 2 : b;
}

int tri_heap_init(struct tri_heap *h, const struct tri_view *v, const struct tri_segment *seg,
                  uint32_t id)
{
    memset(h, 0, sizeof *h);
    h->view = v;
    h->seg = seg;
    h->id = id;
    h->base = tri_heap_base(v, id);
    h->bytes = v->heap_bytes;
    h->kind = tri_pages_new(h->bytes / TRI_GRANULE);
    if (!h->kind)
        return -ENOMEM;
    h->granted = 1u << 20; /* a megabyte needs no look at the limits */
    return 0;
}

void tri_heap_drop(struct tri_heap *h)
{
    tri_pages_free(h->kind, h->bytes / TRI_GRANULE);
    for (uint32_t c = 0; c < TRI_CLASSES; c++)
        free(h->free[c].off);
    memset(h, 0, sizeof *h);
}

static bool stack_push(struct tri_stack *s, uint64_t off)
{
    if (s->n == s->cap) {
        uint32_t cap = s->cap ? 2 * s->cap : 16;
        uint64_t *p = realloc(s->off, cap * sizeof *p);

        if (!p)
            return false;
        s->off = p;
        s->cap = cap;
    }
    s->off[s->n++] = off;
    return true;
}

/* May the heap grow by so much?  Limits of a container are not errors but kills: read them first
 * and grow in steps of a sixteenth of what is left. */
static bool may_grow(struct tri_heap *h, uint64_t bytes)
{
    uint64_t headroom;

    if (h->top + bytes <= h->granted)
        return true;
    headroom = tri_memory_headroom();
    if (bytes > headroom - headroom / 16)
        return false;
    h->granted = h->top + bytes + headroom / 16;
    return true;
}

/* The largest class of at most so many bytes, which are one granule or more. */
static uint32_t class_within(uint64_t bytes)
{
    uint32_t c = class_of(bytes);

    return c > 0 && class_bytes(c) > bytes ? c - 1 : c;
}

static void make_free(struct tri_heap *h, uint64_t off, uint32_t c)
{
    h->kind[off / TRI_GRANULE] = (uint8_t)(c + 1);
    h->idle += class_bytes(c);
    if (!stack_push(&h->free[c], off)) {
        /* No memory for the list itself: the block stays out of use until the pool ends. */
        h->idle -= class_bytes(c);
        h->live += class_bytes(c);
        h->kind[off / TRI_GRANULE] = (uint8_t)(128 + c);
    }
}

/* [from, to) is free: cut it into blocks of class `wanted` and, of what is left, large ones. */
static void cut(struct tri_heap *h, uint64_t from, uint64_t to, uint32_t wanted)
{
    while (from < to) {
        uint32_t c = to - from >= class_bytes(wanted) ? wanted : class_within(to - from);

        make_free(h, from, c);
        from += class_bytes(c);
    }
}

void tri_heap_join(struct tri_heap *h, uint64_t bytes)
{
    uint32_t wanted = class_of(bytes + TRI_BLOCK_HEADER);
    uint64_t at = 0, from = 0; /* [from, at) is free */

    for (uint32_t c = 0; c < TRI_CLASSES; c++)
        h->free[c].n = 0;
    h->idle = h->cold = 0; /* which parts of what comes of it have pages is not known any more */
    while (at < h->top) {
        uint8_t *k = &h->kind[at / TRI_GRANULE];
        bool live = *k >= 128;

        if (live)
            cut(h, from, at, wanted);
        at += class_bytes(live ? *k - 128u : *k - 1u);
        if (live)
            from = at;
        else
            *k = 0; /* cut() says what begins here now, if anything does */
    }
    h->top = from;
}

/* A block of class c from the free ones, or from untouched room of which `bytes` will be used. */
static bool take(struct tri_heap *h, uint32_t c, uint64_t bytes, uint64_t *off)
{
    uint64_t size = class_bytes(c), from;

    if (h->free[c].n) {
        *off = h->free[c].off[--h->free[c].n];
        h->idle -= size;
        if (h->cold > h->idle)
            h->cold = h->idle;
        return true;
    }
    /* A large block begins where a large page may. */
    from = size < TRI_HUGE ? h->top : (h->top + TRI_HUGE - 1) & ~(uint64_t)(TRI_HUGE - 1);
    if (from > h->bytes || size > h->bytes - from)
        from = h->top;
    /* Memory is asked for what will be touched, which is less than the class. */
    if (size > h->bytes - from || !may_grow(h, from - h->top + bytes))
        return false;
    cut(h, h->top, from, TRI_CLASSES - 1);
    *off = from;
    h->top = from + size;
    return true;
}

uint64_t tri_heap_alloc(struct tri_heap *h, uint64_t bytes)
{
    uint32_t c;
    uint64_t size, off;

    if (bytes > h->bytes - TRI_BLOCK_HEADER)
        return 0;
    c = class_of(bytes + TRI_BLOCK_HEADER);
    size = class_bytes(c);
    if (h->free[c].n == 0 && tri_load_rlx(&h->view->heap[h->id].freed))
        tri_heap_collect(h);
    if (!take(h, c, bytes, &off)) {
        /* What is idle and what was never used may be enough together. */
        if (h->idle == 0 || h->idle + (h->bytes - h->top) < size)
            return 0;
        tri_heap_join(h, bytes);
        if (!take(h, c, bytes, &off))
            return 0;
    }
    h->kind[off / TRI_GRANULE] = (uint8_t)(128 + c);
    h->live += size;
    if (h->live > h->peak)
        h->peak = h->live;
    return h->base + off + TRI_BLOCK_HEADER;
}

static bool live_at(const struct tri_heap *h, uint64_t off, uint64_t *rel)
{
    if (off < h->base + TRI_BLOCK_HEADER || off >= h->base + h->bytes)
        return false;
    *rel = off - h->base - TRI_BLOCK_HEADER;
    return *rel % TRI_GRANULE == 0 && h->kind[*rel / TRI_GRANULE] >= 128;
}

/* More idle memory than that goes back to the system.  The limits are read when it matters first:
 * to read them costs every start of a worker 70 us. */
static bool idles_too_much(struct tri_heap *h)
{
    uint64_t warm = h->idle - h->cold, all;

    if (!h->idle_max) {
        if (warm <= IDLE_MIN)
            return false;
        all = tri_memory_headroom() / 8;
        if (all > IDLE_ALL)
            all = IDLE_ALL;
        h->idle_max = all / (h->view->nworkers + 1);
        if (h->idle_max < IDLE_MIN)
            h->idle_max = IDLE_MIN;
    }
    return warm > h->idle_max;
}

void tri_heap_trim(struct tri_heap *h)
{
    uint64_t at = 0, from = 0; /* [from, at) is free */

    while (at < h->top) {
        uint8_t k = h->kind[at / TRI_GRANULE];
        bool live = k >= 128;

        if (live && at > from)
            tri_segment_punch(h->seg, h->base + from, at - from);
        at += class_bytes(live ? k - 128u : k - 1u);
        if (live)
            from = at;
    }
    if (at > from)
        tri_segment_punch(h->seg, h->base + from, at - from);
    h->cold = h->idle;
}

int tri_heap_free(struct tri_heap *h, uint64_t off)
{
    uint64_t rel, size;
    uint32_t c;

    if (!live_at(h, off, &rel))
        return TRI_ECORRUPT;
    c = h->kind[rel / TRI_GRANULE] - 128u;
    size = class_bytes(c);
    h->live -= size;
    make_free(h, rel, c);
    if (!idles_too_much(h))
        return 0;
    if (size < PUNCH_ALONE) {
        tri_heap_trim(h);
        return 0;
    }
    tri_segment_punch(h->seg, h->base + rel, size);
    h->cold += size;
    if (h->cold > h->idle)
        h->cold = h->idle; /* it is out of use */
    return 0;
}

uint64_t tri_heap_block_bytes(const struct tri_heap *h, uint64_t off)
{
    uint64_t rel;

    if (!live_at(h, off, &rel))
        return 0;
    return class_bytes(h->kind[rel / TRI_GRANULE] - 128u) - TRI_BLOCK_HEADER;
}

static _Atomic uint64_t *block_link(const struct tri_view *v, uint64_t off)
{
    return (_Atomic uint64_t *)(v->base + off - TRI_BLOCK_HEADER);
}

void tri_block_push(const struct tri_view *v, uint64_t off)
{
    uint32_t id = tri_heap_of(v, off);
    uint64_t head;

    if (id >= v->nheaps)
        return;
    head = tri_load_rlx(&v->heap[id].freed);
    do {
        tri_store_rlx(block_link(v, off), head);
        CP(block_push);
    } while (!tri_cas_sc(&v->heap[id].freed, &head, off)); /* pairs with the exchange below */
}

void tri_block_populate(uint8_t *data, uint64_t bytes)
{
    _Atomic uint64_t *populated = (_Atomic uint64_t *)(void *)(data - TRI_BLOCK_HEADER + 8);
    uint8_t *block = data - TRI_BLOCK_HEADER;
    uint64_t had = tri_load_rlx(populated);
    struct tri_room room = {block, block + class_bytes(class_of(bytes + TRI_BLOCK_HEADER))};

    if (had >= bytes)
        return;
    if (tri_huge_populate(data + had, bytes - had, room) == 0)
        tri_store_rlx(populated, bytes);
}

uint64_t tri_heap_collect(struct tri_heap *h)
{
    uint64_t off = tri_swap_sc(&h->view->heap[h->id].freed, 0), before = h->live, rel;
    uint64_t most = h->top / TRI_GRANULE;

    /* A link is data: each one must name a live block of ours, and a cycle must end. */
    for (uint64_t n = 0; off && n < most && live_at(h, off, &rel); n++) {
        uint64_t next = tri_load_rlx(block_link(h->view, off));

        if (!h->home || h->home(h->home_ctx, off))
            tri_heap_free(h, off);
        off = next;
    }
    return before - h->live;
}

int tri_heap_check(const struct tri_heap *h)
{
    uint64_t live = 0, idle = 0, at = 0;

    while (at < h->top) {
        uint8_t k = h->kind[at / TRI_GRANULE];

        if (k == 0)
            return TRI_ECORRUPT;
        if (k >= 128) {
            live += class_bytes(k - 128u);
            at += class_bytes(k - 128u);
        } else {
            idle += class_bytes(k - 1u);
            at += class_bytes(k - 1u);
        }
    }
    return live == h->live && idle == h->idle && at == h->top ? 0 : TRI_ECORRUPT;
}
