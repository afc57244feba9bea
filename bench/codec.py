# SPDX-License-Identifier: BSD-3-Clause
"""What the fast binary form costs, beside pickle: ns per item, to bytes and back.

Each kind is a list of items of one chunk.  The whole chunk is encoded by one call and decoded by
one call, with the codec and with pickle protocol 5, in turns; the best of the turns counts, since
noise only adds.  The figures include making the bytes object and the list, as pickle's do.

    python bench/codec.py [--items 4096] [--turns 41] [--json]

TRI_TEST_CODEC_PATH may name a stand-alone build of the codec to measure instead of the package's.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pickle
import random
import string
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any


def load_codec() -> ModuleType:
    """The extension module that holds the codec's test functions."""
    path = os.environ.get("TRI_TEST_CODEC_PATH")
    if not path:
        return importlib.import_module("trireme._core")
    spec = importlib.util.spec_from_file_location("tricodec", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(n: int) -> dict[str, list[Any]]:
    """The chunks to measure: name and items."""
    rng = random.Random(1)

    def word(low: int, high: int) -> str:
        return "".join(rng.choices(string.ascii_letters, k=rng.randint(low, high)))

    return {
        "int 0..255": [i & 255 for i in range(n)],
        "int 20 bits": [1000 + rng.getrandbits(20) for _ in range(n)],
        "int 62 bits": [rng.getrandbits(62) for _ in range(n)],
        "int 200 bits": [rng.getrandbits(200) for _ in range(n)],
        "float": [rng.random() for _ in range(n)],
        "None": [None] * n,
        "bool": [rng.random() < 0.5 for _ in range(n)],
        "str 2-12": [word(2, 12) for _ in range(n)],
        "str 100": [word(100, 100) for _ in range(n)],
        "str 8 greek": ["\u03b1\u03b2\u03b3" + str(10000 + i) for i in range(n)],
        "bytes 16": [rng.randbytes(16) for _ in range(n)],
        "(int, float)": [(1000 + i, rng.random()) for i in range(n)],
        "(int, int, str)": [(i, 2 * i, word(4, 8)) for i in range(n)],
        "[8 floats]": [[rng.random() for _ in range(8)] for _ in range(n)],
        "{4 str: number}": [
            {"name": word(4, 8), "x": i, "y": rng.random(), "ok": True} for i in range(n)
        ],
    }


def best_ns(call: Callable[[], Any], n: int) -> float:
    """Time of one call, in ns per item."""
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / n


def measure(codec: ModuleType, items: list[Any], turns: int) -> dict[str, float]:
    """ns per item of the four operations, and bytes per item of both forms."""
    n = len(items)
    ours = codec._encode_seq(items)
    assert ours is not None, "a kind of this bench is not simple"
    theirs = pickle.dumps(items, 5)
    assert codec._decode_seq(ours, n) == pickle.loads(theirs) == items
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: codec._encode_seq(items),
        "decode": lambda: codec._decode_seq(ours, n),
        "dumps": lambda: pickle.dumps(items, 5),
        "loads": lambda: pickle.loads(theirs),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            best[name] = min(best[name], best_ns(call, n))
    return best | {"bytes": len(ours) / n, "pickle_bytes": len(theirs) / n}


def main() -> int:
    """Measure every kind and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=4096, help="items of a chunk")
    parser.add_argument("--turns", type=int, default=41, help="repetitions, the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    codec = load_codec()
    rows = {k: measure(codec, v, options.turns) for k, v in kinds(options.items).items()}
    if options.json:
        json.dump({"python": sys.version, "items": options.items, "kinds": rows}, sys.stdout)
        print()
        return 0
    print(f"Python {sys.version.split()[0]}, chunks of {options.items}, ns per item")
    print("| kind | encode | dumps | decode | loads | bytes | pickled bytes |")
    print("|---|---|---|---|---|---|---|")
    for kind, row in rows.items():
        cells = " | ".join(
            f"{row[c]:.1f}"
            for c in ("encode", "dumps", "decode", "loads", "bytes", "pickle_bytes")
        )
        print(f"| {kind} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
