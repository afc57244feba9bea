#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_layers.py [ROOT] - a lower layer never includes a higher one.

Order: base < shm < pool < {graph, comm} < metrics < engine.  graph and comm are siblings and do not
know each other.  The core may include trireme.h, whose implementation it is.  The command line
includes trireme.h and its own headers only; the Python extension includes pool and below, and its
own headers.  Prints one line for each include that breaks this and exits 1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

RANK = {"base": 0, "shm": 1, "pool": 2, "graph": 3, "comm": 3, "metrics": 4, "engine": 5}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def includes(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, what stands between the quotes) for each quoted include of *path*."""
    text = path.read_text(encoding="utf-8")
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start(1)) + 1, match.group(1)


def sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".c", ".h"):
            yield path


def layer_of(target: str, src: Path, path: Path) -> str | None:
    """The layer that an include reaches, None for what lies in no layer (trireme.h, its own)."""
    first = target.split("/", 1)[0]
    if "/" in target and first in RANK:
        return first
    beside = (path.parent / target).resolve()
    if beside.is_relative_to(src.resolve()) and ("/" not in target or ".." in target):
        return beside.relative_to(src.resolve()).parts[0]
    return None


def violations(root: Path) -> Iterator[str]:
    src = root / "src"
    for path in sources(src):
        inside = path.relative_to(src).parts[0]
        where = path.relative_to(root)
        if inside not in RANK:
            yield f"{where}: {inside} is not a layer"
            continue
        for line, target in includes(path):
            if target == "trireme.h":
                continue
            reached = layer_of(target, src, path)
            if reached is None or reached not in RANK:
                yield f'{where}:{line}: "{target}" lies in no layer'
            elif reached != inside and RANK[reached] >= RANK[inside]:
                yield f'{where}:{line}: {inside} must not include {reached} ("{target}")'

    for path in sources(root / "cli"):
        for line, target in includes(path):
            if target != "trireme.h" and not (path.parent / target).exists():
                yield (
                    f"{path.relative_to(root)}:{line}: the command line talks to trireme.h only "
                    f'("{target}")'
                )

    for path in sources(root / "python"):
        for line, target in includes(path):
            reached = layer_of(target, src, path)
            if reached is not None and RANK.get(reached, 99) > RANK["pool"]:
                yield (
                    f"{path.relative_to(root)}:{line}: the extension includes pool and below "
                    f'("{target}")'
                )


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = list(violations(root))
    for line in found:
        print(line)
    if not any(sources(root / "src")):
        print(f"{root}/src holds no C files: nothing was checked")
        return 1
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
