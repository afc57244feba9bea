/* SPDX-License-Identifier: BSD-3-Clause */
/* test_heap.c - the arena's allocator: sizes, exact accounts, blocks that others free. */
#include "pools.h"
#include "shm/huge.h"

#include <pthread.h>

#define HEAP (32ull << 20)

static bool inside(const struct tri_heap *h, uint64_t off, uint64_t bytes)
{
    return off >= h->base + TRI_BLOCK_HEADER && off + bytes <= h->base + h->bytes;
}

static void blocks_hold_what_was_asked_for_and_do_not_overlap(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    struct tri_heap *h = &p->heap;
    uint64_t end = 0;

    for (uint64_t n = 0; n < 70000; n = n < 3000 ? n + 37 : n * 2 + 1) {
        uint64_t off = tri_heap_alloc(h, n);

        CHECK(off && off % 64 == 0 && inside(h, off, n));
        CHECK(tri_heap_block_bytes(h, off) >= n);
        CHECK(off - TRI_BLOCK_HEADER >= end);
        CHECK(tri_heap_block_bytes(h, off) <= 2 * n + TRI_GRANULE); /* no class wastes more */
        end = off + tri_heap_block_bytes(h, off);
    }
    CHECK(tri_heap_check(h) == 0);
    tri_pool_free(p);
}

static void the_largest_block_is_the_heap(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);

    CHECK(tri_heap_alloc(&p->heap, HEAP) == 0);
    CHECK(tri_heap_alloc(&p->heap, UINT64_MAX) == 0);
    CHECK(tri_heap_alloc(&p->heap, UINT64_MAX - 63) == 0);
    CHECK(tri_heap_alloc(&p->heap, HEAP - TRI_BLOCK_HEADER) != 0);
    CHECK(tri_heap_alloc(&p->heap, 1) == 0);
    CHECK(tri_heap_check(&p->heap) == 0);
    tri_pool_free(p);
}

static void a_freed_block_is_the_next_of_its_size(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    uint64_t a = tri_heap_alloc(&p->heap, 1000), b = tri_heap_alloc(&p->heap, 1000);

    CHECK(tri_heap_free(&p->heap, a) == 0 && tri_heap_free(&p->heap, b) == 0);
    CHECK(tri_heap_alloc(&p->heap, 990) == b && tri_heap_alloc(&p->heap, 1000) == a);
    CHECK(tri_heap_free(&p->heap, a) == 0);
    CHECK(tri_heap_free(&p->heap, a) == TRI_ECORRUPT); /* twice */
    CHECK(tri_heap_free(&p->heap, b + 64) == TRI_ECORRUPT);
    CHECK(tri_heap_free(&p->heap, 0) == TRI_ECORRUPT);
    CHECK(tri_heap_free(&p->heap, UINT64_MAX) == TRI_ECORRUPT);
    CHECK(tri_heap_free(&p->heap, p->heap.base) == TRI_ECORRUPT);
    CHECK(tri_heap_check(&p->heap) == 0);
    tri_pool_free(p);
}

static void the_accounts_are_exact_after_any_order(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    uint64_t seed = tri_test_seed(), off[300] = {0}, live = 0, size[300];

    for (int i = 0; i < 50000; i++) {
        int k;

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        k = (int)(seed >> 33) % 300;
        if (off[k]) {
            CHECK(tri_heap_free(&p->heap, off[k]) == 0);
            live -= size[k];
            off[k] = 0;
        } else {
            off[k] = tri_heap_alloc(&p->heap, (seed >> 42) % (1ull << (seed >> 60)) * 4);
            CHECK(off[k]);
            size[k] = tri_heap_block_bytes(&p->heap, off[k]) + TRI_BLOCK_HEADER;
            live += size[k];
        }
        CHECK(p->heap.live == live);
        if (i % 500 == 0)
            CHECK(tri_heap_check(&p->heap) == 0);
    }
    for (int k = 0; k < 300; k++)
        if (off[k])
            CHECK(tri_heap_free(&p->heap, off[k]) == 0);
    CHECK(p->heap.live == 0 && tri_heap_check(&p->heap) == 0 && p->heap.idle == p->heap.top);
    tri_pool_free(p);
}

static void sizes_no_longer_used_make_room_for_others(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    struct tri_heap *h = &p->heap;
    uint64_t off[64], n = 0, big;

    while (n < 64 && (off[n] = tri_heap_alloc(h, 700 << 10)) != 0)
        n++;
    CHECK(n > 20 && n < 64);
    for (uint64_t i = 0; i < n; i += 2) /* every other one: no two free ones side by side */
        CHECK(tri_heap_free(h, off[i]) == 0);
    CHECK(tri_heap_alloc(h, 5 << 20) == 0 && tri_heap_check(h) == 0);
    CHECK(tri_heap_alloc(h, 300 << 10) != 0); /* half of a larger one */
    for (uint64_t i = 1; i < n; i += 2)
        CHECK(tri_heap_free(h, off[i]) == 0);
    big = tri_heap_alloc(h, 5 << 20);
    CHECK(big && tri_heap_check(h) == 0);
    CHECK(tri_heap_free(h, big) == 0 && tri_heap_alloc(h, 700 << 10) != 0);
    CHECK(tri_heap_check(h) == 0);
    tri_pool_free(p);
}

/* The longest stretch of the heap in which nothing lives. */
static uint64_t longest_gap(const struct tri_heap *h, const uint64_t *off, int n)
{
    uint64_t at = 0, longest = 0;

    while (at < h->bytes) {
        uint64_t next = h->bytes, size = 0;

        for (int k = 0; k < n; k++) {
            uint64_t start = off[k] ? off[k] - TRI_BLOCK_HEADER - h->base : h->bytes;

            if (start >= at && start < next) {
                next = start;
                size = tri_heap_block_bytes(h, off[k]) + TRI_BLOCK_HEADER;
            }
        }
        if (next - at > longest)
            longest = next - at;
        at = next + size;
    }
    return longest;
}

/* Sizes of all kinds in a heap that is too small for them: only what has no room is refused. */
static void a_full_heap_refuses_only_what_has_no_room(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    struct tri_heap *h = &p->heap;
    uint64_t seed = tri_test_seed(), off[40] = {0}, refused = 0;

    for (int i = 0; i < 20000; i++) {
        int k;

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        k = (int)(seed >> 33) % 40;
        if (off[k]) {
            const uint8_t *data = p->view.base + off[k];

            CHECK(data[0] == k && data[tri_heap_block_bytes(h, off[k]) - 1] == k);
            CHECK(tri_heap_free(h, off[k]) == 0);
            off[k] = 0;
        } else {
            uint64_t bytes = (seed >> 42) % (1ull << (seed >> 61)) * 65536;

            off[k] = tri_heap_alloc(h, bytes);
            if (off[k]) {
                p->view.base[off[k]] = (uint8_t)k;
                p->view.base[off[k] + tri_heap_block_bytes(h, off[k]) - 1] = (uint8_t)k;
            } else {
                CHECK(longest_gap(h, off, 40) < 2 * (bytes + TRI_BLOCK_HEADER));
                refused++;
            }
        }
        if (i % 100 == 0)
            CHECK(tri_heap_check(h) == 0);
    }
    CHECK(refused > 0 && tri_heap_check(h) == 0);
    tri_pool_free(p);
}

/* ------------------------------------------------------------------ freed by others */

#define BLOCKS 400
#define FREERS 3

struct hand {
    struct tri_pool *p;
    _Atomic uint64_t mailbox[FREERS];
};

static void *frees_for_others(void *arg)
{
    struct hand *h = ((struct hand **)arg)[0];
    uintptr_t id = ((uintptr_t *)arg)[1];

    for (int i = 0; i < BLOCKS;) {
        uint64_t off = atomic_exchange(&h->mailbox[id], 0);

        if (!off)
            continue;
        CHECK(*(volatile uint64_t *)(h->p->view.base + off) == off);
        tri_block_push(&h->p->view, off);
        i++;
    }
    return NULL;
}

static bool may_free(void *ctx, uint64_t off)
{
    CHECK(off != 0);
    *(int *)ctx += 1;
    return true;
}

static void blocks_freed_by_other_threads_come_home(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    struct hand hand = {.p = p};
    pthread_t t[FREERS];
    uintptr_t arg[FREERS][2];
    int home = 0, sent[FREERS] = {0}, left = FREERS * BLOCKS;

    p->heap.home = may_free;
    p->heap.home_ctx = &home;
    for (uintptr_t i = 0; i < FREERS; i++) {
        arg[i][0] = (uintptr_t)&hand;
        arg[i][1] = i;
        CHECK(pthread_create(&t[i], NULL, frees_for_others, arg[i]) == 0);
    }
    while (left)
        for (int i = 0; i < FREERS; i++) {
            uint64_t off;

            if (sent[i] == BLOCKS || atomic_load(&hand.mailbox[i]))
                continue;
            off = tri_heap_alloc(&p->heap, (uint64_t)(left % 7) * 300 + 8);
            CHECK(off);
            *(uint64_t *)(void *)(p->view.base + off) = off;
            atomic_store(&hand.mailbox[i], off);
            sent[i]++;
            left--;
        }
    for (int i = 0; i < FREERS; i++)
        pthread_join(t[i], NULL);
    tri_heap_collect(&p->heap);
    CHECK(p->heap.live == 0 && tri_heap_check(&p->heap) == 0 && home == FREERS * BLOCKS);
    tri_pool_free(p);
}

static void scribbled_links_lead_nowhere(void)
{
    static const uint64_t bad[] = {1, 63, 64, UINT64_MAX, 1ull << 40, 4096};

    for (size_t k = 0; k <= sizeof bad / sizeof *bad; k++) {
        struct tri_pool *p = bare_pool(1, 64, HEAP);
        uint64_t a = tri_heap_alloc(&p->heap, 10), b = tri_heap_alloc(&p->heap, 10);
        uint64_t c = tri_heap_alloc(&p->heap, 10);

        p->heap.home = NULL;
        tri_block_push(&p->view, a);
        tri_block_push(&p->view, b); /* b -> a */
        /* a's link: anywhere, or round in a circle */
        *(uint64_t *)(void *)(p->view.base + a - TRI_BLOCK_HEADER) =
            k < sizeof bad / sizeof *bad ? bad[k] : b;
        tri_heap_collect(&p->heap);
        CHECK(tri_heap_check(&p->heap) == 0);
        CHECK(tri_heap_block_bytes(&p->heap, a) == 0 && tri_heap_block_bytes(&p->heap, b) == 0);
        CHECK(tri_heap_block_bytes(&p->heap, c) > 0);
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            tri_store_rel(&p->view.heap[0].freed, bad[i]);
            CHECK(tri_heap_collect(&p->heap) == 0);
        }
        tri_pool_free(p);
    }
}

/* A worker may give its argument block back before the owner has taken its task.  It is not to be
 * used again until then: it would be freed a second time, as somebody else's. */
static void an_argument_block_given_back_early_waits_for_its_task(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    struct tri_user user = {NULL};
    uint64_t off = tri_pool_block_new(p, 500), ticket, next;
    struct tri_slot *s;
    struct tri_done d;
    uint32_t slot;

    CHECK(tri_task_new(p, &slot) == 0);
    s = &p->view.slot[slot];
    s->arg_off = off;
    s->arg_len = 500;
    CHECK(tri_task_push(p, slot, 0, 0, &user, &ticket) == 0);
    s->res_flags = TRI_R_ARGS_KEPT;
    s->res_len = 0;
    s->res_off = 0;
    tri_store_sc(&s->state, tri_word(TRI_S_DONE, 0, 0, ticket));
    tri_block_push(&p->view, off);
    next = tri_pool_block_new(p, 500);
    CHECK(next && next != off);
    CHECK(tri_take_one(p, slot, ticket, &d) && d.user == &user);
    CHECK(p->nkept == 0 && p->nearly == 0 && tri_heap_block_bytes(&p->heap, off) == 0);
    CHECK(tri_pool_block_new(p, 500) == off);
    tri_pool_free(p);
}

/* Given back and then its worker died: home first, or it would be freed twice. */
static void an_argument_block_of_a_dead_worker_is_freed_once(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    struct tri_msg died = {.type = TRI_M_DIED, .worker = 0, .gen = 0, .signal = 9};
    struct tri_user user = {NULL};
    uint64_t off = tri_pool_block_new(p, 500), ticket;
    struct tri_done d;
    uint32_t slot;

    CHECK(tri_task_new(p, &slot) == 0);
    p->view.slot[slot].arg_off = off;
    CHECK(tri_task_push(p, slot, 0, 0, &user, &ticket) == 0);
    p->view.slot[slot].res_flags = TRI_R_ARGS_KEPT;
    p->view.slot[slot].res_len = p->view.slot[slot].res_off = 0;
    tri_store_sc(&p->view.slot[slot].state, tri_word(TRI_S_DONE, 0, 0, ticket));
    CHECK(tri_take_one(p, slot, ticket, &d) && p->nkept == 1);
    tri_block_push(&p->view, off);
    pthread_mutex_lock(&p->lock);
    tri_repair_death(p, &died);
    pthread_mutex_unlock(&p->lock);
    CHECK(p->nkept == 0 && p->heap.live == 0 && tri_load_acq(&p->view.heap[0].freed) == 0);
    CHECK(tri_pool_block_new(p, 500) == off && tri_heap_collect(&p->heap) == 0);
    tri_pool_free(p);
}

/* Pages of [at, at + bytes) that exist, in whichever process they were written. */
static size_t resident(const uint8_t *at, size_t bytes)
{
    static unsigned char map[2 * HEAP / 4096 + 1];
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)at & ~(page - 1);
    size_t pages = ((uintptr_t)at + bytes - from + page - 1) / page, n = 0;

    CHECK(mincore((void *)from, pages * page, map) == 0);
    for (size_t i = 0; i < pages; i++)
        n += map[i] & 1;
    return n;
}

static void a_block_is_populated_once_and_again_when_it_was_given_back(void)
{
    struct tri_pool *p = bare_pool(1, 64, HEAP);
    const size_t bytes = 4u << 20, pages = bytes / (size_t)sysconf(_SC_PAGESIZE);
    uint64_t off = tri_heap_alloc(&p->heap, bytes);
    uint8_t *data = p->view.base + off;
    /* What one touch brings: a page, or a large one where the machine makes them unasked. */
    const size_t touch = resident(p->view.base, TRI_HUGE);

    tri_block_populate(data, bytes / 2);
#ifdef MADV_POPULATE_WRITE
    if (resident(data, bytes / 2) > 1) { /* an older kernel takes no such advice */
        CHECK(resident(data, bytes / 2) >= pages / 2);
        CHECK(resident(data, bytes) <= pages / 2 + touch);
        tri_block_populate(data, bytes);
        CHECK(resident(data, bytes) >= pages);
        tri_segment_punch(&p->seg, off - TRI_BLOCK_HEADER, bytes);
        tri_block_populate(data, bytes);
        CHECK(resident(data, bytes - 4096) >= pages - 1);
    }
#endif
    memset(data, 7, bytes);
    CHECK(tri_heap_free(&p->heap, off) == 0 && tri_heap_check(&p->heap) == 0);
    tri_pool_free(p);
}

/* How many bytes of the heap have pages. */
static uint64_t heap_resident(const struct tri_heap *h)
{
    uint64_t bytes = h->top & ~4095ull;

    return bytes ? resident(h->view->base + h->base, bytes) * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static void free_blocks_of_any_size_keep_no_more_pages_than_the_limit(void)
{
    static const uint64_t sizes[] = {180, 3000, 40000, 400000, 3u << 20};

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        struct tri_pool *p = bare_pool(1, 64, 2 * HEAP);
        struct tri_heap *h = &p->heap;
        uint64_t bytes = sizes[s], n = HEAP / bytes, *off = calloc(n, sizeof *off);

        CHECK(off);
        h->idle_max = 4u << 20;
        for (int round = 0; round < 3; round++) {
            uint64_t kept = 0;

            for (uint64_t i = 0; i < n; i++) {
                off[i] = tri_heap_alloc(h, bytes);
                CHECK(off[i]);
                memset(p->view.base + off[i], (int)(i % 251) + 1, bytes);
            }
            for (uint64_t i = 0; i < n; i++) {
                if (i % 16 == 3)
                    continue;
                CHECK(tri_heap_free(h, off[i]) == 0);
                CHECK(h->idle - h->cold <= h->idle_max && h->cold <= h->idle);
            }
            CHECK(tri_heap_check(h) == 0);
            if (bytes > 8192) /* of smaller ones too few have whole pages to themselves */
                CHECK(heap_resident(h) <= h->idle_max + h->live + n * 8192);
            for (uint64_t i = 3; i < n; i += 16) {
                const uint8_t *data = p->view.base + off[i];

                kept++;
                for (uint64_t at = 0; at < bytes; at++)
                    if (data[at] != i % 251 + 1)
                        CHECK(!"a block in use lost what was in it");
                CHECK(tri_heap_free(h, off[i]) == 0);
            }
            CHECK(kept && h->live == 0 && h->idle == h->top && tri_heap_check(h) == 0);
            CHECK(heap_resident(h) <= h->idle_max + n * 8192 || bytes <= 8192);
        }
        tri_heap_trim(h);
        CHECK(h->cold == h->idle && heap_resident(h) == 0);
        free(off);
        tri_pool_free(p);
    }
}

static void what_was_freed_last_has_its_pages_still(void)
{
    struct tri_pool *p = bare_pool(1, 64, 2 * HEAP);
    const uint64_t bytes = 1000000;
    uint64_t off[20];

    p->heap.idle_max = 40u << 20;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 20; i++) {
            off[i] = tri_heap_alloc(&p->heap, bytes);
            CHECK(!round || resident(p->view.base + off[i], bytes) >= bytes / 4096);
            memset(p->view.base + off[i], 1, bytes);
        }
        for (int i = 0; i < 20; i++)
            CHECK(tri_heap_free(&p->heap, off[i]) == 0);
        CHECK(p->heap.cold == 0);
    }
    tri_pool_free(p);
}

static void the_limit_is_shared_by_all_participants(void)
{
    const uint32_t workers[] = {1, 3, 200};

    for (size_t i = 0; i < 3; i++) {
        struct tri_pool *p = bare_pool(workers[i], 64, 256u << 20);
        uint64_t off = tri_heap_alloc(&p->heap, 100u << 20);

        CHECK(tri_heap_free(&p->heap, off) == 0 && p->heap.idle_max >= 64u << 20);
        CHECK(p->heap.idle_max <= 64u << 20 || p->heap.idle_max <= (1u << 30) / (workers[i] + 1));
        tri_pool_free(p);
    }
}

int main(void)
{
    RUN(blocks_hold_what_was_asked_for_and_do_not_overlap);
    RUN(the_largest_block_is_the_heap);
    RUN(a_freed_block_is_the_next_of_its_size);
    RUN(the_accounts_are_exact_after_any_order);
    RUN(sizes_no_longer_used_make_room_for_others);
    RUN(a_full_heap_refuses_only_what_has_no_room);
    RUN(blocks_freed_by_other_threads_come_home);
    RUN(a_block_is_populated_once_and_again_when_it_was_given_back);
    RUN(free_blocks_of_any_size_keep_no_more_pages_than_the_limit);
    RUN(what_was_freed_last_has_its_pages_still);
    RUN(the_limit_is_shared_by_all_participants);
    RUN(scribbled_links_lead_nowhere);
    RUN(an_argument_block_given_back_early_waits_for_its_task);
    RUN(an_argument_block_of_a_dead_worker_is_freed_once);
    return 0;
}
