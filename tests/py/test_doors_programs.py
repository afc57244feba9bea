# SPDX-License-Identifier: BSD-3-Clause
"""Programs and libraries that keep working through the doors, with the same results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from doorslib import DOORS, ours, run

pytest_plugins = ("doorslib",)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_tqdms_maps(program: Any, method: str) -> None:
    pytest.importorskip("tqdm")
    out = program(
        """
        import io, multiprocessing, sys
        from tqdm.contrib.concurrent import process_map, thread_map

        def square(x):
            return x * x

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            print(process_map(square, range(20), max_workers=2, chunksize=3, disable=True))
            bar = io.StringIO()  # which steps it shows is a matter of time, here and there
            print(process_map(square, range(3), max_workers=2, chunksize=1, file=bar,
                              bar_format="{n}/{total}", mininterval=0)[-1])
            print("0/3" in bar.getvalue())
            print(thread_map(square, range(20), max_workers=2, disable=True))
        """,
        method,
    )
    assert out.count("361]") == 2


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_tqdm_imported_before_install(run_script: Any, method: str) -> None:
    pytest.importorskip("tqdm")
    out, _ = run_script(
        """
        from tqdm.contrib.concurrent import process_map
        import multiprocessing, sys
        from tqdm import tqdm

        def square(x):
            return x * x

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            tqdm.get_lock()
            import trireme
            trireme.install()
            print(process_map(square, range(4), max_workers=2, chunksize=1, disable=True))
        """,
        method,
    )
    assert out == "[0, 1, 4, 9]\n"


def test_compileall(write: Any, both: Any, tmp_path: Path) -> None:
    for i in range(4):
        write(f"code/m{i}.py", f"x = {i}\n")
    write("code/wrong.py", "x = (\n")
    found = []
    for how in ((), DOORS):
        code, out, err = run(*how, "-m", "compileall", "-fq", "-j", "2", "code", cwd=tmp_path)
        cache = tmp_path / "code" / "__pycache__"
        # Workers end in any order.
        found.append((code, sorted(out.splitlines()), err, sorted(os.listdir(cache))))
        for file in cache.iterdir():
            file.unlink()
    assert found[0] == found[1]
    assert found[0][0] == 1 and len(found[0][3]) == 4


LOADER = """
    import multiprocessing, queue, sys, threading
    import numpy as np

    def work(dataset, index_queue, results, done):
        while not done.is_set():
            try:
                job = index_queue.get(timeout=5)
            except queue.Empty:
                continue
            if job is None:
                return
            number, indices = job
            results.put((number, np.stack([dataset[i] for i in indices])))

    class Loader:
        def __init__(self, dataset, batch, workers, context):
            self.batches = [range(i, min(i + batch, len(dataset)))
                            for i in range(0, len(dataset), batch)]
            self.done = context.Event()
            self.results = context.Queue()
            self.index_queues = [context.Queue() for _ in range(workers)]
            self.processes = [
                context.Process(target=work, daemon=True,
                                args=(dataset, q, self.results, self.done))
                for q in self.index_queues]
            for p in self.processes:
                p.start()
            self.ready = queue.Queue()
            self.pin = threading.Thread(target=self.pin_loop, daemon=True)
            self.pin.start()

        def pin_loop(self):
            for _ in self.batches:
                number, array = self.results.get(timeout=30)
                self.ready.put((number, np.array(array)))

        def __iter__(self):
            for number, indices in enumerate(self.batches):
                self.index_queues[number % len(self.index_queues)].put((number, indices))
            waiting = {}
            for wanted in range(len(self.batches)):
                while wanted not in waiting:
                    number, array = self.ready.get(timeout=30)
                    waiting[number] = array
                yield waiting.pop(wanted)

        def close(self):
            self.pin.join(30)
            self.done.set()
            for q in self.index_queues:
                q.put(None)
            for p in self.processes:
                p.join(30)
            return [p.exitcode for p in self.processes]

    if __name__ == "__main__":
        dataset = [np.full((64, 64), i, dtype=np.float32) for i in range(50)]
        for method in ("fork", "spawn"):
            loader = Loader(dataset, 8, 2, multiprocessing.get_context(method))
            print([(b.shape, float(b.sum())) for b in loader])
            print(loader.close(), loader.done.is_set())
"""


def test_a_data_loader(program: Any) -> None:
    pytest.importorskip("numpy")
    out = program(LOADER)
    assert out.count("[0, 0] True") == 2


def test_subprocess_workers_that_use_multiprocessing(program: Any) -> None:
    """As execnet does it: the worker's program comes through its stdin, a line is a message."""
    out = program(
        """
        import json, subprocess, sys
        BOOT = "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
        WORKER = '''
        import json, multiprocessing, sys
        def square(x):
            return x * x
        for line in sys.stdin.buffer:
            numbers = json.loads(line)
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(json.dumps(pool.map(square, numbers)), flush=True)
        '''
        import textwrap
        code = textwrap.dedent(WORKER).encode()
        workers = []
        for _ in range(2):
            p = subprocess.Popen([sys.executable, "-u", "-c", BOOT], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
            p.stdin.write(b"%d\\n" % len(code) + code)
            workers.append(p)
        for i, p in enumerate(workers):
            p.stdin.write(json.dumps(list(range(i, i + 5))).encode() + b"\\n")
            p.stdin.flush()
        for p in workers:
            print(p.stdout.readline())
            p.stdin.close()
            print(p.wait(30))
        """
    )
    assert "[1, 4, 9, 16, 25]" in out


def test_pytest_xdist(write: Any, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    write(
        "test_it.py",
        """
        import multiprocessing, os, pytest
        from concurrent.futures import ProcessPoolExecutor

        def square(x):
            return x * x

        @pytest.mark.parametrize("i", range(4))
        def test_pools(i):
            assert "PYTEST_XDIST_WORKER" in os.environ
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
            with ProcessPoolExecutor(1) as executor:
                assert executor.submit(square, i).result() == i * i
            assert ("TRIREME_DOORS" in os.environ) == (
                multiprocessing.pool.Pool.__module__ == "trireme.multiprocessing.pool")
        """,
    )
    words = ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "test_it.py")
    for how in ((), DOORS):
        code, out, err = run(*how, *words, cwd=tmp_path)
        assert code == 0 and "4 passed" in out, out + err


def test_asyncio(program: Any) -> None:
    out = program(
        """
        import asyncio, concurrent.futures, threading, time

        def square(x):
            return x * x

        async def main():
            loop = asyncio.get_running_loop()
            with concurrent.futures.ProcessPoolExecutor(2) as executor:
                print(await asyncio.gather(
                    *(loop.run_in_executor(executor, square, i) for i in range(5))))
                try:
                    await loop.run_in_executor(executor, int, "x")
                except ValueError as exc:
                    print(exc)
                future = asyncio.wrap_future(executor.submit(square, 9))
                print(await asyncio.wait_for(future, 30))
            print(await loop.run_in_executor(None, square, 3), await asyncio.to_thread(square, 4))
            name = await asyncio.to_thread(lambda: threading.current_thread().name)
            print(name.rpartition("_")[0])
            try:
                await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.2), 0.01)
            except asyncio.TimeoutError:
                print("late")

        if __name__ == "__main__":
            asyncio.run(main())
        """
    )
    assert "[0, 1, 4, 9, 16]" in out and "late" in out


def test_joblib(program: Any) -> None:
    pytest.importorskip("joblib")
    out = program(
        """
        from joblib import Parallel, delayed, parallel_backend

        def square(x):
            return x * x

        if __name__ == "__main__":
            for backend in ("loky", "threading", "multiprocessing"):
                with parallel_backend(backend, n_jobs=2):
                    print(backend, Parallel()(delayed(square)(i) for i in range(20)))
        """
    )
    assert out.count("361]") == 3


def test_a_multiprocess_program(tmp_path: Path) -> None:
    """Where the real one is installed, it says the same."""
    import importlib.util

    source = """
        import multiprocess as mp
        from multiprocess import Process, Queue
        from multiprocess.pool import ThreadPool

        def child(queue, x):
            queue.put(x * 2)

        if __name__ == "__main__":
            with mp.Pool(2) as pool:
                print(pool.map(lambda x: x * x, range(6)))
                print(pool.starmap(lambda a, b: a - b, [(3, 1), (5, 2)]))
                print(pool.apply_async(lambda: [lambda: 1][0]).get(30)())
            with ThreadPool(2) as pool:
                print(pool.map(abs, [-1, 2]))
            queue = Queue()
            process = Process(target=child, args=(queue, 21))
            process.start()
            print(queue.get(timeout=30))
            process.join(30)
            print(process.exitcode)
        """
    out = ours(source, tmp_path)
    assert out == "[0, 1, 4, 9, 16, 25]\n[2, 3]\n1\n[1, 2]\n42\n0\n"
    if importlib.util.find_spec("multiprocess") is not None:
        assert run("program.py", cwd=tmp_path) == (0, out, "")


def test_a_manager_under_every_start_method(program: Any) -> None:
    out = program(
        """
        import multiprocessing

        if __name__ == "__main__":
            for way in ("fork", "spawn", "forkserver"):
                with multiprocessing.get_context(way).Manager() as manager:
                    numbers, queue = manager.list([1]), manager.Queue()
                    queue.put(3)
                    with manager.Pool(1) as pool:
                        print(way, numbers[0], queue.get(), pool.apply(abs, (-2,)))
        """
    )
    assert out == "fork 1 3 2\nspawn 1 3 2\nforkserver 1 3 2\n"
