#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_style.py [ROOT] - the house rules that no formatter knows.

* every source file names its licence in its first lines;
* no line of C, Python or shell is longer than 100 columns;
* no tabs (Makefiles excepted), no blanks at the end of a line, one newline at the end of a file;
* no marks of unfinished work: what is left to do belongs in an issue.

Prints one line for each breach and exits 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS = 100
SPDX = "SPDX-License-Identifier: BSD-3-Clause"
CODE = {".c", ".h", ".py", ".pyi", ".sh", ".build", ".toml", ".map", ".js", ".pml"}
TEXT = CODE | {".md", ".txt"}
NAMED = {"Makefile", "run", ".clang-format", ".clang-tidy"}
FOLDERS = (
    ".ci", "bench", "cli", "docs", "examples", "fuzz", "include", "models", "python", "src",
    "tests", "tools", "web",
)
SKIP = {"__pycache__", "out", "corpus", "data"}
# Split so that this file does not breach its own rule.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" "DO", "FIX" "ME", "XX" "X", "HA" "CK")) + r")\b")


def files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_file() and (path.suffix in TEXT or path.name in NAMED):
            yield path
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if SKIP.isdisjoint(path.relative_to(root).parts[:-1]) and path.is_file():
                if path.suffix in TEXT or path.name in NAMED:
                    yield path


def breaches(path: Path) -> Iterator[str]:
    """What is wrong with one file, as "LINE: reason"."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    code = path.suffix in CODE or path.name in NAMED
    if code and text and SPDX not in "\n".join(lines[:3]):
        yield f"1: no line '{SPDX}'"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield f"{len(lines)}: the file must end with one newline"
    for number, line in enumerate(lines, 1):
        if code and len(line) > COLUMNS:
            yield f"{number}: {len(line)} columns, at most {COLUMNS}"
        if "\t" in line and path.name != "Makefile" and code:
            yield f"{number}: a tab"
        if code and line != line.rstrip():
            yield f"{number}: blanks at the end of the line"
        if UNFINISHED.search(line):
            yield f"{number}: a mark of unfinished work"


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    seen = bad = 0
    for path in files(root):
        seen += 1
        for breach in breaches(path):
            print(f"{path.relative_to(root)}:{breach}")
            bad += 1
    if not seen:
        print(f"{root} holds no files: nothing was checked")
    return bool(bad) or not seen


if __name__ == "__main__":
    sys.exit(main())
