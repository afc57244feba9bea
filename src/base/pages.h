/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pages.h - zeroed private memory, of which only what is touched exists.
 *
 * For tables that are large and mostly empty.  Not calloc: once a large block has been freed, glibc
 * takes the next one of that size from its heap and fills it with zeros, every page of it.
 */
#ifndef TRI_BASE_PAGES_H
#define TRI_BASE_PAGES_H

#include <stddef.h>
#include <sys/mman.h>

/* @return NULL when there is no room; to be given back by tri_pages_free with the same size. */
static inline void *tri_pages_new(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_NOHUGEPAGE);
    return p;
}

static inline void tri_pages_free(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

#endif
