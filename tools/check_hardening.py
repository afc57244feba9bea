#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_hardening.py FILE... - the built files carry the protections that the build asks for.

Read from the files themselves, because a flag that a compiler silently ignores protects nobody:
position independence, full RELRO (read-only relocations, all bound at start), no executable stack,
stack protector.
"""

from __future__ import annotations

import subprocess
import sys


def readelf(option: str, path: str) -> str:
    return subprocess.run(
        ["readelf", "-W", option, path], check=True, capture_output=True, text=True
    ).stdout


def weaknesses(path: str) -> list[str]:
    """What *path* lacks, one phrase each."""
    header, segments = readelf("-h", path), readelf("-l", path)
    dynamic, symbols = readelf("-d", path), readelf("--dyn-syms", path)
    stack = [line for line in segments.splitlines() if "GNU_STACK" in line]
    found = {
        "not position independent": "DYN" in header,
        "no RELRO": "GNU_RELRO" in segments,
        "relocations are bound late": "BIND_NOW" in dynamic or "NOW" in dynamic,
        "the stack is executable": bool(stack) and "RWE" not in stack[0],
        "no stack protector": "__stack_chk_fail" in symbols,
        "text relocations": "TEXTREL" not in dynamic,
    }
    return [what for what, good in found.items() if not good]


def main() -> int:
    bad = 0
    for path in sys.argv[1:]:
        for what in weaknesses(path):
            print(f"{path}: {what}")
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
