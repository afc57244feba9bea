# SPDX-License-Identifier: BSD-3-Clause
"""One adapter per system under measurement, all with the same few verbs.

A figure is written once against `System` and runs on each.  Every verb is what that system's own
documentation recommends; where a system lacks one, `Unsupported` says so and the figure has no
row.  An adapter is used in a process of its own: what one system starts never disturbs another.
"""
from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class Unsupported(Exception):
    """This system has no such thing."""


class System:
    """A pool of workers: opened once, closed once."""

    needs: str = ""        # the module that must be importable
    per_task = 1e-4        # seconds a bare task is expected to cost; sizes the run, nothing else
    per_item = 1e-7        # seconds an item of a map with default chunks is expected to cost

    def __init__(self, workers: int) -> None:
        self.workers = workers
        if self.needs:
            self.module: Any = importlib.import_module(self.needs)

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        raise Unsupported("no futures")

    def result(self, future: Any) -> Any:
        return future.result()

    def call(self, f: Callable[..., Any], x: Any) -> Any:
        """One task, there and back."""
        return self.result(self.submit(f, x))

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        raise NotImplementedError

    def share(self, obj: Any) -> Any:
        raise Unsupported("nothing to share by reference")

    def pids(self) -> list[int]:
        """Of the workers, of a system that says so."""
        return []


class Trireme(System):
    needs, start, kind, per_task = "trireme", "forkserver", "process", 1e-6

    def open(self) -> None:
        self.pool = self.module.Pool(self.workers, kind=self.kind, start=self.start)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        return self.pool.submit(f, x)

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        return self.pool.map(f, items, chunk=chunk, **options)

    def share(self, obj: Any) -> Any:
        return self.module.share(obj)

    def pids(self) -> list[int]:
        return self.pool.stats()["pids"]


class TriremeFork(Trireme):
    start = "fork"


class TriremeSpawn(Trireme):
    start = "spawn"


class PoolFork(System):
    needs, start, per_task = "multiprocessing", "fork", 5e-5

    def open(self) -> None:
        self.pool = self.module.get_context(self.start).Pool(self.workers)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        return self.pool.apply_async(f, (x,))

    def result(self, future: Any) -> Any:
        return future.get()

    def call(self, f: Callable[..., Any], x: Any) -> Any:
        return self.pool.apply(f, (x,))

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        return self.pool.map(f, items, chunk)


class PoolSpawn(PoolFork):
    start = "spawn"


class PoolForkserver(PoolFork):
    start = "forkserver"


class Executor(System):
    """concurrent.futures.ProcessPoolExecutor, on fork so that its start is its best."""

    needs, per_task, per_item = "concurrent.futures", 8e-5, 6e-5

    def open(self) -> None:
        import multiprocessing
        self.pool = self.module.ProcessPoolExecutor(
            self.workers, mp_context=multiprocessing.get_context("fork"))

    def close(self) -> None:
        self.pool.shutdown()

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        return self.pool.submit(f, x)

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        return list(self.pool.map(f, items, chunksize=chunk or 1))


class Threads(Executor):
    """concurrent.futures.ThreadPoolExecutor: no copies, but one interpreter lock."""

    per_task, per_item = 3e-5, 1.5e-5

    def open(self) -> None:
        self.pool = self.module.ThreadPoolExecutor(self.workers)


class Joblib(System):
    """joblib.Parallel with loky, its workers kept between calls as its documentation shows."""

    needs, per_task, per_item = "joblib", 1e-2, 2e-6

    def open(self) -> None:
        self.parallel = self.module.Parallel(n_jobs=self.workers)
        self.parallel.__enter__()

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor
        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)

    def call(self, f: Callable[..., Any], x: Any) -> Any:
        return self.parallel([self.module.delayed(f)(x)])[0]

    def map(self, f: Callable[..., Any], items: Iterable[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        return self.parallel(self.module.delayed(f)(x) for x in items)


class Mpire(System):
    needs, per_task, per_item = "mpire", 2e-4, 3e-6

    def open(self) -> None:
        self.pool = self.module.WorkerPool(n_jobs=self.workers, keep_alive=True)

    def close(self) -> None:
        self.pool.stop_and_join()

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        return self.pool.apply_async(f, (x,))

    def result(self, future: Any) -> Any:
        return future.get()

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        # concatenate_numpy_output would glue arrays together; the others return a list.
        return self.pool.map(f, items, chunk_size=chunk, concatenate_numpy_output=False)


class Pebble(System):
    needs, per_task, per_item = "pebble", 2e-4, 6e-5

    def open(self) -> None:
        import multiprocessing
        self.pool = self.module.ProcessPool(self.workers,
                                            context=multiprocessing.get_context("fork"))

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        return self.pool.schedule(f, args=[x])

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        return list(self.pool.map(f, items, chunksize=chunk or 1).result())


class Ray(System):
    needs, per_task, per_item = "ray", 2e-3, 6e-4

    def open(self) -> None:
        self.module.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False,
                         logging_level="ERROR", object_store_memory=2 << 30)
        self.remote: dict[Callable[..., Any], Any] = {}

    def close(self) -> None:
        self.module.shutdown()

    def submit(self, f: Callable[..., Any], x: Any) -> Any:
        if f not in self.remote:
            self.remote[f] = self.module.remote(f)
        return self.remote[f].remote(x)

    def result(self, future: Any) -> Any:
        return self.module.get(future)

    def map(self, f: Callable[..., Any], items: Sequence[Any], chunk: int | None = None,
            **options: Any) -> list[Any]:
        return self.module.get([self.submit(f, x) for x in items])

    def share(self, obj: Any) -> Any:
        return self.module.put(obj)


class Eventfd(System):
    """Two processes of Python that wake each other by eventfds and do nothing else.

    No pool, and only plus_one(): the least that the kernel takes together with an interpreter.
    """

    def open(self) -> None:
        from tasks import plus_one

        self.there, self.back = os.eventfd(0), os.eventfd(0)
        self.pid = os.fork()
        while not self.pid:
            os.eventfd_write(self.back, plus_one(os.eventfd_read(self.there)))

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)

    def call(self, f: Callable[..., Any], x: Any) -> Any:
        os.eventfd_write(self.there, x + 1)  # 0 would wake nobody
        return os.eventfd_read(self.back) - 1

    def pids(self) -> list[int]:
        return [self.pid]


class Doors(System):
    """multiprocessing and concurrent.futures, or what stands in for them under the same names.

    The figures of facades.py use the modules themselves; the costs are those of a task of a pool
    and of an item of an executor's map.
    """

    names, method = ("multiprocessing", "concurrent.futures"), "fork"
    per_task, per_item = 5e-5, 1e-4

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.context: Any = importlib.import_module(self.names[0]).get_context(self.method)

    @property
    def futures(self) -> Any:
        return importlib.import_module(self.names[1])

    def queue(self) -> Any:
        return self.context.Queue()


class DoorsSpawn(Doors):
    method = "spawn"


class DoorsForkserver(Doors):
    method = "forkserver"


class Facade(Doors):
    needs, names = "trireme", ("trireme.multiprocessing", "trireme.futures")
    per_task, per_item = 1e-6, 1e-6


class FacadeSpawn(Facade):
    method = "spawn"


class FacadeForkserver(Facade):
    method = "forkserver"


class FasterFifo(Doors):
    """Its queue beside the original's processes; the buffer never fills up in small messages."""

    needs = "faster_fifo"

    def queue(self) -> Any:
        return self.module.Queue(max_size_bytes=64_000_000)


SYSTEMS: dict[str, type[System]] = {
    "trireme": Trireme, "trireme fork": TriremeFork, "trireme spawn": TriremeSpawn,
    "Pool fork": PoolFork, "Pool spawn": PoolSpawn, "Pool forkserver": PoolForkserver,
    "executor": Executor, "threads": Threads, "joblib": Joblib, "MPIRE": Mpire,
    "Pebble": Pebble, "Ray": Ray, "eventfd": Eventfd,
    "trireme facade": Facade, "trireme facade spawn": FacadeSpawn,
    "trireme facade forkserver": FacadeForkserver,
    "original": Doors, "original spawn": DoorsSpawn, "original forkserver": DoorsForkserver,
    "faster-fifo": FasterFifo,
}
