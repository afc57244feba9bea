# SPDX-License-Identifier: BSD-3-Clause
"""One figure on one system, in a process of its own: child.py FIGURE SYSTEM WORKERS QUICK OUT.

Writes the numbers, or why there are none, as JSON to OUT.  numpy is imported at the top as in a
user's script, so that spawned workers import it too; what only the measuring needs is imported
later, if at all: see starts.py.
"""
from __future__ import annotations

import sys

import starts
import systems
from tasks import np  # noqa: F401 - the import is the point


def main() -> None:
    name, system, workers, quick, out = sys.argv[1:]
    answer: dict[str, object]
    try:
        run = starts.RUNS.get(name)
        if run is None:
            import facades
            import figures

            run = next(f for f in (*figures.FIGURES, *facades.FIGURES) if f.name == name).run
            assert run is not None
        instance = systems.SYSTEMS[system](int(workers))
        answer = {"numbers": run(instance, quick == "1")}
    except systems.Unsupported as reason:
        answer = {"unsupported": str(reason)}
    except BaseException as error:
        import traceback

        answer = {"error": f"{type(error).__name__}: {error}"[:300],
                  "traceback": traceback.format_exc()}
    import json

    with open(out, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":  # the peers' spawned workers import this file again
    main()
