/* SPDX-License-Identifier: BSD-3-Clause */
/* segment.c - memfd and its fall-backs.  The idea is in segment.h. */
#include "shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/huge.h"
#include "trireme.h"

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)

/* ftruncate beyond RLIMIT_FSIZE raises SIGXFSZ, whose default is death: hold it back. */
static int set_size(int fd, uint64_t bytes)
{
    sigset_t xfsz, old, pending;
    struct timespec none = {0, 0};
    int err = 0;
    bool was_pending;

    sigemptyset(&xfsz);
    sigaddset(&xfsz, SIGXFSZ);
    sigpending(&pending);
    was_pending = sigismember(&pending, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &xfsz, &old);
    if (ftruncate(fd, (off_t)bytes) < 0) {
        err = -errno;
        if (err == -EFBIG && !was_pending)
            sigtimedwait(&xfsz, NULL, &none);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err;
}

/* Above the standard streams and the numbers that scripts like to use. */
static int move_high(int fd)
{
    int high;

    if (fd < 0)
        return fd;
    high = fcntl(fd, F_DUPFD_CLOEXEC, 64);
    if (high < 0)
        return fd;
    close(fd);
    return high;
}

static int unlinked_file(void)
{
    const char *dirs[] = {"/dev/shm", getenv("TMPDIR"), "/tmp"};
    char path[256];

    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        int fd;

        if (!dirs[i] || !*dirs[i])
            continue;
#ifdef O_TMPFILE
        fd = open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
        if (fd >= 0)
            return fd;
#endif
        if (snprintf(path, sizeof path, "%s/trireme.XXXXXX", dirs[i]) >= (int)sizeof path)
            continue;
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0) {
            unlink(path);
            return fd;
        }
    }
    return -ENOSYS;
}

static void *map(int fd, uint64_t bytes, int flags)
{
    void *p = tri_huge_map(fd, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE);

    if (!p)
        return NULL;
    madvise(p, bytes, MADV_DONTDUMP);
    return p;
}

int tri_segment_make(struct tri_segment *s, uint64_t bytes, bool shared)
{
    int fd, err;

    s->bytes = bytes;
    s->fd = -1;
    s->shared = shared;
    if (!shared) {
        s->base = map(-1, bytes, MAP_PRIVATE | MAP_ANONYMOUS);
        return s->base ? 0 : -errno;
    }
    fd = move_high(memfd_create("trireme", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd >= 0) {
        fchmod(fd, 0600);
        err = set_size(fd, bytes);
        if (!err && fcntl(fd, F_ADD_SEALS, SEALS) < 0)
            err = -errno;
        if (!err) {
            s->base = map(fd, bytes, MAP_SHARED);
            if (s->base) {
                s->fd = fd;
                return 0;
            }
            err = -errno;
        }
        close(fd);
        if (err != -EFBIG && err != -EPERM)
            return err;
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
        return -errno;
    } else {
        fd = move_high(unlinked_file());
        if (fd >= 0) {
            /* Reserve for real: a hole that cannot be filled later would be a SIGBUS. */
            if (set_size(fd, bytes) == 0 && posix_fallocate(fd, 0, (off_t)bytes) == 0) {
                s->base = map(fd, bytes, MAP_SHARED);
                if (s->base) {
                    s->fd = fd;
                    return 0;
                }
            }
            close(fd);
        }
    }
    s->base = map(-1, bytes, MAP_SHARED | MAP_ANONYMOUS);
    return s->base ? 0 : -errno;
}

int tri_segment_attach(struct tri_segment *s, int fd)
{
    struct stat st;
    int seals;

    if (fstat(fd, &st) < 0)
        return -errno;
    seals = fcntl(fd, F_GET_SEALS);
    /* A file of /dev/shm, where there is no memfd, says that it cannot be sealed at all. */
    if (st.st_uid != geteuid() || st.st_size <= 0 ||
        (seals >= 0 && seals != F_SEAL_SEAL && (seals & SEALS) != SEALS))
        return TRI_ECORRUPT;
    s->bytes = (uint64_t)st.st_size;
    s->shared = true;
    s->fd = fd;
    s->base = map(fd, s->bytes, MAP_SHARED);
    return s->base ? 0 : -errno;
}

void tri_segment_drop(struct tri_segment *s)
{
    if (s->base)
        munmap(s->base, s->bytes);
    if (s->fd >= 0)
        close(s->fd);
    s->base = NULL;
    s->fd = -1;
}

void tri_segment_punch(const struct tri_segment *s, uint64_t off, uint64_t bytes)
{
    uint64_t from = (off + 4095) & ~4095ull, to = (off + bytes) & ~4095ull;

    if (to > from)
        madvise((uint8_t *)s->base + from, to - from, s->shared ? MADV_REMOVE : MADV_DONTNEED);
}
