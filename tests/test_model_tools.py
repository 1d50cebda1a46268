"""What `diagnose` and `compare_gradients` share: a model is left as it was, and what has no answer is refused."""

import math

import pytest
from normalized_layers import F64, layer, parts
from normalized_zoo import Zoo

import minigrad as mg
from minigrad import _random
from minigrad.nn.utils import spectral_norm
from minigrad.spectral import compare_gradients, diagnose


def comparing(model, loss, **options):
    return compare_gradients(model, loss, layers="up", **options)


@pytest.mark.parametrize("call", [diagnose, comparing, lambda *a: comparing(*a, like="keras-tf")])
def test_nothing_of_the_model_changes(call):
    model = Zoo(gradient="projected")
    model.loss().backward()
    model.conv.eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def state():
        return [
            (x.detach().numpy().tobytes(), x.version[0], None if x.grad is None else x.grad.numpy().tobytes())
            for x in tensors.values()
        ], [m.training for m in model.modules()], _random.default.get_state()

    before, out = state(), model.norm.eval()(mg.ones(2, 4, 3, 3, **F64))
    model.norm.train()

    def loss():
        model.up.train()
        return model.loss()

    call(model, loss)
    assert {**dict(model.named_parameters()), **dict(model.named_buffers())}.keys() == tensors.keys()
    assert all(x is tensors[key] for key, x in [*model.named_parameters(), *model.named_buffers()])
    assert state() == before
    out.sum().backward()  # a graph that had saved the running statistics is whole

    def failing():
        model.eval()
        model.loss()
        raise KeyError("on purpose")

    before = state()
    with pytest.raises(KeyError):
        call(model, failing)
    assert state() == before


def test_it_works_inside_of_no_grad():
    model = Zoo()
    with mg.no_grad():
        assert diagnose(model, model.loss)[0]["grad_norm"] > 0
        assert compare_gradients(model, model.loss, layers="up")[0]["meets"] == ["frozen"]


def test_errors():
    plain, module, x = mg.nn.Linear(2, 2), layer(), mg.randn(3, 6, **F64)
    other, zero, drawn = layer(5), layer(), iter(range(100))
    two, half = mg.nn.Sequential(module, layer(1, m=3, n=4)), spectral_norm(mg.nn.Linear(3, 2, dtype=mg.float16))
    with mg.no_grad():
        parts(zero)[0].zero_()

    def loss():
        return module(x).sum()

    def compare(model, loss=loss, **options):
        return lambda: compare_gradients(model, loss, **options)

    for call, error, message in [
        (lambda: diagnose(plain), ValueError, "diagnose: Linear has no spectrally normalized weight. Register one"),
        (compare(plain), ValueError, "compare_gradients: Linear has no spectrally normalized weight"),
        (lambda: diagnose(module, lambda: module(x)), ValueError, r"to return a scalar Tensor.*; got shape \(3, 4\)"),
        (compare(module, mg.tensor(1.0)), TypeError, "expected loss to be a callable, .*; got Tensor"),
        (compare(module, lambda: 1.0), ValueError, "to return a scalar Tensor.*; got float"),
        (compare(module, lambda: module(x).sum() / 0), ValueError, "a finite loss; .* returned -?inf"),
        (compare(module, lambda: module(x).sum() * math.nan), ValueError, "a finite loss; .* returned nan"),
        (lambda: diagnose(module, lambda: module(x).sum() / 0), ValueError, "a finite loss; .* returned -?inf"),
        (compare(module, like="jax"), ValueError, "like to be of torch, .*; got jax"),
        (compare(module, like=["torch", "tf"]), ValueError, "or 'all'; got tf"),
        (compare(two, layers="3"), ValueError, "below layers='3'; there are 0.weight, 1.weight"),
        (compare(module, lambda: module(x).sum() + next(drawn)), ValueError, "a deterministic loss"),
        (compare(module, lambda: other(x).square().sum()), ValueError, "deterministic .* outside of the model"),
        (compare(two), ValueError, "does not depend on 1.weight"),
        (compare(two, lambda: two(x).relu().sum() * 0), ValueError, "does not depend on 0.weight"),
        (compare(module, lambda: x.sum()), ValueError, "does not depend on weight"),
        (compare(zero, lambda: zero(x).sum()), ValueError, "σ of weight is 0"),
        (compare(half, lambda: half(x[:, :3].half()).sum()), TypeError, "weight is float16"),
    ]:
        with pytest.raises(error, match=message):
            call()
