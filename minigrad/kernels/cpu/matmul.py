"""Dense products: large ones on the micro-kernel, small ones by BLAS, those with a vector by loops (`_vector`).

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

from minigrad.kernels.cpu import _scratch, _tile, _vector
from minigrad.kernels.cpu._jit import helper, jit, num_threads
from minigrad.kernels.cpu._quiet import quiet
from minigrad.kernels.cpu.array import Array, cast

Extents = tuple[int, ...]

#: OpenBLAS takes one thread for products of matrices up to so many multiplications, and for those with a vector.
_ALONE, _ALONE_WITH_VECTOR = 2**18, 9216
#: From there on a second thread pays here. Below, what one core has made waits for the other as long as that saves.
_TOGETHER = 2**20
#: So many tiles one below the other share a panel, so many steps of it at a time: they stay in the first cache.
_TILES, _STEPS = 16, 256
#: Panels that are filled side by side.
_PANELS = 2
#: Steps of a panel that are kept for the tiles further down; a longer panel is filled again for each block.
_DEPTH = 2048
#: Up to so many columns of a product a transposed matrix is read as it lies; more repay laying it out for the tiles.
_LAID_OUT = 512
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
def _fill(panels: Any, y: Any, first: int, low: int, high: int, turned: bool, places: Any, lines: Any) -> None:
    """panels[p, k − low, j] = y[k, first + p width + j], or y[first + p width + j, k] if turned, for low ≤ k < high.

    Side by side, as lines of y may lie a page of memory apart.
    """
    width, out, given = panels.shape[2], panels.reshape(-1), y.reshape(-1)
    if turned:
        for p in range(len(panels)):
            start = first + p * width
            _tile.transpose(panels[p].reshape(-1), places, y[start : min(start + width, len(y)), low:high], lines)
    else:
        size = y.shape[1]
        for k in range(low, high):
            for p in range(len(panels)):
                at, start = (p * panels.shape[1] + k - low) * width, first + p * width
                _line(out, at, given, k * size + start, min(width, size - start), width)


@helper
def _lay(out: Any, x: Any, first: int) -> None:
    """out[k, i] = x[k, first + i]: the rows of xᵀ that a tile reads at step k; what there is of them."""
    height, flat, given = out.shape[1], out.reshape(-1), x.reshape(-1)
    depth, size = x.shape
    for k in range(depth):
        if first + height <= size:
            _tile.copy_rows(flat, k * height, given, k * size + first, height)
        else:
            for i in range(size - first):
                flat[k * height + i] = given[k * size + first + i]


@helper
def _every(step: int, count: int) -> Any:
    """0, step, 2 step, …"""
    made = np.empty(count, np.int64)
    for i in range(count):
        made[i] = i * step
    return made


@jit(0, formula=_tile.tile)
def _multiply(
    out: Any, x: Any, y: Any, bias: Any, x_of: Any, y_of: Any, x_turned: bool, y_turned: bool,
    height: int, width: int, threads: int,
) -> None:  # fmt: skip
    """out[b, i, j] = Σ_k x[b, i, k] y[b, k, j] + bias[j]; the matrices of x, and of y, may lie transposed.

    Batch b multiplies matrices x_of[b] and y_of[b]. Of a transposed x that many panels will read, the rows that a tile
    reads are laid side by side first. Each thread has panels of y, as wide as a tile, and works on some tiles one below
    the other, a block: in `out` if they are whole ones, else beside it. Rows and columns that only fill up a tile hold
    anything, and are not copied out.
    """
    _, m, n = out.shape
    depth = x.shape[1] if x_turned else x.shape[2]
    strips, each = (m + height - 1) // height, (n + width - 1) // width
    block = height * max(1, min(_TILES, (len(out) * each * strips + threads - 1) // threads))  # work for every thread
    if x_turned and n > _LAID_OUT:
        laid = _scratch.aligned(len(x) * strips * depth * height, x).reshape(len(x) * strips, depth, height)
        for i in prange(len(laid)):
            _lay(laid[i], x[np.int64(i) // strips], np.int64(i) % strips * height)
        given, matrix, strip, row, step = laid.reshape(-1), strips * height * depth, height * depth, 1, height
    elif x_turned:
        given, matrix, strip, row, step = x.reshape(-1), m * depth, height, 1, m
    else:
        given, matrix, strip, row, step = x.reshape(-1), m * depth, height * depth, depth, 1
    kept = min(depth, _DEPTH)
    blocks = (m + block - 1) // block
    panels = _scratch.aligned(threads * _PANELS * kept * width, x).reshape(threads, _PANELS, kept, width)
    products = _scratch.aligned(threads * block * width, x).reshape(threads, block, width)
    steps, places, lines = _every(step, _STEPS), _every(width, kept), _every(depth, width // 2)
    whole, last = _every(row, height), _every(row, height)
    for i in range(height):
        last[i] = min(i, (m - 1) % height) * row  # rows that are not there are some that are
    made, tasks = out.reshape(-1), len(out) * each * blocks
    for thread in prange(threads):
        beside = products[thread].reshape(-1)
        begin, end, last_filled = tasks * thread // threads, tasks * (thread + 1) // threads, -1
        for task in range(begin, end):
            place, top = task // blocks, task % blocks * block
            b, first = place // each, place % each * width
            columns, here = min(width, n - first), min(block, m - top)
            in_place = columns == width and here % height == 0
            sums = out[b, top:, first:] if in_place else products[thread]
            flat, at, pitch = (made, (b * m + top) * n + first, n) if in_place else (beside, 0, width)
            if bias.size:
                for i in range(here):
                    _line(flat, at + i * pitch, bias, first, columns, width)
            for low in range(0, depth, kept):
                high = min(low + kept, depth)
                if kept < depth or place > last_filled:
                    some = 1 if kept < depth else min(_PANELS, each - place % each, (end - 1) // blocks - place + 1)
                    first_filled, last_filled = place, place + some - 1
                    _fill(panels[thread, :some], y[y_of[b]], first, low, high, y_turned, places, lines)
                panel = panels[thread, place - first_filled]
                for start in range(low, high, _STEPS):
                    part, right, add = steps[: high - start], panel[start - low :], start > 0 or bias.size > 0
                    for i in range(0, here, height):
                        left = given[x_of[b] * matrix + (top + i) // height * strip + start * step :]
                        rows = whole if top + i + height <= m else last
                        if 2 * columns > width:
                            _tile.tile(sums[i:], left, rows, part, right, add)
                        else:
                            _tile.narrow_tile(sums[i:], left, rows, part, right, add)
            if not in_place:
                for i in range(here):
                    _line(made, (b * m + top + i) * n + first, beside, i * width, columns, width)


def _with_vector(x: Array, y: Array, bias: Array | None) -> Array:
    """x y + bias where one of them is a row or a column, or where both are, with no bias."""
    if x.shape[1] == 1 and bias is None:
        return _vector.outer(x, y)
    matrix, vector = (x, y) if y.shape[1] == 1 else (y.T, x)
    turned, matrix = _in_lines(matrix)
    made = _vector.multiply(matrix, turned, vector, _NO_BIAS[x.dtype] if bias is None else bias)
    return made.reshape(len(x), y.shape[1])


def _by_numpy(x: Array, y: Array, bias: Array | None) -> Array:
    out = quiet.run(np.multiply, x, y, order="C") if x.shape[-1] == 1 else quiet.run(np.matmul, x, y)
    return np.asarray(out if bias is None else quiet.run(np.add, out, bias, out))


def _product(x: Array, y: Array, bias: Array | None = None) -> Array:
    """x y + bias, for (…, m, k) and (…, k, n)."""
    (m, k), n = x.shape[-2:], y.shape[-1]
    if (min(m, n) == 1 or (k == 1 and bias is None)) and x.ndim == y.ndim == 2 and x.dtype in _NO_BIAS:
        return _with_vector(x, y, bias)
    alone = m * k * n <= _ALONE and (min(m, n) > 1 or max(m, n) * k < _ALONE_WITH_VECTOR)
    if k == 1 or alone or x.dtype not in _NO_BIAS:  # whole numbers have no BLAS: NumPy multiplies them on one thread
        return _by_numpy(x, y, bias)
    if y.ndim == 2 and x.ndim > 2 and x.flags.c_contiguous:  # one matrix, and rows of all batches
        return _product(x.reshape(-1, k), y, bias).reshape(*x.shape[:-1], n)
    batch, x_of, y_of = _batch(x.shape[:-2], y.shape[:-2])
    out = np.empty((*batch, m, n), x.dtype)
    x_turned, x = _in_lines(x)
    y_turned, y = _in_lines(y)
    threads = num_threads() if out.size * k > _TOGETHER else 1
    (_multiply if threads > 1 else _multiply.alone).only(
        out.reshape(-1, m, n), x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]),
        _NO_BIAS[x.dtype] if bias is None else bias, x_of, y_of, x_turned, y_turned,
        *_tile.shape(8 * x.itemsize), threads,
    )  # fmt: skip
    return out


def _in_lines(x: Array) -> tuple[bool, Array]:
    """Is it the other way round that the matrices lie line after line; and they that way."""
    if turned := not x.flags.c_contiguous and x.mT.flags.c_contiguous:
        x = x.mT
    if not (x.flags.c_contiguous and x.flags.writeable):  # for memory that is read-only, Numba would compile anew
        x = x.copy("C")
    return turned, x


@functools.lru_cache(maxsize=64)
def _batch(x: Extents, y: Extents) -> tuple[Extents, Array, Array]:
    """What two batches broadcast to, and which matrix of each stands where."""
    batch = np.broadcast_shapes(x, y)
    x_of, y_of = (np.array(np.broadcast_to(np.arange(math.prod(own)).reshape(own), batch)) for own in (x, y))
    return batch, x_of.reshape(-1), y_of.reshape(-1)


def matmul(x: Array, y: Array) -> Array:
    """Batched product of matrices (…, m, k) and (…, k, n); float16 is multiplied in float32 and rounded once."""
    if x.dtype == np.float16:
        return cast(_product(x.astype(np.float32), y.astype(np.float32)), np.float16)
    return _product(x, y)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x weightᵀ + bias for x (…, in), weight (out, in), bias (out)."""
    if x.dtype == np.float16:
        wide = None if bias is None else bias.astype(np.float32)
        return cast(linear(x.astype(np.float32), weight.astype(np.float32), wide), np.float16)
    out = _product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight.T, bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])
