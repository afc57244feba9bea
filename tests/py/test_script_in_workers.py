# SPDX-License-Identifier: BSD-3-Clause
"""What a script does at its top level is done in the workers of facades, as by the originals.

Each program runs by Python and through the doors, with a Pool and an executor, and says the same.
"""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from doorslib import run

pytest_plugins = ("doorslib",)

METHODS = ["forkserver", "spawn"]
STARTS = pytest.mark.parametrize("method", METHODS)

# What follows each script: the tasks in `tasks` by a Pool and by an executor, of one worker each.
GUARD = """
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(1) as pool:
        for task in tasks:
            print(task.__name__, pool.apply(task), flush=True)
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        for task in tasks:
            print(task.__name__, executor.submit(task).result(), flush=True)
"""
IMPORTS = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
"""


def script(top: str) -> str:
    return IMPORTS + textwrap.dedent(top) + GUARD


@STARTS
def test_settings_imports_and_patches_of_the_top_level(
    write: Any, program: Any, method: str
) -> None:
    write("plugin.py", "import catalog\ncatalog.names.append('plugin')\n")
    write("catalog.py", "names = []\n")
    out = program(
        script(
            """
            import decimal
            import json
            import plugin
            import threading

            decimal.getcontext().prec = 50
            sys.set_int_max_str_digits(0)
            threading.stack_size(1 << 20)
            json.dumps_nice = lambda value: json.dumps(value, indent=1)

            def digits():
                return len(str(decimal.Decimal(1) / 7)), len(str(10**5000))

            def stack():
                return threading.stack_size()

            def patched():
                import json
                return json.dumps_nice([1])

            def plugins():
                import catalog
                return catalog.names

            def names():
                main = sys.modules["__main__"]
                return __name__, main.__name__, main is sys.modules["__mp_main__"], sys.argv[1:]

            tasks = [digits, stack, patched, plugins, names]
            """
        ),
        method,
    )
    assert out.count("(52, 5001)") == out.count("['plugin']") == 2


@STARTS
def test_globals_that_cannot_be_pickled_are_the_workers_own(program: Any, method: str) -> None:
    out = program(
        script(
            """
            import os
            import random
            import sqlite3
            import threading

            base = sqlite3.connect(":memory:")
            base.execute("create table numbers (x)")
            base.execute("insert into numbers values (7)")
            config = {"file": open(os.devnull), "n": 3}
            numbers = (x for x in range(9))
            local = threading.local()
            local.x = 5
            dice = random.Random(3)
            dice.random()
            lock = threading.Lock()
            shared = multiprocessing.Lock()
            handlers = {}

            def handler(x):
                return base.execute("select x from numbers").fetchone()[0] + x + len(handlers)

            handlers["handler"] = handler

            def database():
                return base.execute("select x from numbers").fetchone()

            def settings():
                return config["file"].name, config["n"]

            def generator():
                return next(numbers), next(numbers)

            def draws():
                return dice.random()

            def locks():
                with lock, shared:
                    return local.x

            def around():
                return handlers["handler"](1)

            if __name__ == "__main__":
                dice.random()  # the owner's own

            tasks = [database, settings, generator, draws, locks, around]
            """
        ),
        method,
    )
    assert out.count("(7,)") == out.count("(0, 1)") == out.count("around 9") == 2


@STARTS
def test_classes_that_others_have_kept_are_those_that_arrive(
    write: Any, program: Any, method: str
) -> None:
    write(
        "catalog.py",
        """
        classes = {}

        def add(cls):
            assert cls.__name__ not in classes, "made twice"
            classes[cls.__name__] = cls
            return cls

        class Base:
            def __init_subclass__(cls):
                add(cls)
        """,
    )
    out = program(
        script(
            """
            import abc
            import catalog

            @catalog.add
            class Model:
                size = 1

                def __init__(self, v):
                    self.v = v

                def value(self):
                    return self.v * self.size

            class Registered(catalog.Base, metaclass=abc.ABCMeta):
                __slots__ = ("v",)

                def __init__(self, v):
                    self.v = v

                def value(self):
                    return self.v

            def make(name):
                made = catalog.classes[name](5)
                return isinstance(made, globals()[name]), made.value(), made

            def model():
                return isinstance(catalog.classes["Model"](1), Model), Model.size

            def registered():
                made = catalog.classes["Registered"](5)
                return isinstance(made, Registered), made.value()

            tasks = [model, registered]
            """
        )
        + textwrap.dedent(
            """
            if __name__ == "__main__":
                with context.Pool(1) as pool:
                    pool.map(len, [[]])
                    print(type(pool.apply(make, ("Model",))[2]) is Model)
                    print(type(pool.apply(make, ("Registered",))[2]) is Registered)
            """
        ),
        method,
    )
    assert "False" not in out and "twice" not in out


@STARTS
def test_log_records_of_loggers_set_up_at_the_top_come_once(program: Any, method: str) -> None:
    out = program(
        script(
            """
            import logging

            log = logging.getLogger("app")
            log.addHandler(logging.StreamHandler(sys.stdout))
            log.setLevel(logging.INFO)

            def say():
                log.info("a record")

            tasks = [say]
            """
        ),
        method,
    )
    assert out.count("a record") == 2


@STARTS
def test_a_module_run_by_m(write: Any, both: Any, method: str) -> None:
    write("package/__init__.py", "")
    write("package/helper.py", "VALUE = 3\n")
    write(
        "package/program.py",
        script(
            """
            from . import helper

            def names():
                return helper.VALUE, __name__, __package__, __spec__.name

            tasks = [names]
            """
        ),
    )
    code, out, _ = both("-m", "package.program", method)
    assert code == 0 and out.count("(3, '__mp_main__', 'package', 'package.program')") == 2


@STARTS
def test_initializers_find_the_top_level_done(program: Any, method: str) -> None:
    program(
        """
        import multiprocessing
        import sys
        from concurrent.futures import ProcessPoolExecutor

        steps = []
        sys.steps = ["top"]

        def initialize(word):
            sys.steps.append(word)

        def look():
            return sys.steps

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with context.Pool(1, initialize, ("initializer",)) as pool:
                print(pool.apply(look))
            with ProcessPoolExecutor(1, context, initialize, ("initializer",)) as executor:
                print(executor.submit(look).result())
        """,
        method,
    )


@STARTS
def test_pools_and_processes_of_workers_and_workers_that_are_replaced(
    program: Any, method: str
) -> None:
    out = program(
        """
        import multiprocessing
        import sys
        import threading
        from concurrent.futures import ProcessPoolExecutor

        lock = threading.Lock()

        class Box:
            def __init__(self, v):
                self.v = v

        def leaf(x):
            with lock:
                return Box(x + 1)

        def nested():
            with ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[1])) as executor:
                return list(executor.map(leaf, range(2)))

        def put(queue):
            queue.put((type(leaf(1)) is Box, __name__))

        def process():
            context = multiprocessing.get_context(sys.argv[1])
            queue = context.Queue()
            child = context.Process(target=put, args=(queue,))
            child.start()
            found = queue.get(timeout=30)
            child.join()
            return found

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with ProcessPoolExecutor(1, context) as executor:
                print([(type(box) is Box, box.v) for box in executor.submit(nested).result()])
                print(executor.submit(process).result())
            with context.Pool(1, maxtasksperchild=1) as pool:
                print([type(pool.apply(leaf, (x,))) is Box for x in range(2)])
        """,
        method,
    )
    assert "False" not in out


# ---------------------------------------------------------------------------------------------
# Where the originals fail
# ---------------------------------------------------------------------------------------------


def through_doors(source: str, method: str, write: Any, tmp_path: Any) -> tuple[int, str, str]:
    write("program.py", source)
    return run("-m", "trireme", "program.py", method, cwd=tmp_path)


@STARTS
def test_an_exception_of_the_top_level_is_shown_and_functions_go_on(
    write: Any, tmp_path: Any, method: str
) -> None:
    source = """
        import multiprocessing
        import sys

        if multiprocessing.current_process().name != "MainProcess":
            raise OSError("not twice")

        def add(x):
            return x + 1

        if __name__ == "__main__":
            with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
                print(pool.map(add, range(3)))
        """
    code, out, err = through_doors(source, method, write, tmp_path)
    assert (code, out) == (0, "[1, 2, 3]\n")
    assert "trireme: the top level of" in err and "OSError: not twice" in err


@STARTS
@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':\n    print('end')\n"])
def test_a_pool_that_no_guard_protects_is_not_opened_by_its_workers(
    write: Any, tmp_path: Any, method: str, guard: str
) -> None:
    source = (
        "import multiprocessing, sys\n"
        "print('top')\n"
        "def add(x):\n"
        "    return x + 1\n"
        "with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:\n"
        "    print(pool.map(add, range(3)))\n"
    )
    code, out, err = through_doors(source + guard, method, write, tmp_path)
    assert (code, out.replace("end\n", ""), err) == (0, "top\n[1, 2, 3]\n", "")


@STARTS
def test_what_a_worker_cannot_have_is_refused_as_before(
    write: Any, tmp_path: Any, method: str
) -> None:
    """The generator is bound under the guard only: with the originals there is a NameError."""
    source = """
        import multiprocessing
        import sys

        def take():
            return next(numbers)

        if __name__ == "__main__":
            numbers = (x for x in range(3))
            with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
                try:
                    pool.apply(take)
                except TypeError as exc:
                    print(exc)
        """
    code, out, _ = through_doors(source, method, write, tmp_path)
    assert code == 0 and "take -> global numbers" in out


@STARTS
def test_what_the_guarded_block_binds_arrives(write: Any, tmp_path: Any, method: str) -> None:
    source = """
        import multiprocessing
        import sys

        scale = 1

        class Options:
            depth = 1
            table = []

        def read():
            return scale, Options.depth, Options.table, extra

        if __name__ == "__main__":
            scale, extra = 2, "extra"
            Options.depth = 2
            Options.table = [1]
            with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
                print(pool.apply(read))
        """
    assert through_doors(source, method, write, tmp_path)[:2] == (0, "(2, 2, [1], 'extra')\n")


@STARTS
def test_what_the_top_level_prints_is_printed_once(write: Any, tmp_path: Any, method: str) -> None:
    source = """
        import multiprocessing
        import sys
        from concurrent.futures import ProcessPoolExecutor

        console = sys.stdout
        print("top", end=" ")
        sys.stdout.buffer.write(b"bytes\\n")
        print("on stderr", file=sys.stderr)

        def say(x):
            print("task", x, file=console)
            return x

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with context.Pool(2) as pool:
                print(pool.map(say, range(2)))
            with ProcessPoolExecutor(1, mp_context=context) as executor:
                print(executor.submit(say, 2).result())
        """
    code, out, err = through_doors(source, method, write, tmp_path)
    lines = ["bytes", "task 0", "task 1", "[0, 1]", "task 2", "2"]
    assert code == 0 and sorted(out.replace("top ", "").splitlines()) == sorted(lines)
    assert out.count("top") == 1 and set(err.splitlines()) == {"on stderr"}


@STARTS
def test_workers_of_a_native_pool_do_not_run_the_script(run_script: Any, method: str) -> None:
    out, _ = run_script(
        """
        import sys
        import trireme
        import trireme.multiprocessing

        print("top")

        def look():
            return hasattr(sys.modules["__main__"], "look")

        if __name__ == "__main__":
            with trireme.multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
                print(pool.apply(look))
            with trireme.Pool(1, start=sys.argv[1]) as pool:
                print(pool.submit(look).result())
        """,
        method,
    )
    assert out == "top\nTrue\nFalse\n"
