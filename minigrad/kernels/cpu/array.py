"""What a raw array is on the CPU: a NumPy array. Allocation, copies, and questions about memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cpu import _memory

Array = np.ndarray[Any, Any]

_memory.reuse()


def from_host(data: Array) -> Array:
    """A fresh array with the values of a NumPy array."""
    return np.array(data, order="C")


def to_host(x: Array) -> Array:
    """The values as a NumPy array; on this device the array itself."""
    return x


def asarray(x: Any) -> Array:
    """What a kernel returned, as a raw array: of one element, NumPy makes scalars."""
    return np.asarray(x)


def full(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return np.full(shape, value, dtype)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.empty(shape, dtype)


def arange(start: Any, stop: Any, step: Any, dtype: Any) -> Array:
    return np.arange(start, stop, step, dtype)  # type: ignore[call-overload]  # NumPy's stubs do not know Any here


def eye(n: int, m: int, dtype: Any) -> Array:
    return np.eye(n, m, dtype=dtype)


def copy(x: Array) -> Array:
    return np.array(x, order="C")


def cast(x: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(dtype, copy=False)


def assign(x: Array, index: Any, value: Any) -> None:
    """x[index] = value, in place."""
    with np.errstate(all="ignore"):
        x[index] = value


def is_writable(x: Array) -> bool:
    """May the memory be changed? Not if several elements share it (`expand`), or if its owner forbids it."""
    return x.flags.writeable


def is_view(x: Array) -> bool:
    """Does the array lean on memory that another array owns?"""
    return x.base is not None


def shares_memory(x: Array, y: Array) -> bool:
    return np.may_share_memory(x, y)


def has_nan(x: Array) -> bool:
    return x.dtype.kind == "f" and bool(np.isnan(x).any())


def dlpack(x: Array, **options: Any) -> Any:
    """A capsule over the array's memory."""
    return x.__dlpack__(**options)


def dlpack_device(x: Array) -> tuple[int, int]:
    return x.__dlpack_device__()


def from_dlpack(x: Any) -> Array:
    """Another library's array, over its memory."""
    return np.from_dlpack(x)
