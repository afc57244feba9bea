/* SPDX-License-Identifier: BSD-3-Clause */
/* huge.c - see huge.h. */
#include "shm/huge.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/atomic.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define FAILURES_MAX 8 /* in a row: there are no large pages to be had */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool usual; /* large pages are of TRI_HUGE bytes, as they are where small ones have 4 KiB */
static _Atomic uint32_t failures;

static void look(void)
{
    char text[32] = "";
    int fd = open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    if (read(fd, text, sizeof text - 1) > 0)
        usual = strtoull(text, NULL, 10) == TRI_HUGE;
    close(fd);
}

void *tri_huge_map(int fd, size_t bytes, int prot, int flags)
{
    uint8_t *room, *at, *end;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (bytes + page - 1) & ~(page - 1);
    void *p;

    if (bytes >= TRI_HUGE && size >= bytes) {
        room = mmap(NULL, size + TRI_HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
        if (room != MAP_FAILED) {
            end = room + size + TRI_HUGE;
            at = (uint8_t *)(((uintptr_t)room + TRI_HUGE - 1) & ~(uintptr_t)(TRI_HUGE - 1));
            p = mmap(at, bytes, prot, flags | MAP_FIXED, fd, 0);
            if (p == MAP_FAILED) {
                int err = errno;

                munmap(room, size + TRI_HUGE);
                errno = err;
                return NULL;
            }
            if (at > room)
                munmap(room, (size_t)(at - room));
            if (end > at + size)
                munmap(at + size, (size_t)(end - at - size));
            return p;
        }
    }
    p = mmap(NULL, bytes, prot, flags, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

size_t tri_huge_collapse(void *at, size_t bytes, struct tri_room room, void **from)
{
    uintptr_t begin = (uintptr_t)at & ~(uintptr_t)(TRI_HUGE - 1), end, unit;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    *from = at;
    pthread_once(&once, look);
    if (!usual || bytes < TRI_HUGE / 2 || tri_load_rlx(&failures) >= FAILURES_MAX)
        return 0;
    if ((uintptr_t)at - begin > TRI_HUGE / 2 || begin < (uintptr_t)room.begin)
        begin += TRI_HUGE;
    end = ((uintptr_t)at + bytes + TRI_HUGE / 2) & ~(uintptr_t)(TRI_HUGE - 1);
    if (end > (uintptr_t)room.end)
        end = (uintptr_t)room.end & ~(uintptr_t)(TRI_HUGE - 1);
    if (end <= begin)
        return 0;
    /* There must be something of each: nothing at all is refused. */
    for (unit = begin; unit < end; unit += TRI_HUGE)
        if (madvise((void *)unit, page, MADV_POPULATE_WRITE) < 0)
            return 0;
    if (madvise((void *)begin, end - begin, MADV_COLLAPSE) < 0) {
        tri_store_rlx(&failures, tri_load_rlx(&failures) + 1);
        return 0;
    }
    tri_store_rlx(&failures, 0);
    *from = (void *)begin;
    return end - begin;
}

int tri_huge_populate(void *at, size_t bytes, struct tri_room room)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)at & ~(page - 1);
    void *from;

    tri_huge_collapse(at, bytes, room, &from);
    if (madvise((void *)begin, (uintptr_t)at + bytes - begin, MADV_POPULATE_WRITE) < 0)
        return -errno;
    return 0;
}
