"""Float32 sums: |error| < 1e-6 · Σ|x|, whatever the size, the axes and the layout; and what is made of sums."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import minigrad as mg

LENGTHS = [1, 2, 255, 256, 257, 4095, 4096, 4097, 100_003, 1_000_000, 10_000_000]
DATA = {
    "all 0.1": lambda n: np.full(n, 0.1, np.float32),  # each rounding falls the same way
    "growing": lambda n: np.linspace(0.1, 1, n, dtype=np.float32) ** 2,
    "cancelling": lambda n: np.random.default_rng(n).standard_normal(n, np.float32),
    "one giant": lambda n: np.concatenate([np.float32([1e8]), np.full(n - 1, 0.3, np.float32)]),
}


def error(found: Any, x: Any, dims: Any = None) -> float:
    """The largest |error| over Σ|x|, against sums in float64."""
    exact, size = x.sum(dims, dtype=np.float64), np.abs(x).sum(dims, dtype=np.float64)
    return float(np.max(np.abs(np.asarray(found, np.float64) - exact) / size))


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n", LENGTHS)
def test_long_sums(kind: str, n: int, device: str, most_elements: int) -> None:
    if n > most_elements:
        pytest.skip(f"{n} elements take too long on the simulator")
    x = DATA[kind](n)
    found = mg.tensor(x, device=device).sum().item()
    assert error(found, x) < 1e-6
    if n <= 100_003:
        assert abs(found - math.fsum(x.tolist())) <= 1e-6 * math.fsum(np.abs(x).tolist())


SHAPE = (3, 5, 70, 300)
AXES = [dims for k in range(1, 5) for dims in itertools.combinations(range(4), k)]


@pytest.mark.parametrize("dims", AXES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "reversed", "expanded"])
def test_sums_over_any_dims_of_any_layout(
    dims: tuple[int, ...], layout: str, device: str, most_elements: int
) -> None:
    shape = SHAPE if math.prod(SHAPE) <= most_elements else (3, 2, 7, 30)
    base = np.random.default_rng(0).random(shape, np.float32) + np.float32(0.1)
    x = {
        "contiguous": lambda: base,
        "transposed": lambda: base.transpose(2, 0, 3, 1),
        "strided": lambda: base[:, ::2, 1:, ::3],
        "reversed": lambda: base[::-1, :, ::-1],
        "expanded": lambda: np.broadcast_to(base[:, :1], shape),
    }[layout]()
    whole = mg.tensor(base, device=device)
    t = {
        "contiguous": lambda: whole,
        "transposed": lambda: whole.permute(2, 0, 3, 1),
        "strided": lambda: whole[:, ::2, 1:, ::3],
        "reversed": lambda: whole[::-1, :, ::-1],
        "expanded": lambda: whole[:, :1].expand(*shape),
    }[layout]()
    assert error(t.sum(dims).numpy(), x, dims) < 1e-6
    assert t.sum(dims, keepdim=True).shape == x.sum(dims, keepdims=True).shape


TOLERANCES = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}


def data(dtype: str, most_elements: int) -> Any:
    shape = SHAPE if math.prod(SHAPE) <= most_elements else (3, 2, 7, 30)
    return np.random.default_rng(4).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dims", AXES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_norms_over_any_dims(dims: tuple[int, ...], dtype: str, device: str, most_elements: int) -> None:
    x = data(dtype, most_elements)
    for size in {"float16": (1,), "float32": (1, 1e-37, 1e35), "float64": (1, 1e-300, 1e300)}[dtype]:
        found = mg.tensor(x * x.dtype.type(size), device=device).norm(2, dims)
        exact = np.sqrt(np.square(x.astype(np.float64)).sum(dims))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy() / found.numpy().dtype.type(size), exact, rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("n", [1, 2, 31, 127, 128, 300])
@pytest.mark.parametrize("dtype", [*TOLERANCES, "int64", "bool"])
def test_extremes_of_rows_are_numpys(n: int, dtype: str, device: str, most_elements: int) -> None:
    rng = np.random.default_rng(n)
    x = (10 * rng.standard_normal((min(600, most_elements // n), n))).astype(dtype)
    x[:, 0] = x.dtype.type(1)
    if x.dtype.kind == "f":
        for bad in (np.nan, np.inf, -np.inf):
            x[rng.random(x.shape) < 0.2 / n] = bad
    t = mg.tensor(x, device=device)
    for turned, array in ((t, x), (t.T, x.T), (t[::-2], x[::-2]), (t.reshape(-1, 1, n), x.reshape(-1, 1, n))):
        for keepdim in (False, True):
            for ours, theirs in ((turned.amax, array.max), (turned.amin, array.min)):
                found, exact = ours(-1, keepdim), theirs(-1, keepdims=keepdim)
                assert found.dtype == exact.dtype
                np.testing.assert_array_equal(found.numpy(), exact)


@pytest.mark.parametrize("shape", [(3, 5, 70, 300), (5000, 40), (70_001, 3), (2, 100_001)], ids=str)
@pytest.mark.parametrize("dtype", [*TOLERANCES, "int64", "bool"])
def test_what_is_folded_over_any_dims_is_numpys(
    shape: tuple[int, ...], dtype: str, device: str, most_elements: int
) -> None:
    """Long and narrow arrays are folded in pieces, whose last one is seldom whole."""
    if math.prod(shape) > most_elements:
        shape = tuple(max(1, n % 11) for n in shape)
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    factors = 1 + np.sign(x) / x.dtype.type(1024) if x.dtype.kind == "f" else x  # whose product is not 0, nor infinite
    wrong = x.copy()
    wrong[rng.random(shape) < 1e-4] = x.dtype.type(math.nan if x.dtype.kind == "f" else 1)
    for dims in (dims for k in range(1, x.ndim + 1) for dims in itertools.combinations(range(x.ndim), k)):
        for array in (wrong, wrong[::-1]):
            t = mg.tensor(array, device=device)
            np.testing.assert_array_equal(t.amax(dims).numpy(), array.max(dims))
            np.testing.assert_array_equal(t.amin(dims).numpy(), array.min(dims))
            if len(dims) == 1:
                np.testing.assert_array_equal(t.argmax(dims[0]).numpy(), array.argmax(dims[0]))
                np.testing.assert_array_equal(t.argmin(dims[0]).numpy(), array.argmin(dims[0]))
        exact = factors.astype(np.float64 if x.dtype.kind == "f" else np.int64).prod(dims)
        found = mg.tensor(factors, device=device).prod(dims).numpy()
        np.testing.assert_allclose(found, exact, rtol={**TOLERANCES, "float64": 1e-12}.get(dtype, 0))


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_running_sums_along_any_dim(dim: int, dtype: str, device: str, most_elements: int) -> None:
    x = data(dtype, most_elements)
    for turned in (x, x.transpose(2, 0, 3, 1)[::-1]):
        found, wide = mg.tensor(turned, device=device).cumsum(dim), turned.astype(np.float64)
        assert found.dtype == dtype
        bound = TOLERANCES[dtype] * np.abs(wide).cumsum(dim)
        assert (np.abs(found.numpy() - wide.cumsum(dim)) <= bound).all()


@pytest.mark.parametrize("n", [1, 31, 127, 128, 300])
def test_softmax_of_rows_of_any_length(n: int, device: str, most_elements: int) -> None:
    x = 3 * np.random.default_rng(n).standard_normal((min(600, most_elements // n), n), np.float32)
    t, wide = mg.tensor(x, device=device), x.astype(np.float64)
    logs = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    np.testing.assert_allclose(mg.softmax(t, 1).numpy(), np.exp(logs), rtol=3e-6)
    np.testing.assert_allclose(mg.log_softmax(t, 1).numpy(), logs, rtol=1e-6, atol=3e-6)
    np.testing.assert_allclose(mg.logsumexp(t, 1).numpy(), (wide - logs)[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 300), (2, 40, 129), (3, 130, 2, 8), (2, 3, 15), (0, 3, 20)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_softmax_along_any_dim_and_its_derivatives(shape: tuple[int, ...], dtype: str, device: str) -> None:
    """Along columns, as they lie, and along rows."""
    rng = np.random.default_rng(0)
    x, g = (3 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)
    x[..., 0] = x.dtype.type(math.nan)
    wide, up = x.astype(np.longdouble), g.astype(np.longdouble)
    tolerance = {"float16": 4e-3, "float32": 3e-6, "float64": 1e-13}[dtype]
    for dim in (dim for dim, n in enumerate(shape) if n):
        sums = np.exp(wide).sum(dim, keepdims=True)
        y, logs = np.exp(wide) / sums, wide - np.log(sums)
        slope, slope_of_logs = y * (up - (up * y).sum(dim, keepdims=True)), up - y * up.sum(dim, keepdims=True)
        for f, exact, derivative in ((mg.softmax, y, slope), (mg.log_softmax, logs, slope_of_logs)):
            t = mg.tensor(x, device=device, requires_grad=True)
            found = f(t, dim)
            np.testing.assert_allclose(found.detach().numpy(), exact, tolerance, tolerance)
            (found,) = mg.grad(found, t, mg.tensor(g, device=device))
            np.testing.assert_allclose(found.numpy(), derivative, tolerance, 10 * tolerance)


@pytest.mark.parametrize("n", [300, 70_000, 1_000_000])
def test_what_is_made_of_sums_keeps_their_accuracy(n: int, device: str, most_elements: int) -> None:
    if n > most_elements:
        pytest.skip(f"{n} elements take too long on the simulator")
    x = np.random.default_rng(1).random(n, np.float32) + np.float32(3)
    t, wide = mg.tensor(x, device=device), x.astype(np.float64)
    assert t.mean().item() == pytest.approx(wide.mean(), rel=1e-6)
    assert t.var().item() == pytest.approx(wide.var(ddof=1), rel=1e-5)
    assert t.norm().item() == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    assert error(t.cumsum(0).numpy()[-1], x) < 1e-6
    assert mg.logsumexp(t, 0).item() == pytest.approx(math.log(np.exp(wide).sum()), rel=1e-6)
    assert mg.softmax(t, 0).sum().item() == pytest.approx(1, rel=1e-6)


def test_gradients_of_broadcasting_are_as_accurate(device: str, most_elements: int) -> None:
    """They are sums too: a bias collects one term per row."""
    n = min(100_000, most_elements // 3)
    g = np.random.default_rng(2).standard_normal((n, 3), np.float32)
    bias = mg.zeros(3, device=device, requires_grad=True)
    (found,) = mg.grad(mg.zeros(n, 3, device=device) + bias, bias, mg.tensor(g, device=device))
    assert error(found.numpy(), g, 0) < 1e-6


def test_repeated_indices_add_up_in_a_fixed_order(device: str, most_elements: int) -> None:
    n = min(50_000, most_elements // 10)
    places = mg.tensor(np.random.default_rng(3).integers(0, 7, n), device=device)
    x = mg.ones(7, device=device, requires_grad=True)
    g = mg.rand(n, device=device)
    (a,), (b,) = mg.grad(x[places], x, g), mg.grad(x[places], x, g)
    assert a.numpy().tobytes() == b.numpy().tobytes()
    np.testing.assert_allclose(a.numpy(), np.bincount(places.numpy(), g.numpy().astype(float), 7), rtol=1e-4)
