/* SPDX-License-Identifier: BSD-3-Clause */
/* test_huge.c - large pages in shared memory: where they lie, what they leave alone, and going
 * without. */
#include "pools.h"

#include <inttypes.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "shm/huge.h"

/* Kilobytes of this process that its page tables name in large pages, of files or without one. */
static uint64_t in_large_pages(void)
{
    char line[256];
    uint64_t kb = 0, some;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "ShmemPmdMapped: %" SCNu64, &some) == 1 ||
            sscanf(line, "AnonHugePages: %" SCNu64, &some) == 1)
            kb += some;
    if (f)
        fclose(f);
    return kb;
}

/* Whether this kernel makes large pages on demand, asked without the functions under test. */
static bool has_large_pages(void)
{
    int fd = memfd_create("probe", MFD_CLOEXEC);
    uint8_t *room = mmap(NULL, 2 * TRI_HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at;
    bool has;

    CHECK(fd >= 0 && ftruncate(fd, TRI_HUGE) == 0 && room != MAP_FAILED);
    at = room + (TRI_HUGE - 1) - ((uintptr_t)room + TRI_HUGE - 1) % TRI_HUGE;
    CHECK(mmap(at, TRI_HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at);
    at[0] = 1;
    has = madvise(at, TRI_HUGE, 25 /* MADV_COLLAPSE */) == 0;
    munmap(room, 2 * TRI_HUGE);
    close(fd);
    return has;
}

static bool is_aligned(const void *p)
{
    return ((uintptr_t)p & (TRI_HUGE - 1)) == 0;
}

/* A pattern with zeros in between: what was not written must be zero. */
static void fill(uint8_t *base, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 509)
        base[i] = (uint8_t)(i >> 3);
}

static bool is_filled(const uint8_t *base, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 509)
        if (base[i] != (uint8_t)(i >> 3) || (i + 1 < bytes && base[i + 1] != 0))
            return false;
    return true;
}

static struct tri_room room_of(uint8_t *begin, size_t bytes)
{
    return (struct tri_room){begin, begin + bytes};
}

static bool populated(void *at, size_t bytes, struct tri_room room)
{
    int err = tri_huge_populate(at, bytes, room);

    return err == 0 || err == -EINVAL; /* before Linux 5.14 */
}

static void mappings_are_where_large_pages_may_be(void)
{
    struct tri_segment s;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    for (size_t bytes = page; bytes < 4 * TRI_HUGE; bytes = bytes * 3 + page) {
        CHECK(tri_segment_make(&s, bytes, true) == 0);
        CHECK(is_aligned(s.base) || bytes < TRI_HUGE);
        fill(s.base, bytes);
        CHECK(is_filled(s.base, bytes));
        tri_segment_drop(&s);
    }
    CHECK(tri_huge_map(-1, TRI_HUGE, PROT_READ, MAP_SHARED) == NULL && errno == EBADF);
    CHECK(tri_huge_map(-1, SIZE_MAX - 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS) == NULL);
}

static void large_pages_hold_what_was_there_and_end_where_they_must(void)
{
    struct tri_segment a, b;
    const size_t bytes = 9 * TRI_HUGE;
    size_t got;
    void *from;

    CHECK(tri_segment_make(&a, bytes, true) == 0);
    CHECK(tri_segment_attach(&b, dup(a.fd)) == 0 && is_aligned(b.base));
    fill(a.base, bytes / 2); /* the rest of the file does not exist yet */
    got =
        tri_huge_collapse((uint8_t *)a.base + 100, bytes, room_of(a.base, 8 * TRI_HUGE + 5), &from);
    CHECK(is_filled(a.base, bytes / 2) && is_filled(b.base, bytes / 2));
    CHECK(got > 0 || !has_large_pages());
    if (got) {
        CHECK(from == a.base && got == 8 * TRI_HUGE);
        CHECK(in_large_pages() > 0);
    }
    fill(b.base, bytes);
    CHECK(is_filled(a.base, bytes));
    tri_segment_punch(&b, TRI_HUGE / 2, TRI_HUGE); /* half of one and half of the next */
    CHECK(((uint8_t *)a.base)[TRI_HUGE] == 0);
    CHECK(is_filled(a.base, TRI_HUGE / 2));
    tri_segment_drop(&a);
    tri_segment_drop(&b);
}

static void only_what_is_half_asked_for_gets_a_large_page(void)
{
    struct tri_segment s;
    uint8_t *base;
    void *from;

    CHECK(tri_segment_make(&s, 4 * TRI_HUGE, true) == 0);
    base = s.base;
    CHECK(tri_huge_collapse(base, TRI_HUGE / 2 - 1, room_of(base, 4 * TRI_HUGE), &from) == 0);
    CHECK(tri_huge_collapse(base, TRI_HUGE, room_of(base, TRI_HUGE - 1), &from) == 0);
    CHECK(tri_huge_collapse(base + TRI_HUGE / 2 + 1, TRI_HUGE / 2 + 1, room_of(base, 4 * TRI_HUGE),
                            &from) == 0);
    CHECK(tri_huge_collapse(base + 5, TRI_HUGE - 5,
                            (struct tri_room){base + 1, base + 2 * TRI_HUGE - 1}, &from) == 0);
    if (tri_huge_collapse(base + TRI_HUGE / 2, TRI_HUGE, room_of(base, 4 * TRI_HUGE), &from))
        CHECK(from == base);
    CHECK(populated(base + 2 * TRI_HUGE + 5000, 70000, room_of(base, 4 * TRI_HUGE)));
    fill(base, 4 * TRI_HUGE);
    CHECK(is_filled(base, 4 * TRI_HUGE));
    tri_segment_drop(&s);
}

static void large_blocks_of_the_arena_are_in_large_pages(void)
{
    struct tri_pool *p = bare_pool(1, 64, 64u << 20);
    uint64_t small = tri_heap_alloc(&p->heap, 1000), off = tri_heap_alloc(&p->heap, 7 << 20);
    uint64_t before = in_large_pages();
    uint8_t *data = p->view.base + off;

    CHECK(small && is_aligned(data - TRI_BLOCK_HEADER));
    CHECK(tri_heap_check(&p->heap) == 0);
    tri_block_populate(data, 7 << 20);
    memset(data, 1, 7 << 20);
    CHECK(before != in_large_pages() || !has_large_pages());
    if (before != in_large_pages())
        CHECK(in_large_pages() - before == 8 << 10 || in_large_pages() - before == 6 << 10);
    /* What lies between small blocks and large ones is used for small ones. */
    CHECK(tri_heap_alloc(&p->heap, 1200 << 10) < off);
    CHECK(tri_heap_check(&p->heap) == 0);
    tri_pool_free(p);
}

static void without_large_pages(void)
{
    struct tri_segment s;
    uint8_t *base;
    void *from;

    CHECK(tri_segment_make(&s, 4 * TRI_HUGE, true) == 0);
    base = s.base;
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    for (int i = 0; i < 20; i++) {
        CHECK(tri_huge_collapse(base, 3 * TRI_HUGE, room_of(base, 4 * TRI_HUGE), &from) == 0);
        CHECK(populated(base, 3 * TRI_HUGE, room_of(base, 4 * TRI_HUGE)));
    }
    CHECK(in_large_pages() == 0);
    fill(base, 4 * TRI_HUGE);
    CHECK(is_filled(base, 4 * TRI_HUGE));
    tri_segment_drop(&s);
}

static void it_goes_without_them(void)
{
    pid_t pid = fork();
    int status;

    CHECK(pid >= 0);
    if (pid == 0) {
        without_large_pages();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(void)
{
    RUN(mappings_are_where_large_pages_may_be);
    RUN(large_pages_hold_what_was_there_and_end_where_they_must);
    RUN(only_what_is_half_asked_for_gets_a_large_page);
    RUN(large_blocks_of_the_arena_are_in_large_pages);
    RUN(it_goes_without_them);
    return 0;
}
