"""Random arrays from the counter-based generator of `scalar.py`: any element is a function of (seed, counter)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels import scalar
from minigrad.kernels.cpu._jit import helper, jit
from minigrad.kernels.cpu.array import Array

Draw = Callable[[], tuple[int, int]]

_PARALLEL_FROM = 1 << 14
_philox, _uniform32, _uniform64 = helper(scalar.philox), helper(scalar.uniform32), helper(scalar.uniform64)
_normal_pair = helper(scalar.normal_pair)


@jit(_PARALLEL_FROM)
def _fill32(out: Array, seed: Any, offset: Any, normal: bool) -> None:
    for block in prange((out.size + 3) // 4):
        a, b, c, d = _philox(seed, offset + np.uint64(block))
        u = _uniform32(a), _uniform32(b), _uniform32(c), _uniform32(d)
        if normal:
            u = _normal_pair(u[0], u[1]) + _normal_pair(u[2], u[3])
        for lane in range(min(4, out.size - 4 * block)):
            out[4 * block + lane] = u[lane]


@jit(_PARALLEL_FROM)
def _fill64(out: Array, seed: Any, offset: Any, normal: bool) -> None:
    for block in prange((out.size + 1) // 2):
        a, b, c, d = _philox(seed, offset + np.uint64(block))
        u = _uniform64(a, b), _uniform64(c, d)
        if normal:
            u = _normal_pair(u[0], u[1])
        for lane in range(min(2, out.size - 2 * block)):
            out[2 * block + lane] = u[lane]


def rand(shape: tuple[int, ...], dtype: Any, draw: Draw) -> Array:
    """Uniform in [0, 1)."""
    return _fill(shape, dtype, draw, False)


def randn(shape: tuple[int, ...], dtype: Any, draw: Draw) -> Array:
    """N(0, 1)."""
    return _fill(shape, dtype, draw, True)


def _fill(shape: tuple[int, ...], dtype: Any, draw: Draw, normal: bool) -> Array:
    """`draw` reserves the numbers and says where they begin: (seed, offset)."""
    out = np.empty(shape, np.float64 if dtype == np.float64 else np.float32)
    fill = _fill64 if dtype == np.float64 else _fill32
    seed, offset = draw()
    fill(out.reshape(-1), np.uint64(seed), np.uint64(offset), normal)
    if dtype == np.float16 and not normal:
        np.floor(out * 2048, out=out)  # 11 bits are all that float16 holds: rounding would make some of them 1
        out /= 2048
    return out.astype(dtype, copy=False)
