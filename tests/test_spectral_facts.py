"""The numbered facts of spectral normalization: properties of the formulas that hold whatever the implementation.

(Facts 2 and 4, on conventions, are tested with them; fact 8, on when u and v may step, with `spectral_norm`.)
"""

import itertools

import numpy as np
import pytest
from naive_spectral import case, pulled_back, unit
from normalized_layers import normalized

import minigrad as mg
from minigrad._differences import derivative
from minigrad.nn.functional import spectral_normalize
from minigrad.spectral import power_iteration


def test_fact_1_the_gradient_is_orthogonal_to_the_weight():
    for seed in range(5):
        w, u, v, g = case((6, 4), 0, seed)
        w_bar, sigma, grad = normalized(w, u, v, 0, g)
        lam = (g * w_bar).sum()
        assert abs((grad * w).sum()) < 1e-14 * np.linalg.norm(grad) * np.linalg.norm(w)
        assert abs((g / sigma * w).sum() - lam) < 1e-12 * abs(lam)  # a detached σ would give λ


def test_fact_3_sigma_converges_twice_as_fast_as_its_gradient():
    rho, (m, n) = 0.7, (6, 5)
    rng = np.random.default_rng(3)
    left, right = np.linalg.qr(rng.standard_normal((m, m)))[0], np.linalg.qr(rng.standard_normal((n, n)))[0]
    w = left[:, :n] @ np.diag(rho ** np.arange(n)) @ right.T
    g = rng.standard_normal((m, n))
    exact = pulled_back(g, w, left[:, 0], right[:, 0], 0)
    u, v = mg.tensor(unit(rng.standard_normal(m))), mg.tensor(unit(rng.standard_normal(n)))
    power_iteration(mg.tensor(w), u, v, 12)
    errors = []
    for _ in range(4):
        sigma = power_iteration(mg.tensor(w), u, v).item()
        grad = normalized(w, u.numpy(), v.numpy(), 0, g)[2]
        assert sigma <= 1 + 1e-15 and np.linalg.norm(w / sigma, 2) >= 1 - 1e-15
        errors.append((1 - sigma, np.linalg.norm(grad - exact)))
    for before, after in itertools.pairwise(errors):
        assert after[0] / before[0] == pytest.approx(rho**4, rel=0.02)
        assert after[1] / before[1] == pytest.approx(rho**2, rel=0.02)


def test_fact_5_the_hessian_vector_product():
    """HVP = (H − ⟨H, W̄⟩A)/σ − [dG + ⟨G, D⟩A − 2dλA]/σ²; symmetric, and HVP(W) = −∂L/∂W."""
    w, u, v, c = case((4, 6), 0)
    rng = np.random.default_rng(9)
    d, e = rng.standard_normal((2, 4, 6))
    weight = mg.tensor(w)

    def loss(x):
        w_bar = spectral_normalize(x, mg.tensor(u), mg.tensor(v))[0]
        return (mg.tensor(c) * w_bar.square() * w_bar).sum()

    product = mg.hvp(loss, weight, mg.tensor(d)).numpy()
    a, sigma = np.outer(u, v), u @ w @ v
    w_bar = w / sigma
    g = 3 * c * w_bar**2
    slope, lam = (a * d).sum(), (g * w_bar).sum()
    h = 6 * c * w_bar * (d - slope * w_bar) / sigma
    expected = (h - (h * w_bar).sum() * a) / sigma - (slope * g + (g * d).sum() * a - 2 * slope * lam * a) / sigma**2
    np.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    other = mg.hvp(loss, weight, mg.tensor(e)).numpy()
    assert (product * e).sum() == pytest.approx((other * d).sum(), rel=1e-11)
    grad = (g - lam * a) / sigma
    np.testing.assert_allclose(mg.hvp(loss, weight, weight).numpy(), -grad, atol=1e-11 * np.abs(grad).max())


def test_fact_6_the_jacobian_is_an_oblique_projector_over_sigma():
    w, u, v, _ = case((3, 4), 0)
    rows = [normalized(w, u, v, 0, e.reshape(3, 4))[2].reshape(-1) for e in np.eye(12)]
    sigma = u @ w @ v
    p = np.array(rows) * sigma
    np.testing.assert_allclose(p @ p, p, atol=1e-11 * np.linalg.norm(p, 2) ** 2)
    assert np.linalg.matrix_rank(p, tol=1e-9) == 11
    np.testing.assert_allclose(p @ w.reshape(-1), 0, atol=1e-12 * np.linalg.norm(p, 2))
    assert np.linalg.norm(p, 2) == pytest.approx(np.linalg.norm(w / sigma), rel=1e-12)
    assert np.abs(normalized(w, u, v, 0, np.outer(u, v))[2]).max() < 1e-14  # G ∝ A: no gradient


def test_fact_6_plain_sgd_lets_the_raw_norm_only_grow():
    w, u, v, g = case((3, 4), 0)
    grad = normalized(w, u, v, 0, g)[2]
    for alpha in (0.01, 1.0):
        grown = np.linalg.norm(w) ** 2 + alpha**2 * np.linalg.norm(grad) ** 2
        assert np.linalg.norm(w - alpha * grad) ** 2 == pytest.approx(grown, rel=1e-13)


def test_fact_7_degenerate_weights():
    for shape in ((1, 9), (9, 1)):  # exact after one sweep, with the gradient of W/‖W‖
        w, u, v, g = case(shape, 0)
        stepped = mg.tensor(u), mg.tensor(v)
        norm = np.linalg.norm(w)
        assert power_iteration(mg.tensor(w), *stepped).item() == pytest.approx(norm, rel=1e-14)
        expected = (g - (g * w).sum() / norm**2 * w) / norm
        np.testing.assert_allclose(normalized(w, *(x.numpy() for x in stepped), 0, g)[2], expected, atol=1e-14)
    stuck = mg.tensor([0.0, 1.0]), mg.tensor([0.0, 1.0])  # u₀ ⊥ u₁ stays at σ₂
    assert power_iteration(mg.tensor([[3.0, 0.0], [0.0, 1.0]]), *stuck, 50).item() == 1.0
    w, u, v, g = case((4, 5), 0)  # the sign of the pair does not matter
    for one, other in zip(normalized(w, u, v, 0, g), normalized(w, -u, -v, 0, g), strict=True):
        np.testing.assert_array_equal(one, other)
    u = unit(np.array([1.0, 2.0, 2.0]))  # identity: every pair is leading; differences with it frozen agree
    g = case((3, 3), 0)[3]
    grad = normalized(np.eye(3), u, u, 0, g)[2]
    frozen = derivative(lambda t: ((np.eye(3) + t * g) / (u @ (np.eye(3) + t * g) @ u) * g).sum(), 0.1)
    svd = derivative(lambda t: ((np.eye(3) + t * g) / np.linalg.norm(np.eye(3) + t * g, 2) * g).sum(), 0.1)
    assert (grad * g).sum() == pytest.approx(frozen.value, rel=1e-10)
    assert abs((grad * g).sum() - svd.value) > 1e-2
