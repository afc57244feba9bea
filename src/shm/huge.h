/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * huge.h - large pages for large blocks of shared memory, without root.
 *
 * Shared memory comes in pages of 4 KiB unless root has set it otherwise (shmem_enabled is "never"
 * by default).  Each costs a fault and 2 us when it is first written, and whoever reads an array in
 * them reads 10 GB/s where 17 are possible: the processor fetches ahead within a page only.  But
 * since Linux 6.1 a program may ask that one stretch of 2 MiB become one page, now
 * (MADV_COLLAPSE).  With one small page of it there, the kernel makes the large one from nothing:
 * 0.26 ms for 2 MiB, where 512 small pages take 0.7 ms populated at once and 1.4 ms in faults.
 *
 * It takes an address and a place in the file that are both multiples of 2 MiB, in every process
 * that maps it: tri_huge_map() sees to that.
 *
 * All of it is advice.  Where the kernel is older, has no large page left or will not, the memory
 * is the same and slower.
 */
#ifndef TRI_SHM_HUGE_H
#define TRI_SHM_HUGE_H

#include <stddef.h>
#include <stdint.h>

#define TRI_HUGE ((size_t)2 << 20)

/* As mmap() of the file's first `bytes` bytes, at an address for large pages.  NULL with errno. */
void *tri_huge_map(int fd, size_t bytes, int prot, int flags);

/* Memory that large pages may take: all of it is the caller's. */
struct tri_room {
    const void *begin, *end;
};

/*
 * Large pages for [at, at + bytes), where at least half of one is asked for and all of it lies in
 * `room`.  What is there stays as it is; what is not, is zero.
 * @return the bytes that lie in large pages now, from *from on, which may be below `at`; 0: none.
 */
size_t tri_huge_collapse(void *at, size_t bytes, struct tri_room room, void **from);

/*
 * Have [at, at + bytes) in memory, ready to be written, in large pages where that can be.
 * @return 0; -errno when not all could be had: then what is missing comes with faults, or does not.
 */
int tri_huge_populate(void *at, size_t bytes, struct tri_room room);

#endif
