"""Weights at the edge, in training: zero, of rank one, with a repeated σ₁, a single row, tiny and huge, stuck vectors.

All through modules and in every convention, against NumPy at vectors that have not converged.
"""

import numpy as np
import pytest
from naive_spectral import case, trained, unit
from normalized_layers import Holder, holder, parts, step

import minigrad as mg
from minigrad._differences import derivative
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS

pytestmark = pytest.mark.usefixtures("on_device")

RANDOM = np.random.default_rng(7)
Q = np.linalg.qr(RANDOM.standard_normal((5, 5)))[0]
WEIGHTS = {
    "zero": np.zeros((3, 4)),
    "zero kernel": np.zeros((2, 3, 2, 2)),
    "zero vector": np.zeros(3),
    "one number": np.array([[-2.0]]),
    "one number, 1-d": np.array([-2.0]),
    "rank one": np.outer(RANDOM.standard_normal(4), RANDOM.standard_normal(6)),
    "rank one kernel": np.einsum("i,jkl->ijkl", RANDOM.standard_normal(3), RANDOM.standard_normal((2, 2, 3))),
    "rank two of five": RANDOM.standard_normal((5, 2)) @ RANDOM.standard_normal((2, 6)),
    "identity": np.eye(4),
    "minus identity": -np.eye(3),
    "orthogonal": Q,
    "orthonormal columns": Q[:, :2],
    "σ₁ twice": Q @ np.diag([2.0, 2.0, 1.0, 0.5, 0.0]) @ Q,
    "row": RANDOM.standard_normal((1, 6)),
    "column": RANDOM.standard_normal((6, 1)),
    "zero rows and columns": np.pad(RANDOM.standard_normal((2, 3)), ((1, 2), (0, 2))),
}
REPEATED = ["identity", "minus identity", "orthogonal", "orthonormal columns", "σ₁ twice"]


def vectors(w, dim=0, seed=0):
    """Unit vectors that have nothing to do with the weight, and an upstream gradient."""
    return case(w.shape, dim, seed)[1:]


@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize(
    ("name", "gradient"), [(w, g) for w in WEIGHTS for g in CONVENTIONS if g != "exact" or w not in REPEATED]
)
def test_all_of_it_is_defined_and_known(name, gradient, order):
    """Three steps: W̄, u, v and the gradient are finite and NumPy's, and u, v stay unit vectors.

    (Which pair of a repeated σ₁ `exact` meets is the SVD's affair: the next test.)
    """
    w = WEIGHTS[name]
    u, v, g = vectors(w)
    module = holder(w, u, v, gradient=gradient, order=order, n_power_iterations=2)
    for _ in range(3):
        w_bar, u, v, grad = trained(gradient, w, u, v, g, 0, 2, order)
        got = step(module, g)
        expected = [w_bar, grad] if w.ndim == 1 else [w_bar, u, v, grad]
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * max(1, np.abs(other).max()))
        if w.ndim > 1:
            np.testing.assert_allclose([np.linalg.norm(x) for x in got[1:3]], 1, rtol=1e-13)
        if gradient == "projected":
            w = w_bar


@pytest.mark.parametrize("gradient", ["fixed_uv", "exact"])
@pytest.mark.parametrize("name", REPEATED)
def test_fact_7_a_repeated_norm_gives_a_point_of_the_subdifferential(name, gradient):
    """A = (G − σ₁ ∂L/∂W)/λ is U S Vᵀ with S ⪰ 0, tr S = 1, and AᵀW̄ = V S Vᵀ; one pair alone: S has rank one."""
    w = WEIGHTS[name]
    u, v, g = vectors(w)
    w_bar, *_, grad = step(holder(w, u, v, gradient=gradient, n_power_iterations=60), g)
    a = (g - np.linalg.norm(w, 2) * grad) / (g * w_bar).sum()
    s = a.T @ w_bar
    np.testing.assert_allclose(s, s.T, atol=1e-12)
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(s)), [*np.zeros(len(s) - 1), 1.0], atol=1e-12)


def test_fact_7_differences_at_a_repeated_norm():
    """With the vectors frozen they agree with the gradient; those of σ₁ are of no single pair, and disagree."""
    w = WEIGHTS["orthogonal"]
    u, v, g = vectors(w)
    _, u, v, grad = step(holder(w, u, v), g)
    frozen = derivative(lambda t: (g * (w + t * g)).sum() / (u @ (w + t * g) @ v), 0.1)
    svd = derivative(lambda t: (g * (w + t * g)).sum() / np.linalg.norm(w + t * g, 2), 0.1)
    assert (grad * g).sum() == pytest.approx(frozen.value, rel=1e-9)
    assert abs((grad * g).sum() - svd.value) > 1e-2


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 3, 2, 2), (4, 1, 1)])
def test_a_single_row_or_column_is_exact_after_one_step(shape):
    """W/‖W‖ with gradient (I − nnᵀ)G/‖W‖, in all conventions that differentiate W̄."""
    w = RANDOM.standard_normal(shape)
    u, v, g = vectors(w)
    norm = np.linalg.norm(w)
    for gradient in ("fixed_uv", "exact", "unrolled"):
        w_bar, *_, grad = step(holder(w, u, v, gradient=gradient), g)
        np.testing.assert_allclose(w_bar, w / norm, rtol=1e-13)
        np.testing.assert_allclose(grad, (g - (g * w).sum() / norm**2 * w) / norm, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_vectors_orthogonal_to_the_leading_pair_stay_there(gradient):
    """diag(3, 1) from u = v = e₂: σ̂ = 1 for ever, all else following from it; `exact` alone sees σ₁ = 3."""
    w, e, g = np.diag([3.0, 1.0]), np.array([0.0, 1.0]), vectors(np.eye(2))[2]
    module = holder(w, e, e, gradient=gradient)
    for _ in range(20):
        w_bar, u, v, grad = step(module, g)
    np.testing.assert_array_equal(u, e)
    np.testing.assert_array_equal(v, e)
    np.testing.assert_allclose(w_bar, w / 3 if gradient == "exact" else w, rtol=1e-15)
    np.testing.assert_allclose(grad, trained(gradient, w, e, e, g)[3], rtol=1e-12, atol=1e-15)


def test_the_smallest_component_along_the_leading_pair_is_enough():
    w, nearly = np.diag([3.0, 1.0]), unit(np.array([1e-12, 1.0]))
    module = holder(w, nearly, nearly)
    for _ in range(30):
        w_bar = module().detach().numpy()
    np.testing.assert_allclose(w_bar, w / 3, rtol=1e-12)


@pytest.mark.parametrize("order", ["uv", "vu"])
def test_a_direction_too_small_for_a_square_harms_no_vectors(order):
    """diag(1, 10⁻¹⁵⁰) from u = v = e₂: MᵀMv = 10⁻³⁰⁰ e₂ has a norm of 0 by its squares."""
    w, e, g = np.diag([1.0, 1e-150]), np.array([0.0, 1.0]), vectors(np.eye(2))[2]
    w_bar, u, v, grad = step(holder(w, e, e, order=order), g)
    np.testing.assert_allclose(u, e, rtol=1e-15)
    np.testing.assert_allclose(v, e, rtol=1e-15)
    assert np.isfinite(w_bar).all() and np.isfinite(grad).all()


# Zero ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mg.float16, mg.float32, mg.float64])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2), (3,)])
def test_a_zero_weight_through_its_whole_life(shape, dtype):
    """Registered, trained, evaluated, read, differentiated twice, removed: 0 everywhere, and no NaN."""
    module = spectral_norm(Holder(np.zeros(shape, dtype)), learnable_scale=True, factor=2.0)
    raw, gamma = module.parametrizations.weight.original, module.parametrizations.weight.state.gamma
    before = [x.tolist() for x in module.buffers()]
    for training in (True, False):
        out = module.train(training)()
        assert not out.detach().numpy().any() and out.dtype == dtype
        (first,) = mg.grad((out * out + out).sum(), raw, create_graph=True)
        assert not first.detach().numpy().any()
        (second,) = mg.grad(first.sum(), raw)
        assert not second.numpy().any()
    assert gamma.item() == 0 and [x.tolist() for x in module.buffers()] == before
    assert not module.weight.detach().numpy().any()
    assert not remove_spectral_norm(module).weight.detach().numpy().any()


def test_a_weight_that_was_zero_goes_on_from_the_vectors_it_had():
    w, u, v, g = case((3, 4), 0)
    module = holder(0 * w, u, v)
    step(module, g)
    with mg.no_grad():
        parts(module)[0].copy_(mg.tensor(w))
    for one, other in zip(step(module, g), trained("fixed_uv", w, u, v, g), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_a_weight_that_is_not_finite_shows_and_harms_no_vectors(gradient, bad):
    w, u, v, g = case((3, 4), 0)
    w[1, 2] = bad
    got = step(holder(w, u, v, gradient=gradient), g)
    assert not np.isfinite(got[0]).all()
    np.testing.assert_array_equal(got[1], u)
    np.testing.assert_array_equal(got[2], v)


# Scale ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_from_the_smallest_norms_to_the_largest_in_float32(gradient, order, c):
    """f(cW) = f(W) in training, and c ∇f(cW) = ∇f(W): three steps of a matrix, a kernel, a vector."""
    for shape, dim in (((4, 6), 0), ((3, 4, 2, 2), 1), ((5,), 0)):
        w, u, v, g = case(shape, dim)
        tiny, scale = (w * c).astype(np.float32), c
        w = tiny.astype(np.float64) / c
        module = holder(tiny, u, v, gradient=gradient, order=order, n_power_iterations=2, dim=dim)
        for _ in range(3):
            w_bar, u, v, grad = trained(gradient, w, u, v, g, dim, 2, order)
            got, *stepped, back = step(module, g.astype(np.float32))
            np.testing.assert_allclose(got, w_bar, rtol=1e-4, atol=1e-6)
            for one, other in zip(stepped, (u, v), strict=len(shape) > 1):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
            factor = 1.0 if gradient in ("straight_through", "projected") else scale
            np.testing.assert_allclose(back * np.float64(factor), grad, rtol=0, atol=1e-4 * np.abs(grad).max())
            if gradient == "projected":
                w, scale = w_bar, 1.0


@pytest.mark.parametrize("gradient", ["fixed_uv", "detached", "straight_through", "elementwise", "unrolled"])
@pytest.mark.parametrize("make", [lambda: mg.nn.Linear(6, 4), lambda: mg.nn.Conv2d(6, 4, 1)])
def test_powers_of_two_change_no_bit(make, gradient, device):
    """f(2ᵏW) for 2ᵏ from 1e-12 to 1e12 in float32: a layer's outputs, u, v and gradient, over training steps."""
    results = []
    for k in range(-40, 41, 8):
        mg.manual_seed(3)
        layer = make().to(device)
        with mg.no_grad():
            layer.weight.copy_(layer.weight * 2.0**k)
        spectral_norm(layer, gradient=gradient, order="vu", n_init_iterations=1)
        x = mg.randn(5, *layer.weight.shape[1:2], *([1, 1] if layer.weight.ndim == 4 else []))
        for _ in range(3):
            layer.zero_grad()
            out = layer(x)
            out.square().sum().backward()
        raw, u, v = parts(layer)
        scale = 1.0 if gradient == "straight_through" else 2.0**k
        results.append([out.detach().numpy(), u.numpy(), v.numpy(), raw.grad.numpy() * np.float32(scale)])
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("c", [1e-30, 1e30])
def test_registration_and_removal_at_any_scale(c):
    """Warm-up, γ₀ = σ₁ and removal in float32."""
    w = case((6, 4), 0)[0]
    module = spectral_norm(Holder((w * c).astype(np.float32)), learnable_scale=True, n_init_iterations=200)
    assert module.parametrizations.weight.state.gamma.item() == pytest.approx(c * np.linalg.norm(w, 2), rel=1e-6)
    np.testing.assert_allclose(remove_spectral_norm(module).weight.detach().numpy() / c, w, rtol=1e-5)


def test_a_scale_beyond_float32s_squares_in_float64():
    for c in (1e-250, 1e250):
        w, u, v, g = case((4, 6), 0)
        expected = trained("fixed_uv", w, u, v, g)
        got = step(holder(w * c, u, v), g)
        got[-1] = got[-1] * c
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
