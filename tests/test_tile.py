"""The micro-kernel of products and convolutions against float64 sums, on this processor's vectors and on others'."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from fresh import python
from hypothesis import given, settings, strategies as st
from numba import njit

import minigrad
from minigrad.kernels.cpu import _scratch, _tile


@njit
def tile(*arguments: Any) -> None:
    _tile.tile(*arguments)


@njit
def narrow_tile(*arguments: Any) -> None:
    _tile.narrow_tile(*arguments)


@njit
def turn(*arguments: Any) -> None:
    _tile.turn(*arguments)


DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@DTYPES
@settings(max_examples=30, deadline=None)
@given(depth=st.integers(0, 70), narrow=st.booleans(), add=st.booleans(), seed=st.integers(0, 99))
def test_a_tile(dtype: type, depth: int, narrow: bool, add: bool, seed: int) -> None:
    """Any depth, rows in any place, arrays that begin anywhere, lines of any length around the tile.

    A narrow tile leaves the second vector as it is.
    """
    rng = np.random.default_rng(seed)
    height, width = _tile.shape(8 * dtype().itemsize)
    a = rng.standard_normal(500).astype(dtype)[rng.integers(16) :]
    b, left_of, right_of = rng.standard_normal((depth, width)).astype(dtype), *rng.integers(20, size=2)
    out = rng.standard_normal((height + 2, left_of + width + right_of)).astype(dtype)
    rows, columns = rng.integers(200, size=height), rng.integers(200, size=depth)
    here = slice(1, -1), slice(left_of, left_of + (width // 2 if narrow else width))
    left, expected = a.astype(np.float64)[rows[:, None] + columns], out.astype(np.float64)
    bound = np.abs(expected[here]) + (np.abs(left) @ np.abs(b))[:, : here[1].stop - left_of]
    expected[here] = add * expected[here] + (left @ b)[:, : here[1].stop - left_of]
    (narrow_tile if narrow else tile)(out[1:, left_of:], a, rows, columns, b, add)
    assert (np.abs(out[here] - expected[here]) <= 70 * np.finfo(dtype).eps * bound).all()
    out[here] = expected[here]
    assert (out == expected.astype(dtype)).all()


@DTYPES
def test_the_plain_loops_are_the_definition(dtype: type) -> None:
    rng = np.random.default_rng(0)
    height, width = _tile.shape(8 * dtype().itemsize)
    side = width // 2
    numbers = rng.integers(-4, 5, size=600).astype(dtype)  # sums of whole numbers are exact in any order
    rows, columns, b = rng.integers(200, size=height), rng.integers(200, size=9), numbers[: 9 * width].reshape(9, width)
    for add in (True, False):
        ours, plain = np.ones((2, height, width), dtype)
        tile(ours, numbers, rows, columns, b, add)
        _tile.plain_tile(plain, numbers, rows, columns, b, add)
        assert (ours == plain).all() and np.ptp(plain) > 0
    ours, plain = np.zeros((2, 17 * side), dtype)
    places, starts = rng.permutation(16)[:side] * side + 3, rng.integers(200, size=side)
    turn(ours, places, numbers, starts, side)
    _tile.plain_turn(plain, places, numbers, starts, side)
    assert (ours == plain).all() and np.ptp(plain) > 0


def test_nothing_is_lost_beside_nan_and_infinity() -> None:
    height, width = _tile.shape(32)
    a, b, out = np.ones(height, np.float32), np.ones((1, width), np.float32), np.zeros((height, width), np.float32)
    a[1], b[0, 3] = np.nan, np.inf
    tile(out, a, np.arange(height), np.zeros(1, np.int64), b, True)
    assert np.isnan(out[1]).all() and np.isinf(np.delete(out, 1, 0)[:, 3]).all()
    assert (np.delete(np.delete(out, 1, 0), 3, 1) == 1).all()


MULTIPLY = """
import importlib, os, numpy as np
from minigrad.kernels.cpu import _jit, _tile
_jit.set_num_threads(1)  # half as much to compile; on several, test_variants.py has it, the bits are the same
conv, matmul = (importlib.import_module(f"minigrad.kernels.cpu.{name}") for name in ("conv", "matmul"))
rng = np.random.default_rng(0)
x, w, g = (rng.integers(-4, 5, size=s).astype(np.float32) for s in ((2, 20, 9, 8), (37, 20, 3, 2), (2, 37, 5, 7)))
layout = (2, 1), (1, 0), (1, 1), 1
made = conv.conv(x, w, None, *layout), conv.conv_input_grad(g, w, (9, 8), *layout)
made += (conv.conv_weight_grad(g, x, (3, 2), *layout),)
a, b = (rng.integers(-4, 5, size=s).astype(np.float32) for s in ((75, 301), (301, 45)))
made += tuple(matmul.matmul(p, q) for p in (a, a.T.copy().T) for q in (b, b.T.copy().T))
assert (type(_tile.tile).__name__ == "CPUDispatcher") == (os.environ.get("MINIGRAD_PLAIN_KERNELS") == "1")
print(*_tile.shape(32), *((a * (np.arange(a.size).reshape(a.shape) % 7)).sum() for a in made))
"""
AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+lzcnt"
INTEL = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors by Intel and AMD")


def multiplied(**environment: str) -> tuple[tuple[int, int], list[float]]:
    """The shape of a tile in a process with that environment, and numbers that any tile makes the same."""
    root = os.path.dirname(os.path.dirname(minigrad.__file__))
    env = {**os.environ, "PYTHONPATH": root, **environment}
    done = subprocess.run([sys.executable, "-c", MULTIPLY], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    height, width, *sums = map(float, done.stdout.split())
    return (int(height), int(width)), sums


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return multiplied(MINIGRAD_PLAIN_KERNELS="1")[1]


def test_this_processor(plain: list[float]) -> None:
    assert multiplied() == (_tile.shape(32), plain)


@INTEL
@pytest.mark.parametrize(
    ("name", "features", "shape"), [("haswell", AVX2, (6, 16)), ("x86-64", "+sse,+sse2", (6, 8))]
)
def test_other_processors(name: str, features: str, shape: tuple[int, int], plain: list[float]) -> None:
    """Older ones, whose instructions this one has too."""
    assert multiplied(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features) == (shape, plain)


GUARDED = """
import ctypes, importlib, math, mmap, numpy as np

def guarded(*shape):
    "An array whose last byte is the last of its page; whoever reads on is killed."
    size, page = 4 * math.prod(shape), mmap.PAGESIZE
    pages = mmap.mmap(-1, (-(-size // page) + 1) * page)
    end = len(pages) - page
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages, end))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), page, 0) == 0
    array = np.ndarray(shape, np.float32, pages, end - size)
    array[:] = 1
    return array

conv, matmul = (importlib.import_module(f"minigrad.kernels.cpu.{name}") for name in ("conv", "matmul"))
matmul._ALONE = matmul._TOGETHER = -1
for m, k, n in ((1, 3, 1), (9, 70, 33), (150, 300, 49), (8, 256, 32)):
    for x in (guarded(m, k), guarded(k, m).T):
        for y in (guarded(k, n), guarded(n, k).T):
            assert (matmul._product(x, y, guarded(n)) == k + 1).all()
layout = (2, 1), (1, 0), (1, 1), 1
for c, f in ((3, 5), (20, 37), (16, 32)):
    x, w, g = guarded(2, c, 9, 8), guarded(f, c, 3, 2), guarded(2, f, 5, 7)
    assert conv.conv(x, w, guarded(f), *layout).max() == 6 * c + 1
    assert conv.conv_input_grad(g, w, (9, 8), *layout).max() == 4 * f
    assert conv.conv_weight_grad(g, x, (3, 2), *layout).max() == 70
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page by mprotect")
def test_nothing_is_read_behind_an_array() -> None:
    python(GUARDED)


def test_scratch_memory_is_aligned_apart_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "_buffers", [])
    with _scratch.Scratch(np.float32, (3, 5), (7,), (0, 2)) as arrays:
        assert [a.shape for a in arrays] == [(3, 5), (7,), (0, 2)]
        assert all(a.dtype == np.float32 and a.ctypes.data % 64 == 0 for a in arrays[:2])
        arrays[0][:], arrays[1][:] = 1, 2
        with _scratch.Scratch(np.float64, (30,)) as (other,):
            other[:] = 3
        assert (arrays[0] == 1).all() and (arrays[1] == 2).all()
    kept = {buffer.ctypes.data for buffer in _scratch._buffers}
    with _scratch.Scratch(np.float32, (4,)), _scratch.Scratch(np.float32, (4,)):
        assert len(kept) == 2 and not _scratch._buffers
    assert {buffer.ctypes.data for buffer in _scratch._buffers} == kept


def test_scratch_memory_is_bounded_and_no_two_threads_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "_buffers", [])
    monkeypatch.setattr(_scratch, "_LARGEST", 2**12)
    with _scratch.Scratch(np.float32, (2**12,)):
        pass
    assert not _scratch._buffers, "too large to keep"
    with _scratch.Scratch(np.float32, (1,)), _scratch.Scratch(np.float32, (1,)), _scratch.Scratch(np.float32, (1,)):
        pass
    assert len(_scratch._buffers) == 2, "more than are kept"
    wrong, meet = [], threading.Barrier(8)

    def use(number: int) -> None:
        meet.wait()
        for size in range(200):
            with _scratch.Scratch(np.float32, (size,)) as (x,):
                x[:] = number
                wrong.extend(x[x != number])

    threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(_scratch._buffers) <= 2
