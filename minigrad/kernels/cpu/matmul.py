"""Dense products: large ones on the micro-kernel, small ones by BLAS.

A product that BLAS would share among threads of its own is multiplied here instead, on the threads of the other
kernels. Threads of two libraries take turns badly: those of OpenBLAS keep their cores busy after each product, for a
tenth of a second, waiting for the next, and a convolution that comes meanwhile has half of two cores.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _scratch, _tile
from minigrad.kernels.cpu._jit import helper, jit, num_threads
from minigrad.kernels.cpu.array import Array

Extents = tuple[int, ...]

#: OpenBLAS takes one thread for products of matrices up to so many multiplications, and for those with a vector.
_ALONE, _ALONE_WITH_VECTOR = 2**18, 9216
#: Numbers in the output from which a second thread pays.
_PARALLEL_FROM = 2**13
#: So many tiles one below the other share a panel, so many steps of it at a time: they stay in the first cache.
_TILES, _STEPS = 16, 256


@helper
def _line(out: Any, at: int, x: Any, start: int, columns: int, width: int) -> None:
    """A line of a tile, or what there is of it. With offsets, as slices of arrays would take longer than to copy it."""
    if columns == width:
        _tile.copy_columns(out, at, x, start, columns)
    else:
        for j in range(columns):
            out[at + j] = x[start + j]


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _multiply(
    out: Any, x: Any, y: Any, bias: Any, scratch: Any, x_of: Any, y_of: Any, x_turned: bool, y_turned: bool,
    height: int, width: int, threads: int,
) -> None:  # fmt: skip
    """out[b, i, j] = Σ_k x[x_of[b], i, k] y[y_of[b], k, j] + bias[j]; the matrices of x, of y may lie transposed.

    Each thread has a panel of y, as wide as a tile, and the sums of some tiles one below the other, a block. Rows and
    columns that only fill up a tile hold anything, and are not copied out. A transposed x is laid out first as tiles
    read it: in strips of their height.
    """
    _, m, n = out.shape
    depth = x.shape[1] if x_turned else x.shape[2]
    block, strips = _TILES * height, (m + height - 1) // height
    blocks, each = (m + block - 1) // block, (n + width - 1) // width
    row, step, strip = (1, height, depth * height) if x_turned else (depth, 1, height * depth)
    steps, places, lines = np.empty(_STEPS, np.int64), np.empty(depth, np.int64), np.empty(width // 2, np.int64)
    for k in range(_STEPS):
        steps[k] = k * step
    for k in range(depth):
        places[k] = k * width
    for j in range(width // 2):
        lines[j] = j * depth
    whole, last = np.empty(height, np.int64), np.empty(height, np.int64)
    for i in range(height):
        whole[i], last[i] = i * row, min(i, (m - 1) % height) * row  # rows that are not there are some that are
    given, right, made = x.reshape(-1), y.reshape(-1), out.reshape(-1)
    own = (depth + block) * width
    laid = scratch[threads * own :] if x_turned else given
    if x_turned:
        for s in prange(len(x) * strips):
            at, top = np.int64(s) * strip, np.int64(s) % strips * height
            for k in range(depth):
                start = (np.int64(s) // strips * depth + k) * m + top
                if top + height <= m:
                    _tile.copy_rows(laid, at + k * height, given, start, height)
                else:
                    for i in range(m - top):
                        laid[at + k * height + i] = given[start + i]
    for thread in prange(threads):
        panel = scratch[thread * own : thread * own + depth * width]
        sums = scratch[thread * own + depth * width : (thread + 1) * own].reshape(block, width)
        flat, tall, filled = panel.reshape(depth, width), sums.reshape(-1), -1
        tasks = len(out) * each * blocks
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            b, first, top = task // blocks // each, task // blocks % each * width, task % blocks * block
            columns, here = min(width, n - first), min(block, m - top)
            if filled != task // blocks:
                filled = task // blocks
                if y_turned:
                    _tile.transpose(panel, places, y[y_of[b], first : first + columns], lines)
                else:
                    for k in range(depth):
                        _line(panel, k * width, right, (y_of[b] * depth + k) * n + first, columns, width)
            for i in range(here):
                if bias.size:
                    _line(tall, i * width, bias, first, columns, width)
                else:
                    sums[i] = 0
            left = laid[x_of[b] * (strips * strip if x_turned else m * depth) + top // height * strip :]
            for start in range(0, depth, _STEPS):
                part, some = steps[: min(_STEPS, depth - start)], flat[start:]
                for i in range(0, here, height):
                    rows = whole if top + i + height <= m else last
                    if 2 * columns > width:
                        _tile.tile(sums[i:], left[i // height * strip + start * step :], rows, part, some)
                    else:
                        _tile.narrow_tile(sums[i:], left[i // height * strip + start * step :], rows, part, some)
            for i in range(here):
                _line(made, (b * m + top + i) * n + first, tall, i * width, columns, width)


def _product(x: Array, y: Array, bias: Array | None = None) -> Array:
    """x y + bias, for (…, m, k) and (…, k, n)."""
    (m, k), n = x.shape[-2:], y.shape[-1]
    if m * k * n <= _ALONE and (min(m, n) > 1 or max(m, n) * k < _ALONE_WITH_VECTOR):
        out = np.matmul(x, y)
        if bias is not None:
            out += bias
        return np.asarray(out)
    if y.ndim == 2 and x.ndim > 2 and x.flags.c_contiguous:  # one matrix, and rows of all batches
        return _product(x.reshape(-1, k), y, bias).reshape(*x.shape[:-1], n)
    batch, x_of, y_of = _batch(x.shape[:-2], y.shape[:-2])
    out = np.empty((*batch, m, n), x.dtype)
    x_turned, x = _lines(x)
    y_turned, y = _lines(y)
    (height, width), threads = _tile.shape(8 * x.itemsize), num_threads()
    laid = len(x) * math.ceil(m / height) * height * k if x_turned else 0
    with _scratch.Scratch(x.dtype, (threads * (k + _TILES * height) * width + laid,)) as (scratch,):
        _multiply(
            out.reshape(-1, m, n), x, y, scratch[:0] if bias is None else bias, scratch, x_of, y_of,
            x_turned, y_turned, height, width, threads,
        )  # fmt: skip
    return out


def _lines(x: Array) -> tuple[bool, Array]:
    """Is it the other way round that the matrices lie line after line; and they that way, as (matrices, lines, …)."""
    if turned := not x.flags.c_contiguous and x.mT.flags.c_contiguous:
        x = x.mT
    return turned, np.ascontiguousarray(x).reshape(-1, *x.shape[-2:])


@functools.lru_cache(maxsize=64)
def _batch(x: Extents, y: Extents) -> tuple[Extents, Array, Array]:
    """What two batches broadcast to, and which matrix of each stands where."""
    batch = np.broadcast_shapes(x, y)
    x_of, y_of = (np.array(np.broadcast_to(np.arange(math.prod(own)).reshape(own), batch)) for own in (x, y))
    return batch, x_of.reshape(-1), y_of.reshape(-1)


@np.errstate(all="ignore")
def matmul(x: Array, y: Array) -> Array:
    """Batched product of matrices (…, m, k) and (…, k, n); float16 is multiplied in float32 and rounded once."""
    if x.dtype == np.float16:
        return _product(x.astype(np.float32), y.astype(np.float32)).astype(np.float16)
    return _product(x, y)


@np.errstate(all="ignore")
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x weightᵀ + bias for x (…, in), weight (out, in), bias (out)."""
    if x.dtype == np.float16:
        wide = None if bias is None else bias.astype(np.float32)
        return linear(x.astype(np.float32), weight.astype(np.float32), wide).astype(np.float16)
    out = _product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight.T, bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])
