# SPDX-License-Identifier: BSD-3-Clause
"""trireme.install(), `python -m trireme` and `trireme exec`: programs that know nothing of Trireme.

Most tests run a program twice, by Python and through the doors, and want the same words, exit code
and tracebacks.  Programs that must see the doors say so themselves.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import script_env
from doorslib import DOORS, LIMIT, ours, run
from test_cli import CLI

pytest_plugins = ("doorslib",)

# ---------------------------------------------------------------------------------------------
# Run as Python runs it
# ---------------------------------------------------------------------------------------------

WHO = """
    import os, sys
    names = {n for n in globals() if n.startswith("__")}
    print(sorted(names), __name__, __package__, __doc__)
    print(globals().get("__file__"), type(__loader__).__name__, __builtins__.__name__)
    print(sys.argv, sys.path[:1], sys.modules["__main__"].__dict__ is globals())
    print(getattr(__spec__, "name", None), getattr(__spec__, "origin", None))
    from multiprocessing import spawn
    data = spawn.get_preparation_data("x")
    print({k: v for k, v in data.items() if k not in ("sys_path", "authkey")})
"""


def test_a_script_finds_what_python_gives_it(write: Any, both: Any, tmp_path: Path) -> None:
    write("folder/who.py", WHO)
    (tmp_path / "link.py").symlink_to("folder/who.py")
    words = ["a", "--only", "x", "-m", "--report", "--", ""]
    for script in ("folder/who.py", "./folder/../folder/who.py", str(tmp_path / "folder/who.py")):
        code, out, err = both(script, *words)
        assert code == 0, err
        assert str(words)[1:] in out
    assert both("link.py")[0] == 0


def test_modules_commands_folders_zip_files_and_stdin(
    write: Any, both: Any, tmp_path: Path
) -> None:
    write("package/__init__.py", "")
    write("package/__main__.py", WHO)
    write("package/who.py", "from . import __name__ as n\n" + textwrap.dedent(WHO))
    write("folder/__main__.py", WHO)
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as file:
        file.writestr("__main__.py", textwrap.dedent(WHO))
    commands: list[list[str]] = [
        ["-m", "package"],
        ["-mpackage.who", "x"],
        ["-c", textwrap.dedent(WHO), "x", "-y"],
        ["folder", "x"],
        ["file.zip", "x"],
    ]
    for words in commands:
        code, _, err = both(*words)
        assert code == 0, (words, err)
    assert both("-", "x", stdin=textwrap.dedent(WHO))[0] == 0
    assert both("-m", "there_is_none")[0] == 1


ENDINGS = {
    "value": "import sys; sys.exit(3)",
    "text": "import sys; sys.exit('the reason')",
    "none": "raise SystemExit",
    "error": "def f():\n    1 / 0\nprint('x')\nf()",
    "chained": "try:\n    {}['x']\nexcept KeyError as e:\n    raise ValueError('y') from e",
    "syntax": "x = (",
    "encoding": "# coding: latin-1\nprint(ascii('\xe4'))",
    "exit": "import os; print('x', flush=True); os._exit(5)",
    "atexit": "import atexit; atexit.register(print, 'last'); print('first'); 1 / 0",
    "hook": "import sys\nsys.excepthook = lambda t, v, b: print(v, b.tb_frame.f_code.co_name)\n0/0",
    "interrupt": "raise KeyboardInterrupt",
    "thread": "import threading; threading.Thread(target=lambda: print('t')).start()",
    "import": "import there_is_none",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_program_ends_as_by_python(name: str, write: Any, both: Any, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_bytes((ENDINGS[name] + "\n").encode("latin-1"))
    code, _, err = both("ends.py")
    both("-m", "ends")
    if name != "encoding":
        both("-c", ENDINGS[name])
    assert code == {"value": 3, "exit": 5, "interrupt": -2}.get(
        name, int(name not in ("none", "encoding", "thread"))
    )
    assert "trireme" not in err


def test_the_commands_own_words(tmp_path: Path) -> None:
    import trireme

    assert run(*DOORS, "--version", cwd=tmp_path) == (0, f"trireme {trireme.__version__}\n", "")
    code, out, err = run(*DOORS, "--help", cwd=tmp_path)
    assert code == 0 and "--only" in out and err == ""
    for words, said in (
        (["there_is_none.py"], "trireme: cannot open 'there_is_none.py': there is no such file"),
        (["--nothing", "x.py"], "trireme: there is no option --nothing; python -m trireme --help"),
        (["--only"], "trireme: --only needs the name of a door"),
        (["--only", "joblib", "x.py"], "trireme: there is no door 'joblib'"),
        (["-c"], "trireme: -c needs a word after it"),
        ([], "usage: python -m trireme"),
    ):
        code, out, err = run(*DOORS, *words, cwd=tmp_path)
        assert (code, out) == (2, "")
        assert err.startswith(said) and err.count("\n") == 1


MAIN = """
    import multiprocessing, sys

    class Point:
        def __init__(self, x):
            self.x = x

    def child(queue, point):
        queue.put((point.x, __name__, type(point).__module__, sys.argv[1:]))

    if __name__ == "__main__":
        for method in ("fork", "forkserver", "spawn"):
            context = multiprocessing.get_context(method)
            queue = context.Queue()
            process = context.Process(target=child, args=(queue, Point(7)))
            process.start()
            print(method, queue.get(timeout=30))
            process.join(30)
            print(process.exitcode)
"""


def test_children_find_the_programs_main(write: Any, both: Any) -> None:
    write("folder/program.py", MAIN)
    write("package/__init__.py", "")
    write("package/program.py", MAIN)
    for words in (["folder/program.py", "x"], ["-m", "package.program", "x"]):
        code, out, err = both(*words)
        assert code == 0, err
        assert out.count("(7, ") == 3


# ---------------------------------------------------------------------------------------------
# What is replaced
# ---------------------------------------------------------------------------------------------

OURS = """
    def names():
        import concurrent.futures as cf, multiprocessing as mp, multiprocessing.pool
        from multiprocessing.pool import Pool, ThreadPool
        import concurrent.futures.process, concurrent.futures.thread
        found = [Pool, ThreadPool, mp.pool.Pool, cf.ProcessPoolExecutor, cf.ThreadPoolExecutor,
                 cf.process.ProcessPoolExecutor, cf.thread.ThreadPoolExecutor,
                 type(mp.get_context()), type(mp.Pool.__self__)]
        return [x.__module__.partition(".")[0] == "trireme" for x in found]
"""


def test_names_are_replaced_whenever_they_are_imported(run_script: Any) -> None:
    imports = "import multiprocessing.pool, concurrent.futures.process, concurrent.futures.thread"
    for first, second in ((imports, "pass"), ("pass", imports)):
        source = f"{first}\nimport trireme\ntrireme.install()\n{second}\n"
        out, _ = run_script(source + textwrap.dedent(OURS) + "print(all(names()), len(names()))")
        assert out == "True 9\n", (first, second)


def test_what_was_taken_before_makes_ours_where_it_asks_late(run_script: Any) -> None:
    out, _ = run_script(
        """
        import multiprocessing, concurrent.futures
        from multiprocessing import Pool, get_context
        from multiprocessing.pool import Pool as Class
        from concurrent.futures import ThreadPoolExecutor
        context = get_context("fork")
        module = concurrent.futures
        import trireme
        trireme.install()
        with Pool(1) as a, context.Pool(1) as b, multiprocessing.Pool(1) as c:
            print(a.map(abs, [-1]), *(type(p).__module__ for p in (a, b, c)))
        print(Class.__module__, ThreadPoolExecutor.__module__)
        print(module.ThreadPoolExecutor.__module__)
        """
    )
    assert out.splitlines() == [
        "[1]" + " trireme.multiprocessing.pool" * 3,
        "multiprocessing.pool concurrent.futures.thread",
        "trireme.futures.thread",
    ]


def test_installing_imports_nothing_and_what_is_not_used_stays_out(run_script: Any) -> None:
    out, _ = run_script(
        """
        import sys
        before = set(sys.modules)
        import trireme
        trireme.install()
        print(sorted(n for n in set(sys.modules) - before))
        import multiprocessing
        print([n for n in ("numpy", "cloudpickle", "trireme._core") if n in sys.modules])
        """
    )
    assert out.splitlines()[1] == "[]"
    first = out.splitlines()[0]
    assert "multiprocessing" not in first and "futures" not in first and "_core" not in first


def test_uninstall_leaves_everything_as_it_was(run_script: Any) -> None:
    out, _ = run_script(
        """
        import copyreg, os, sys
        import multiprocessing.pool, multiprocessing.queues, multiprocessing.synchronize
        import multiprocessing.dummy, multiprocessing.sharedctypes, multiprocessing.managers
        import concurrent.futures.process, concurrent.futures.thread
        concurrent.futures.ThreadPoolExecutor  # before; the other one is first asked for meanwhile

        def state():
            modules = {n: dict(vars(m)) for n, m in sys.modules.items()
                       if n.partition(".")[0] in ("multiprocessing", "concurrent", "multiprocess")}
            return modules, list(sys.meta_path), dict(os.environ), set(copyreg.dispatch_table)

        before = state()
        import trireme
        for _ in range(2):
            trireme.install()
            assert multiprocessing.pool.Pool is not before[0]["multiprocessing.pool"]["Pool"]
            concurrent.futures.ProcessPoolExecutor
            import multiprocess.pool
            trireme.uninstall()
            trireme.uninstall()
        after = state()
        late = after[0]["concurrent.futures"].pop("ProcessPoolExecutor")
        before[0]["concurrent.futures"].pop("ProcessPoolExecutor", None)  # lazy in 3.15
        print(late is concurrent.futures.process.ProcessPoolExecutor, late.__module__)
        known = {n: d for n, d in after[0].items() if n in before[0]}
        print(known == before[0], after[1:3] == before[1:3])
        print(not {k for k in after[3] - before[3] if k.__module__.startswith("multiprocessing")})
        print([n for n in after[0] if n.startswith("multiprocess.")])
        """
    )
    assert out.splitlines() == ["True concurrent.futures.process", "True True", "True", "[]"]


def test_only_the_doors_that_are_asked_for(run_script: Any) -> None:
    ask = textwrap.dedent(
        """
        import trireme
        trireme.install({0!r})
        import multiprocessing.pool, concurrent.futures
        print(*(x.__module__.partition(".")[0]
                for x in (multiprocessing.pool.Pool, concurrent.futures.ProcessPoolExecutor)))
        """
    )
    for only, expected in (
        ("futures", "multiprocessing trireme"),
        (["multiprocessing"], "trireme concurrent"),
        (["multiprocess"], "multiprocessing concurrent"),
        (["futures", "multiprocessing"], "trireme trireme"),
    ):
        out, _ = run_script(ask.format(only))
        assert out == expected + "\n", only
    out, _ = run_script(
        """
        import trireme
        try:
            trireme.install(["futures", "joblib"])
        except ValueError as exc:
            print(exc)
        import sys, trireme._doors as doors
        print(doors._finder in sys.meta_path)
        """
    )
    assert out == (
        "there is no door 'joblib': only= takes multiprocessing, multiprocess, futures\nFalse\n"
    )


def test_multiprocess_need_not_be_installed(tmp_path: Path) -> None:
    out = ours(
        """
        import multiprocess, multiprocess as mp
        from multiprocess.pool import Pool, ThreadPool
        import multiprocess.queues, multiprocess.shared_memory
        with mp.Pool(2) as pool:
            print([f(2) for f in pool.map(lambda n: lambda x: x + n, range(3))])
        print(mp.__name__, mp.pool.Pool is Pool, multiprocess.context.__name__)
        try:
            import multiprocess.there_is_none
        except ImportError as exc:
            print(type(exc).__name__, exc.name)
        import importlib.util
        print(importlib.util.find_spec("multiprocess") is not None)
        """,
        tmp_path,
    )
    assert out.splitlines() == [
        "[2, 3, 4]",
        "trireme.multiprocess True trireme.multiprocess.context",
        "ModuleNotFoundError multiprocess.there_is_none",
        "True",
    ]


def test_a_real_multiprocess_that_was_imported_gets_our_pools(write: Any, run_script: Any) -> None:
    write("multiprocess/__init__.py", "def Pool():\n    return 'theirs'\nextra = 1\n")
    write("multiprocess/pool.py", "class Pool:\n    pass\n")
    out, _ = run_script(
        """
        import multiprocess.pool
        held = multiprocess
        import trireme
        trireme.install()
        import multiprocess
        print(held is multiprocess, held.extra, held.pool.Pool.__module__)
        with held.Pool(1) as pool:
            print(pool.map(lambda x: x + 1, [1]))
        """
    )
    assert out == "True 1 trireme.multiprocess.pool\n[2]\n"


def test_our_own_modules_see_the_originals(run_script: Any) -> None:
    out, _ = run_script(
        """
        import trireme
        trireme.install()
        import multiprocessing, multiprocessing.context, concurrent.futures
        from trireme.multiprocessing import context
        from trireme import multiprocessing as facade
        theirs = context._original
        print(theirs.ForkContext is multiprocessing.context.ForkContext,
              issubclass(multiprocessing.context.ForkContext, theirs.ForkContext),
              vars(theirs)["ForkContext"] is theirs.ForkContext, theirs.__name__)
        facade.set_start_method("spawn")
        print(multiprocessing.get_start_method(), facade.get_start_method(),
              theirs._default_context.get_start_method())
        theirs.something = 1
        print(multiprocessing.context.something)
        del multiprocessing.context.something
        # Built on what it was written for.
        from concurrent.futures import process
        print(process._SafeQueue.__mro__[1].__module__)
        import multiprocessing.queues
        """
    )
    assert out.splitlines() == [
        "False True True multiprocessing.context",
        "spawn spawn spawn",
        "1",
        "multiprocessing.queues",
    ]


def test_checks_of_class_hold(tmp_path: Path) -> None:
    out = ours(
        """
        import asyncio, multiprocessing, multiprocessing.pool, concurrent.futures, pickle
        import concurrent.futures.process, multiprocessing.process, multiprocessing.context
        from multiprocessing.pool import ThreadPool
        with multiprocessing.Pool(1) as pool, ThreadPool(1) as threads:
            print(isinstance(pool, multiprocessing.pool.Pool),
                  isinstance(threads, multiprocessing.pool.Pool),
                  isinstance(pool.apply_async(abs, (1,)), multiprocessing.pool.AsyncResult))
        for kind in (concurrent.futures.ProcessPoolExecutor, concurrent.futures.ThreadPoolExecutor):
            with kind(1) as executor:
                print(isinstance(executor, concurrent.futures.Executor), isinstance(executor, kind),
                      isinstance(executor.submit(abs, -1), concurrent.futures.Future))
        print(issubclass(multiprocessing.Process, multiprocessing.process.BaseProcess),
              isinstance(multiprocessing.get_context(), multiprocessing.context.BaseContext))
        import os
        with concurrent.futures.ProcessPoolExecutor(1) as executor:
            try:
                executor.submit(os._exit, 1).result()
            except concurrent.futures.process.BrokenProcessPool as exc:
                print(isinstance(exc, concurrent.futures.BrokenExecutor))
        loop = asyncio.new_event_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        print(loop.run_until_complete(loop.run_in_executor(None, abs, -1)))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
        tmp_path,
    )
    assert out.split() == ["True"] * 12 + ["1"]


def test_objects_made_before_still_travel(run_script: Any) -> None:
    out, _ = run_script(
        """
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        lock, queue, event, value = (
            context.Lock(), context.Queue(), context.Event(), context.Value("i", 1))

        def child(lock, queue, event, value):
            with lock:
                value.value += 1
            queue.put("seen")
            event.set()

        if __name__ == "__main__":
            import trireme
            trireme.install()
            process = context.Process(target=child, args=(lock, queue, event, value))
            process.start()
            print(queue.get(timeout=30), event.wait(30), value.value)
            process.join(30)
        """
    )
    assert out == "seen True 2\n"


def test_a_name_that_the_program_sets_is_what_it_finds(tmp_path: Path) -> None:
    out = ours(
        """
        import multiprocessing.pool
        from unittest import mock
        with mock.patch.object(multiprocessing.pool, "Pool", 5), mock.patch(
                "multiprocessing.cpu_count", lambda: 77):
            print(multiprocessing.pool.Pool, multiprocessing.cpu_count())
        print(multiprocessing.pool.Pool.__module__, multiprocessing.cpu_count() == 77)
        """,
        tmp_path,
    )
    assert out == "5 77\ntrireme.multiprocessing.pool False\n"


def test_threads_that_import_at_once_do_not_hold_each_other_up(tmp_path: Path) -> None:
    out = ours(
        """
        import importlib, threading
        names = ["multiprocessing", "multiprocessing.pool", "concurrent.futures.process",
                 "trireme.multiprocessing.pool", "trireme.futures", "concurrent.futures.thread",
                 "multiprocess.pool", "multiprocessing.queues"]
        start = threading.Barrier(len(names))

        def load(name):
            start.wait(30)
            importlib.import_module(name)

        threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in names]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        print(any(t.is_alive() for t in threads))
        import multiprocessing.pool, concurrent.futures
        print(multiprocessing.pool.Pool.__module__,
              concurrent.futures.ProcessPoolExecutor.__module__)
        """,
        tmp_path,
    )
    assert out == "False\ntrireme.multiprocessing.pool trireme.futures.process\n"


# ---------------------------------------------------------------------------------------------
# Children
# ---------------------------------------------------------------------------------------------


def test_the_doors_are_open_in_every_kind_of_child(tmp_path: Path) -> None:
    out = ours(
        """
        import multiprocessing, subprocess, sys
        from concurrent.futures import ProcessPoolExecutor

        def who(_=None):
            import multiprocessing.pool, concurrent.futures
            return (multiprocessing.pool.Pool.__module__.partition(".")[0],
                    concurrent.futures.ThreadPoolExecutor.__module__.partition(".")[0],
                    any("_site" in p for p in sys.path))

        def child(queue):
            queue.put(who())

        if __name__ == "__main__":
            for method in ("fork", "forkserver", "spawn"):
                context = multiprocessing.get_context(method)
                queue = context.Queue()
                process = context.Process(target=child, args=(queue,))
                process.start()
                print(queue.get(timeout=30))
                process.join(30)
                with context.Pool(1) as pool:
                    print(pool.apply(who))
                with ProcessPoolExecutor(1, mp_context=context) as executor:
                    print(executor.submit(who).result())
            code = ("import multiprocessing.pool as p, concurrent.futures as f, sys;"
                    "print((p.Pool.__module__.partition('.')[0],"
                    "f.ThreadPoolExecutor.__module__.partition('.')[0],"
                    "any('_site' in p for p in sys.path)))")
            print(subprocess.check_output([sys.executable, "-c", code], text=True), end="")
            grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
            print(subprocess.check_output([sys.executable, "-c", grandchild], text=True), end="")
        """,
        tmp_path,
    )
    assert out == "('trireme', 'trireme', False)\n" * 11


def test_children_get_the_doors_that_the_program_has(run_script: Any) -> None:
    out, _ = run_script(
        """
        import os, subprocess, sys, trireme
        code = ("import multiprocessing.pool as p, concurrent.futures as f;"
                "print(p.Pool.__module__, f.ThreadPoolExecutor.__module__)")
        def child(*flags, **changes):
            env = {**os.environ, **changes}
            print(subprocess.check_output([sys.executable, *flags, "-c", code], text=True, env=env))
        trireme.install("futures")
        child()
        child(TRIREME_DOORS="futures;cpython-26;/nowhere")  # of another Python
        child("-S")
        trireme.uninstall()
        child()
        print("TRIREME_DOORS" in os.environ)
        """
    )
    plain = "multiprocessing.pool concurrent.futures.thread"
    assert out.split("\n\n") == [
        "multiprocessing.pool trireme.futures.thread",
        *[plain] * 3,
        "False\n",
    ]


def test_a_sitecustomize_of_the_users_is_run(write: Any, run_script: Any, tmp_path: Path) -> None:
    write("mine/sitecustomize.py", "print('mine', __name__, 'mine/site' in __file__)\nvalue = 5\n")
    out, _ = run_script(
        f"""
        import os, subprocess, sys
        os.environ["PYTHONPATH"] += os.pathsep + {str(tmp_path / "mine")!r}
        import trireme
        trireme.install()
        code = "import sitecustomize, multiprocessing.pool as p; print(sitecustomize.value, p.Pool)"
        print(subprocess.check_output([sys.executable, "-c", code], text=True))
        """
    )
    assert out.splitlines()[0] == "mine sitecustomize True"
    assert out.splitlines()[1] == "5 <class 'trireme.multiprocessing.pool.Pool'>"


def test_a_child_that_cannot_import_the_package_loads_it_where_it_lies(run_script: Any) -> None:
    out, _ = run_script(
        """
        import os, subprocess, sys, trireme
        trireme.install()
        env = {**os.environ, "PYTHONPATH": os.environ["PYTHONPATH"].split(os.pathsep)[0]}
        code = "import concurrent.futures as f; print(f.ThreadPoolExecutor.__module__)"
        for flags in ([], ["-s"]):
            done = subprocess.run([sys.executable, *flags, "-c", code], text=True, env=env,
                                  capture_output=True)
            print(done.stdout, done.stderr, end="")
        """
    )
    assert out == "trireme.futures.thread\n " * 2


def test_a_helper_of_the_standard_library_stays_small(run_script: Any) -> None:
    out, _ = run_script(
        """
        import multiprocessing.resource_tracker as tracker, os, trireme
        if __name__ == "__main__":
            trireme.install()
            tracker.ensure_running()
            pid = tracker._resource_tracker._pid
            # It has begun when it can be asked to end.
            import multiprocessing.shared_memory as m
            m.SharedMemory(create=True, size=16).unlink()
            with open(f"/proc/{pid}/maps") as file:
                print("trireme/_core" in file.read())
        """
    )
    assert out == "False\n"


# ---------------------------------------------------------------------------------------------
# trireme exec
# ---------------------------------------------------------------------------------------------

needs_cli = pytest.mark.skipif(CLI is None, reason="no trireme program: set TRIREME_CLI or build")


def execute(*words: str, cwd: Path, **env: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(CLI), "exec", *words],
        cwd=cwd,
        env=script_env(**{"TRIREME_PYTHON": sys.executable, **env}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout, done.stderr


@needs_cli
def test_exec_is_python_dash_m_trireme(write: Any, tmp_path: Path) -> None:
    write(
        "program.py",
        """
        import sys, concurrent.futures, multiprocessing.pool
        print(sys.argv, concurrent.futures.ThreadPoolExecutor.__module__,
              multiprocessing.pool.Pool.__module__)
        sys.exit(7)
        """,
    )
    for words in (
        ["program.py", "a", "--report"],
        ["--only", "futures", "program.py"],
        ["--only=multiprocessing", "-m", "program", "x"],
        ["--report", "-c", "raise SystemExit(7)"],
    ):
        ended = execute(*words, cwd=tmp_path)
        expected = run(*DOORS, *words, cwd=tmp_path)
        assert [ended[0], ended[1]] == [7, expected[1]]
        assert re.sub(r"\d+\.\d s", "", ended[2]) == re.sub(r"\d+\.\d s", "", expected[2])


@needs_cli
def test_exec_says_in_one_line_what_is_wrong(write: Any, tmp_path: Path) -> None:
    write("program.py", "print(1)")
    write("bare", "#!/bin/sh\nexit 3\n").chmod(0o755)
    bare = str(tmp_path / "bare")
    for words, env, code, said in (
        (["no.py"], {}, 2, 'trireme exec: cannot open "no.py": No such file or directory'),
        (["--nothing"], {}, 2, 'trireme exec: no option "--nothing"; `trireme exec --help`'),
        (["--only"], {}, 2, "trireme exec: --only needs the name of a door"),
        (["--only", "x", "program.py"], {}, 2, "trireme: there is no door 'x'"),
        (["program.py"], {"TRIREME_PYTHON": bare}, 1, f"trireme exec: {bare} has no package"),
        (["program.py"], {"TRIREME_PYTHON": "/bin/false"}, 126, "trireme exec: /bin/false does"),
        (["program.py"], {"TRIREME_PYTHON": "/no/python"}, 127, "trireme exec: TRIREME_PYTHON is"),
    ):
        got, out, err = execute(*words, cwd=tmp_path, **env)
        assert (got, out) == (code, ""), (words, err)
        assert err.startswith(said) and err.count("\n") == 1
    code, out, err = execute("--help", cwd=tmp_path)
    assert code == 0 and out.startswith("usage: trireme exec") and err == ""
    code, out, err = execute(cwd=tmp_path)
    assert code == 2 and out == "" and err.startswith("usage: trireme exec")
