"""Spectral normalization and optimizers on a CUDA device: what the suite of all devices does not ask.

NumPy in float64 is the oracle, at vectors that have not converged and with random upstream gradients. Without a GPU the
tests run on Numba's simulator, in a process of its own.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_process import passed
from naive_spectral import case, matrix, pulled_back, sweeps, unit

import minigrad as mg
from minigrad import optim
from minigrad.device import kernels
from minigrad.nn.functional import spectral_normalize
from minigrad.spectral import power_iteration

CUDA = {"device": "cuda"}
LAYOUTS = [  # on the simulator a block holds rows of up to 12 columns
    ((6, 5), 0), ((7, 11), 0), ((9, 12), 0), ((5, 30), 0), ((23, 13), 0), ((13, 9), 1),
    ((3, 7, 2), 1), ((2, 7, 3, 2), 1), ((4, 5, 3, 3), 1), ((5, 3, 3), 0),
    ((4, 3, 5), -1), ((1, 9), 0), ((9, 1), 0), ((7,), 0),
]  # fmt: skip
EXACT = [(np.float64, 1e-13), (np.float32, 1e-6), (np.float16, 1e-6)]


def test_on_the_simulator(device: str) -> None:
    assert passed([Path(__file__).name], device) > 150


pytestmark = pytest.mark.filterwarnings("error")
on_cuda = pytest.mark.usefixtures("on_cuda")


def swept(w: Any, u: Any, v: Any, *options: Any, **named: Any) -> tuple[Any, Any, Any]:
    new_u, new_v = mg.tensor(u, **CUDA), mg.tensor(v, **CUDA)
    sigma = power_iteration(mg.tensor(w, **CUDA), new_u, new_v, *options, **named)
    return new_u.to("cpu").numpy(), new_v.to("cpu").numpy(), sigma.item()


def normalized(w: Any, u: Any, v: Any, dim: int, g: Any) -> tuple[Any, Any]:
    weight = mg.tensor(w, requires_grad=True, **CUDA)
    w_bar, _ = spectral_normalize(weight, mg.tensor(u, **CUDA), mg.tensor(v, **CUDA), dim)
    (grad,) = mg.grad(w_bar, weight, mg.tensor(g, **CUDA))
    return w_bar.detach().to("cpu").numpy(), grad.to("cpu").numpy()


def close(got: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@on_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), EXACT)
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS)
def test_every_layout_and_order(shape: Any, dim: int, order: str, dtype: Any, tolerance: float) -> None:
    w, u, v, g = case(shape, dim, dtype=dtype)
    got = swept(w, u, v, 2, dim=dim, order=order)
    for one, other in zip(got, sweeps(matrix(w, dim), u, v, 2, order), strict=True):
        close(one, other, tolerance)
    w_bar, grad = normalized(w, *got[:2], dim, g)
    u, v = (x.astype(np.float64) for x in got[:2])
    tolerance = 2e-3 if dtype == np.float16 else 5 * tolerance
    close(w_bar, w.astype(np.float64) / (u @ matrix(w, dim) @ v), tolerance)
    close(grad, pulled_back(g, w, u, v, dim), tolerance)
    assert w_bar.dtype == grad.dtype == dtype


@on_cuda
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize(("shape", "dim"), [((512, 4608), 0), ((128, 512, 4, 4), 1)])
def test_weights_of_networks(shape: Any, dim: int, order: str, most_elements: int) -> None:
    if np.prod(shape) > most_elements:
        pytest.skip("minutes on the simulator; test_cuda_compile.py takes it to PTX")
    test_every_layout_and_order(shape, dim, order, np.float32, 1e-6)


@on_cuda
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize(("dtype", "scale"), [
    (np.float32, 1e-30), (np.float32, 1e30), (np.float64, 1e-200), (np.float64, 1e200),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(9, 11), (9, 30)])
def test_the_smallest_and_largest_weights(shape: Any, dtype: Any, scale: float, order: str) -> None:
    w, u, v, g = case(shape, 0, dtype=dtype)
    scaled = (w.astype(np.float64) * scale).astype(dtype)
    w = scaled.astype(np.float64) / scale
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    got = swept(scaled, u, v, 2, order=order)
    expected = sweeps(w, u, v, 2, order)
    close(got[0], expected[0], tolerance)
    close(got[1], expected[1], tolerance)
    assert got[2] / scale == pytest.approx(expected[2], rel=tolerance)
    w_bar, grad = normalized(scaled, *got[:2], 0, g)
    close(w_bar, w / expected[2], 5 * tolerance)
    close(grad * float(scale), pulled_back(g, w, *expected[:2], 0), 10 * tolerance)


@on_cuda
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("columns", [11, 30])
@pytest.mark.parametrize(("first", "last"), [(-30, 30), (30, -30), (-1, 1), (1, -1)])
def test_rows_of_all_sizes_in_one_weight(columns: int, order: str, first: int, last: int) -> None:
    """The power of two that t is measured by grows as larger rows come in, and is another in every block."""
    w, u, v, _ = case((24, columns), 0)
    w = (w * np.logspace(first, last, 24)[:, None]).astype(np.float32)
    got = swept(w, u.astype(np.float32), v.astype(np.float32), order=order)
    for one, other in zip(got, sweeps(w, u.astype(np.float32), v.astype(np.float32), 1, order), strict=True):
        close(one, other, 1e-6)


@on_cuda
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("columns", [11, 30])
def test_powers_of_two_change_no_bit(columns: int, order: str) -> None:
    w, u, v, g = case((9, columns), 0, dtype=np.float32)
    u_1, v_1, sigma_1 = swept(w, u, v, 2, order=order)
    bar_1, grad_1 = normalized(w, u, v, 0, g)
    for scale in (2.0**-90, 2.0**-13, 2.0**7, 2.0**90):
        new_u, new_v, sigma = swept(w * np.float32(scale), u, v, 2, order=order)
        bar, grad = normalized(w * np.float32(scale), u, v, 0, g)
        assert sigma == sigma_1 * scale
        for one, other in ((new_u, u_1), (new_v, v_1), (bar, bar_1), (grad * np.float32(scale), grad_1)):
            np.testing.assert_array_equal(one, other)


@on_cuda
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("columns", [11, 30])
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_without_a_direction_the_vectors_stay(bad: float, columns: int, order: str) -> None:
    w, u, v, g = case((7, columns), 0, dtype=np.float32)
    w = np.full_like(w, bad) if bad == 0 else w
    w[5, 7] = bad
    new_u, new_v, sigma = swept(w, u, v, 2, order=order)
    assert (new_u == u).all() and (new_v == v).all()
    w_bar, grad = normalized(w, u, v, 0, g)
    if bad == 0:
        assert sigma == 0 and not w_bar.any() and not grad.any()
    else:
        assert not np.isfinite(sigma) and not np.isfinite(w_bar).all() and not np.isfinite(grad).all()


@on_cuda
def test_eps_is_relative_to_sigma() -> None:
    w, v = np.diag([1.0, 0.0]).astype(np.float32), unit(np.array([1e-3, 1.0])).astype(np.float32)
    for c in (1e-30, 1.0, 1e30):
        for eps, length in ((0.0, 1.0), (1e-12, 1.0), (1e-2, 0.1)):
            new_u, _, sigma = swept(np.float32(c) * w, np.float32([1, 0]), v, eps=eps)
            assert new_u[0] == pytest.approx(length, rel=1e-5) and sigma == pytest.approx(c * length, rel=1e-5)


@on_cuda
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize(("shape", "dim"), [((23, 11), 0), ((9, 30), 0), ((3, 7, 2), 1)])
def test_the_same_bits_at_every_run(shape: Any, dim: int, order: str) -> None:
    w, u, v, g = case(shape, dim, dtype=np.float32)
    runs = []
    for value in (np.nan, 1e30):
        mg.full((4096,), value, **CUDA)  # what memory held before
        runs.append([*swept(w, u, v, 2, dim=dim, order=order), *normalized(w, u, v, dim, g)])
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def unread(on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may read nothing from the device."""

    def refused(*_: Any) -> None:
        raise AssertionError("the host reads from the device")

    monkeypatch.setattr(importlib.import_module("minigrad.kernels.cuda.array"), "copy_out", refused)


def names(launched: list[str]) -> list[str]:
    """Of the kernels since the last time."""
    found = ["hold" if "hold" in name else name.split(".")[-1] for name in launched]
    launched.clear()
    return found


@pytest.mark.parametrize(("order", "columns", "sweep"), [
    ("uv", 11, ["hold", "_gather", "_finish"]),
    ("uv", None, ["_times_columns", "_gather", "_times_rows", "_gather", "_finish"]),
    ("vu", 11, ["_times_rows", "_gather", "_times_columns", "_gather", "_finish"]),
])  # fmt: skip
def test_launches_of_a_step(unread: None, launched: list[str], order: str, columns: Any, sweep: list[str]) -> None:
    """Forward: a sweep and one more; backward: two. No result is waited for. None: more columns than a block holds."""
    from minigrad.kernels.cuda import _sweep
    from minigrad.ops.conventions import apply
    from minigrad.ops.spectral import sweep as swept

    if columns is None:
        columns = 1 + max(_sweep._HOLD[np.dtype(np.float32)]) * _sweep.WARP * _sweep._MOST_WARPS
    w, u, v, g = case((8, columns), 0, dtype=np.float32)
    weight, u, v, g = (mg.tensor(x, **CUDA) for x in (w, u, v, g))
    weight.requires_grad_()
    launched.clear()
    new_u, new_v, sigma = swept(weight, u, v, 1, 1e-12, 0, order)
    assert names(launched) == sweep
    w_bar = apply("fixed_uv", weight, new_u, new_v, sigma=sigma)
    assert names(launched) == ["_scaled"]
    mg.grad(w_bar, weight, g)
    assert names(launched) == ["_inner_parts", "_pulled_back"]


@on_cuda
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_spectrum_is_the_hosts(dtype: Any) -> None:
    w, _, _, d = case((4, 3, 2), 1, dtype=dtype)
    here, there = kernels("cpu"), kernels("cuda")
    on_host, factors = here.svd(w, 1), there.svd(there.from_host(w), 1)
    pairs = [
        (on_host, factors),
        ([here.leading_pair(on_host[1], on_host[3], w.shape, 1, w.dtype)],
         [there.leading_pair(factors[1], factors[3], w.shape, 1, w.dtype)]),
        ([here.turned_pair(d, *on_host[1:], 1)], [there.turned_pair(there.from_host(d), *factors[1:], 1)]),
        ([here.singular_values(w, 2, 1)], [there.singular_values(there.from_host(w), 2, 1)]),
        ([here.circular_singular_values(w, 5, (6,), (2,), (1,), 2)],
         [there.circular_singular_values(there.from_host(w), 5, (6,), (2,), (1,), 2)]),
    ]  # fmt: skip
    for one, other in pairs:
        for x, y in zip(one, map(there.to_host, other), strict=True):
            assert x.dtype == y.dtype and x.shape == y.shape
            np.testing.assert_array_equal(x, y)


OPTIMIZERS = {
    "sgd": lambda ps: optim.SGD(ps, lr=0.1, weight_decay=0.1),
    "momentum": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda ps: optim.Adam(ps, lr=0.1, weight_decay=0.1),
    "adamw": lambda ps: optim.AdamW(ps, lr=0.1, betas=(0.5, 0.9)),
    "rmsprop": lambda ps: optim.RMSprop(ps, lr=0.1),
    "rmsprop, centered": lambda ps: optim.RMSprop(ps, lr=0.1, centered=True, eps=1e-3),
    "rmsprop, momentum": lambda ps: optim.RMSprop(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop, all": lambda ps: optim.RMSprop(ps, lr=0.1, momentum=0.9, centered=True, eps=1e-3),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_one_launch_and_the_cpus(
    unread: None, launched: list[str], name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's are torch's (test_optim.py)."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(dtype) for shape in ((5, 7), (3,), (), (2, 0), (9,))]
    here = [mg.tensor(x, requires_grad=True) for x in start]
    there = [mg.tensor(x, requires_grad=True, **CUDA) for x in start]
    both = OPTIMIZERS[name](here), OPTIMIZERS[name](there)
    for _ in range(4):
        for p, q in zip(here, there, strict=True):
            g = rng.standard_normal(p.shape).astype(dtype)
            p.grad, q.grad = mg.tensor(g), mg.tensor(g, **CUDA)
        both[0].step()
        before = len(launched)
        both[1].step()
        assert [name for name in launched[before:] if "fill" not in name] == [launched[-1]]
    monkeypatch.undo()
    tolerance = 20 * np.finfo(dtype).eps  # a GPU fuses a product with its sum
    for p, q in zip(here, there, strict=True):
        np.testing.assert_allclose(q.detach().to("cpu").numpy(), p.detach().numpy(), rtol=tolerance, atol=tolerance)


@on_cuda
def test_steps_by_different_numbers_and_dtypes() -> None:
    """A parameter that joins later counts its own steps; float32 and float64 step side by side."""
    made = []
    for device in ("cpu", "cuda"):
        kinds = (3, mg.float32), (11, mg.float64), (2, mg.float32)
        ps = [mg.ones(n, dtype=dtype, device=device, requires_grad=True) for n, dtype in kinds]
        optimizer = optim.Adam(ps, lr=0.1)
        for step in range(3):
            for i, p in enumerate(ps):
                p.grad = mg.full(p.shape, 0.5 * (i + step), dtype=p.dtype, device=device)
            if step == 0:
                ps[2].grad = None
            optimizer.step()
        made.append([p.tolist() for p in ps])
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
