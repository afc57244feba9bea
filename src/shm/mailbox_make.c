/* SPDX-License-Identifier: BSD-3-Clause */
/* mailbox_make.c - how large a mailbox is, where its parts lie, how a process gets hold of it. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "shm/mailbox_inside.h"
#include "trireme.h"

/*
 * How large: as memory, since more cannot be in it; less where the process may not have so much.
 * It is sparse, so this is address space only.
 */
static uint64_t wanted_bytes(void)
{
    uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t want = UINT64_C(1) << 30, most = (uint64_t)TRI_MAILBOX_CHUNKS * TRI_MAILBOX_CHUNK;
    struct rlimit lim;

    while (want < bytes && want < most)
        want *= 2;
    if (getrlimit(RLIMIT_AS, &lim) == 0 && lim.rlim_cur != RLIM_INFINITY &&
        lim.rlim_cur / 64 < want)
        want = lim.rlim_cur / 64;
    /* Within it a memfd can be had; beyond, only memory that forks alone can see. */
    if (getrlimit(RLIMIT_FSIZE, &lim) == 0 && lim.rlim_cur < want &&
        lim.rlim_cur >= 16 * (uint64_t)TRI_MAILBOX_CHUNK)
        want = lim.rlim_cur;
    if (want < 16 * (uint64_t)TRI_MAILBOX_CHUNK)
        want = 16 * (uint64_t)TRI_MAILBOX_CHUNK;
    return want & ~(uint64_t)(TRI_MAILBOX_CHUNK - 1);
}

/* One descriptor for both ends of a pipe: opened again through /proc, so the first two can go. */
static int make_bell(void)
{
    char path[32];
    int fds[2], fd;

    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fds[0]);
    fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    close(fds[0]);
    close(fds[1]);
    return fd >= 0 ? fd : -1; /* without /proc there is no bell */
}

static bool another_cpu(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) < 0 || CPU_COUNT(&set) > 1;
}

/* Where things are follows from the size alone. */
static int lay_out(struct tri_mailbox *m)
{
    uint64_t bytes = m->seg.bytes, n;
    uint8_t *base = m->seg.base;

    if (bytes < TRI_MAILBOX_HEAD + 4096 + 4 * (uint64_t)TRI_MAILBOX_CHUNK)
        return TRI_ECORRUPT;
    n = (bytes - TRI_MAILBOX_HEAD - 4096) / (TRI_MAILBOX_CHUNK + sizeof(struct tri_mailbox_chunk));
    m->nchunks = n < TRI_MAILBOX_CHUNKS ? (uint32_t)n : TRI_MAILBOX_CHUNKS;
    m->ctl = (struct tri_mailbox_ctl *)base;
    m->chunk = (struct tri_mailbox_chunk *)(base + TRI_MAILBOX_HEAD);
    m->data = base + ((TRI_MAILBOX_HEAD + m->nchunks * sizeof *m->chunk + 4095) & ~(size_t)4095);
    m->spins = another_cpu();
    tri_store_rlx(&m->spin_skip, 0);
    tri_store_rlx(&m->spin_vain, 0);
    return 0;
}

int tri_mailbox_make_of(struct tri_mailbox *m, uint32_t most, uint64_t bytes)
{
    int err;

    memset(m, 0, sizeof *m);
    m->bell_fd = -1;
    err = tri_segment_make(&m->seg, bytes, true);
    if (err)
        return err;
    err = lay_out(m);
    if (!err) {
        m->bell_fd = make_bell();
        err = m->bell_fd < -1 ? m->bell_fd : 0;
    }
    if (err) {
        tri_mailbox_drop(m);
        return err;
    }
    m->ctl->magic = TRI_MAILBOX_MAGIC;
    m->ctl->most = most;
    tri_lock_init(&m->ctl->writers);
    tri_lock_init(&m->ctl->readers);
    tri_store_rlx(&m->chunk[0].stamp, 1);
    tri_store_rlx(&m->ctl->touched, 1);
    tri_store_rlx(&m->ctl->top, 1);
    tri_store_rlx(&m->ctl->begun, 1);
    return 0;
}

int tri_mailbox_make(struct tri_mailbox *m, uint32_t most)
{
    uint64_t want = wanted_bytes();
    int err, probe = memfd_create("trireme-probe", MFD_CLOEXEC);

    if (probe >= 0)
        close(probe);
    else if (want > 64u << 20)
        want = 64u << 20; /* a file of a small /dev/shm, which must be reserved whole */
    do
        err = tri_mailbox_make_of(m, most, want);
    while (err == -ENOMEM && (want /= 2) >= 16 * (uint64_t)TRI_MAILBOX_CHUNK);
    return err;
}

int tri_mailbox_attach(struct tri_mailbox *m, int fd, int bell_fd)
{
    int err;

    memset(m, 0, sizeof *m);
    m->bell_fd = bell_fd;
    if (bell_fd >= 0)
        fcntl(bell_fd, F_SETFL, O_NONBLOCK); /* a new description, if it came through /proc */
    err = tri_segment_attach(&m->seg, fd);
    m->seg.fd = fd; /* on failure, too: to be closed below */
    if (!err)
        err = lay_out(m);
    if (!err && m->ctl->magic != TRI_MAILBOX_MAGIC)
        err = TRI_ECORRUPT;
    if (err)
        tri_mailbox_drop(m);
    return err;
}

void tri_mailbox_drop(struct tri_mailbox *m)
{
    tri_segment_drop(&m->seg);
    if (m->bell_fd >= 0)
        close(m->bell_fd);
    m->bell_fd = -1;
}
