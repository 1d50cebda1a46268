"""Reductions over any dimensions, the same bits at every run: no atomics, and an order that depends on shapes alone.

A pass reduces pieces of each row, one to a thread or to a block; further passes reduce what it left, until one value
per row remains. Float sums carry their rounding errors along (two-sum): two float32 in the place of the CPU's float64.

`dims` are sorted, non-negative and not empty.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import SIMULATED, cuda, ldg, steps
from minigrad.kernels.cuda._places import places, places_along
from minigrad.kernels.cuda.array import Array, cast, empty, full, geometry
from minigrad.kernels.cuda.elementwise import _named, _unary, _wide, abs, div, mul, sqrt, square
from minigrad.kernels.cuda.launch import BLOCK, COMPUTED, NUMBERS, Kernel, helper, items, kernel

Dims = tuple[int, ...]
_PIECE = 2 * BLOCK if SIMULATED else 16 * BLOCK  # of a row, for a block
_FEW = 3 if SIMULATED else 32  # of a row, for a thread, at least
_THREADS = 8 if SIMULATED else 1 << 16  # enough to keep a GPU busy


@helper
def _two_sum(a: Any, a_rest: Any, b: Any, b_rest: Any) -> tuple[Any, Any]:
    """a + b and what its rounding lost, with the rests added up. Knuth, TAOCP vol. 2, 4.2.2, theorem B."""
    total = a + b
    b_part = total - a
    return total, a_rest + b_rest + ((a - (total - b_part)) + (b - b_part))


@helper
def _settled(total: Any, rest: Any) -> Any:
    """Of an infinite total the rest is NaN, and does not matter."""
    return total + rest if rest == rest else total


def _either(piece_by: Callable[[Any], Any]) -> Any:
    """A piece of a row by way of `places`; of one dimension, which most are, in loops of its own without a question."""
    straight, winding = piece_by(places_along), piece_by(places)

    def piece(x: Any, before: Any, later: Any, base: Any, along: Any, first: Any, last: Any, step: Any) -> Any:
        if ldg(along, np.uint32(0)) == np.uint32(1):
            return straight(x, before, later, base, along, first, last, step)
        return winding(x, before, later, base, along, first, last, step)

    return helper(piece)


def _sum_piece(find: Any) -> Any:
    def piece(x: Any, before: Any, later: Any, base: Any, along: Any, first: Any, last: Any, step: Any) -> Any:
        total, rest = x.dtype.type(0), x.dtype.type(0)
        for j in steps(first, last, step):
            at = np.uint32(base + find(along, j)[0])
            total, rest = _two_sum(total, rest, ldg(x, at), ldg(before, at) if later else x.dtype.type(0))
        return total, rest

    return helper(piece)


def _product_piece(find: Any) -> Any:
    def piece(x: Any, before: Any, later: Any, base: Any, along: Any, first: Any, last: Any, step: Any) -> Any:
        product = x.dtype.type(1)
        for j in steps(first, last, step):
            product *= ldg(x, np.uint32(base + find(along, j)[0]))
        return product, before.dtype.type(0)

    return helper(piece)


def _extreme_piece(merge: Any, find: Any) -> Any:
    def piece(x: Any, before: Any, later: Any, base: Any, along: Any, first: Any, last: Any, step: Any) -> Any:
        first = min(first, np.uint32(last - np.uint32(1)))  # a thread without elements takes the last one, too
        at = np.uint32(base + find(along, first)[0])
        value, place = ldg(x, at), ldg(before, at) if later else np.uint32(first)
        for j in steps(np.uint32(first + step), last, step):
            at = np.uint32(base + find(along, j)[0])
            value, place = merge(value, place, ldg(x, at), ldg(before, at) if later else j)
        return value, place

    return helper(piece)


@helper
def _larger(v: Any, i: Any, w: Any, j: Any) -> Any:
    """The larger value and its place; NaN beats numbers, and the first of equals the others."""
    if w > v or (w != w and v == v) or ((w == v or (w != w and v != v)) and j < i):
        return w, j
    return v, i


@helper
def _smaller(v: Any, i: Any, w: Any, j: Any) -> Any:
    if w < v or (w != w and v == v) or ((w == v or (w != w and v != v)) and j < i):
        return w, j
    return v, i


@helper
def _times(v: Any, i: Any, w: Any, j: Any) -> Any:
    return v * w, i


@helper
def _value(value: Any, place: Any) -> Any:
    return value


def _reduction(name: str, piece: Any, merge: Any, finish: Any, state: str, dtypes: tuple[str, ...]) -> Any:
    """Two kernels: pieces of rows by blocks, whose threads meet in shared memory; pieces of rows by single threads.

    A value in the making is a pair, of x's dtype and of `state`'s: `piece` makes one of a part of a row, `merge` one of
    two, `finish` the result. Element j of row i is at across(i) + along(j). In a `later` pass `x` and `before` are the
    pairs that the last one left.
    """
    types = f"T[] {state}[] T[] {state}[] ? u4[] u4[] u4 u4 u4"

    @kernel(types, name=name, T=dtypes)
    def by_blocks(
        out: Any, out_state: Any, x: Any, before: Any, later: Any, across: Any, along: Any,
        n: Any, width: Any, pieces: Any,
    ) -> None:  # fmt: skip
        values = cuda.shared.array(BLOCK, x.dtype)
        states = cuda.shared.array(BLOCK, out_state.dtype)
        job, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
        row = np.uint32(job // pieces)
        first = np.uint32(np.uint32(job - np.uint32(row * pieces)) * width)
        last = np.uint32(min(np.uint32(first + width), n))
        base = places(across, row)[0]
        a, b = piece(x, before, later, base, along, np.uint32(first + thread), last, np.uint32(BLOCK))
        values[thread], states[thread] = a, b
        half = np.uint32(BLOCK // 2)
        while half > np.uint32(0):
            cuda.syncthreads()
            if thread < half:
                other = np.uint32(thread + half)
                values[thread], states[thread] = merge(values[thread], states[thread], values[other], states[other])
            half = np.uint32(half >> np.uint32(1))
        if thread == np.uint32(0):
            a, b = values[thread], states[thread]
            out[job], out_state[job] = finish(a, b) if pieces == np.uint32(1) else a, b

    @kernel(f"u4 {types} u4", name=name, T=dtypes)
    def by_threads(
        size: Any, out: Any, out_state: Any, x: Any, before: Any, later: Any, across: Any, along: Any,
        n: Any, width: Any, pieces: Any, rows: Any,
    ) -> None:  # fmt: skip
        for job in items(size):
            part = np.uint32(np.uint32(job) // rows)
            row = np.uint32(np.uint32(job) - np.uint32(part * rows))  # neighbours have neighbouring rows
            first = np.uint32(part * width)
            last = np.uint32(min(np.uint32(first + width), n))
            a, b = piece(x, before, later, places(across, row)[0], along, first, last, np.uint32(1))
            to = np.uint32(np.uint32(row * pieces) + part)
            out[to], out_state[to] = finish(a, b) if pieces == np.uint32(1) else a, b

    return by_blocks, by_threads


_SUM = _reduction("sum", _either(_sum_piece), _two_sum, _settled, "T", NUMBERS)
_PRODUCT = _reduction("prod", _either(_product_piece), _times, _value, "u4", ("f8", "i8"))
_LARGEST = _reduction("amax", _either(functools.partial(_extreme_piece, _larger)), _larger, _value, "u4", COMPUTED)
_SMALLEST = _reduction("amin", _either(functools.partial(_extreme_piece, _smaller)), _smaller, _value, "u4", COMPUTED)


def _reduce(kernels: tuple[Kernel, Kernel], x: Array, dims: Dims, state: Any) -> tuple[Array, Array]:
    """The values, and the other halves of the pairs, one per row."""
    by_blocks, by_threads = kernels
    kept, reduced = _only(x, [d for d in range(x.ndim) if d not in dims]), _only(x, dims)
    rows, n = kept.size, reduced.size
    across, along = geometry(kept.shape, kept.strides), geometry(reduced.shape, reduced.strides)
    columns = _finest(kept) < _finest(reduced)
    before = empty((1,), state)
    later = False
    while True:
        if single := columns or n <= _FEW:
            width = -(-n // min(-(-n // _FEW), max(1, _THREADS // max(rows, 1))))
        else:
            width = _PIECE
        pieces = -(-n // width)
        out, out_state = empty((rows, pieces), x.dtype), empty((rows, pieces), state)
        args = out, out_state, x, before, later, across, along, n, width, pieces
        if single:
            by_threads.each(rows * pieces, *args, rows)
        elif rows:
            by_blocks[rows * pieces, BLOCK](*args)
        if pieces == 1:
            return out, out_state
        x, before, later, n, columns = out, out_state, True, pieces, False
        across, along = geometry((rows,), (pieces,)), geometry((pieces,), (1,))


def _only(x: Array, dims: Any) -> Array:
    """The first elements of x in all dimensions but these."""
    return x.view(tuple(x.shape[d] for d in dims), tuple(x.strides[d] for d in dims))


def _finest(x: Array) -> float:
    """The smallest step between elements."""
    return min((max(s, -s) for n, s in zip(x.shape, x.strides, strict=True) if n > 1), default=math.inf)


def sum(x: Array, dims: Dims, keepdim: bool) -> Array:
    shape = _reduced(x.shape, dims, keepdim)
    work = _wide(x) if x.dtype.kind == "f" else cast(x, np.int64)
    if not x.size:
        return full(shape, 0, x.dtype if x.dtype.kind == "f" else np.int64)
    out = _reduce(_SUM, work, dims, work.dtype)[0].reshape(shape)
    return cast(out, x.dtype) if x.dtype.kind == "f" else out


def prod(x: Array, dims: Dims, keepdim: bool) -> Array:
    """In float64, rounded once."""
    shape, dtype = _reduced(x.shape, dims, keepdim), x.dtype if x.dtype.kind == "f" else np.dtype(np.int64)
    if not x.size:
        return full(shape, 1, dtype)
    wide = cast(x, np.float64 if dtype.kind == "f" else np.int64)
    return cast(_reduce(_PRODUCT, wide, dims, np.dtype(np.uint32))[0].reshape(shape), dtype)


def amax(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extreme(_LARGEST, x, dims, keepdim)


def amin(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extreme(_SMALLEST, x, dims, keepdim)


def _extreme(kernels: Any, x: Array, dims: Dims, keepdim: bool) -> Array:
    values, _ = _reduce(kernels, _wide(x), dims, np.dtype(np.uint32))
    return cast(values.reshape(_reduced(x.shape, dims, keepdim)), x.dtype)


def argmax(x: Array, dim: int, keepdim: bool) -> Array:
    return _place(_LARGEST, x, dim, keepdim)


def argmin(x: Array, dim: int, keepdim: bool) -> Array:
    return _place(_SMALLEST, x, dim, keepdim)


@kernel("u4 i8[] u4[]")
def _widen(size: Any, out: Any, x: Any) -> None:
    for i in items(size):
        out[i] = ldg(x, i)


def _place(kernels: Any, x: Array, dim: int, keepdim: bool) -> Array:
    _, found = _reduce(kernels, _wide(x), (dim,), np.dtype(np.uint32))
    out = empty(_reduced(x.shape, (dim,), keepdim), np.int64)
    _widen.each(out.size, out, found)
    return out


def any(x: Array, dims: Dims, keepdim: bool) -> Array:
    return amax(x, dims, keepdim) if x.size else full(_reduced(x.shape, dims, keepdim), False, np.bool_)


def all(x: Array, dims: Dims, keepdim: bool) -> Array:
    return amin(x, dims, keepdim) if x.size else full(_reduced(x.shape, dims, keepdim), True, np.bool_)


@kernel("u4 T[] T[] u4[] u4[] u4", T=NUMBERS)
def _running_sums(rows: Any, out: Any, x: Any, across: Any, along: Any, n: Any) -> None:
    for row in items(rows):
        base, base_out, _ = places(across, row)
        total, rest = x.dtype.type(0), x.dtype.type(0)
        for j in steps(np.uint32(0), n, np.uint32(1)):
            at, to, _ = places_along(along, j)
            total, rest = _two_sum(total, rest, ldg(x, np.uint32(base + at)), x.dtype.type(0))
            out[np.uint32(base_out + to)] = _settled(total, rest)


def cumsum(x: Array, dim: int) -> Array:
    """Running sums with their rounding errors carried along; a thread for each line."""
    work = _wide(x) if x.dtype.kind == "f" else cast(x, np.int64)
    out = empty(x.shape, work.dtype)
    if out.size:
        kept = [d for d in range(x.ndim) if d != dim]
        lines, to = _only(work, kept), _only(out, kept)
        across = geometry(lines.shape, lines.strides, to.strides)
        along = geometry((x.shape[dim],), (work.strides[dim],), (out.strides[dim],))
        _running_sums.each(lines.size, out, work, across, along, x.shape[dim])
    return cast(out, x.dtype) if x.dtype.kind == "f" else out


def _power_of_two(peak: Any) -> Any:
    """The power of two next below; 1 for 0, infinity and NaN."""
    if peak > type(peak)(0) and peak - peak == type(peak)(0):
        return math.ldexp(type(peak)(1), math.frexp(peak)[1] - 1)
    return type(peak)(1)


_scale = _unary(_named("power_of_two", _power_of_two))


def norm(x: Array, dims: Dims, keepdim: bool) -> Array:
    """Euclidean norm, of x over the power of two next to max|x|: no square overflows or vanishes."""
    shape = _reduced(x.shape, dims, keepdim)
    if not x.size:
        return full(shape, 0, x.dtype)
    work = _wide(x)
    scale = _scale(amax(abs(work), dims, True))
    root = mul(sqrt(sum(square(div(work, scale)), dims, True)), scale)
    return cast(root.reshape(shape), x.dtype)


def _reduced(shape: tuple[int, ...], dims: Dims, keepdim: bool) -> tuple[int, ...]:
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dims)
