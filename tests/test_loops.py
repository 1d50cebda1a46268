"""Ufuncs on all threads: bit for bit what NumPy makes, for all that broadcasts, and None for what it alone can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import minigrad as mg
from minigrad.kernels.cpu import _loops, elementwise
from minigrad.kernels.cpu._loops import spread

ARITHMETIC = np.add, np.subtract, np.true_divide, np.maximum, np.power, np.less
FUNCTIONS = np.exp, np.log, np.negative, np.sign, np.tanh, np.sqrt, np.isnan, np.reciprocal
DTYPES = "float16", "float32", "float64"


def numbers(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    """With a few that are no ordinary ones among them."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    x[np.random.default_rng(seed + 1).random(shape) < 0.05] = np.nan
    x[np.random.default_rng(seed + 2).random(shape) < 0.05] = -np.inf
    return x


def same(found: Any, expected: Any) -> None:
    """Bit for bit, whatever the sign of a NaN."""
    assert found is not None and found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    known = ~np.isnan(expected) if expected.dtype.kind == "f" else np.ones(expected.shape, bool)
    assert found[known].tobytes() == expected[known].tobytes()


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with np.errstate(all="ignore"):
        yield


@settings(max_examples=100, deadline=None)
@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=7), st.sampled_from(DTYPES), st.data())
def test_operands_that_broadcast(shapes: Any, dtype: str, data: st.DataObject) -> None:
    ufunc = data.draw(st.sampled_from(ARITHMETIC))
    x, y = (numbers(shape, dtype, i) for i, shape in enumerate(shapes.input_shapes))
    with np.errstate(all="ignore"):
        same(spread(ufunc, x, y), np.asarray(ufunc(x, y)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 200_003])
def test_pieces_of_all_sizes(size: int, dtype: str) -> None:
    x, y = numbers((size,), dtype), numbers((size,), dtype, 7)
    for function in FUNCTIONS:
        same(spread(function, x), function(x))
    for ufunc in ARITHMETIC:
        same(spread(ufunc, x, y), ufunc(x, y))
        for number in (2.5, -3, 1e300):
            same(spread(ufunc, x, number), ufunc(x, number))
            same(spread(ufunc, number, x), ufunc(number, x))


LARGE = (
    ((300, 1000), (1000,)), ((300, 1000), (300, 1)), ((8, 16, 40, 41), (16, 1, 1)), ((3, 1, 50_000), (1, 7, 1)),
    ((70_000, 3), (70_000, 1)), ((2, 100_000), ()), ((4, 1, 6, 1), (5, 1, 3000)),
)  # fmt: skip


@pytest.mark.parametrize("shapes", LARGE, ids=str)
def test_large_operands_on_all_threads(shapes: Any) -> None:
    x, y = (numbers(shape, "float32", i) for i, shape in enumerate(shapes))
    for ufunc in ARITHMETIC:
        same(spread(ufunc, x, y), ufunc(x, y))
        same(spread(ufunc, y, x), ufunc(y, x))


def test_operands_that_share_memory_or_may_not_be_written() -> None:
    column, x = numbers((400, 1), "float32"), numbers((400, 500), "float32", 3)
    wide = np.broadcast_to(column, x.shape)
    same(spread(np.multiply, wide, x), wide * x)
    same(spread(np.multiply, wide, wide), wide * wide)
    same(spread(np.exp, wide), np.exp(wide))
    one = np.broadcast_to(np.float32(3), (5, 60_000))
    same(spread(np.subtract, one, column[:5]), one - column[:5])
    fixed = x.copy()
    fixed.flags.writeable = False
    same(spread(np.add, fixed, fixed), fixed + fixed)
    assert x.flags.writeable  # its own flags are its own


def test_whole_numbers_and_choices() -> None:
    x, y = (np.random.default_rng(i).integers(-9, 9, (300, 1000)) for i in range(2))
    same(spread(np.add, x, y), x + y)
    same(spread(np.less, x, y), x < y)
    same(spread(np.logical_and, x > 0, y > 0), (x > 0) & (y > 0))
    same(spread(np.logical_not, x > 0), ~(x > 0))


def test_what_numpy_alone_can_do() -> None:
    x = numbers((40, 50), "float32")
    assert spread(np.add, x, x.astype(np.float64)) is None  # converts
    assert spread(np.add, np.arange(3), 1) is None and spread(np.logical_and, True, x > 0) is None
    assert spread(np.multiply, x, np.float64(2)) is None  # converts, which 2.0 does not
    assert spread(np.exp, np.arange(3)) is None  # so does this: float64
    assert spread(np.add, x, x[:, ::-1]) is None  # scattered
    assert spread(np.add, x.T, x.T) is None
    assert spread(np.add, x[:0], x[:0]) is None
    many = numbers((2,) * 10, "float32")
    alternating = many[(slice(None), slice(1)) * 5]
    assert spread(np.add, many, np.ascontiguousarray(alternating)) is None  # ten dimensions that do not merge


def test_a_table_of_loops_that_is_not_understood_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another NumPy may keep it elsewhere: what is read there must fit what NumPy says."""

    there = _loops._UFunc

    class Elsewhere:
        @staticmethod
        def from_address(address: int) -> Any:
            return there.from_address(address + 4)

    monkeypatch.setattr(_loops, "_UFunc", Elsewhere)
    assert _loops._loop.__wrapped__(np.add, np.dtype("float32")) is None
    assert "on one thread" in _loops.ways()


def test_ops_on_large_tensors_run_on_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def heard(ufunc: Any, *operands: Any) -> Any:
        seen.append(ufunc)
        return spread(ufunc, *operands)

    monkeypatch.setattr(elementwise, "spread", heard)
    x, small = mg.randn(512, 512, requires_grad=True), mg.randn(8, 8, requires_grad=True)
    ((x * 2 + x).exp() - x[:1]).backward(mg.ones(512, 512))
    assert {np.multiply, np.add, np.exp, np.subtract, np.negative} <= set(seen)
    seen.clear()
    ((small * 2 + small).exp() - small[:1]).backward(mg.ones(8, 8))
    assert not seen


def test_captured_steps_apply_them_without_python() -> None:
    """Whatever the size."""
    b = mg.ones(4, 1)
    step = mg.capture(lambda x: (((2 - x) * b).exp() < 3).float())
    for _ in range(3):
        x = mg.randn(4, 5)
        expected = (np.exp((2 - x.numpy()) * b.numpy()) < 3)
        np.testing.assert_allclose(step(x).numpy(), expected, rtol=1e-6)
    lines = [line.strip() for line in str(step).splitlines()]
    assert [line for line in lines if line.startswith("v")] == ["v4[...] = cast(v3, float32)"]
    assert len(_loops._apply.serial.overloads) == 1  # the arrays of a replay have the types of the first launch's
