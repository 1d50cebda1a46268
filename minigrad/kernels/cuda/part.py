"""Parts of an array: views by basic indices, and what is written into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cuda.array import Array, Shape, _fill, copy, from_host, geometry_of, shares_memory, to_host, write


def assign(x: Array, index: Any, value: Any) -> None:
    """x[index] = value, in place."""
    if not is_basic(index):
        _assign_at(x, index, value)
        return
    target = x if index is ... else part(x, index)
    if not isinstance(value, Array):
        _fill.each(target.size, target, geometry_of(target.shape, target), value)
        return
    if value.shape != target.shape:
        value = _fitting(value, target.shape)
    if shares_memory(value, target):
        value = copy(value)  # they may overlap
    write(target, value)


def _fitting(value: Array, shape: Shape) -> Array:
    """The value, if it broadcasts; without dimensions of extent 1 in front that are too many, which NumPy drops."""
    lead = value.ndim - len(shape)
    if lead > 0 and all(n == 1 for n in value.shape[:lead]):
        value = value.reshape(value.shape[lead:])
    if np.broadcast_shapes(value.shape, shape) != shape:
        raise ValueError(f"shape {value.shape} does not broadcast into {shape}")
    return value


def _assign_at(x: Array, index: Any, value: Any) -> None:
    """x[index] = value for an index of arrays: by way of the host, which alone knows the order of repeated places."""
    host = to_host(x)
    host[index] = to_host(value) if isinstance(value, Array) else value
    write(x, from_host(host))


def is_basic(index: Any) -> bool:
    """Does the index consist of slices, ints, `...` and None alone, so that it gives a view?"""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)


def part(x: Array, index: Any) -> Array:
    """x[index] for a basic index: a view."""
    parts = list(index if isinstance(index, tuple) else (index,))
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    at = parts.index(Ellipsis)
    missing = x.ndim - sum(p is not None and p is not Ellipsis for p in parts)
    if missing < 0 or parts.count(Ellipsis) > 1:
        raise IndexError(f"too many indices: {x.ndim} dimensions, {x.ndim - missing} were indexed")
    parts[at : at + 1] = [slice(None)] * missing
    shape, strides, offset = [], [], 0
    axis = 0
    for p in parts:
        if p is None:
            shape.append(1)
            strides.append(0)
            continue
        n, stride = x.shape[axis], x.strides[axis]
        if isinstance(p, slice):
            start, stop, step = p.indices(n)
            count = len(range(start, stop, step))
            shape.append(count)
            strides.append(stride * step)
            offset += start * stride if count else 0
        elif -n <= p < n:
            offset += (p % n) * stride
        else:
            raise IndexError(f"index {p} is out of bounds for axis {axis} with size {n}")
        axis += 1
    return x.view(tuple(shape), tuple(strides), offset)
