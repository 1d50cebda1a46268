"""Where a layer's parameters come from: initializations, the layers' own defaults, and lazy layers."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim

# Initializations


@pytest.mark.parametrize(
    ("fill", "bound", "std"),
    [
        (lambda w: nn.init.uniform_(w, -2.0, 2.0), 2.0, 2 / math.sqrt(3)),
        (lambda w: nn.init.normal_(w, 0.0, 0.3), math.inf, 0.3),
        (lambda w: nn.init.xavier_uniform_(w, 2.0), 2 * math.sqrt(6 / 540), 2 * math.sqrt(2 / 540)),
        (lambda w: nn.init.xavier_normal_(w), math.inf, math.sqrt(2 / 540)),
        (lambda w: nn.init.kaiming_uniform_(w, math.sqrt(5)), 1 / math.sqrt(180), 1 / math.sqrt(3 * 180)),
        (lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"), math.sqrt(6 / 180), math.sqrt(2 / 180)),
        (lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="tanh"), math.inf, 5 / 3 / math.sqrt(360)),
    ],
)
def test_initializations_have_their_bounds_and_moments(fill, bound, std):
    mg.manual_seed(0)
    w = nn.Parameter(mg.empty(40, 20, 9))  # fans: 180 in, 360 out
    assert fill(w) is w
    values = w.detach().numpy()
    assert abs(values.mean()) < 0.05 * std and abs(values.std() / std - 1) < 0.02
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert bound == math.inf or np.abs(values).max() > 0.99 * bound


@pytest.mark.parametrize(
    "fill", [nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_normal_, nn.init.orthogonal_]
)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_a_weight_without_elements_is_left_alone(fill, shape):
    w = mg.empty(shape)
    assert fill(w) is w and w.shape == shape


def test_initializations_draw_from_the_generator_given():
    fills = [
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.xavier_uniform_,
        nn.init.xavier_normal_,
        nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_,
        nn.init.orthogonal_,
    ]
    for fill in fills:
        state = mg.Generator(0).get_state()
        w, again, other = (fill(mg.empty(4, 3), generator=mg.Generator(seed)).tolist() for seed in (5, 5, 6))
        assert w == again != other and state == mg.Generator(0).get_state()


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 2, 2, 2), (5, 5)])
def test_orthogonal(shape):
    w = nn.init.orthogonal_(mg.empty(shape, dtype=mg.float64), gain=2.0).numpy().reshape(shape[0], -1)
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-12)


def test_constants_and_errors():
    assert nn.init.constant_(mg.empty(2), 3.0).tolist() == [3.0, 3.0]
    assert nn.init.zeros_(mg.empty(2)).tolist() == [0.0, 0.0]
    assert nn.init.ones_(mg.empty(2, dtype=mg.float64)).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        nn.init.orthogonal_(mg.empty(3))
    with pytest.raises(ValueError, match="out of linear, sigmoid, tanh, relu, leaky_relu; got 'selu'"):
        nn.init.kaiming_normal_(mg.empty(3, 3), nonlinearity="selu")
    with pytest.raises(ValueError, match="'fan_in' or 'fan_out'"):
        nn.init.kaiming_normal_(mg.empty(3, 3), mode="fan")


# Layers' defaults


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: nn.Linear(100, 80), 100),
        (lambda: nn.Conv2d(16, 64, 3, groups=2), 72),
        (lambda: nn.ConvTranspose2d(64, 16, 3), 144),
        (lambda: nn.GRUCell(50, 64), 64),
    ],
)
def test_layers_start_inside_torchs_bounds(layer, fan_in):
    for parameter in layer().parameters():
        largest = np.abs(parameter.detach().numpy()).max()
        assert largest <= (1 + 1e-6) / math.sqrt(fan_in) and largest > 0.8 / math.sqrt(fan_in)


def test_a_layer_without_inputs_is_its_bias():
    layer = nn.Linear(0, 3)
    assert layer.weight.shape == (3, 0) and layer.bias.tolist() == [0.0, 0.0, 0.0]
    layer(mg.ones(2, 0)).sum().backward()
    assert layer.weight.grad.shape == (3, 0) and layer.bias.grad.tolist() == [2.0, 2.0, 2.0]
    assert nn.LazyLinear(3)(mg.ones(2, 0)).tolist() == [[0.0] * 3] * 2
    assert nn.init.kaiming_normal_(mg.empty(3, 0)).shape == (3, 0)


def test_layers_take_dtype():
    for make, sizes in (
        (nn.Linear, (2, 2)),
        (nn.Conv1d, (1, 1, 1)),
        (nn.ConvTranspose1d, (1, 1, 1)),
        (nn.GRUCell, (1, 1)),
        (nn.Embedding, (2, 2)),
        (nn.BatchNorm1d, (2,)),
    ):
        layer = make(*sizes, dtype=mg.float64, device="cpu")
        assert {p.dtype for p in layer.parameters()} == {mg.float64}


# Lazy layers


@pytest.mark.parametrize(
    ("make", "shape", "weight"),
    [
        (lambda: nn.LazyLinear(4), (2, 5, 3), (4, 3)),
        (lambda: nn.LazyLinear(4, bias=False), (3,), (4, 3)),
        (lambda: nn.LazyConv1d(4, 3), (2, 6, 5), (4, 6, 3)),
        (lambda: nn.LazyConv2d(4, (3, 2), groups=2), (2, 6, 5, 5), (4, 3, 3, 2)),
        (lambda: nn.LazyConv3d(4, 2, bias=False), (6, 3, 3, 3), (4, 6, 2, 2, 2)),
    ],
)
def test_a_lazy_layer_becomes_an_ordinary_one(make, shape, weight):
    layer = make()
    held = layer.weight
    copied = copy.deepcopy(layer)
    assert isinstance(copied.weight, nn.UninitializedParameter)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    for use in (lambda: layer.weight.shape, layer.state_dict, layer.weight.numel):
        with pytest.raises(RuntimeError, match="no shape yet"):
            use()
    layer.to(mg.float64)
    y = layer(mg.ones(*shape, dtype=mg.float64))
    assert layer.weight is held and type(held) is nn.Parameter and held.shape == weight and held.dtype == mg.float64
    assert type(layer).__name__ == type(make()).__name__.removeprefix("Lazy")
    before = held.tolist()
    y.sum().backward()
    optimizer.step()
    assert held.tolist() != before
    largest = np.abs(np.array(before)).max()
    assert 0 < largest <= 1 / math.sqrt(np.prod(weight[1:]))
    state = layer.to(mg.float32).state_dict()
    copied.load_state_dict(state)  # a state dict tells the shape as well
    assert type(copied) is type(layer) and repr(copied) == repr(layer)
    assert copied.weight.tolist() == layer.weight.tolist()


def test_a_state_that_says_nothing_of_a_lazy_layer_leaves_it_lazy():
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(4))
    state = nn.Sequential(nn.Linear(3, 2)).state_dict()
    with pytest.raises(ValueError, match=r"1\.weight: missing\n  1\.bias: missing"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"1\.bias: a lazy layer takes its shape from a weight"):
        model.load_state_dict({**state, "1.bias": mg.ones(4)}, strict=False)
    skipped = model.load_state_dict(state, strict=False)
    assert skipped.missing_keys == ["1.weight", "1.bias"] and type(model[1]) is nn.LazyLinear
    assert model[0].weight.tolist() == state["0.weight"].tolist() and model(mg.ones(1, 3)).shape == (1, 4)


def test_a_lazy_layer_tells_its_parametrization():
    class Rule(nn.Parametrization):
        ready = None

        def read(self):
            return self.original

        def materialized(self):
            self.ready = self.original.shape

    def lazy():
        layer = nn.LazyLinear(2, bias=False)
        layer.parametrize("weight", Rule(layer.weight))
        return layer

    called, loaded = lazy(), lazy()
    called(mg.ones(1, 3))
    loaded.load_state_dict(called.state_dict())
    for layer in (called, loaded):
        assert layer.parametrizations.weight.ready == (2, 3) and layer.weight.abs().sum().item() > 0
    assert loaded.weight.tolist() == called.weight.tolist()
