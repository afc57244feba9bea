/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * prime_check [N [WORKERS]] - is N prime?  By trial division, so that there is work to share.
 *
 * The odd divisors up to the root of N are cut into equal ranges, one item of a map each.  A range
 * answers with the first divisor it finds, or 0.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <trireme.h>

#define RANGES 256

struct range {
    uint64_t n, first, last;
};

static int divisor_in(const void *in, void *out)
{
    const struct range *r = in;
    uint64_t d = r->first;

    while (d <= r->last && r->n % d != 0)
        d += 2;
    *(uint64_t *)out = d <= r->last ? d : 0;
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : UINT64_C(489133282872437279);
    uint64_t root = (uint64_t)sqrtl((long double)n), step = root / RANGES / 2 * 2 + 2;
    uint64_t found[RANGES], divisor = n > 2 && n % 2 == 0 ? 2 : 0;
    struct range in[RANGES];
    tri_pool_config cfg;
    tri_pool *pool;
    int err;

    for (uint64_t i = 0, d = 3; i < RANGES; i++, d += step)
        in[i] = (struct range){n, d, d + step - 2 < root ? d + step - 2 : root};
    tri_pool_config_init(&cfg);
    cfg.workers = argc > 2 ? atoi(argv[2]) : 0;
    err = tri_pool_open(&pool, &cfg);
    if (!err) {
        err = tri_map(pool, divisor_in, in, sizeof in[0], found, sizeof found[0], RANGES, NULL);
        tri_pool_close(pool);
    }
    if (err) {
        fprintf(stderr, "prime_check: %s\n", tri_strerror(err));
        return 1;
    }
    for (int i = 0; i < RANGES && divisor == 0; i++)
        divisor = found[i];
    printf("%" PRIu64 " is %s", n, n < 2 || divisor ? "not prime" : "prime");
    printf(divisor ? ": %" PRIu64 " divides it\n" : "\n", divisor);
    return 0;
}
