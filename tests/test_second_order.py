"""Second order: double backward through whole normalized networks, and the Hessian of W ↦ ℓ(W/σ₁(W)) itself."""

import itertools

import numpy as np
import pytest
from naive_spectral import case, matrix, pulled_back
from normalized_layers import F64, parts, same, snapshot

import minigrad as mg
from minigrad._differences import derivative
from minigrad.nn.utils import spectral_norm
from minigrad.spectral import model_hvp, true_hvp

CASES = [((4, 6), 0), ((6, 4), 0), ((5, 5), 1), ((5, 3), 1), ((3, 2, 2, 3), 0), ((2, 5, 3), 1), ((7,), 0), ((1, 4), 0)]


# One weight -----------------------------------------------------------------------------------------------------------


def loss_of(c, b):
    """Σ c W̄³ + (Σ b W̄)²: third derivatives, and entries that depend on one another."""
    return lambda x: (c * x * x * x).sum() + (b * x).sum() * (b * x).sum()


def numpy_gradient(x, c, b, dim):
    """The gradient of W ↦ ℓ(W/σ₁(W)), by SVD."""
    left, values, right = np.linalg.svd(matrix(x, dim), full_matrices=False)
    w_bar = x / values[0]
    return pulled_back(3 * c * w_bar**2 + 2 * (b * w_bar).sum() * b, x, left[:, 0], right[0], dim)


def products(w, d, c, b, dim=0):
    found = true_hvp(loss_of(mg.tensor(c), mg.tensor(b)), mg.tensor(w), mg.tensor(d), dim)
    return tuple(x.numpy() for x in found)


@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_the_true_product_is_the_derivative_of_the_gradient(shape, dim):
    """Against differences of NumPy's gradient, and second differences of the loss; `fixed_uv` of the frozen loss."""
    w, _, _, c = case(shape, dim)
    b, d, e = np.random.default_rng(1).standard_normal((3, *shape))
    product, fixed, turning = products(w, d, c, b, dim)
    np.testing.assert_array_equal(product, fixed + turning)
    first = derivative(lambda t: (numpy_gradient(w + t * d, c, b, dim) * e).sum(), 0.02)
    assert (product * e).sum() == pytest.approx(first.value, rel=1e-8, abs=3 * first.error)

    def value(x):
        return loss_of(c, b)(x / np.linalg.norm(matrix(x, dim), 2))

    second = derivative(lambda t: derivative(lambda s: value(w + t * d + s * e), 0.02).value, 0.05)
    assert (product * e).sum() == pytest.approx(second.value, rel=1e-6, abs=10 * second.error)
    left, _, right = np.linalg.svd(matrix(w, dim), full_matrices=False)

    def frozen(x):
        w_bar = x / (left[:, 0] @ matrix(x, dim) @ right[0])
        return pulled_back(3 * c * w_bar**2 + 2 * (b * w_bar).sum() * b, x, left[:, 0], right[0], dim)

    numeric = derivative(lambda t: (frozen(w + t * d) * e).sum(), 0.02)
    assert (fixed * e).sum() == pytest.approx(numeric.value, rel=1e-8, abs=3 * numeric.error)


@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_each_term_is_symmetric_and_along_the_weight_minus_the_gradient(shape, dim):
    w, _, _, c = case(shape, dim)
    b, d, e = np.random.default_rng(1).standard_normal((3, *shape))
    for one, other in zip(products(w, d, c, b, dim), products(w, e, c, b, dim), strict=True):
        assert (one * e).sum() == pytest.approx((other * d).sum(), rel=1e-10, abs=1e-12)
    grad = numpy_gradient(w, c, b, dim)
    tolerance = 1e-10 * np.abs(grad).max()
    product, fixed, turning = products(w, w, c, b, dim)
    np.testing.assert_allclose(product, -grad, atol=tolerance)
    np.testing.assert_allclose(fixed, -grad, atol=tolerance)
    np.testing.assert_allclose(turning, 0, atol=tolerance)


def test_fact_4_the_missing_term_grows_like_one_over_the_gap():
    rng = np.random.default_rng(2)
    left, right = np.linalg.qr(rng.standard_normal((5, 5)))[0], np.linalg.qr(rng.standard_normal((7, 7)))[0]
    b, c, d = rng.standard_normal((3, 5, 7))
    gaps = [1e-1, 1e-2, 1e-3, 1e-4]
    sizes = []
    for gap in gaps:
        found = products(left @ np.diag([1, 1 - gap, 0.6, 0.4, 0.1]) @ right[:5], d, c, b)
        sizes.append([np.linalg.norm(x) for x in found])
    for (_, fixed, turning), (_, closer_fixed, closer) in itertools.pairwise(sizes[1:]):
        assert closer / turning == pytest.approx(10, rel=0.1)
        assert closer_fixed == pytest.approx(fixed, rel=0.1)
    assert sizes[-1][2] > 100 * sizes[-1][1]


def test_degenerate_weights():
    ones = mg.ones(3, 3, **F64)
    repeated = true_hvp(lambda x: x.square().sum() + x[0, 1], mg.eye(3, **F64), ones)
    assert not np.isfinite(repeated.product.numpy()).all() and np.isfinite(repeated.fixed_uv.numpy()).all()
    for term in true_hvp(lambda x: (x + 1).square().sum(), mg.zeros(3, 3, **F64), ones):
        np.testing.assert_array_equal(term.numpy(), 0)


@pytest.mark.parametrize("dtype", [mg.float16, mg.float32])
def test_other_precisions(dtype):
    w, _, _, c = case((4, 6), 0)
    b, d = np.random.default_rng(1).standard_normal((2, 4, 6))
    narrow = [x.astype(dtype) for x in (w, d, c, b)]
    wide = products(*(x.astype(np.float64) for x in narrow))
    for got, expected in zip(products(*narrow), wide, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, atol=20 * np.finfo(dtype).eps * np.abs(expected).max())


def test_a_weight_that_requires_grad_is_left_alone():
    w = mg.randn(3, 4, **F64, requires_grad=True)
    found = true_hvp(lambda x: x.square().sum(), w, mg.ones(3, 4, **F64))
    assert w.grad is None and not any(x.requires_grad for x in found)


# Whole networks -------------------------------------------------------------------------------------------------------


def mlp(nn=mg.nn, **options):
    return nn.Sequential(
        nn.Linear(5, 7, **options), nn.Tanh(), nn.Linear(7, 6, **options), nn.Tanh(), nn.Linear(6, 1, **options)
    )


def convolutional(nn=mg.nn, **options):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, **options), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, stride=2, **options),
        nn.Tanh(), nn.Flatten(), nn.Linear(48, 1, **options),
    )  # fmt: skip


NETWORKS = {"mlp": (mlp, (3, 5)), "conv": (convolutional, (3, 2, 2, 2))}


def weighted(path, module):
    return not isinstance(module, mg.nn.Tanh | mg.nn.Flatten)


def network(kind, **options):
    """A normalized network whose u and v are random, a plain twin of it, and inputs."""
    make, shape = NETWORKS[kind]
    mg.manual_seed(3)
    model = spectral_norm(make(**F64), where=weighted, **{"n_init_iterations": 0, **options})
    return model, make(**F64), mg.randn(*shape, **F64)


def raw_names(model):
    return [name for name, _ in model.named_parameters() if name.endswith("original")]


def random_directions(model, seed):
    rng = np.random.default_rng(seed)
    return {name: mg.tensor(rng.standard_normal(p.shape)) for name, p in model.named_parameters()}


def inner(one, other):
    return sum((one[name].numpy() * other[name].numpy()).sum() for name in one)


def hessian_times(model, loss, directions):
    """What the graph of the model's own convention gives, and its gradient."""
    parameters = dict(model.named_parameters())
    first = mg.grad(loss(), list(parameters.values()), create_graph=True)
    second = mg.grad(first, list(parameters.values()), [directions[name] for name in parameters])
    return tuple(dict(zip(parameters, x, strict=True)) for x in (second, first))


def gradient_penalty(model, x, grad=mg.grad):
    """The mean of (‖∇ₓD‖ − 1)², with its graph."""
    x = x.detach().requires_grad_()
    (slope,) = grad(model(x).sum(), x, create_graph=True)
    return (slope.reshape(len(x), -1).square().sum(1).sqrt() - 1).square().mean()


def weight_penalty(model, x, grad=mg.grad):
    """Σ ‖∂L/∂W‖² over the raw weights, with its graph: its gradient differentiates the node's own backward pass."""
    raw = [p for name, p in model.named_parameters() if name.endswith("original")]
    return sum(g.square().sum() for g in grad(model(x).square().mean(), raw, create_graph=True))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_models_product_is_the_second_difference_of_its_loss(kind):
    """NumPy normalizes by SVD and a network without normalization computes the loss; all parameters move at once."""
    model, plain, x = network(kind)
    d, e = random_directions(model, 1), random_directions(model, 2)
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}

    def loss():  # reads a weight outside of a forward call too
        return (model(x) - 0.3).square().mean() + (model[0].weight + 1).square().mean()

    def value(t, s):
        state = {}
        for name, w in start.items():
            moved = w + t * d[name].numpy() + s * e[name].numpy()
            if name.endswith("original"):
                name = name.replace("parametrizations.weight.original", "weight")
                moved = moved / np.linalg.norm(matrix(moved, 1 if kind == "conv" and name == "2.weight" else 0), 2)
            state[name] = mg.tensor(moved)
        plain.load_state_dict(state)
        with mg.no_grad():
            return ((plain(x) - 0.3).square().mean() + (plain[0].weight + 1).square().mean()).item()

    found = model_hvp(model, loss, d)
    second = derivative(lambda t: derivative(lambda s: value(t, s), 0.02).value, 0.05)
    assert inner(found.product, e) == pytest.approx(second.value, rel=1e-6, abs=10 * second.error)
    assert abs(inner(found.turning, e)) > 1e-3 * abs(second.value)  # what would have been missed


@pytest.mark.parametrize("kind", NETWORKS)
def test_fact_4_a_good_part_of_a_typical_hessian_is_missing(kind):
    model, _, x = network(kind)
    shares = []
    for seed in range(10):
        found = model_hvp(model, lambda: (model(x) - 0.3).square().mean(), random_directions(model, seed))
        shares.append((inner(found.turning, found.turning) / inner(found.product, found.product)) ** 0.5)
    assert 0.05 < np.median(shares) < 0.5


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_models_product_is_that_of_the_exact_convention(kind):
    """The explicit term and the graph through the singular value decomposition agree, whatever else scales a weight."""
    model, _, x = network(kind, gradient="exact", learnable_scale=True, factor=0.7)
    d = random_directions(model, 1)

    def loss():
        return model(x).square().mean() + model[0].weight.square().sum()

    for mode in (True, False):
        expected, _ = hessian_times(model.train(mode), loss, d)
        found = model_hvp(model, loss, d)
        for name, product in expected.items():
            np.testing.assert_allclose(found.product[name].numpy(), product.numpy(), rtol=1e-9, atol=1e-10)
            assert name.endswith("original") == bool(found.turning[name].numpy().any())
        other = model_hvp(model, loss, random_directions(model, 2))
        for one, another in zip(found, other, strict=True):
            there, back = inner(one, random_directions(model, 2)), inner(another, d)
            assert there == pytest.approx(back, rel=1e-9)


def test_a_weight_that_two_modules_share():
    model = mg.nn.Sequential(*(mg.nn.Linear(4, 4, **F64) for _ in range(2)))
    model[1].weight = model[0].weight
    spectral_norm(model, where=weighted, gradient="exact")
    d, x = random_directions(model, 1), mg.randn(3, 4, **F64)

    def loss():
        return model(x).square().mean()

    expected, _ = hessian_times(model, loss, d)
    for name, product in model_hvp(model, loss, d).product.items():
        np.testing.assert_allclose(product.numpy(), expected[name].numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", NETWORKS)
def test_fact_5_along_the_weights_the_product_is_minus_the_gradient(kind):
    """One layer at a time and all at once: at random u and v with those fixed, and for the true product.

    A layer's own block gives −∂L/∂W, those of all other parameters 0: their gradients do not know its scale.
    """
    model, _, x = network(kind)
    model.eval()
    raw = raw_names(model)

    def loss():
        return (model(x) - 0.3).square().mean() + gradient_penalty(model, x)

    zero = {name: mg.zeros_like(p) for name, p in model.named_parameters()}
    weights = {name: p.detach() for name, p in model.named_parameters()}
    model_of_sigma_1, _, _ = network(kind, gradient="exact")
    model_of_sigma_1.eval()

    def exact_loss():
        return (model_of_sigma_1(x) - 0.3).square().mean()

    for chosen in (*([name] for name in raw), raw):
        along = {name: weights[name] if name in chosen else zero[name] for name in weights}
        product, grad = hessian_times(model, loss, along)
        _, exact_grad = hessian_times(model_of_sigma_1, exact_loss, along)
        true = model_hvp(model, lambda: (model(x) - 0.3).square().mean(), along).product
        for found, gradient in ((product, grad), (true, exact_grad)):
            size = max(np.abs(g.detach().numpy()).max() for g in gradient.values())
            for name in weights:
                expected = -gradient[name].detach().numpy() if name in chosen else 0
                np.testing.assert_allclose(found[name].numpy(), expected, atol=1e-10 * size)


def test_model_hvp_steps_and_changes_nothing():
    model, _, x = network("mlp")
    before, training = snapshot(model), [m.training for m in model.modules()]
    along = random_directions(model, 1)
    read = model[0].weight.detach().numpy().copy()
    model_hvp(model, lambda: model(x).square().mean(), along)

    def broken():
        model(x)
        raise LookupError("the loss failed")

    with pytest.raises(LookupError, match="the loss failed"):
        model_hvp(model, broken, along)
    assert same(snapshot(model), before) and [m.training for m in model.modules()] == training
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), read)
    assert all(p.grad is None for p in model.parameters())
    model(x)
    assert not same(snapshot(model), before)  # forward calls step u and v again


def test_what_does_not_take_part():
    """Frozen parameters are constants, directions left out are 0, and so is what the loss does not depend on."""
    model, _, x = network("mlp")
    model[0].parametrizations.weight.original.requires_grad = False
    name = raw_names(model)[1]
    direction = random_directions(model, 1)[name]
    found = model_hvp(model, lambda: model[:3](x).square().mean(), {name: direction})
    assert raw_names(model)[0] not in found.product and found.product[name].numpy().any()
    for term in found:
        assert not term["4.bias"].numpy().any() and not term[raw_names(model)[2]].numpy().any()
    with mg.no_grad():
        parts(model[2])[0].copy_(mg.eye(7, **F64)[:6])  # a repeated σ₁, which does not turn if it does not move
    found = model_hvp(model, lambda: model(x).square().mean(), {"0.bias": mg.ones(7, **F64)})
    assert all(np.isfinite(product.numpy()).all() for product in found.product.values())


def test_errors():
    w = mg.ones(3, 4)
    with pytest.raises(ValueError, match=r"true_hvp: expected the direction in the shape .*\(3, 4\); got \(4, 3\)"):
        true_hvp(mg.sum, w, mg.ones(4, 3))
    with pytest.raises(TypeError, match=r"true_hvp: expected the direction in the dtype .*float32; got float64"):
        true_hvp(mg.sum, w, mg.ones(3, 4, **F64))
    with pytest.raises(IndexError, match="dim"):
        true_hvp(mg.sum, w, w, 2)
    with pytest.raises(RuntimeError, match="scalar"):
        true_hvp(lambda x: x, w, w)
    model, _, x = network("mlp")
    with pytest.raises(ValueError, match=r"no parameter '0.weight' that requires grad; there is 0.bias, 0.param"):
        model_hvp(model, lambda: model(x).sum(), {"0.weight": w})
    with pytest.raises(ValueError, match=r"the direction of '0.bias' in the shape of the weight, \(7,\); got \(3, 4\)"):
        model_hvp(model, lambda: model(x).sum(), {"0.bias": w})
    conv = spectral_norm(mg.nn.Conv1d(1, 1, 2, **F64), norm="operator", input_shape=6)
    with pytest.raises(ValueError, match="norm='operator'"):
        model_hvp(conv, lambda: conv(mg.ones(1, 1, 6, **F64)).sum(), {})


# Double backward: gradients of gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("of", [gradient_penalty, weight_penalty])
def test_torch_has_the_same_gradient_of_a_gradient(of, kind, training):
    """With respect to all raw weights and biases, at u and v that are far from converged."""
    torch = pytest.importorskip("torch")
    mine, _, x = network(kind)
    theirs = NETWORKS[kind][0](torch.nn, dtype=torch.float64)
    for module in theirs:
        if hasattr(module, "weight"):
            torch.nn.utils.parametrizations.spectral_norm(module)
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in mine.state_dict().items()}, strict=True)
    penalty = of(mine.train(training), x)
    penalty.backward()
    expected = of(theirs.train(training), torch.tensor(x.numpy()), torch.autograd.grad)
    expected.backward()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-12)
    twins = dict(theirs.named_parameters())
    compared = [name for name, p in mine.named_parameters() if p.grad is not None]
    assert compared == [name for name, p in mine.named_parameters() if twins[name].grad is not None]
    assert set(raw_names(mine)) <= set(compared)
    for name, p in mine.named_parameters():
        if name in compared:
            np.testing.assert_allclose(p.grad.numpy(), twins[name].grad.numpy(), rtol=1e-10, atol=1e-10)


def test_the_gradient_of_a_gradient_penalty_is_its_difference():
    """The penalty in NumPy, ∇ₓD by the chain rule by hand, u and v frozen where the forward call left them."""
    model, _, x = network("mlp")
    penalty = gradient_penalty(model, x)
    penalty.backward()
    layers = [model[i] for i in (0, 2, 4)]
    trained = [p for m in layers for p in (parts(m)[0], m.bias)]
    start = [p.detach().numpy() for p in trained]
    vectors = [[v.numpy() for v in parts(m)[1:]] for m in layers]
    rng = np.random.default_rng(5)

    def value(raw):
        a, b, c = (w / (u @ w @ v) for w, (u, v) in zip(raw[::2], vectors, strict=True))
        one = np.tanh(x.numpy() @ a.T + raw[1])
        two = np.tanh(one @ b.T + raw[3])
        slope = (((1 - two**2) * c) @ b * (1 - one**2)) @ a
        return ((np.linalg.norm(slope, axis=1) - 1) ** 2).mean()

    assert penalty.item() == pytest.approx(value(start), rel=1e-12)
    for _ in range(5):
        d = [rng.standard_normal(w.shape) for w in start]
        numeric = derivative(lambda t, d=d: value([w + t * y for w, y in zip(start, d, strict=True)]), 0.02)
        analytic = sum((p.grad.numpy() * y).sum() for p, y in zip(trained[:-1], d, strict=False))  # not the last bias
        assert analytic == pytest.approx(numeric.value, rel=1e-9, abs=3 * numeric.error)
