"""Gathers and their adjoints, scatters that add. Each output place is summed by one thread in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import jit
from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 15
#: Numbers, in lines of so many, that two threads copy faster than NumPy does on one.
_SHARED, _LONG = 1 << 18, 128


def getitem(x: Array, index: Any) -> Array:
    """x[index] for slices and integers: a view, also of one element (for which NumPy alone makes a scalar)."""
    return x[index if Ellipsis in index else (*index, Ellipsis)]


def setitem_zeros(g: Array, shape: tuple[int, ...], index: Any) -> Array:
    """Zeros of `shape` with g at a basic index: the adjoint of `getitem`."""
    out = np.zeros(shape, g.dtype)
    out[index] = g
    return out


@jit()
def _add_rows(out: Array, places: Array, rows: Array) -> None:
    """out[places[i]] += rows[i], in the order of i: repeated places are safe, and the sum repeats bit for bit."""
    for i in range(places.size):
        place = places[i]
        for j in range(rows.shape[1]):
            out[place, j] += rows[i, j]


@jit(_SHARED)
def _select(out: Array, x: Array, index: Array) -> None:
    """out[p, k] = x[p, index[k]]."""
    for line in prange(len(out) * index.size):
        p, k = np.int64(line) // index.size, np.int64(line) % index.size
        given, made = x[p, index[k]], out[p, k]
        for j in range(made.size):
            made[j] = given[j]


def index_select(x: Array, dim: int, index: Array) -> Array:
    shape = *x.shape[:dim], index.size, *x.shape[dim + 1 :]
    if math.prod(shape) < _SHARED or math.prod(shape[dim + 1 :]) < _LONG:
        return np.take(x, index, axis=dim)
    out, plain = np.empty(shape, x.dtype), np.uint16 if x.dtype == np.float16 else x.dtype
    _select(_cube(out.view(plain), dim), _cube(x.view(plain), dim), np.ascontiguousarray(index))
    return out


def index_add(g: Array, dim: int, index: Array, extent: int) -> Array:
    """Zeros of `extent` along `dim`, plus each slice of g at its index: the adjoint of `index_select`."""
    moved = np.moveaxis(g, dim, 0)
    rows = in_order(moved).reshape(moved.shape[0], math.prod(moved.shape[1:]))
    wide = np.zeros((extent, *moved.shape[1:]), np.float32 if g.dtype == np.float16 else g.dtype)
    lines = wide.reshape(extent, rows.shape[1])
    _add_rows(lines, np.ascontiguousarray(index), rows.astype(wide.dtype, copy=False))
    out = cast(wide, g.dtype)
    return in_order(np.moveaxis(out, 0, dim)) if dim else out


@jit(_PARALLEL_FROM)
def _gather(out: Array, x: Array, index: Array) -> None:
    for i in prange(len(index)):
        if index.shape[2] == 1:  # a line, whose places no inner loop interrupts; none is negative
            made, given, places = out[i].reshape(-1), x[i].reshape(-1), index[i].reshape(-1)
            for k in range(places.size):
                made[k] = given[np.uint64(places[k])]
            continue
        for k in range(index.shape[1]):
            for j in range(index.shape[2]):
                out[i, k, j] = x[i, index[i, k, j], j]


@jit(_PARALLEL_FROM)
def _scatter_add(out: Array, g: Array, index: Array) -> None:
    for i in prange(len(index)):
        out[i] = 0
        if index.shape[2] == 1:
            made, given, places = out[i].reshape(-1), g[i].reshape(-1), index[i].reshape(-1)
            for k in range(places.size):
                made[np.uint64(places[k])] += given[k]
            continue
        for k in range(index.shape[1]):
            for j in range(index.shape[2]):
                out[i, index[i, k, j], j] += g[i, k, j]


def gather(x: Array, dim: int, index: Array) -> Array:
    """out[.., i, ..] = x[.., index[.., i, ..], ..] along `dim`; the other extents of index may be shorter than x's."""
    out = np.empty(index.shape, x.dtype)
    plain = np.uint16 if x.dtype == np.float16 else x.dtype
    _gather.only(_cube(out.view(plain), dim), _cube(x[_corner(index.shape, dim)].view(plain), dim), _cube(index, dim))
    return out


def scatter_add(g: Array, dim: int, index: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape`, plus each entry of g at its index along `dim`: the adjoint of `gather`."""
    wide = np.float32 if g.dtype == np.float16 else g.dtype
    out = np.empty((*index.shape[:dim], shape[dim], *index.shape[dim + 1 :]), wide)
    _scatter_add.only(_cube(out, dim), _cube(g, dim).astype(wide, copy=False), _cube(index, dim))
    return cast(out if out.shape == shape else setitem_zeros(out, shape, _corner(index.shape, dim)), g.dtype)


def _corner(extents: tuple[int, ...], dim: int) -> tuple[slice, ...]:
    return tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(extents))


def _cube(x: Array, dim: int) -> Array:
    """What is before `dim`, along it, and behind it."""
    extents = math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])
    return in_order(x).reshape(extents)


def take(x: Array, places: Array) -> Array:
    """Entries of x at flat places."""
    return np.take(x, places)


def put_add(g: Array, places: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape`, plus each entry of g at its flat place: the adjoint of `take`."""
    size = int(np.prod(shape))
    return index_add(np.ascontiguousarray(g).reshape(-1), 0, places.reshape(-1), size).reshape(shape)


@jit()
def _extent(x: Array) -> tuple[int, int]:
    low = high = x[0]
    for i in range(x.size):
        low, high = min(low, x[i]), max(high, x[i])
    return low, high


def bounds(x: Array, check: Callable[[int, int], None]) -> None:
    """Tell `check` the smallest and the largest of some integers."""
    check(*_extent(np.ascontiguousarray(x).reshape(-1)))


def flat_places(shape: tuple[int, ...], index: Any) -> Array:
    """Where an index of any kind (slices, integers, arrays, masks) points to, as flat places."""
    return np.asarray(np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)[index])
