# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that go wrong: one that never ends, one whose worker is killed, one that fails at first.

Each costs itself and nothing else: the rest of the pool's work arrives.
"""
import os
import signal
import tempfile

import trireme as tri


def endless():
    while True:
        pass


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_once(mark):
    """Dies in the first try, which leaves a file behind; succeeds in the next."""
    if not os.path.exists(mark):
        open(mark, "x").close()
        killed()
    return "done at the second try"


with tri.Pool(2) as pool, tempfile.TemporaryDirectory() as folder:
    late = pool.submit(endless, timeout=0.5)
    lost = pool.submit(killed)
    again = pool.submit(killed_once, os.path.join(folder, "mark"), retries=1)
    try:
        late.result()
    except tri.TaskTimeout:
        print("stopped after its time limit")
    try:
        lost.result()
    except tri.WorkerLost as error:
        print("lost:", error)
    print(again.result())
    print("and the pool works:", pool.map(abs, [-1, -2, -3]))
