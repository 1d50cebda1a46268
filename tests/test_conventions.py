"""Every gradient convention: its value, first and second derivative, against what it says it is.

Fact 2: three oracles by finite differences: (a) W/(uᵀMv) with u, v frozen, (b) W/σ₁, (c) the sweeps run again live. A
convention agrees with its own at any vectors and, these being far from converged, with none of the others.
"""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from naive_spectral import case, in_layout, matrix, pulled_back, sweeps, unit

import minigrad as mg
from minigrad._differences import derivative
from minigrad.ops.conventions import CONVENTIONS, apply
from minigrad.ops.singular import sigma_max

pytestmark = pytest.mark.usefixtures("on_device")

ALL = list(CONVENTIONS)
CASES = [((4, 6), 0), ((6, 4), 0), ((5, 3), 1), ((3, 4, 2, 2), 1), ((1, 5), 0), ((5, 1), 0)]


def oracle(kind, w, u, v, dim, n, order):
    """W̄ by NumPy, as a function of W."""
    m = matrix(w, dim)
    if kind == "frozen":
        return w / (u @ m @ v)
    if kind == "svd":
        return w / np.linalg.norm(m, 2)
    u, v, sigma = sweeps(m, u, v, n, order)
    return w / sigma


def made(name, w, u, v, dim=0, n=2, order="uv", **options):
    return apply(name, w, mg.tensor(u), mg.tensor(v), n_power_iterations=n, dim=dim, order=order, **options)


def cubic(c, w_bar):
    """A loss with third derivatives, so that nothing hides at second order."""
    return (c * w_bar * w_bar * w_bar).sum()


def gradient(name, w, u, v, g, **options):
    weight = mg.tensor(w, requires_grad=True)
    return mg.grad(made(name, weight, u, v, **options), weight, mg.tensor(g))[0].numpy()


def hvp(name, w, u, v, c, d, **options):
    return mg.hvp(lambda x: cubic(mg.tensor(c), made(name, x, u, v, **options)), mg.tensor(w), mg.tensor(d)).numpy()


# Oracles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), CASES)
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", [name for name in ALL if CONVENTIONS[name].oracle])
def test_fact_2_each_meets_its_oracle(name, shape, dim, n, order):
    """Value, gradient and Hessian-vector product along random directions."""
    w, u, v, c = case(shape, dim)
    rng = np.random.default_rng(1)
    d, e = rng.standard_normal((2, *shape))
    options = {"dim": dim, "n": n, "order": order}

    def loss(x):
        return cubic(c, oracle(CONVENTIONS[name].oracle, x, u, v, **options))

    value = oracle(CONVENTIONS[name].oracle, w, u, v, **options)
    np.testing.assert_allclose(made(name, mg.tensor(w), u, v, **options).numpy(), value, rtol=1e-12)
    weight = mg.tensor(w, requires_grad=True)
    (grad,) = mg.grad(cubic(mg.tensor(c), made(name, weight, u, v, **options)), weight)
    first = derivative(lambda t: loss(w + t * d), 0.02)
    assert (grad.numpy() * d).sum() == pytest.approx(first.value, rel=1e-9, abs=3 * first.error)
    second = derivative(lambda t: derivative(lambda s: loss(w + t * d + s * e), 0.02).value, 0.05)
    product = (hvp(name, w, u, v, c, d, **options) * e).sum()
    assert product == pytest.approx(second.value, rel=1e-6, abs=10 * second.error)


def test_fact_2_no_convention_meets_the_oracle_of_another():
    w, u, v, g = case((5, 7), 0)
    along = np.random.default_rng(1).standard_normal((5, 7))
    differences = {
        kind: derivative(lambda t, kind=kind: (oracle(kind, w + t * along, u, v, 0, 2, "uv") * g).sum(), 0.02).value
        for kind in ("frozen", "svd", "live")
    }
    for name, row in CONVENTIONS.items():
        slope = (gradient(name, w, u, v, g) * along).sum()
        agreeing = {kind for kind, value in differences.items() if abs(slope - value) < 1e-3 * abs(value)}
        assert agreeing == ({row.oracle} if row.oracle else set())


# Formulas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_first_order_is_the_formula_of_the_table(shape, dim):
    w, u, v, g = case(shape, dim)
    m, gm, a = matrix(w, dim), matrix(g, dim), np.outer(u, v)
    sigma = u @ m @ v
    top = np.linalg.svd(m)
    a1, s1 = np.outer(top[0][:, 0], top[2][0]), top[1][0]
    expected = {
        "fixed_uv": matrix(pulled_back(g, w, u, v, dim), dim),
        "detached": gm / sigma,
        "straight_through": gm,
        "projected": gm,
        "exact": (gm - (gm * m).sum() / s1 * a1) / s1,
        "elementwise": gm * (1 - a * m.sum() / sigma) / sigma,
    }
    x = m.T @ u  # unrolled once from u, v-then-u, and once from v, u-then-v, with the envelope theorem
    n_v = unit(x)
    n_u = unit(m @ n_v)
    slope = np.outer(n_u, n_v) + np.outer(u, (m.T @ n_u - n_v * (n_v @ m.T @ n_u)) / np.linalg.norm(x))
    s = n_u @ m @ n_v
    unrolled_vu = (gm - (gm * m).sum() / s * slope) / s
    y = m @ v
    k_u = unit(y)
    k_v = unit(m.T @ k_u)
    slope = np.outer(k_u, k_v) + np.outer((m @ k_v - k_u * (k_u @ m @ k_v)) / np.linalg.norm(y), v)
    s = k_u @ m @ k_v
    unrolled_uv = (gm - (gm * m).sum() / s * slope) / s
    tolerance = {"rtol": 1e-10, "atol": 1e-12 * np.abs(expected["fixed_uv"]).max()}
    for name, formula in expected.items():
        np.testing.assert_allclose(gradient(name, w, u, v, g, dim=dim), in_layout(formula, shape, dim), **tolerance)
    for order, formula in (("vu", unrolled_vu), ("uv", unrolled_uv)):
        got = gradient("unrolled", w, u, v, g, dim=dim, n=1, order=order)
        np.testing.assert_allclose(got, in_layout(formula, shape, dim), **tolerance)


def test_values_are_w_over_sigma():
    w, u, v, _ = case((4, 6), 0)
    for name in ALL:
        sigma = {"exact": np.linalg.norm(w, 2), "unrolled": u @ w @ v}.get(name, u @ w @ v)
        np.testing.assert_allclose(made(name, mg.tensor(w), u, v, n=0).numpy(), w / sigma, rtol=1e-14)


@pytest.mark.parametrize("name", ["detached", "straight_through", "projected"])
def test_the_linear_ones_have_only_the_second_derivative_of_the_loss(name):
    """HVP = s² ∇²ℓ[D] with W̄ as a constant multiple s of W: what their detach() expressions give."""
    w, u, v, c = case((4, 6), 0)
    d = np.random.default_rng(1).standard_normal(w.shape)
    sigma = u @ w @ v
    s = 1 / sigma if name == "detached" else 1.0
    np.testing.assert_allclose(hvp(name, w, u, v, c, d), s * s * 6 * c * w / sigma * d, rtol=1e-12)

    def detach_expression(x):
        value = x / (u @ x.detach().numpy() @ v) if name == "detached" else x + (x.detach() / sigma - x.detach())
        return cubic(mg.tensor(c), value)

    np.testing.assert_allclose(
        hvp(name, w, u, v, c, d), mg.hvp(detach_expression, mg.tensor(w), mg.tensor(d)).numpy(), rtol=1e-11
    )


def test_elementwise_refuses_double_backward():
    w, u, v, _ = case((4, 6), 0)
    weight = mg.tensor(w, requires_grad=True)
    (grad,) = mg.grad(made("elementwise", weight, u, v).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"'elementwise'.*cannot be differentiated.*'fixed_uv'"):
        mg.grad(grad.sum(), weight)


def test_elementwise_is_right_where_g_is_constant():
    w, u, v, _ = case((4, 6), 0)
    g = np.full((4, 6), 0.7)
    assert np.abs(gradient("elementwise", w, u, v, g) - gradient("fixed_uv", w, u, v, g)).max() < 1e-13


def test_unrolled_without_sweeps_is_fixed_uv():
    w, u, v, g = case((4, 6), 0)
    np.testing.assert_allclose(
        gradient("unrolled", w, u, v, g, n=0), gradient("fixed_uv", w, u, v, g), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("order", ["uv", "vu"])
def test_unrolled_clamps_as_power_iteration_does(order):
    """Sweeps in NumPy, each clamped at eps times the σ that it would have without; eps so large that all are."""
    w, u, v, _ = case((4, 6), 0)
    stepped = mg.tensor(u), mg.tensor(v)
    w_bar = made("unrolled", mg.tensor(w), u, v, order=order, eps=0.9).numpy()
    sigma = mg.spectral.power_iteration(mg.tensor(w), *stepped, 2, 0.9, order=order).item()
    m, x = (w, v) if order == "uv" else (w.T, u)
    for _ in range(2):
        floor = 0.9 * np.linalg.norm(m.T @ unit(m @ x))
        y = m @ x / max(np.linalg.norm(m @ x), floor)
        x = m.T @ y / max(np.linalg.norm(m.T @ y), floor)
    assert np.linalg.norm(y) < 0.99
    assert sigma == pytest.approx(y @ m @ x, rel=1e-12)
    np.testing.assert_allclose(w_bar, w / (y @ m @ x), rtol=1e-12)


# The true pair --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_fact_4_the_pair_turns(shape, dim):
    """∇²σ₁[D] = du v₁ᵀ + u₁ dvᵀ, by differences of the pair; symmetric, and 0 along W."""
    w, *_ = case(shape, dim)
    rng = np.random.default_rng(1)
    d, e = rng.standard_normal((2, *shape))

    def pair(t):
        left, _, right = np.linalg.svd(matrix(w + t * d, dim), full_matrices=False)
        return np.outer(left[:, 0], right[0])

    turned = mg.hvp(lambda x: sigma_max(x, dim), mg.tensor(w), mg.tensor(d)).numpy()
    numeric = derivative(lambda t: (pair(t) * matrix(e, dim)).sum(), 0.02)
    assert (turned * e).sum() == pytest.approx(numeric.value, rel=1e-8, abs=3 * numeric.error)
    other = mg.hvp(lambda x: sigma_max(x, dim), mg.tensor(w), mg.tensor(e)).numpy()
    assert (turned * e).sum() == pytest.approx((other * d).sum(), rel=1e-10, abs=1e-13)
    assert np.abs(mg.hvp(lambda x: sigma_max(x, dim), mg.tensor(w), mg.tensor(w)).numpy()).max() < 1e-12


def test_fact_4_at_convergence_the_first_derivative_is_exact_and_the_second_is_not():
    """The missing term is −(λ/σ)(du vᵀ + u dvᵀ), and what is left of σ₁″ in ⟨G, W̄⟩ by the product rule."""
    w, _, _, c = case((5, 4), 0)
    left, _, right = np.linalg.svd(w, full_matrices=False)
    u, v = left[:, 0], right[0]
    d = np.random.default_rng(1).standard_normal(w.shape)
    sigma = u @ w @ v
    g = 3 * c * (w / sigma) ** 2
    np.testing.assert_allclose(
        gradient("fixed_uv", w, u, v, g), gradient("exact", w, u, v, g), rtol=1e-10, atol=1e-12
    )
    lam = (g * w / sigma).sum()
    turned = mg.hvp(sigma_max, mg.tensor(w), mg.tensor(d)).numpy()
    missing = hvp("exact", w, u, v, c, d) - hvp("fixed_uv", w, u, v, c, d)
    np.testing.assert_allclose(missing, -lam / sigma * turned, rtol=1e-8, atol=1e-10)
    assert np.linalg.norm(missing) > 1e-2 * np.linalg.norm(hvp("exact", w, u, v, c, d))


def test_fact_4_the_missing_term_grows_as_the_gap_closes():
    sizes = []
    for gap in (1e-1, 1e-2, 1e-3):
        w = np.diag([1.0, 1.0 - gap, 0.2])
        d = np.ones((3, 3))
        d[0, 1] = 2.0
        sizes.append(np.linalg.norm(mg.hvp(sigma_max, mg.tensor(w), mg.tensor(d)).numpy()))
    assert sizes[1] > 8 * sizes[0] and sizes[2] > 8 * sizes[1]


def test_exact_at_a_repeated_singular_value_has_a_first_derivative():
    grad = gradient("exact", np.eye(3), np.eye(3)[0], np.eye(3)[0], np.ones((3, 3)))
    assert np.isfinite(grad).all() and abs((grad * np.eye(3)).sum()) < 1e-14
    with np.errstate(all="raise"):
        assert not np.isfinite(hvp("exact", np.eye(3), *np.eye(3)[:2], np.ones((3, 3)), np.ones((3, 3)))).all()


def test_exact_refuses_a_third_derivative():
    w, u, v, c = case((3, 4), 0)
    weight = mg.tensor(w, requires_grad=True)
    (first,) = mg.grad(cubic(mg.tensor(c), made("exact", weight, u, v)), weight, create_graph=True)
    (second,) = mg.grad(first.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivatives of a singular pair"):
        mg.grad(second.sum(), weight)


def test_nan_shows_in_exact():
    w, u, v, _ = case((3, 4), 0)
    w[0, 0] = np.nan
    assert np.isnan(made("exact", mg.tensor(w), u, v).numpy()).all()


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fixed_uv", "exact", "unrolled"])
def test_fact_1_invariant_ones_have_gradients_orthogonal_to_w(name):
    w, u, v, g = case((6, 5), 0)
    for order in ("uv", "vu"):
        grad = gradient(name, w, u, v, g, order=order)
        assert abs((grad * w).sum()) < 1e-13 * np.linalg.norm(grad) * np.linalg.norm(w)


@pytest.mark.parametrize("name", ["fixed_uv", "exact"])
def test_fact_5_hvp_along_w_is_minus_the_gradient(name):
    w, u, v, c = case((6, 5), 0)
    grad = gradient(name, w, u, v, 3 * c * made(name, mg.tensor(w), u, v).numpy() ** 2)
    np.testing.assert_allclose(hvp(name, w, u, v, c, w), -grad, atol=1e-10 * np.abs(grad).max())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_zero_weight_never_gives_nan(name, dtype):
    weight = mg.zeros(3, 4, dtype=np.dtype(dtype), requires_grad=True)
    vectors = np.promote_types(dtype, np.float32)
    u, v = (mg.tensor(unit(np.ones(n)).astype(vectors)) for n in (3, 4))
    w_bar = apply(name, weight, u, v)
    assert w_bar.dtype == dtype and not w_bar.detach().numpy().any()
    g = mg.ones(3, 4, dtype=np.dtype(dtype))
    (grad,) = mg.grad((w_bar * g).sum() + w_bar.square().sum(), weight, create_graph=True)
    expected = np.ones((3, 4)) if name in ("straight_through", "projected") else np.zeros((3, 4))
    np.testing.assert_array_equal(grad.detach().numpy(), expected)
    if name != "elementwise" and grad.requires_grad:
        (second,) = mg.grad(grad.sum(), weight)
        assert np.isfinite(second.numpy()).all()


@pytest.mark.parametrize("name", ALL)
def test_float16_computes_in_float32(name):
    w, u, v, g = case((4, 6), 0)
    half, u, v = (w * 1e-4).astype(np.float16), u.astype(np.float32), v.astype(np.float32)  # 1/σ overflows float16
    g = g.astype(np.float16)
    weight = mg.tensor(half, requires_grad=True)
    w_bar = made(name, weight, u, v)
    exact = [x.astype(np.float64) for x in (half, u, v)]
    wide = made(name, mg.tensor(exact[0]), *exact[1:]).numpy()
    assert w_bar.dtype == mg.float16
    np.testing.assert_allclose(w_bar.detach().numpy(), wide, rtol=2e-3)
    small = (g * np.float16(2**-6)).astype(np.float16)
    (grad,) = mg.grad(w_bar, weight, mg.tensor(small))
    expected = gradient(name, *exact, small.astype(np.float64))
    np.testing.assert_allclose(grad.numpy(), expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("c", [1e-30, 1e30])
def test_scale_does_not_matter_in_float32(name, c):
    w, u, v, g = (x.astype(np.float32) for x in case((4, 6), 0))
    far = (w.astype(np.float64) * c).astype(np.float32)
    np.testing.assert_allclose(
        made(name, mg.tensor(far), u, v).numpy(), made(name, mg.tensor(w), u, v).numpy(), rtol=1e-4, atol=1e-6
    )
    near, distant = gradient(name, w, u, v, g), gradient(name, far, u, v, g).astype(np.float64)
    scale = 1.0 if name in ("straight_through", "projected") else c
    np.testing.assert_allclose(distant * scale, near, rtol=1e-3, atol=1e-4 * np.abs(near).max())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([name for name in ALL if CONVENTIONS[name].oracle]),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dim=st.integers(0, 3),
    n=st.integers(1, 3),
    order=st.sampled_from(["uv", "vu"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradients_of_any_shape(name, shape, dim, n, order, seed):
    """⟨∂L/∂W, D⟩ against differences of the oracle along the steepest direction."""
    dim %= len(shape)
    w, u, v, g = case(tuple(shape), dim, seed)
    grad = gradient(name, w, u, v, g, dim=dim, n=n, order=order)
    size = np.linalg.norm(grad)
    along = grad / size if size > 1e-8 else g
    width = np.linalg.norm(w) * 1e-3

    def slope(t):
        return (oracle(CONVENTIONS[name].oracle, w + t * along, u, v, dim, n, order) * g).sum()

    numeric = derivative(slope, width)
    assert (grad * along).sum() == pytest.approx(numeric.value, rel=1e-5, abs=1e-7 + 10 * numeric.error)


def test_errors():
    w, u, v = mg.ones(3, 4), mg.ones(3), mg.ones(4)
    with pytest.raises(ValueError, match=r"expected one of fixed_uv, detached, .*; got 'fixed'"):
        apply("fixed", w, u, v)
    with pytest.raises(ValueError, match="expected order 'uv' or 'vu'; got 'both'"):
        apply("unrolled", w, u, v, order="both")
    with pytest.raises(ValueError, match="expected eps of at least 0; got -1"):
        apply("unrolled", w, u, v, eps=-1)
    for name in ALL:
        with pytest.raises(ValueError, match=r"expected v of shape \(4,\)"):
            apply(name, w, u, u)
        with pytest.raises(RuntimeError, match="u is a constant"):
            apply(name, w, mg.ones(3, requires_grad=True), v)
