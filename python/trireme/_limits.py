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
    from collections.abc import Mapping
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
    """From the text of /proc/self/maps: path, variable and functions of each known library."""
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


def limit_loaded(threads: int, environ: Mapping[str, str] | None = None) -> int:
    """Limit the BLAS and OpenMP libraries that are already loaded to *threads* threads each.

    Best effort: a library that cannot be found or called is left alone.  Costs one read of
    /proc/self/maps when none is loaded.  Returns how many libraries were told.
    """
    if environ is None:
        environ = os.environ
    threads = max(1, threads)
    try:
        with open("/proc/self/maps", "rb", buffering=0) as file:
            maps = file.readall()
    except OSError:
        return 0
    libraries = _loaded_libraries(maps)
    if not libraries:
        return 0
    fallback_of: dict[str, Any] = dict(_VARIABLES)
    told = 0
    for path, variable, functions in libraries:
        if not _set_by_user(variable, fallback_of[variable], environ):
            told += _call_first(path, functions, threads)
    return told


def _call_first(path: str, functions: tuple[str, ...], threads: int) -> int:
    """Call the first of *functions* that the loaded library *path* has; 1 if there was one.

    In C because ctypes alone would cost each worker a megabyte.
    """
    from . import _core

    return _core._call_loaded(path, functions, threads)


def warden_env() -> dict[str, str]:
    """Variables for the shared warden: one thread for the libraries that it imports ahead.

    ``TRIREME_SET`` names those that are ours and not the user's, so that workers may raise them.
    """
    added = thread_env(1)
    return {**added, "TRIREME_SET": ",".join(added)}


def apply(threads: int) -> None:
    """Limit this process: libraries loaded now, then those loaded later.

    Free when the variables say so already: libraries then read them, or will.
    """
    ours = os.environ.pop("TRIREME_SET", "").split(",")
    user = {name: value for name, value in os.environ.items() if name not in ours}
    added = thread_env(threads, user)
    if all(os.environ.get(name) == value for name, value in added.items()):
        return
    limit_loaded(threads, user)
    os.environ.update(added)
