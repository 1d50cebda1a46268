"""Selection by position. Gathers and their adjoints are sums in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cuda.array import Array, assign, from_host, full, part


def getitem(x: Array, index: Any) -> Array:
    """x[index] for slices and integers: a view."""
    return part(x, index)


def setitem_zeros(g: Array, shape: tuple[int, ...], index: Any) -> Array:
    """Zeros of `shape` with g at a basic index: the adjoint of `getitem`."""
    out = full(shape, 0, g.dtype)
    assign(out, index, g)
    return out


def flat_places(shape: tuple[int, ...], index: Any) -> Array:
    """Where an index of any kind (slices, integers, arrays, masks) points to, as flat places; found on the host."""
    return from_host(np.asarray(np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)[index]))
