# SPDX-License-Identifier: BSD-3-Clause
"""Functions, arguments and results survive the journey, and what cannot travel says why.

The journeys between processes run a script as ``__main__`` (the owner) that talks to a fresh
interpreter or to a fork of itself (the worker) over pipes.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import operator
import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import trireme as tri
from trireme import _pickling
from trireme._pickling import MISSING, UnpicklableError, dumps, dumps_function, loads

np = pytest.importorskip("numpy")

PRELUDE = '''
import os, pickle, struct, subprocess, sys
from trireme import _pickling as P

def serve(inp, out):
    while head := inp.read(8):
        fn, data = pickle.loads(inp.read(struct.unpack("q", head)[0]))
        value = P.loads(fn)(*P.loads(data))
        reply = P.dumps_inband(value, is_result=True)
        out.write(struct.pack("q", len(reply)) + reply); out.flush()

class Fresh:
    """A worker that starts with nothing."""
    def __init__(self):
        code = "import sys; sys.argv.pop(0)\\n" + SERVE
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.p = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=env)
        self.inp, self.out = self.p.stdout, self.p.stdin
    def send(self, fn, data):
        body = pickle.dumps((fn, data))
        self.out.write(struct.pack("q", len(body)) + body); self.out.flush()
        size = struct.unpack("q", self.inp.read(8))[0]
        return P.loads(self.inp.read(size))
    def call(self, fn, *args):
        return self.send(P.dumps_function(fn), P.dumps_inband(args))

class Forked(Fresh):
    """A worker that is a fork of the owner."""
    def __init__(self):
        a, b = os.pipe(); c, d = os.pipe()
        if os.fork() == 0:
            P.become_worker()
            os.close(b); os.close(c)
            serve(os.fdopen(a, "rb"), os.fdopen(d, "wb"))
            os._exit(0)
        os.close(a); os.close(d)
        self.out, self.inp = os.fdopen(b, "wb"), os.fdopen(c, "rb")

SERVE = """
import os, pickle, struct, sys
from trireme import _pickling as P
inp, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
while head := inp.read(8):
    fn, data = pickle.loads(inp.read(struct.unpack("q", head)[0]))
    value = P.loads(fn)(*P.loads(data))
    reply = P.dumps_inband(value, is_result=True)
    out.write(struct.pack("q", len(reply)) + reply); out.flush()
"""
'''


def run_main(tmp_path: Path, body: str) -> None:
    """Run *body* as a script that has both kinds of worker at hand; it must succeed."""
    script = tmp_path / "script.py"
    script.write_text(PRELUDE + body)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- by name or by value ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn", [math.sqrt, os.path.join, len, str, str.upper, dict.fromkeys, Path, np.sqrt, np.sum]
)
def test_what_can_be_imported_travels_by_name(fn: object) -> None:
    data = dumps_function(fn)
    assert len(data) < 100
    assert loads(data) == fn
    watch = _pickling.function_watch(fn)
    assert watch is None or watch[:3] == ([], [], False)


def test_import_does_not_load_what_is_expensive() -> None:
    code = (
        "import sys; from trireme import _pickling, _errors, _worker, _output, _progress, _limits;"
        "bad = {'cloudpickle', 'tqdm', 'logging', 'multiprocessing', 'traceback', 'numpy',"
        "'concurrent.futures', 'asyncio', 'ctypes', 'subprocess'} & set(sys.modules);"
        "assert not bad, bad"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_lambdas_closures_and_local_functions_travel_by_value() -> None:
    n = 5

    def add(x: int) -> int:
        return x + n

    assert loads(dumps_function(add))(1) == 6
    assert loads(dumps_function(lambda x: x * n))(2) == 10
    assert loads(dumps_function(functools.partial(add, 3)))() == 8


def test_bound_methods_and_callable_instances_travel() -> None:
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, x: int) -> int:
            return x + self.n

        def add(self, x: int) -> int:
            return x + self.n

    assert loads(dumps_function(Adder(2)))(1) == 3
    assert loads(dumps_function(Adder(2).add))(1) == 3


def test_a_module_that_cannot_be_found_again_travels_by_value(tmp_path: Path) -> None:
    file = tmp_path / "somewhere.py"
    file.write_text("K = 3\nclass C:\n    x = 4\ndef f(a): return a * K\ndef g(): return C()\n")
    spec = importlib.util.spec_from_file_location("trireme_test_elsewhere", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert not _pickling._judge(spec.name)
        sent = [dumps_function(module.f), dumps((module.C(),))[0], dumps_function(lambda: module.f)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        code = (
            "import pickle, sys; from trireme._pickling import loads\n"
            "f, c, l = map(loads, pickle.load(sys.stdin.buffer))\n"
            "assert f(2) == 6 and c[0].x == 4 and l()(3) == 9"
        )
        subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(sent), check=True, env=env, timeout=60
        )
    finally:
        del sys.modules[spec.name]


def test_local_functions_of_a_module_run_on_the_workers_import_of_it(tmp_path: Path) -> None:
    (tmp_path / "trireme_test_library.py").write_text(
        "import math, threading\n"
        "lock = threading.Lock(); calls = []; K = 4\n"
        "def count():\n    with lock: calls.append(1); return len(calls)\n"
        "def make():\n    return lambda: (count(), len(calls))\n"
        "def light():\n    return lambda x: math.floor(x) * K\n"
    )
    run_main(
        tmp_path,
        """
import trireme_test_library as lib
def loaded(): return "trireme_test_library" in sys.modules
lib.count()
worker = Fresh()
assert worker.call(lib.light(), 2.5) == 8
assert not worker.call(loaded), "constants travel along; no import is needed"
assert worker.call(lib.make()) == (1, 1)
assert worker.call(lib.count) == 2
assert P.function_watch(lib.make())[:3] == ([], [], False)
""",
    )


def test_what_is_not_callable_is_refused() -> None:
    with pytest.raises(TypeError, match="function is needed, not 5"):
        dumps_function(5)


def test_cached_functions_travel_by_value_even_when_recursive(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
import functools
@functools.lru_cache(maxsize=50)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
for worker in Fresh(), Forked():
    assert worker.call(fib, 40) == 102334155
""",
    )


# --- journeys of __main__ ---------------------------------------------------------------------


def test_results_of_main_classes_are_of_the_owners_class(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
import dataclasses, enum, typing
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
class Pair(typing.NamedTuple):
    a: int
    b: int
class Base:
    count = 0
class Child(Base):
    __slots__ = ("v",)
    def __init__(self, v): super().__init__(); self.v = v
class MyError(Exception): pass
def work(p, c):
    Base.count += 1
    return [Point(p.x + 1, p.y), c, Colour.BLUE, Pair(1, 2), Child(3), Base, MyError("m")]
for worker in Fresh(), Forked(), Fresh():
    for _ in range(3):
        p, c, blue, pair, child, base, error = worker.call(work, Point(1, 2), Colour.RED)
        assert type(p) is Point and p == Point(2, 2)
        assert c is Colour.RED and blue is Colour.BLUE
        assert type(pair) is Pair and type(child) is Child and child.v == 3
        assert base is Base and isinstance(error, MyError)
        assert Base.count == 0, "a result changed a class of the owner"
""",
    )


def test_classes_made_in_a_worker_arrive_and_stay_the_same_class(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
def work():
    global Local
    try: Local
    except NameError:
        class Local:
            tag = "here"
    return Local()
for worker in Fresh(), Forked():
    one, two = worker.call(work), worker.call(work)
    assert one.tag == "here" and type(one) is type(two)
""",
    )


def test_an_initializer_shares_its_globals_with_the_tasks(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
model = None
scale = 10
def init(v):
    global model
    model = v
def helper(x): return x * scale
def work(x): return (model, helper(x))
def peek(): return (model, scale)
for worker in Fresh(), Forked():
    scale = 10
    worker.call(init, "loaded")
    assert worker.call(work, 2) == ("loaded", 20)
    assert worker.call(work, 3) == ("loaded", 30)
    scale = 7                       # bound anew by the owner: the worker must see it
    assert worker.call(work, 2) == ("loaded", 14)
    assert worker.call(peek) == ("loaded", 7)
""",
    )


def test_each_message_finds_the_globals_that_it_was_made_with(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
scale = 1
def work(): return scale
old = P.dumps_function(work)
scale = 2
new = P.dumps_function(work)
worker = Fresh()
none = P.dumps_inband(())
assert worker.send(old, none) == 1
assert worker.send(new, none) == 2
assert worker.send(old, none) == 1
assert worker.send(new, none) == 2
""",
    )


def test_a_changed_class_reaches_the_worker(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
class Config:
    level = 1
    def get(self): return self.level
def work(c): return c.get()
for worker in Fresh(), Forked():
    Config.level = 1
    assert worker.call(work, Config()) == 1
    Config.level = 2
    assert worker.call(work, Config()) == 2
    Config.get = lambda self: 99
    assert worker.call(work, Config()) == 99
    Config.get = lambda self: self.level
""",
    )


def test_a_worker_can_be_an_owner(tmp_path: Path) -> None:
    run_main(
        tmp_path,
        """
class Thing:
    def __init__(self, v): self.v = v
offset = 5
def inner(t): return Thing(t.v + offset)
def outer(t):
    global offset
    offset = 50
    out = Forked().call(inner, t), Fresh().call(inner, t)
    assert all(type(o) is Thing for o in out), out
    return out
for worker in Fresh(), Forked():
    a, b = worker.call(outer, Thing(1))
    assert type(a) is Thing and type(b) is Thing and a.v == b.v == 51
    assert offset == 5
""",
    )


def test_a_class_is_read_once_per_worker() -> None:
    class Item:
        pass

    first, _ = dumps(Item())
    second, _ = dumps(Item())
    assert first == second, "the pickle of an unchanged class is kept"
    Item.extra = 1  # type: ignore[attr-defined]
    third, _ = dumps(Item())
    assert third != first
    assert type(loads(third)) is Item


# --- buffers ------------------------------------------------------------------------------------


def test_large_buffers_leave_the_stream_and_small_ones_do_not() -> None:
    small, large = np.arange(100.0), np.arange(10_000.0)
    data, buffers = dumps({"s": small, "l": [large, large]})
    assert [b.nbytes for b in buffers] == [large.nbytes]
    assert all(b.format == "B" and b.contiguous and b.ndim == 1 for b in buffers)
    assert len(data) < 2000
    back = loads(data, [bytes(b) for b in buffers])
    assert (back["l"][0] == large).all() and back["l"][0] is back["l"][1]
    assert (back["s"] == small).all()
    assert not back["l"][0].flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((1000, 0)),
        np.arange(10_000.0)[::2],
        np.arange(10_000.0)[::-1],
        np.arange(12_000.0).reshape(100, 120).T,
        np.asfortranarray(np.arange(12_000.0).reshape(100, 120)),
        np.arange(12_000.0).reshape(100, 120)[:, 3:50],
        np.arange(10_000)[::3].astype(">i4"),
        np.array(["a", "bcd"] * 3000),
        np.array([{"a": 1}, None], dtype=object),
        np.broadcast_to(np.float64(3), (2000,)),
    ],
)
def test_arrays_of_every_shape_and_order(array: object) -> None:
    data, buffers = dumps(array)
    back = loads(data, buffers)
    assert back.dtype == array.dtype and back.shape == array.shape  # type: ignore[attr-defined]
    assert (back == array).all()


def test_memoryviews_travel_as_memoryviews() -> None:
    view = memoryview(bytearray(range(256)) * 64).cast("i")
    data, buffers = dumps([view])
    assert sum(b.nbytes for b in buffers) == view.nbytes
    (back,) = loads(data, buffers)
    assert isinstance(back, memoryview) and back == view and back.format == "i"
    numbers = memoryview(bytes(range(96))).cast("i", [4, 6])
    for view in (
        numbers,
        memoryview(b"abcdef")[::2],
        memoryview(bytes(range(32))).cast("d")[::-1],
        memoryview(bytes(8)).cast("q", ()),
        memoryview(b""),
        memoryview(bytes(64)).cast("i")[3:3],
    ):
        back = loads(*dumps(view))
        assert isinstance(back, memoryview) and back == view
        assert (back.format, back.shape) == (view.format, view.shape)
    numpy = pytest.importorskip("numpy")
    back = loads(*dumps(memoryview(numpy.zeros(3, "i4,f8"))))
    assert isinstance(back, memoryview) and bytes(back) == bytes(36)
    back = loads(*dumps(memoryview(numpy.arange(24.0).reshape(4, 6).T)))
    assert (back.format, back.shape) == ("d", (6, 4)) and back[5, 1] == 11.0
    assert loads(*dumps(memoryview(numpy.zeros((3, 0))))).nbytes == 0


def test_results_use_buffers_too() -> None:
    large = np.arange(10_000.0)
    data, buffers = _pickling.dumps_result((large, lambda: 1))
    assert len(buffers) == 1
    assert (loads(data, buffers)[0] == large).all()


# --- blame ---------------------------------------------------------------------------------------


class Holder:
    """Importable, holds anything."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("inner",)


def blame(obj: object, name: str = "args") -> str:
    with pytest.raises(UnpicklableError) as info:
        dumps(obj, name)
    assert isinstance(info.value, (pickle.PicklingError, TypeError))
    return str(info.value)


def test_the_path_to_the_culprit_is_named() -> None:
    text = blame(({"model": Holder(lock=threading.Lock())},))
    assert text.startswith("args[0]['model'].lock: cannot pickle '_thread.lock' object")
    slotted = Slotted()
    slotted.inner = (x for x in ())
    assert blame([1, slotted]).startswith(
        "args[1].inner: cannot pickle 'generator' object; make it a list"
    )
    assert blame([{1, 2}, Holder(f=sys._getframe())]).startswith("args[1].f: cannot pickle 'frame'")


def test_the_path_inside_a_function_is_named() -> None:
    lock = threading.Lock()

    def work() -> object:
        return lock

    for fn, path in (
        (work, "-> closure variable lock: "),
        (functools.partial(math.pow, lock), "partial(pow).args[0]: "),
        (lambda x=lock: x, "-> default value 0: "),
    ):
        with pytest.raises(UnpicklableError) as info:
            dumps_function(fn)
        assert path in str(info.value) and "'_thread.lock'" in str(info.value)
    namespace = in_namespace("def g(): return lock", lock=lock)
    with pytest.raises(UnpicklableError, match="^g -> global lock: cannot pickle"):
        dumps_function(namespace["g"])


def test_cycles_do_not_mislead_the_search() -> None:
    a: dict[str, object] = {}
    b = {"up": a, "n": 1}
    a["b"] = b
    a["z"] = Holder(lock=threading.Lock())
    assert blame(a).startswith("args['z'].lock: ")


def test_an_exception_of_the_users_own_hook_is_chained() -> None:
    class Stubborn:
        def __reduce__(self) -> str:
            raise ValueError("not today")

    text = blame([Stubborn()])
    assert text.startswith("args[0]: ValueError: not today")
    with pytest.raises(UnpicklableError) as info:
        dumps(Stubborn())
    assert isinstance(info.value.__cause__, ValueError)


def test_too_deep_is_said_plainly() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in blame(deep)


def test_a_wide_search_ends() -> None:
    wide = [Holder(n=i) for i in range(200_000)]
    wide.append(Holder(lock=threading.Lock()))
    assert blame(wide).startswith("args")


# --- watching -----------------------------------------------------------------------------------

LIMIT = 3
TABLE = [1, 2]


@pytest.fixture(autouse=True)
def nowhere() -> Iterator[types.ModuleType]:
    """A module that is loaded and that nobody can import."""
    module = sys.modules["trireme_test_nowhere"] = types.ModuleType("trireme_test_nowhere")
    yield module
    del sys.modules["trireme_test_nowhere"]


def in_namespace(code: str, **bound: object) -> dict[str, object]:
    """Run code in that module."""
    namespace = sys.modules["trireme_test_nowhere"].__dict__
    namespace.update(bound)
    exec(code, namespace)
    return namespace


def test_a_watch_lists_globals_and_cells() -> None:
    namespace = in_namespace("def f(x): return g(x) + later\ndef g(x): return x * LIMIT", LIMIT=3)
    watch = _pickling.function_watch(namespace["f"])
    assert watch is not None
    names, cells, volatile, *_ = watch
    assert {(n, id(v)) for d, n, v in names if d is namespace} == {
        ("g", id(namespace["g"])),
        ("later", id(MISSING)),
        ("LIMIT", id(3)),
    }
    assert cells == [] and volatile is False

    n, holder = 1, [0]
    _, cells, volatile, *_ = _pickling.function_watch(lambda: n) or ([], [], None)
    assert [v for _, v in cells] == [1] and volatile is False
    assert (_pickling.function_watch(lambda: holder) or ())[2] is True


@pytest.mark.parametrize(
    ("value", "volatile"),
    [
        (1, False),
        ("s", False),
        ((1, (2, None)), False),
        (frozenset({1}), False),
        (math, False),
        (math.sqrt, False),
        (Path("x"), False),
        (np.float64(1), False),
        (np.dtype("f8"), False),
        (operator.itemgetter(1), False),
        (functools.partial(math.pow, 2), False),
        (range(3), False),
        ([], True),
        ({}, True),
        (([],), True),
        (bytearray(), True),
        (np.zeros(3), True),
        (Holder(), True),
        (functools.partial(math.pow, []), True),
        (Holder().__init__, True),
        (types.ModuleType("made_up"), True),
    ],
)
def test_what_can_change_in_place_is_volatile(value: object, volatile: bool) -> None:
    namespace = in_namespace("def f(): return value", value=value)
    watch = _pickling.function_watch(namespace["f"])
    assert watch is not None and watch[2] is volatile
    logger = in_namespace("import logging\nlog = logging.getLogger('x')\ndef f(): log.info('')")
    assert (_pickling.function_watch(logger["f"]) or ())[2] is False


def test_a_dataclass_does_not_make_its_users_volatile() -> None:
    namespace = in_namespace(
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n"
        "    def f(self): return K\n"
        "def f(): return P(1)",
        K=1,
    )
    watch = _pickling.function_watch(namespace["f"])
    assert watch is not None and watch[2] is False
    assert "K" in {name for _, name, _ in watch[0]}, "what methods refer to is watched"


def test_a_changed_function_is_sent_again() -> None:
    """Whatever of it changed: a pool remembers what it has sent."""
    namespace = in_namespace(
        "import functools\n"
        "class C:\n    k = 1\n"
        "def inner(x): return x\n"
        "def other(x): return -x\n"
        "def f(x, a=1, *, b=1): return inner(x), a, b, getattr(inner, 'mark', 0), C.k\n"
        "@functools.lru_cache\ndef g(x): return x, h(x)\n"
        "def h(x): return getattr(h, 'mark', 0)\n"
        "part = functools.partial(f, a=5)\n"
    )
    f, inner, other = namespace["f"], namespace["inner"], namespace["other"]

    def with_kwdefault(value: int) -> None:
        f.__kwdefaults__["b"] = value

    def with_mark() -> None:
        inner.mark = 7

    def with_code() -> None:
        inner.__code__ = other.__code__

    changes = [
        (lambda: None, (1, 1, 1, 0, 1)),
        (lambda: setattr(f, "__defaults__", (2,)), (1, 2, 1, 0, 1)),
        (lambda: with_kwdefault(3), (1, 2, 3, 0, 1)),
        (lambda: setattr(f, "__kwdefaults__", {"b": 4}), (1, 2, 4, 0, 1)),
        (with_mark, (1, 2, 4, 7, 1)),
        (with_code, (-1, 2, 4, 7, 1)),
    ]
    with tri.Pool(1) as pool:
        for change, expected in changes:
            change()
            assert pool.submit(f, 1).result(20) == expected
            assert pool.map(f, [1, 1]) == [expected] * 2
            assert pool.map(namespace["part"], [1]) == [(expected[0], 5, *expected[2:])]
        namespace["C"].k = 2
        assert pool.submit(f, 1).result(20) == (-1, 2, 4, 7, 2)
        assert pool.map(f, [1]) == [(-1, 2, 4, 7, 2)]
        assert pool.map(namespace["g"], [1]) == [(1, 0)]
        namespace["h"].mark = 9
        assert pool.map(namespace["g"], [2]) == [(2, 9)]
