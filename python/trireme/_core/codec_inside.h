/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec_inside.h - the fast binary form itself, which the writer and the reader must agree on.
 *
 * codec.h says what the form promises; codec_write.c makes it, codec_read.c reads it back.
 *
 * A value is one tag byte and its body; a container is a tag, a count and that many values.
 * Numbers are unaligned and in the machine's order, so every load and store is a memcpy.  Counts
 * and lengths have a short form of one byte, because most tasks are small and live in a slot.
 *
 *     NONE FALSE TRUE                  -
 *     INT8 INT32 INT64                 1, 4, 8 bytes
 *     INT                              u16 size, size bytes of two's complement, little endian
 *     FLOAT COMPLEX                    one or two doubles
 *     ASCII8 BYTES8                    u8 length, bytes
 *     ASCII BYTES STR1 STR2 STR4       u32 length, units of 1, 1, 1, 2, 4 bytes as str keeps them
 *     TUPLE8 LIST8 DICT8               u8 count, values (a dict: key, value, key, value)
 *     TUPLE LIST DICT                  u32 count, values
 *
 * A sequence is a u64 header, n << 8 | form, and what the form says:
 *
 *     SEQ_TAGGED      n values             SEQ_RANGE       int64 start, step
 *     SEQ_INT64       n int64              SEQ_DOUBLE      n doubles
 */
#ifndef TRI_CODEC_INSIDE_H
#define TRI_CODEC_INSIDE_H

#include "codec.h"

#define INLINE static inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

enum tag {
    T_NONE = 0,
    T_FALSE,
    T_TRUE,
    T_INT8,
    T_INT32,
    T_INT64,
    T_INT,
    T_FLOAT,
    T_COMPLEX,
    T_ASCII8,
    T_ASCII,
    T_STR1,
    T_STR2,
    T_STR4,
    T_BYTES8,
    T_BYTES,
    T_TUPLE8,
    T_TUPLE,
    T_LIST8,
    T_LIST,
    T_DICT8,
    T_DICT
};

enum form {
    SEQ_EMPTY = 0, /* a writer's, before its first item; never in a header */
    SEQ_TAGGED,
    SEQ_INT64,
    SEQ_DOUBLE,
    SEQ_RANGE
};

enum {
    HEADER = 8,
    NUMBER_MAX = 9 /* tag and body of the longest INT8, INT32, INT64, FLOAT */
};

/* Whether start + step * (n - 1), and with it all before, has 64 bits. */
static inline bool range_fits(int64_t start, int64_t step, int64_t n)
{
    __extension__ typedef __int128 wide;
    wide last = (wide)start + (wide)step * (n > 0 ? n - 1 : 0);

    return last == (int64_t)last;
}

#endif
