"""Products of matrices on the micro-kernel: every layout against float64, and nobody else's threads."""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any

import numpy as np
import pytest
from fresh import python
from hypothesis import given, settings, strategies as st

import minigrad as mg

kernel: Any = importlib.import_module("minigrad.kernels.cpu.matmul")
LAYOUTS = {
    "lines": lambda x: x,
    "turned": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    "batches last": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
}


def check(x: Any, y: Any, bias: Any = None, roundings: float | None = None) -> None:
    """Within so many roundings of |x| |y|, or 4 + √k: fewer than a lost term would make."""
    roundings = 4 + x.shape[-1] ** 0.5 if roundings is None else roundings
    made = kernel._product(x, y, bias)
    wide = x.astype(np.float64), y.astype(np.float64)
    expected, bound = wide[0] @ wide[1], np.abs(wide[0]) @ np.abs(wide[1])
    if bias is not None:
        expected, bound = expected + bias, bound + np.abs(bias)
    assert made.dtype == x.dtype and made.shape == expected.shape and made.flags.c_contiguous
    assert (np.abs(made - expected) <= roundings * np.finfo(x.dtype).eps * bound).all()


@pytest.fixture
def every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is small enough for BLAS, or for one thread."""
    monkeypatch.setattr(kernel, "_ALONE", -1)
    monkeypatch.setattr(kernel, "_TOGETHER", -1)


extents = st.integers(1, 20) | st.integers(1, 140)
WIDE = kernel._LAID_OUT + 1  # columns from which the rows of a transposed matrix are laid side by side


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("every_product")
@settings(max_examples=80, deadline=None)
@given(
    m=extents, k=st.integers(1, 600) | st.sampled_from([2048, 2049, 5000]),
    n=extents | st.sampled_from([WIDE - 1, WIDE]),
    batch=st.sampled_from([(), (3,), (2, 3)]),
    own=st.sampled_from(["both", "x", "y", "x first", "y first"]),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
    bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_and_layout(
    dtype: Any, m: int, k: int, n: int, batch: tuple[int, ...], own: str, layouts: Any, bias: bool, seed: int
) -> None:
    """Also batches that only one side has, or of extent 1 on the other, or in turn on either."""
    rng = np.random.default_rng(seed)
    ones, first = tuple(1 for _ in batch[1:]), (*batch[:1], *(1 for _ in batch[1:]))
    x_batch = {"y": ones, "x first": first, "y first": batch[1:]}.get(own, batch)
    y_batch = {"x": ones, "y first": first, "x first": batch[1:]}.get(own, batch)
    x = rng.standard_normal((*x_batch, m, k)).astype(dtype)
    y = rng.standard_normal((*y_batch, k, n)).astype(dtype)
    x, y = (LAYOUTS[how](a) for how, a in zip(layouts, (x, y), strict=True))
    check(x, y, rng.random(n).astype(dtype) if bias else None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=150, deadline=None)
@given(
    extents=st.tuples(st.just(1), st.integers(0, 2) | st.integers(0, 200), st.integers(0, 95) | st.integers(1020, 2100))
    .flatmap(st.permutations),
    layouts=st.tuples(*[st.sampled_from(["lines", "turned", "every other", "backwards"])] * 2),
    bias=st.booleans(), is_writable=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_and_columns(dtype: Any, extents: Any, layouts: Any, bias: bool, is_writable: bool, seed: int) -> None:
    """Products with a vector, outer products, and those of which there is nothing."""
    rng = np.random.default_rng(seed)
    m, k, n = extents
    x, y = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    x, y = (LAYOUTS[how](a) for how, a in zip(layouts, (x, y), strict=True))
    x.flags.writeable = is_writable
    roundings = None  # of float64
    if dtype == np.float32:  # sums are float64's, but that of an outer product and a bias
        roundings = 1.01 if k == 1 and bias else 0.51
    check(x, y, rng.random(n).astype(dtype) if bias else None, roundings)


@pytest.mark.parametrize(
    ("x", "y"),
    [((65, 64), (64, 64)), ((1, 99), (99, 99)), ((5000, 3), (3, 1)), ((1, 9000), (9000, 2)), ((4, 70, 90), (90, 80))],
)
def test_whoever_multiplies(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    """On both sides of what BLAS is given, through the op, with derivatives."""
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64", "float16"):
        a, b = (rng.integers(-3, 4, size=shape).astype(dtype) for shape in (x, y))  # exact in any order
        p, q = mg.tensor(a, requires_grad=True), mg.tensor(b, requires_grad=True)
        made = p @ q
        g = rng.integers(-1, 2, size=made.shape).astype(dtype)
        wide = a.astype(np.float64), b.astype(np.float64), g.astype(np.float64)
        grads = mg.grad(made, [p, q], mg.tensor(g))
        to_b = np.swapaxes(wide[0], -1, -2) @ wide[2]
        expected = wide[0] @ wide[1], wide[2] @ wide[1].T, to_b.reshape(-1, *b.shape).sum(0)
        for ours, theirs in zip((made, *grads), expected, strict=True):
            np.testing.assert_array_equal(ours.detach().numpy(), theirs.astype(dtype))


@pytest.mark.parametrize("size", [5, 70])
@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_whole_numbers(dtype: str, size: int) -> None:
    """They have no BLAS, and no tiles."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-3, 4, size=(2, size, size)).astype(dtype) for _ in range(2))
    made = mg.tensor(x) @ mg.tensor(y).mT, mg.linear(mg.tensor(x), mg.tensor(y[0]), mg.tensor(y[1, 0]))
    for ours, theirs in zip(made, (x @ y.swapaxes(1, 2), x @ y[0].T + y[1, 0]), strict=True):
        assert ours.numpy().dtype == dtype and (ours.numpy() == theirs).all()


@pytest.mark.usefixtures("every_product")
def test_nan_and_infinity_stay_in_their_row_and_column() -> None:
    rng = np.random.default_rng(0)
    for turned, n in itertools.product((False, True), (45, WIDE)):
        x, y = rng.random((37, 70)).astype("f"), rng.random((70, n)).astype("f")
        x[36, 3], y[5, n - 1] = np.nan, np.inf
        x, y = (LAYOUTS["turned"](a) if turned else a for a in (x, y))
        made = kernel._product(x, y)
        assert np.isnan(made[36]).all() and np.isinf(made[:36, n - 1]).all() and np.isfinite(made[:36, : n - 1]).all()


@pytest.mark.usefixtures("every_product")
@pytest.mark.parametrize(("turned", "n"), [(False, 90), (True, 90), (True, WIDE)])
def test_threads_change_no_bit(turned: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y, bias = (rng.standard_normal(shape).astype("f") for shape in ((2, 300, 170), (2, 170, n), (n,)))
    x, y = (LAYOUTS["turned"](a) if turned else a for a in (x, y))
    made = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(kernel, "num_threads", lambda threads=threads: threads)
        made.append(kernel._product(x, y, bias).tobytes())
    assert len(set(made)) == 1


LONG = """
import numpy as np
from minigrad.kernels.cpu import matmul

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

def peak(x, y):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    assert (matmul(x, y) == x.shape[1]).all()
    return (status("VmHWM") - before) / (x.nbytes + y.nbytes)

for turned in (False, True):
    for k in (10**5, 10**6):  # the first loads the kernel
        x, y = np.ones((2, k), "f"), np.ones((k, 3), "f")
        x, y = (np.ascontiguousarray(a.T).T if turned else a for a in (x, y))
        found = peak(x, y)
    print(round(found, 3))
"""


def test_a_long_product_needs_little_memory() -> None:
    """Panels are as wide as a tile: whole ones would be many times as large as what they are made from."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of memory is read from /proc, which this system has not")
    as_it_is, turned = map(float, python(LONG).split())
    assert as_it_is < 0.2
    assert turned < 0.2


ALONE = """
import math, time
import numpy as np
from threadpoolctl import threadpool_info
blas = [x for x in threadpool_info() if x["user_api"] == "blas"]
if not any(x["internal_api"] == "openblas" and x["num_threads"] > 1 for x in blas):
    print("another BLAS, or one thread")
else:
    def others(m, k, n):
        "The share of processor time that other threads take."
        x, y = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        whole, own = time.process_time(), time.thread_time()
        while time.thread_time() < own + 0.3:
            np.matmul(x, y)
        return 1 - (time.thread_time() - own) / (time.process_time() - whole)
    time.sleep(0.2)  # its threads look for work when they begin
    shapes = (64, 64, 64), (2, 2**16, 2), (2, 64, 2048), (1, 95, 96), (95, 96, 1), (1, 9215, 1)
    print(*(f"{others(*s):.2f}" for s in shapes), f"{others(512, 512, 512):.2f}")
"""


def test_small_products_take_one_thread_of_blas() -> None:
    """The sizes that are left to it are those at which it wakes nobody; with larger ones it does."""
    *alone, shared = said = python(ALONE).split()
    if said[0] == "another":
        pytest.skip("NumPy's BLAS is not OpenBLAS, or has one thread: nothing to share")
    assert max(map(float, alone)) < 0.1 < 0.3 < float(shared)
    assert (kernel._ALONE, kernel._ALONE_WITH_VECTOR) == (64**3, 9216)


def test_a_large_product_wakes_no_thread_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = mg.ones(65, 64), mg.ones(64, 64)
    monkeypatch.setattr(np, "matmul", lambda *_: pytest.fail("BLAS was asked"))
    assert (x @ y).tolist() == [[64.0] * 64] * 65
    assert mg.linear(mg.ones(2, 9216), mg.ones(1, 9216), mg.ones(1)).tolist() == [[9217.0]] * 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 1, 5), (3, 4, 1), (1, 4, 5), (90, 70, 80)])
def test_infinity_and_nan_are_values_and_no_warnings(dtype: Any, shape: Any) -> None:
    """For BLAS, plain loops and tiles, beside sums that overflow in this dtype."""
    m, k, n = shape
    x, y, bias = np.ones((m, k), dtype), np.ones((k, n), dtype), np.ones(n, dtype)
    x[0], y[:, -1] = np.finfo(dtype).max, -np.finfo(dtype).max
    x[-1, -1] = np.nan
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64) @ y.astype(np.float64)
        expected = wide.astype(dtype), (wide + 1).astype(dtype)
    for made, wanted in zip((kernel.matmul(x, y), kernel.linear(x, y.T, bias)), expected, strict=True):
        assert made.dtype == dtype
        np.testing.assert_array_equal(np.isnan(made), np.isnan(wanted))
        np.testing.assert_array_equal(np.isposinf(made), np.isposinf(wanted))
        np.testing.assert_array_equal(np.isneginf(made), np.isneginf(wanted))
