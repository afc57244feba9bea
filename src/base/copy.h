/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * copy.h - copy what the copying process will not read again.
 *
 * A plain store of a whole line first reads the line it overwrites, so a copy into shared memory
 * moves three bytes for two.  Streaming stores do not, and leave the caches to others: 320 MB in
 * blocks of 8 MB went at 9-10 GB/s instead of 7-8.  Only for blocks that are larger than a cache
 * of their own, since whoever reads them next reads memory.
 */
#ifndef TRI_BASE_COPY_H
#define TRI_BASE_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define TRI_STREAM_FROM ((size_t)1 << 20)

/* As memcpy. */
static inline void tri_copy(void *to, const void *from, size_t n)
{
#ifdef __SSE2__
    uint8_t *d = to;
    const uint8_t *s = from;

    if (n >= TRI_STREAM_FROM) {
        size_t head = -(uintptr_t)d & 63;

        memcpy(d, s, head);
        for (d += head, s += head, n -= head; n >= 64; d += 64, s += 64, n -= 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)s);
            __m128i b = _mm_loadu_si128((const __m128i *)(s + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(s + 32));
            __m128i e = _mm_loadu_si128((const __m128i *)(s + 48));

            _mm_stream_si128((__m128i *)d, a);
            _mm_stream_si128((__m128i *)(d + 16), b);
            _mm_stream_si128((__m128i *)(d + 32), c);
            _mm_stream_si128((__m128i *)(d + 48), e);
        }
        _mm_sfence();
        memcpy(d, s, n);
        return;
    }
#endif
    memcpy(to, from, n);
}

#endif
