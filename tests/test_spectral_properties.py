"""Spectral normalization in training, whatever its settings: Hypothesis, with torch and NumPy as oracles."""

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from naive_spectral import case, matrix, sweeps, trained
from normalized_layers import Holder, holder, parts, step

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.ops.conventions import CONVENTIONS

TOLERANCE = {np.float16: 2e-2, np.float32: 2e-4, np.float64: 1e-10}
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)
seeds = st.integers(0, 2**32 - 1)
orders = st.sampled_from(["uv", "vu"])


def well_posed(w, u, v, dim, n, order):
    """No sweep passes near a vector that M sends to 0, where rounding decides the direction."""
    m = matrix(w, dim)
    for turn in order * n:
        y = m @ v if turn == "u" else m.T @ u
        if np.linalg.norm(y) < 0.05 * np.linalg.norm(m, 2):
            return False
        u, v = (y / np.linalg.norm(y), v) if turn == "u" else (u, y / np.linalg.norm(y))
    return True


def close(got, expected, tolerance, size=1.0):
    np.testing.assert_allclose(
        got.astype(np.float64), expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), size)
    )


@settings(max_examples=150, deadline=None)
@given(
    shape=shapes,
    dim=st.integers(-5, 4),
    n=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
    exponent=st.integers(-6, 12),
    modes=st.lists(st.booleans(), min_size=1, max_size=5),
    seed=seeds,
)
def test_any_weight_trains_as_in_torch(shape, dim, n, dtype, exponent, modes, seed):
    """Any forwards of any modes with one backward, and then a step of training after an update of the weight.

    (From 1e-6 on: where torch's clamp of the raw norms at 1e-12 is no part of the result.)
    """
    torch = pytest.importorskip("torch")
    dim %= len(shape)
    w, u, v, _ = case(shape, dim, seed)
    w *= 10.0**exponent / np.linalg.norm(w)
    assume(len(shape) == 1 or well_posed(w, u, v, dim, n, "uv"))
    w, tolerance = w.astype(dtype), TOLERANCE[dtype]
    mine = holder(w, u, v, dim=dim, n_power_iterations=n)
    theirs = torch.nn.Module()
    theirs.weight = torch.nn.Parameter(torch.tensor(w))
    torch.nn.utils.parametrizations.spectral_norm(theirs, dim=dim, n_power_iterations=n)
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in mine.state_dict().items()}, strict=True)
    rng = np.random.default_rng(seed)
    raw, twin = mine.parametrizations.weight.original, theirs.parametrizations.weight.original
    if not modes[0] and len(shape) > 1:  # W/(uᵀMv) at vectors that no sweep has seen may be anything
        modes = [True, *modes]
    for _ in range(2):
        total, other = 0.0, 0.0
        for training in modes:
            g = rng.standard_normal(shape).astype(dtype)
            a, b = mine.train(training)(), theirs.train(training).weight
            close(a.detach().numpy(), b.detach().numpy(), tolerance)
            total, other = total + (a * mg.tensor(g)).sum(), other + (b * torch.tensor(g)).sum()
        mine.zero_grad(), theirs.zero_grad()
        total.backward(), other.backward()
        close(raw.grad.numpy() * 10.0**exponent, twin.grad.numpy() * 10.0**exponent, tolerance, len(modes))
        for key, value in mine.state_dict().items():
            if key.endswith(("_u", "_v")):
                close(value.numpy(), theirs.state_dict()[key].numpy(), tolerance)
        moved = raw.detach().numpy() * rng.uniform(0.9, 1.1, shape).astype(dtype)
        with mg.no_grad(), torch.no_grad():
            raw.copy_(mg.tensor(moved)), twin.copy_(torch.tensor(moved))


@settings(max_examples=300, deadline=None)
@given(
    shape=shapes,
    dim=st.integers(-5, 4),
    n=st.integers(1, 4),
    order=orders,
    gradient=st.sampled_from(sorted(CONVENTIONS)),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    exponent=st.integers(-25, 25),
    scaled=st.sampled_from([{}, {"factor": 0.3}, {"learnable_scale": True}, {"learnable_scale": True, "factor": 2.0}]),
    seed=seeds,
)
def test_any_convention_trains_as_in_numpy(shape, dim, n, order, gradient, dtype, exponent, scaled, seed):
    """W̄, u, v, ∂L/∂W and ∂L/∂γ over two training steps, from 1e-25 to 1e25 (float16: 1e-3 to 1e2)."""
    dim %= len(shape)
    w, u, v, g = case(shape, dim, seed)
    size = 10.0 ** (max(-3, exponent // 8) if dtype == np.float16 else exponent)
    w = (w * (size / np.linalg.norm(w))).astype(dtype)
    known = w.astype(np.float64)
    assume(len(shape) == 1 or well_posed(known, u, v, dim, n, order))
    values = np.linalg.svd(matrix(known, dim), compute_uv=False)
    assume(gradient != "exact" or len(values) == 1 or values[1] < 0.98 * values[0])
    tolerance = TOLERANCE[dtype] * (10 if gradient == "unrolled" else 1)
    module = holder(w, u, v, dim=dim, n_power_iterations=n, order=order, gradient=gradient, **scaled)
    if scaled.get("learnable_scale"):
        with mg.no_grad():
            gamma = module.parametrizations.weight.state.gamma
            gamma.copy_(mg.tensor(1.5, dtype=gamma.dtype))
    k = scaled.get("factor", 1.0) * (1.5 if "learnable_scale" in scaled else 1.0)
    g = (g / np.linalg.norm(g) / 8).astype(dtype)
    for _ in range(2):
        w_bar, new_u, new_v, grad = trained(gradient, known, u, v, k * g, dim, n, order)
        overflow = np.abs(grad).max() > 3e4 and dtype == np.float16
        assume(not overflow and np.abs(w_bar).max() < 1e3)
        got, *stepped, back = step(module, g)
        close(got, k * w_bar, tolerance)
        for one, other in zip(stepped, (new_u, new_v), strict=len(shape) > 1):
            close(one, other, 1e-9 if dtype == np.float64 else 1e-4)
        unit_of = 1.0 if gradient in ("straight_through", "projected") else np.linalg.norm(known) ** -1
        close(back, grad, tolerance, unit_of)
        raw = module.parametrizations.weight.original.detach().numpy()
        close(raw, w_bar if gradient == "projected" else known, tolerance if gradient == "projected" else 0.0)
        known, (u, v) = raw.astype(np.float64), stepped or (u, v)  # each step on its own, as its start was rounded
        if scaled.get("learnable_scale"):
            assert gamma.grad.item() == pytest.approx((g * w_bar).sum() * k / 1.5, abs=tolerance)
            module.zero_grad()


@settings(max_examples=60, deadline=None)
@given(shape=shapes, dim=st.integers(-5, 4), order=orders, warm=st.integers(0, 5), n=st.integers(1, 3), seed=seeds)
def test_steps_are_counted_whatever_happens_between(shape, dim, order, warm, n, seed):
    """After `warm` sweeps of warm-up and k training forwards u and v are those of warm + n k sweeps."""
    dim %= len(shape)
    w, *_ = case(shape, dim, seed)
    assume(len(shape) > 1)
    options = {"dim": dim, "order": order, "n_power_iterations": n}
    mg.manual_seed(seed)
    start = [x.numpy() for x in parts(spectral_norm(Holder(w), n_init_iterations=0, **options))[1:]]
    mg.manual_seed(seed)
    module = spectral_norm(Holder(w), n_init_iterations=warm, **options)
    rng, k = np.random.default_rng(seed), 0
    for event in rng.integers(0, 5, 6):
        if event == 0:
            module.weight.numel()
        elif event == 1:
            module.eval()()
        elif event == 2:
            module.eval().train()
        else:
            module.train()()
            k += 1
    sweeps_made = warm + n * k
    assume(well_posed(w, *start, dim, max(1, sweeps_made), order))
    if sweeps_made:
        start = sweeps(matrix(w, dim), *start, sweeps_made, order)[:2]
    for got, expected in zip(parts(module)[1:], start, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
