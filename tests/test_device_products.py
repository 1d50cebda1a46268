"""Matrix products and convolutions on a device, beside the op table; NumPy float64 and plain loops are the oracles."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from test_conv import CASES, data, loops

import minigrad as mg
from minigrad.ops import conv as ops

RNG = np.random.default_rng
TOLERANCES = {"float64": 1e-13, "float32": 2e-6, "float16": 2e-3, "int64": 0, "bool": 0}  # of Σ|x||y|, at its largest
CONVOLUTIONS = [case for name, case in CASES.items() if "more channels" not in name]
CONVOLUTIONS += [
    ((9,), (2,), (4,), (3,), (3,), 1, 3, 2),  # more padding than filter, a stride that skips taps
    ((5, 4), (1, 1), (2, 3), (0, 0), (1, 1), 1, 5, 6),
    ((9, 10), (1, 1), (5, 7), (0, 0), (1, 1), 1, 2, 2),  # the last pixels met lie far from the border
    ((2, 3, 2, 3), (2, 1, 2, 2), (1, 2, 1, 2), (1, 0, 0, 1), (1, 1, 1, 2), 2, 4, 2),  # four dimensions
]


def close(found: Any, expected: Any, scale: Any, dtype: str) -> None:
    assert found.dtype == np.dtype(dtype) and found.shape == np.shape(expected)
    tolerance = TOLERANCES[dtype] * max(1, np.max(scale, initial=0))
    np.testing.assert_allclose(found.detach().numpy().astype(float), expected, rtol=0, atol=tolerance)


def check_product(x: Any, y: Any, device: str, views: Any, dtype: str) -> None:
    """views[0](x) @ views[1](y), where a view is one of NumPy arrays and of tensors."""
    hosts = [a.astype(dtype) for a in (x, y)]
    found = mg.matmul(*(view(mg.tensor(a, device=device)) for view, a in zip(views, hosts, strict=True)))
    wide = [view(a).astype(float) for view, a in zip(views, hosts, strict=True)]
    expected = np.matmul(*wide)
    close(found, expected > 0 if dtype == "bool" else expected, np.matmul(*map(np.abs, wide)), dtype)


def same(x: Any) -> Any:
    return x


def flip(x: Any, dim: int) -> Any:
    return np.flip(x, dim) if isinstance(x, np.ndarray) else x.flip(dim)


def moved(x: Any, *dims: int) -> Any:
    return x.transpose(dims) if isinstance(x, np.ndarray) else x.permute(*dims)


def wide(x: Any, *shape: int) -> Any:
    return np.broadcast_to(x, shape) if isinstance(x, np.ndarray) else x.expand(*shape)


def values(*shape: int, seed: int = 0, scale: float = 3) -> Any:
    return RNG(seed).standard_normal(shape) * scale


# Matrix products -----------------------------------------------------------------------------------------------------

TURNS = [lambda a: a, lambda a: a.T]


@pytest.fixture
def engine(device: str) -> Any:
    if device == "cpu":
        pytest.skip("the CPU's products have no tiles")
    yield (gemm := importlib.import_module("minigrad.kernels.cuda.gemm"))
    clear(gemm)


def clear(gemm: Any) -> None:
    for name in ("matmul", "conv"):
        importlib.import_module(f"minigrad.kernels.cuda.{name}")._plan.cache_clear()


def force(monkeypatch: Any, gemm: Any, tile: Any, parts: int) -> None:
    clear(gemm)
    monkeypatch.setattr(gemm, "choice", lambda *sizes: (tile, parts))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("number", range(3))
def test_every_tile_of_every_kernel(number: int, parts: int, device: str, engine: Any, monkeypatch: Any) -> None:
    """Inner tiles and ragged ones in all directions, several steps along k, and parts of k of which one is empty."""
    tile = engine.TILES[number]
    force(monkeypatch, engine, tile, parts)
    m, n = 2 * tile.rows + 1, 2 * tile.columns + 1
    turns = TURNS if parts == 1 else TURNS[1:]  # to share k is the same for all
    for turn_x in turns:
        for turn_y in turns:
            for dtype in tile.dtypes:
                whole = {tile.depth} if turn_x is turn_y else set()  # steps that fill a tile; the simulator is slow
                for k in {1, 3 * tile.depth + 1} | whole:
                    x, y = turn_x(values(m, k)), turn_y(values(k, n, seed=1))
                    check_product(x, y, device, (turn_x, turn_y), np.dtype(dtype).name)
    for case in CONVOLUTIONS if parts == 1 else CONVOLUTIONS[::3]:
        for dtype in tile.floats:
            check_convolution(case, device, np.dtype(dtype).name)


LAYOUTS = {  # shapes of x and y, and a view of each
    "parts": ((9, 14), (9, 10), lambda x: x[2:, ::3], lambda y: y[1:6, 3:]),
    "backwards": ((7, 5), (5, 6), lambda x: flip(x, 0), lambda y: flip(y, 1)),
    "turned batches": ((4, 3, 5), (5, 2, 3), lambda x: moved(x, 1, 0, 2), lambda y: moved(y, 2, 0, 1)),
    "batches that broadcast": ((4, 1, 3, 5), (2, 5, 6), same, same),
    "one matrix for all": ((2, 3, 4, 5), (5, 6), same, same),
    "one matrix for all, turned": ((4, 3, 5), (6, 5), lambda x: moved(x, 1, 0, 2), lambda y: y.T),
    "all of one element": ((1, 1), (5, 6), lambda x: wide(x, 3, 5), same),
    "one row for all": ((1, 5), (2, 5, 1), lambda x: wide(x, 3, 5), lambda y: wide(y, 2, 5, 4)),
    "a row": ((1, 40), (40, 9), same, same),
    "a column": ((9, 40), (40, 1), same, same),
    "an outer product": ((9, 1), (1, 7), same, same),
    "no rows": ((0, 5), (5, 6), same, same),
    "no columns in no batch": ((0, 3, 5), (5, 0), same, same),
    "nothing to add": ((2, 3, 0), (0, 6), same, same),
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_matmul_of_any_layout(case: Any, dtype: str, device: str) -> None:
    x, y, *views = case
    check_product(values(*x), values(*y, seed=1), device, views, dtype)


def test_linear_adds_a_bias_of_any_layout(device: str) -> None:
    x, w, b = values(2, 3, 40), values(40, 5, seed=1), values(10, seed=2)
    for dtype in ("float16", "float32", "float64"):
        x, w, b = (a.astype(dtype) for a in (x, w, b))
        found = mg.linear(mg.tensor(x, device=device), mg.tensor(w, device=device).T, mg.tensor(b, device=device)[::2])
        far = [a.astype(float) for a in (x, w, b[::2])]
        close(found, far[0] @ far[1] + far[2], np.abs(far[0]) @ np.abs(far[1]) + np.abs(far[2]), dtype)
    assert mg.linear(mg.zeros(0, 3, device=device), mg.ones(2, 3, device=device)).shape == (0, 2)
    empty = mg.linear(mg.zeros(2, 0, device=device), mg.ones(2, 0, device=device), mg.tensor([1.0, 2.0], device=device))
    assert empty.tolist() == [[1, 2], [1, 2]]


def test_what_lies_beyond_an_edge_has_no_say(device: str) -> None:
    """Memory after a matrix holds NaN, and an operand's infinities meet no zeros but its own."""
    x, y = mg.full((9, 9), np.nan, device=device), mg.full((9, 9), np.nan, device=device)
    x[:5, :3], y[:3, :4] = 1.0, 2.0
    assert (x[:5, :3] @ y[:3, :4]).tolist() == [[6] * 4] * 5
    x[0, 0] = np.inf
    found = (x[:5, :3] @ y[:3, :4]).numpy()
    assert np.isinf(found[0]).all() and (found[1:] == 6).all()


# Convolutions --------------------------------------------------------------------------------------------------------


def check_convolution(case: Any, device: str, dtype: str) -> None:
    x, w, b, g, layout = data(*case)
    x, w, b, g = (a.astype(dtype).astype(float) for a in (x, w, b, g))
    expected, scales = loops(x, w, g, *layout), loops(*map(np.abs, (x, w, g)), *layout)
    tx, tw, tb, tg = (mg.tensor(a.astype(dtype), device=device) for a in (x, w, b, g))
    found = (
        ops._conv(tx, tw, None, layout=layout),
        ops._conv_input_grad(tg, tw, input_shape=x.shape[2:], layout=layout),
        ops._conv_weight_grad(tg, tx, kernel_shape=w.shape[2:], layout=layout),
    )
    for ours, wanted, scale in zip(found, expected, scales, strict=True):
        close(ours, wanted, scale, dtype)
    column = b.reshape(-1, *(1,) * (x.ndim - 2))
    close(ops._conv(tx, tw, tb, layout=layout), expected[0] + column, scales[0] + np.abs(column), dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_against_loops(case: Any, dtype: str, device: str) -> None:
    check_convolution(case, device, dtype)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_derivatives_of_convolutions_against_loops(case: Any, device: str) -> None:
    """With L = ⟨g, x ⋆ w⟩, also ∂⟨∂L/∂w, r⟩/∂(x, g): the same sums with r in the place of w."""
    x, w, b, g, layout = data(*case)
    r = values(*w.shape, seed=1)
    expected, with_r = loops(x, w, g, *layout), loops(x, r, g, *layout)
    tx, tw, tb, tg = (mg.tensor(a, device=device, requires_grad=True) for a in (x, w, b, g))
    first = mg.grad((ops._conv(tx, tw, tb, layout=layout) * tg).sum(), (tx, tw, tb), create_graph=True)
    for ours, wanted in zip(first, (*expected[1:], g.sum((0, *range(2, g.ndim)))), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), wanted, rtol=1e-12, atol=1e-12)
    second_x, second_g = mg.grad((first[1] * mg.tensor(r, device=device)).sum(), (tx, tg))
    np.testing.assert_allclose(second_x.numpy(), with_r[1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(second_g.numpy(), with_r[0], rtol=1e-12, atol=1e-12)


def test_convolutions_of_views_and_of_no_images(device: str) -> None:
    x, w, _, g, layout = data(*CONVOLUTIONS[1])
    out, gx, gw = loops(x, w, g, *layout)
    tx, tw, tg = (mg.tensor(np.moveaxis(a, 1, -1), device=device).permute(0, 3, 1, 2) for a in (x, w, g))
    np.testing.assert_allclose(ops._conv(tx, tw, None, layout=layout).numpy(), out, atol=1e-12)
    adjoint = ops._conv_input_grad(tg, tw, input_shape=x.shape[2:], layout=layout)
    np.testing.assert_allclose(adjoint.numpy(), gx, atol=1e-12)
    adjoint = ops._conv_weight_grad(tg, tx, kernel_shape=w.shape[2:], layout=layout)
    np.testing.assert_allclose(adjoint.numpy(), gw, atol=1e-12)
    nothing = mg.zeros(0, *x.shape[1:], device=device, requires_grad=True)
    weight = mg.tensor(w, dtype=mg.float32, device=device, requires_grad=True)
    made = ops._conv(nothing, weight, None, layout=layout)
    made.sum().backward()
    assert made.shape == (0, *out.shape[1:]) and not weight.grad.numpy().any() and nothing.grad.shape == nothing.shape


def test_the_border_is_zero_and_only_the_border(device: str) -> None:
    x = np.ones((1, 1, 5, 5), np.float32)
    x[0, 0, 0, 0], x[0, 0, 4, 4] = np.nan, np.inf
    out = mg.conv2d(mg.tensor(x, device=device), mg.ones(1, 1, 3, 3, device=device), padding=2).numpy()[0, 0]
    assert np.isnan(out[:3, :3]).all() and np.isinf(out[4:, 4:]).all()
    assert np.isfinite(out).sum() == 49 - 18 and out[0, 6] == 1 and out[3, 3] == 9


def test_an_image_too_large_to_number_is_refused(engine: Any) -> None:
    fields = importlib.import_module("minigrad.kernels.cuda.conv")._fields
    forward = importlib.import_module("minigrad.kernels.cuda.conv")._forward

    def pixels(*extents: int) -> Any:
        return [forward(n, n, 3, 1, 1, 1) for n in extents]

    units, zero, _ = fields(pixels(500, 250, 250), (500, 250, 250))
    assert zero < 1 << 32 and units == sorted(units)
    with pytest.raises(ValueError, match=r"extents \(70000, 70000\), padded, have too many pixels"):
        fields(pixels(70000, 70000), (70000, 70000))


# Both ----------------------------------------------------------------------------------------------------------------


def test_products_give_the_same_bits_every_time(device: str) -> None:
    x, w, _, g, layout = data((5, 6), (3, 3), (1, 1), (1, 1), (1, 1), 1, 3, 2)
    tx, tw, tg = (mg.tensor(a.astype(np.float32), device=device) for a in (x, w, g))
    for product in (
        lambda: tx.reshape(-1, 6) @ tx.reshape(-1, 6).T,
        lambda: tx.reshape(-1, 6).T @ tx.reshape(-1, 6),
        lambda: ops._conv(tx, tw, None, layout=layout),
        lambda: ops._conv_input_grad(tg, tw, input_shape=x.shape[2:], layout=layout),
        lambda: ops._conv_weight_grad(tg, tx, kernel_shape=w.shape[2:], layout=layout),
    ):
        assert product().numpy().tobytes() == product().numpy().tobytes()


def test_long_sums_are_shared_by_blocks(engine: Any) -> None:
    """A tall weight gradient, of few tiles, is divided; a large product has the largest tiles and is not."""
    big, *_, small = engine.TILES
    assert engine.choice(8192, 8192, 8192, 1, np.float32) == (big, 1)
    _, parts = engine.choice(64, 27, 65536, 1, np.float32)
    assert parts > 1
    assert engine.choice(2, 2, 2, 1, np.int64) == (small, 1)
    assert "f8" in engine.choice(8192, 8192, 8192, 1, np.float64)[0].dtypes
