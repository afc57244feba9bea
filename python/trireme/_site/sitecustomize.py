# SPDX-License-Identifier: BSD-3-Clause
"""Opens Trireme's doors in the children of a program that has installed them.

This folder is on PYTHONPATH only there.  It leaves sys.path at once, and the sitecustomize that it
hides is run.  Any Python may come by, of any version: one that is not the program's own is let
pass, and the words here are such that each of them understands them.
"""

import os
import sys


def _next():  # type: ignore[no-untyped-def]
    """Run the sitecustomize that Python would have found without us."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here]
    me = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError as exc:
        if getattr(exc, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        if me is not None:
            sys.modules.setdefault("sitecustomize", me)


def _install():  # type: ignore[no-untyped-def]
    """The doors, if this is the same Python with the same packages."""
    doors, _, whose = os.environ.get("TRIREME_DOORS", "").partition(";")
    mine = "%s;%s" % (getattr(sys.implementation, "cache_tag", None), sys.prefix)  # noqa: UP031
    if not doors or whose != mine:
        return
    # Standard helpers that only wait for a message have no use for any of it.
    if any(arg.startswith("from multiprocessing.resource_tracker ") for arg in sys.orig_argv):
        return
    try:
        from trireme import _doors
    except ImportError:
        # The program's sys.path is not this one's.  Load the package that this file is part of.
        import importlib.util

        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        spec = importlib.util.spec_from_file_location(
            "trireme",
            os.path.join(folder, "__init__.py"),
            submodule_search_locations=[folder],
        )
        if spec is None or spec.loader is None:
            return
        module = importlib.util.module_from_spec(spec)
        sys.modules["trireme"] = module
        spec.loader.exec_module(module)
        from trireme import _doors
    _doors.install(doors.split(","))


try:
    _install()
finally:
    _next()
