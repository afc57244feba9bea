#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Run CPython's own tests of multiprocessing and concurrent.futures on Trireme.

    conformance.py [--quick] [--only PATTERN] [--originals] [--strict] [--table]

Makes a scratch copy of the running interpreter, puts Trireme's doors into it, and runs the suites
that the interpreter brings along, unmodified.  The same runner measures the originals first; what
they fail on this machine is the base line, kept in build-state/conformance for each interpreter.

The copy is a folder of links to the original's library, with a binary of its own, so that the
interpreter takes the folder for its prefix.  Two things in it are not links: the package trireme,
copied from where this interpreter finds it into the library, where -I, -E and -S find it as well;
and encodings/__init__.py, the first file that an interpreter reads, which also imports
tests/conformance/door.py.  The copy for the originals has neither.

Every module of the suites is a *part*: a process of its own, in a session of its own, that writes
down each case as it starts and ends (tests/conformance/driver.py).  A case that lasts too long is a
hang, one in which the process dies is a crash; the part then goes on in a new process with the
cases that are left.  Two parts run side by side.  What failed is tried once more alone, since some
of CPython's cases depend on the time of day; that is said in the table.

Exit status: 0 when nothing fails that the originals pass, beyond the skip list; 1 otherwise;
2 when there is nothing to run.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
HERE = TOP / "tests" / "conformance"
STATE = TOP / "build-state" / "conformance"
TABLE = TOP / "docs" / "conformance.md"
SKIPS = HERE / "skip.txt"

# The longest first, so that two side by side end together.
SUITES = {
    "spawn": "test_multiprocessing_spawn",
    "forkserver": "test_multiprocessing_forkserver",
    "futures": "test_concurrent_futures",
    "fork": "test_multiprocessing_fork",
    "main": "test_multiprocessing_main_handling",
}
QUICK = ("futures", "fork")
BROUGHT = ("trireme", "cloudpickle")  # packages that the copy gets
SIDE_BY_SIDE = 2
CASE_SECONDS = 120  # the slowest case of the originals takes a tenth of that
PART_SECONDS = 1200
MOST_RETRIED = 60
MOST_SHOWN = 20  # names of cases that fail alike
MOST_SKIPPED = 0.05
BAD = ("fail", "hang", "crash")

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def say(*words: object) -> None:
    """A line on stdout, at once."""
    print(*words, flush=True)


# ---------------------------------------------------------------------------------------------
# The copy of the interpreter
# ---------------------------------------------------------------------------------------------


def test_package() -> Path | None:
    """The interpreter's own package ``test``, if it has the suites."""
    folder = Path(sysconfig.get_path("stdlib")) / "test"
    ok = (folder / "_test_multiprocessing.py").exists() and any(
        (folder / f"test_concurrent_futures{end}").exists() for end in ("", ".py")
    )
    return folder if ok else None


def link_all(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """A folder *target* with a link to each entry of *source*."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name not in but:
            (target / entry.name).symlink_to(entry)


def make_copy(root: Path, doors: bool) -> Path:
    """A copy of this interpreter below *root*; its binary's path is returned."""
    base = Path(sys.base_prefix)
    library = Path(sysconfig.get_path("stdlib"))
    binary = root / "bin" / f"python{VERSION}"
    binary.parent.mkdir(parents=True)
    # Not a link: the interpreter looks for its library from where its binary really is.
    shutil.copy2(os.path.realpath(getattr(sys, "_base_executable", sys.executable)), binary)
    own = ("encodings", "site-packages", "dist-packages", *BROUGHT)
    copy = root / library.relative_to(base)
    link_all(library, copy, own)
    (copy / "site-packages").mkdir()
    for shared in base.glob("lib/libpython*"):
        (root / "lib" / shared.name).symlink_to(shared)
    if not doors:
        (copy / "encodings").symlink_to(library / "encodings")
        return binary
    link_all(library / "encodings", copy / "encodings", ("__init__.py", "__pycache__"))
    first = (library / "encodings" / "__init__.py").read_text()
    (copy / "encodings" / "__init__.py").write_text(f"{first}\nimport _trireme_door\n")
    shutil.copy(HERE / "door.py", copy / "_trireme_door.py")
    for package in BROUGHT:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"conformance: {sys.executable} has no {package}")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(spec.origin).parent, copy / package, ignore=ignore)
    return binary


def clean_environment() -> dict[str, str]:
    """The environment without what would tell the copy where to look."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRIREME"))}


CHECK = """
import sys, multiprocessing, concurrent.futures, multiprocessing.pool as pool
import importlib
print(sys.prefix, multiprocessing.__name__, concurrent.futures.__name__, pool.__name__,
      importlib.import_module("multiprocessing.pool").__name__)
"""


def check_copy(binary: Path, doors: bool) -> None:
    """The copy takes its folder for its prefix and opens the doors, under every switch."""
    root = str(binary.parent.parent)
    names = ["multiprocessing", "concurrent.futures", "multiprocessing.pool"]
    if doors:
        names = ["trireme.multiprocessing", "trireme.futures", "trireme.multiprocessing.pool"]
    for switches in ([], ["-I"], ["-E", "-S"]):
        got = subprocess.run(
            [binary, *switches, "-c", CHECK],
            capture_output=True, text=True, timeout=60, env=clean_environment(),
        )  # fmt: skip
        if got.stdout.split() != [root, *names, names[-1]]:
            raise SystemExit(f"conformance: the copy does not work: {got.stdout}{got.stderr}")


# ---------------------------------------------------------------------------------------------
# Running a part
# ---------------------------------------------------------------------------------------------


def parts_of(suite: str) -> list[str]:
    """The test modules of a suite: one, or those in its package."""
    folder = Path(sysconfig.get_path("stdlib")) / "test" / SUITES[suite]
    if not folder.is_dir():
        return [f"test.{SUITES[suite]}"]
    return sorted(f"test.{SUITES[suite]}.{file.stem}" for file in folder.glob("test_*.py"))


def case_name(suite: str, identity: str) -> str:
    """``suite Class.test``: the same for every version."""
    return f"{suite} {'.'.join(identity.split('.')[-2:])}"


class Part:
    """One test module, run case by case, in as many processes as it takes."""

    def __init__(self, binary: Path, suite: str, module: str, log: Path) -> None:
        self.binary = binary
        self.suite = suite
        self.module = module
        self.log = log
        self.cases: list[str] = []  # as unittest names them
        self.results: dict[str, tuple[str, str]] = {}  # case: outcome and reason
        self.fixtures: dict[str, tuple[str, str]] = {}  # of a class: the same
        self.seconds = 0.0

    def _process(self, folder: Path, wanted: list[str] | None, until: float) -> bool:
        """Run the driver; False if it hung or died, which the case it was in is told."""
        events = folder / "events"
        events.unlink(missing_ok=True)
        command = [str(self.binary), str(folder / "driver.py"), self.module, str(events)]
        if wanted is not None:
            (folder / "cases").write_text("\n".join(wanted))
            command.append(str(folder / "cases"))
        env = {**clean_environment(), "TMPDIR": str(folder)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=env,
                start_new_session=True,
            )  # fmt: skip
        try:
            return self._follow(process, events, wanted, until)
        finally:
            kill_session(process)

    def _follow(
        self, process: subprocess.Popen[bytes], path: Path, wanted: list[str] | None, until: float
    ) -> bool:
        read = 0
        running: str | None = None
        moved = time.monotonic()
        while True:
            ended = process.poll() is not None
            data = path.read_bytes() if path.exists() else b""
            lines = data[read : data.rfind(b"\n") + 1].splitlines()
            read = data.rfind(b"\n") + 1
            over = False
            for event in map(json.loads, lines):
                moved = time.monotonic()
                over = over or "over" in event
                if "cases" in event:
                    self.cases = self.cases or event["cases"]
                elif "start" in event:
                    running = event["start"]
                elif "end" in event:
                    running = None
                    self.results[event["end"]] = (event["outcome"], event["text"])
                elif "fixture" in event:
                    self.fixtures[event["fixture"]] = (event["outcome"], event["text"])
            if over:
                self._see_off(process)
                return True
            if ended:
                code = process.returncode
                how = f"signal {-code}" if code < 0 else f"exit status {code}"
                self._blame(running, wanted, "crash", f"the process of the test ended with {how}")
                return False
            if time.monotonic() > min(moved + CASE_SECONDS, until):
                process.send_signal(signal.SIGABRT)  # faulthandler writes the stacks to the log
                time.sleep(0.5)
                self._blame(running, wanted, "hang", f"nothing for {CASE_SECONDS} s")
                return False
            time.sleep(0.1)

    def _see_off(self, process: subprocess.Popen[bytes]) -> None:
        """The cases are over; the interpreter must end as well."""
        try:
            process.wait(CASE_SECONDS)
        except subprocess.TimeoutExpired:
            self.results[f"{self.module}.the_end"] = ("hang", "the interpreter does not end")

    def _blame(self, running: str | None, wanted: list[str] | None, how: str, text: str) -> None:
        if wanted is None and self.cases:
            return  # only the names were asked for, and they are there
        left = [case for case in wanted or () if case not in self.results]
        case = running or (left[0] if left else f"{self.module}.the_beginning")
        self.results[case] = (how, text)

    def run(self, folder: Path, wanted: list[str] | None, seconds: float = PART_SECONDS) -> None:
        """Run the *wanted* cases; with None only find out which there are."""
        started = time.monotonic()
        folder.mkdir()
        shutil.copy(HERE / "driver.py", folder)
        if wanted is None:
            self._process(folder, None, started + CASE_SECONDS)
            return
        left = wanted
        while left and time.monotonic() < started + seconds:
            before = len(self.results)
            complete = self._process(folder, left, started + seconds)
            if complete or len(self.results) == before:
                break
            left = [case for case in left if case not in self.results]
        for case in wanted:
            if case not in self.results:
                self.results[case] = self._from_fixture(case)
        self.seconds = time.monotonic() - started
        shutil.rmtree(folder, ignore_errors=True)

    def _from_fixture(self, case: str) -> tuple[str, str]:
        """A case that never ran: its class or module could not be set up, or was skipped."""
        for fixture, found in self.fixtures.items():
            where = fixture.rpartition("(")[2].rstrip(")")
            if case.startswith(f"{where}."):
                return found
        return ("fail", "was not run")


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part: every process of its session, the driver among them."""
    for _ in range(3):
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == process.pid and fields[0] != "Z":
                left.append(int(stat.parent.name))
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not left:
            break
        time.sleep(0.1)
    process.wait()


# ---------------------------------------------------------------------------------------------
# Running the suites
# ---------------------------------------------------------------------------------------------


class Run:
    """All parts, with the originals or with ours."""

    def __init__(self, root: Path, doors: bool, options: argparse.Namespace) -> None:
        self.kind = "ours" if doors else "originals"
        self.root = root / self.kind
        self.binary = make_copy(self.root, doors)
        check_copy(self.binary, doors)
        self.options = options
        self.skips = read_skips() if doors else {}
        self.logs = STATE / f"{VERSION}-{self.kind}-logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._numbers = iter(range(1 << 30))
        self._turn = threading.Lock()

    def _folder(self) -> Path:
        with self._turn:
            return self.root / f"run{next(self._numbers)}"

    def _asked_for(self, name: str) -> bool:
        pattern = self.options.only
        return pattern is None or fnmatch.fnmatch(name, f"*{pattern}*")

    def _wanted(self, part: Part) -> list[str]:
        names = {case: case_name(part.suite, case) for case in part.cases}
        return [
            case
            for case, name in names.items()
            if self._asked_for(name) and (self.options.strict or name not in self.skips)
        ]

    def _one(self, part: Part) -> Part:
        part.run(self._folder(), None)
        wanted = self._wanted(part)
        if wanted:
            part.run(self._folder(), wanted)
            count = Counter(outcome for outcome, _ in part.results.values())
            words = ", ".join(f"{n} {outcome}" for outcome, n in sorted(count.items()))
            say(f"  {self.kind:9} {part.module[5:]}: {words}  ({part.seconds:.0f} s)")
        return part

    def _again(self, part: Part) -> dict[str, str]:
        """The cases that pass when tried once more, and how they failed at first."""
        tried = [case for case in part.cases if part.results.get(case, ("",))[0] == "fail"]
        if not tried or len(tried) > MOST_RETRIED:
            return {}
        second = Part(self.binary, part.suite, part.module, part.log)
        second.cases = part.cases
        second.run(self._folder(), tried, 300)
        found = {}
        for case in tried:
            if second.results[case][0] == "pass":
                found[case] = part.results[case][1]
                part.results[case] = second.results[case]
        return found

    def run(self, suites: list[str]) -> dict[str, dict[str, list[str]]]:
        """``{suite: {case: [outcome, reason, "again" or ""]}}``."""
        parts = []
        for suite in suites:
            for module in parts_of(suite):
                log = self.logs / f"{module[5:]}.log"
                log.unlink(missing_ok=True)
                parts.append(Part(self.binary, suite, module, log))
        with ThreadPoolExecutor(self.options.jobs) as executor:
            list(executor.map(self._one, parts))
        found: dict[str, dict[str, list[str]]] = {suite: {} for suite in suites}
        for part in parts:
            again = self._again(part) if not self.options.once else {}
            for case in [*part.cases, *(c for c in part.results if c not in part.cases)]:
                name = case_name(part.suite, case)
                if name in found[part.suite]:
                    raise SystemExit(f"conformance: two cases are called {name}")
                if case in part.results:
                    outcome, text = part.results[case]
                    found[part.suite][name] = [outcome, text, "again" if case in again else ""]
                elif name in self.skips and self._asked_for(name):
                    found[part.suite][name] = ["listed", self.skips[name], ""]
        return found


# ---------------------------------------------------------------------------------------------
# The skip list
# ---------------------------------------------------------------------------------------------


def read_skips() -> dict[str, str]:
    """``{case: reason}`` for this version.  Lines: ``VERSIONS | suite Class.test | reason``."""
    found = {}
    for number, line in enumerate(SKIPS.read_text().splitlines() if SKIPS.exists() else [], 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|", 2)]
        if len(fields) != 3 or not all(fields):
            raise SystemExit(f"{SKIPS}:{number}: not 'VERSIONS | suite Class.test | reason'")
        if re.search(r"\b(hang|hung|crash|deadlock)", fields[2], re.IGNORECASE):
            raise SystemExit(f"{SKIPS}:{number}: what hangs or crashes may not be skipped")
        if fields[0] == "*" or VERSION in fields[0].split():
            found[fields[1]] = fields[2]
    return found


def check_skips(found: dict[str, dict[str, list[str]]], strict: bool) -> list[str]:
    """What is wrong with the skip list."""
    outcomes = {name: what[0] for cases in found.values() for name, what in cases.items()}
    skips = read_skips()
    wrong = []
    suites = {name.split()[0] for name in outcomes}
    for name in skips:
        if name.split()[0] not in SUITES:
            wrong.append(f"the skip list names a suite that is none: {name}")
        elif name.split()[0] in suites and name not in outcomes:
            wrong.append(f"the skip list names a case that is none: {name}")
        elif strict and outcomes.get(name) == "pass":
            wrong.append(f"the skip list names a case that passes: {name}")
    if suites == set(SUITES) and len(skips) > MOST_SKIPPED * len(outcomes):
        wrong.append(f"{len(skips)} of {len(outcomes)} cases are listed to be skipped: too many")
    return wrong


# ---------------------------------------------------------------------------------------------
# Results, kept and shown
# ---------------------------------------------------------------------------------------------


def machine_key() -> str:
    """What the base line depends on."""
    binary = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    text = f"{binary} {sys.version} {os.cpu_count()} {CASE_SECONDS}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base_line(root: Path, options: argparse.Namespace, suites: list[str]) -> dict:
    """What the originals do, measured now or before; of these suites only."""
    path = STATE / f"{VERSION}-originals-{machine_key()}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    missing = [suite for suite in suites if options.originals or suite not in kept]
    if options.quick:
        return {suite: kept[suite] for suite in suites if suite in kept}
    if missing:
        say("conformance: measuring the originals")
        found = Run(root, False, options).run(missing)
        if options.only:
            return {**kept, **found}
        kept.update(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1))
    return {suite: kept[suite] for suite in suites}


def counts(cases: dict[str, list[str]]) -> Counter[str]:
    """How many cases ended how; "again" are those of them that passed at the second try."""
    count = Counter(outcome for outcome, _, _ in cases.values())
    count["again"] = sum(again == "again" for _, _, again in cases.values())
    return count


def regressions(base: dict, ours: dict) -> list[tuple[str, str, str]]:
    """Cases that end badly with ours and not with the originals: name, how, reason."""
    found = []
    for suite, cases in ours.items():
        for name, (outcome, text, _) in cases.items():
            before = base.get(suite, {}).get(name, ["pass"])[0]
            if outcome in BAD and before not in BAD:
                found.append((name, outcome, text))
        missing = base.get(suite, {}).keys() - cases.keys()
        found += [(name, "fail", "is not there: its module fails") for name in sorted(missing)]
    return found


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Lost|Pool)\b", line)]
    return (errors or lines or [""])[-1][:160]


def show(bad: list[tuple[str, str, str]]) -> None:
    """Print what fails, grouped by what it says."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, how, text in sorted(bad):
        groups.setdefault((how, last_line(text)), []).append(name)
    for (how, text), names in sorted(groups.items(), key=lambda item: -len(item[1])):
        say(f"{len(names)} {how}: {text}")
        for name in names[:MOST_SHOWN]:
            say(f"      {name}")
        if len(names) > MOST_SHOWN:
            say(f"      and {len(names) - MOST_SHOWN} more")


COLUMNS = (
    "| Python | suite | cases | originals: pass | fail | skip "
    "| ours: pass | fail | hang, crash | skip | listed |"
)


def table_rows(base: dict, ours: dict) -> list[str]:
    """A line for each suite of this version, and one for all."""
    version = sys.version.split()[0]
    rows = []
    total: list[Counter[str]] = [Counter(), Counter()]
    for suite in [*SUITES, None]:
        if suite is not None and suite not in ours:
            continue
        one, two = total if suite is None else (counts(base[suite]), counts(ours[suite]))
        if suite is not None:
            total[0] += one
            total[1] += two
        cases = sum(n for outcome, n in two.items() if outcome != "again")
        again = f" ({two['again']} at the second try)" if two["again"] else ""
        bad = one["fail"] + one["hang"] + one["crash"]
        rows.append(
            f"| {version} | {SUITES[suite] if suite else '**all**'} | {cases} | {one['pass']} "
            f"| {bad} | {one['skip']} | {two['pass']}{again} | {two['fail']} "
            f"| {two['hang'] + two['crash']} | {two['skip']} | {two['listed']} |"
        )
    return rows


WORDS = """# Conformance: CPython's own tests on Trireme

CPython's suites for `multiprocessing` and `concurrent.futures`, unmodified, with Trireme's doors in
place of the originals.  This page is written by `make conformance CONFORMANCE_ARGS=--table`.

```
make conformance                               # the interpreter python3
make conformance PYTHON=/usr/bin/python3.11    # another one
make conformance CONFORMANCE_ARGS="--only 'fork *Pool*'"
```

| option | |
|---|---|
| `--quick` | two of the five suites, in less than 5 minutes; the originals are not measured |
| `--only PATTERN` | cases whose name (`suite Class.test`) matches or contains it |
| `--originals` | measure the originals again |
| `--strict` | run the cases of the skip list as well; one that passes is an error |
| `--table` | write this page |

The interpreter must bring its tests along: Debian's are in `libpython3.X-testsuite`, one built from
source has them.  The runner makes a scratch copy of the interpreter in which every
`import multiprocessing` and `import concurrent.futures`, and of their submodules, gives
`trireme.multiprocessing` and `trireme.futures`: in the tests, in the standard library and in the
processes that they start, whatever their switches.  Trireme alone sees the originals.  Each test
module runs in a process of its own; a case that takes longer than {seconds} s is a hang.  A case
that failed is tried once more alone.

The base line is what the originals do in the same runner on the same machine.  `listed` are the
cases of `tests/conformance/skip.txt`, one line and one reason each, at most 5 % of the cases.  They
are not run, and none of them hangs or crashes.

"""


def write_table(base: dict, ours: dict) -> None:
    """Replace this version's part of docs/conformance.md; those of others stay."""
    old = TABLE.read_text() if TABLE.exists() else ""
    rows: dict[str, list[str]] = {}
    for line in old.splitlines():
        if match := re.match(r"\| (\d+\.\d+)\S* \|", line):
            rows.setdefault(match[1], []).append(line)
    rows[VERSION] = table_rows(base, ours)
    lists = {
        match[1]: match[0].rstrip()
        for match in re.finditer(r"^### (\d+\.\d+)\n(?:(?!^#).*\n?)*", old, re.MULTILINE)
    }
    lists.pop(VERSION, None)
    bad = regressions(base, ours)
    if bad:
        lines = "\n".join(f"{how:5} {name}" for name, how, _ in sorted(bad))
        lists[VERSION] = f"### {VERSION}\n\n```\n{lines}\n```"

    def key(version: str) -> int:
        return int(version.split(".")[1])

    text = WORDS.format(seconds=CASE_SECONDS)
    shown = [row for version in sorted(rows, key=key) for row in rows[version]]
    text += "\n".join([COLUMNS, "|" + "---|" * 11, *shown])
    if lists:
        text += "\n\n## What fails and is not listed\n\n"
        text += "\n\n".join(lists[v] for v in sorted(lists, key=key))
    TABLE.write_text(text + "\n")
    say(f"conformance: wrote {TABLE.relative_to(TOP)}")


# ---------------------------------------------------------------------------------------------


def options_of(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a subset in less than 5 minutes")
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name matches")
    parser.add_argument("--originals", action="store_true", help="measure the originals again")
    parser.add_argument("--strict", action="store_true", help="run the skip list's cases, too")
    parser.add_argument("--table", action="store_true", help="write docs/conformance.md")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this suite")
    parser.add_argument("--once", action="store_true", help="try nothing a second time")
    parser.add_argument("--no-base", action="store_true", help="do without the originals")
    parser.add_argument("--jobs", type=int, default=SIDE_BY_SIDE, help="parts side by side")
    return parser.parse_args(args)


def main() -> int:
    """See the module's docstring."""
    options = options_of()
    if test_package() is None:
        say(
            f"conformance: {sys.executable} (Python {sys.version.split()[0]}) comes without "
            f"CPython's tests (Debian: libpython{VERSION}-testsuite): nothing was run"
        )
        return 2
    suites = options.suite or (list(QUICK) if options.quick else list(SUITES))
    started = time.monotonic()
    STATE.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        base = {} if options.no_base else base_line(root, options, suites)
        if options.originals:
            for suite in suites:
                say(f"  {SUITES[suite]}: {dict(counts(base[suite]))}")
        say("conformance: running ours")
        ours = Run(root, True, options).run(suites)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    (STATE / f"{VERSION}-ours.json").write_text(json.dumps(ours, indent=1))
    bad = regressions({} if options.only else base, ours)
    show(bad)
    wrong = [] if options.only else check_skips(ours, options.strict)
    for line in wrong:
        say(f"conformance: {line}")
    complete = not options.only and set(suites) == set(SUITES)
    if options.table and complete and base:
        write_table(base, ours)
    elif options.table:
        say("conformance: no table: it is written when all suites were run")
    sums = sum((counts(cases) for cases in ours.values()), Counter())
    words = ", ".join(f"{n} {outcome}" for outcome, n in sorted(sums.items()))
    say(f"conformance: Python {VERSION}: {words}; {len(bad)} worse than the originals")
    say(f"conformance: {(time.monotonic() - started) / 60:.1f} min; logs in {STATE}")
    return 1 if bad or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
