# SPDX-License-Identifier: BSD-3-Clause
"""Owner: what workers print and log arrives here.

Text goes to whatever sys.stdout or sys.stderr is at that moment, so a notebook cell, pytest's
capture or contextlib.redirect_stdout sees it, in order with what the owner itself prints.  Log
records go to the logger of the same name and from there to the owner's handlers.

Nothing here raises into the code that drains results, except KeyboardInterrupt.
"""

from __future__ import annotations

import _pickle as pickle
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STDOUT = 1
STDERR = 2
LOG = 3

# Characters of more than one byte may be cut between two records, so each (pid, stream) that ends
# in the middle of one keeps its decoder until the rest arrives.
_decoders: dict[tuple[int, int], Any] = {}


def want_forwarding() -> bool:
    """Whether workers of a pool opened now are to send their output through the owner.

    Always, unless this process has neither stream (pythonw, a daemon).  Writing straight to the
    inherited file descriptor would be as good only when sys.stdout is that descriptor, unbuffered;
    in every other case lines would be lost (notebooks) or out of order (pipes).
    """
    return sys.stdout is not None or sys.stderr is not None


def logging_config() -> dict[str, Any] | None:
    """What a worker must know to log as the owner does; None if the owner has no handler.

    ``{"level": root level, "disable": manager's, "loggers": {name: level}}``, for begin()'s
    ``info["logging"]``.  Does not import logging.
    """
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    root = logging.getLogger()
    handlers = bool(root.handlers)
    levels = {}
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            handlers = handlers or bool(logger.handlers)
            if logger.level:
                levels[name] = logger.level
    if not handlers:
        return None
    return {"level": root.level, "disable": root.manager.disable, "loggers": levels}


def deliver(stream: int, data: bytes, pid: int) -> None:
    """Hand over one record of a worker: text for stream 1 and 2, a log record for 3."""
    try:
        if stream == LOG:
            _deliver_log(data)
        else:
            _deliver_text(stream, data, pid)
    except Exception:
        pass  # a closed pipe, a broken handler: the tasks' results matter more


def _deliver_text(stream: int, data: bytes, pid: int) -> None:
    text = _decode(stream, data, pid)
    target = sys.stderr if stream == STDERR else sys.stdout
    if target is None or not text:
        return
    try:
        target.write(text)
    except UnicodeEncodeError:
        encoding = getattr(target, "encoding", None) or "ascii"
        target.write(text.encode(encoding, "backslashreplace").decode(encoding))
    # Half a line is a prompt or a bar, and shows at once as it would have in one process.
    if not text.endswith("\n"):
        target.flush()


def _decode(stream: int, data: bytes, pid: int) -> str:
    key = (pid, stream)
    decoder = _decoders.pop(key, None)
    if decoder is None:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            import codecs

            decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text: str = decoder.decode(data)
    if decoder.getstate()[0]:
        _decoders[key] = decoder
    return text


def forget(pid: int) -> None:
    """Drop what is kept about a worker that ended."""
    for key in (pid, STDOUT), (pid, STDERR):
        _decoders.pop(key, None)


def _deliver_log(data: bytes) -> None:
    import logging

    record = logging.makeLogRecord(pickle.loads(data))
    logger = logging.getLogger(record.name)
    # The worker applied its level; filters and handlers are the owner's.
    logger.handle(record)
