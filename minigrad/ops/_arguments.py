"""Arguments in the forms that users write them, brought into one form or refused."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from minigrad._tensor import Tensor
from minigrad.device import kernels

Dim = int | Sequence[int] | None


def dim(name: str, x: Any, d: int, extra: int = 0) -> int:
    """One dimension as a non-negative int. IndexError if it is out of range; `extra`: how many more than x has."""
    n = tensor(name, x).ndim + extra
    if not isinstance(d, int) or isinstance(d, bool):
        raise TypeError(f"{name}: expected dim to be an int; got {d!r}")
    if not n:
        raise IndexError(f"{name}: a 0-d tensor has no dim {d}")
    if not -n <= d < n:
        raise IndexError(f"{name}: expected dim in [{-n}, {n - 1}] for a tensor of shape {x.shape}; got {d}")
    return d % n


def dims(name: str, x: Tensor, d: Dim) -> tuple[int, ...]:
    """Dimensions, sorted and distinct; None or () means all of them."""
    if d is None or (not isinstance(d, int) and len(d) == 0):
        return tuple(range(tensor(name, x).ndim))
    found = sorted(dim(name, x, i) for i in ([d] if isinstance(d, int) else d))
    if len(set(found)) < len(found):
        raise IndexError(f"{name}: expected distinct dims; got {d}")
    return tuple(found)


def shape(name: str, sizes: Sequence[Any], least: int | None = None) -> tuple[int, ...]:
    """`f(2, 3)`, `f((2, 3))` and `f([2, 3])` as (2, 3). ValueError if one is below `least`."""
    if len(sizes) == 1 and not hasattr(sizes[0], "__index__"):
        sizes = sizes[0]
    try:
        found = tuple(n.__index__() for n in sizes)
    except (AttributeError, TypeError):
        raise TypeError(f"{name}: expected a shape of ints; got {sizes!r}") from None
    if least is not None and min(found, default=least) < least:
        raise ValueError(f"{name}: expected extents of at least {least}; got {found}")
    return found


def tensor(name: str, x: Any, what: str = "a tensor") -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected {what}; got {type(x).__name__}. Make it a tensor with mg.tensor().")
    return x


def same_dtype(name: str, *xs: Tensor) -> None:
    """TypeError unless all tensors have one dtype."""
    first = xs[0].data.dtype
    for x in xs:
        if x.data.dtype != first:
            found = ", ".join(str(y.dtype) for y in xs)
            raise TypeError(f"{name}: expected one dtype; got {found}. Convert with to(dtype).")


def integers(name: str, x: Tensor, limit: int) -> None:
    """TypeError unless x holds integers, IndexError unless all are in [0, limit)."""
    if tensor(name, x, "an int64 tensor of indices").dtype.kind != "i":
        raise TypeError(f"{name}: expected indices of dtype int64; got {x.dtype}")
    if x.numel():
        kernels(x.device).bounds(x.data, functools.partial(_inside, name, limit))


def _inside(name: str, limit: int, low: int, high: int) -> None:
    if low < 0 or high >= limit:
        raise IndexError(f"{name}: expected indices in [0, {limit - 1}]; got {low if low < 0 else high}")
