/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slots.c - pages of slots, and when a slot may be used again.
 *
 * Slot 0 of a page holds its header: the uid and the size of a slot.  A process hands out slots of
 * the pages that it made itself, so there is no allocator that several processes share and nothing
 * to repair.  Processes that inherited or received a page only count how many objects they have in
 * it, and unmap it after the last.
 *
 * A slot may be used again when no other process can hold it.  Who else holds one cannot be asked
 * (they may be stopped, or not yet started), so the rule is what its owner knows: the slot was
 * never lent (pickled), and no fork came between its making and its end.  A slot for which that is
 * not so is spent: it stays unused until the page goes, which is when the owner's last object in
 * it has gone.  The others' mappings keep the memory as long as they need it.
 *
 * Forks are counted by a handler of pthread_atfork, before each fork.  A page notes the count; when
 * it differs, all slots then in use become lent.  (A raw clone() without the C library is not seen.
 * Whoever forks like that must not use locks on both sides.)
 */
#include "shm/slots.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/self.h"
#include "trireme.h"

#define MAGIC UINT32_C(0x53495254) /* "TRIS" */
#define SMALL_PAGE_BYTES 65536
#define LARGE_PAGE_SLOTS 64

struct header {
    uint32_t magic, slot_bytes;
    uint8_t uid[TRI_UID_BYTES];
};

static _Atomic uint64_t forks;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void)
{
    tri_add_rlx(&forks, 1);
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, NULL, NULL);
}

static bool bit(const uint64_t *bits, uint32_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

static void set_bit(uint64_t *bits, uint32_t i)
{
    bits[i / 64] |= UINT64_C(1) << (i % 64);
}

static void clear_bit(uint64_t *bits, uint32_t i)
{
    bits[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static uint32_t words(const struct tri_page *p)
{
    return (p->slots + 63) / 64;
}

/* What was in use at a fork is the child's as well. */
static void note_forks(struct tri_page *p)
{
    uint64_t now = tri_load_rlx(&forks);

    if (p->forks == now)
        return;
    p->forks = now;
    for (uint32_t i = 0; i < words(p); i++)
        p->lent[i] |= p->used[i];
}

static struct tri_page *page_add(struct tri_slots *all, struct tri_page *p)
{
    struct stat st;

    if (p->seg.fd >= 0 && fstat(p->seg.fd, &st) == 0) {
        p->dev = st.st_dev;
        p->ino = st.st_ino;
    }
    p->forks = tri_load_rlx(&forks);
    p->next = all->pages;
    all->pages = p;
    return p;
}

/* The descriptor, if it is still the page's: a daemon may have closed all it found. */
static int page_fd(const struct tri_page *p)
{
    struct stat st;

    if (p->seg.fd < 0 || fstat(p->seg.fd, &st) < 0 || st.st_dev != p->dev || st.st_ino != p->ino)
        return -1;
    return p->seg.fd;
}

static void page_remove(struct tri_slots *all, struct tri_page *p)
{
    struct tri_page **at = &all->pages;

    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    p->seg.fd = page_fd(p);
    tri_segment_drop(&p->seg);
    free(p);
}

static int page_make(struct tri_slots *all, uint32_t slot_bytes, struct tri_page **out)
{
    uint64_t bytes = slot_bytes > 64 ? (uint64_t)slot_bytes * LARGE_PAGE_SLOTS : SMALL_PAGE_BYTES;
    struct tri_page *p = calloc(1, sizeof *p);
    struct header *h;
    int err;

    if (!p)
        return -ENOMEM;
    pthread_once(&once, watch_forks);
    if (getrandom(p->uid, sizeof p->uid, 0) != (ssize_t)sizeof p->uid) {
        free(p);
        return -EIO;
    }
    err = tri_segment_make(&p->seg, bytes, true);
    if (err) {
        free(p);
        return err;
    }
    p->owner = tri_self_name();
    p->slot_bytes = slot_bytes;
    p->slots = (uint32_t)(bytes / slot_bytes);
    h = p->seg.base;
    memcpy(h->uid, p->uid, sizeof h->uid);
    h->slot_bytes = slot_bytes;
    h->magic = MAGIC;
    *out = page_add(all, p);
    return 0;
}

/* The lowest slot that nobody has; 0: none. */
static uint32_t page_take(struct tri_page *p)
{
    note_forks(p);
    for (uint32_t i = 0; i < words(p); i++) {
        uint64_t taken = p->used[i] | p->spent[i] | (i == 0);
        uint32_t slot;

        if (~taken == 0)
            continue;
        slot = i * 64 + (uint32_t)__builtin_ctzll(~taken);
        if (slot >= p->slots)
            break;
        set_bit(p->used, slot);
        p->refs++;
        return slot;
    }
    return 0;
}

int tri_slot_new(struct tri_slots *all, uint32_t bytes, struct tri_page **page, uint32_t *slot)
{
    uint64_t me = tri_self_name();
    int err;

    for (struct tri_page *p = all->pages; p; p = p->next) {
        if (p->owner != me || p->slot_bytes != bytes)
            continue;
        *slot = page_take(p);
        if (*slot) {
            *page = p;
            if (bytes >= 4096)
                tri_segment_punch(&p->seg, (uint64_t)*slot * bytes, bytes);
            else
                memset(tri_slot_at(p, *slot), 0, bytes);
            return 0;
        }
    }
    err = page_make(all, bytes, page);
    if (!err)
        *slot = page_take(*page);
    return err;
}

struct tri_page *tri_slot_find(struct tri_slots *all, const uint8_t *uid)
{
    struct tri_page *p = all->pages;

    while (p && memcmp(p->uid, uid, sizeof p->uid) != 0)
        p = p->next;
    return p;
}

int tri_slot_attach(struct tri_slots *all, const uint8_t *uid, int fd, struct tri_page **page)
{
    struct tri_page *p = calloc(1, sizeof *p);
    const struct header *h;
    int err;

    if (!p) {
        close(fd);
        return -ENOMEM;
    }
    err = tri_segment_attach(&p->seg, fd);
    if (err) {
        close(fd);
        free(p);
        return err;
    }
    h = p->seg.base;
    if (p->seg.bytes < SMALL_PAGE_BYTES || h->magic != MAGIC || h->slot_bytes < 64 ||
        h->slot_bytes % 64 || memcmp(h->uid, uid, sizeof h->uid) != 0 ||
        p->seg.bytes / h->slot_bytes > TRI_PAGE_SLOTS) {
        tri_segment_drop(&p->seg);
        free(p);
        return TRI_ECORRUPT;
    }
    memcpy(p->uid, uid, sizeof p->uid);
    p->slot_bytes = h->slot_bytes;
    p->slots = (uint32_t)(p->seg.bytes / p->slot_bytes);
    *page = page_add(all, p);
    return 0;
}

int tri_slot_hold(struct tri_page *page, uint32_t slot, uint32_t bytes)
{
    if (slot == 0 || slot >= page->slots || page->slot_bytes != bytes)
        return TRI_ECORRUPT;
    /* A second object for a slot of our own: who drops it first must not free it for the other. */
    set_bit(page->lent, slot);
    page->refs++;
    return 0;
}

void tri_slot_drop(struct tri_slots *all, struct tri_page *page, uint32_t slot)
{
    note_forks(page);
    if (bit(page->used, slot)) {
        clear_bit(page->used, slot);
        if (bit(page->lent, slot))
            set_bit(page->spent, slot);
    }
    if (--page->refs == 0)
        page_remove(all, page);
}

int tri_slot_lend(struct tri_page *page, uint32_t slot)
{
    set_bit(page->lent, slot);
    return page_fd(page);
}

void *tri_slot_at(const struct tri_page *page, uint32_t slot)
{
    return (uint8_t *)page->seg.base + (uint64_t)slot * page->slot_bytes;
}
