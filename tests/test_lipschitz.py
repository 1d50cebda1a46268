"""`mg.spectral.lipschitz_bounds`: the constants of layers, the chain that they must make, and the Jacobians below."""

import math

import numpy as np
import pytest
from normalized_layers import F64, same, snapshot

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.spectral import lipschitz, lipschitz_bounds

nn = mg.nn


def dense(f, shape):
    """The matrix of a linear (or affine) map of one example, in NumPy: its values at the unit vectors."""
    size = math.prod(shape)
    at_zero = f(mg.zeros(1, *shape, **F64)).detach().numpy()
    values = f(mg.tensor(np.eye(size).reshape(size, *shape))).detach().numpy() - at_zero
    return values.reshape(size, -1).T


def quotients(model, x, rng, count=200):
    """‖f(x) − f(y)‖/‖x − y‖ for pairs near and far."""
    a = x.numpy()[rng.integers(0, len(x), count)]
    b = a + rng.standard_normal(a.shape) * 10.0 ** rng.uniform(-4, 1, (count, *[1] * (a.ndim - 1)))
    far = (model.eval()(mg.tensor(a)) - model(mg.tensor(b))).detach().numpy().reshape(count, -1)
    return np.linalg.norm(far, axis=1) / np.linalg.norm((a - b).reshape(count, -1), axis=1)


def network():
    return nn.Sequential(
        spectral_norm(nn.Conv2d(2, 4, 3, padding=1, **F64), n_init_iterations=0),
        nn.BatchNorm2d(4, **F64),
        nn.SiLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2, 1),
        nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, **F64),
        nn.ELU(1.5),
        nn.Flatten(),
        spectral_norm(nn.Linear(288, 6, **F64), n_init_iterations=1, factor=0.7),
        nn.LeakyReLU(-2.0),
        nn.Unflatten(1, (2, 3)),
        nn.Linear(3, 4, **F64),
        nn.Dropout(0.5),
    )


def test_upper_is_above_lower_is_above_nothing_that_happens():
    model, x = network(), mg.randn(5, 2, 8, 8, **F64)
    model(mg.randn(20, 2, 8, 8, **F64))  # running statistics of its own
    bounds = lipschitz_bounds(model, x)
    rng = np.random.default_rng(0)
    assert bounds.upper >= max(bounds.lower, quotients(model, x, rng).max())
    assert bounds[:2] == lipschitz_bounds(model.eval(), x)[:2]  # it was in training mode before
    near = x[bounds.example].numpy()[None] + 1e-6 * rng.standard_normal((40, 2, 8, 8))
    moved = model(mg.tensor(near)) - model(x[bounds.example : bounds.example + 1])
    ratios = np.linalg.norm(moved.detach().numpy().reshape(40, -1), axis=1)
    ratios /= np.linalg.norm((near - x[bounds.example].numpy()).reshape(40, -1), axis=1)
    assert 0 < ratios.max() <= bounds.lower * (1 + 1e-4)
    assert bounds.upper == pytest.approx(math.prod(row["constant"] for row in bounds.layers), rel=1e-14)
    assert [row["layer"] for row in bounds.layers] == [str(i) for i in range(14)]
    assert f"{bounds.lower:.6g} ≤ Lipschitz constant ≤ {bounds.upper:.6g}" in str(bounds)
    assert "MaxPool2d" in bounds._repr_html_()


def test_a_linear_network_of_one_layer_is_exact():
    for layer, shape in [(nn.Linear(7, 5, **F64), (7,)), (nn.Conv2d(2, 3, 3, padding=1, **F64), (2, 4, 4))]:
        spectral_norm(layer, n_init_iterations=0)
        bounds = lipschitz_bounds(layer, mg.randn(3, *shape, **F64))
        sigma = np.linalg.norm(dense(layer.eval(), shape), 2)
        assert bounds.lower == pytest.approx(sigma, rel=1e-10)
        assert bounds.upper == pytest.approx(sigma, rel=1e-10 if shape == (7,) else 1e-8)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 3, 3, stride=2, **F64), (2, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, **F64), (4, 6, 5)),
        (nn.Conv2d(2, 3, (2, 4), padding="same", **F64), (2, 5, 5)),
        (nn.Conv3d(1, 2, 2, dilation=2, **F64), (1, 4, 3, 4)),
        (nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1, **F64), (3, 5)),
        (nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, groups=2, **F64), (4, 3, 4)),
        (nn.ConvTranspose3d(1, 2, 2, **F64), (1, 2, 3, 2)),
        (nn.AvgPool2d(2), (2, 6, 6)),
        (nn.AvgPool2d(3, 1, 1), (2, 5, 6)),
        (nn.AvgPool2d((3, 2), (2, 1), 1, count_include_pad=False), (1, 7, 5)),
        (nn.AvgPool2d(2, 3), (1, 7, 5)),
        (nn.Upsample(scale_factor=(2, 3)), (1, 3, 2)),
        (nn.Flatten(), (3, 2)),
        (nn.Dropout(0.9), (5,)),
    ],
)
def test_linear_layers_have_the_norm_of_their_matrix(layer, shape):
    """And not that of the reshaped weight, which is another number."""
    (row,) = lipschitz_bounds(layer, mg.randn(2, *shape, **F64)).layers
    assert row["constant"] == pytest.approx(np.linalg.norm(dense(layer.eval(), shape), 2), rel=1e-7)
    assert row["shape"] == (2, *shape) and row["kind"] == type(layer).__name__


def test_the_weight_that_is_used_counts_and_not_its_estimate():
    layer = spectral_norm(nn.Linear(6, 4, **F64), n_init_iterations=0, factor=3.0)
    constant = lipschitz_bounds(layer, mg.randn(2, 6, **F64)).upper
    assert constant == pytest.approx(np.linalg.norm(layer.weight.detach().numpy(), 2), rel=1e-13)
    assert constant > 3.05  # not factor · σ̂/σ̂


def test_batch_norm_scales_by_its_running_statistics():
    norm = nn.BatchNorm1d(3, **F64)
    with mg.no_grad():
        norm.weight.copy_(mg.tensor([1.0, -5.0, 2.0], **F64))
        norm.running_var.copy_(mg.tensor([0.01, 0.04, 0.25], **F64))
    plain, x = nn.BatchNorm1d(3, affine=False, **F64), mg.randn(4, 3, **F64)
    assert lipschitz_bounds(norm, x).upper == pytest.approx(5 / math.sqrt(0.04 + 1e-5), rel=1e-14)
    assert lipschitz_bounds(plain, x).upper == pytest.approx(1 / math.sqrt(1 + 1e-5), rel=1e-14)


@pytest.mark.parametrize(
    ("layer", "reach"),
    [
        (nn.ReLU(), 1), (nn.LeakyReLU(0.1), 1), (nn.LeakyReLU(-3.0), 1), (nn.ELU(), 1), (nn.ELU(2.5), 1),
        (nn.ELU(-2.5), 1), (nn.Tanh(), 1), (nn.Sigmoid(), 1), (nn.Softplus(), 40), (nn.Softplus(3.0), 20),
        (nn.GELU(), 8), (nn.SiLU(), 12),
    ],
)  # fmt: skip
def test_activations_have_their_largest_slope(layer, reach):
    """A dense scan of the derivative: none above the constant, and one within 1e-9 of it."""
    points = np.linspace(-reach, reach, 2_000_001)
    points = points[points != 0]
    constant = lipschitz_bounds(layer, mg.ones(1, 1, **F64)).upper
    x = mg.tensor(points, requires_grad=True)
    (slopes,) = mg.grad(layer(x).sum(), x)
    largest = np.abs(slopes.numpy()).max()
    assert largest <= constant * (1 + 1e-15)
    assert largest >= constant * (1 - 3e-6 if isinstance(layer, nn.ELU) else 1 - 1e-9)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "shape"),
    [
        (2, 2, 0, (6, 6)),
        (3, 1, 1, (5, 4)),
        (3, 2, 0, (7, 5)),
        ((2, 3), (1, 2), (1, 0), (4, 7)),
        (5, 1, 0, (5, 6)),
    ],
)
def test_max_pooling_attains_its_constant_and_nothing_more(kernel, stride, padding, shape):
    layer = nn.MaxPool2d(kernel, stride, padding)
    constant = lipschitz_bounds(layer, mg.randn(1, 1, *shape, **F64)).upper
    peaks = mg.tensor(np.eye(math.prod(shape)).reshape(-1, 1, *shape))  # one input above all others
    assert lipschitz_bounds(layer, peaks).lower == pytest.approx(constant, rel=1e-12)
    assert quotients(layer, mg.randn(50, 1, *shape, **F64), np.random.default_rng(0)).max() <= constant * (1 + 1e-12)


def test_jacobians_are_those_of_torch():
    torch = pytest.importorskip("torch")
    model = nn.Sequential(nn.Conv2d(1, 3, 3, **F64), nn.SiLU(), nn.Flatten(), nn.Linear(27, 4, **F64), nn.Tanh())
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(27, 4), torch.nn.Tanh()
    ).double()
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in model.state_dict().items()})
    x = mg.randn(6, 1, 5, 5, **F64)
    norms = [
        np.linalg.norm(torch.autograd.functional.jacobian(theirs, torch.tensor(one)[None]).numpy().reshape(4, 25), 2)
        for one in x.numpy()
    ]
    bounds = lipschitz_bounds(model, x)
    assert bounds.lower == pytest.approx(max(norms), rel=1e-12) and bounds.example == int(np.argmax(norms))


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = spectral_norm(nn.Linear(4, 4, **F64), n_init_iterations=0)
            self.act = nn.Tanh()

        def forward(self, x):
            return self.act(self.inner(self.act(self.inner(x)).reshape(-1, 2, 2).flatten(1)))

    model = Twice()
    bounds = lipschitz_bounds(model, mg.randn(3, 4, **F64))
    sigma = np.linalg.norm(model.inner.weight.detach().numpy(), 2)
    assert [row["layer"] for row in bounds.layers] == ["inner", "act", "inner", "act"]
    assert bounds.upper == pytest.approx(sigma**2, rel=1e-12)


def test_nothing_of_the_model_changes():
    model, x = network(), mg.randn(3, 2, 8, 8, **F64)
    model[1].eval()
    before, flags = snapshot(model), [m.training for m in model.modules()]
    lipschitz_bounds(model, x)
    assert same(before, snapshot(model)) and flags == [m.training for m in model.modules()]
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters()) and not x.requires_grad
    with pytest.raises(ValueError):
        lipschitz_bounds(model, mg.randn(3, 5, 8, 8, **F64))
    assert not any(m._forward_hooks for m in model.modules())
    with mg.no_grad():
        assert lipschitz_bounds(model, x).lower > 0


def test_float32():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Flatten())
    x = mg.randn(8, 6)
    single = lipschitz_bounds(model, x)
    double = lipschitz_bounds(model.to(mg.float64), x.to(mg.float64))
    assert single.lower == pytest.approx(double.lower, rel=1e-5)
    assert single.upper == pytest.approx(double.upper, rel=1e-12)


class Function(nn.Module):
    """A model whose forward is a function of its layers and of x."""

    def __init__(self, f):
        super().__init__()
        self.a, self.b, self.f = nn.Linear(4, 4, **F64), nn.Linear(4, 4, **F64), f

    def forward(self, x):
        return self.f(self.a, self.b, x)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda a, b, x: x + a(x), "the output comes from op 'add', and is not what Linear 'a' gives"),
        (lambda a, b, x: b(x + a(x)), "the input of Linear 'b' comes from op 'add', and is not what Linear 'a' gives"),
        (lambda a, b, x: a(x) + b(x), "the input of Linear 'b' comes from elsewhere, and is not what Linear 'a' gives"),
        (lambda a, b, x: b(a(x).relu()), "the input of Linear 'b' comes from op 'relu'"),
        (lambda a, b, x: a(2 * x), "the input of Linear 'a' comes from op 'mul', and is not what x gives"),
        (lambda a, b, x: b(a(x).detach()), "the input of Linear 'b' comes from elsewhere"),
        (lambda a, b, x: (b(a(x)), a(x))[0], "the input of Linear 'a' comes from"),
        (lambda a, b, x: b(a(x).reshape(-1, 4, 1).permute(1, 0, 2).reshape(-1, 4)), "comes from op 'permute'"),
        (lambda a, b, x: b(a(x).reshape(1, -1, 4)).reshape(-1, 4), r"'b' to be 3 examples; got shape \(1, 3, 4\)"),
        (lambda a, b, x: b(x=a(x)), "Linear 'b' is called with its input by name"),
        (lambda a, b, x: a(x).sum(), "the output comes from op 'sum'"),
        (lambda a, b, x: [a(x)], "expected the model to return a tensor; got list"),
    ],
)
def test_what_is_no_chain_of_layers_is_refused(f, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_bounds(Function(f), mg.randn(3, 4, **F64))
    assert lipschitz_bounds(Function(lambda a, b, x: b(a(x))), mg.randn(3, 4, **F64)).upper > 0


def test_errors():
    x, image = mg.randn(2, 4, **F64), mg.randn(2, 3, 3, **F64)
    hooked, subclass = nn.Linear(4, 4, **F64), type("Double", (nn.Linear,), {})(4, 4, **F64)
    looked_up = Function(lambda a, b, x: a((x * 0).to(mg.int64)))
    looked_up.a = nn.Embedding(4, 2)
    hooked.register_forward_hook(lambda module, args, out: 10 * out)
    for model, given, error, message in [
        (nn.Embedding(4, 2), mg.zeros(2, 2, dtype=mg.int64), TypeError, "a floating x; got int64.*Embedding"),
        (looked_up, x, ValueError, "no constant is known for Embedding 'a'"),
        (nn.RNNCell(4, 3, **F64), x, ValueError, "no constant is known for RNNCell; there is one for Linear, Conv1d"),
        (nn.Sequential(nn.Tanh(), subclass), x, ValueError, "no constant is known for Double '1'"),
        (nn.Sequential(hooked), x, ValueError, "Linear '0' has a forward hook"),
        (nn.BatchNorm1d(4, track_running_stats=False, **F64), x, ValueError, "BatchNorm1d has no running statistics"),
        (nn.Conv2d(2, 2, 2, **F64), image, ValueError, r"a batch \(N, C, …\) as the input of Conv2d; got .*3, 3\)"),
        (nn.Linear(4, 4, **F64), x / 0, ValueError, r"a finite model\(x\); got NaN or infinity"),
        (nn.Tanh(), mg.zeros(0, 4), ValueError, r"a batch \(N, …\) with examples; got shape \(0, 4\)"),
        (nn.Tanh(), mg.zeros(4), ValueError, r"a batch \(N, …\) with examples; got shape \(4,\)"),
    ]:
        with pytest.raises(error, match=message):
            lipschitz_bounds(model, given)


def test_the_constants_of_gelu_and_silu_are_stationary_points():
    """From their second derivatives, by bisection: √2, and 2.3993572805."""

    def root(f, low, high):
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if (f(low) > 0) == (f(middle) > 0) else (low, middle)
        return low

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    at = root(lambda x: 2 - x * (2 * sigmoid(x) - 1), 1, 4)
    assert pytest.approx(sigmoid(at) * (1 + at * (1 - sigmoid(at))), rel=1e-15) == lipschitz.SILU_SLOPE
    normal = math.exp(-1) / math.sqrt(2 * math.pi)
    assert pytest.approx((1 + math.erf(1)) / 2 + math.sqrt(2) * normal, rel=1e-15) == lipschitz.GELU_SLOPE
