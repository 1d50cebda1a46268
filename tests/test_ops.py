"""Every op of the table: values, dtypes, layouts, first and second derivatives; and no op is missing from it."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ops_table import TABLE, TORCH, Row, Shapes, inputs

import minigrad as mg

DTYPES = {"float64": 1e-13, "float32": 3e-6, "float16": 6e-3}  # how far from NumPy's float64, relative to the largest
CASES = [pytest.param(row, s, id=f"{row.name}-{i}") for row in TABLE.values() for i, s in enumerate(row.shapes)]
NOT_DIFFERENTIABLE = {
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isfinite", "logical_and", "logical_or", "logical_not",
    "any", "all", "argmax", "argmin",
}  # fmt: skip
NOT_OPS = {
    "operands", "floating", "to_dtype", "unary", "ints_first", "raw_index", "to", "float", "double", "half", "long",
    "gather_checked",
}  # fmt: skip


def upstream(like: Any, seed: int = 1) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(np.shape(like)))


def tensors(arrays: list[Any], device: str, dtype: Any = None) -> list[mg.Tensor]:
    return [mg.tensor(a if dtype is None else a.astype(dtype), device=device, requires_grad=True) for a in arrays]


def gradients(row: Row, arrays: list[Any], u: Any, device: str, **options: Any) -> list[mg.Tensor]:
    xs = tensors(arrays, device)
    g = u if isinstance(u, mg.Tensor) else mg.tensor(u, device=device)
    return list(mg.grad(row.function(mg, *xs), xs, g, **options))


def slope(f: Callable[[float], float], h: float = 1e-3) -> float:
    """f′(0) by central differences of fourth order: the error is h⁴ f⁽⁵⁾/30, and rounding over h."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def close(actual: Any, expected: Any, tolerance: float) -> None:
    scale = np.max(np.abs(expected), initial=1e-300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("row", "shapes"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_numpys_and_the_dtype_stays(row: Row, shapes: Shapes, dtype: str, device: str) -> None:
    arrays = [a.astype(dtype) for a in inputs(row, shapes)]
    xs = tensors(arrays, device)
    y = row.function(mg, *xs)
    expected = row.reference(*(a.astype(np.float64) for a in arrays))
    assert (y.dtype, y.shape) == (np.dtype(dtype), np.shape(expected))
    close(y.detach().numpy(), expected, DTYPES[dtype])
    u = upstream(expected).astype(dtype)
    gs = mg.grad(y, xs, mg.tensor(u, device=device))
    assert [(g.dtype, g.shape) for g in gs] == [(x.dtype, x.shape) for x in xs]
    exact = gradients(row, [a.astype(np.float64) for a in arrays], u.astype(np.float64), device)
    for g, e in zip(gs, exact, strict=True):
        close(g.numpy(), e.numpy(), 10 * DTYPES[dtype])
    for x, a in zip(xs, arrays, strict=True):
        assert x.detach().numpy().tobytes() == a.tobytes(), "an input was modified"


@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_first_derivative_is_the_slope_of_numpys_function(row: Row, shapes: Shapes, device: str) -> None:
    arrays = inputs(row, shapes)
    u = upstream(row.reference(*arrays))
    gs = [g.numpy() for g in gradients(row, arrays, u, device)]
    for i, a in enumerate(arrays):  # each input alone, so that no error hides behind another's slope
        d = upstream(a, seed=2 + i)

        def along(t: float, i: int = i, d: Any = d) -> float:
            return float((u * row.reference(*(x + t * d if j == i else x for j, x in enumerate(arrays)))).sum())

        assert (gs[i] * d).sum() == pytest.approx(slope(along), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_second_derivative_is_the_slope_of_the_first(row: Row, shapes: Shapes, device: str) -> None:
    arrays = inputs(row, shapes)
    u = upstream(row.reference(*arrays))
    weights = [upstream(a, seed=12 + i) for i, a in enumerate(arrays)]

    def first(arrays: list[Any], u: Any) -> float:
        """⟨∂⟨u, f⟩/∂x, weights⟩, a function of the inputs and of u."""
        gs = gradients(row, arrays, u, device)
        return float(sum((g.numpy() * w).sum() for g, w in zip(gs, weights, strict=True)))

    xs, seed = tensors(arrays, device), mg.tensor(u, device=device, requires_grad=True)
    gs = mg.grad(row.function(mg, *xs), xs, seed, create_graph=True)
    total = sum((g * mg.tensor(w, device=device)).sum() for g, w in zip(gs, weights, strict=True))
    second = mg.grad(total, [*xs, seed], allow_unused=True) if total.requires_grad else [None] * (len(xs) + 1)
    for i, (a, h) in enumerate(zip([*arrays, u], second, strict=True)):
        d = upstream(a, seed=22 + i)

        def along(t: float, i: int = i, d: Any = d) -> float:
            moved = [x + t * d if j == i else x for j, x in enumerate([*arrays, u])]
            return first(moved[:-1], moved[-1])

        found = 0.0 if h is None else (h.numpy() * d).sum()
        assert found == pytest.approx(slope(along), rel=1e-8, abs=1e-9), "in the upstream gradient" * (a is u)


def strided(a: Any) -> Any:
    wide = np.zeros([2 * n for n in a.shape])
    view = wide[(..., *[slice(0, None, 2)] * a.ndim)]
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda a: np.array(a.T, order="C").T,
    "strided": strided,
    "negative strides": lambda a: np.asarray(np.flip(np.flip(a).copy())),
    "stride 0": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_layout_of_the_inputs_changes_nothing(row: Row, layout: str, device: str) -> None:
    lying = [LAYOUTS[layout](a) for a in inputs(row, row.shapes[0])]
    upright = [np.ascontiguousarray(a).reshape(a.shape) for a in lying]
    results = []
    for arrays in (lying, upright):
        xs = [mg.from_numpy(a).to(device).requires_grad_() for a in arrays]
        y = row.function(mg, *xs)
        u = LAYOUTS[layout](upstream(y.detach().numpy()))  # the upstream gradient lies in the same manner
        results.append([y.detach(), *mg.grad(y, xs, mg.from_numpy(u).to(device))])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("row", [r for r in TABLE.values() if r.in_torch], ids=lambda row: row.name)
def test_torch_agrees_to_second_order(row: Row, device: str) -> None:
    torch = pytest.importorskip("torch")
    for shapes in row.shapes:
        arrays = inputs(row, shapes)
        u, weights = upstream(row.reference(*arrays)), [upstream(a, seed=3) for a in arrays]
        results = []
        for lib, make in ((mg, functools.partial(mg.tensor, device=device)), (TORCH(), torch.tensor)):
            xs = [make(a, requires_grad=True) for a in arrays]
            y = row.function(lib, *xs)
            grad = mg.grad if lib is mg else torch.autograd.grad
            seed = make(u, requires_grad=True)
            gs = grad(y, xs, seed, create_graph=True)
            total = sum((g * make(w)).sum() for g, w in zip(gs, weights, strict=True))
            second = grad(total, [*xs, seed], allow_unused=True) if total.requires_grad else []
            second = [h for h in second if h is not None and (h != 0).any()]  # None and 0 mean the same
            results.append([r.detach().numpy() for r in (y, *gs, *second)])
        for ours, theirs in zip(*results, strict=True):
            close(ours, theirs, 1e-12)


def test_no_op_is_missing_from_the_table() -> None:
    public = set()
    for module in ("unary", "arithmetic", "comparison", "activation", "reduce", "softmax", "shape", "index", "matmul"):
        for name, thing in vars(importlib.import_module(f"minigrad.ops.{module}")).items():
            if inspect.isfunction(thing) and thing.__module__ == f"minigrad.ops.{module}" and name[0] != "_":
                public.add(name)
    assert public - NOT_DIFFERENTIABLE - NOT_OPS == {name.split()[0] for name in TABLE}


def test_casts_carry_gradients_back_in_the_dtype_of_their_input(device: str) -> None:
    x = mg.tensor([1.0, 2.0], dtype=mg.float64, device=device, requires_grad=True)
    y = x.to(mg.float32) * x.to(mg.float16).to(mg.float32)
    (g,) = mg.grad(y, x, mg.ones_like(y), create_graph=True)
    assert (y.dtype, g.dtype, g.tolist()) == (mg.float32, mg.float64, [2.0, 4.0])
    (h,) = mg.grad(g.sum(), x)
    assert h.tolist() == [2.0, 2.0]
