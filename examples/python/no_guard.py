# SPDX-License-Identifier: BSD-3-Clause
"""As in a notebook: no guard around the main program, and functions made on the spot.

Functions of the script itself, lambdas and closures travel by value, once per pool.  Workers never
run this file again, whatever the start method.
"""
import trireme as tri

print("this line is printed once")

for start in ("forkserver", "fork", "spawn"):
    offset = {"forkserver": 100, "fork": 200, "spawn": 300}[start]

    def shifted(x):
        return x + offset  # noqa: B023 - the value of this round, which is when it travels

    with tri.Pool(2, start=start) as pool:
        print(start, pool.map(shifted, range(5)), pool.map(lambda x: x * x, range(5)))
