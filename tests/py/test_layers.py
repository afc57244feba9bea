# SPDX-License-Identifier: BSD-3-Clause
"""The layer check passes on this tree, and can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "tools" / "check_layers.py"


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECK), str(root)], capture_output=True, text=True, timeout=60
    )


def tree(root: Path, files: dict[str, str]) -> Path:
    sound = {
        "src/base/error.c": '#include "trireme.h"\n',
        "src/pool/pool.h": '#include "base/clock.h"\n#include "shm/heap.h"\n',
        "cli/main.c": '#include "trireme.h"\n#include "cli.h"\n',
        "cli/cli.h": "",
        "python/trireme/_core/module.c": '#include "core.h"\n#include "pool/pool.h"\n',
        "python/trireme/_core/core.h": "",
    }
    for name, text in (sound | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_tree_keeps_its_layers():
    done = check(ROOT)
    assert done.returncode == 0, done.stdout


def test_a_sound_tree_passes(tmp_path):
    done = check(tree(tmp_path, {}))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("src/base/a.c", '#include "shm/heap.h"\n', "base must not include shm"),
        ("src/shm/a.h", '\n#  include "pool/pool.h"\n', "src/shm/a.h:2"),
        ("src/pool/a.c", '#include "../metrics/trace.h"\n', "pool must not include metrics"),
        ("src/graph/a.c", '#include "comm/comm.h"\n', "graph must not include comm"),
        ("src/extra/a.c", "", "extra is not a layer"),
        ("src/base/a.c", '#include "cli/cli.h"\n', "lies in no layer"),
        ("cli/a.c", '#include "base/clock.h"\n', "talks to trireme.h only"),
        ("python/trireme/_core/a.c", '#include "engine/mpi.h"\n', "pool and below"),
    ],
)
def test_an_include_of_a_higher_layer_is_refused(tmp_path, name, text, said):
    done = check(tree(tmp_path, {name: text}))
    assert done.returncode == 1
    assert said in done.stdout


def test_an_empty_tree_is_not_a_pass(tmp_path):
    assert check(tmp_path).returncode == 1
