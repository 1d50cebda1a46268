"""Random arrays from the counter-based generator of `scalar.py`: the CPU's stream, element for element.

A thread draws one block of four 32-bit words and writes the elements that come from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.kernels import scalar
from minigrad.kernels.cuda._stream import here
from minigrad.kernels.cuda.array import Array, cast, constant, empty
from minigrad.kernels.cuda.launch import helper, items, kernel

Draw = Callable[[], tuple[int, int]]
_philox, _uniform32, _uniform64 = helper(scalar.philox), helper(scalar.uniform32), helper(scalar.uniform64)
_normal_pair = helper(scalar.normal_pair)
_UNIFORM, _NORMAL, _COARSE = 0, 1, 2  # coarse: 11 bits, as float16 holds no more and rounding would make some of them 1


@kernel("u4 u4 f4[] u8 u8 u8[] u4")
def _fill32(blocks: Any, size: Any, out: Any, seed: Any, offset: Any, moved: Any, kind: Any) -> None:
    seed, offset = np.uint64(seed + moved[np.uint32(0)]), np.uint64(offset + moved[np.uint32(1)])
    for block in items(blocks):
        a, b, c, d = _philox(seed, np.uint64(offset + np.uint64(block)))
        u = _uniform32(a), _uniform32(b), _uniform32(c), _uniform32(d)
        if kind == np.uint32(_NORMAL):
            x, y = _normal_pair(u[0], u[1])
            z, w = _normal_pair(u[2], u[3])
            u = x, y, z, w
        for lane in range(np.uint32(4)):
            at = np.uint32(np.uint32(4) * block + lane)
            if at < size:
                value = u[lane]
                if kind == np.uint32(_COARSE):
                    value = np.float32(math.floor(value * np.float32(2048))) / np.float32(2048)
                out[at] = value


@kernel("u4 u4 f8[] u8 u8 u8[] u4")
def _fill64(blocks: Any, size: Any, out: Any, seed: Any, offset: Any, moved: Any, kind: Any) -> None:
    seed, offset = np.uint64(seed + moved[np.uint32(0)]), np.uint64(offset + moved[np.uint32(1)])
    for block in items(blocks):
        a, b, c, d = _philox(seed, np.uint64(offset + np.uint64(block)))
        u = _uniform64(a, b), _uniform64(c, d)
        if kind == np.uint32(_NORMAL):
            u = _normal_pair(u[0], u[1])
        for lane in range(np.uint32(2)):
            at = np.uint32(np.uint32(2) * block + lane)
            if at < size:
                out[at] = u[lane]


@functools.cache
def _unmoved() -> Array:
    return constant(np.zeros(2, np.uint64))


def rand(shape: tuple[int, ...], dtype: Any, draw: Draw) -> Array:
    """Uniform in [0, 1)."""
    return _fill(shape, dtype, draw, _COARSE if dtype == np.float16 else _UNIFORM)


def randn(shape: tuple[int, ...], dtype: Any, draw: Draw) -> Array:
    """N(0, 1)."""
    return _fill(shape, dtype, draw, _NORMAL)


def _fill(shape: tuple[int, ...], dtype: Any, draw: Draw, kind: int) -> Array:
    """`draw` reserves the numbers and says where they begin: (seed, offset). A captured step asks it every time."""
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    out = empty(shape, wide)
    if here.recording is None:
        seed, offset = draw()
        moved = _unmoved()
    else:
        seed = offset = 0
        moved = here.recording.number(lambda: np.array(draw(), np.uint64))
    fill, lanes = (_fill64, 2) if wide == np.float64 else (_fill32, 4)
    fill.each(-(-out.size // lanes), out.size, out, seed, offset, moved, kind)
    return cast(out, dtype)
