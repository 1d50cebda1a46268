"""Selection by position, and its adjoints: each output place is summed by one thread, in the order of the indices.

The adjoints sort (place, position) pairs first, so that the entries of a place lie side by side: no atomics, any number
of repeats, the same bits at every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import ldg
from minigrad.kernels.cuda._places import Shape, places
from minigrad.kernels.cuda._stream import here
from minigrad.kernels.cuda.array import (
    Array,
    cast,
    contiguous,
    copy,
    empty,
    from_host,
    full,
    geometry,
    row_major,
    to_host,
)
from minigrad.kernels.cuda.launch import NUMBERS, STORED, items, kernel
from minigrad.kernels.cuda.part import assign, part
from minigrad.kernels.cuda.reduce import _settled, _two_sum, amax, amin


def getitem(x: Array, index: Any) -> Array:
    """x[index] for slices and integers: a view."""
    return part(x, index)


def setitem_zeros(g: Array, shape: Shape, index: Any) -> Array:
    """Zeros of `shape` with g at a basic index: the adjoint of `getitem`."""
    out = full(shape, 0, g.dtype)
    assign(out, index, g)
    return out


def bounds(x: Array, check: Callable[[int, int], None]) -> None:
    """Tell `check` the smallest and the largest of some integers; waits for the device.

    So does each run of a captured step, before it begins: the integers must be there by then.
    """
    recording, dims = here.recording, tuple(range(len(x.shape)))

    def tell() -> None:
        before, here.recording = here.recording, None
        try:
            check(*(int(to_host(extremum(x, dims, False))) for extremum in (amin, amax)))
        finally:
            here.recording = before

    if recording is not None:
        recording.keep(x.buffer)
        if recording.owns(x.buffer):
            recording.refuse("computes the indices that it uses, which only the host can find to be in range")
        recording.renewed_by(tell)
    tell()


def flat_places(shape: Shape, index: Any) -> Array:
    """Where an index of any kind (slices, integers, arrays, masks) points to, as flat places; found on the host."""
    return from_host(np.asarray(np.arange(math.prod(shape), dtype=np.int64).reshape(shape)[index]))


@kernel("u4 T[] T[] i8[] u4[] u4", T=STORED)
def _gather(size: Any, out: Any, x: Any, index: Any, layout: Any, stride: Any) -> None:
    for i in items(size):
        base, at, _ = places(layout, i)
        out[i] = ldg(x, np.uint32(base + np.uint32(np.uint32(ldg(index, at)) * stride)))


def gather(x: Array, dim: int, index: Array) -> Array:
    """out[.., i, ..] = x[.., index[.., i, ..], ..] along `dim`; the other extents of index may be shorter than x's."""
    x = x if min(x.strides) >= 0 else copy(x)  # the lowest may be none of those asked for
    out = empty(index.shape, x.dtype)
    layout = geometry(index.shape, _without(x.strides, dim), index.strides)
    _gather.each(out.size, out, x, index, layout, x.strides[dim])
    return out


def _without(strides: Shape, dim: int) -> Shape:
    return (*strides[:dim], 0, *strides[dim + 1 :])


def index_select(x: Array, dim: int, index: Array) -> Array:
    shape = (*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    return gather(x, dim, index.view(shape, tuple(index.strides[0] if d == dim else 0 for d in range(x.ndim))))


def take(x: Array, places: Array) -> Array:
    """Entries of x at flat places."""
    return gather(contiguous(x).reshape((-1,)), 0, places.reshape((-1,))).reshape(places.shape)


def index_add(g: Array, dim: int, index: Array, extent: int) -> Array:
    """Zeros of `extent` along `dim`, plus each slice of g at its index: the adjoint of `index_select`."""
    order = (dim, *(d for d in range(g.ndim) if d != dim))
    moved = g.permute(order)
    keys = _sorted_keys(index, geometry(index.shape, (0,), index.strides), 1)
    rows = contiguous(moved).reshape((index.size, math.prod(moved.shape[1:])))
    out = _add_rows(rows, keys, extent).reshape((extent, *moved.shape[1:]))
    return contiguous(out.permute(tuple(order.index(d) for d in range(g.ndim))))


def scatter_add(g: Array, dim: int, index: Array, shape: Shape) -> Array:
    """Zeros of `shape`, plus each entry of g at its index along `dim`: the adjoint of `gather`."""
    steps = row_major(shape)
    keys = _sorted_keys(index, geometry(index.shape, _without(steps, dim), index.strides), steps[dim])
    return _add_rows(contiguous(g).reshape((g.size, 1)), keys, math.prod(shape)).reshape(shape)


def put_add(g: Array, places: Array, shape: Shape) -> Array:
    """Zeros of `shape`, plus each entry of g at its flat place: the adjoint of `take`."""
    return index_add(contiguous(g).reshape((-1,)), 0, places.reshape((-1,)), math.prod(shape)).reshape(shape)


@kernel("u4 i8[] i8[] u4[] u4 u4")
def _number(size: Any, keys: Any, index: Any, layout: Any, stride: Any, count: Any) -> None:
    """Entry i belongs to a place: the two make one number. What is beyond the entries comes after all of them."""
    for i in items(size):
        if i < count:
            base, at, _ = places(layout, i)
            place = np.int64(base) + index[at] * np.int64(stride)
            keys[i] = (place << np.int64(32)) | np.int64(i)
        else:
            keys[i] = np.int64(0x7FFFFFFFFFFFFFFF)


@kernel("u4 i8[] u4 u4")
def _merge_step(pairs: Any, keys: Any, run: Any, distance: Any) -> None:
    for pair in items(pairs):
        low = np.uint32(np.uint32(2) * np.uint32(pair) - (np.uint32(pair) & np.uint32(distance - np.uint32(1))))
        high = np.uint32(low + distance)
        rising = (low & run) == np.uint32(0)
        a, b = keys[low], keys[high]
        if (a > b) == rising:
            keys[low], keys[high] = b, a


def _sorted_keys(index: Array, layout: Any, stride: int) -> Array:
    """place · 2³² + position of all entries in ascending order, by Batcher's bitonic sort."""
    length = 1 << max(0, index.size - 1).bit_length()
    keys = empty((length,), np.int64)
    _number.each(length, keys, index, layout, stride, index.size)
    run = 2
    while run <= length:
        distance = run // 2
        while distance:
            _merge_step.each(length // 2, keys, run, distance)
            distance //= 2
        run *= 2
    return keys


@kernel("u4 T[] T[] i8[] u4 u4", T=NUMBERS)
def _sum_places(size: Any, out: Any, rows: Any, keys: Any, length: Any, width: Any) -> None:
    for i in items(size):
        place = np.int64(np.uint32(i) // width)
        column = np.uint32(np.uint32(i) - np.uint32(np.uint32(place) * width))
        at, end = np.uint32(0), length
        while at < end:  # to the first entry of this place
            middle = np.uint32(at + (np.uint32(end - at) >> np.uint32(1)))
            if (keys[middle] >> np.int64(32)) < place:
                at = np.uint32(middle + np.uint32(1))
            else:
                end = middle
        total, rest = rows.dtype.type(0), rows.dtype.type(0)
        while at < length and (keys[at] >> np.int64(32)) == place:
            row = np.uint32(keys[at] & np.int64(0xFFFFFFFF))
            value = rows[np.uint32(np.uint32(row * width) + column)]
            total, rest = _two_sum(total, rest, value, rows.dtype.type(0))
            at = np.uint32(at + np.uint32(1))
        out[i] = _settled(total, rest)


def _add_rows(rows: Array, keys: Array, extent: int) -> Array:
    """Row i of the result is the sum of the rows that belong to place i."""
    if extent >= 1 << 31:
        raise ValueError(f"adding at positions: expected fewer than 2**31 places; got {extent}")
    wide = cast(rows, np.float32) if rows.dtype == np.float16 else rows
    out = empty((extent, rows.shape[1]), wide.dtype)
    _sum_places.each(out.size, out, wide, keys, keys.size if rows.shape[0] else 0, rows.shape[1])
    return cast(out, rows.dtype)
