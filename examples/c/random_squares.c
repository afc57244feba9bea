/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * random_squares [SEEDS [WORKERS]] - for each seed 0, 1, 2, ...: a random digit, squared.
 *
 * The Mersenne Twister is seeded afresh for each, and digits come by masked rejection, so they are
 * those of numpy.random.seed(s); numpy.random.randint(0, 10).  The pool cuts the items into tasks.
 */
#include <stdio.h>
#include <stdlib.h>
#include <trireme.h>

enum { STATE = 624, SHIFT = 397 };

static int random_square(const void *in, void *out)
{
    uint32_t mt[STATE] = {*(const uint32_t *)in}, digit = 15;

    for (uint32_t i = 1; i < STATE; i++)
        mt[i] = 1812433253u * (mt[i - 1] ^ (mt[i - 1] >> 30)) + i;
    /* 1.6 draws make a digit on average; the first STATE - SHIFT need no second pass. */
    for (int i = 0; digit > 9 && i < STATE - SHIFT; i++) {
        uint32_t y = (mt[i] & 0x80000000u) | (mt[i + 1] & 0x7fffffffu);

        y = mt[i + SHIFT] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        digit = (y ^ (y >> 18)) & 15;
    }
    *(int32_t *)out = (int32_t)(digit * digit);
    return digit > 9;
}

int main(int argc, char **argv)
{
    size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
    uint32_t *seed = calloc(n + 1, sizeof *seed);
    int32_t *square = calloc(n + 1, sizeof *square);
    long long sum = 0;
    tri_pool_config cfg;
    tri_pool *pool;
    int err;

    for (size_t i = 0; i < n; i++)
        seed[i] = (uint32_t)i;
    tri_pool_config_init(&cfg);
    cfg.workers = argc > 2 ? atoi(argv[2]) : 0;
    err = tri_pool_open(&pool, &cfg);
    if (!err) {
        err = tri_map(pool, random_square, seed, sizeof *seed, square, sizeof *square, n, NULL);
        tri_pool_close(pool);
    }
    for (size_t i = 0; i < n; i++)
        sum += square[i];
    printf("%zu seeds, sum of squares %lld: %s\n", n, sum, err ? tri_strerror(err) : "done");
    free(seed);
    free(square);
    return err != 0;
}
