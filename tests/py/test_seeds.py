# SPDX-License-Identifier: BSD-3-Clause
"""Cells of tutorials, as they are, in a Jupyter kernel and as scripts, with the doors installed.

The documents lie beside the checkout, in shared/seeds, and nothing of them is in here: cells are
found in their text at run time, and so is everything that is expected of them.  Each document's
cells are run once by plain Python with the originals, as a script and with the start method fork,
the only one with which they work without a guard.  Then, with Trireme's doors and each start
method, as a script and in a kernel, every cell must print the same.

What is the same: lines, in any order within a cell, because workers print when they get to it.
Numbers that are times or process ids are taken out, random numbers get a seed.  A cell that raises
must raise the same class.  What goes to stderr, progress bars, is not compared.

What is changed at run time is in SMALLER: sizes and time limits only, so that it takes seconds.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from conftest import script_env

SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"
METHODS = ("fork", "forkserver", "spawn")
LIMIT = 100

pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(
    not SEEDS.is_dir(), reason="the documents are not here: there is no ../shared/seeds"
)
DOCUMENTS = sorted(p.name for p in SEEDS.glob("*.txt")) if SEEDS.is_dir() else []

OURS = re.compile(r"\b(multiprocessing|multiprocess|concurrent\.futures)\b")
# Libraries that have doors, or none, of their own.
OTHERS = re.compile(
    r"\b(dask|ipyparallel|joblib|ray|mpi4py|MPI|numba|cuda|client|cluster|dview|ipp|Parallel"
    r"|delayed|memory_profiler|ipython|pandas|sklearn)\b"
)

# (what, by what): sizes that take minutes, and limits that a busy machine could meet.
SMALLER = [
    (r"\b[1-9]0_000_000\b", "40_000"),
    (r"\b[1-9]0{6,}\b", "2000"),
    (r"\b[1-9]0{4}\b", "200"),
    (r"\b\d{15,}\b", "1000003"),  # a prime, in place of a larger one
    (r"\b1e10\b", "1e3"),
    (r"\b1e12\b", "1e5"),
    (r"range\(1, ?24\)", "range(1, 4)"),
    (r"(max_workers|n_jobs)=1\d\b", r"\1=3"),
    (r"sleep\(0?\.\d+\)", "sleep(0.001)"),
    (r"timeout=1\b", "timeout=60"),
    (r"%timeit\b( -[nr] ?\d+)*", "%timeit -n 1 -r 1"),
]

# Modules that tutorials import and do not show.  Those that they do show are made of their cells.
MODULES = {
    "tests": """
        import multiprocessing
        from multiprocessing.pool import ThreadPool

        def test_map_pool(jobs, pool):
            with multiprocessing.Pool(pool) as workers:
                print("Pool map", workers.map(sum, jobs)[-1])

        def test_map_threadpool(jobs, pool):
            with ThreadPool(pool) as workers:
                print("ThreadPool map", workers.map(sum, jobs)[-1])

        def row(args):
            mine, others = args
            return sum(mine == other for other in others)

        def test_loop(mine, others):
            return [row((m, others)) for m in mine]

        def test_loop_pool(mine, others, pool):
            with multiprocessing.Pool(pool) as workers:
                return workers.map(row, [(m, others) for m in mine])
    """,
    "dist_cities": """
        def read_cities():
            return [("city %d" % i, i * 7.0 % 90, i * 13.0 % 180) for i in range(12)]

        def create_coord_pairs(cities):
            return [(a[1], b[1], a[2], b[2]) for a in cities for b in cities if a < b]
    """,
}


# ---------------------------------------------------------------------------------------------
# From a document to cells
# ---------------------------------------------------------------------------------------------


def as_python(cell: str) -> str:
    """A cell as a script has it: magics are what they do."""
    if match := re.match(r"%%(?:write)?file (\S+)\n", cell):
        return f"with open({match[1]!r}, 'w') as _file:\n    _file.write({cell[match.end() :]!r})\n"
    return re.sub(r"^(\s*)%timeit( -[nr] \d+)* ", r"\1", cell, flags=re.M)


def parses(text: str) -> bool:
    """Whether it is Python; of a cell that writes a file, what it writes."""
    try:
        ast.parse(re.sub(r"^%%(?:write)?file \S+\n", "", text))
    except SyntaxError:
        pass
    else:
        return not re.fullmatch(r"\w+", text)  # a magic word of the shell's
    if text.startswith("%%"):
        return False
    try:
        ast.parse(as_python(text))
    except SyntaxError:
        return False
    return True


def is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        return False
    return True


def cells_of(document: str) -> Iterator[str]:
    """The code after each prompt: as much of what follows as is Python; prose is not."""
    text = (SEEDS / document).read_text(encoding="utf-8")
    for part in re.split(r"^In \[[^]]*\]:\n", text, flags=re.M)[1:]:
        paragraphs = re.split(r"(\n\s*\n)", part.strip("\n"))
        best = ""
        for end in range(1, len(paragraphs) + 1, 2):
            before = "".join(paragraphs[: end - 1]).strip("\n")
            if is_literal(paragraphs[end - 1]) and best == before:
                break  # what the cell printed
            candidate = "".join(paragraphs[:end]).strip("\n")
            if parses(candidate) and not re.search(r"^\s*[#>-]* ?\*\*", paragraphs[end - 1]):
                best = candidate
        if best:
            yield best


def defined(tree: ast.Module) -> dict[str, str]:
    return {n.name: ast.unparse(n) for n in tree.body if isinstance(n, ast.FunctionDef)}


def smaller(cell: str) -> str:
    for pattern, by in SMALLER:
        cell = re.sub(pattern, by, cell)
    return cell


@lru_cache
def program(document: str) -> tuple[list[str], dict[str, str]]:
    """The cells to run, and the modules they import."""
    foreign = re.compile(rf"^(import|from) +({OTHERS.pattern}).*\n", re.M)
    every = [foreign.sub("", smaller(cell) + "\n").strip("\n") for cell in cells_of(document)]
    cells = [c for c in every if not OTHERS.search(re.sub(r"#.*|'''.*?'''", "", c, flags=re.S))]
    functions: dict[str, str] = {}
    for cell in every:
        for name, source in defined(ast.parse(as_python(cell))).items():
            functions.setdefault(name, source)
    modules = {name: textwrap.dedent(text) for name, text in MODULES.items()}
    text = "\n".join(cells)
    for name, function in re.findall(r"\b(\w+)\.(\w+)\b", text):
        if re.search(rf"^import {name}\b", text, re.M) and function in functions:
            modules[name] = functions[function]
    # A notebook's cells may be run in another order than they stand in: what is used before its
    # definition is defined at the beginning.
    seen: set[str] = set()
    early = []
    for cell in cells:
        names = {n.id for n in ast.walk(ast.parse(as_python(cell))) if isinstance(n, ast.Name)}
        seen |= set(defined(ast.parse(as_python(cell))))
        early += [functions[n] for n in sorted(names & set(functions)) if n not in seen]
        seen |= names
    first = "import os, time, math\nimport numpy as np\nnp.random.seed(1)\n"
    return [first + "\n".join(early), *cells], modules


def with_doors(document: str) -> list[str]:
    """Documents in which there is something for us."""
    cells, modules = program(document)
    text = "\n".join(cells[1:])
    used = [m for name, m in modules.items() if re.search(rf"^(import|from) {name}\b", text, re.M)]
    return [document] if OURS.search("\n".join([text, *used])) else []


USED = [d for document in DOCUMENTS for d in with_doors(document)]


# ---------------------------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Cells say `python`: it is this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Python's own buffers: a script's lines are made whole in run_as_script().
    env = script_env(PATH=path, MPLBACKEND="agg", PYTHONUNBUFFERED="")
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(folder)])
    return env


def prepare(document: str, folder: Path) -> list[str]:
    cells, modules = program(document)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return cells


def run_as_script(cells: list[str], folder: Path, first: str) -> list[list[str]]:
    """What each cell prints; the script has no guard."""
    # By the line, as at a terminal: by the block, the originals lose what workers print, and
    # without a buffer the ends of lines come apart from them.
    lines = ["import sys as _sys", "_sys.stdout.reconfigure(line_buffering=True)", first]
    for number, cell in enumerate(cells):
        body = textwrap.indent(as_python(cell), "    ")
        lines.append(f"print('\\n@@{number}')")
        if re.search(r'"""|\'\'\'', cell):
            # Indenting would change the text: such a cell is run as one.
            body = f"    exec(compile({as_python(cell)!r}, '<cell>', 'exec'), globals())"
        lines.append(f"try:\n{body}\n    pass\nexcept Exception as _exc:")
        lines.append("    print('raises', type(_exc).__name__)")
    (folder / "script.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"\n@@\d+\n", done.stdout)[1:]
    assert len(parts) == len(cells)
    return [same(part) for part in parts]


def run_in_kernel(cells: list[str], folder: Path, first: str) -> list[list[str]]:
    """What is seen under each cell."""
    import nbformat
    from nbclient import NotebookClient

    sources = [first, *cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    client = NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment(folder))
    seen = []
    for cell in notebook.cells[1:]:
        text = ""
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                text += output.text
            elif output.output_type == "error":
                text += f"\nraises {output.ename}\n"
        seen.append(same(text))
    return seen


def same(text: str) -> list[str]:
    """The lines of a cell, without what differs between two runs of the same program."""
    kept = []
    for line in text.splitlines():
        if not line.strip() or re.match(r"(Writing|Overwriting) ", line) or "per loop" in line:
            continue
        line = re.sub(r"(process(?: id:)?) \d+", r"\1 PID", line)
        if re.search(r"\b(time|sec)", line, re.I):
            line = re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "TIME", line)
        kept.append(line.rstrip())
    return sorted(kept)


def plain(cells: list[str]) -> list[str]:
    """The cells for Python without us: multiprocess need not be installed."""
    return [re.sub(r"\bmultiprocess\b(?!ing)", "multiprocessing", cell) for cell in cells]


@lru_cache
def expected(document: str, folder: Path) -> str:
    first = "import multiprocessing; multiprocessing.set_start_method('fork')"
    return json.dumps(run_as_script(plain(prepare(document, folder)), folder, first))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """reference(document): what the originals print, cell by cell; run once."""
    folders: dict[str, Path] = {}

    def of(document: str) -> list[list[str]]:
        if document not in folders:
            folders[document] = tmp_path_factory.mktemp("plain")
        return json.loads(expected(document, folders[document]))  # type: ignore[no-any-return]

    return of


def installed(method: str) -> str:
    return (
        "import trireme; trireme.install()\n"
        f"import multiprocessing; multiprocessing.set_start_method({method!r}, force=True)"
    )


def needs_fork(cell: str) -> bool:
    """Whether it starts a Process: that is the original's, whose child imports the script anew."""
    return re.search(r"\bProcess\(", cell) is not None


def letters(lines: list[str]) -> list[str]:
    return sorted(re.sub(r"[\d\s]|PID", "", "".join(lines)))


def compare(
    document: str, method: str, got: list[list[str]], wanted: list[list[str]], cells: list[str]
) -> None:
    for cell, seen, said in zip(cells, got, wanted, strict=True):
        assert seen == said, f"{document}, {method}:\n{cell}"


def compare_in_kernel(
    document: str, method: str, got: list[list[str]], wanted: list[list[str]], cells: list[str]
) -> None:
    """As compare(); but in a kernel a Process sends the end of a line apart from the line.

    So of what those print, the letters are compared.
    """
    for i, cell in enumerate(cells):
        if needs_fork(cell):
            assert letters(got[i]) == letters(wanted[i]), f"{document}, {method}:\n{cell}"
            got[i] = wanted[i]
    compare(document, method, got, wanted, cells)


def chosen(document: str, method: str, wanted: list[list[str]], cells: list[str]) -> Any:
    """The cells that work with this start method, and what is expected of them."""
    which = [i for i, cell in enumerate(cells) if method == "fork" or not needs_fork(cell)]
    return [cells[i] for i in which], [wanted[i] for i in which]


def test_the_documents_have_cells_for_us() -> None:
    assert len(DOCUMENTS) == 5 and len(USED) == 5
    text = "\n".join(cell for d in USED for cell in program(d)[0])
    for word in ("import multiprocess as", "ProcessPoolExecutor(", "ThreadPoolExecutor(",
                 "starmap_async", "map_async", "apply_async", "Process(", "Queue()"):  # fmt: skip
        assert word in text, word
    assert text.count("Pool(") > 15


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("document", USED)
def test_as_scripts(document: str, method: str, reference: Any, tmp_path: Path) -> None:
    cells, wanted = chosen(document, method, reference(document), prepare(document, tmp_path))
    compare(document, method, run_as_script(cells, tmp_path, installed(method)), wanted, cells)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("document", USED)
def test_in_a_kernel(document: str, method: str, reference: Any, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells, wanted = chosen(document, method, reference(document), prepare(document, tmp_path))
    got = run_in_kernel(cells, tmp_path, installed(method))
    compare_in_kernel(document, method, got, wanted, cells)


@pytest.mark.parametrize("method", METHODS)
def test_what_tutorials_say_is_impossible_in_a_notebook(method: str, tmp_path: Path) -> None:
    """An executor with a function of the notebook, its results, and its workers' prints."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "from concurrent.futures import ProcessPoolExecutor\nimport math, time",
        "def root(x):\n    print('got', x)\n    return math.isqrt(x)",
        "def main():\n    with ProcessPoolExecutor(2) as executor:\n"
        "        results = executor.map(root, range(5))\n    print(list(results))\nmain()",
        "print(list(ProcessPoolExecutor(2).map(lambda x: -x, range(3), timeout=60)))",
        "import multiprocess as mp\nwith mp.Pool(2) as pool:\n    print(pool.map(root, [9]))",
    ]
    seen = run_in_kernel(cells, tmp_path, installed(method))
    assert seen[2] == ["[0, 1, 1, 1, 2]", *[f"got {i}" for i in range(5)]]
    assert seen[3] == ["[0, -1, -2]"]
    assert seen[4] == ["[3]", "got 9"]
