# SPDX-License-Identifier: BSD-3-Clause
"""tools/conformance.py: what fails, hangs or dies is told, and costs no other case its result."""

from __future__ import annotations

import importlib.util
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "conformance.py"

SUITE = """
import os, time, unittest

class Cases(unittest.TestCase):
    def test_a_passes(self): pass
    def test_b_fails(self): self.fail("on purpose")
    def test_c_dies(self): os._exit(3)
    def test_d_is_skipped(self): self.skipTest("a reason")
    def test_e_hangs(self): time.sleep(3600)
    def test_f_is_never_lost(self): pass

class Unready(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no class")
    def test_it(self): pass
"""

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="not a checkout")


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_case_has_an_outcome(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_suite.py").write_text(SUITE)
    binary = tmp_path / "python"
    binary.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    part = tool.Part(binary, "fork", "fake_suite", tmp_path / "log")
    part.run(tmp_path / "names", None)
    assert len(part.cases) == 7
    # The longest that the others may take: a start of Python and a moment.
    monkeypatch.setattr(tool, "CASE_SECONDS", 5)
    part.run(tmp_path / "run", part.cases)
    outcomes = {case.rpartition(".")[2]: what[0] for case, what in part.results.items()}
    assert outcomes == {
        "test_a_passes": "pass",
        "test_b_fails": "fail",
        "test_c_dies": "crash",
        "test_d_is_skipped": "skip",
        "test_e_hangs": "hang",
        "test_f_is_never_lost": "pass",
        "test_it": "fail",
    }
    assert "on purpose" in part.results["fake_suite.Cases.test_b_fails"][1]
    assert "no class" in part.results["fake_suite.Unready.test_it"][1]
    assert "exit status 3" in part.results["fake_suite.Cases.test_c_dies"][1]


def test_what_the_originals_pass_is_asked_for(tool: ModuleType) -> None:
    base = {"fork": {"fork A.x": ["pass", "", ""], "fork A.y": ["fail", "", ""]}}
    base["fork"] |= {"fork A.z": ["pass", "", ""]}
    ours = {"fork": {"fork A.x": ["hang", "late", ""], "fork A.y": ["fail", "", ""]}}
    assert [name for name, _, _ in tool.regressions(base, ours)] == ["fork A.x", "fork A.z"]


def test_the_skip_list_is_checked(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "skip.txt"
    monkeypatch.setattr(tool, "SKIPS", path)
    path.write_text(f"# words\n* | fork A.x | a reason\n2.7 {tool.VERSION} | fork A.y | another\n")
    assert set(tool.read_skips()) == {"fork A.x", "fork A.y"}
    passes = {"fork": {"fork A.x": ["pass", "", ""]}}
    wrong = tool.check_skips(passes, strict=True)
    assert len(wrong) == 2 and "passes" in wrong[0] and "is none" in wrong[1]
    cases = {suite: {f"{suite} A.x": ["listed", "", ""]} for suite in tool.SUITES}
    cases["fork"]["fork A.y"] = ["listed", "", ""]
    assert "too many" in tool.check_skips(cases, strict=False)[0]
    for bad in ("fork A.x\n", "* | fork A.x |\n", "* | fork A.x | it hangs now and then\n"):
        path.write_text(bad)
        with pytest.raises(SystemExit):
            tool.read_skips()


def test_the_skip_list_names_each_case_once(tool: ModuleType) -> None:
    lines = [x for x in tool.SKIPS.read_text().splitlines() if x.strip() and not x.startswith("#")]
    names = [line.split("|")[1].strip() for line in lines]
    assert len(names) == len(set(names)) and tool.read_skips().keys() <= set(names)
