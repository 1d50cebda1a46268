"""Loops that a compiler does not find by itself, written as vector instructions: a tile of a matrix product whose left
side lies anywhere, a transposition that stays in registers, sums and products of a plane with itself shifted.

`tile` keeps ROWS × 2 vectors of sums in registers. A step over k loads two vectors of B, and each of the ROWS values of
A once, into all lanes of a vector: 2 · ROWS multiplications and additions for 2 + ROWS loads, which is what a core
that multiplies two vectors in a cycle can also load. Where A's values lie is said by two tables, of the rows and of k:
an image is multiplied as it is, without being unfolded into a matrix. Eight rows are enough to hide the time that an
addition takes, and few enough for their addresses to stay in registers too.

Vectors are as wide as those of the processor that Numba compiles for (`NUMBA_CPU_NAME`, `NUMBA_CPU_FEATURES`); the
same text is compiled for any. With `MINIGRAD_PLAIN_KERNELS=1` in the environment the first two are plain loops, which
are also their definition, and nobody asks for the others.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from minigrad.kernels.cpu._jit import helper

PLAIN = os.environ.get("MINIGRAD_PLAIN_KERNELS") == "1"
#: Vectors of sums, and taps, that are kept in registers to hide the time of an addition.
SHIFTED, TAPS = 4, 5
_INDEX, _LANE = ir.IntType(64), ir.IntType(32)


@functools.cache
def shape(bits: int) -> tuple[int, int]:
    """(rows, columns) of a tile of numbers of so many bits; half of its columns are a vector."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    has = features.split(",")
    width = 512 if "+avx512f" in has else 256 if "+avx" in has else 128
    registers = 32 if width == 512 or triple.startswith(("aarch64", "arm64")) else 16
    return 8 if registers == 32 else 6, 2 * width // bits


def plain_tile(out: Any, a: Any, rows: Any, depth: Any, b: Any, add: bool) -> None:
    """out[i, j] = Σ_k a[rows[i] + depth[k]] · b[k, j], or += if `add`, over a tile's rows i and columns j.

    The lines of `out` may be longer than a tile's; the numbers of a line lie side by side.
    """
    for i in range(rows.size):
        for j in range(b.shape[1]):
            total = a.dtype.type(0)
            for k in range(depth.size):
                total += a[rows[i] + depth[k]] * b[k, j]
            out[i, j] = out[i, j] + total if add else total


def plain_turn(out: Any, places: Any, x: Any, rows: Any, width: int) -> None:
    """out[places[i] + j] = x[rows[j] + i], for i and j below half of a tile's columns, `width`."""
    for i in range(width):
        for j in range(width):
            out[places[i] + j] = x[rows[j] + i]


def plain_copy(out: Any, at: int, x: Any, start: int, count: int) -> None:
    """out[at + j] = x[start + j], for j below `count`: a tile's rows or its columns."""
    for j in range(count):
        out[at + j] = x[start + j]


class Vectors:
    """What is said again and again about vectors of half a tile's columns."""

    def __init__(self, context: Any, builder: Any, dtype: Any):
        self.rows, columns = shape(dtype.bitwidth)
        self.width, self.bytes = columns // 2, dtype.bitwidth // 8
        self.type = ir.VectorType(context.get_data_type(dtype), self.width)
        self.zero = ir.Constant(self.type, [0.0] * self.width)
        # Fused where the processor can; where it cannot, two instructions and not a call.
        fma = ir.FunctionType(self.type, [self.type] * 3)
        self.fma = cgutils.get_or_insert_function(
            builder.module, fma, f"llvm.fmuladd.v{self.width}f{dtype.bitwidth}"
        )
        self._builder = builder

    def load(self, pointer: Any, offset: Any) -> Any:
        loaded = self._builder.load(self._at(pointer, offset))
        loaded.align = self.bytes
        return loaded

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        self._builder.store(value, self._at(pointer, offset)).align = self.bytes

    def fill(self, number: Any) -> Any:
        one = self._builder.insert_element(self.zero, number, ir.Constant(_LANE, 0))
        return self.shuffle(one, one, [0] * self.width)

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        return self._builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_LANE, self.width), lanes))

    def _at(self, pointer: Any, offset: Any) -> Any:
        offset = ir.Constant(_INDEX, offset) if isinstance(offset, int) else offset
        return self._builder.bitcast(self._builder.gep(pointer, [offset]), self.type.as_pointer())


def arrays(context: Any, builder: Any, signature: Any, values: Any) -> list[Any]:
    pairs = zip(signature.args, values, strict=False)
    return [context.make_array(t)(context, builder, v) for t, v in pairs if isinstance(t, types.Array)]


def _number(builder: Any, array: Any, index: Any) -> Any:
    index = ir.Constant(_INDEX, index) if isinstance(index, int) else index
    return builder.load(builder.gep(array.data, [index]))


def _tile(count: int) -> Any:
    """`plain_tile` on the first `count` vectors of the columns."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, a, rows, depth, b = arrays(context, builder, signature, values)
        vectors = Vectors(context, builder, signature.args[0].dtype)
        starts = [builder.gep(a.data, [_number(builder, rows, i)]) for i in range(vectors.rows)]
        every = [(i, j) for i in range(vectors.rows) for j in range(count)]
        sums = {at: cgutils.alloca_once_value(builder, vectors.zero) for at in every}
        columns = ir.Constant(_INDEX, 2 * vectors.width)
        with cgutils.for_range(builder, builder.extract_value(depth.shape, 0), intp=_INDEX) as loop:
            offset, row = _number(builder, depth, loop.index), builder.gep(b.data, [builder.mul(loop.index, columns)])
            right = [vectors.load(row, j * vectors.width) for j in range(count)]
            for i, start in enumerate(starts):
                left = vectors.fill(builder.load(builder.gep(start, [offset])))
                for j in range(count):
                    total = builder.call(vectors.fma, [left, right[j], builder.load(sums[i, j])])
                    builder.store(total, sums[i, j])
        pitch = builder.sdiv(builder.extract_value(out.strides, 0), ir.Constant(_INDEX, vectors.bytes))
        lines = [builder.gep(out.data, [builder.mul(ir.Constant(_INDEX, i), pitch)]) for i in range(vectors.rows)]
        with builder.if_then(values[5]):
            for i, j in every:
                before = vectors.load(lines[i], j * vectors.width)
                builder.store(builder.fadd(before, builder.load(sums[i, j])), sums[i, j])
        for i, j in every:
            vectors.store(builder.load(sums[i, j]), lines[i], j * vectors.width)
        return context.get_dummy_value()

    def tile(context: Any, out: Any, a: Any, rows: Any, depth: Any, b: Any, add: Any) -> Any:
        return types.void(out, a, rows, depth, b, types.boolean), codegen

    return intrinsic(tile)


def _turn(context: Any, out: Any, places: Any, x: Any, rows: Any, width: Any) -> Any:
    """`plain_turn` in log₂(width) rounds: in round d, blocks of d × d numbers on either side of a diagonal swap."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, places, x, rows = arrays(context, builder, signature, values)
        vectors = Vectors(context, builder, signature.args[0].dtype)
        width = vectors.width
        block = [vectors.load(x.data, _number(builder, rows, j)) for j in range(width)]
        distance = 1
        while distance < width:
            upper = [lane if not lane & distance else width + lane - distance for lane in range(width)]
            lower = [lane + distance if not lane & distance else width + lane for lane in range(width)]
            for i in range(width):
                if not i & distance:
                    pair = block[i], block[i + distance]
                    block[i], block[i + distance] = vectors.shuffle(*pair, upper), vectors.shuffle(*pair, lower)
            distance *= 2
        for i in range(width):
            vectors.store(block[i], out.data, _number(builder, places, i))
        return context.get_dummy_value()

    return types.void(out, places, x, rows, width), codegen


def _copy(side: int) -> Any:
    """`plain_copy` of as many numbers as a tile has rows (`side` 0) or columns (1), without asking how many."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, x = arrays(context, builder, signature, values)
        dtype = signature.args[0].dtype
        line = ir.VectorType(context.get_data_type(dtype), shape(dtype.bitwidth)[side]).as_pointer()
        numbers = builder.load(builder.bitcast(builder.gep(x.data, [values[3]]), line))
        stored = builder.store(numbers, builder.bitcast(builder.gep(out.data, [values[1]]), line))
        numbers.align = stored.align = dtype.bitwidth // 8
        return context.get_dummy_value()

    def copy(context: Any, out: Any, at: Any, x: Any, start: Any, count: Any) -> Any:
        return types.void(out, at, x, start, count), codegen

    return intrinsic(copy)


@intrinsic  # type: ignore[untyped-decorator]
def add_shifted(context: Any, out: Any, x: Any, shifts: Any, w: Any) -> Any:
    """out[i] += Σ_t w[t] · x[i + shifts[t]] for i below SHIFTED vectors, which stay in registers for all t."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, x, shifts, w = arrays(context, builder, signature, values)
        vectors = Vectors(context, builder, signature.args[0].dtype)
        places = [j * vectors.width for j in range(SHIFTED)]
        sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in places]
        for total, at in zip(sums, places, strict=True):
            builder.store(vectors.load(out.data, at), total)
        with cgutils.for_range(builder, builder.extract_value(shifts.shape, 0), intp=_INDEX) as loop:
            start = builder.gep(x.data, [_number(builder, shifts, loop.index)])
            factor = vectors.fill(_number(builder, w, loop.index))
            for total, at in zip(sums, places, strict=True):
                builder.store(builder.call(vectors.fma, [factor, vectors.load(start, at), builder.load(total)]), total)
        for total, at in zip(sums, places, strict=True):
            vectors.store(builder.load(total), out.data, at)
        return context.get_dummy_value()

    return types.void(out, x, shifts, w), codegen


@intrinsic  # type: ignore[untyped-decorator]
def shifted_products(context: Any, out: Any, g: Any, x: Any, shifts: Any, count: Any) -> Any:
    """out[t, j] = Σ_i g[i · width + j] · x[i · width + j + shifts[t]] for t < TAPS, i < count and j in a vector."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, g, x, shifts = arrays(context, builder, signature, values)
        vectors = Vectors(context, builder, signature.args[0].dtype)
        starts = [builder.gep(x.data, [_number(builder, shifts, t)]) for t in range(TAPS)]
        sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in starts]
        for total in sums:
            builder.store(vectors.zero, total)
        with cgutils.for_range(builder, values[4], intp=_INDEX) as loop:
            at = builder.mul(loop.index, ir.Constant(_INDEX, vectors.width))
            factor = vectors.load(g.data, at)
            for total, start in zip(sums, starts, strict=True):
                builder.store(builder.call(vectors.fma, [factor, vectors.load(start, at), builder.load(total)]), total)
        for t, total in enumerate(sums):
            vectors.store(builder.load(total), out.data, t * vectors.width)
        return context.get_dummy_value()

    return types.void(out, g, x, shifts, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def copy(context: Any, out: Any, at: Any, x: Any, start: Any, count: Any) -> Any:
    """`plain_copy` of any count, by the C library."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, x = arrays(context, builder, signature, values)
        to, source = builder.gep(out.data, [values[1]]), builder.gep(x.data, [values[3]])
        cgutils.raw_memcpy(builder, to, source, values[4], signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(out, at, x, start, count), codegen


if PLAIN:
    tile = narrow_tile = helper(plain_tile)
    turn = helper(plain_turn)
    copy_rows = copy_columns = helper(plain_copy)
else:
    tile, narrow_tile, turn = _tile(2), _tile(1), intrinsic(_turn)
    copy_rows, copy_columns = _copy(0), _copy(1)


@helper
def transpose(out: Any, places: Any, x: Any, rows: Any) -> None:
    """out[places[s] + c] = x[c, s], by `turn`'s squares, whose rows begin at `rows`, and at the borders one by one."""
    channels, size = x.shape
    side = rows.size
    right, bottom = size - size % side, channels - channels % side
    for c in range(0, bottom, side):
        for s in range(0, right, side):
            turn(out[c:], places[s:], x[c, s:], rows, side)
    for s in range(size):
        for c in range(bottom if s < right else 0, channels):
            out[places[s] + c] = x[c, s]


@helper
def channels_first(product: Any, place: Any, x: Any, planes: Any) -> None:
    """x[c, s] = product[place[s] + c], by the same squares: the way back from `transpose`."""
    channels, size = x.shape
    side = planes.size
    right, bottom = size - size % side, channels - channels % side
    for c in range(0, bottom, side):
        for s in range(0, right, side):
            turn(x[c, s:], planes, product[c:], place[s:], side)
    for s in range(size):
        for c in range(bottom if s < right else 0, channels):
            x[c, s] = product[place[s] + c]
