# SPDX-License-Identifier: BSD-3-Clause
"""Is a number prime?  One long loop becomes sub-ranges; starmap hands each worker three arguments.

    python prime_check.py [N]
"""
import math
import sys

import trireme as tri


def no_divisor(n, first, last):
    """True when no odd number from *first* (odd) to *last* divides *n*."""
    return all(n % d for d in range(first, last + 1, 2))


n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000_016_531
root = math.isqrt(n)
step = root // 64 // 2 * 2 + 2
with tri.Pool() as pool:
    parts = [(n, a, min(a + step - 2, root)) for a in range(3, root + 1, step)]
    prime = n == 2 or n > 2 and n % 2 == 1 and all(pool.starmap(no_divisor, parts))
print(n, "is prime" if prime else "is not prime")
