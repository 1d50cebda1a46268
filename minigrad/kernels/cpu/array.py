"""What a raw array is on the CPU: a NumPy array. Allocation, copies, and questions about memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from minigrad.kernels.cpu import _memory
from minigrad.kernels.cpu._jit import heard, jit
from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu._quiet import quiet

Array = np.ndarray[Any, Any]
_SMALL = 1 << 14  # elements, up to which a loop copies about as fast as NumPy

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


@np.errstate(all="ignore")
def full(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    return np.full(shape, value, dtype)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.empty(shape, dtype)


def arange(start: Any, count: int, step: Any, dtype: Any) -> Array:
    """start + i · step, rounded to the dtype once: NumPy takes its step from two rounded numbers, and drifts."""
    return cast(np.asarray(start + step * np.arange(count)), dtype)


def eye(n: int, m: int, dtype: Any) -> Array:
    return np.eye(n, m, dtype=dtype)


def copy(x: Array) -> Array:
    return np.array(x, order="C") if x.flags.c_contiguous else in_order(x)


def cast(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else quiet.run(x.astype, dtype)


@jit()
def _move(x: Array, y: Array) -> None:
    """x = y, also where they overlap."""
    if x.ctypes.data <= y.ctypes.data:
        for i in range(x.size):
            x[i] = y[i]
    else:
        for i in range(x.size - 1, -1, -1):
            x[i] = y[i]


def assign(x: Array, index: Any, value: Any) -> None:
    """x[index] = value, in place."""
    if heard.launches is not None and index is ... and x.size <= _SMALL and _are_alike(x, value):
        _move.only(x.reshape(-1), value.reshape(-1))  # in a captured step, where it need not cost more than it is
    else:
        quiet.run(x.__setitem__, index, value)


def _are_alike(x: Array, y: Any) -> bool:
    if not (isinstance(y, np.ndarray) and x.dtype == y.dtype != np.float16 and x.shape == y.shape):
        return False
    return x.flags.c_contiguous and y.flags.c_contiguous and x.flags.writeable


def memory_allocated() -> int:
    """Bytes of memory that the process holds: those of arrays are not told apart. 0 where there is no /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


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
    try:
        array = np.from_dlpack(x)
        if any(stride == 0 < n - 1 for n, stride in zip(array.shape, array.strides, strict=True)):
            array.flags.writeable = False  # several elements share their memory, which the owner need not say
        return array
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        raise TypeError(
            f"from_dlpack: expected a dtype that NumPy has; got {getattr(x, 'dtype', 'another one')}. "
            f"Convert it first, for example to float32."
        ) from None
