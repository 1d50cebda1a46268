"""The spectral ops against NumPy in float64 and finite differences, at vectors that have not converged."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from naive_spectral import case, matrix, pulled_back, sweeps, unit
from normalized_layers import normalized

import minigrad as mg
from minigrad._differences import derivative
from minigrad.kernels.cpu import spectral as kernels
from minigrad.nn.functional import spectral_normalize, spectral_sigma
from minigrad.spectral import power_iteration

pytestmark = pytest.mark.usefixtures("on_device")

LAYOUTS = [
    ((4, 6), 0), ((4, 6), 1), ((6, 4), -1), ((1, 9), 0), ((7,), 0),
    ((2, 3, 4), 2), ((3, 5, 2, 2), 0), ((3, 5, 2, 2), 1),
]  # fmt: skip


def close(got, expected, tolerance):
    return np.abs(np.asarray(got, np.float64) - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-300)


# The node -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 3e-6), (np.float16, 3e-3)])
def test_normalize_is_the_formula(shape, dim, dtype, tolerance):
    w, u, v, g = case(shape, dim, dtype=dtype)
    w_bar, sigma, grad = normalized(w, u, v, dim, g)
    u, v = u.astype(np.float64), v.astype(np.float64)
    expected = u @ matrix(w, dim).astype(np.float64) @ v
    assert close(sigma, expected, max(tolerance, 1e-6) if dtype == np.float16 else tolerance)
    assert close(w_bar, w.astype(np.float64) / expected, tolerance)
    assert close(grad, pulled_back(g, w, u, v, dim), tolerance)
    assert w_bar.dtype == grad.dtype == dtype


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS)
def test_gradients_of_three_orders_by_differences(shape, dim):
    """⟨∂L/∂W, D⟩, ⟨∇²L D, E⟩ and the derivative of that: the node is closed under differentiation."""
    w, u, v, c = case(shape, dim)
    rng = np.random.default_rng(1)
    a, b, d = rng.standard_normal((3, *shape))
    u, v, c = mg.tensor(u), mg.tensor(v), mg.tensor(c)

    def loss(weight):
        w_bar, sigma = spectral_normalize(weight, u, v, dim)
        return (c * w_bar.square() * w_bar).sum() + sigma.square() + (w_bar * sigma).sum()

    def first(x):
        weight = mg.tensor(x, requires_grad=True)
        (g,) = mg.grad(loss(weight), weight, create_graph=True)
        return weight, (g * mg.tensor(a)).sum()

    def second(x):
        weight, slope = first(x)
        (h,) = mg.grad(slope, weight, create_graph=True)
        return weight, (h * mg.tensor(b)).sum()

    weight, curvature = second(w)
    (third,) = mg.grad(curvature, weight)
    for exact, f, along in [
        (first(w)[1].item(), lambda x: loss(mg.tensor(x)).item(), a),
        (curvature.item(), lambda x: first(x)[1].item(), b),
        ((third.numpy() * d).sum(), lambda x: second(x)[1].item(), d),
    ]:
        numeric = derivative(lambda t, f=f, along=along: f(w + t * along), 0.01)
        assert exact == pytest.approx(numeric.value, rel=1e-9, abs=3 * numeric.error)


def test_the_gradient_frozen_is_not_the_gradient_live():
    """Differences that let u and v move disagree with it: the oracle of `fixed_uv` must freeze them."""
    w, u, v, g = case((8, 5), 0)
    grad = normalized(w, u, v, 0, g)[2]

    def live(t):
        moved = w + t * g
        return (moved / sweeps(moved, u, v, 1, "uv")[2] * g).sum()

    assert abs((grad * g).sum() - derivative(live, 0.01).value) > 0.01 * abs((grad * g).sum())


def test_sigma_is_linear_with_gradient_u_vt():
    w, u, v, _ = case((3, 4, 2), 1)
    weight = mg.tensor(w, requires_grad=True)
    (grad,) = mg.grad(spectral_sigma(weight, mg.tensor(u), mg.tensor(v), 1), weight)
    np.testing.assert_allclose(matrix(grad.numpy(), 1), np.outer(u, v), rtol=1e-15)


def test_inputs_stay_and_may_lie_anyhow():
    w, u, v, g = case((5, 8), 0)
    apart = [np.asfortranarray(w), np.repeat(u, 2)[::2], np.repeat(v, 2)[::2], np.asfortranarray(g)]
    before = [x.copy() for x in apart]
    args = [mg.from_numpy(x) for x in apart]
    args[0].requires_grad_()
    w_bar, _ = spectral_normalize(*args[:3])
    (grad,) = mg.grad(w_bar, args[0], args[3])
    np.testing.assert_allclose(grad.numpy(), pulled_back(g, w, u, v, 0), rtol=1e-12, atol=1e-14)
    assert all((x == y).all() for x, y in zip(apart, before, strict=True))


def test_nan_and_infinity_show():
    w, u, v, g = case((3, 4), 0)
    for bad in (np.nan, np.inf):
        w[1, 1] = bad
        w_bar, sigma, grad = normalized(w, u, v, 0, g)
        assert not np.isfinite(sigma) and not np.isfinite(w_bar).all() and not np.isfinite(grad).all()
        stepped = mg.tensor(u), mg.tensor(v)
        assert not math.isfinite(power_iteration(mg.tensor(w), *stepped).item())
        assert (stepped[0].numpy() == u).all() and (stepped[1].numpy() == v).all()


def test_overflow_is_infinity_and_no_warning():
    w = mg.full((50, 50), 3e38, requires_grad=True)
    u, v = mg.ones(50), mg.ones(50)
    w_bar, sigma = spectral_normalize(w, u, v)
    w_bar.sum().backward()
    assert sigma.item() == np.inf and power_iteration(w, u, v).item() == np.inf
    huge = mg.full((50, 50), 1e308, dtype=mg.float64)
    assert power_iteration(huge, mg.ones(50, dtype=mg.float64), mg.ones(50, dtype=mg.float64)).item() == np.inf
    half = mg.tensor([[6e4, 1.0], [1.0, 1e-3]], dtype=mg.float16, requires_grad=True)
    w_bar, sigma = spectral_normalize(half, mg.tensor([0.0, 1.0]), mg.tensor([0.0, 1.0]))
    assert w_bar[0, 0].item() == np.inf and sigma.dtype == mg.float32
    (grad,) = mg.grad(sigma.square(), half)
    np.testing.assert_allclose(grad.numpy(), [[0, 0], [0, 2e-3]], rtol=1e-3)


# The sweep ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"), [*LAYOUTS, ((70, 600), 0), ((600, 70), 1), ((40, 70, 3, 3), 1), ((37, 4700), 0)]
)
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-6), (np.float16, 1e-6)])
def test_power_iteration_is_the_papers(shape, dim, order, dtype, tolerance, most_elements):
    if math.prod(shape) > most_elements:
        pytest.skip("too large for the simulator")
    w, u, v, _ = case(shape, dim, dtype=dtype)
    for n in (1, 3):
        new_u, new_v = mg.tensor(u), mg.tensor(v)
        sigma = power_iteration(mg.tensor(w), new_u, new_v, n, dim=dim, order=order)
        for got, expected in zip((new_u, new_v, sigma), sweeps(matrix(w, dim), u, v, n, order), strict=True):
            np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))
        assert sigma.item() == pytest.approx(spectral_sigma(mg.tensor(w), new_u, new_v, dim).item(), rel=tolerance)


@pytest.mark.parametrize("order", ["uv", "vu"])
def test_vectors_with_gaps_need_no_kernel_of_their_own(order):
    w, u, v, _ = case((6, 5), 0, dtype=np.float32)
    expected = kernels.power_iteration(w, u, v, 2, 1e-12, 0, order)
    compiled = [len(kernel.serial.overloads) for kernel in (kernels._rows_first, kernels._columns_first)]
    apart = [np.repeat(x, 2)[::2] for x in (u, v)]
    for got, wanted in zip(kernels.power_iteration(w, *apart, 2, 1e-12, 0, order), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [len(kernel.serial.overloads) for kernel in (kernels._rows_first, kernels._columns_first)] == compiled


@pytest.mark.parametrize(("shape", "dim"), [((300, 700), 0), ((300, 700), 1), ((20, 90, 5, 5), 1), ((64, 4096), 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_serial_and_parallel_give_the_same_bits(shape, dim, dtype):
    w, u, v, g = case(shape, dim, dtype=dtype)
    m, rows, columns, _ = kernels._arranged(w, dim, u, v)
    results = []
    for variant in ("serial", "parallel"):
        made = []
        for kernel in (kernels._rows_first, kernels._columns_first):
            stepped = np.empty_like(rows), np.empty_like(columns), np.empty(1, dtype)
            getattr(kernel, variant)(m, rows, columns, 2, 1e-12, *stepped)
            made += stepped
        sigma = np.array([getattr(kernels._bilinear, variant)(m, rows, columns)], dtype)
        scaled, back = np.empty(w.size, dtype), np.empty_like(m)
        getattr(kernels._scaled, variant)(w.reshape(-1), sigma, scaled)
        getattr(kernels._pulled_back, variant)(g.reshape(m.shape), m, rows, columns, sigma, back)
        results.append([*made, sigma, scaled, back])
    for serial, parallel in zip(*results, strict=True):
        np.testing.assert_array_equal(serial, parallel)


def test_float32_sums_keep_their_digits(most_elements):
    w = np.random.default_rng(0).standard_normal((1, min(4_000_000, most_elements))).astype(np.float32) + 10
    u, v = np.ones(1, np.float32), unit(np.ones(w.size)).astype(np.float32)
    exact = u.astype(np.float64) @ w.astype(np.float64) @ v.astype(np.float64)
    assert spectral_sigma(mg.tensor(w), mg.tensor(u), mg.tensor(v)).item() == pytest.approx(exact, rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    dim=st.integers(0, 4),
    order=st.sampled_from(["uv", "vu"]),
    n=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_axis_order_and_number(shape, dim, order, n, seed):
    """Sweep, node and gradient against the reference, and invariance (fact 1), whatever the layout."""
    dim %= len(shape)
    w, u, v, g = case(tuple(shape), dim, seed)
    stepped = mg.tensor(u), mg.tensor(v)
    power_iteration(mg.tensor(w), *stepped, n, dim=dim, order=order)
    for got, expected in zip(stepped, sweeps(matrix(w, dim), u, v, n, order), strict=False):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
    w_bar, sigma, grad = normalized(w, *(x.numpy() for x in stepped), dim, g)
    expected = pulled_back(g, w, *(x.numpy() for x in stepped), dim)
    np.testing.assert_allclose(grad, expected, atol=1e-11 * np.linalg.norm(g) * np.linalg.norm(w_bar) / abs(sigma))
    assert abs((grad * w).sum()) <= 1e-12 * np.linalg.norm(g) * np.linalg.norm(w_bar)


# Scale ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1e-12, 1e-7, 3.7, 1e6, 1e12])
@pytest.mark.parametrize("order", ["uv", "vu"])
def test_w_and_cw_are_the_same_to_it(c, order):
    w, u, v, g = case((5, 7), 0)
    plain, scaled = (mg.tensor(u), mg.tensor(v)), (mg.tensor(u), mg.tensor(v))
    sigma = power_iteration(mg.tensor(w), *plain, 2, order=order).item()
    assert power_iteration(mg.tensor(c * w), *scaled, 2, order=order).item() == pytest.approx(c * sigma, rel=1e-14)
    for x, y in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=0, atol=1e-15)
    one, other = (normalized(k * w, plain[0].numpy(), plain[1].numpy(), 0, g) for k in (1, c))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-13)
    np.testing.assert_allclose(one[2], c * other[2], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("dtype", "c", "tolerance"), [
    (np.float32, 1e-30, 1e-5), (np.float32, 1e30, 1e-5), (np.float64, 1e-200, 1e-12), (np.float64, 1e200, 1e-12),
])  # fmt: skip
@pytest.mark.parametrize("order", ["uv", "vu"])
def test_from_the_smallest_weights_to_the_largest(dtype, c, tolerance, order):
    w, u, v, g = case((6, 9), 0)
    tiny = (w * c).astype(dtype)
    u, v, g = u.astype(dtype), v.astype(dtype), g.astype(dtype)
    new_u, new_v = mg.tensor(u), mg.tensor(v)
    sigma = power_iteration(mg.tensor(tiny), new_u, new_v, 2, order=order).item()
    expected = sweeps(w, u, v, 2, order)
    np.testing.assert_allclose(new_u.numpy(), expected[0], atol=tolerance)
    np.testing.assert_allclose(new_v.numpy(), expected[1], atol=tolerance)
    assert sigma / c == pytest.approx(expected[2], rel=tolerance)
    w_bar, _, grad = normalized(tiny, new_u.numpy(), new_v.numpy(), 0, g)
    assert close(w_bar, w / expected[2], tolerance)
    assert close(grad * float(c), pulled_back(g, w, expected[0], expected[1], 0), 10 * tolerance)


def test_eps_is_relative_to_sigma():
    """‖Mv‖ = 1e-3 σ: a clamp above that shortens u, one below does nothing, at every scale of W."""
    w = np.diag([1.0, 0.0])
    v = unit(np.array([1e-3, 1.0]))
    for c in (1e-9, 1.0, 1e9):
        for eps, length in ((1e-12, 1.0), (1e-4, 1.0), (1e-2, 0.1)):
            new_u, new_v = mg.tensor([1.0, 0.0], dtype=mg.float64), mg.tensor(v)
            sigma = power_iteration(mg.tensor(c * w), new_u, new_v, eps=eps).item()
            assert new_u.numpy()[0] == pytest.approx(length, rel=1e-5)
            assert sigma == pytest.approx(c * length, rel=1e-5) and new_v.numpy()[0] == pytest.approx(1.0)


def test_a_zero_weight_is_defined():
    _, u, v, g = case((3, 4), 0)
    weight = mg.zeros(3, 4, dtype=mg.float64, requires_grad=True)
    new_u, new_v = mg.tensor(u), mg.tensor(v)
    assert power_iteration(weight, new_u, new_v).item() == 0
    assert (new_u.numpy() == u).all() and (new_v.numpy() == v).all()
    w_bar, sigma = spectral_normalize(weight, new_u, new_v)
    assert sigma.item() == 0 and not w_bar.detach().numpy().any()
    (grad,) = mg.grad((w_bar * mg.tensor(g)).sum() + w_bar.square().sum(), weight, create_graph=True)
    (second,) = mg.grad((grad * mg.tensor(g)).sum(), weight)
    assert not grad.detach().numpy().any() and not second.numpy().any()


# Misuse ---------------------------------------------------------------------------------------------------------------


def test_errors_say_what_was_expected():
    w, u, v = mg.ones(3, 4), mg.ones(3), mg.ones(4)
    for call, error, message in [
        (lambda: spectral_sigma(w, v, v), ValueError, r"expected u of shape \(3,\).*got \(4,\)"),
        (lambda: spectral_normalize(w, u, v, dim=1), ValueError, r"expected u of shape \(4,\)"),
        (lambda: spectral_sigma(w, u, v, dim=2), IndexError, r"expected dim in \[-2, 1\]"),
        (lambda: spectral_sigma(mg.ones(3, 4, dtype=mg.int64), u, v), TypeError, "floating weight; got int64"),
        (lambda: spectral_sigma(w, u.to(mg.float64), v), TypeError, "expected u of dtype float32"),
        (lambda: spectral_sigma(w.to(mg.float16), u.to(mg.float16), v), TypeError, "expected u of dtype float32"),
        (lambda: spectral_sigma(mg.ones(0, 4), u, v), ValueError, "none of extent 0"),
        (lambda: spectral_sigma(mg.tensor(1.0), u, v), ValueError, "with dimensions"),
        (lambda: spectral_sigma(np.ones((3, 4)), u, v), TypeError, "expected a tensor; got ndarray"),
        (lambda: power_iteration(w, u, v, 0), ValueError, "n_power_iterations of at least 1; got 0"),
        (lambda: power_iteration(w, u, v, eps=-1.0), ValueError, "eps of at least 0; got -1.0"),
        (lambda: power_iteration(w, u, v, order="vw"), ValueError, "expected order 'uv' or 'vu'; got 'vw'"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_u_and_v_are_constants():
    w, u, v = mg.ones(3, 4, requires_grad=True), mg.ones(3, requires_grad=True), mg.ones(4)
    for call in (spectral_sigma, spectral_normalize, power_iteration):
        with pytest.raises(RuntimeError, match=r"u is a constant .* Pass u.detach\(\)"):
            call(w, u, v)


@pytest.mark.parametrize("changed", ["u", "v", "weight"])
def test_stepping_between_forward_and_backward_is_seen(changed):
    """Fact 8: the vectors of a forward pass are those of its backward pass, or an error."""
    w, u, v, _ = case((3, 4), 0)
    tensors = {"weight": mg.tensor(w, requires_grad=True), "u": mg.tensor(u), "v": mg.tensor(v)}
    w_bar, sigma = spectral_normalize(*tensors.values())
    with mg.no_grad():
        tensors[changed].copy_(tensors[changed] * 2)
    with pytest.raises(RuntimeError, match=f"its input '{changed}'.*was changed in place"):
        w_bar.sum().backward()
    if changed != "weight":  # σ is linear in the weight
        with pytest.raises(RuntimeError, match=f"its input '{changed}'.*was changed in place"):
            sigma.backward()


def test_power_iteration_is_outside_of_the_graph():
    w, u, v, _ = case((3, 4), 0)
    weight, u, v = mg.tensor(w, requires_grad=True), mg.tensor(u), mg.tensor(v)
    versions = u.version[0], v.version[0]
    sigma = power_iteration(weight, u, v)
    assert sigma.shape == () and not sigma.requires_grad and not u.requires_grad
    assert (u.version[0], v.version[0]) == (versions[0] + 1, versions[1] + 1)


def test_singular_values(device):
    w, *_ = case((4, 6, 3), 0)
    layer = mg.nn.Conv1d(6, 4, 3, dtype=mg.float64).to(device)
    with mg.no_grad():
        layer.weight.copy_(mg.tensor(w))
    expected = np.linalg.svd(matrix(w, 0), compute_uv=False)
    np.testing.assert_allclose(mg.spectral.singular_values(layer, 3).numpy(), expected[:3], rtol=1e-13)
    transposed = mg.nn.ConvTranspose1d(4, 6, 3, dtype=mg.float64).to(device)
    with mg.no_grad():
        transposed.weight.copy_(mg.tensor(w))
    expected = np.linalg.svd(matrix(w, 1), compute_uv=False)
    np.testing.assert_allclose(mg.spectral.singular_values(transposed, 6).numpy(), expected, rtol=1e-13)
    mg.nn.utils.spectral_norm(transposed, dim=2)  # the matrix of a normalized weight is the normalization's
    expected = np.linalg.svd(matrix(w, 2), compute_uv=False)
    np.testing.assert_allclose(mg.spectral.singular_values(transposed, 3).numpy(), expected, rtol=1e-13)
    for k in (0, 4):
        with pytest.raises(ValueError, match=r"expected k between 1 and 3 for a matrix \(3, 24\)"):
            mg.spectral.singular_values(transposed, k)
    with pytest.raises(ValueError, match="no parameter 'wight'; it has weight, bias"):
        mg.spectral.singular_values(layer, 1, name="wight")
