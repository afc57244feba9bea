/* SPDX-License-Identifier: BSD-3-Clause */
/* worker.h - what the owner and a worker say to each other beyond layout.h. */
#ifndef TRI_POOL_WORKER_H
#define TRI_POOL_WORKER_H

#include <stdint.h>

/* In slot->arg of a TRI_F_CMAP task: item i is at in + i * in_bytes, its result at out + ... .
 * Offsets where the memory is in the arena, else addresses (threads, or memory inherited). */
struct tri_cmap {
    uint64_t in, out;
    uint64_t in_off, out_off;
    uint64_t in_bytes, out_bytes;
};
_Static_assert(sizeof(struct tri_cmap) <= 64, "fits the slot's inline arguments");

#define TRI_OUTPUT_PIECE 32768 /* bytes of output in one datagram */
#define TRI_OUTPUT_MAX (2 * TRI_OUTPUT_PIECE)
#define TRI_OUT_SPILL 0x4c495053u /* a stream: a result's descriptor, see spill.c */

/* First bytes of a datagram on the output socket. */
struct tri_output_head {
    uint32_t stream;
    int32_t pid;
    uint32_t more; /* 1: the same write goes on in the next datagram of this pid */
};

#endif
