"""Ctrl-C: it waits where something must not stop half-way, and ends a script in few words."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

#: What a shell says of a program that Ctrl-C has ended.
INTERRUPTED = 130


@contextmanager
def deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended; it is delivered then.

    >>> import signal
    >>> from minigrad._interrupt import deferred
    >>> try:
    ...     with deferred():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("the whole block")
    ... except KeyboardInterrupt:
    ...     print("and then this")
    the whole block
    and then this
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():  # where it never arrives
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])


def exit_on_interrupt() -> None:
    """Let Ctrl-C end this script with a line and exit code 130 instead of a traceback; `finally` blocks still run."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
