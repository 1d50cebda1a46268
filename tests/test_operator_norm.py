"""`norm="operator"`: σ as the norm of a convolution, in the node, in the module, in the diagnosis of a model."""

import copy
import pickle

import numpy as np
import pytest
from naive_convolution import LAYERS, matrix_of, registered
from naive_spectral import sweeps, unit
from normalized_layers import F64, parts, same, snapshot

import minigrad as mg
from minigrad._differences import derivative
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS


@pytest.fixture(params=LAYERS)
def layer_and_space(request):
    make, space = LAYERS[request.param]
    return make(), space


def vectors(layer):
    state = layer.parametrizations.weight.state
    return state._u_op.numpy().copy(), state._v_op.numpy().copy()


# The node -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_training_forward_makes_the_sweeps_of_the_matrix(layer_and_space, order, n):
    layer, space = layer_and_space
    matrix, w = matrix_of(layer, space), layer.weight.detach().numpy().copy()
    registered(layer, space, order=order, n_power_iterations=n)
    u, v = vectors(layer)
    assert u.size == matrix.shape[0] and v.shape == (layer.in_channels, *space)
    x = mg.randn(2, layer.in_channels, *space, dtype=mg.float64)
    out = layer(x).detach().numpy()
    expected_u, expected_v, sigma = sweeps(matrix, u.ravel(), v.ravel(), n, order)
    for found, expected in zip(vectors(layer), (expected_u, expected_v), strict=True):
        np.testing.assert_allclose(found.ravel(), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(layer.weight.detach().numpy(), w / sigma, rtol=1e-11)
    expected = (x.numpy().reshape(2, -1) @ matrix.T / sigma).reshape(out.shape)
    bias = layer.bias.detach().numpy().reshape(-1, *(1,) * len(space))
    np.testing.assert_allclose(out, expected + bias, rtol=1e-9, atol=1e-11)
    before = snapshot(layer)
    layer.eval()(x)
    assert same(before, snapshot(layer))


def slopes(name, layer, space, w, u, v, n):
    """σ as a function of W that the convention's oracle takes."""

    def frozen(w):
        return u.ravel() @ matrix_of(layer, space, w) @ v.ravel()

    def live(w):
        return sweeps(matrix_of(layer, space, w), u.ravel(), v.ravel(), n, "uv")[2]

    return {"frozen": frozen, "live": live}[CONVENTIONS[name].oracle]


@pytest.mark.parametrize("name", ["fixed_uv", "unrolled"])
def test_gradient_and_hessian_are_those_of_the_oracle_at_unconverged_vectors(layer_and_space, name):
    """⟨G, W̄²⟩ by differences along random directions, W̄ = W/σ by the matrix; first and second order."""
    layer, space = layer_and_space
    layer.bias = None
    w, n = layer.weight.detach().numpy().copy(), 2
    registered(layer, space, gradient=name, n_power_iterations=n)
    rng = np.random.default_rng(1)
    g, d, e = rng.standard_normal((3, *w.shape))
    start = vectors(layer)
    made, commit = layer.parametrizations.weight.begin(training=True)
    commit()
    original, (u, v) = layer.parametrizations.weight.original, start if name == "unrolled" else vectors(layer)
    sigma = slopes(name, layer, space, w, u, v, n)
    (grad,) = mg.grad((mg.tensor(g) * made.square()).sum(), original, create_graph=True)
    (curved,) = mg.grad((grad * mg.tensor(d)).sum(), original)

    def loss(x):
        return (g * (x / sigma(x)) ** 2).sum()

    first = derivative(lambda t: loss(w + t * d), 0.05)
    assert (grad.detach().numpy() * d).sum() == pytest.approx(first.value, rel=1e-8, abs=3 * first.error)
    second = derivative(lambda t: derivative(lambda s: loss(w + t * d + s * e), 0.05).value, 0.05)
    assert (curved.numpy() * e).sum() == pytest.approx(second.value, rel=1e-5, abs=10 * second.error)


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "exact"])
def test_every_convention_with_the_filters_gradient_for_the_outer_product(name):
    layer, space = LAYERS["Conv2d, stride, dilation, groups"][0](), (5, 4)
    w = layer.weight.detach().numpy().copy()
    registered(layer, space, gradient=name)
    g = np.random.default_rng(1).standard_normal(w.shape)
    made, commit = layer.parametrizations.weight.begin(training=True)
    (grad,) = mg.grad(made, layer.parametrizations.weight.original, mg.tensor(g))
    commit()
    u, v = (x.ravel() for x in vectors(layer))
    sigma = u @ matrix_of(layer, space, w) @ v
    basis = np.eye(w.size).reshape(-1, *w.shape)
    a = np.array([u @ matrix_of(layer, space, one) @ v for one in basis]).reshape(w.shape)  # σ is linear in W
    expected = {
        "fixed_uv": (g - (g * w).sum() / sigma * a) / sigma,
        "detached": g / sigma,
        "straight_through": g,
        "projected": g,
        "elementwise": g * (1 - a * w.sum() / sigma) / sigma,
    }
    if name in expected:
        np.testing.assert_allclose(grad.numpy(), expected[name], rtol=1e-9, atol=1e-11)
    else:
        assert name == "unrolled"  # by differences, above
    left = w / sigma if name == "projected" else w
    np.testing.assert_allclose(layer.parametrizations.weight.original.detach().numpy(), left, rtol=1e-11)


def test_after_many_sweeps_the_layer_is_a_map_of_norm_one(layer_and_space):
    layer, space = layer_and_space
    registered(layer, space, n_init_iterations=1000)
    assert np.linalg.norm(matrix_of(layer, space), 2) == pytest.approx(1, abs=1e-4)  # nearly equal ones are slow


@pytest.mark.parametrize("n_init", [0, 15])
def test_gamma_starts_at_sigma_and_has_its_gradient(n_init):
    layer, space = LAYERS["Conv2d"][0](), (4, 5)
    w = layer.weight.detach().numpy().copy()
    registered(layer, space, learnable_scale=True, factor=2.0, n_init_iterations=n_init)
    u, v = (x.ravel() for x in vectors(layer))
    gamma = layer.parametrizations.weight.state.gamma
    assert gamma.item() == pytest.approx(u @ matrix_of(layer, space, w) @ v, rel=1e-10)
    np.testing.assert_allclose(layer.weight.detach().numpy(), 2 * w, rtol=1e-10)
    g = np.random.default_rng(1).standard_normal(w.shape)
    (grad,) = mg.grad(layer.weight, gamma, mg.tensor(g))
    assert grad.item() == pytest.approx((g * 2 * w).sum() / gamma.item(), rel=1e-10)


@pytest.mark.parametrize("c", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("name", ["fixed_uv", "unrolled", "detached"])
def test_scale_does_not_matter_in_float32(c, name):
    made = []
    for scale in (1.0, c):
        mg.manual_seed(3)
        layer = mg.nn.Conv2d(3, 4, 3, padding=1)
        with mg.no_grad():
            layer.weight.copy_(layer.weight * scale)
        registered(layer, (4, 4), gradient=name, n_init_iterations=1)
        out = layer(mg.ones(1, 3, 4, 4))
        (grad,) = mg.grad((out * out).sum(), layer.parametrizations.weight.original)
        made.append((out.detach().numpy(), grad.numpy().astype(np.float64) * scale))
    np.testing.assert_allclose(made[1][0], made[0][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made[1][1], made[0][1], rtol=1e-3, atol=1e-4 * np.abs(made[0][1]).max())


@pytest.mark.parametrize("dtype", [mg.float16, mg.float32, mg.float64])
@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "exact"])
def test_a_zero_weight_never_gives_nan(dtype, name):
    layer = mg.nn.Conv2d(2, 3, 3, padding=1, dtype=dtype)
    with mg.no_grad():
        layer.weight.zero_()
    registered(layer, 4, gradient=name, n_init_iterations=2)
    before = vectors(layer)
    layer(mg.ones(1, 2, 4, 4, dtype=dtype)).sum().backward()
    grad = layer.parametrizations.weight.original.grad.numpy()
    assert np.isfinite(grad).all()
    assert grad.any() == (name in ("straight_through", "projected"))
    for x, y in zip(before, vectors(layer), strict=True):
        assert np.array_equal(x, y) and np.linalg.norm(x) == pytest.approx(1, rel=1e-6)


def test_float16_computes_in_float32():
    layer = mg.nn.Conv2d(3, 4, 3, padding=1, **F64)
    with mg.no_grad():
        layer.weight.copy_(layer.weight.to(mg.float16).to(mg.float64))
    half = copy.deepcopy(layer).to(mg.float16)
    for one in (layer, half):
        mg.manual_seed(1)
        registered(one, 4)
    assert half.parametrizations.weight.state._u_op.dtype == mg.float32
    u, v = (mg.tensor(x.astype(np.float64)) for x in vectors(half))
    layer.parametrizations.weight.state._u_op, layer.parametrizations.weight.state._v_op = u, v
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float16)
    grads = []
    for one, dtype in ((layer, mg.float64), (half, mg.float16)):
        (one(mg.tensor(x, dtype=dtype)) * 0.125).square().sum().backward()
        grads.append(one.parametrizations.weight.original.grad.numpy().astype(np.float64))
    np.testing.assert_allclose(grads[1], grads[0], rtol=5e-3, atol=5e-3 * np.abs(grads[0]).max())


def test_eps_bites_only_where_a_product_nearly_vanishes():
    """As for the matrix: u of a 1×1 filter is shrunk to ‖Wv‖/(ε σ) where v is nearly in the null space."""
    conv, linear = mg.nn.Conv1d(2, 2, 1, bias=False, **F64), mg.nn.Linear(2, 2, bias=False, **F64)
    with mg.no_grad():
        for layer in (conv, linear):
            layer.weight.copy_(mg.tensor([[1.0, 0.0], [0.0, 1e-3]]).reshape(layer.weight.shape).to(mg.float64))
    registered(conv, 1, eps=0.9)
    spectral_norm(linear, eps=0.9, n_init_iterations=0)
    v = unit(np.array([1e-3, 1.0]))
    conv.parametrizations.weight.state._v_op.copy_(mg.tensor(v.reshape(2, 1)))
    linear.parametrizations.weight.state._v.copy_(mg.tensor(v))
    conv(mg.ones(1, 2, 1, dtype=mg.float64)), linear(mg.ones(1, 2, dtype=mg.float64))
    _, u, v = parts(linear)
    assert np.linalg.norm(u.numpy()) < 0.01
    np.testing.assert_allclose(vectors(conv)[0].ravel(), u.numpy(), rtol=1e-12)
    np.testing.assert_allclose(vectors(conv)[1].ravel(), v.numpy(), rtol=1e-12)
    np.testing.assert_allclose(conv.weight.detach().numpy()[..., 0], linear.weight.detach().numpy(), rtol=1e-12)


# The module -----------------------------------------------------------------------------------------------------------


def test_state_has_names_of_its_own_and_survives():
    layer = registered(mg.nn.Conv2d(2, 3, 3, padding=1, **F64), 4)
    x = mg.randn(1, 2, 4, 4, dtype=mg.float64)
    layer(x)
    assert list(layer.state_dict()) == [
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0._u_op",
        "parametrizations.weight.0._v_op",
    ]
    other = registered(mg.nn.Conv2d(2, 3, 3, padding=1, **F64), 4)
    other.load_state_dict(layer.state_dict())
    copies = [other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = layer(x).tolist()
    assert [one(x).tolist() for one in copies] == [expected] * 3
    with pytest.raises(ValueError, match=r"_u: unexpected"):
        layer.load_state_dict(spectral_norm(mg.nn.Conv2d(2, 3, 3, padding=1, **F64)).state_dict())
    baked = layer.eval()(x).tolist()
    assert remove_spectral_norm(layer)(x).tolist() == baked and sorted(layer.state_dict()) == ["bias", "weight"]


def test_same_padding_lazy_layers_and_wrappers():
    mg.manual_seed(0)
    lazy = registered(mg.nn.LazyConv2d(3, (3, 2), padding="same", bias=False, dtype=mg.float64), (5, 4))
    x = mg.randn(1, 2, 5, 4, dtype=mg.float64)
    assert lazy(x).shape == (1, 3, 5, 4)
    for _ in range(2000):
        lazy.parametrizations.weight.begin(training=True)[1]()
    eye = mg.tensor(np.eye(40).reshape(40, 2, 5, 4))
    assert np.linalg.norm(lazy.eval()(eye).detach().numpy().reshape(40, -1), 2) == pytest.approx(1, abs=1e-6)
    wrapped = mg.nn.SpectralNorm(mg.nn.Conv1d(1, 1, 3), norm="operator", input_shape=7)
    assert "layer.parametrizations.weight.0._u_op" in wrapped.state_dict()
    assert "norm='operator'" in repr(wrapped)


def test_errors():
    conv = mg.nn.Conv2d(2, 3, 3)
    for options, message in (
        ({"norm": "frobenius"}, "expected norm 'matrix' or 'operator'; got 'frobenius'"),
        ({"norm": "operator"}, "expected input_shape, their extents in space; got None"),
        ({"norm": "operator", "input_shape": 2}, "expected an input_shape that the filters fit into"),
        ({"norm": "operator", "input_shape": (4, 4, 4)}, "expected input_shape to be an int or 2 ints"),
        ({"norm": "operator", "input_shape": 4, "gradient": "exact"}, "gradient='exact' takes the pair"),
        ({"norm": "operator", "input_shape": 4, "dim": 1}, "dim belongs to norm='matrix'"),
        ({"input_shape": 4}, "input_shape belongs to norm='operator'"),
    ):
        with pytest.raises(ValueError, match=message):
            spectral_norm(conv, **options)
    assert list(conv.state_dict()) == ["weight", "bias"]
    with pytest.raises(ValueError, match=r"that of a convolution; 'weight' of Linear '1' makes none"):
        model = mg.nn.Sequential(conv, mg.nn.Linear(2, 2))
        spectral_norm(model, norm="operator", input_shape=4, where=lambda path, module: True)
    assert list(conv.state_dict()) == ["weight", "bias"]


# In the diagnosis of a model ------------------------------------------------------------------------------------------


def small_model(gradient="fixed_uv"):
    mg.manual_seed(0)
    conv = mg.nn.Conv2d(1, 2, 3, stride=2, padding=1, **F64)
    back = mg.nn.ConvTranspose2d(2, 1, 2, **F64)
    w = [matrix_of(conv, (4, 4)), matrix_of(back, (2, 2))]
    registered(conv, (4, 4), gradient=gradient), registered(back, (2, 2), gradient=gradient)
    model = mg.nn.Sequential(conv, mg.nn.SiLU(), back)
    x, target = mg.randn(3, 1, 4, 4, dtype=mg.float64), mg.randn(3, 1, 3, 3, dtype=mg.float64)
    return model, lambda: (model(x) * target).sum(), w


def test_diagnose_knows_the_norm_of_a_convolution():
    model, loss, matrices = small_model("detached")
    for row, matrix, layer in zip(mg.spectral.diagnose(model, loss), matrices, (model[0], model[2]), strict=True):
        u, v = (x.ravel() for x in vectors(layer))
        values = np.linalg.svd(matrix, compute_uv=False)
        assert row["shape"] == matrix.shape and row["sigma_hat"] == pytest.approx(u @ matrix @ v, rel=1e-10)
        assert row["sigma"] == pytest.approx(values[0], rel=1e-9)
        assert row["gap"] == pytest.approx(values[1] / values[0], rel=1e-8)
        assert row["radial"] == pytest.approx(row["lam"], rel=1e-9) and not row["invariant"]


def test_compare_gradients_writes_a_convolution_out():
    model, loss, _ = small_model()
    table = mg.spectral.compare_gradients(model, loss)
    assert str(table).count("—") == 2 * 5  # of "exact": three oracles, and how far off it is
    for row in table:
        name = row["convention"]
        assert row["meets"] == ([CONVENTIONS[name].oracle] if CONVENTIONS[name].oracle and name != "exact" else [])
        for key in ("frozen", "svd", "live", "svd_error", "relative", "angle"):
            assert (row[key] is None) == (name == "exact")
    (row,) = mg.spectral.compare_gradients(model, loss, like="torch", layers="0")  # of the reshaped weight
    assert row["meets"] == ["frozen"]
    large = registered(mg.nn.Conv2d(3, 3, 3, padding=1, **F64), 64)
    with pytest.raises(ValueError, match=r"is a matrix \(12288, 12288\): too large to be written out"):
        mg.spectral.compare_gradients(large, lambda: large(mg.ones(1, 3, 64, 64, dtype=mg.float64)).sum())
