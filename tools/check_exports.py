#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_exports.py HEADER LIBRARY - the library exports what the header declares, exactly."""

from __future__ import annotations

import re
import subprocess
import sys


def declared(header: str) -> set[str]:
    """The names of all functions marked TRI_API in *header*."""
    with open(header, encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S)
    text = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    return set(re.findall(r"\bTRI_API\b[^;(]*?\b(\w+)\s*\(", text))


def exported(library: str) -> set[str]:
    """The names that *library* defines for others."""
    out = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines() if line}


def main() -> int:
    header, library = sys.argv[1:3]
    want, have = declared(header), exported(library)
    if not want:
        print(f"{header} declares nothing: the pattern in this script is out of date")
        return 1
    for name in sorted(want - have):
        print(f"{name}: declared in the header, missing from the library")
    for name in sorted(have - want):
        print(f"{name}: exported by the library, not declared in the header")
    return want != have


if __name__ == "__main__":
    sys.exit(main())
