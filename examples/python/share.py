# SPDX-License-Identifier: BSD-3-Clause
"""One large array, put into shared memory once and read in place by every task."""
import numpy as np
import trireme as tri


def mean_of(table, column):
    return float(table[:, column].mean())


table = np.random.default_rng(0).random((100_000, 20))
shared = tri.share(table)
with tri.Pool() as pool:
    futures = [pool.submit(mean_of, shared, column) for column in range(20)]
    means = [f.result() for f in futures]
print("same means:", means == [mean_of(table, column) for column in range(20)])
