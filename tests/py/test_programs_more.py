# SPDX-License-Identifier: BSD-3-Clause
"""What real packages do with the standard library's doors, in small, by both Pythons.

Each program here imitates one that came out different through the doors: the output is compared
with that of the originals.  Start methods are the program's argument.
"""

from __future__ import annotations

from typing import Any

import pytest
from doorslib import ours

pytest_plugins = ("doorslib",)

METHODS = ["fork", "forkserver", "spawn"]


@pytest.mark.parametrize("method", METHODS)
def test_functions_that_use_the_module_itself(program: Any, method: str) -> None:
    """A worker's function says multiprocessing.current_process(), the module a global of it."""
    out = program(
        """
        import concurrent.futures
        import multiprocessing
        import sys

        def who(x):
            me = multiprocessing.current_process()
            futures = concurrent.futures.wait([])
            return me.name.startswith("Main"), multiprocessing.parent_process() is None, futures

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            with multiprocessing.Pool(1) as pool:
                print(pool.map(who, [1]))
            with concurrent.futures.ProcessPoolExecutor(1) as executor:
                print(list(executor.map(who, [1])))
        """,
        method,
    )
    assert out.count("(False, False") == 2


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_executors_are_processes_of_multiprocessing(program: Any, method: str) -> None:
    out = program(
        """
        import multiprocessing as mp
        import re
        import sys
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import current_process, get_start_method, parent_process

        def describe(_):
            me = current_process()
            return re.sub("[0-9]+", "N", me.name), me.daemon, parent_process().name, \\
                get_start_method(), bytes(me.authkey), mp.active_children()

        if __name__ == "__main__":
            mp.set_start_method(sys.argv[1])
            current_process().authkey = b"a key of the program's"
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(describe, 0).result())
        """,
        method,
    )
    assert "Process-N', False, 'MainProcess'" in out and "a key" in out


def test_what_a_fork_must_forget_is_forgotten(program: Any) -> None:
    """A manager's proxy has a connection of its own in each process, also one that is inherited."""
    program(
        """
        import multiprocessing as mp
        import types, sys
        from concurrent.futures import ProcessPoolExecutor

        here = types.ModuleType("here")  # what it holds is inherited, and never pickled
        sys.modules["here"] = here

        def connected(_):
            import here
            return hasattr(here.shared._tls, "connection")

        if __name__ == "__main__":
            mp.set_start_method("fork")
            with mp.Manager() as manager:
                here.shared = manager.dict(a=1)
                print(here.shared["a"], hasattr(here.shared._tls, "connection"))
                with ProcessPoolExecutor(2) as executor:
                    print(list(executor.map(connected, range(4))))
        """
    )


@pytest.mark.parametrize("door", ["Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", METHODS)
def test_pipes_and_sockets_as_arguments_and_results(program: Any, method: str, door: str) -> None:
    """They arrive open, and the other end sees the end of file when they are closed there."""
    out = program(
        """
        import multiprocessing as mp
        import socket
        import sys
        from concurrent.futures import ProcessPoolExecutor

        class Job:  # of the program: with spawn it goes by value, and what it holds with it
            def __init__(self, end):
                self.end = end

        def greet(end):
            end.send("hello")
            end.close()

        def greet_for(job):
            greet(job.end)

        def read(end):
            return end.recv()

        def say(end):
            end.sendall(b"hello")
            end.close()

        def fresh():
            from multiprocessing import Pipe
            mine, theirs = Pipe()
            mine.send("from the worker")
            return theirs

        def end_of_file(end):
            if not end.poll(20):
                return "nobody closed it"
            try:
                return end.recv()
            except EOFError:
                return "the end"

        if __name__ == "__main__":
            method, door = sys.argv[1:]
            mp.set_start_method(method)
            with (mp.Pool if door == "Pool" else ProcessPoolExecutor)(1) as pool:
                def call(f, *args):
                    if door == "Pool":
                        return pool.apply(f, args)
                    return pool.submit(f, *args).result()

                call(abs, -1)  # from here on the worker is there, and inherits nothing
                for function, wrap in (greet, lambda end: end), (greet_for, Job):
                    mine, theirs = mp.Pipe()
                    call(function, wrap(theirs))
                    print(mine.recv())
                    theirs.close()
                    print(end_of_file(mine))
                reader, writer = mp.Pipe(duplex=False)
                writer.send([1, 2])
                print(call(read, reader))
                mine, theirs = socket.socketpair()
                mine.settimeout(20)
                call(say, theirs)
                print(mine.recv(99))
                print(call(fresh).recv())
        """,
        method,
        door,
    )
    assert out.count("hello") == 3 and out.count("the end") == 2


@pytest.mark.parametrize("door", ["Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_library_registered_with_multiprocessings_pickler(
    write: Any, program: Any, method: str, door: str
) -> None:
    """A tensor library's arrays travel as a handle: workers write where the owner reads."""
    write(
        "tensors.py",
        """
        import types
        from multiprocessing import shared_memory
        from multiprocessing.reduction import ForkingPickler

        class Tensor:
            def __init__(self, block):
                self.block = block

            def __reduce__(self):  # any other pickler gets a copy
                return copy, (bytes(self.block.buf),)

        def copy(data):
            return Tensor(types.SimpleNamespace(buf=bytearray(data), name="", close=bool))

        def rebuild(name):
            return Tensor(shared_memory.SharedMemory(name))

        def reduce(tensor):
            return rebuild, (tensor.block.name,)

        ForkingPickler.register(Tensor, reduce)

        def fill(tensor, place):
            tensor.block.buf[place] = 7
            return tensor
        """,
    )
    program(
        """
        import multiprocessing as mp
        import sys
        import tensors
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import shared_memory

        if __name__ == "__main__":
            method, door = sys.argv[1:]
            mp.set_start_method(method)
            block = shared_memory.SharedMemory(create=True, size=4)
            tensor = tensors.Tensor(block)
            with (mp.Pool if door == "Pool" else ProcessPoolExecutor)(1) as pool:
                if door == "Pool":
                    back = pool.starmap(tensors.fill, [(tensor, 0), (tensor, 2)])
                else:
                    back = list(pool.map(tensors.fill, [tensor] * 2, [0, 2]))
            print(list(block.buf[:4]), [one.block.name == block.name for one in back])
            for one in back:
                one.block.close()
            block.close()
            block.unlink()
        """,
        method,
        door,
    )


@pytest.mark.parametrize("method", METHODS)
def test_shared_memory_as_initargs_of_an_executor(program: Any, method: str) -> None:
    """With each start method, and of whichever module it is."""
    source = """
        import multiprocessing as mp
        import sys
        from concurrent.futures import ProcessPoolExecutor

        def begin(*given):
            global raw, array, value
            raw, array, value = given

        def work(i):
            raw[i] = i
            with value.get_lock():
                array[i] = raw[i] + 1
                value.value += 1
            return i

        if __name__ == "__main__":
            mp.set_start_method(sys.argv[1])
            given = mp.RawArray("i", 4), mp.Array("i", 4), mp.Value("i", 0)
            with ProcessPoolExecutor(2, initializer=begin, initargs=given) as executor:
                print(list(executor.map(work, range(4))))
            print(list(given[0]), list(given[1]), given[2].value)
        """
    out = program(source, method)
    assert out.endswith("[0, 1, 2, 3] [1, 2, 3, 4] 4\n")


def test_shared_memory_of_the_originals_as_initargs(tmp_path: Any) -> None:
    out = ours(
        """
        import multiprocessing as mp
        from concurrent.futures import ProcessPoolExecutor

        def begin(given):
            global raw
            raw = given

        def work(i):
            raw[i] = i

        if __name__ == "__main__":
            raw = mp.RawArray("i", 3)
            executor = ProcessPoolExecutor(1, mp.get_context("spawn"), begin, (raw,))
            with executor:
                list(executor.map(work, range(3)))
            print(list(raw))
        """,
        tmp_path,
        "--only",
        "futures",
    )
    assert out == "[0, 1, 2]\n"


@pytest.mark.parametrize("method", METHODS)
def test_classes_of_the_program_are_the_ones_its_functions_know(program: Any, method: str) -> None:
    """isinstance, members of an Enum and exceptions: in the pools' workers as in the program."""
    out = (
        program(
            """
        import enum
        import multiprocessing as mp
        import sys

        class Colour(enum.Enum):
            RED = 1
            BLUE = 2

        class Failure(Exception):
            pass

        class Shape:
            count = 0

            class Part:
                pass

            def __init__(self, colour):
                self.colour = colour
                self.part = self.Part()

            def name(self):
                return f"{self.colour.name} {isinstance(self, Shape)} {type(self).count}"

        def look(shape):
            return (isinstance(shape, Shape), type(shape) is Shape, shape.colour is Colour.RED,
                    shape.colour == Colour.RED, isinstance(shape.part, Shape.Part), shape.name())

        def refuse(failure):
            try:
                raise failure
            except Failure as exc:
                return type(exc)(str(exc) + " again")

        if __name__ == "__main__":
            mp.set_start_method(sys.argv[1])
            shape = Shape(Colour.RED)
            Shape.count = 3
            with mp.Pool(2) as pool:
                print(pool.map(look, [shape, Shape(Colour.BLUE)]))
                print(pool.apply(look, (shape,)), pool.apply(shape.name))
                print(repr(pool.apply(refuse, (Failure("no"),))))
                back = pool.apply(Shape, (Colour.BLUE,))
                print(type(back) is Shape, back.colour is Colour.BLUE)
        """,
            method,
        )
        if method == "fork"
        else "True"
    )
    assert "True" in out


@pytest.mark.parametrize("method", METHODS)
def test_a_lock_that_has_the_same_name_in_the_program_and_in_its_workers(
    program: Any, method: str
) -> None:
    """The initializer sets the global that the main block has set in the program."""
    program(
        """
        import multiprocessing as mp
        import sys
        from concurrent.futures import ProcessPoolExecutor

        def begin(*given):
            global array, locks
            array, *locks = given

        def work(i):
            with locks[i % 2]:
                array[i] = i
            return i

        if __name__ == "__main__":
            mp.set_start_method(sys.argv[1])
            array, locks = mp.Array("i", 4), [mp.Lock(), mp.Lock()]
            with mp.Pool(2, begin, (array, *locks)) as pool:
                print(pool.map(work, range(4)), array[:])
            array = mp.Array("i", 4)
            executor = ProcessPoolExecutor(2, initializer=begin, initargs=(array, *locks))
            with executor:
                print(list(executor.map(work, range(4))), array[:])
        """,
        method,
    )


def test_a_lock_that_a_fork_inherits(program: Any) -> None:
    program(
        """
        import multiprocessing as mp
        from concurrent.futures import ProcessPoolExecutor

        mp.set_start_method("fork")
        lock, total, queue = mp.Lock(), mp.Value("i", 0), mp.Queue()
        raw = mp.RawArray("i", 3)

        def work(i):
            with lock:
                total.value += i
                raw[i % 3] = i % 3
                queue.put(i)

        if __name__ == "__main__":
            with ProcessPoolExecutor(2) as executor:
                list(executor.map(work, range(6)))
            print(total.value, list(raw), sorted(queue.get(timeout=20) for _ in range(6)))
        """
    )


def test_multiprocess_sends_code_through_pipes(tmp_path: Any) -> None:
    out = ours(
        """
        import multiprocess

        class Answer:
            def __init__(self, value):
                self.value = value

        def serve(end, other):
            function = end.recv()
            end.send(lambda: function(2))
            other.send(Answer(5))

        if __name__ == "__main__":
            mine, theirs = multiprocess.Pipe()
            reader, writer = multiprocess.Pipe(False)
            factor = 21
            process = multiprocess.Process(target=serve, args=(theirs, writer), daemon=True)
            process.start()
            mine.send(lambda x: x * factor)
            print(mine.poll(20) and mine.recv()(), reader.poll(20) and reader.recv().value)
            process.join(20)
            with multiprocess.Pool(1) as pool:
                pool.apply(lambda end: end.send(lambda: "of a task"), (writer,))
            print(reader.poll(20) and reader.recv()())
            mine.close()
            try:
                mine.send(1)
            except OSError as exc:
                print(exc)
            try:
                writer.recv()
            except OSError as exc:
                print(exc)
        """,
        tmp_path,
    )
    assert out == "42 5\nof a task\nhandle is closed\nconnection is write-only\n"


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_travel_is_refused_with_the_originals_class(program: Any, method: str) -> None:
    out = program(
        """
        import concurrent.futures
        import multiprocessing
        import sys

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            things = [context.Lock(), context.Queue(), (i for i in ())]
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
                for thing, kind in zip(things, (RuntimeError, RuntimeError, TypeError)):
                    print(isinstance(executor.submit(len, thing).exception(), kind))
                    try:
                        list(executor.map(len, [thing]))
                    except kind:
                        print("refused")
        """,
        method,
    )
    assert out.split().count("True") == out.split().count("refused") == 3


@pytest.mark.parametrize("method", METHODS)
def test_workers_sign_where_memfd_is_refused(program: Any, method: str) -> None:
    out = program(
        """
        import concurrent.futures
        import multiprocessing
        import os
        import sys

        def refuse(*_):
            raise PermissionError("memfd_create")

        if __name__ == "__main__":
            os.memfd_create = refuse
            context = multiprocessing.get_context(sys.argv[1])
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
                print(list(executor.map(abs, [-1, -2])))
            with context.Pool(2) as pool:
                print(pool.map(abs, [-3]))
        """,
        method,
    )
    assert out.split() == ["[1,", "2]", "[3]"]
