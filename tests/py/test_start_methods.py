# SPDX-License-Identifier: BSD-3-Clause
"""Scripts as users write them, under every start method: no guard, by value, clean exits."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import signal
import time
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, original_keeps_forks_locks

KINDS = pytest.mark.parametrize("way", [*PROCESSES, "thread", "serial"])
STARTS = pytest.mark.parametrize("start", PROCESSES)

OPEN = """
import sys, trireme as tri
way = sys.argv[1]
def open_pool(n=2, **options):
    if way in ("thread", "serial"):
        return tri.Pool(n, kind=way, **options)
    return tri.Pool(n, start=way, **options)
"""


def lines(text: str) -> list[str]:
    return text.strip().split("\n")


@KINDS
def test_functions_of_a_script_need_no_guard(run_script: Any, way: str) -> None:
    out, err = run_script(
        OPEN
        + """
print("top level")
OFFSET = 10
def f(x):
    return helper(x) + OFFSET
def helper(x):
    return x * x
with open_pool() as pool:
    print(pool.map(f, range(5)))
    print(pool.submit(lambda x: x + 1, 1).result())
    print(list(pool.imap(f, [2])))
""",
        way,
    )
    assert lines(out) == ["top level", "[10, 11, 14, 19, 26]", "2", "[14]"]
    assert err == ""


@KINDS
def test_recursion_closures_defaults_and_partials_travel(run_script: Any, way: str) -> None:
    out, _ = run_script(
        OPEN
        + """
import functools
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
def even(n):
    return True if n == 0 else odd(n - 1)
def odd(n):
    return False if n == 0 else even(n - 1)
def adder(k):
    def add(x, *, scale=2):
        return scale * x + k
    return add
class Model:
    factor = 3
    def __init__(self, bias):
        self.bias = bias
    def predict(self, x):
        return self.factor * x + self.bias
    @staticmethod
    def twice(x):
        return 2 * x
    def __call__(self, x):
        return -x
with open_pool() as pool:
    print(pool.map(fib, range(10)))
    print(pool.map(even, range(4)))
    print(pool.map(adder(5), range(3)))
    print(pool.submit(adder(5), 1, scale=10).result())
    print(pool.map(functools.partial(pow, 2), range(4)))
    print(pool.map(Model(1).predict, range(3)))
    print(pool.map(Model.twice, range(3)))
    print(pool.map(Model(1), range(3)))
""",
        way,
    )
    assert lines(out) == [
        "[0, 1, 1, 2, 3, 5, 8, 13, 21, 34]",
        "[True, False, True, False]",
        "[5, 7, 9]",
        "15",
        "[1, 2, 4, 8]",
        "[1, 4, 7]",
        "[0, 2, 4]",
        "[0, -1, -2]",
    ]


@STARTS
def test_changed_globals_and_closures_are_seen_by_the_next_call(
    run_script: Any, start: str
) -> None:
    out, _ = run_script(
        OPEN
        + """
scale = 1
table = {"a": 1}
def f(x):
    return x * scale + table["a"]
def make():
    count = 0
    def bump(n):
        nonlocal count
        count = n
    return (lambda x: x + count), bump
closure, bump = make()
with open_pool() as pool:
    for call in (lambda: pool.map(f, [1, 2]), lambda: pool.submit(f, 1).result(),
                 lambda: list(pool.imap(f, [1])), lambda: pool.apply(f, (1,))):
        scale, table = 1, {"a": 1}
        one = call()
        scale = 10
        two = call()
        table["a"] = 100
        three = call()
        print(one, two, three)
    print(pool.submit(closure, 1).result(), end=" ")
    bump(50)
    print(pool.submit(closure, 1).result(), pool.map(closure, [1]))
""",
        start,
    )
    assert lines(out) == [
        "[2, 3] [11, 21] [110, 120]",
        "2 11 110",
        "[2] [11] [110]",
        "2 11 110",
        "1 51 [51]",
    ]


@STARTS
def test_redefined_functions_replace_the_old(run_script: Any, start: str) -> None:
    out, _ = run_script(
        OPEN
        + """
def helper(x):
    return x
def f(x):
    return helper(x)
with open_pool() as pool:
    print(pool.map(f, [1, 2]), pool.submit(f, 3).result())
    def helper(x):
        return -x
    print(pool.map(f, [1, 2]), pool.submit(f, 3).result())
    def f(x):
        return "new"
    print(pool.map(f, [1, 2]), pool.submit(f, 3).result())
    for i in range(300):
        exec(f"def g(x): return x + {i}")
        assert pool.submit(g, 1).result() == 1 + i
    print("done")
""",
        start,
    )
    assert lines(out) == ["[1, 2] 3", "[-1, -2] -3", "['new', 'new'] new", "done"]


@STARTS
def test_classes_of_a_script_keep_their_identity(run_script: Any, start: str) -> None:
    out, _ = run_script(
        OPEN
        + """
import dataclasses, enum
@dataclasses.dataclass
class Point:
    x: int
    y: int
class Colour(enum.Enum):
    RED = 1
class Oops(Exception):
    pass
def move(p):
    assert isinstance(p, Point)
    return Point(p.x + 1, p.y)
def colour(c):
    return c is Colour.RED, Colour.RED
def fail(_):
    raise Oops("no")
with open_pool() as pool:
    moved = pool.map(move, [Point(1, 2), Point(3, 4)])
    print(moved, type(moved[0]) is Point, moved[0] == Point(2, 2))
    again = pool.map(move, moved)
    print(type(again[0]) is Point)
    same, red = pool.submit(colour, Colour.RED).result()
    print(same, red is Colour.RED)
    try:
        pool.map(fail, [1])
    except Oops as exc:
        print("caught", exc, type(exc) is Oops)
""",
        start,
    )
    assert lines(out) == [
        "[Point(x=2, y=2), Point(x=4, y=4)] True True",
        "True",
        "True True",
        "caught no True",
    ]


@STARTS
def test_modules_beside_the_script_are_found(run_script: Any, tmp_path: Any, start: str) -> None:
    (tmp_path / "mylib.py").write_text("def triple(x):\n    return 3 * x\n")
    out, _ = run_script(
        OPEN
        + """
import mylib
def f(x):
    return mylib.triple(x) + 1
with open_pool() as pool:
    print(pool.map(mylib.triple, [1, 2]), pool.map(f, [1, 2]))
""",
        start,
    )
    assert lines(out) == ["[3, 6] [4, 7]"]


@STARTS
def test_environment_and_folder_are_those_of_the_moment(
    run_script: Any, tmp_path: Any, start: str
) -> None:
    (tmp_path / "sub").mkdir()
    out, _ = run_script(
        OPEN
        + """
import os
def look():
    return os.environ.get("FLAVOUR"), os.path.basename(os.getcwd()), os.environ.get("GONE")
os.environ["GONE"] = "x"
with open_pool() as pool:
    pool.submit(look).result()
os.environ["FLAVOUR"] = "vanilla"
del os.environ["GONE"]
os.chdir("sub")
with open_pool() as pool:
    print(pool.submit(look).result())
""",
        start,
    )
    assert lines(out) == ["('vanilla', 'sub', None)"]


def test_script_from_standard_input_and_command_line(tmp_path: Any) -> None:
    import subprocess
    import sys

    from conftest import script_env

    source = "import trireme as tri\nprint(tri.Pool(2, start='spawn').map(lambda x: x + 1, [1, 2]))"
    for command, text in ([sys.executable, "-c", source], None), ([sys.executable, "-"], source):
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=script_env(), timeout=60
        )
        assert (done.stdout, done.stderr, done.returncode) == ("[2, 3]\n", "", 0)


# -------------------------------------------------------------- exits

STATES = {
    "unused": "pool = open_pool()",
    "used": "pool = open_pool(); pool.map(abs, range(100))",
    "closed": "pool = open_pool(); pool.map(abs, [1]); pool.close()",
    "joined": "pool = open_pool(); pool.close(); pool.join()",
    "terminated": "pool = open_pool(); pool.terminate()",
    "busy": """pool = open_pool(); fs = [pool.submit(nap, 0.3) for _ in range(20)]
until_running(fs)""",
    "watched": """pool = open_pool(); fs = [pool.submit(nap, 0.3) for _ in range(20)]
[f.add_done_callback(lambda f: None) for f in fs]; until_running(fs)""",
    "background": "pool = open_pool(); r = pool.map_async(nap, [0.3] * 9, callback=print)",
    "iterating": "pool = open_pool(); it = pool.imap(abs, iter(int, 1)); next(it)",
    "default": "tri.map(abs, range(10)); f = tri.submit(abs, -3); print(f.result())",
    "in a cycle": """pool = open_pool(); x = [pool]; x.append(x)
f = pool.submit(nap, 0.3); del pool""",
    "results kept": "pool = open_pool(); keep = pool.map(bytes, [200_000] * 9, chunk=1)",
    "thread waits": """import threading
pool = open_pool(); f = pool.submit(nap, 30)
threading.Thread(target=f.exception, daemon=True).start(); until_running([f])""",
}


@STARTS
@pytest.mark.parametrize("state", STATES)
def test_exit_in_every_state_is_quick_quiet_and_keeps_its_code(
    start_script: Any, state: str, start: str
) -> None:
    source = f"""{OPEN}
import time
def nap(x): time.sleep(x)
def until_running(fs):
    while not any(f.running() for f in fs): time.sleep(0.001)
{STATES[state]}
print("end", flush=True)
sys.exit(7)
"""
    with start_script(source, start) as script:
        while script.line() != "end":
            pass
        begin = time.monotonic()
        code, out, err = script.end(20)
        assert (code, err) == (7, "")
        assert time.monotonic() - begin < 5
        gone_by = time.monotonic() + 1
        while script.group():
            assert time.monotonic() < gone_by, "workers were left over"
            time.sleep(0.01)


@pytest.mark.parametrize("state", ["unused", "used", "busy", "background", "watched"])
def test_exit_with_thread_pools_is_quiet(start_script: Any, state: str) -> None:
    source = f"""{OPEN}
import time
def nap(x): time.sleep(x)
def until_running(fs):
    while not any(f.running() for f in fs): time.sleep(0.001)
{STATES[state]}
sys.exit(7)
"""
    with start_script(source, "thread") as script:
        code, _, err = script.end(20)
        assert (code, err) == (7, "")


@STARTS
def test_an_uncaught_exception_keeps_its_code_and_is_the_only_noise(
    start_script: Any, start: str
) -> None:
    source = f"""{OPEN}
import time
pool = open_pool()
f = pool.submit(time.sleep, 30)
while not f.running(): time.sleep(0.001)
1 / 0
"""
    with start_script(source, start) as script:
        code, _, err = script.end(20)
        assert code == 1
        assert err.strip().split("\n")[-1] == "ZeroDivisionError: division by zero"
        assert err.count("Traceback") == 1


@STARTS
def test_nothing_is_left_when_the_owner_is_killed(start_script: Any, start: str) -> None:
    source = f"""{OPEN}
import time
pool = open_pool()
f = [pool.submit(time.sleep, 60) for _ in range(2)]
while not all(x.running() for x in f): time.sleep(0.001)
print("busy", flush=True)
time.sleep(60)
"""
    with start_script(source, start) as script:
        assert script.line() == "busy"
        assert len(script.group()) >= 3
        script.child.send_signal(signal.SIGKILL)
        script.child.wait(10)
        gone_by = time.monotonic() + 1.5
        while script.group():
            assert time.monotonic() < gone_by, "processes outlived their owner by a second"
            time.sleep(0.01)


def test_os_exit_leaves_nothing(start_script: Any) -> None:
    source = f"""{OPEN}
import os
pool = open_pool()
pool.map(abs, range(10))
os._exit(9)
"""
    with start_script(source, "forkserver") as script:
        assert script.end(20)[0] == 9
        gone_by = time.monotonic() + 1.5
        while script.group():
            assert time.monotonic() < gone_by
            time.sleep(0.01)


# -------------------------------------------------------------- the user's own children


@STARTS
def test_wait_sees_only_the_users_children(run_script: Any, start: str) -> None:
    out, err = run_script(
        OPEN
        + """
import os, subprocess
with open_pool() as pool:
    pool.map(abs, range(10))
    pool.submit(os._exit, 3).exception()
    pool.map(abs, range(10))
    try:
        print(os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        print("no children")
    child = os.posix_spawn("/bin/true", ["true"], {})
    print(os.wait()[0] == child)
    print(subprocess.run(["/bin/echo", "ok"], capture_output=True, text=True).stdout.strip())
try:
    os.wait()
except ChildProcessError:
    print("no children")
""",
        start,
    )
    assert lines(out) == ["no children", "True", "ok", "no children"]
    assert err == ""


@STARTS
def test_signal_handlers_of_the_program_are_untouched(run_script: Any, start: str) -> None:
    out, _ = run_script(
        OPEN
        + """
import signal
def mine(*_): print("mine")
before = {}
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
    if s != signal.SIGINT:
        signal.signal(s, mine) if s == signal.SIGTERM else None
    before[s] = signal.getsignal(s)
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
with open_pool() as pool:
    pool.map(abs, range(10))
    pool.submit(abs, -1).add_done_callback(lambda f: None)
print(all(signal.getsignal(s) == h for s, h in before.items()))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask)
""",
        start,
    )
    assert lines(out) == ["True", "True"]


@STARTS
def test_a_program_that_ignores_its_children_works(run_script: Any, start: str) -> None:
    out, err = run_script(
        OPEN
        + """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with open_pool() as pool:
    print(pool.map(abs, [-1]))
""",
        start,
    )
    assert (lines(out), err) == (["[1]"], "")


@STARTS
def test_spare_interpreter_options_are_passed_on(run_script: Any, start: str) -> None:
    out, _ = run_script(
        OPEN
        + """
with open_pool() as pool:
    print(pool.submit(lambda: (sys.flags.utf8_mode, sys.flags.dev_mode)).result())
""",
        start,
        flags=("-X", "utf8", "-X", "dev"),
    )
    assert lines(out)[-1] == "(1, True)"


@STARTS
def test_standard_streams_may_be_closed(start_script: Any, tmp_path: Any, start: str) -> None:
    source = f"""{OPEN}
import os
for fd in (0, 1, 2):
    os.close(fd)
sys.stdin = sys.stdout = sys.stderr = None
with open_pool() as pool:
    got = pool.map(lambda x: (print("lost"), x * x)[1], range(5))
with open({str(tmp_path / "got")!r}, "w") as f:
    f.write(repr(got))
"""
    with start_script(source, start) as script:
        code, _, _ = script.end(30)
        assert code == 0
    assert (tmp_path / "got").read_text() == "[0, 1, 4, 9, 16]"


def test_warm_fork_server_has_the_owners_libraries(run_script: Any) -> None:
    pytest.importorskip("numpy")
    out, _ = run_script(
        OPEN
        + """
import numpy, time
with open_pool() as pool:
    pool.map(abs, [1])
end = time.monotonic() + 10
while True:
    with open_pool() as pool:
        if pool.submit(lambda: "numpy" in sys.modules).result():
            print("warm")
            break
    assert time.monotonic() < end
""",
        "forkserver",
    )
    assert lines(out) == ["warm"]


def test_two_owners_do_not_share_a_fork_server(run_script: Any) -> None:
    out, _ = run_script(
        """
        import os, trireme as tri
        tri.Pool(1).map(abs, [1])
        pid = os.fork()
        if pid == 0:
            with tri.Pool(1) as pool:
                parent = pool.submit(os.getppid).result()
                ok = pool.map(abs, [-1]) == [1]
            os._exit(0 if ok else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), tri.Pool(1).map(abs, [-2]))
        """
    )
    assert lines(out) == ["0 [2]"]


# ------------------------------------------------------------------ a warden that is stuck


def test_what_workers_of_a_facade_need_is_imported_once(run_script: Any) -> None:
    out, err = run_script(
        """
import os, sys
from trireme import multiprocessing
if __name__ == "__main__":
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        warden = pool.apply(os.getppid)
        import _posixshmem, array  # of multiprocessing.resource_tracker and .reduction
        with open(f"/proc/{warden}/maps") as file:
            maps = file.read()
        print([getattr(m, "__file__", maps[:1]) in maps for m in (_posixshmem, array)])
"""
    )
    assert (lines(out), err) == (["[True, True]"], "")


def test_handlers_of_a_fork_run_once_for_each_worker(run_script: Any) -> None:
    out, err = run_script(
        """
import os, trireme as tri
log = os.pipe()
os.register_at_fork(
    before=lambda: os.write(log[1], b"b"),
    after_in_parent=lambda: os.write(log[1], b"p"),
    after_in_child=lambda: os.write(log[1], b"c"),
)
with tri.Pool(3, start="fork") as pool:
    pool.submit(abs, 1).result()
print("".join(sorted(os.read(log[0], 100).decode())))
"""
    )
    assert (out.strip(), err) == ("bcccp", "")


def test_a_spawn_pool_leaves_the_imports_to_its_workers(run_script: Any) -> None:
    pytest.importorskip("numpy")
    out, err = run_script(
        """
import os, sys, time
import numpy, trireme as tri
def has_numpy(pid):
    with open(f"/proc/{pid}/maps") as file:
        return "_multiarray_umath" in file.read()
with tri.Pool(1, start="spawn") as pool:
    warden = pool.submit(os.getppid).result()
    time.sleep(0.3)  # time that it does not use
    print(has_numpy(warden), pool.submit(lambda: "numpy" in sys.modules).result())
with tri.Pool(1, start="forkserver") as pool:  # the same warden imports it before it forks
    print(pool.submit(os.getppid).result() == warden, has_numpy(warden))
    print(pool.submit(lambda: "numpy" in sys.modules).result())
"""
    )
    assert (lines(out), err) == (["False False", "True True", "True"], "")


def keep(*given: Any) -> None:
    global kept
    kept = given


def count_and_tell(i: int) -> int:
    lock, queue, value = kept
    with lock:
        value.value += i
    queue.put(i)
    return i


@pytest.mark.parametrize(
    ("door", "context"),
    [("multiprocessing", "spawn"), ("trireme.multiprocessing", None)],
)
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_locks_queues_and_values_travel_with_initargs(door: str, context: Any, start: str) -> None:
    ctx = importlib.import_module(door).get_context(context)
    lock, queue, value = ctx.Lock(), ctx.Queue(), ctx.Value("i", 0)
    fds = len(os.listdir("/proc/self/fd"))
    with tri.Pool(2, start=start, initializer=keep, initargs=(lock, queue, value)) as pool:
        assert pool.map(count_and_tell, range(50), chunk=1) == list(range(50))
        assert sorted(queue.get(timeout=20) for _ in range(50)) == list(range(50))
    assert value.value == 49 * 25
    pool.join()
    del pool
    gc.collect()
    # The copies that were lent have gone; the first pool's warden may stay.
    assert len(os.listdir("/proc/self/fd")) <= fds + 2


def test_a_lock_that_cannot_travel_says_what_would() -> None:
    import multiprocessing

    original_keeps_forks_locks()
    lock = multiprocessing.get_context("fork").Lock()
    with pytest.raises(pickle.PicklingError, match="trireme.multiprocessing"):
        tri.Pool(1, initializer=keep, initargs=(lock,))
