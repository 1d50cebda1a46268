"""Ctrl-C waits where something must not stop half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended; it is delivered then.

    >>> import signal
    >>> from minigrad._interrupt import deferred
    >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    >>> try:
    ...     with deferred():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("the whole block")
    ... except KeyboardInterrupt:
    ...     print("and then this")
    the whole block
    and then this
    >>> before = signal.signal(signal.SIGINT, before)
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
