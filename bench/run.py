# SPDX-License-Identifier: BSD-3-Clause
"""Trireme and its peers, side by side in one run.

    python bench/run.py [--only FIGURE] [--rounds N] [--quick] [--write-docs]

The peers are installed into an environment of their own (.venv-bench beside this folder), where the
Trireme of the calling environment is linked in.  Every measurement is a fresh process.  All systems
are measured round by round, one after the other, so that what disturbs the machine disturbs them
alike; what is reported are medians over the rounds, and the verdicts compare medians of one run.
Before each measurement a fixed loop and the CPU time of others are recorded, so that a run on a
busy machine shows itself.  figures.py compares with other libraries, facades.py the facades with
the originals; `--only facades` means all of the latter.  Results: bench/out/results.json and
results.md; --write-docs also renews the tables of docs/performance.md, each of the two sections
of which something was measured.
"""
from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ("numpy", "mpire", "pebble", "joblib", "ray", "psutil", "faster_fifo")
SUPPORT = ("cloudpickle", "tqdm")       # what Trireme itself asks for
LIMIT_S = 180                           # a measurement that takes longer is stopped


# ------------------------------------------------------------------ the environment


def environment(venv: Path) -> tuple[Path, dict[str, str]]:
    """The interpreter with all peers, and what could not be installed, by name."""
    python = venv / "bin" / "python"
    if not python.exists():
        print(f"making {venv}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    missing = {}
    for name in (*SUPPORT, *PEERS):
        if subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode:
            print(f"installing {name}", file=sys.stderr)
            pip = subprocess.run([python, "-m", "pip", "install", "-q", "--only-binary=:all:",
                                  "--disable-pip-version-check", name], capture_output=True,
                                 text=True)
            if pip.returncode:
                lines = pip.stderr.strip().splitlines() or ["pip failed"]
                missing[name] = f"not installable here: {lines[-1][:200]}"
    link_trireme(python)
    return python, missing


def link_trireme(python: Path) -> None:
    """Let the environment of the peers import the Trireme that the caller imports."""
    import trireme

    package = Path(trireme.__file__).resolve().parent
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          capture_output=True, text=True, check=True).stdout.strip()
    link = Path(site) / "trireme"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(package)


def versions(python: Path) -> dict[str, str]:
    """What is measured."""
    code = ("import importlib.metadata as m, json\n"
            "out = {}\n"
            f"for name in {PEERS!r}:\n"
            "    try: out[name] = m.version(name)\n"
            "    except m.PackageNotFoundError: pass\n"
            "import trireme\n"
            "out['trireme'] = getattr(trireme, '__version__', '?')\n"
            "print(json.dumps(out))")
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True,
                                     check=True).stdout)


def find_program(name: str) -> Path | None:
    """bench/c/NAME.c as built by Meson, or by hand in TRIREME_BENCH_PROGRAMS."""
    folders = [Path(f) for f in [os.environ.get("TRIREME_BENCH_PROGRAMS")] if f]
    for folder in [*folders, ROOT / "build" / "bench"]:
        if (folder / f"bench_{name}").is_file():
            return folder / f"bench_{name}"
    return None


# ------------------------------------------------------------------ the machine


def cpu_times() -> tuple[float, float]:
    """(busy, all) CPU time of the machine so far, in seconds."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - fields[3] - fields[4]) / tick, sum(fields) / tick


class Noise:
    """What the machine did besides: sampled before every measurement."""

    def __init__(self) -> None:
        self.foreign: list[float] = []
        self.loops: list[float] = []

    def settle(self) -> None:
        """Wait, at most 3 s, for others to leave the CPUs; then record how it looks."""
        deadline = time.monotonic() + 3
        while True:
            busy, total = cpu_times()
            time.sleep(0.1)
            busy, total = (b - a for a, b in zip((busy, total), cpu_times(), strict=True))
            share = busy / total if total else 0.0
            if share < 0.1 or time.monotonic() > deadline:
                break
        self.foreign.append(share)
        start = time.perf_counter()
        sum(i & 3 for i in range(600_000))
        self.loops.append(time.perf_counter() - start)

    def summary(self) -> dict[str, float]:
        loops = sorted(self.loops)
        return {"foreign_cpu_mean": statistics.mean(self.foreign),
                "foreign_cpu_worst": max(self.foreign), "loop_median_s": loops[len(loops) // 2],
                "loop_slowest_over_fastest": loops[-1] / loops[0]}


def end_stray_children() -> None:
    """Nothing that one system started may run while the next is measured.

    This process adopts orphans (it is a subreaper), so every left-over is a child by now.
    """
    for _ in range(50):
        found = False
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                if int(stat.rsplit(")", 1)[1].split()[1]) == os.getpid():
                    found = True
                    os.kill(int(entry), signal.SIGKILL)
                    os.waitpid(int(entry), 0)
        if not found:
            return


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text()
    model = [line.split(":")[1].strip() for line in text.splitlines()
             if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    return {"cpu": model[0] if model else platform.machine(),
            "cpus": len(os.sched_getaffinity(0)), "memory_gb": round(memory, 1),
            "kernel": platform.release(), "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d")}



# What tells numpy's libraries how many threads they may use.  Tasks that are measured have one.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# ------------------------------------------------------------------ measuring


def measure(python: Path, figure: str, system: str, args: argparse.Namespace) -> dict[str, Any]:
    """One figure on one system, once."""
    import starts

    out = args.out / "child.json"
    out.unlink(missing_ok=True)
    env = dict(os.environ, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", PYTHONWARNINGS="ignore")
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # or each worker compiles the tasks' module anew
    for name in THREADS:
        if figure in starts.RUNS:
            env.pop(name, None)  # as a user's program starts: see starts.py
        else:
            env[name] = "1"
    with open(args.out / "child.log", "wb") as log:
        child = subprocess.Popen(
            [python, HERE / "child.py", figure, system, str(args.workers), str(int(args.quick)),
             out], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True)
        try:
            code = child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return {"error": f"stopped after {LIMIT_S} s"}
    if not out.exists():
        return {"error": f"ended with exit code {code} and no result"}
    return json.loads(out.read_text())


def run_program(name: str, quick: bool) -> dict[str, Any]:
    import figures

    program = find_program(name)
    if program is None:
        return {"error": f"bench_{name} has not been built"}
    try:
        return {"numbers": figures.run_program(program, quick)}
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return {"error": f"{error} {getattr(error, 'stderr', '') or ''}".strip()[:300]}


def all_figures() -> tuple[Any, ...]:
    import facades
    import figures

    return (*figures.FIGURES, *facades.FIGURES)


def turns(figure: Any, names: list[str], order: random.Random, quick: bool) -> list[str]:
    """The systems of one round; several times for figures that differ from process to process."""
    import starts

    out: list[str] = []
    for _ in range(3 if not quick and figure.name in (*starts.RUNS, "latency_idle") else 1):
        order.shuffle(names)
        out += [*names, *figure.programs]
    return out


def run_all(python: Path, missing: dict[str, str], args: argparse.Namespace,
            noise: Noise) -> dict[str, Any]:
    """{figure: {system: {"numbers": medians, "runs": [...]} or {"error": ...}}}"""
    import systems

    order = random.Random(1)
    gathered: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for r in range(args.rounds):
        for figure in all_figures():
            if args.only and figure.name not in args.only:
                continue
            names = [s for s in figure.systems if not args.systems or s in args.systems]
            for name in turns(figure, names, order, args.quick):
                runs = gathered.setdefault(figure.name, {}).setdefault(name, [])
                if runs and "numbers" not in runs[-1]:
                    continue                      # what failed once is not tried again
                noise.settle()
                if name in figure.programs:
                    runs.append(run_program(name, args.quick))
                elif systems.SYSTEMS[name].needs in missing:
                    runs.append({"error": missing[systems.SYSTEMS[name].needs]})
                else:
                    runs.append(measure(python, figure.name, name, args))
                end_stray_children()
                told = runs[-1].get("numbers") or runs[-1]
                print(f"round {r + 1}  {figure.name:15} {name:16}", ", ".join(
                    f"{k} {v:.4g}" if isinstance(v, float | int) else f"{k}: {v}"
                    for k, v in told.items() if k != "traceback"), file=sys.stderr, flush=True)
    return {figure.name: {name: medians(gathered[figure.name][name])
                          for name in (*figure.systems, *figure.programs)
                          if name in gathered[figure.name]}
            for figure in all_figures() if figure.name in gathered}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    good = [run["numbers"] for run in runs if "numbers" in run]
    failures = [run for run in runs if "numbers" not in run]
    if not good:
        return failures[0]
    out: dict[str, Any] = {
        "numbers": {k: statistics.median(run[k] for run in good) for k in good[0]}, "runs": good}
    if failures:
        out["failed_runs"] = failures
    return out


# ------------------------------------------------------------------ telling


def figure_text(value: float, unit: str) -> str:
    if unit == "/s":
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def verdicts(results: dict[str, Any]) -> list[dict[str, str]]:
    """The published table, one dict per row."""
    import figures

    rows = []
    for figure in figures.FIGURES:
        if figure.name not in results:
            continue
        by_system = results[figure.name]
        numbers = {s: r["numbers"] for s, r in by_system.items() if "numbers" in r}
        for bar in figure.bars:
            peers = [f"{s} {figure_text(n[bar.number], bar.unit)}" for s, n in numbers.items()
                     if bar.number in n and not s.startswith("trireme") and s not in bar.shown]
            mine = [n[bar.number] for s, n in numbers.items()
                    if s in bar.shown and bar.number in n]
            try:
                reached = "yes" if bar.reached(numbers) else "**no**"
            except KeyError as absent:
                reached = f"not measured: {absent.args[0]}"
            rows.append({"figure": bar.title, "peers measured": ", ".join(peers) or "-",
                         "Trireme": figure_text(mine[0], bar.unit) if mine else "-",
                         "bar": bar.bar, "reached": reached})
    return rows


def heading(report: dict[str, Any]) -> list[str]:
    m = report["machine"]
    peers = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    return [f"{m['cpu']}, {m['cpus']} CPUs, {m['memory_gb']} GB, Linux {m['kernel']}, "
            f"Python {m['python']}; {m['date']}; {report['workers']} workers, medians of "
            f"{report['rounds']} rounds; {peers}. Command: `{report['command']}`", ""]


def details(results: dict[str, Any]) -> list[str]:
    """Every number of every system, then what failed."""
    out, failures = [], []
    for figure, by_system in results.items():
        names = sorted({k for r in by_system.values() for k in r.get("numbers", {})})
        out += ["", f"**{figure}**", "", "| system | " + " | ".join(names) + " |",
                "|---|" + "---:|" * len(names)]
        for system, result in by_system.items():
            if "numbers" in result:
                out.append(f"| {system} | " + " | ".join(
                    f"{result['numbers'][k]:.4g}" if k in result["numbers"] else ""
                    for k in names) + " |")
            else:
                reason = result.get("error") or result.get("unsupported", "?")
                failures.append(f"- {figure}, {system}: {reason.splitlines()[0]}")
    if failures:
        out += ["", "Not measured:", "", *sorted(failures)]
    return out


def sections(report: dict[str, Any]) -> dict[str, str]:
    """The Markdown of each section of which there are results, by its name in the docs' markers.

    In each: the verdicts, every number, what failed and how quiet the machine was.
    """
    import facades

    ours = {figure.name for figure in facades.FIGURES}
    noise, rows, out = report["noise"], report["verdicts"], {}
    tables = {"measured": [], "facades": facades.table(report["facades"])}
    if rows:
        tables["measured"] = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0]),
                              *("| " + " | ".join(row.values()) + " |" for row in rows)]
    for name, table in tables.items():
        results = {k: r for k, r in report["results"].items() if (k in ours) == (name == "facades")}
        if results:
            out[name] = "\n".join([
                *heading(report), *table, *details(results), "",
                f"Foreign CPU before the measurements: {100 * noise['foreign_cpu_mean']:.1f} % on "
                f"average, {100 * noise['foreign_cpu_worst']:.0f} % at worst; the calibration loop "
                f"took {1e3 * noise['loop_median_s']:.1f} ms, slowest over fastest "
                f"{noise['loop_slowest_over_fastest']:.2f}.\n"])
    return out


def write_docs(texts: dict[str, str]) -> None:
    page = ROOT / "docs" / "performance.md"
    for name, text in texts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, rest = page.read_text(encoding="utf-8").split(begin)
        page.write_text(before + begin + "\n" + text + "\n" + end + rest.split(end)[1],
                        encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", help="a figure, or facades; may be repeated")
    parser.add_argument("--systems", action="append", help="a system; may be repeated")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the bench itself")
    parser.add_argument("--write-docs", action="store_true", help="renew docs/performance.md")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-bench")
    parser.add_argument("--list", action="store_true", help="name the figures and systems")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)     # PR_SET_CHILD_SUBREAPER

    python, missing = environment(args.venv.resolve())
    if Path(sys.prefix).resolve() != args.venv.resolve():
        # The figures' module is imported here too, for the bars; it needs that environment.
        os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])
    import facades
    import systems

    if args.list:
        print("figures:", *[f.name for f in all_figures()], "\nsystems:", *systems.SYSTEMS)
        return 0
    if args.only and "facades" in args.only:
        args.only += [figure.name for figure in facades.FIGURES]
        args.only.remove("facades")
    for name, known in [*((n, [f.name for f in all_figures()]) for n in args.only or []),
                        *((n, list(systems.SYSTEMS)) for n in args.systems or [])]:
        if name not in known:
            parser.error(f"{name!r} is none of: {', '.join(known)}")
    noise = Noise()
    results = run_all(python, missing, args, noise)
    options = [a for a in sys.argv[1:] if a != "--write-docs"]
    report = {"machine": machine(), "versions": versions(python), "workers": args.workers,
              "rounds": args.rounds, "noise": noise.summary(), "verdicts": verdicts(results),
              "facades": facades.comparisons(results),
              "command": " ".join(["make bench", *([f"BENCH_ARGS='{' '.join(options)}'"]
                                                   if options else [])]),
              "results": results}
    (args.out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    texts = sections(report)
    text = "\n".join(texts.values())
    (args.out / "results.md").write_text(text, encoding="utf-8")
    print(text)
    if args.write_docs:
        write_docs(texts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
