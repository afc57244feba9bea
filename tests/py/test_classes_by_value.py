# SPDX-License-Identifier: BSD-3-Clause
"""Classes and globals that travel by value are in a worker what they are in the script, now.

They live in a module that is loaded and that nobody can import, as ``__main__`` is one.
"""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trireme as tri
from trireme import _pickling
from trireme._pickling import dumps_function, loads


@pytest.fixture(scope="module")
def modules() -> Iterator[list[str]]:
    """The names of the modules made here; they stay until the end, as modules do."""
    names: list[str] = []
    yield names
    for name in names:
        del sys.modules[name]


@pytest.fixture
def script(modules: list[str]) -> Callable[..., dict[str, Any]]:
    """Run code in a module of the test's own; what it defines travels by value."""
    name = f"trireme_test_script_{len(modules)}"
    module = sys.modules[name] = types.ModuleType(name)
    modules.append(name)

    def run(code: str) -> dict[str, Any]:
        exec(code, module.__dict__)
        return module.__dict__

    return run


@pytest.fixture(scope="module")
def pool() -> Iterator[tri.Pool]:
    with tri.Pool(1) as pool:
        yield pool


def all_calls(pool: tri.Pool, fn: Callable[..., Any]) -> Any:
    """What *fn* gives however it is called, which must be the same."""
    one = pool.submit(fn, 0).result(20)
    assert pool.apply(fn, (0,)) == one
    assert pool.map(fn, [0, 0]) == [one] * 2
    assert list(pool.imap(fn, [0])) == [one]
    return one


# --- slots --------------------------------------------------------------------------------------

SLOTS = """
import dataclasses, typing
T = typing.TypeVar("T")
class Base:
    __slots__ = ("a",)
class Sub(Base):
    __slots__ = ["b"]
class Open(Base): pass
class One: __slots__ = "a"
class Empty: __slots__ = ()
class Weak: __slots__ = ("a", "__weakref__")
class Dict: __slots__ = ("a", "__dict__")
class Documented: __slots__ = {"a": "the first"}
class Generic(typing.Generic[T]): __slots__ = ("a",)
class Private:
    __slots__ = ("__a",)
    def set(self, a): self.__a = a; return self
    def __eq__(self, other): return self.__a == other.__a
@dataclasses.dataclass(slots=True)
class Data:
    a: int
    b: float = 1.0
@dataclasses.dataclass(slots=True, frozen=True, order=True)
class Frozen:
    a: int
class Pair(typing.NamedTuple):
    a: int
    b: int
class Longer(Pair):
    __slots__ = ()
class Text(str): __slots__ = ()
def make(cls, **attributes):
    made = cls.__new__(cls)
    for name, value in attributes.items(): setattr(made, name, value)
    return made
values = [
    make(Base, a=1), make(Sub, a=1, b=2), make(Open, a=1, c=2), make(One, a=1), Empty(),
    make(Weak, a=1), make(Dict, a=1, c=2), make(Documented, a=1),
    make(Generic, a=1), Private().set(3), Data(1), Frozen(1), Pair(1, 2), Longer(1, 2), Text("t"),
]
open_to_all = {"Open", "Dict"}
def state(value): return {n: getattr(value, n) for n in "abc" if hasattr(value, n)}
def same(value): return value
def again(cls, state, *args):
    return make(cls, **state) if not args else cls(*args)
def takes_anything(value):
    try: value.anything = 1
    except (AttributeError, TypeError): return False
    return True
"""


def test_a_class_with_slots_has_them_in_the_worker(script: Any, pool: tri.Pool) -> None:
    names = script(SLOTS)
    for value in names["values"]:
        back = pool.apply(names["same"], (value,))
        kind = type(value)
        assert type(back) is kind
        assert names["state"](back) == names["state"](value), kind
        if kind.__eq__ is not object.__eq__:
            assert back == value
        if kind.__name__ != "Pair":  # NamedTuple makes its own
            taken = pool.apply(names["takes_anything"], (value,))
            assert taken is (kind.__name__ in names["open_to_all"]), kind
    made = pool.apply(names["again"], (names["Sub"], {"a": 3, "b": 4}))
    assert type(made) is names["Sub"] and (made.a, made.b) == (3, 4)
    assert pool.apply(names["again"], (names["Frozen"], {}, 5)) == names["Frozen"](5)
    assert pool.apply(names["same"], (names["Sub"],)) is names["Sub"]
    assert pool.apply(lambda cls: cls.__slots__, (names["Documented"],)) == {"a": "the first"}


def test_a_class_with_slots_that_a_worker_made_arrives(script: Any, pool: tri.Pool) -> None:
    names = script(
        "def work(x):\n"
        "    class Local:\n"
        "        __slots__ = ('a', '__b')\n"
        "        def __init__(self): self.a = self.__b = x\n"
        "        def get(self): return self.__b\n"
        "    return Local()\n"
    )
    back = pool.apply(names["work"], (3,))
    assert back.a == back.get() == 3 and not hasattr(back, "__dict__")


# --- changes of a class -------------------------------------------------------------------------

CHANGING = """
import contextlib, functools
def traced(f):
    @functools.wraps(f)
    def wrapper(*args): return f(*args)
    return wrapper
class Meta(type):
    kind = "meta"
class Base:
    inherited = 1
class Config(Base, metaclass=Meta):
    rate = 0.1
    table = [1]
    def method(self): return 1
    @property
    def shown(self): return 1
    @classmethod
    def made(cls): return 1
    @traced
    def wrapped(self): return scale
    @contextlib.contextmanager
    def entered(self): yield depth
scale = depth = 1
class Plain: rate = 1
def look(_):
    c = Config()
    with c.entered() as entered: pass
    return (entered, c.rate, c.table, c.method(), c.shown, c.made(), c.wrapped(), c.inherited,
            type(c).kind, getattr(c, "extra", None))
def plain(_): return Plain.rate, getattr(Plain, "extra", None)
"""


def test_every_call_sees_a_class_as_it_is(script: Any, pool: tri.Pool) -> None:
    names = script(CHANGING)
    look, config = names["look"], names["Config"]
    now = [1, 0.1, [1], 1, 1, 1, 1, 1, "meta", None]

    def expect(at: int, value: Any) -> None:
        now[at + 1] = value
        assert all_calls(pool, look) == tuple(now)

    expect(0, 0.1)
    config.rate = 0.2
    expect(0, 0.2)
    config.table.append(2)
    expect(1, [1, 2])
    config.table = (3,)
    expect(1, (3,))
    config.method = lambda self: 2
    expect(2, 2)
    config.shown = property(lambda self: 3)
    expect(3, 3)
    config.made = classmethod(lambda cls: 4)
    expect(4, 4)
    names["scale"] = 5
    expect(5, 5)
    names["depth"] = 6
    expect(-1, 6)
    names["Base"].inherited = 6
    expect(6, 6)
    names["Meta"].kind = "other"
    expect(7, "other")
    config.extra = 7
    expect(8, 7)
    del config.extra
    expect(8, None)
    names["Base"].extra = 8
    expect(8, 8)


def test_a_deleted_attribute_is_gone_for_instances_too(script: Any, pool: tri.Pool) -> None:
    plain = script(CHANGING)["Plain"]
    has = lambda value: hasattr(value, "extra")  # noqa: E731
    assert pool.apply(has, (plain(),)) is False
    plain.extra = 1
    assert pool.apply(has, (plain(),)) is True
    del plain.extra
    assert pool.apply(has, (plain(),)) is False
    with tri.Pool(1, start="fork") as forked:
        assert forked.apply(has, (plain(),)) is False
        plain.extra = 1
        assert forked.apply(has, (plain(),)) is True
        del plain.extra
        assert forked.apply(has, (plain(),)) is False


def test_a_worker_keeps_what_it_put_into_a_class(script: Any, pool: tri.Pool) -> None:
    names = script(
        CHANGING + "def put(): Plain.own = 3\ndef get(_): return Plain.own, Plain.rate\n"
    )
    pool.apply(names["put"])
    assert all_calls(pool, names["get"]) == (3, 1)
    names["Plain"].rate = 2
    assert all_calls(pool, names["get"]) == (3, 2)


BOOKKEEPING = {
    "dataclass": "@dataclasses.dataclass\nclass C:\n    x: int\n"
    "    y: list = dataclasses.field(default_factory=list)\n"
    "    z: int = dataclasses.field(default=3, repr=False)\n",
    "frozen": "@dataclasses.dataclass(frozen=True, order=True)\nclass C:\n    x: int = 3\n",
    "slots": "@dataclasses.dataclass(slots=True)\nclass C:\n"
    "    x: tuple = dataclasses.field(default_factory=lambda: (K,))\n",
    "enum": "class C(enum.Enum):\n    A = 1\n    B = 2\n"
    "    @property\n    def low(self): return self.name\n",
    "flag": "class C(enum.Flag):\n    A = 1\n    B = 2\n    AB = 3\n",
    "str enum": "class C(str, enum.Enum):\n    A = 'a'\n",
    "abc": "class A(abc.ABC):\n    @abc.abstractmethod\n    def m(self): ...\n"
    "class C(A):\n    def m(self): return super().m(), K\n",
    "protocol": "class P(typing.Protocol):\n    a: int\n    def m(self) -> int: ...\n"
    "@typing.runtime_checkable\nclass Q(P, typing.Protocol): ...\n"
    "class C(Q):\n    def m(self): return 1\n",
    "generic": "T = typing.TypeVar('T')\nclass G(typing.Generic[T]):\n    def m(self): return K\n"
    "class C(G[int]): pass\n",
    "named tuple": "class C(typing.NamedTuple):\n    a: int\n    b: int = 3\n",
    "collections": "class C(collections.namedtuple('N', 'a b', defaults=(1,))):\n    pass\n",
    "typed dict": "class C(typing.TypedDict):\n    a: int\n",
    "metaclass": "class M(type):\n    def __call__(cls): return super().__call__()\n"
    "class C(metaclass=M): pass\n",
    "functools": "class C:\n    @functools.cached_property\n    def p(self): return K\n"
    "    @functools.lru_cache\n    def l(self): return K\n"
    "    h = functools.partialmethod(l, 3)\n"
    "    @functools.singledispatchmethod\n    def s(self, a): return 0\n"
    "    @s.register\n    def _(self, a: int): return 1\n"
    "    @contextlib.contextmanager\n    def c(self): yield K\n",
    "annotated": "class C(Exception):\n    a: int\n    b: str = 'x'\n    class Inner: z = 1\n",
    "attrs": "import attr\n@attr.s(auto_attribs=True)\nclass C:\n    a: int = 3\n"
    "    b: list = attr.Factory(list)\n",
    "frozen attrs": "import attr\n@attr.frozen\nclass C:\n    a: int = 3\n",
}


@pytest.mark.parametrize("what", BOOKKEEPING)
def test_the_bookkeeping_of_others_does_not_make_a_class_volatile(script: Any, what: str) -> None:
    if "attrs" in what:
        pytest.importorskip("attr")
    names = script(
        "import abc, collections, contextlib, dataclasses, enum, functools, typing\nK = 1\n"
        + BOOKKEEPING[what]
        + "def f(): return C\n"
    )
    first = dumps_function(names["f"])
    watch = _pickling.function_watch(names["f"])
    assert watch is not None and watch[2] is False
    assert dumps_function(names["f"]) == first
    names["C"].items = []
    watch = _pickling.function_watch(names["f"])
    assert watch is not None and watch[2] is True


def test_calls_that_use_a_class_do_not_pickle_it_again(
    script: Any, pool: tri.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = script(BOOKKEEPING["dataclass"].join(["import dataclasses\n", "def f(x): return C(x)"]))
    pickled = []
    real = _pickling._dump_by_value
    monkeypatch.setattr(
        _pickling, "_dump_by_value", lambda *args: (pickled.append(args[0]), real(*args))[1]
    )
    f, c = names["f"], names["C"]
    assert pool.map(f, [1]) == [c(1)] and pickled == [f]
    assert pool.map(f, [1]) == [c(1)] and pool.submit(f, 2).result(20) == c(2)
    assert pickled in ([f], [f, f])  # results made the owner note down the names of its slots
    before = len(pickled)
    for _ in range(3):
        assert pool.map(f, [1]) == [c(1)] and pool.submit(f, 2).result(20) == c(2)
    assert len(pickled) == before
    c.z = 4
    assert pool.map(f, [1]) == [c(1)] and len(pickled) == before + 1


# --- descriptors and dispatchers of functools --------------------------------------------------


def test_cached_properties_travel(script: Any, pool: tri.Pool) -> None:
    names = script(
        "import functools\n"
        "class Own(functools.cached_property): mark = 3\n"
        "class C:\n"
        "    n = 0\n"
        "    @functools.cached_property\n"
        "    def c(self):\n        'how many'\n        C.n += 1; return __class__.n\n"
        "    @Own\n    def d(self): return 4\n"
        "def f(o): return o.c, o.c, o.d, C.c.__doc__, C.d.mark\n"
        "loose = functools.cached_property(len)\n"
        "def g(): return loose.attrname, loose.func\n"
    )
    assert pool.apply(names["f"], (names["C"](),)) == (1, 1, 4, "how many", 3)
    assert pool.apply(names["g"]) == (None, len)


def test_single_dispatch_functions_travel(script: Any, pool: tri.Pool) -> None:
    names = script(
        "import functools\n"
        "class Thing: pass\n"
        "@functools.singledispatch\n"
        "def area(x):\n    'any'\n    return ['any', x]\n"
        "@area.register\n"
        "def _(x: int): return ['int', *area(str(x))]\n"
        "@area.register(Thing)\n"
        "def _(x): return ['thing']\n"
        "area.mark = 5\n"
        "def use(x): return area(x), area.mark, area.__name__, area.__doc__\n"
        "def local():\n"
        "    @functools.singledispatch\n"
        "    def inner(x): return 'any'\n"
        "    inner.register(int, lambda x: 'int')\n"
        "    return lambda x: inner(x)\n"
        "class M:\n"
        "    @functools.singledispatchmethod\n"
        "    def m(self, x): return 'any'\n"
        "    @m.register\n"
        "    def _(self, x: int): return 'int'\n"
        "def method(x): return M().m(x)\n"
    )
    rest = (5, "area", "any")
    assert pool.map(names["use"], [1, 2.0]) == [(["int", "any", "1"], *rest), (["any", 2.0], *rest)]
    assert pool.apply(names["use"], (names["Thing"](),)) == (["thing"], *rest)
    assert pool.map(names["local"](), [1, ""]) == ["int", "any"]
    assert pool.map(names["method"], [1, ""]) == ["int", "any"]
    names["area"].register(float, lambda x: ["float"])
    assert pool.submit(names["use"], 1.0).result(20) == (["float"], *rest)


# --- deleted globals ----------------------------------------------------------------------------


def test_a_deleted_global_is_deleted_in_the_worker(script: Any, pool: tri.Pool) -> None:
    names = script("sum = 3\nvalue = [1]\ndef f(x): return sum([x])\ndef g(x): return value\n")
    with pytest.raises(TypeError):
        pool.map(names["f"], [1])
    del names["sum"]
    assert all_calls(pool, names["f"]) == 0
    assert all_calls(pool, names["g"]) == [1]
    for _ in range(2):
        del names["value"]
        for call in (pool.submit(names["g"], 1).result, lambda: pool.map(names["g"], [1])):
            with pytest.raises(NameError, match="value"):
                call()
        names["value"] = 2
        assert all_calls(pool, names["g"]) == 2


def test_a_deletion_spares_what_the_worker_bound_itself(script: Any, pool: tri.Pool) -> None:
    names = script(
        "def init():\n    global model\n    model = 'loaded'\n"
        "def get(_): return model, other\n"
        "other = 1\n"
        "def put(): globals()['model'] = 'loaded'\n"
    )
    pool.apply(names["init"])
    assert all_calls(pool, names["get"]) == ("loaded", 1)
    names["model"] = "the owner's"
    assert all_calls(pool, names["get"]) == ("the owner's", 1)
    with tri.Pool(1) as fresh:
        del names["model"]
        fresh.apply(names["put"])
        names["other"] = 2
        assert all_calls(fresh, names["get"]) == ("loaded", 2)


def test_each_message_finds_what_was_deleted_when_it_was_made(script: Any) -> None:
    names = script("value = 1\ndef f(): return value\n")
    old = dumps_function(names["f"])
    del names["value"]
    gone = dumps_function(names["f"])
    assert dumps_function(names["f"]) == gone
    assert loads(old)() == 1
    for _ in range(2):
        with pytest.raises(NameError):
            loads(gone)()
        assert loads(old)() == 1
    names["value"] = 2
    assert loads(dumps_function(names["f"]))() == 2


# --- size ---------------------------------------------------------------------------------------


def test_a_function_of_more_than_4_gib_is_refused() -> None:
    """The bytes are never touched, so they cost no memory."""
    code = (
        "import trireme as tri\n"
        "from trireme import _pickling\n"
        "_pickling.dumps_function = lambda fn: bytes((1 << 32) + 5)\n"
        "with tri.Pool(1) as pool:\n"
        "    try: pool.submit(abs, 1).result(20)\n"
        "    except ValueError as exc: assert '4294967301 bytes' in str(exc), exc\n"
        "    else: raise SystemExit('sent')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- modules that come and go -------------------------------------------------------------------


def test_a_module_in_place_of_another_is_looked_at(pool: tri.Pool) -> None:
    for name in ("trireme_test_gone", "trireme_test_new"):
        module = sys.modules[name] = types.ModuleType(name)
        try:
            exec("class C:\n    x = 5", module.__dict__)
            assert pool.submit(getattr, module.C(), "x").result(20) == 5
        finally:
            del sys.modules[name]  # as many as before, when the next one comes
