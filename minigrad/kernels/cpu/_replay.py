"""Launches that are made again as one function of machine code, in which their arguments are constants.

To call a kernel from Python, Numba looks at the type of every argument and takes every array apart: a microsecond and
more, for kernels of a small network as long as they run themselves. Where memory stays what it was, all this is known:
an address and some extents for each array. The function that calls the kernels with these numbers costs nothing.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from minigrad._interrupt import deferred
from minigrad.kernels.cpu._jit import Launch, in_turn, team
from minigrad.kernels.cpu.array import Array
from minigrad.kernels.recording import let_go


def memory_of(x: Array) -> Array:
    """The array that owns it."""
    return x.base if isinstance(x.base, np.ndarray) else x


# Launches to be made again, while they do not hold the memory that they work on ---------------------------------------


@dataclass
class Place:
    """An array, without its memory."""

    memory: weakref.ref[Array]
    address: int
    shape: tuple[int, ...]
    dtype: Any
    is_writable: bool  # a part of its type in compiled code

    def array(self) -> Array:
        """The same array again, which holds its memory."""
        there: Any = (ctypes.c_char * (math.prod(self.shape) * self.dtype.itemsize)).from_address(self.address)
        there.owner = self.memory()
        if there.owner is None:
            let_go()
        array = np.ndarray(self.shape, self.dtype, there)
        array.flags.writeable = self.is_writable
        return array


def _place(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return Place(weakref.ref(memory_of(x)), x.ctypes.data, x.shape, x.dtype, x.flags.writeable)
    return x


def places(launches: list[Launch]) -> Iterator[Place]:
    return (x for _, args in launches for x in args if type(x) is Place)


def noted(launches: list[Launch]) -> list[Launch]:
    """The launches, with places for arrays. None if memory that was made for them alone is gone, as copies would be."""
    made = [(kernel, tuple(map(_place, args))) for kernel, args in launches]
    contiguous = all(x.flags.c_contiguous for _, args in launches for x in args if isinstance(x, np.ndarray))
    launches.clear()
    return made if contiguous and all(x.memory() is not None for x in places(made)) else []


# Made again -----------------------------------------------------------------------------------------------------------

_STATUS, _INTEGER = ir.IntType(32), ir.IntType(64)


class Replay:
    """Call it to make the launches again; it holds their memory. RuntimeError if that is gone."""

    def __init__(self, launches: Sequence[Launch]):
        self._launches = [
            (kernel, tuple(x.array() if type(x) is Place else x for x in args)) for kernel, args in launches
        ]
        self._team = -1

    def __call__(self) -> None:
        if self._team != team():  # other variants are called on one thread, and in a forked child
            with deferred():
                self._make()
        if self._is_parallel:
            with in_turn():
                failed = self._function()
        else:
            failed = self._function()
        if failed:  # Python says why
            for kernel, args in self._launches[failed - 1 :]:
                kernel(*args)

    @global_compiler_lock  # type: ignore[untyped-decorator]
    def _make(self) -> None:
        """The function returns 0, or the number of the launch that failed, counted from 1."""
        self._variants, self._is_parallel = [], False  # the variants hold the kernels' code
        context, module = cpu_target.target_context, ir.Module()
        module.triple = binding.get_process_triple()
        builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(_STATUS, []), "replay").append_basic_block())
        place = builder.alloca(_INTEGER, 2)  # for a pointer to nothing, and one to an exception
        for number, (kernel, args) in enumerate(self._launches, 1):
            is_parallel = kernel.is_parallel(args[0])
            variant = kernel.parallel if is_parallel else kernel.serial
            self._variants.append(variant)
            self._is_parallel |= is_parallel
            signature = tuple(map(variant.typeof_pyval, args))
            variant.compile(signature)
            made = variant.overloads[signature]
            assert made.fndesc.restype == types.none, f"{kernel._name} returns something"
            kind = context.call_conv.get_function_type(made.fndesc.restype, made.fndesc.argtypes)
            results = [builder.bitcast(builder.gep(place, [_INTEGER(i)]), kind.args[i]) for i in range(2)]
            numbers = [_constant(*pair) for pair in zip(kind.args[2:], _numbers(args), strict=True)]
            address = _INTEGER(made.library.get_pointer_to_function(made.fndesc.llvm_func_name))
            status = builder.call(builder.inttoptr(address, kind.as_pointer()), [*results, *numbers])
            with builder.if_then(builder.icmp_signed("!=", status, _STATUS(0)), likely=False):
                builder.ret(_STATUS(number))
        builder.ret(_STATUS(0))
        machine = binding.Target.from_triple(module.triple).create_target_machine(opt=0)  # of calls there is no better
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)  # holds our code
        self._engine.finalize_object()
        self._function = ctypes.CFUNCTYPE(ctypes.c_int)(self._engine.get_function_address("replay"))
        self._team = team()


def _numbers(x: Any) -> Iterator[Any]:
    """What a compiled kernel is given for an argument; for an array, see Numba's `ArrayModel`."""
    if isinstance(x, np.ndarray):
        yield from (0, 0, x.size, x.itemsize, x.ctypes.data, *x.shape, *x.strides)
    elif isinstance(x, tuple):
        for y in x:
            yield from _numbers(y)
    else:
        yield 0 if x is None else x


def _constant(kind: Any, number: Any) -> Any:
    if isinstance(kind, ir.PointerType):
        return _INTEGER(number).inttoptr(kind)
    return kind(int(number) if isinstance(kind, ir.IntType) else float(number))
