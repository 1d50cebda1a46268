"""Which products on CUDA load four neighbours at once, and that all are right; the oracle is NumPy's float64."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numba
import numpy as np
import pytest
from test_conv import data
from test_device_products import TURNS, check_convolution, check_product, force, moved, same, values

import minigrad as mg
from minigrad.ops import conv as ops

pytestmark = pytest.mark.usefixtures("on_cuda")


def floats(tile: Any) -> Any:
    """The dtypes of its kernels; the simulator is slow, and has one code for both."""
    return tile.floats[:1] if numba.config.ENABLE_CUDASIM else tile.floats


def products(launched: list[str]) -> list[str]:
    """The kernels of products that were launched since the last time."""
    found = [name.removeprefix("gemm.tiled.product.") for name in launched if ".product." in name]
    launched.clear()
    return found


@pytest.fixture
def gemm() -> Any:
    return importlib.import_module("minigrad.kernels.cuda.gemm")


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("number", range(3))
def test_every_tile_of_every_kernel(number: int, parts: int, gemm: Any, launched: list[str], monkeypatch: Any) -> None:
    """Inner tiles and ragged ones in all directions, several steps along k, and parts of k of which two are empty."""
    tile = gemm.TILES[number]
    force(monkeypatch, gemm, tile, parts)
    m, n = 2 * tile.rows + 4, 2 * tile.columns + 4
    for (x, turn_x), (y, turn_y) in itertools.product(enumerate(TURNS), enumerate(TURNS)):
        for dtype, k in itertools.product(floats(tile), (4, 3 * tile.depth + 4)):
            hosts = turn_x(values(m, k)), turn_y(values(k, n, seed=1))
            check_product(*hosts, "cuda", (turn_x, turn_y), np.dtype(dtype).name)
            along = ".x" * (not x) + ".y" * y
            assert products(launched) == [f"matmul.{tile.rows}x{tile.columns}{along}.quads"]


VIEWS = {  # shapes of x and y, a view of each, and the dtypes that go in quads
    "matrices": ((5, 8), (8, 12), same, same, "float32 float64"),
    "k no multiple of four": ((4, 6), (6, 8), same, same, ""),
    "and neighbours along it in neither": ((6, 4), (6, 8), lambda x: x.T, same, "float32 float64"),
    "columns no multiple of four": ((4, 8), (8, 6), same, same, ""),
    "rows no multiple of four": ((8, 6), (8, 4), lambda x: x.T, same, ""),
    "a row": ((1, 8), (8, 12), same, same, "float32 float64"),
    "a column": ((5, 8), (8, 1), same, same, "float32 float64"),
    "from row one on": ((6, 8), (8, 12), lambda x: x[1:], same, "float32 float64"),
    "from column one on": ((5, 9), (8, 12), lambda x: x[:, 1:], same, ""),
    "from column four on": ((5, 12), (8, 12), lambda x: x[:, 4:], same, "float32 float64"),
    "from columns one and three on": ((5, 16), (8, 20), lambda x: x[:, 1:9], lambda y: y[:, 3:15], ""),
    "from an even place on": ((5, 16), (8, 16), lambda x: x[:, 2:10], lambda y: y[:, 2:14], "float64"),
    "rows an odd number apart": ((5, 9), (8, 12), lambda x: x[:, :8], same, ""),
    "rows an even number apart": ((5, 10), (8, 14), lambda x: x[:, :8], lambda y: y[:, :12], "float64"),
    "parts of larger ones": ((5, 12), (8, 16), lambda x: x[:, :8], lambda y: y[:, :8], "float32 float64"),
    "ragged parts of larger ones": ((5, 8), (7, 16), lambda x: x[:, :7], lambda y: y[:, :8], ""),
    "every second element": ((5, 16), (8, 12), lambda x: x[:, ::2], same, ""),
    "every second row": ((10, 8), (16, 12), lambda x: x[::2], lambda y: y[::2], "float32 float64"),
    "batches": ((3, 5, 8), (3, 8, 4), same, same, "float32 float64"),
    "batches that broadcast": ((4, 1, 3, 8), (2, 8, 4), same, same, "float32 float64"),
    "a batch that is turned": ((5, 3, 8), (8, 4), lambda x: moved(x, 1, 0, 2), same, "float32 float64"),
    "a batch an odd number apart": ((5, 4, 9), (8, 4), lambda x: moved(x, 1, 0, 2)[:, :, :8], same, ""),
    "a batch an even number apart": ((5, 4, 10), (8, 4), lambda x: moved(x, 1, 0, 2)[:, :, :8], same, "float64"),
}


@pytest.mark.parametrize("case", VIEWS.values(), ids=VIEWS.keys())
def test_only_what_is_aligned_goes_in_quads(case: Any, launched: list[str]) -> None:
    """x y, and its transpose as a product, so that either operand is on either side."""
    *shapes, left, right, quads = case
    turned = [lambda a: right(a).mT, lambda a: left(a).mT]
    for dtype in ("float32", "float64"):
        for views, order in (((left, right), shapes), (turned, shapes[::-1])):
            check_product(*(values(*shape, seed=len(shape)) for shape in order), "cuda", views, dtype)
            (name,) = products(launched)
            assert name.endswith(".quads") == (dtype in quads), (name, dtype)


def test_integers_go_one_by_one_and_float16_as_float32(launched: list[str]) -> None:
    for dtype, quads in (("int64", False), ("bool", False), ("float16", True)):
        check_product(values(4, 8), values(8, 4, seed=1), "cuda", (same, same), dtype)
        (name,) = products(launched)
        assert name.endswith(".quads") == quads


def test_an_address_is_asked_for_at_every_launch(launched: list[str]) -> None:
    """Products of the same shapes and strides, whose operands begin elsewhere."""
    x, y = values(8 * 8 + 4), values(8 * 8 + 4, seed=1)
    tx, ty = mg.tensor(x, device="cuda"), mg.tensor(y, device="cuda")
    for i, j in ((0, 0), (1, 0), (0, 0), (2, 4), (0, 3), (4, 2)):
        a, b = (z[at : at + 64].reshape(8, 8) for z, at in ((tx, i), (ty, j)))
        expected = x[i : i + 64].reshape(8, 8) @ y[j : j + 64].reshape(8, 8)
        np.testing.assert_allclose((a @ b).numpy(), expected, rtol=0, atol=1e-12)
        (name,) = products(launched)
        assert name.endswith(".quads") == (i % 2 == j % 2 == 0)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_numbers_are_the_same_to_the_bit(parts: int, gemm: Any, launched: list[str], monkeypatch: Any) -> None:
    force(monkeypatch, gemm, gemm.TILES[1], parts)
    for m, k in ((12, 28), (5, 8)):
        x, y = (mg.tensor(values(*shape), dtype=mg.float32, device="cuda") for shape in ((m, k + 1), (k, 9)))
        found = x[:, 1:] @ y[:, 1:]
        again = x[:, 1:].clone() @ y[:, 1:].clone()
        assert [".quads" in name for name in products(launched)] == [False, True]
        assert found.numpy().tobytes() == again.numpy().tobytes()


def test_memory_that_ends_with_the_operands(gemm: Any, launched: list[str], monkeypatch: Any) -> None:
    """Tiles that go beyond rows and columns read nothing there."""
    force(monkeypatch, gemm, gemm.TILES[0], 1)
    for turn_x, turn_y in itertools.product(TURNS, TURNS):
        hosts = turn_x(values(12, 32)), turn_y(values(32, 12, seed=1))
        for host in hosts:
            x = mg.tensor(host, dtype=mg.float32, device="cuda")
            assert x.data.buffer.block.size == 4 * host.size
        check_product(*hosts, "cuda", (turn_x, turn_y), "float32")
    assert [".quads" in name for name in products(launched)] == [True] * 4


# Convolutions, whose filters and whose output's gradient are matrices ------------------------------------------------

CONVOLUTIONS = {  # and whether forward and weight gradient go in quads
    "both": (((4, 5), (2, 2), (1, 1), (1, 0), (1, 1), 1, 3, 3), True, True),
    "the weight gradient": (((4, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1, 3, 3), False, True),
    "forward": (((4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1, 5, 3), True, False),
    "both, in groups": (((4,), (2,), (1,), (1,), (2,), 2, 6, 4), True, True),
    "both, with strides": (((7, 8), (2, 2), (2, 2), (0, 0), (1, 1), 1, 9, 2), True, True),
    "neither": (((5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1, 2, 3), False, False),
}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolutions(case: Any, number: int, gemm: Any, launched: list[str], monkeypatch: Any) -> None:
    sizes, forward, weights = case
    tile = gemm.TILES[number]
    force(monkeypatch, gemm, tile, 1 + number)
    for dtype in floats(tile):
        check_convolution(sizes, "cuda", np.dtype(dtype).name)
        found = {name: ".quads" in name for name in products(launched)}
        plain, of_weights = f"conv.{tile.rows}x{tile.columns}", f"conv_weight_grad.{tile.rows}x{tile.columns}"
        expected = {plain: False} | ({plain + ".quads": True} if forward else {})  # the input gradient has gaps
        assert found == expected | {of_weights + ".quads" * weights: weights}


def test_a_convolution_of_filters_that_begin_anywhere(launched: list[str]) -> None:
    x, w, *_, layout = data(*CONVOLUTIONS["forward"][0])
    tx, wide = mg.tensor(x, device="cuda"), mg.tensor(np.append(0, w), device="cuda")
    aligned = ops._conv(tx, wide[1:].clone().reshape(w.shape), None, layout=layout)
    found = ops._conv(tx, wide[1:].reshape(w.shape), None, layout=layout)
    assert [".quads" in name for name in products(launched)] == [True, False]
    assert found.numpy().tobytes() == aligned.numpy().tobytes()


# What the simulator tells, and a GPU would not survive ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_quad_that_is_not_aligned_or_ends_beyond_the_array_is_an_error(dtype: Any) -> None:
    compiler = importlib.import_module("minigrad.kernels.cuda._numba")
    if not compiler.SIMULATED:
        pytest.skip("a GPU would fault")
    x = np.arange(130, dtype=dtype)
    flat = mg.tensor(x, device="cuda").data.flat[:130]
    for at in range(130):
        if at * x.itemsize % 16 == 0 and at + 4 <= 130:
            found = compiler.quad(flat, at)
            assert found == tuple(x[at : at + 4])
            x[at : at + 4] = found[::-1]
            compiler.set_quad(flat, at, found[::-1])
        else:
            with pytest.raises(IndexError, match="beyond the array, or not aligned"):
                compiler.quad(flat, at)
            with pytest.raises(IndexError, match="beyond the array, or not aligned"):
                compiler.set_quad(flat, at, (0, 0, 0, 0))
    assert (flat.copy_to_host() == x).all()
