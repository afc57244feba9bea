/* SPDX-License-Identifier: BSD-3-Clause */
/* input.h - how a fuzzer's bytes become small programs: one byte, one number, one requirement. */
#ifndef TRI_FUZZ_INPUT_H
#define TRI_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Always on, whatever NDEBUG says. */
static inline void require(bool holds)
{
    if (!holds)
        abort();
}

struct input {
    const uint8_t *p, *end;
};

/* At the end, zeros. */
static inline uint8_t byte(struct input *in)
{
    return in->p < in->end ? *in->p++ : 0;
}

static inline uint64_t number(struct input *in)
{
    uint64_t n = 0;
    uint8_t kind = byte(in);

    /* Few bytes for a value of any size near a power of two, or eight raw ones. */
    if (kind < 64)
        return (uint64_t)kind << (byte(in) & 63);
    if (kind < 128)
        return (1ull << (kind & 63)) - 1 + (byte(in) & 3);
    if (kind < 192)
        return byte(in);
    for (int i = 0; i < 8; i++)
        n = n << 8 | byte(in);
    return n;
}

#endif
