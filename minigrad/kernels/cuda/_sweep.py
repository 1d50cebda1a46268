"""A sweep of power iteration on the GPU: products with W and its transpose, and what becomes of them.

W is w[p, i, q], row i and column j = (p, q) of a matrix (m, n). A vector that is not normalized yet travels with its
norm in parts, pairs of a power of two and a sum of squares measured by it; whoever needs the norm puts them together.
So nothing overflows or vanishes from 1e-30 to 1e+30 in float32, and no launch waits for a result. Sums run in blocks
whose borders depend on shapes alone; the long ones carry their rounding errors along.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minigrad.kernels.cuda._block import WARP, WARPS, joined_over_warp, least_of, norm_of, over_warp, unit_of
from minigrad.kernels.cuda._numba import ALIGNED, SIMULATED, cuda, ldg, steps
from minigrad.kernels.cuda.array import Array, empty
from minigrad.kernels.cuda.launch import BLOCK, FLOATS, Kernel, helper, kernel
from minigrad.kernels.cuda.reduce import _settled, _two_sum

Shape = tuple[int, ...]
_MOST_WARPS = 3 if SIMULATED else 16  # of a block that holds rows
_HOLDERS = 24 if SIMULATED else 1 << 16  # threads that hold rows, all blocks together: as many as a GPU runs at once
_ROWS = 2 if SIMULATED else 4  # that a block takes at once in a product with columns
_PIECE = 2 * BLOCK if SIMULATED else 8 * BLOCK  # columns of a block there
_FEW = 3 if SIMULATED else 16  # rows of a part in a product with rows, at least
_RUN = 2 if SIMULATED else 4  # rows whose products are added before rounding errors are looked at
_MOST_PARTS = 4 if SIMULATED else 256  # of a sum over rows


@helper
def _start(j: Any, a: Any, m: Any, b: Any) -> Any:
    """Where column j begins in w[p, i, q]; row i is i · b behind that."""
    if a == np.uint32(1):
        return np.uint32(j)
    p = np.uint32(np.uint32(j) // b)
    return np.uint32(np.uint32(j) + np.uint32(np.uint32(p * b) * np.uint32(m - np.uint32(1))))


# Both products in one pass --------------------------------------------------------------------------------------------


def _holding(dtype: str, columns: int, rows: int) -> Kernel:
    """t = Mx, and z = Mᵀt in parts: a block holds whole rows in registers while both products use them.

    Each of its threads has so many columns and the block so many rows at once, of the `count` that it works through.
    z is in units of t, a power of two that grows as larger t come in.
    """
    name = f"{dtype}x{columns}x{rows}"
    cells = 2 * rows * _MOST_WARPS  # for each row what each warp adds, and as much again

    @kernel("T[] T[] T[] T[] T[] T[] u4 u4 u4 u4", name=name, threads=_MOST_WARPS * WARP, T=(dtype,))
    def hold(
        t: Any, parts: Any, units: Any, squares: Any, w: Any, x: Any, a: Any, m: Any, b: Any, count: Any
    ) -> None:  # fmt: skip
        sums = cuda.shared.array(cells, w.dtype, alignment=ALIGNED)
        held = cuda.local.array((rows, columns), w.dtype)
        z = cuda.local.array(columns, w.dtype)
        ts = cuda.local.array(rows, w.dtype)
        zero = w.dtype.type(0)
        n = np.uint32(a * b)
        block, thread, threads = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x), np.uint32(cuda.blockDim.x)
        warp = np.uint32(thread // np.uint32(WARP))
        first = np.uint32(block * count)
        last = np.uint32(min(np.uint32(first + count), m))
        unit, square = least_of(zero), zero
        turn = np.uint32(0)
        for cell in steps(thread, np.uint32(cells), threads):
            sums[cell] = zero  # what warps that are not there would add
        cuda.syncthreads()
        for k in range(columns):
            z[k] = zero
        for i in steps(first, last, np.uint32(rows)):
            for r in range(rows):
                ts[r] = zero
            for k in range(columns):  # columns and rows beyond the last are the last once more, and count nothing
                j = np.uint32(thread + np.uint32(threads * np.uint32(k)))
                column = np.uint32(min(j, np.uint32(n - np.uint32(1))))
                start = _start(column, a, m, b)
                factor = ldg(x, column) if j < n else zero
                for r in range(rows):
                    row = np.uint32(min(np.uint32(i + np.uint32(r)), np.uint32(last - np.uint32(1))))
                    held[r, k] = ldg(w, np.uint32(start + np.uint32(row * b)))
                    ts[r] += held[r, k] * factor
            for r in range(rows):
                total = over_warp(ts[r])
                if thread % np.uint32(WARP) == np.uint32(0):
                    sums[np.uint32(np.uint32(turn + np.uint32(r * _MOST_WARPS)) + warp)] = total
            cuda.syncthreads()  # one is enough: the next sums go into the other half
            largest = zero
            for r in range(rows):
                total = zero
                for other in range(_MOST_WARPS):
                    total += sums[np.uint32(turn + np.uint32(r * _MOST_WARPS + other))]
                row = np.uint32(i + np.uint32(r))
                ts[r] = total if row < last else zero
                if thread == np.uint32(0) and row < last:
                    t[row] = total
                size = abs(ts[r])
                if size > largest and size - size == zero:
                    largest = size
            turn = np.uint32(np.uint32(cells // 2) - turn)
            if largest > unit:
                ratio = unit / unit_of(largest)
                unit = unit_of(largest)
                square *= ratio * ratio
                for k in range(columns):
                    z[k] *= ratio
            inverse = w.dtype.type(1) / unit
            for r in range(rows):
                ts[r] *= inverse
                square += ts[r] * ts[r]
                for k in range(columns):
                    z[k] += ts[r] * held[r, k]
        for k in range(columns):
            j = np.uint32(thread + np.uint32(threads * np.uint32(k)))
            if j < n:
                parts[np.uint32(np.uint32(block * n) + j)] = z[k]
        if thread == np.uint32(0):
            units[block], squares[block] = unit, square

    return hold


# columns of a thread → the kernel and its rows; both as registers allow
_SIZES = {"f4": ((1, 2), (2, 3)), "f8": ((1, 2), (2, 3))} if SIMULATED else {
    "f4": ((4, 8), (8, 4), (16, 2)), "f8": ((4, 4), (8, 4), (16, 1)),
}  # fmt: skip
_HOLD = {
    np.dtype(dtype): {columns: (_holding(dtype, columns, rows), rows) for columns, rows in sizes}
    for dtype, sizes in _SIZES.items()
}


# One product to a pass ------------------------------------------------------------------------------------------------


@kernel("T[] T[] T[] T[] T[] u4 u4 u4 u4 u4", T=FLOATS)
def _times_columns(
    parts: Any, w: Any, x: Any, units: Any, squares: Any, count: Any, a: Any, m: Any, b: Any, pieces: Any
) -> None:
    """Mx in parts, one per piece of the columns; `count` parts of x's norm, if it has any, to measure x by."""
    sums = cuda.shared.array((_ROWS, WARPS), w.dtype)
    ts = cuda.local.array(_ROWS, w.dtype)
    job, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    inverse = w.dtype.type(1)
    if count > np.uint32(0):
        inverse /= norm_of(units, squares, count)[0]
    group = np.uint32(job // pieces)
    piece = np.uint32(job - np.uint32(group * pieces))
    i, first = np.uint32(group * np.uint32(_ROWS)), np.uint32(piece * np.uint32(_PIECE))
    last = np.uint32(min(np.uint32(first + np.uint32(_PIECE)), np.uint32(a * b)))
    for r in range(_ROWS):
        ts[r] = w.dtype.type(0)
    for j in steps(np.uint32(first + thread), last, np.uint32(BLOCK)):
        start, factor = _start(j, a, m, b), ldg(x, j) * inverse
        for r in range(_ROWS):
            row = np.uint32(min(np.uint32(i + np.uint32(r)), np.uint32(m - np.uint32(1))))
            ts[r] += ldg(w, np.uint32(start + np.uint32(row * b))) * factor
    for r in range(_ROWS):
        total = over_warp(ts[r])
        if thread % np.uint32(WARP) == np.uint32(0):
            sums[r, np.uint32(thread // np.uint32(WARP))] = total
    cuda.syncthreads()
    for r in range(_ROWS):
        row = np.uint32(i + np.uint32(r))
        if thread == np.uint32(r) and row < m:
            total = sums[r, 0]
            for warp in range(1, WARPS):
                total += sums[r, warp]
            parts[np.uint32(np.uint32(piece * m) + row)] = total


@kernel("T[] T[] T[] T[] T[] u4 u4 u4 u4 u4 u4", T=FLOATS)
def _times_rows(
    parts: Any, w: Any, x: Any, units: Any, squares: Any, count: Any, a: Any, m: Any, b: Any, rows: Any, pieces: Any
) -> None:
    """Mᵀx in parts, one per so many rows; `count` parts of x's norm, if it has any, to measure x by."""
    job, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    inverse = w.dtype.type(1)
    if count > np.uint32(0):
        inverse /= norm_of(units, squares, count)[0]
    part = np.uint32(job // pieces)
    j = np.uint32(np.uint32(np.uint32(job - np.uint32(part * pieces)) * np.uint32(BLOCK)) + thread)
    n = np.uint32(a * b)
    if j < n:
        first = np.uint32(part * rows)
        start = _start(j, a, m, b)
        total, rest = w.dtype.type(0), w.dtype.type(0)
        last = np.uint32(min(np.uint32(first + rows), m))
        whole = np.uint32(last - np.uint32(last - first) % np.uint32(_RUN))
        for i in steps(first, whole, np.uint32(_RUN)):
            value = w.dtype.type(0)
            for r in range(_RUN):
                row = np.uint32(i + np.uint32(r))
                value += ldg(w, np.uint32(start + np.uint32(row * b))) * (ldg(x, row) * inverse)
            total, rest = _two_sum(total, rest, value, w.dtype.type(0))
        for row in steps(whole, last, np.uint32(1)):
            value = ldg(w, np.uint32(start + np.uint32(row * b))) * (ldg(x, row) * inverse)
            total, rest = _two_sum(total, rest, value, w.dtype.type(0))
        parts[np.uint32(np.uint32(part * n) + j)] = _settled(total, rest)


@kernel("T[] T[] T[] T[] T[] T[] ? u4 u4", T=FLOATS)
def _gather(
    out: Any, out_units: Any, out_squares: Any, parts: Any, units: Any, squares: Any, own: Any, count: Any, n: Any
) -> None:
    """The sum of `count` parts of a vector, each in a unit of its `own`; and the norm of each WARP of its elements.

    A warp adds up some of the parts of these elements, and the first warp what all have found.
    """
    totals = cuda.shared.array((WARPS, WARP), parts.dtype)
    rests = cuda.shared.array((WARPS, WARP), parts.dtype)
    block, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    warp = np.uint32(thread // np.uint32(WARP))
    lane = np.uint32(thread - np.uint32(warp * np.uint32(WARP)))
    j = np.uint32(np.uint32(block * np.uint32(WARP)) + lane)
    zero, factor = parts.dtype.type(0), parts.dtype.type(1)
    inverse = factor / norm_of(units, squares, count)[0] if own else factor
    total, rest = zero, zero
    if j < n:
        for part in steps(warp, count, np.uint32(WARPS)):
            if own:
                factor = ldg(units, part) * inverse  # powers of two
            value = ldg(parts, np.uint32(np.uint32(part * n) + j)) * factor
            total, rest = _two_sum(total, rest, value, zero)
    totals[warp, lane], rests[warp, lane] = total, rest
    cuda.syncthreads()
    if warp == np.uint32(0):
        for other in range(1, WARPS):
            total, rest = _two_sum(total, rest, totals[other, lane], rests[other, lane])
    total = _settled(total, rest)
    unit = unit_of(total)
    unit, square = joined_over_warp(unit, (total / unit) * (total / unit))
    if warp == np.uint32(0) and j < n:
        out[j] = total
    if thread == np.uint32(0):
        out_units[block], out_squares[block] = unit, square


# The end of a sweep ---------------------------------------------------------------------------------------------------


@kernel("T[] T[] T[] T[] T[] T[] T[] T[] T[] T[] T[] T u4 u4 u4 u4", T=FLOATS)
def _finish(
    sigma: Any, first: Any, second: Any, t: Any, t_units: Any, t_squares: Any, z: Any, z_units: Any, z_squares: Any,
    old_first: Any, old_second: Any, eps: Any, t_count: Any, z_count: Any, t_size: Any, z_size: Any,
) -> None:  # fmt: skip
    """first = t/‖t‖ and second = z/‖z‖, for z = Wᵀt or Wt in the units of t; σ = ‖z‖/‖t‖.

    The clamp ‖·‖ ≥ eps is that of the problem scaled to σ = 1. Without a direction (‖t‖ is 0 or not finite) the vectors
    stay as they are.
    """
    one, zero = t.dtype.type(1), t.dtype.type(0)
    t_unit, t_square = norm_of(t_units, t_squares, t_count)
    z_unit, z_square = norm_of(z_units, z_squares, z_count)
    t_norm, z_norm = math.sqrt(t_square), math.sqrt(z_square)
    directed = t_norm > zero and t_norm - t_norm == zero
    turns = directed and z_norm > zero and z_norm - z_norm == zero
    size = z_unit * (z_norm / t_norm) if directed else t_unit * t_norm
    length = min(one, t_unit / size * t_norm / eps)  # of the first vector; less than 1 where the clamp bites
    other = min(one, length / eps)
    here, step = np.uint32(cuda.grid(1)), np.uint32(cuda.gridsize(1))
    for i in steps(here, t_size, step):
        first[i] = ldg(t, i) / t_unit * (length / t_norm) if turns else ldg(old_first, i)
    for i in steps(here, z_size, step):
        second[i] = ldg(z, i) / z_unit * (other / z_norm) if turns else ldg(old_second, i)
    if here == np.uint32(0):
        sigma[np.uint32(0)] = size * length * other if turns else size


# Launches -------------------------------------------------------------------------------------------------------------


class Product(NamedTuple):
    """A vector to be normalized, and its norm in parts."""

    values: Array
    units: Array
    squares: Array


def gathered(parts: Array, like: Product | None = None) -> Product:
    """The sum of the rows of `parts`, each in a unit of its own if these are given."""
    count, n = parts.shape
    blocks = -(-n // WARP)
    out, units, squares = empty((n,), parts.dtype), empty((blocks,), parts.dtype), empty((blocks,), parts.dtype)
    own = (like.units, like.squares, True) if like else (parts, parts, False)
    _gather[blocks, BLOCK](out, units, squares, parts, *own, count, n)
    return Product(out, units, squares)


def _measured(x: Array | Product) -> tuple[Array, Array, Array, int]:
    return (*x, x.units.size) if isinstance(x, Product) else (x, x, x, 0)


def by_columns(w: Array, extents: Shape, x: Array | Product) -> Array:
    """Mx, in parts."""
    a, m, b = extents
    pieces = -(-a * b // _PIECE)
    parts = empty((pieces, m), w.dtype)
    _times_columns[-(-m // _ROWS) * pieces, BLOCK](parts, w, *_measured(x), *extents, pieces)
    return parts


def by_rows(w: Array, extents: Shape, x: Array | Product) -> Array:
    """Mᵀx, in parts."""
    a, m, b = extents
    rows = max(_FEW, -(-m // _MOST_PARTS))
    pieces = -(-a * b // BLOCK)
    parts = empty((-(-m // rows), a * b), w.dtype)
    _times_rows[parts.shape[0] * pieces, BLOCK](parts, w, *_measured(x), *extents, rows, pieces)
    return parts


def columns_first(w: Array, extents: Shape, x: Array) -> tuple[Product, Product]:
    """t = Mᵀx and z = Mt, in units of t. Two passes along the rows, as on the CPU."""
    t = gathered(by_rows(w, extents, x))
    return t, gathered(by_columns(w, extents, t))


def rows_first(w: Array, extents: Shape, x: Array) -> tuple[Product, Product]:
    """t = Mx and z = Mᵀt, in units of t: in one pass over W if a block can hold a row (8192 columns), else in two."""
    a, m, b = extents
    n = a * b
    columns = min((k for k in _HOLD[w.dtype] if n <= k * WARP * _MOST_WARPS), default=0)
    if not columns:
        t = gathered(by_columns(w, extents, x))
        return t, gathered(by_rows(w, extents, t))
    hold, rows = _HOLD[w.dtype][columns]
    threads = -(-n // (columns * WARP)) * WARP
    blocks = min(-(-m // rows), max(1, _HOLDERS // threads), _MOST_PARTS)
    count = -(-m // (blocks * rows)) * rows
    blocks = -(-m // count)
    t = Product(empty((m,), w.dtype), empty((blocks,), w.dtype), empty((blocks,), w.dtype))
    parts = empty((blocks, n), w.dtype)
    hold[blocks, threads](t.values, parts, t.units, t.squares, w, x, *extents, count)
    return t, gathered(parts, t)


def finished(t: Product, z: Product, first: Array, second: Array, eps: float) -> tuple[Array, Array, Array]:
    """What comes after the vectors `first` and `second` in a sweep, and σ."""
    new_first, new_second, sigma = (empty(x, t.values.dtype) for x in (first.shape, second.shape, ()))
    blocks = min(-(-max(first.size, second.size) // BLOCK), _MOST_PARTS)
    counts = t.units.size, z.units.size, first.size, second.size
    _finish[blocks, BLOCK](sigma, new_first, new_second, *t, *z, first, second, eps, *counts)
    return new_first, new_second, sigma
