"""What a raw array is on CUDA: a strided view of pooled device memory. Allocation, copies, questions about memory.

A kernel sees flat contiguous memory. Where an array is something else (a transpose, a slice, stretched or reversed),
the kernel also gets a *geometry*, a small device array by which `places` finds the element: see `geometry`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from minigrad.kernels.cuda import memory
from minigrad.kernels.cuda._numba import ALIGNED, ldg
from minigrad.kernels.cuda._places import Shape as Shape, geometry_table, merged, places
from minigrad.kernels.cuda._stream import copy_in, copy_out, here
from minigrad.kernels.cuda.launch import COMPUTED, FLOATS, STORED, Kernel, items, kernel
from minigrad.kernels.recording import COPIES, READS

Host = np.ndarray[Any, Any]
_REACH = (1 << 32) - (1 << 18)


class Array:
    """A view: element (i, j, …) is the buffer's element offset + i · strides[0] + j · strides[1] + … of this dtype."""

    __slots__ = (
        "__weakref__", "_is_contiguous", "_place", "buffer", "dtype", "is_view", "offset", "shape", "size", "strides",
    )  # fmt: skip

    def __init__(self, buffer: Any, shape: Shape, strides: Shape, offset: int, dtype: Any, is_view: bool):
        self.buffer, self.shape, self.strides, self.offset, self.dtype = buffer, shape, strides, offset, dtype
        self.is_view, self.size = is_view, math.prod(shape)
        self._place: int | None = None
        self._is_contiguous: bool | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_contiguous(self) -> bool:
        if self._is_contiguous is None:
            steps = zip(self.shape, self.strides, row_major(self.shape), strict=True)
            self._is_contiguous = not self.size or all(n == 1 or s == t for n, s, t in steps)
        return self._is_contiguous

    @property
    def _lowest(self) -> int:
        """The place of the array's lowest element in its memory; 0 if there is none: `offset` may lie beyond it."""
        if not self.size:
            return 0
        if self._is_contiguous or min(self.strides, default=0) >= 0:
            return self.offset
        return self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True) if s < 0)

    @property
    def flat(self) -> Any:
        """The memory from the array's lowest element on, as a flat device array. Its length may go beyond the array."""
        self._in_reach()
        return self.buffer.block.flat(self.dtype, self._lowest)

    def _in_reach(self) -> None:
        """ValueError if the array is not for kernels, which count places from the lowest element on in uint32.

        A step beyond its end must not overflow either; 2¹⁸ is the longest (`launch.items`).
        """
        if self.buffer.block.size // self.dtype.itemsize >= _REACH and self.size:
            reach = sum((n - 1) * abs(s) for n, s in zip(self.shape, self.strides, strict=True))
            if reach >= _REACH:
                raise ValueError(f"a CUDA kernel: expected elements fewer than 2**32 - 2**18 places apart; got {reach}")

    @property
    def address(self) -> int:
        """Where `flat` begins."""
        return self.buffer.block.address + self._lowest * self.dtype.itemsize

    @property
    def is_aligned(self) -> bool:
        """Does `flat` begin where a quad may be read?"""
        return self.address % ALIGNED == 0

    @property
    def place(self) -> int:
        """The same, for a kernel: if it can find the elements from there."""
        if self._place is None:
            self._in_reach()
            self._place = self.address
        return self._place

    def view(self, shape: Shape, strides: Shape, offset: int = 0) -> Array:
        """Another arrangement of the same memory; `offset` from this array's first element."""
        return Array(self.buffer, shape, strides, self.offset + offset, self.dtype, True)

    def reshape(self, shape: Shape) -> Array:
        """The elements in order, in another shape: a view if the strides allow one, else a copy."""
        if -1 in shape:
            rest = math.prod(n for n in shape if n != -1)
            shape = tuple(self.size // rest if n == -1 else n for n in shape)
        strides = row_major(shape) if self.is_contiguous else _strides_of(self.shape, self.strides, shape)
        return copy(self).reshape(shape) if strides is None else self.view(shape, strides)

    def permute(self, dims: Shape) -> Array:
        return self.view(tuple(self.shape[d] for d in dims), tuple(self.strides[d] for d in dims))

    def expand(self, shape: Shape) -> Array:
        """Stretched along dimensions of extent 1 and new ones in front, with stride 0."""
        new = len(shape) - self.ndim
        kept = zip(self.shape, self.strides, shape[new:], strict=True)
        return self.view(shape, (0,) * new + tuple(s if n == m else 0 for n, s, m in kept))

    def __repr__(self) -> str:
        return f"Array(shape={self.shape}, strides={self.strides}, offset={self.offset}, dtype={self.dtype})"


@functools.lru_cache(maxsize=4096)
def row_major(shape: Shape) -> Shape:
    """The strides of a contiguous array."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(strides[::-1])


def _strides_of(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """The strides under which the same memory has another shape; None if there are none.

    Dimensions are merged as far as they are one run of memory; the new ones must divide those runs.
    """
    runs = merged(shape, [strides])
    found: list[int] = []
    extents = list(new)
    for extent, (stride,) in reversed(runs):
        covered = 1
        while extents and (covered < extent or extents[-1] == 1):
            found.append(stride * covered)
            covered *= extents.pop()
        if covered != extent:
            return None
    return (*(0,) * len(extents), *found[::-1])  # what is left has extent 1


# Geometry ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def geometry(shape: Shape, *operands: Shape) -> Any:
    """A device array for `places`: the way from the number of an element to its place in each operand's memory.

    Places count from the lowest element (`Array.flat`).
    """
    return constant(geometry_table(shape, *operands))


@functools.cache
def _as_numbered() -> Any:
    """Instead of a geometry: element i is at place i."""
    return constant(np.zeros(1, np.uint32))


def geometry_of(shape: Shape, *arrays: Array) -> Any:
    """The geometry of arrays that broadcast to `shape`."""
    if all(x.is_contiguous and x.shape == shape for x in arrays):
        return _as_numbered()
    return geometry(shape, *(x.strides if x.shape == shape else x.expand(shape).strides for x in arrays))


# Allocation and copies -----------------------------------------------------------------------------------------------


def empty(shape: Shape, dtype: Any) -> Array:
    dtype = np.dtype(dtype)
    shape = tuple(shape)
    out = Array(memory.allocate(math.prod(shape) * dtype.itemsize), shape, row_major(shape), 0, dtype, False)
    out._is_contiguous = True
    return out


def from_host(data: Host) -> Array:
    """A fresh array with the values of a NumPy array."""
    if here.recording is not None:
        here.recording.refuse(COPIES)
    return constant(data)


def constant(data: Host) -> Array:
    """Like `from_host`, for values that are the same whenever the step runs; they outlive it, if need be."""
    data = np.ascontiguousarray(data).reshape(data.shape)
    buffer = memory.allocate(data.nbytes, shared=True)
    out = Array(buffer, data.shape, row_major(data.shape), 0, data.dtype, False)
    if data.size:
        copy_in(out.address, data)
    if here.recording is not None:
        here.recording.hold(buffer)
    return out


def to_host(x: Array) -> Host:
    """The values as a fresh NumPy array; waits for the device."""
    if here.recording is not None:
        here.recording.refuse(READS)
    host = np.empty(x.shape, x.dtype)
    if x.size:
        x = contiguous(x)  # a name of its own keeps the copy's memory from others until it is read
        copy_out(host, x.address)
    return host


def asarray(x: Array) -> Array:
    """What a kernel returned, as a raw array."""
    if type(x) is not Array:
        raise TypeError(f"a CUDA kernel returned {type(x).__name__}; expected an Array")
    return x


def copy(x: Array) -> Array:
    """The values in fresh contiguous memory."""
    out = empty(x.shape, x.dtype)
    write(out, x)
    return out


def contiguous(x: Array) -> Array:
    return x if x.is_contiguous else copy(x)


def cast(x: Array, dtype: Any) -> Array:
    if x.dtype == dtype:
        return x
    out = empty(x.shape, dtype)
    write(out, x)
    return out


def full(shape: Shape, value: float, dtype: Any) -> Array:
    out = empty(shape, dtype)
    _fill.each(out.size, out, _as_numbered(), value)
    return out


def arange(start: Any, count: int, step: Any, dtype: Any) -> Array:
    """start + i · step, rounded to the dtype once; computed on the host, and copied."""
    with np.errstate(over="ignore"):
        return constant((start + step * np.arange(count)).astype(dtype))


def eye(n: int, m: int, dtype: Any) -> Array:
    out = full((n, m), 0, dtype)
    diagonal = out.view((min(n, m),), (m + 1,))
    _fill.each(diagonal.size, diagonal, geometry_of(diagonal.shape, diagonal), 1)
    return out


@kernel("u4 T[] u4[] T", T=STORED)
def _fill(size: Any, out: Any, layout: Any, value: Any) -> None:
    for i in items(size):
        out[places(layout, i)[0]] = value


def _conversion(source: str, targets: tuple[str, ...]) -> Kernel:
    @kernel("u4 T[] S[] u4[]", name=source, S=(source,), T=targets)
    def convert(size: Any, out: Any, x: Any, layout: Any) -> None:
        for i in items(size):
            to, at, _ = places(layout, i)
            out[to] = ldg(x, at)

    return convert


# By way of float32 a bool becomes a float16, and a float16 a bool, as the compiler knows no shorter one, or an integer,
# as it would round to the nearest one.
_REACHED = dict.fromkeys(STORED, STORED) | {"?": COMPUTED, "f2": (*FLOATS, "f2")}
_CONVERT = {np.dtype(source): _conversion(source, targets) for source, targets in _REACHED.items()}
_DIRECTLY = {np.dtype(source): set(map(np.dtype, targets)) for source, targets in _REACHED.items()}


def write(out: Array, x: Array) -> None:
    """Every element of `out` := x, which broadcasts to it, converted to its dtype."""
    if out.dtype not in _DIRECTLY[x.dtype]:
        x = cast(x, np.float32)
    _CONVERT[x.dtype].each(out.size, out, x, geometry_of(out.shape, out, x))


# Questions about memory ----------------------------------------------------------------------------------------------


def is_writable(x: Array) -> bool:
    """May the memory be changed? Not if several elements share it (`expand`)."""
    return all(s or n <= 1 for n, s in zip(x.shape, x.strides, strict=True))


def is_view(x: Array) -> bool:
    """Does the array lean on memory that another array owns?"""
    return x.is_view


def shares_memory(x: Array, y: Array) -> bool:
    """Do they lean on memory that overlaps? What came in from outside may be a part of anything."""
    a, b = x.buffer.block, y.buffer.block
    return a.address < b.address + b.size and b.address < a.address + a.size


@kernel("u4 u4[] T[] u4[]", T=FLOATS)
def _find_nan(size: Any, found: Any, x: Any, layout: Any) -> None:
    for i in items(size):
        value = ldg(x, places(layout, i)[0])
        if value != value:
            found[np.uint32(0)] = np.uint32(1)  # whoever comes last writes the same


def has_nan(x: Array) -> bool:
    if x.dtype.kind != "f":
        return False
    found = from_host(np.zeros(1, np.uint32))
    x = cast(x, np.float32) if x.dtype == np.float16 else x
    _find_nan.each(x.size, found, x, geometry_of(x.shape, x))
    return bool(to_host(found)[0])
