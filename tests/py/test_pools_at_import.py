# SPDX-License-Identifier: BSD-3-Clause
"""Modules that open a pool at their top, and are imported by its workers."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

IMPORTED = {
    "native": """
        import sys
        import trireme as tri
        def square(x):
            return x * x
        with tri.Pool(2, start=sys.argv[1]) as pool:
            values = pool.map(square, range(10))
        """,
    "default": """
        import trireme as tri
        def square(x):
            return x * x
        values = tri.map(square, range(10))
        """,
    "facade": """
        import sys
        import trireme.multiprocessing as mp
        def square(x):
            return x * x
        with mp.get_context(sys.argv[1]).Pool(2) as pool:
            values = pool.map(square, range(10))
        """,
}


@pytest.mark.parametrize("kind", IMPORTED)
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_module_that_opens_a_pool_when_imported_does_not_multiply(
    run_script: Any, tmp_path: Any, start: str, kind: str
) -> None:
    """Its workers import it to find its function, open a pool, whose workers import it ..."""
    (tmp_path / "opener.py").write_text(textwrap.dedent(IMPORTED[kind]))
    (tmp_path / "outer.py").write_text(
        "import opener2\nimport trireme as tri\nsquares = tri.map(opener2.call, [3])\n"
    )
    (tmp_path / "opener2.py").write_text(
        "import math\nimport trireme as tri\nroots = tri.map(math.sqrt, [1.0, 4.0])\n"
        "def call(x):\n    return x * len(roots)\n"
    )
    out, _ = run_script(
        """
        import sys
        import opener2
        import outer
        assert outer.squares == [6] and opener2.roots == [1.0, 2.0]
        try:
            import opener
        except RuntimeError as exc:
            print("refused", "module opener opens a pool while it is imported" in str(exc))
        else:
            print(opener.values)
        """,
        start,
    )
    if start == "fork" and kind != "default":
        assert out.split("\n")[0] == str([x * x for x in range(10)])
    else:
        assert out == "refused True\n"
