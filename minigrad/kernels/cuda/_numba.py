"""numba.cuda, imported here and nowhere else; and what is missing where it cannot be used.

Nothing is compiled at import and no driver is touched, so that kernels can be read, and compiled to PTX, without a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 overloads it when it first compiles; NumPy 2.5 has dropped it
    np.row_stack = np.vstack  # noqa: NPY201

import numba
from numba import cuda as cuda, types

from minigrad.kernels.disk_cache import DiskCache

_INSTALL = 'pip install "numba-cuda[cu13]==0.30.*"'

#: Kernels run as Python on the CPU, by Numba's simulator (NUMBA_ENABLE_CUDASIM=1): for tests.
SIMULATED = bool(numba.config.ENABLE_CUDASIM)

# Numba's built-in target lacks what is used below. There, kernels are declared, and `problem` tells.
_COMPILED = not SIMULATED and getattr(cuda, "implementation", "Built-in") != "Built-in"

with contextlib.suppress(ImportError):  # absent from the built-in target, which gives no such warnings
    from numba.cuda.core import config

    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small arrays make small grids


driver: Any = None  # of the package cuda-bindings, which comes with numba-cuda; the simulator has none
if not SIMULATED:
    with contextlib.suppress(ImportError):  # `problem` tells
        driver = importlib.import_module("cuda.bindings.driver")


def problem() -> str | None:
    """What keeps kernels from being launched here, and the way out; None if nothing does."""
    if SIMULATED:
        return None
    if getattr(cuda, "implementation", "Built-in") == "Built-in":
        return f"the package numba-cuda is not installed, and Numba's built-in target is unfit. Use {_INSTALL}"
    if driver is None:
        return f"the package cuda-bindings, which belongs to numba-cuda, is not installed. Use {_INSTALL}"
    try:
        found = len(cuda.gpus)
    except ImportError as error:  # Numba's CudaSupportError is one
        said = " ".join(str(error).split()).rstrip(" :.") + "."  # a colon at its end announces nothing
        if "NO_DEVICE" not in said:
            return f"the driver cannot be used. {said} See nvidia-smi, or install one: sudo apt-get install nvidia-open"
        found = 0
    return None if found else "the driver finds no GPU. See nvidia-smi -L; if one is hidden: unset CUDA_VISIBLE_DEVICES"


def type_of(dtype: Any, array: bool) -> Any:
    """Numba's type of a scalar of this dtype, or of a one-dimensional contiguous array of them."""
    scalar = numba.from_dtype(np.dtype(dtype))
    return types.Array(scalar, 1, "C") if array else scalar


if not _COMPILED:

    def kept_on_disk(dispatcher: Any, name: str) -> Any:
        return dispatcher

else:
    from numba.cuda.dispatcher import _Kernel

    class _OnDisk(DiskCache):
        """Of kernels for a GPU: machine code, which the next process has only to load."""

        def reduced(self, compiled: Any) -> bytes:
            return pickle.dumps(compiled._reduce_states())

        def rebuilt(self, target_context: Any, reduced: bytes) -> Any:
            return _Kernel._rebuild(**pickle.loads(reduced))

    def kept_on_disk(dispatcher: Any, name: str) -> Any:
        """The same, which looks there before it compiles."""
        dispatcher._cache = _OnDisk(f"cuda.{name}", Path(__file__).parent, f"numba-cuda {version('numba-cuda')}")
        return dispatcher


# What Numba lacks in a kernel -----------------------------------------------------------------------------------------
#
# Loops: those over Numba's range count down beside the index, and begin with a division of 64 bits. `steps` compares
# and adds; and as it says that nothing overflows, the compiler unrolls it. Loads of what is never written (`ldg`) may
# be moved across stores, so that those of several turns of a loop are under way together. Divisions by what the host
# knows (`divided`): a GPU has no instruction for them. Addresses: for arrays whose number is not part of a kernel's
# type, and to move neighbours at once.

ALIGNED = 16  # bytes, the most that a thread moves at once, from or to a multiple of them
QUAD = 4  # elements that are moved together: as many bytes of float32, twice as many of float64


def divisor(n: int) -> tuple[int, int]:
    """Factor and shift for `divided`, to divide by n ≥ 2.

    T. Granlund, P. Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994, figure 4.1.
    """
    bits = (n - 1).bit_length()
    return (((1 << bits) - n) << 32) // n + 1, bits - 1


if not _COMPILED:

    def address_of(flat: Any) -> int:
        """Where a flat device array begins."""
        return int(flat._ary.ctypes.data)

    def steps(first: Any, last: Any, step: Any) -> Any:
        """In a kernel: range(first, last, step) of uint32s, with last + step < 2³²."""
        return range(first, last, step)

    def ldg(x: Any, at: Any) -> Any:
        """In a kernel: x[at], of an array that no thread writes to while the kernel runs."""
        return x[at]

    def divided(i: Any, factor: Any, shift: Any) -> Any:
        """In a kernel: ⌊i / n⌋ of uint32s, with what `divisor` says of n."""
        high = int(i) * int(factor) >> 32
        return np.uint32(high + (int(i) - high >> 1) >> int(shift))

    def array_at(address: Any, size: Any, like: Any) -> Any:
        """In a kernel: the flat array of so many elements at an address, of the type of another."""
        memory = (ctypes.c_char * (int(size) * like.dtype.itemsize)).from_address(int(address)) if address else b""
        return np.frombuffer(memory, like.dtype)

    def quad(x: Any, at: Any) -> Any:
        """In a kernel: `QUAD` neighbours of a contiguous array, the first at place `at` of its memory."""
        return tuple(_quad_at(x, at))

    def set_quad(x: Any, at: Any, values: Any) -> None:
        """The same, written."""
        _quad_at(x, at)[:] = values

    def _quad_at(x: Any, at: Any) -> Any:
        memory = getattr(x, "_ary", x).reshape(-1)
        found = memory[int(at) : int(at) + QUAD]
        if found.size < QUAD or found.ctypes.data % ALIGNED:
            raise IndexError(f"elements {at} to {at + QUAD - 1} of {memory.size}: beyond the array, or not aligned")
        return found

else:
    from llvmlite import ir
    from numba.cuda import cgutils
    from numba.cuda.core.imputils import RefType, iternext_impl
    from numba.cuda.extending import core_models, intrinsic, lower_builtin, register_model

    def address_of(flat: Any) -> int:
        return int(flat.device_ctypes_pointer.value)

    class _Walk(types.SimpleIteratorType):  # type: ignore[misc]
        """The type of an iterator of `steps`, whose next number lies where all copies of it look."""

    class _Steps(types.SimpleIterableType):  # type: ignore[misc]
        """The type of what `steps` returns."""

    _WALK = _Walk("walk", types.uint32)
    _STEPS = _Steps("steps", _WALK)

    @register_model(_Steps)
    class _StepsModel(core_models.StructModel):  # type: ignore[misc]
        def __init__(self, manager: Any, of: Any, here: Any = types.uint32):
            super().__init__(manager, of, [("here", here), ("last", types.uint32), ("step", types.uint32)])

    @register_model(_Walk)
    class _WalkModel(_StepsModel):
        def __init__(self, manager: Any, of: Any):
            super().__init__(manager, of, types.EphemeralPointer(types.uint32))

    @intrinsic  # type: ignore[untyped-decorator]
    def steps(context: Any, first: Any, last: Any, step: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return cgutils.pack_struct(builder, arguments)

        return _STEPS(types.uint32, types.uint32, types.uint32), generate

    @lower_builtin("getiter", _Steps)  # type: ignore[untyped-decorator]
    def _begun(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        here, last, step = cgutils.unpack_tuple(builder, arguments[0])
        return cgutils.pack_struct(builder, [cgutils.alloca_once_value(builder, here), last, step])

    @lower_builtin("iternext", _Walk)  # type: ignore[untyped-decorator]
    @iternext_impl(RefType.UNTRACKED)  # type: ignore[untyped-decorator]
    def _stepped(context: Any, builder: Any, signature: Any, arguments: Any, result: Any) -> None:
        place, last, step = cgutils.unpack_tuple(builder, arguments[0])
        here = builder.load(place)
        result.set_valid(builder.icmp_unsigned("<", here, last))
        result.yield_(here)
        builder.store(builder.add(here, step, flags=["nuw"]), place)

    @intrinsic  # type: ignore[untyped-decorator]
    def ldg(context: Any, x: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(x)(context, builder, value=arguments[0]).data
            loaded = builder.load(builder.gep(data, [arguments[1]], inbounds=True))
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            return context.data_model_manager[x.dtype].from_data(builder, loaded)

        return x.dtype(x, types.uint64), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def divided(context: Any, i: Any, factor: Any, shift: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            i, factor, shift = arguments
            long = ir.IntType(64)
            product = builder.mul(builder.zext(i, long), builder.zext(factor, long))
            high = builder.trunc(builder.lshr(product, ir.Constant(long, 32)), i.type)
            rest = builder.lshr(builder.sub(i, high), ir.Constant(i.type, 1))
            return builder.lshr(builder.add(high, rest), shift)

        return types.uint32(types.uint32, types.uint32, types.uint32), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def array_at(context: Any, address: Any, size: Any, like: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.return_type)(context, builder, value=arguments[2])
            array.data = builder.inttoptr(arguments[0], array.data.type)
            return array._getvalue()  # its length stays that of the other, and is not looked at

        return like(address, size, like), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def quad(context: Any, x: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(_tuple_at(context, builder, signature, arguments), align=ALIGNED)

        return types.UniTuple(x.dtype, QUAD)(x, types.uint64), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def set_quad(context: Any, x: Any, at: Any, values: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.store(arguments[2], _tuple_at(context, builder, signature, arguments), align=ALIGNED)
            return context.get_dummy_value()

        return types.void(x, types.uint64, types.UniTuple(x.dtype, QUAD)), generate

    def _tuple_at(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        """Where the elements are, as the address of a tuple: aligned, and moved whole, it takes vector instructions."""
        x = signature.args[0]
        first = builder.gep(context.make_array(x)(context, builder, value=arguments[0]).data, [arguments[1]])
        return builder.bitcast(first, context.get_data_type(types.UniTuple(x.dtype, QUAD)).as_pointer())
