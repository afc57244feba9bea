/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec_buf.c - the buffer that values are written into; see codec.h for what it promises.
 *
 * It grows by half, so that writing n bytes copies a few times n at most.  Whoever writes in line
 * looks for room himself (room() in codec_write.c) and comes here only when there is none.
 */
#include "codec.h"

#include <stdlib.h>
#include <string.h>

void tri_buf_init(struct tri_buf *b, void *fixed, size_t fixed_cap)
{
    b->p = b->fixed = fixed;
    b->cap = b->fixed_cap = fixed_cap;
    b->len = 0;
}

void tri_buf_free(struct tri_buf *b)
{
    if (b->p != b->fixed)
        free(b->p);
    tri_buf_init(b, b->fixed, b->fixed_cap);
}

__attribute__((noinline)) int tri_buf_reserve(struct tri_buf *b, size_t more)
{
    size_t need, cap;
    uint8_t *p;

    if (b->cap - b->len >= more)
        return 0;
    need = b->len + more;
    if (need < more || need > PY_SSIZE_T_MAX) {
        PyErr_NoMemory();
        return -1;
    }
    cap = b->cap < 256 ? 256 : b->cap;
    while (cap < need)
        cap += cap / 2;
    if (b->p != b->fixed) {
        p = realloc(b->p, cap);
    } else {
        p = malloc(cap);
        if (p && b->len)
            memcpy(p, b->p, b->len);
    }
    if (!p) {
        PyErr_NoMemory();
        return -1;
    }
    b->p = p;
    b->cap = cap;
    return 0;
}
