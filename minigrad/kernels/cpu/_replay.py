"""Launches that are made again as one function of machine code, in which their arguments are constants.

To call a kernel from Python, Numba looks at the type of every argument and takes every array apart: a microsecond and
more, for kernels of a small network as long as they run themselves. Where memory stays what it was, all this is known:
an address and some extents for each array. The function that calls the kernels with these numbers costs nothing.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from minigrad.kernels.cpu._jit import Kernel, in_turn, team

_STATUS, _INTEGER = ir.IntType(32), ir.IntType(64)
_names = (f"minigrad_replay_{i}" for i in itertools.count())


class Replay:
    """Call it to make the launches, (kernel, arguments) each, on the same arrays; it holds them."""

    def __init__(self, launches: Sequence[tuple[Kernel, tuple[Any, ...]]]):
        self._launches = launches
        self._team = -1

    def __call__(self) -> None:
        if self._team != team():  # in a forked child, too, other variants are called
            self._make()
        if self._is_parallel:
            with in_turn():
                failed = self._function()
        else:
            failed = self._function()
        if failed:  # say why, in Python
            for kernel, args in self._launches[failed - 1 :]:
                kernel(*args)

    @global_compiler_lock  # type: ignore[untyped-decorator]
    def _make(self) -> None:
        """The function returns 0, or the number of the launch that failed, counted from 1."""
        context = cpu_target.target_context
        name, codegen = next(_names), context.codegen()
        module = codegen._create_empty_module(name)
        function = ir.Function(module, ir.FunctionType(_STATUS, []), name)
        builder = ir.IRBuilder(function.append_basic_block())
        self._is_parallel, self._variants = False, []
        for number, (kernel, args) in enumerate(self._launches, 1):
            is_parallel = kernel.is_parallel(args[0])
            self._is_parallel |= is_parallel
            variant = kernel.parallel if is_parallel else kernel.serial
            types = tuple(map(variant.typeof_pyval, args))
            variant.compile(types)
            made = variant.overloads[types]
            address = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
            kind = context.call_conv.get_function_type(made.fndesc.restype, made.fndesc.argtypes)
            result, error, *kinds = kind.args
            numbers = [_constant(*pair) for pair in zip(kinds, _numbers(args), strict=True)]
            called = builder.inttoptr(ir.Constant(_INTEGER, address), kind.as_pointer())
            places = builder.alloca(result.pointee), builder.alloca(error.pointee)
            status = builder.call(called, [*places, *numbers])
            with builder.if_then(builder.icmp_signed("!=", status, ir.Constant(_STATUS, 0)), likely=False):
                builder.ret(ir.Constant(_STATUS, number))
            self._variants.append(variant)  # whose code it is
        builder.ret(ir.Constant(_STATUS, 0))
        self._library = codegen.create_library(name)
        self._library.add_ir_module(module)
        self._library.finalize()
        self._function = ctypes.CFUNCTYPE(ctypes.c_int)(self._library.get_pointer_to_function(name))
        self._team = team()


def _numbers(x: Any) -> Iterator[Any]:
    """What a compiled kernel is given for an argument; see Numba's `ArrayModel`."""
    if isinstance(x, np.ndarray):
        yield from (0, 0, x.size, x.itemsize, x.ctypes.data, *x.shape, *x.strides)
    elif isinstance(x, tuple):
        for y in x:
            yield from _numbers(y)
    else:
        yield 0 if x is None else x


def _constant(kind: Any, number: Any) -> Any:
    if isinstance(kind, ir.PointerType):
        return ir.Constant(_INTEGER, number).inttoptr(kind)
    return ir.Constant(kind, int(number) if isinstance(kind, ir.IntType) else float(number))
