/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slots.h - many small shared objects in few pieces of shared memory.
 *
 * A program may make thousands of locks, and a descriptor for each would end it.  So objects are
 * slots of pages: a page is one segment (one descriptor, one mapping) with slots of one size.
 * A slot is known everywhere by (the page's uid, the slot's number).
 *
 * Threads: the caller lets in one at a time (Python's GIL).
 */
#ifndef TRI_SHM_SLOTS_H
#define TRI_SHM_SLOTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/segment.h"

#define TRI_UID_BYTES 16
#define TRI_PAGE_SLOTS 1024 /* at most, in one page */

struct tri_page {
    struct tri_page *next;
    struct tri_segment seg;
    uint8_t uid[TRI_UID_BYTES];
    dev_t dev; /* which file seg.fd was, in case somebody closes it behind our back */
    ino_t ino;
    uint64_t owner; /* name of the process that made it: only that one hands out its slots */
    uint64_t forks; /* the count of forks that lent[] takes into account */
    uint32_t slots, slot_bytes, refs;
    uint64_t used[TRI_PAGE_SLOTS / 64];  /* held by an object of this process */
    uint64_t lent[TRI_PAGE_SLOTS / 64];  /* another process may hold it, too */
    uint64_t spent[TRI_PAGE_SLOTS / 64]; /* not used here any more, but was lent */
};

/* All pages that one user of this file knows; zeros: none. */
struct tri_slots {
    struct tri_page *pages;
};

/* A slot of zeros; bytes: 64, or a multiple of the page size up to 32768.  0 or -errno. */
int tri_slot_new(struct tri_slots *all, uint32_t bytes, struct tri_page **page, uint32_t *slot);
/* A slot of a page that is known already; NULL if it is not. */
struct tri_page *tri_slot_find(struct tri_slots *all, const uint8_t *uid);
/*
 * Learn of a page by a descriptor that another process sent.  Takes fd, also on failure.
 * 0, TRI_ECORRUPT: it is no page of that uid; -errno.  It has no slot in use yet: hold one.
 */
int tri_slot_attach(struct tri_slots *all, const uint8_t *uid, int fd, struct tri_page **page);
/* Hold a slot of a known page, as another object may.  0 or TRI_ECORRUPT: there is no such slot. */
int tri_slot_hold(struct tri_page *page, uint32_t slot, uint32_t bytes);
/* Give one hold back.  The page goes when it was the last. */
void tri_slot_drop(struct tri_slots *all, struct tri_page *page, uint32_t slot);
/* From now on another process may hold it.  The descriptor to send, or -1: there is none. */
int tri_slot_lend(struct tri_page *page, uint32_t slot);
void *tri_slot_at(const struct tri_page *page, uint32_t slot);

#endif
