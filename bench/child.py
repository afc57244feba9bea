# SPDX-License-Identifier: BSD-3-Clause
"""One figure on one system, in a process of its own: child.py FIGURE SYSTEM WORKERS QUICK OUT.

Writes the numbers, or why there are none, as JSON to OUT.  numpy is imported at the top as in a
user's script, so that spawned workers import it too.
"""
from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import facades
import figures
import systems
from tasks import np  # noqa: F401 - the import is the point


def main() -> None:
    name, system, workers, quick, out = sys.argv[1:]
    figure = next(f for f in (*figures.FIGURES, *facades.FIGURES) if f.name == name)
    answer: dict[str, object]
    try:
        instance = systems.SYSTEMS[system](int(workers))
        assert figure.run is not None
        answer = {"numbers": figure.run(instance, quick == "1")}
    except systems.Unsupported as reason:
        answer = {"unsupported": str(reason)}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300],
                  "traceback": traceback.format_exc()}
    Path(out).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":  # the peers' spawned workers import this file again
    main()
