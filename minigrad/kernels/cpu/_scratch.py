"""Memory that a kernel needs while it runs, kept for the next one: fresh pages cost more than many kernels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Buffers that are kept, and the bytes of the largest of them. Two threads of Python seldom convolve at once.
_KEPT, _LARGEST = 2, 2**26
#: Arrays begin with a line of the cache, and so with a whole vector.
_LINE = 64

_buffers: list[Any] = []  # appending and popping are atomic


@contextlib.contextmanager
def scratch(dtype: Any, *shapes: tuple[int, ...]) -> Iterator[list[Any]]:
    """Arrays of these shapes, with anything in them, for as long as the `with` block runs.

    >>> with scratch(np.float32, (2, 3), (4,)) as (x, y):
    ...     x.shape, y.shape
    ((2, 3), (4,))
    """
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes]
    starts = np.cumsum([0, *(-(-size // _LINE) * _LINE for size in sizes)]).tolist()
    try:
        buffer = _buffers.pop()
    except IndexError:
        buffer = np.empty(0, np.uint8)
    if buffer.size < starts[-1] + _LINE:
        buffer = np.empty(starts[-1] + _LINE, np.uint8)
    whole = buffer[-buffer.ctypes.data % _LINE :]
    parts = zip(starts, sizes, shapes, strict=False)
    try:
        yield [whole[start : start + size].view(dtype).reshape(shape) for start, size, shape in parts]
    finally:
        if len(_buffers) < _KEPT and buffer.size <= _LARGEST:
            _buffers.append(buffer)
