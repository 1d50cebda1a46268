"""The mathematics of `minigrad study` against known values: oracles, convergence, second derivatives."""

import math

import numpy as np
import pytest

import minigrad as mg
from minigrad._differences import derivative
from minigrad.ops import conventions
from minigrad.spectral.oracles import ORACLES, sweep, unit
from minigrad.spectral.study import convergence, opening, second_order
from minigrad.spectral.study.end_to_end import Around
from minigrad.spectral.study.report import sentence
from minigrad.spectral.study.verdict import judge


def problem(seed=0, shape=(5, 8)):
    rng = np.random.default_rng(seed)
    weight, upstream = rng.standard_normal((2, *shape))
    u, v = sweep(weight, unit(rng.standard_normal(shape[1])))
    return weight, upstream, u, v


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("shape", [(5, 8), (8, 3), (1, 6), (6, 1)])
def test_an_oracles_closed_form_is_the_derivative_of_its_function(name, sweeps, shape):
    weight, upstream, u, v = problem(shape=shape)
    oracle = ORACLES[name]
    gradient = oracle.gradient(upstream, weight, u, v, sweeps)
    for direction in np.random.default_rng(1).standard_normal((5, *shape)):
        numeric = derivative(
            lambda t, d=direction: np.vdot(upstream, oracle.normalize(weight + t * d, u, v, sweeps)), 0.05
        )
        assert abs(np.vdot(gradient, direction) - numeric.value) <= max(1e-9, 10 * numeric.error)


def test_the_oracles_agree_at_convergence_and_nowhere_before():
    weight, upstream, u, v = problem()
    apart = [_distance(weight, upstream, u, v)]
    for _ in range(400):
        u, v = sweep(weight, v)
    apart.append(_distance(weight, upstream, u, v))
    assert apart[0] > 0.05
    assert apart[1] < 1e-12


def _distance(weight, upstream, u, v):
    found = [oracle.gradient(upstream, weight, u, v) for oracle in ORACLES.values()]
    return max(np.linalg.norm(a - b) for a in found for b in found) / np.linalg.norm(found[0])


def test_errors_fall_at_the_rates_of_theory():
    layer = opening.Layer("layer", (5, 8), *problem(3)[:1], *problem(3)[2:], problem(3)[1], "loss")
    found = next(part for part in convergence.falling(layer, seed=0) if part is not None)
    assert found.rate["fixed_uv"] == pytest.approx(found.gap**2, rel=0.02)
    assert found.rate["sigma"] == pytest.approx(found.gap**4, rel=0.02)


def test_the_plain_difference_is_a_v():
    layer = opening.Layer("layer", (5, 8), *problem()[:1], *problem()[2:], problem()[1], "loss")
    curve = convergence.step_curve(layer, seed=1)
    best = int(np.argmin(curve.float64))
    assert 10 < best < len(curve.steps) - 10
    assert curve.float64[best] < 1e-9 < min(curve.float32)


def test_a_weight_of_one_row_may_meet_every_oracle():
    """There one sweep converges, the three oracles are one function, and each convention rightly meets all of them."""
    weight, upstream, _, _ = problem(shape=(1, 6))
    u, v = sweep(weight, np.ones(6))
    layer = opening.Layer("row", (1, 6), weight, u, v, upstream, "loss")
    names = tuple(conventions.CONVENTIONS)
    openings = [part for part in opening.measure(0, layer, names, 8, True, 0) if part is not None]
    met = [r for r in openings[0].residuals["cold"] if r.convention == "fixed_uv" and r.meets]
    assert {r.oracle for r in met} == set(ORACLES)
    verdict = judge(openings, ("fixed_uv", "exact", "unrolled"))
    assert verdict.passed and sentence(verdict).endswith(".") and "differ" not in sentence(verdict)

    other = opening.Layer("other", (5, 8), *problem()[:1], *problem()[2:], problem()[1], "loss")
    openings += [part for part in opening.measure(0, other, names, 8, True, 0) if part is not None]
    verdict = judge(openings, ("fixed_uv", "exact", "unrolled"))
    assert all(cell.residual > 1e-3 for cell in verdict.cells if not cell.must)
    assert "; all other pairs differ by at least 0." in sentence(verdict)


# Second derivatives ---------------------------------------------------------------------------------------------------


class OneLayer(mg.nn.Module):
    def __init__(self, outputs, inputs):
        super().__init__()
        self.layer = mg.nn.Linear(inputs, outputs).to(mg.float64)
        mg.nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.layer(x)


def around_a_layer(shape):
    """A layer, the network that is nothing else, and its loss W ↦ L(W/σ₁(W)) in NumPy."""
    weight, _, u, v = problem(shape=shape)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((9, shape[1])), rng.integers(0, shape[0], 9)

    def loss(weight):
        logits = x @ (weight / np.linalg.svd(weight, compute_uv=False)[0]).T
        logits = logits - logits.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(9), y]))

    around = Around(lambda: OneLayer(*shape), OneLayer(*shape), {"layer": weight}, (mg.tensor(x), mg.tensor(y)))
    return opening.Layer("layer", shape, weight, u, v, np.ones(shape), "loss"), around, loss


@pytest.mark.parametrize("shape", [(5, 8), (8, 3), (1, 6), (6, 1)])
def test_the_hessian_is_that_of_the_loss(shape):
    layer, around, loss = around_a_layer(shape)
    left, _, right = np.linalg.svd(layer.weight)
    rng = np.random.default_rng(7)
    d, e = (unit(x) for x in rng.standard_normal((2, *shape)))
    product, of_weight, gradient = second_order._products(layer, around, "exact", left[:, 0], right[0], [d])
    h = 1e-3
    corners = [(a, b, loss(layer.weight + a * h * d + b * h * e)) for a in (1, -1) for b in (1, -1)]
    mixed = sum(a * b * value for a, b, value in corners) / (4 * h * h)
    assert np.vdot(product, e) == pytest.approx(mixed, abs=1e-5)
    found = [one for one in second_order.second_order(7, layer, around, 8) if one is not None]
    assert len(found) == 1 and found[0].step == 7
    if shape[0] > 1:
        np.testing.assert_allclose(of_weight, -gradient, atol=1e-12)
        assert found[0].missing > 1e-3 and found[0].identity < 1e-10 and found[0].residual < 1e-9
    else:  # one class: the loss is 0 whatever the weight
        assert math.isnan(found[0].missing) and "no gradient" in second_order.summary(found)


def test_what_is_lacking_is_the_turning_of_the_pair():
    """−(λ/σ)(du vᵀ + u dvᵀ), with du and dv from the singular value decomposition."""
    layer, around, _ = around_a_layer((5, 8))
    left, s, right = np.linalg.svd(layer.weight)
    rng = np.random.default_rng(8)
    along = [unit(rng.standard_normal(40)).reshape(5, 8) for _ in range(second_order.DIRECTIONS)]
    exact = second_order._products(layer, around, "exact", left[:, 0], right[0], along)
    weight = mg.tensor(layer.weight / s[0], requires_grad=True)
    x, y = around.batch
    (upstream,) = mg.grad(mg.nn.functional.cross_entropy(x @ weight.T, y), weight)
    lam, ratios = np.vdot(upstream.numpy(), layer.weight / s[0]), []
    for d, product in zip(along, exact, strict=False):
        inner, sigma = left.T @ d @ right.T, np.append(s, [0, 0, 0])
        du = sum((s[0] * inner[i, 0] + s[i] * inner[0, i]) / (s[0] ** 2 - s[i] ** 2) * left[:, i] for i in range(1, 5))
        turned = [s[0] * inner[0, i] + sigma[i] * (inner[i, 0] if i < 5 else 0) for i in range(8)]
        dv = sum(turned[i] / (s[0] ** 2 - sigma[i] ** 2) * right[i] for i in range(1, 8))
        lacking = -lam / s[0] * (np.outer(du, right[0]) + np.outer(left[:, 0], dv))
        ratios.append(np.linalg.norm(lacking) / np.linalg.norm(product))
    (found,) = [one for one in second_order.second_order(0, layer, around, 8) if one is not None]
    assert (found.missing, found.most) == pytest.approx((np.mean(ratios), max(ratios)), rel=1e-9)
    assert found.gap == pytest.approx(s[1] / s[0])


def test_a_hessian_with_fixed_vectors_is_told_from_the_true_one(monkeypatch):
    layer, around, _ = around_a_layer((5, 8))
    honest = second_order._products
    monkeypatch.setattr(second_order, "_products", lambda a, b, name, *rest: honest(a, b, OTHER[name], *rest))
    found = next(one for one in second_order.second_order(0, layer, around, 8) if one is not None)
    assert found.residual > 1e-3 > found.identity


OTHER = {"exact": "fixed_uv", "fixed_uv": "exact"}
