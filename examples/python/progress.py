# SPDX-License-Identifier: BSD-3-Clause
"""Watching a map: a bar by tqdm, a function of one's own, or the results themselves."""
import sys

import trireme as tri


def prime_factors(n):
    factors, d = [], 2
    while d * d <= n:
        while n % d == 0:
            factors.append(d)
            n //= d
        d += 1
    return factors + [n] if n > 1 else factors


def report(done, total):
    """Called in this process, as results arrive."""
    if done == total:
        print(f"{done} of {total}")


numbers = range(10**10, 10**10 + 40)
with tri.Pool() as pool:
    pool.map(prime_factors, numbers, progress=sys.stderr.isatty())
    pool.map(prime_factors, numbers, progress=report)
    for n, factors in zip(numbers, pool.imap(prime_factors, numbers), strict=True):
        if len(factors) == 1:
            print(n, "is prime")
            break
