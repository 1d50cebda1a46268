"""The tiled product, of which matmul and the convolutions are uses: out[i, j] = Σ_k A[i, k] · B[k, j].

A block of threads makes one tile of `out`, each thread a small tile of it in registers. It goes along k in steps: while
one step of A and B is multiplied from shared memory, the next is on its way to registers, and is then laid down beside
it (double buffering). Where tiles are few and k is long, several blocks share k; their parts are added in order. Where
neighbours in memory come in fours, aligned, a thread loads four at once, and the numbers are the same to the bit.

A use says only where elements lie. An element's place is the sum of two, its row's and its column's, and so a `Side`
is a pair of functions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minigrad.kernels.cuda._numba import ALIGNED, QUAD, SIMULATED, cuda, quad, set_quad
from minigrad.kernels.cuda.array import Array, Shape, constant, empty
from minigrad.kernels.cuda.launch import FLOATS, Kernel, helper, kernel
from minigrad.kernels.cuda.reduce import sum

# A layout, a small device array, tells a kernel all sizes. It begins with these; what follows belongs to the use.
ROWS, COLUMNS, DEPTH = 0, 1, 2  # of the largest of the products
WIDTH, PARTS, SIZE = 3, 4, 5  # of k, for one block; of k, how many; of `out`
BIASED, HEAD = 6, 7

# What a use knows of its product number z: uint32s in registers, of which these are the first.
S_ROWS, S_COLUMNS, S_DEPTH, S_BIAS = 0, 1, 2, 3

_PAD = QUAD  # beside each row of shared memory, so that a column of it lies in different banks, and rows are aligned
_RUN = 2 if SIMULATED else 4  # neighbouring elements that a thread reads from shared memory at once
_UNROLLED = 16 if SIMULATED else 256  # products of a thread in a row
_GROUP = 2 if SIMULATED else 8  # tiles below each other that are made at the same time, as they share columns


class Tile(NamedTuple):
    """A block's part of `out`, its step along k, and a thread's part of the block's."""

    rows: int
    columns: int
    depth: int
    tall: int
    wide: int
    dtypes: tuple[str, ...]
    rate: float  # a guess: products per clock on one of the GPU's multiprocessors

    @property
    def threads(self) -> int:
        return self.rows // self.tall * (self.columns // self.wide)

    @property
    def floats(self) -> tuple[str, ...]:
        return tuple(dtype for dtype in self.dtypes if dtype in FLOATS)


_INTEGERS = (*FLOATS, "i8")
TILES = (  # for a step each thread loads quads of A and of B; on a GPU there are 256 threads, and one quad of each
    (Tile(8, 8, 4, 4, 2, ("f4",), 100), Tile(4, 4, 4, 2, 2, FLOATS, 70), Tile(4, 8, 8, 2, 2, _INTEGERS, 30))
    if SIMULATED
    else (
        Tile(128, 128, 8, 8, 8, ("f4",), 100),
        Tile(64, 64, 16, 4, 4, FLOATS, 70),
        Tile(32, 32, 32, 2, 2, _INTEGERS, 30),
    )
)


@helper
def everywhere(s: Any, outer: Any, u: Any, inner: Any) -> Any:
    """No element of the operand is beyond its memory."""
    return True


class Side(NamedTuple):
    """Where an operand's elements lie: the sum of `outer(layout, s, i)` (j for B) and `inner(layout, s, k)`.

    Both are tuples of so many uint32 `words`, of which that is the first. Where `inside(s, outer, u, inner)` says no,
    for number u of the outer places at hand, the element is zero. `along`: are neighbours along k neighbours in memory,
    too? Then neighbouring threads load these, or else neighbours along i or j: one each, or where `in_quads` says so
    four, which is `quads`.
    """

    outer: Any
    inner: Any
    along: bool
    words: int = 1
    inside: Any = everywhere
    quads: bool = False


class _Loader(NamedTuple):
    locate: Any
    fetch: Any
    put: Any
    words: int
    outers: int  # rows of A, or columns of B, in which a thread's runs begin
    each: int  # elements that it loads
    pitch: int  # of rows of shared memory


@functools.cache  # kernels share what they call, which is then compiled once
def _loader(side: Side, extent: int, tile: Tile) -> _Loader:
    """How a thread brings its elements of (extent, depth) of an operand into shared memory."""
    outer, inner, along, words, inside, quads = side
    depth, each = tile.depth, extent * tile.depth // tile.threads
    run = QUAD if quads else 1  # neighbours that a thread loads together
    abreast = (depth if along else extent) // run  # threads side by side in memory
    apart, runs = tile.threads // abreast, each // run
    outers, inners = (runs, 1) if along else (1, runs)
    pitch = extent + _PAD

    @helper
    def across(thread: Any, u: Any) -> Any:
        """Of the thread's run u, the row in the tile that it begins in."""
        if along:
            return np.uint32(thread // np.uint32(abreast)) + np.uint32(u * apart)
        return np.uint32(thread % np.uint32(abreast)) * np.uint32(run)

    @helper
    def deep(thread: Any, v: Any) -> Any:
        """Of the thread's run v in a row, where in the step it begins."""
        if along:
            return np.uint32(thread % np.uint32(abreast)) * np.uint32(run)
        return np.uint32(thread // np.uint32(abreast)) + np.uint32(v * apart)

    @helper
    def locate(at: Any, layout: Any, s: Any, first: Any, count: Any, thread: Any) -> None:
        for u in range(outers):
            i = np.uint32(min(first + across(thread, u), count - np.uint32(1 if along else run)))
            place = outer(layout, s, i)  # what is beyond is never stored
            for word in range(words):
                at[u, word] = place[word]

    @helper
    def fetch(found: Any, x: Any, layout: Any, s: Any, at: Any, k: Any, last: Any, thread: Any) -> None:
        for v in range(inners):
            here = np.uint32(k + deep(thread, v))
            place = inner(layout, s, min(here, np.uint32(last - np.uint32(1))))  # a table may end there
            for u in range(outers):
                n = (v * outers + u) * run
                if (here < last) & inside(s, at, u, place):
                    first = np.uint32(at[u, 0] + place[0])
                    if quads:
                        found[n], found[n + 1], found[n + 2], found[n + 3] = quad(x, first)
                    else:
                        found[n] = x[first]
                else:
                    for i in range(run):
                        found[n + i] = x.dtype.type(0)

    @helper
    def put(step: Any, buffer: Any, found: Any, thread: Any) -> None:
        for v in range(inners):
            for u in range(outers):
                n = (v * outers + u) * run
                level, row = deep(thread, v), np.uint32(across(thread, u))
                if quads and not along:
                    first = (np.uint32(buffer * np.uint32(depth)) + level) * np.uint32(pitch) + row
                    set_quad(step, first, (found[n], found[n + 1], found[n + 2], found[n + 3]))
                else:
                    for i in range(run):
                        step[buffer, np.uint32(level + np.uint32(i)), row] = found[n + i]

    return _Loader(locate, fetch, put, words, outers, each, pitch)


@functools.cache
def _spread(each: int, threads: int) -> Any:
    """Of row n of a thread's tile, its number in the block's: in runs, so that neighbours read from other banks."""
    run = min(each, _RUN)
    apart = run * threads

    @helper
    def number(thread: Any, n: Any) -> Any:
        return np.uint32(thread * np.uint32(run)) + np.uint32(n // run * apart + n % run)

    return number


def _twice(multiply: Any, count: int) -> Any:
    """`multiply` for `count` levels and then for as many more: unrolled, as the compiler would not do it."""

    @helper
    def twice(total: Any, a_step: Any, b_step: Any, buffer: Any, level: Any, y: Any, x: Any) -> None:
        multiply(total, a_step, b_step, buffer, level, y, x)
        multiply(total, a_step, b_step, buffer, np.uint32(level + np.uint32(count)), y, x)

    return twice


@functools.cache
def _multiplier(tile: Tile) -> tuple[Any, int]:
    """What adds the products of some levels of a step to a thread's tile, and of how many."""
    rows, columns, depth, tall, wide = tile[:5]
    mine_a, mine_b = _spread(tall, rows // tall), _spread(wide, columns // wide)

    @helper
    def multiply(total: Any, a_step: Any, b_step: Any, buffer: Any, level: Any, y: Any, x: Any) -> None:
        left, right = cuda.local.array(tall, total.dtype), cuda.local.array(wide, total.dtype)
        for r in range(tall):
            left[r] = a_step[buffer, level, mine_a(y, r)]
        for c in range(wide):
            right[c] = b_step[buffer, level, mine_b(x, c)]
        for r in range(tall):
            for c in range(wide):
                total[r, c] += left[r] * right[c]

    levels = 1
    while levels < depth and levels * tall * wide < _UNROLLED:
        multiply, levels = _twice(multiply, levels), 2 * levels
    return multiply, levels


def tiled(
    name: str, dtypes: tuple[str, ...], tile: Tile, begin: Any, a: Side, b: Side, out_row: Any, out_column: Any,
    bias_per_row: bool,
) -> Kernel:  # fmt: skip
    """The kernel of one use with one tile: `k[blocks, tile.threads](out, a, b, bias, layout)`.

    `begin(layout, z)` gives what the use knows of product z; `out_row(layout, s, i)` and `out_column(layout, s, j)` add
    up to the place in `out`. The bias, one number per row or per column of the product, is read if the layout says so.
    """
    rows, columns, depth, tall, wide = tile[:5]
    locate_a, fetch_a, put_a, a_words, a_outers, a_each, a_pitch = _loader(a, rows, tile)
    locate_b, fetch_b, put_b, b_words, b_outers, b_each, b_pitch = _loader(b, columns, tile)
    abreast = columns // wide  # threads
    mine_a, mine_b = _spread(tall, rows // tall), _spread(wide, abreast)
    multiply, levels = _multiplier(tile)

    @kernel("T[] T[] T[] T[] u4[]", name=name, threads=tile.threads, T=dtypes)
    def product(out: Any, a: Any, b: Any, bias: Any, layout: Any) -> None:
        a_step = cuda.shared.array((2, depth, a_pitch), out.dtype, alignment=ALIGNED)
        b_step = cuda.shared.array((2, depth, b_pitch), out.dtype, alignment=ALIGNED)
        a_next, a_at = cuda.local.array(a_each, out.dtype), cuda.local.array((a_outers, a_words), np.uint32)
        b_next, b_at = cuda.local.array(b_each, out.dtype), cuda.local.array((b_outers, b_words), np.uint32)
        total = cuda.local.array((tall, wide), out.dtype)
        left, right = cuda.local.array(tall, out.dtype), cuda.local.array(wide, out.dtype)
        rows_at, columns_at = cuda.local.array(tall, np.uint32), cuda.local.array(wide, np.uint32)

        z, part, first_row, first_column = _job(layout, np.uint32(cuda.blockIdx.x), rows, columns)
        s = begin(layout, z)
        if first_row >= s[S_ROWS] or first_column >= s[S_COLUMNS]:
            return  # not all products are as large as the largest
        thread = np.uint32(cuda.threadIdx.x)
        y, x = np.uint32(thread // np.uint32(abreast)), np.uint32(thread % np.uint32(abreast))
        for r in range(tall):
            for c in range(wide):
                total[r, c] = out.dtype.type(0)
        k = np.uint32(part * layout[WIDTH])
        last = np.uint32(min(np.uint32(k + layout[WIDTH]), s[S_DEPTH]))
        if k < last:
            locate_a(a_at, layout, s, first_row, s[S_ROWS], thread)
            locate_b(b_at, layout, s, first_column, s[S_COLUMNS], thread)
            fetch_a(a_next, a, layout, s, a_at, k, last, thread)
            fetch_b(b_next, b, layout, s, b_at, k, last, thread)
            buffer = np.uint32(0)
            put_a(a_step, buffer, a_next, thread)
            put_b(b_step, buffer, b_next, thread)
            cuda.syncthreads()
            while k < last:
                k = np.uint32(k + np.uint32(depth))
                if k < last:
                    fetch_a(a_next, a, layout, s, a_at, k, last, thread)
                    fetch_b(b_next, b, layout, s, b_at, k, last, thread)
                for level in range(0, depth, levels):
                    multiply(total, a_step, b_step, buffer, np.uint32(level), y, x)
                buffer = np.uint32(buffer ^ np.uint32(1))
                if k < last:
                    put_a(a_step, buffer, a_next, thread)
                    put_b(b_step, buffer, b_next, thread)
                cuda.syncthreads()
        base = np.uint32(part * layout[SIZE])
        biased = part == np.uint32(0) and layout[BIASED] > np.uint32(0)
        for r in range(tall):
            i = np.uint32(min(np.uint32(first_row + mine_a(y, r)), np.uint32(s[S_ROWS] - np.uint32(1))))
            rows_at[r] = np.uint32(base + out_row(layout, s, i)[0])
            left[r] = bias[np.uint32(s[S_BIAS] + i)] if biased and bias_per_row else out.dtype.type(0)
        for c in range(wide):
            j = np.uint32(min(np.uint32(first_column + mine_b(x, c)), np.uint32(s[S_COLUMNS] - np.uint32(1))))
            columns_at[c] = out_column(layout, s, j)[0]
            right[c] = bias[np.uint32(s[S_BIAS] + j)] if biased and not bias_per_row else out.dtype.type(0)
        for c in range(wide):
            if np.uint32(first_column + mine_b(x, c)) < s[S_COLUMNS]:
                for r in range(tall):
                    if np.uint32(first_row + mine_a(y, r)) < s[S_ROWS]:
                        value = total[r, c] + (left[r] if bias_per_row else right[c])
                        out[np.uint32(rows_at[r] + columns_at[c])] = value

    return product


@helper
def _job(layout: Any, block: Any, rows: Any, columns: Any) -> Any:
    """Of a block, the number of its product, its part of k, the first row and the first column of its tile."""
    down = np.uint32((layout[ROWS] + np.uint32(rows - 1)) // np.uint32(rows))
    across = np.uint32((layout[COLUMNS] + np.uint32(columns - 1)) // np.uint32(columns))
    share = np.uint32(block // np.uint32(down * across))
    tile = np.uint32(block - np.uint32(share * np.uint32(down * across)))
    z = np.uint32(share // layout[PARTS])
    band = np.uint32(tile // np.uint32(across * np.uint32(_GROUP)))
    top = np.uint32(band * np.uint32(_GROUP))
    height = np.uint32(min(np.uint32(down - top), np.uint32(_GROUP)))
    within = np.uint32(tile - np.uint32(top * across))
    column = np.uint32(within // height)
    row = np.uint32(top + np.uint32(within - np.uint32(column * height)))
    return z, np.uint32(share - np.uint32(z * layout[PARTS])), np.uint32(row * rows), np.uint32(column * columns)


# On the host: which tile, how many parts, and the launch --------------------------------------------------------------

_PROCESSORS = 132  # of an H200; the choice must not depend on the GPU at hand, so that sums do not either
_LATENCY = 500  # clocks of a step in which a block that has its processor to itself waits
_SUMMED = 2700 / 8, 6000  # numbers per clock when parts are added; clocks for the launch
_PARTS = (1, 2, 4, 8, 16, 32, 64)


class Plan(NamedTuple):
    """One launch, for shapes that do not change: kernel, grid, sizes, and the layout on the device."""

    kernel: Kernel
    blocks: int
    threads: int
    parts: int
    layout: Any

    def __call__(self, out: Array, a: Array, b: Array, bias: Array | None = None) -> Array:
        """`out`, filled."""
        if not out.size:
            return out
        target = out if self.parts == 1 else empty((self.parts, *out.shape), out.dtype)
        self.kernel[self.blocks, self.threads](target, a, b, out if bias is None else bias, self.layout)
        return out if self.parts == 1 else sum(target, (0,), False)


def choice(rows: int, columns: int, depth: int, count: int, dtype: Any) -> tuple[Tile, int]:
    """The tile and the number of parts that should take the fewest clocks, for `count` products of these sizes."""

    def clocks(option: tuple[Tile, int]) -> float:
        tile, parts = option
        blocks = count * parts * -(-rows // tile.rows) * -(-columns // tile.columns)
        if parts > 1 and blocks > 2 * _PROCESSORS:
            return math.inf
        work = tile.rows * tile.columns * tile.depth / tile.rate
        adding = 0 if parts == 1 else _SUMMED[1] + count * parts * rows * columns / _SUMMED[0]
        return -(-depth // parts // tile.depth) * max(-(-blocks // _PROCESSORS) * work, work + _LATENCY) + adding

    fitting = [tile for tile in TILES if np.dtype(dtype).str[1:] in tile.dtypes]
    return min(itertools.product(fitting, _PARTS), key=clocks)


def in_quads(shape: Shape, strides: Shape, axis: int, dtype: Any) -> bool:
    """Do neighbours along an axis (−1, −2, …) come in fours in memory, all of them aligned if the first is?"""
    extents = enumerate(zip(shape, strides, strict=True), -len(shape))
    apart = [stride * dtype.itemsize for d, (n, stride) in extents if d != axis and n > 1]
    whole = strides[axis] == 1 and shape[axis] % QUAD == 0
    return whole and dtype.kind == "f" and not any(step % ALIGNED for step in apart)


def plan(
    kernels: Mapping[Tile, Kernel], rows: int, columns: int, depth: int, count: int, size: int, reach: int, dtype: Any,
    biased: bool, rest: Any,
) -> Plan:  # fmt: skip
    """The launch for `count` products of these sizes, into `size` elements.

    `reach`: elements of the largest operand; `rest`: what the use's functions find in the layout.
    """
    tile, parts = choice(rows, columns, depth, count, dtype)
    if (most := max(rows, columns, depth, parts * size, reach)) >= 1 << 32:
        raise ValueError(f"product on device 'cuda': expected arrays of fewer than 2**32 elements; got {most}")
    blocks = count * parts * -(-rows // tile.rows) * -(-columns // tile.columns)
    width = QUAD * -(-depth // (QUAD * parts))  # no quad is divided; and the sums are the same without them
    head = [rows, columns, depth, width, parts, size, biased]
    layout = constant(np.concatenate([np.array(head, np.uint32), rest]))
    return Plan(kernels[tile], blocks, tile.threads, parts, layout)
