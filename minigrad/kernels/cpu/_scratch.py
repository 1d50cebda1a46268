"""Memory that a kernel needs while it runs.

`Scratch` keeps it for the next one: fresh pages cost more than many a kernel. `aligned` is for kernels that take
little, and are over so soon that the Python of `Scratch` would show.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import numpy as np

from minigrad.kernels.cpu._jit import helper

#: Buffers that are kept, and the bytes of the largest of them. Seldom do more than two threads need one at a time.
_KEPT, _LARGEST = 2, 2**26
#: Arrays begin with a line of the cache, and so with a whole vector.
_LINE = 64

_buffers: list[Any] = []  # appending and popping are atomic


def _new(size: int) -> Any:
    buffer = np.empty(size + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    return buffer[start : start + size]


class Scratch:
    """Arrays of a dtype and some shapes, with anything in them, for as long as the `with` block runs.

    >>> with Scratch(np.float32, (2, 3), (4,)) as (x, y):
    ...     x.shape, y.shape
    ((2, 3), (4,))
    """

    def __init__(self, dtype: Any, *shapes: tuple[int, ...]):
        self._dtype, self._shapes = np.dtype(dtype), shapes

    def __enter__(self) -> list[Any]:
        places, end = [], 0
        for shape in self._shapes:
            places.append(end)
            size = math.prod(shape) * self._dtype.itemsize
            end += size + -size % _LINE
        try:
            self._buffer = _buffers.pop()
        except IndexError:
            self._buffer = _new(end)
        if self._buffer.size < end:
            self._buffer = _new(end)
        arrays = zip(self._shapes, places, strict=True)
        return [np.ndarray(shape, self._dtype, self._buffer, place) for shape, place in arrays]

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if len(_buffers) < _KEPT and self._buffer.size <= _LARGEST:
            _buffers.append(self._buffer)


@helper
def aligned(size: int, like: Any) -> Any:
    """Within a kernel: an array of the dtype of another, with anything in it, that begins with a line of the cache."""
    numbers = _LINE // like.itemsize
    made = np.empty(size + numbers, like.dtype)
    start = -(made.ctypes.data // like.itemsize) % numbers
    return made[start : start + size]
