# SPDX-License-Identifier: BSD-3-Clause
"""``python -m trireme SCRIPT``: run a program with Trireme's doors and as Python itself would.

The program gets a module ``__main__`` of its own, with the ``__file__`` and ``__spec__`` that
Python gives it, because children of multiprocessing read there what they are to import.  This
module stays out of sight: sys.argv and sys.path begin as they do without it, and a traceback
begins where the program does.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType, TracebackType
    from typing import Any, NoReturn

USAGE = "usage: python -m trireme [--only DOOR] [--report] SCRIPT | -m MODULE | -c CODE [ARGS]"
HELP = f"""{USAGE}

Runs a program whose imports of multiprocessing, multiprocess and concurrent.futures, in its
children too, get Trireme's pools and executors.  SCRIPT may be a folder, a zip file, or -.

  --only DOOR  futures, multiprocessing or multiprocess; may be given more than once
  --report     at exit, print to stderr what ran where and what was left to the originals
  --version    print the version
"""


def _wrong(text: str) -> NoReturn:
    print(f"trireme: {text}", file=sys.stderr)
    raise SystemExit(2)


def _options(args: list[str]) -> tuple[list[str] | None, bool, str, list[str]]:
    """The doors, whether to report, what to run ("-m", "-c" or "") and its words."""
    only: list[str] | None = None
    report = False
    while args:
        word = args.pop(0)
        if word in ("-h", "--help"):
            print(HELP, end="")
            raise SystemExit(0)
        if word in ("-V", "--version"):
            from . import __version__

            print(f"trireme {__version__}")
            raise SystemExit(0)
        if word == "--report":
            report = True
        elif word == "--only" or word.startswith("--only="):
            if word == "--only" and not args:
                _wrong("--only needs the name of a door")
            names = args.pop(0) if word == "--only" else word.partition("=")[2]
            only = (only or []) + names.split(",")
        elif word[:2] in ("-m", "-c") and not word.startswith("--"):
            if not word[2:] and not args:
                _wrong(f"{word} needs a word after it")
            return only, report, word[:2], [word[2:] or args.pop(0), *args]
        elif word == "-" or not word.startswith("-"):
            return only, report, "", [word, *args]
        else:
            _wrong(f"there is no option {word}; python -m trireme --help")
    print(USAGE, file=sys.stderr)
    raise SystemExit(2)


def _new_main(file: str | None, loader: Any) -> ModuleType:
    """The program's ``__main__``, in the place of this one."""
    import builtins
    from types import ModuleType

    module = ModuleType("__main__")
    module.__doc__ = None
    module.__loader__ = loader
    vars(module).update(__builtins__=builtins, __package__=None)
    if sys.version_info < (3, 14):
        module.__annotations__ = {}
    if file is not None:
        module.__file__ = file
        if sys.version_info < (3, 15):
            vars(module)["__cached__"] = None
    sys.modules["__main__"] = module
    return module


def _trim(trace: TracebackType | None) -> TracebackType | None:
    """What lies behind the last frame of this file."""
    rest = trace
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == __file__:
            rest = trace.tb_next
        trace = trace.tb_next
    return rest


def _hide_frames() -> None:
    """Have the interpreter show an exception without our frames, by whatever hook there is."""
    hook = sys.excepthook

    def show(kind: Any, value: Any, trace: Any) -> None:
        trace = _trim(trace)
        value.__traceback__ = trace
        sys.last_traceback = trace
        sys.excepthook = hook
        hook(kind, value, trace)

    sys.excepthook = show


def _run(code: CodeType, module: ModuleType) -> None:
    try:
        exec(code, vars(module))
    except BaseException:
        _hide_frames()
        raise


def _run_by_name(name: str, alter_argv: bool) -> None:
    """What ``python -m NAME`` does, and for folders ``python FOLDER``."""
    import runpy

    _new_main(None, None)
    run: Any = vars(runpy)["_run_module_as_main"]
    try:
        run(name, alter_argv)
    except BaseException:
        _hide_frames()
        raise


def _place(path: str | None) -> None:
    """*path* where Python puts the folder of what it runs; None leaves the current folder."""
    if getattr(sys.flags, "safe_path", False):
        return
    if path is not None and sys.path:
        sys.path[0] = path


def _run_script(script: str) -> None:
    import pkgutil
    from importlib.machinery import BuiltinImporter, SourceFileLoader

    if script == "-":
        _place("")
        module = _new_main("<stdin>", BuiltinImporter)
        try:
            code = compile(sys.stdin.read(), "<stdin>", "exec", dont_inherit=True)
        except BaseException:
            _hide_frames()
            raise
        _run(code, module)
        return
    if not os.path.exists(script):
        _wrong(f"cannot open {script!r}: there is no such file")
    # Joined as Python does it: a program's children see the name, dots and all.
    path = os.path.join(os.getcwd(), script)
    if pkgutil.get_importer(script) is not None:
        # A folder or a zip file: its __main__ is run.
        if getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, path)
        else:
            _place(path)
        _run_by_name("__main__", False)
        return
    try:
        with io.open_code(path) as file:
            compiled = pkgutil.read_code(file)  # type: ignore[attr-defined]
            source = b"" if compiled is not None else _whole(file)
    except OSError as exc:
        _wrong(f"cannot open {script!r}: {exc.strerror}")
    _place(os.path.dirname(os.path.realpath(script)))
    module = _new_main(path, SourceFileLoader("__main__", path))
    if compiled is None:
        try:
            compiled = compile(source, path, "exec", dont_inherit=True)
        except BaseException:
            _hide_frames()
            raise
    _run(compiled, module)


def _whole(file: Any) -> bytes:
    file.seek(0)
    return file.read()  # type: ignore[no-any-return]


def _show_source(code: Any, source: str) -> None:
    """Have tracebacks show the lines of a command, as those of 3.13 and later do."""
    if sys.version_info >= (3, 13):
        import linecache

        register = getattr(linecache, "_register_code", None)
        if register is not None:  # by the file's name in 3.13.0, by the code's later
            by_code = hasattr(linecache, "_make_key") or hasattr(linecache, "_code_key")
            register(code if by_code else code.co_filename, source, "<string>")


def main() -> None:
    """The command."""
    only, report, how, words = _options(sys.argv[1:])
    from . import _doors

    try:
        doors = _doors.chosen(only)
    except ValueError as exc:
        _wrong(str(exc).replace("only=", "--only"))
    if how == "" and words[0] != "-" and not os.path.exists(words[0]):
        _wrong(f"cannot open {words[0]!r}: there is no such file")
    _doors.install(doors, report)
    if how == "-m":
        sys.argv[:] = ["-m", *words[1:]]
        _run_by_name(words[0], True)
    elif how == "-c":
        from importlib.machinery import BuiltinImporter

        sys.argv[:] = ["-c", *words[1:]]
        _place("")
        module = _new_main(None, BuiltinImporter)
        source = words[0] + "\n"
        if sys.version_info >= (3, 14):
            import textwrap

            source = textwrap.dedent(source)
        try:
            code = compile(source, "<string>", "exec", dont_inherit=True)
        except BaseException:
            _hide_frames()
            raise
        _show_source(code, source)
        _run(code, module)
    else:
        sys.argv[:] = words
        _run_script(words[0])


if __name__ == "__main__":
    main()
