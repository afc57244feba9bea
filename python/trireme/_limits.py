# SPDX-License-Identifier: BSD-3-Clause
"""Limits on the threads that BLAS and OpenMP libraries start inside workers.

W workers whose matrix products each use all C cores make W x C threads, and everything slower than
one process alone.  Libraries read their limit from the environment when they are loaded, so
thread_env() is for those not loaded yet; limit_loaded() calls the ones that a forked worker
inherited.  A limit that the user has set in the environment is never touched.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# Each variable, and the variable its library reads instead when it is absent.
_VARIABLES = (
    ("OMP_NUM_THREADS", None),
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    ("BLIS_NUM_THREADS", "OMP_NUM_THREADS"),
    ("VECLIB_MAXIMUM_THREADS", None),
    ("NUMBA_NUM_THREADS", None),
    ("NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS"),
)

# A part of the library's file name, the variable that governs it, the functions that set its
# limit.  OpenBLAS is built with many prefixes and suffixes, so all spellings are tried.
_LIBRARIES = (
    (
        b"openblas",
        "OPENBLAS_NUM_THREADS",
        tuple(
            f"{prefix}openblas_set_num_threads{suffix}"
            for prefix in ("scipy_", "")
            for suffix in ("64_", "_64", "64", "")
        ),
    ),
    (b"libmkl_rt", "MKL_NUM_THREADS", ("MKL_Set_Num_Threads",)),
    (b"libblis", "BLIS_NUM_THREADS", ("bli_thread_set_num_threads",)),
    (b"libgomp", "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    (b"libiomp", "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    (b"libomp", "OMP_NUM_THREADS", ("omp_set_num_threads",)),
)


def _set_by_user(name: str, fallback: str | None, environ: Mapping[str, str]) -> bool:
    return name in environ or (fallback is not None and fallback in environ)


def thread_env(threads: int, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables to add to a worker's environment so that each library uses *threads* threads.

    Variables the user has set are not among them, nor those whose library would otherwise follow
    a variable the user has set: with OMP_NUM_THREADS=4, OpenBLAS and MKL are to use 4 as well.
    *environ* defaults to os.environ.
    """
    if environ is None:
        environ = os.environ
    value = str(max(1, threads))
    return {
        name: value for name, fallback in _VARIABLES if not _set_by_user(name, fallback, environ)
    }


def _loaded_libraries(maps: bytes) -> list[tuple[str, str, tuple[str, ...]]]:
    """From paths, or /proc/self/maps, a line each: path, variable, functions of those we know."""
    found = []
    for word, variable, functions in _LIBRARIES:
        if word not in maps:
            continue
        paths = set()
        for line in maps.splitlines():
            path = line[line.find(b"/") :] if b"/" in line else b""
            if word in path.rpartition(b"/")[2] and b".so" in path:
                paths.add(path)
        found += [(os.fsdecode(path), variable, functions) for path in sorted(paths)]
    return found


# The names of all libraries that were loaded when we looked; how to limit those we know, and the
# variable that governs each.
_found: tuple[bytes, list[tuple[Any, str]]] = (b"", [])


def _look() -> list[tuple[Any, str]]:
    """The libraries that limit_loaded() is for; remembered until another one is loaded."""
    global _found
    from . import _core

    # In C because ctypes alone would cost each worker a megabyte.
    paths = _core._loaded()
    if paths != _found[0]:
        setters = []
        for path, variable, functions in _loaded_libraries(paths):
            setter = _core._setter(path, functions)
            if setter is not None:
                setters.append((setter, variable))
        _found = paths, setters
    return _found[1]


def _setters(environ: Mapping[str, str]) -> list[Any]:
    """Those of _look() whose limit the user has not set."""
    fallback_of: dict[str, Any] = dict(_VARIABLES)
    return [s for s, name in _look() if not _set_by_user(name, fallback_of[name], environ)]


def limit_loaded(threads: int, environ: Mapping[str, str] | None = None) -> int:
    """Limit the BLAS and OpenMP libraries that are already loaded to *threads* threads each.

    Best effort: a library that cannot be found or called is left alone.  Returns how many were
    told.
    """
    from . import _core

    setters = _setters(os.environ if environ is None else environ)
    for setter in setters:
        _core._set(setter, max(1, threads))
    return len(setters)


def warden_env() -> dict[str, str]:
    """Variables for the shared warden: one thread for the libraries that it imports ahead.

    ``TRIREME_SET`` names those that are ours and not the user's, so that workers may raise them.
    """
    added = thread_env(1)
    return {**added, "TRIREME_SET": ",".join(added)}


# What apply() has to do in a fork of this process: for so many threads, these setters, these
# variables, which are bytes as the system has them.
_plan: tuple[int, list[Any], dict[bytes, bytes]] | None = None


def prepare(threads: int) -> None:
    """Before a fork: find out what apply() will do, once instead of in each worker."""
    global _plan
    added = {os.fsencode(name): os.fsencode(v) for name, v in thread_env(threads).items()}
    _plan = threads, _setters(os.environ), added


def around_fork(fork: Callable[..., object], **options: Any) -> None:
    """After prepare(), fork: meanwhile OpenBLAS uses no more threads here than there.

    The child inherits the number.  To set it there would start OpenBLAS's threads.
    """
    from . import _core

    lent = []
    try:
        if _plan is not None:
            threads = max(1, _plan[0])
            for setter in _plan[1]:
                before = _core._get(setter)
                # A process without other threads is a fork itself, perhaps: they would start here.
                if before is not None and before > threads and _has_threads():
                    lent.append((setter, before))
                    _core._set(setter, threads)
        fork(**options)
    finally:
        for setter, before in lent:
            if _core._get(setter) == threads:  # else the program has set another meanwhile
                _core._set(setter, before)


def _has_threads() -> bool:
    return len(os.listdir("/proc/self/task")) > 1


# In the fork server: the threads that its variables, which are those of warden_env(), stand for;
# and what TRIREME_SET said.
_served: int | None = None
_told: str | None = None


def expect_forks() -> None:
    """In the fork server: find out what apply() need not look at in each worker.

    To look at every variable, in Python's own mapping, costs a worker a tenth of a megabyte.
    """
    global _served, _told
    # The system's variable stays, for workers that are exec'ed.
    told = _known_variables().pop(b"TRIREME_SET", None)
    if told is not None:
        _told = os.fsdecode(told)
    values = {os.environ.get(name) for name in (_told or "").split(",") if name}
    _served = 1 if _told is not None and values <= {"1"} else None


def told() -> list[str]:
    """Worker: the variables of this environment that are the fork server's and not the user's."""
    return (os.environ.get("TRIREME_SET") or _told or "").split(",")


def _known_variables() -> Any:
    """What os.environ is made of, and os.environb: each variable told to the former costs 20 us."""
    return getattr(os.environ, "_data", os.environb)


def apply(threads: int, wardens: bool = False) -> None:
    """Limit this process: libraries loaded now, then those loaded later.

    Free when the variables say so already: libraries then read them, or will.  wardens: this is the
    environment that the fork server was started with, which expect_forks() has looked at.
    """
    if _plan is not None and _plan[0] == threads:
        from . import _core

        for setter in _plan[1]:
            _core._set(setter, max(1, threads))
        for name, value in _plan[2].items():
            os.putenv(name, value)
        _known_variables().update(_plan[2])
        return
    os.unsetenv("TRIREME_SET")
    if wardens and _served == threads:
        return
    told = os.environ.pop("TRIREME_SET", None) or (_told if wardens else None)
    ours = (told or "").split(",")
    user = {name: value for name, value in os.environ.items() if name not in ours}
    added = thread_env(threads, user)
    if all(os.environ.get(name) == value for name, value in added.items()):
        return
    limit_loaded(threads, user)
    os.environ.update(added)
