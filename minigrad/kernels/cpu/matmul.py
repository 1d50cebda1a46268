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
#: Steps of a panel that are kept for the tiles further down; a longer panel is filled again for each block.
_DEPTH = 2048
_NO_BIAS = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, ("float32", "float64"))}


@helper
def _line(out: Any, at: int, x: Any, start: int, columns: int, width: int) -> None:
    """A line of a tile, or what there is of it. With offsets, as slices of arrays would take longer than to copy it."""
    if columns == width:
        _tile.copy_columns(out, at, x, start, columns)
    else:
        for j in range(columns):
            out[at + j] = x[start + j]


@helper
def _fill(panel: Any, y: Any, first: int, low: int, high: int, turned: bool, places: Any, lines: Any) -> None:
    """panel[k − low, j] = y[k, first + j], or y[first + j, k] if turned, for k from low to high."""
    width, out, given = panel.shape[1], panel.reshape(-1), y.reshape(-1)
    if turned:
        _tile.transpose(out, places, y[first : min(first + width, len(y)), low:high], lines)
    else:
        columns = min(width, y.shape[1] - first)
        for k in range(low, high):
            _line(out, (k - low) * width, given, k * y.shape[1] + first, columns, width)


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _strips(laid: Any, x: Any) -> None:
    """laid[b, s, k] = the rows of xᵀ that tile s reads at step k; what there is of them."""
    _, strips, depth, height = laid.shape
    size = x.shape[2]
    for i in prange(len(x) * strips):
        b, s = np.int64(i) // strips, np.int64(i) % strips
        out, given = laid[b, s].reshape(-1), x[b].reshape(-1)
        for k in range(depth):
            if (s + 1) * height <= size:
                _tile.copy_rows(out, k * height, given, k * size + s * height, height)
            else:
                for j in range(size - s * height):
                    out[k * height + j] = given[k * size + s * height + j]


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _multiply(
    out: Any, x: Any, y: Any, bias: Any, panels: Any, products: Any, x_of: Any, y_of: Any,
    matrix: int, strip: int, row: int, step: int, turned: bool,
) -> None:  # fmt: skip
    """out[b, i, j] = Σ_k x[b, i, k] y[b, k, j] + bias[j]; the matrices of y may lie transposed.

    Batch b multiplies matrices x_of[b] and y_of[b]; x is flat, `strip` is the way from a tile's rows to the next's.
    Each thread has a panel of y, as wide as a tile, and the sums of some tiles one below the other, a block. Rows and
    columns that only fill up a tile hold anything, and are not copied out.
    """
    _, m, n = out.shape
    depth, (kept, width), block = y.shape[2] if turned else y.shape[1], panels.shape[1:], products.shape[1]
    height, blocks, each = block // _TILES, (m + block - 1) // block, (n + width - 1) // width
    steps, places, lines = np.empty(_STEPS, np.int64), np.empty(kept, np.int64), np.empty(width // 2, np.int64)
    for k in range(_STEPS):
        steps[k] = k * step
    for k in range(kept):
        places[k] = k * width
    for j in range(width // 2):
        lines[j] = j * depth
    whole, last = np.empty(height, np.int64), np.empty(height, np.int64)
    for i in range(height):
        whole[i], last[i] = i * row, min(i, (m - 1) % height) * row  # rows that are not there are some that are
    made, tasks = out.reshape(-1), len(out) * each * blocks
    for thread in prange(len(panels)):
        panel, sums, tall, filled = panels[thread], products[thread], products[thread].reshape(-1), -1
        for task in range(tasks * thread // len(panels), tasks * (thread + 1) // len(panels)):
            b, first, top = task // blocks // each, task // blocks % each * width, task % blocks * block
            columns, here = min(width, n - first), min(block, m - top)
            for i in range(here):
                if bias.size:
                    _line(tall, i * width, bias, first, columns, width)
                else:
                    sums[i] = 0
            for low in range(0, depth, kept):
                high = min(low + kept, depth)
                if kept < depth or filled != task // blocks:
                    filled = task // blocks
                    _fill(panel, y[y_of[b]], first, low, high, turned, places, lines)
                for start in range(low, high, _STEPS):
                    part, right = steps[: high - start], panel[start - low :]
                    for i in range(0, here, height):
                        left = x[x_of[b] * matrix + (top + i) // height * strip + start * step :]
                        rows = whole if top + i + height <= m else last
                        if 2 * columns > width:
                            _tile.tile(sums[i:], left, rows, part, right)
                        else:
                            _tile.narrow_tile(sums[i:], left, rows, part, right)
            for i in range(here):
                _line(made, (b * m + top + i) * n + first, tall, i * width, columns, width)


def _product(x: Array, y: Array, bias: Array | None = None) -> Array:
    """x y + bias, for (…, m, k) and (…, k, n)."""
    (m, k), n = x.shape[-2:], y.shape[-1]
    alone = m * k * n <= _ALONE and (min(m, n) > 1 or max(m, n) * k < _ALONE_WITH_VECTOR)
    if alone or x.dtype not in _NO_BIAS:  # whole numbers have no BLAS: NumPy multiplies them on one thread
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
    strips = math.ceil(m / height)
    panels, products = (threads, min(k, _DEPTH), width), (threads, _TILES * height, width)
    laid = (len(x), strips, k, height) if x_turned else (0,)
    with _scratch.Scratch(x.dtype, panels, products, laid) as (panels, products, laid):
        if x_turned:
            _strips(laid, x)
        layout = (strips * height * k, height * k, 1, height) if x_turned else (m * k, height * k, k, 1)
        _multiply(
            out.reshape(-1, m, n), (laid if x_turned else x).reshape(-1), y,
            _NO_BIAS[x.dtype] if bias is None else bias, panels, products, x_of, y_of, *layout, y_turned,
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
