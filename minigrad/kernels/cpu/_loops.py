"""NumPy's ufuncs on all threads: the loops that they are made of, called from a kernel, for operands that are large.

A ufunc itself runs on one core. For each row of its operands it calls a function of C that was written for the vectors
of this processor, one for each combination of dtypes; numpy/ufuncobject.h has always shown where they are. The kernel
here cuts rows into pieces and calls the same functions, with the same bits as a result. As it knows nothing of them but
their addresses, it is compiled once for all.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from minigrad.kernels.cpu._jit import helper, jit
from minigrad.kernels.cpu._quiet import quiet
from minigrad.kernels.cpu._tile import PLAIN

Array = np.ndarray[Any, Any]
Extents = tuple[int, ...]
#: Elements of a result for which it is worth its while; for fewer, NumPy is done before the kernel is called.
LARGE = 1 << 17
#: Bytes of a result.
_PARALLEL_FROM = 1 << 17
#: Elements, or so, that one thread makes in a row.
_PIECE = 1 << 12
_DIMS = 4
#: Kinds of operands: two arrays, one, or one of two that is a number: the first, the second.
_TWO, _ONE, _FIRST, _SECOND = range(4)


class _UFunc(ctypes.Structure):
    """The beginning of a PyUFuncObject."""

    _fields_ = (
        ("head", ctypes.c_char * object.__basicsize__),
        *((name, ctypes.c_int) for name in ("nin", "nout", "nargs", "identity")),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("functions", "data")),
        ("ntypes", ctypes.c_int),
    )


class _Loop(NamedTuple):
    """The address of a loop and of its data, and what it makes."""

    function: int
    data: int
    dtype: Any


def _is_known(ufunc: Any) -> bool:
    """Is it what the header says, as far as can be seen?"""
    inside = _UFunc.from_address(id(ufunc))
    return all(getattr(inside, name) == getattr(ufunc, name) for name in ("nin", "nout", "nargs", "ntypes"))


def ways() -> str:
    """How NumPy's ufuncs run."""
    if PLAIN:
        return "large ufuncs on one thread: MINIGRAD_PLAIN_KERNELS=1"
    if not _is_known(np.add):
        return "large ufuncs on one thread: their loops are not where numpy/ufuncobject.h had them"
    return "large ufuncs on all threads"


@functools.cache
def _loop(ufunc: Any, dtype: Any) -> _Loop | None:
    """The one for operands of this dtype, if there is one."""
    inside = _UFunc.from_address(id(ufunc))
    for i, kinds in enumerate(ufunc.types if _is_known(ufunc) else ()):
        given, made = kinds.split("->")
        if set(given) == {dtype.char}:
            return _Loop(inside.functions[i], inside.data[i] or 0, np.dtype(made))
    return None


@intrinsic  # type: ignore[untyped-decorator]
def _call(_: Any, loop: Any, data: Any, kind: Any, number: Any, places: Any, count: Any, steps: Any) -> Any:
    """loop(places, [count], steps, data), with `number` at a place of its own if one of the operands is one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loop, data, kind, number, places, count, steps = values
        integer, pointer = count.type, cgutils.voidptr_t
        number_at, count_at = (cgutils.alloca_once_value(builder, x) for x in (number, count))
        places_at, steps_at = (cgutils.alloca_once(builder, each, size=3) for each in (pointer, integer))
        operands = zip(*(cgutils.unpack_tuple(builder, x) for x in (places, steps)), (_FIRST, _SECOND, -1), strict=True)
        for i, (place, step, as_number) in enumerate(operands):
            is_number = builder.icmp_signed("==", kind, ir.Constant(kind.type, as_number))
            place = builder.select(is_number, builder.bitcast(number_at, pointer), builder.inttoptr(place, pointer))
            step = builder.select(is_number, ir.Constant(integer, 0), step)
            for array, x in ((places_at, place), (steps_at, step)):
                builder.store(x, builder.gep(array, [ir.Constant(integer, i)]))
        function = ir.FunctionType(ir.VoidType(), [places_at.type, count_at.type, steps_at.type, pointer])
        arguments = places_at, count_at, steps_at, builder.inttoptr(data, pointer)
        builder.call(builder.inttoptr(loop, function.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(loop, data, kind, number, places, count, steps), generate


@helper
def _start(x: Any, walk: Any, operand: int, i: int, j: int, k: int, start: int) -> Any:
    """The address of element `start` of a row."""
    steps = _DIMS * (1 + operand)
    return x.ctypes.data + i * walk[steps] + j * walk[steps + 1] + k * walk[steps + 2] + start * walk[steps + 3]


@jit(_PARALLEL_FROM)
def _apply(
    out: Array, x: Array, y: Array, loop: int, data: int, kind: int, number: int, walk: tuple[int, ...]
) -> None:
    """out = loop(x, y), all of them bytes; `number`: what in memory is a number of the operands' dtype.

    `walk`: four extents, and as many steps for x, for y and for `out`.
    """
    rows, size = walk[0] * walk[1] * walk[2], walk[3]
    pieces, together = (size + _PIECE - 1) // _PIECE, max(1, _PIECE // size)
    for job in prange((rows + together - 1) // together * pieces):
        first: Any = np.int64(job) // pieces * together
        start = np.int64(job) % pieces * _PIECE
        count = min(_PIECE, size - start)
        for row in range(first, min(rows, first + together)):
            k, rest = row % walk[2], row // walk[2]
            j, i = rest % walk[1], rest // walk[1]
            a, b = _start(x, walk, 0, i, j, k, start), _start(y, walk, 1, i, j, k, start)
            c = _start(out, walk, 2, i, j, k, start)
            if kind == _ONE:
                _call(loop, data, kind, number, (a, c, c), count, (walk[7], walk[15], walk[15]))
            else:
                _call(loop, data, kind, number, (a, b, c), count, (walk[7], walk[11], walk[15]))


class _Plan(NamedTuple):
    shape: Extents
    walk: Extents  # as the kernel takes it


@functools.lru_cache(maxsize=1024)
def _plan(size: int, *operands: tuple[Extents, Extents]) -> _Plan | None:
    """For operands of such shapes and strides, and results of `size` bytes; None if there are none, or many dims."""
    shape = np.broadcast_shapes(*(own for own, _ in operands))
    dims: list[list[int]] = []  # extent and steps; innermost first, and as few as describe the same
    step = size
    for d in range(1, len(shape) + 1):
        steps = [strides[-d] if d <= len(own) and own[-d] > 1 else 0 for own, strides in operands]
        if dims and [*steps, step] == [dims[-1][0] * inner for inner in dims[-1][1:]]:
            dims[-1][0] *= shape[-d]
        elif shape[-d] != 1:
            dims.append([shape[-d], *steps, step])
        step *= shape[-d]
    dims += [[1, 0, 0, 0]] * (_DIMS - len(dims))
    walk = tuple(n for numbers in zip(*reversed(dims), strict=True) for n in numbers)
    return _Plan(shape, walk) if step and len(dims) == _DIMS else None


def _bytes(x: Array) -> Array | None:
    """Those of all elements, once each, if they lie in order."""
    if not x.flags.c_contiguous:
        x = x[tuple([slice(None) if stride else slice(1) for stride in x.strides])]
        if not x.flags.c_contiguous:
            return None
    flat = x.reshape(-1).view(np.uint8)
    flat.flags.writeable = False  # as some memory is: Numba would compile for that and for all other
    return flat


def spread(ufunc: Any, x: Any, y: Any = None) -> Array | None:
    """ufunc(x) or ufunc(x, y), of which one may be a number; None where NumPy itself must be asked.

    That is so where elements lie scattered, and where the ufunc would convert them, as integers next to a number; and
    everywhere with `MINIGRAD_PLAIN_KERNELS=1`.
    """
    kind, number = _TWO, 0.0
    if y is None:
        kind, y = _ONE, x
    elif type(y) is not np.ndarray:
        kind, number, y = _SECOND, y, x
    elif type(x) is not np.ndarray:
        kind, number, x = _FIRST, x, y
    dtype = x.dtype
    loop = _loop(ufunc, dtype)
    if loop is None or PLAIN or y.dtype != dtype:
        return None
    if kind >= _FIRST and (dtype.kind != "f" or type(number) not in (float, int)):
        return None
    first = _bytes(x)
    second = first if x is y else _bytes(y)
    plan = _plan(loop.dtype.itemsize, (x.shape, x.strides), (y.shape, y.strides))
    if first is None or second is None or plan is None:
        return None
    out = np.empty(plan.shape, loop.dtype)
    bits = int(quiet.run(dtype.type, number).view(f"i{dtype.itemsize}")) if kind >= _FIRST else 0
    _apply.only(out.reshape(-1).view(np.uint8), first, second, loop.function, loop.data, kind, bits, plan.walk)
    return out
