# SPDX-License-Identifier: BSD-3-Clause
"""What ``progress=`` accepts, behind one face: update(n) as results arrive, close() at the end.

The map loop may call update() a million times, so the face counts and passes the sum on at most
every 50 ms.  What it has not passed on it passes on in close(), so the final count is exact.
tqdm is used when it is installed; otherwise a plain bar on stderr does.
"""

from __future__ import annotations

import sys
import time
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeAlias

    class _Bar(Protocol):
        def update(self, n: int, /) -> object:
            """*n* more are done."""

    # Any: an int, but for an imap() whose input does not say how long it is.
    Wanted: TypeAlias = bool | dict[str, Any] | Callable[[int, Any], object] | _Bar | None

INTERVAL_S = 0.05


class Progress:
    """Counts finished tasks and passes them to a sink now and then.

    *sink* is called with (newly done, done in all); *finish*, if given, once by close().  A map in
    the background is told of by whichever thread takes its results, so both are called under a
    lock, which the same thread may take again.
    """

    __slots__ = ("done", "total", "_finish", "_last", "_lock", "_passed", "_sink")

    def __init__(
        self,
        sink: Callable[[int, int], object],
        total: int | None,
        finish: Callable[[], object] | None = None,
    ) -> None:
        self.done = 0
        self.total = total
        self._sink = sink
        self._finish = finish
        self._passed = 0
        self._lock = RLock()
        self._last = time.monotonic()

    def update(self, n: int = 1) -> None:
        """Note that *n* more tasks are done.  An exception of the user's callable comes out."""
        with self._lock:
            self.done += n
            now = time.monotonic()
            if now - self._last >= INTERVAL_S or self.done == self.total:
                self._last = now
                self._pass()

    def _pass(self) -> None:
        new = self.done - self._passed
        if new:
            self._passed = self.done
            self._sink(new, self.done)

    def close(self) -> None:
        """Pass on the rest, and close the bar if it is ours.  Again: nothing."""
        with self._lock:
            finish, self._finish = self._finish, None
            try:
                self._pass()
            finally:
                if finish is not None:
                    finish()


class PlainBar:
    """A bar of text on stderr for when tqdm is not installed."""

    def __init__(
        self, total: int | None = None, desc: str | None = None, file: Any = None, **_: Any
    ) -> None:
        self.n = 0
        self.total = total
        self._desc = f"{desc}: " if desc else ""
        self._file = file if file is not None else sys.stderr
        self._start = time.monotonic()
        self._width = 0

    def update(self, n: int = 1) -> None:
        """Draw *n* more."""
        self.n += n
        spent = time.monotonic() - self._start
        rate = f"{self.n / spent:.1f}/s" if spent > 0 else ""
        if self.total:
            share = min(1.0, self.n / self.total)
            bar = ("#" * int(share * 30)).ljust(30, ".")
            text = f"{self._desc}{share:4.0%} [{bar}] {self.n}/{self.total} {spent:.0f} s {rate}"
        else:
            text = f"{self._desc}{self.n} {spent:.0f} s {rate}"
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def close(self) -> None:
        """End the line."""
        if self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except (AttributeError, OSError, ValueError):
            pass  # no stderr, or a closed one: a bar is not worth failing a map


_plain_tqdm: Any = None


def _make_bar(**options: Any) -> Any:
    """A tqdm bar, the notebook's one in a notebook; the plain bar without tqdm."""
    global _plain_tqdm
    try:
        if "ipykernel" in sys.modules:
            from tqdm.auto import tqdm
        else:
            from tqdm.std import tqdm
    except ImportError:
        return PlainBar(**options)
    if _plain_tqdm is None or _plain_tqdm.__mro__[1] is not tqdm:
        # tqdm's monitor thread wakes bars nobody updates; ours are, so no thread is started.
        _plain_tqdm = type("tqdm", (tqdm,), {"monitor_interval": 0})
    # Fixed miniters: the dynamic one would skip results that come slowly after fast ones.
    return _plain_tqdm(**{"mininterval": INTERVAL_S, "miniters": 1, **options})


def make_progress(progress: Wanted, total: int | None, desc: str | None = None) -> Progress | None:
    """The object that a map updates, or None for no progress.

    *progress*: False or None, nothing; True, a bar; a dict, the keyword arguments of tqdm for a
    bar; an object with update(), such as a tqdm bar of the user's, which is updated and not
    closed; any other callable, called with (done, total), where *total* may be None.

    Raises TypeError for anything else.
    """
    if progress is None or progress is False:
        return None
    if progress is True or isinstance(progress, dict):
        options = {"total": total, "desc": desc}
        if isinstance(progress, dict):
            options.update(progress)
        bar = _make_bar(**options)
        return Progress(lambda new, done: bar.update(new), total, bar.close)
    update = getattr(progress, "update", None)
    if callable(update) and not isinstance(progress, type):
        refresh = getattr(progress, "refresh", None)
        return Progress(
            lambda new, done: update(new), total, refresh if callable(refresh) else None
        )
    if callable(progress):
        return Progress(lambda new, done: progress(done, total), total)
    raise TypeError(
        "progress must be True, a dict of options for tqdm, a callable of (done, total), "
        f"or an object with update(), not {type(progress).__name__}"
    )
