/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * segment.h - one piece of shared memory without a name.
 *
 * A memfd: mode 0600, close-on-exec, sealed against any change of size, so nobody who holds it
 * can make a reader fault by cutting it.  It is sparse: size is address space, pages come when
 * they are touched.  Nothing is left anywhere when the last process that maps it is gone.
 *
 * Where memfd is refused (old kernels, seccomp) an unlinked 0600 file in /dev/shm, TMPDIR or /tmp
 * takes its place; there the whole size must be reserved, because touching a page that such a
 * file system cannot hold is a SIGBUS.  Under a file size limit (ulimit -f), which also applies
 * to memfd, an anonymous shared mapping is used: it has no descriptor (fd = -1) and reaches only
 * processes forked from this one.
 */
#ifndef TRI_SHM_SEGMENT_H
#define TRI_SHM_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

struct tri_segment {
    void *base;
    uint64_t bytes;
    int fd;      /* -1: anonymous, or closed */
    bool shared; /* other processes may see it */
};

/* Make and map.  private: threads only.  0, -ENOMEM, -errno.  The caller unmaps. */
int tri_segment_make(struct tri_segment *s, uint64_t bytes, bool shared);
/* Map a segment received as a descriptor; checks owner, size and seals.  Takes no hold of fd. */
int tri_segment_attach(struct tri_segment *s, int fd);
/* Unmap and close. */
void tri_segment_drop(struct tri_segment *s);
/* Give the pages of [off, off + bytes) back to the system; they read as zero afterwards. */
void tri_segment_punch(const struct tri_segment *s, uint64_t off, uint64_t bytes);

#endif
