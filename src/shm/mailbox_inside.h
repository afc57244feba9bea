/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox_inside.h - what a mailbox's memory looks like; for mailbox.c, mailbox_make.c, tests.
 *
 * One page of control, a table with a line per chunk, the chunks.
 */
#ifndef TRI_SHM_MAILBOX_INSIDE_H
#define TRI_SHM_MAILBOX_INSIDE_H

#include <stdalign.h>

#include "base/atomic.h"
#include "shm/lock.h"
#include "shm/mailbox.h"
#include "shm/mailbox_bell.h"

#define TRI_MAILBOX_MAGIC UINT64_C(0x32786f6274697274) /* "tritbox2" */
#define TRI_MAILBOX_CHUNK (64u << 10)
#define TRI_MAILBOX_CHUNKS (1u << 20)

/* Lives in shared memory.  What has no writer named is constant after tri_mailbox_make. */
struct tri_mailbox_ctl {
    uint64_t magic;
    uint32_t most;
    _Atomic uint32_t watched;           /* set once, by anybody */
    alignas(TRI_LINE) tri_lock writers; /* its holder writes this line, and the next */
    alignas(TRI_LINE) _Atomic uint64_t tail;
    _Atomic uint32_t cursor;            /* where to look for a free chunk next */
    _Atomic uint32_t touched;           /* chunks from here on have no pages */
    _Atomic uint32_t top;               /* chunks from here on never had a stamp */
    _Atomic uint64_t begun;             /* no stamp is above this one */
    _Atomic uint64_t trimmed_ns;        /* when trim() last ran */
    alignas(TRI_LINE) tri_lock readers; /* its holder writes this line, and the next */
    alignas(TRI_LINE) _Atomic uint64_t head;
    alignas(TRI_LINE) _Atomic uint32_t done; /* any, by compare-and-swap */
    struct tri_mailbox_bell filled, emptied, joined;
};

struct tri_mailbox_chunk {
    _Atomic uint64_t stamp;
    _Atomic uint32_t next; /* constant while the chunk is in the chain and not its last */
    uint32_t unused;
};

#define TRI_MAILBOX_HEAD 4096u
_Static_assert(sizeof(struct tri_mailbox_ctl) <= TRI_MAILBOX_HEAD, "the control part is one page");
_Static_assert(sizeof(struct tri_mailbox_chunk) == 16, "shared layout");

/* tri_mailbox_make in a segment of so many bytes. */
int tri_mailbox_make_of(struct tri_mailbox *m, uint32_t most, uint64_t bytes);

#endif
