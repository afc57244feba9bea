# SPDX-License-Identifier: BSD-3-Clause
"""In a Jupyter kernel: cells need no guard, prints and bars appear in their cell."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from conftest import script_env  # noqa: E402


def run_cells(*sources: str) -> list[list[Any]]:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    client.execute(env=script_env())
    return [cell.outputs for cell in notebook.cells]


def text(outputs: list[Any], stream: str = "stdout") -> str:
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == stream)


def value(outputs: list[Any]) -> str:
    return next(o.data["text/plain"] for o in outputs if o.output_type == "execute_result")


@pytest.fixture(autouse=True)
def _needs_a_kernel() -> None:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        pytest.skip("no python3 kernel is installed")


def test_cells_print_and_redefine_as_in_one_process() -> None:
    cells = run_cells(
        "import trireme as tri\npool = tri.Pool(2)",
        "def f(x):\n    print('f got', x)\n    return x * x",
        "pool.map(f, range(3), chunk=1)",
        "def f(x):\n    return -x",
        "pool.map(f, range(3))",
        "pool.submit(print, 'from a future').result()",
        "import sys\npool.submit(lambda: print('to stderr', file=sys.stderr)).result()",
        "class P:\n    pass\nisinstance(pool.submit(lambda p: p, P()).result(), P)",
        "await pool.submit(f, 21)",
        "pool.close(); pool.join()",
    )
    assert value(cells[2]) == "[0, 1, 4]"
    assert sorted(text(cells[2]).strip().split("\n")) == ["f got 0", "f got 1", "f got 2"]
    assert value(cells[4]) == "[0, -1, -2]"
    assert text(cells[5]) == "from a future\n"
    assert text(cells[6], "stderr") == "to stderr\n"
    assert value(cells[7]) == "True"
    assert value(cells[8]) == "-21"


def test_a_failure_shows_the_lines_of_the_cell() -> None:
    import nbclient.exceptions

    with pytest.raises(nbclient.exceptions.CellExecutionError) as info:
        run_cells(
            "import trireme as tri",
            "def broken(x):\n    y = x - x\n    return 1 / y",
            "tri.map(broken, [1])",
        )
    assert "ZeroDivisionError" in str(info.value)
    assert "return 1 / y" in str(info.value)


def test_a_bar_shows_in_its_cell() -> None:
    cells = run_cells(
        "import trireme as tri",
        "tri.map(abs, range(200), progress=True)[-1]",
    )
    shown = text(cells[1], "stderr") + "".join(str(o.get("data", "")) for o in cells[1])
    assert "200" in shown


def test_modules_that_autoreload_brings_up_to_date_are_so_in_workers(tmp_path: Any) -> None:
    low, high = tmp_path / "cell_low.py", tmp_path / "cell_high.py"
    edit = "def edit(path, text, n=[0]):\n    path.write_text(text)\n    n[0] += 10\n"
    edit += "    os.utime(path, (10**9 + n[0], 10**9 + n[0]))\n"
    first = f"{low.name[:-3]}"
    cells = run_cells(
        f"import os, sys, pathlib\nsys.path.insert(0, {str(tmp_path)!r})\n{edit}"
        f"low, high = pathlib.Path({str(low)!r}), pathlib.Path({str(high)!r})\n"
        "edit(low, 'def number():\\n    return 1\\n')\n"
        f"edit(high, 'from {first} import number\\ndef f(x):\\n    return x + number()\\n')",
        "%load_ext autoreload\n%autoreload 2",
        # One worker, which has imported both by each edit.
        "import trireme as tri, cell_high\npool = tri.Pool(1)",
        "pool.map(cell_high.f, range(4), chunk=1)",
        # What another module has taken: patched in place.
        "edit(low, 'def number():\\n    return 10\\n')",
        "cell_high.f(0), pool.map(cell_high.f, range(4), chunk=1)",
        # What only a reload brings.
        "edit(low, 'n = 100\\ndef number(m=n):\\n    return m\\n')",
        "cell_high.f(0), pool.map(lambda x: cell_high.f(x), range(4), chunk=1)",
        "edit(low, 'def number(:\\n')",
        "cell_high.f(0), pool.map(cell_high.f, range(4), chunk=1)",
        "%autoreload 0",
        "edit(low, 'def number():\\n    return 7\\n')",
        "cell_high.f(0), pool.map(cell_high.f, range(4), chunk=1)",
    )
    assert value(cells[3]) == "[1, 2, 3, 4]"
    assert value(cells[5]) == "(10, [10, 11, 12, 13])"
    for later in 7, 9, 12:
        assert value(cells[later]) == "(100, [100, 101, 102, 103])"
