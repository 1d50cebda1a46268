"""Values that stand in for normalized weights: what a call reads, and that nothing steps."""

import threading

import numpy as np
import pytest
from normalized_layers import F64, layer, parts, same, snapshot

import minigrad as mg
from minigrad.nn._calls import substituted
from minigrad.nn.utils import spectral_norm


def test_a_value_stands_in_for_a_weight_and_nothing_steps():
    module = layer()
    before, x = snapshot(module), mg.randn(3, 6, **F64)
    value = mg.randn(4, 6, **F64).requires_grad_()
    with substituted({(module, "weight"): value}):
        assert module.weight is value
        out = module.train()(x)
        inner = mg.zeros(4, 6, **F64)
        with substituted({(module, "weight"): inner}):
            assert module.weight is inner
        assert module.weight is value
    assert same(before, snapshot(module)) and module.weight is not value
    expected = x.numpy() @ value.detach().numpy().T + module.bias.detach().numpy()
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-13)
    assert mg.grad(out.sum(), parts(module)[0], allow_unused=True) == (None,)
    module(x)
    assert not same(before, snapshot(module))


def test_only_the_weight_named_is_replaced():
    cell = mg.nn.LSTMCell(3, 2, **F64)
    for name in ("weight_ih", "weight_hh"):
        spectral_norm(cell, name, n_init_iterations=0)
    (_, u_ih, _), (_, u_hh, _) = (parts(cell, name) for name in ("weight_ih", "weight_hh"))
    before = u_ih.numpy().copy(), u_hh.numpy().copy()
    with substituted({(cell, "weight_ih"): mg.zeros(8, 3, **F64)}):
        cell(mg.randn(2, 3, **F64))
    np.testing.assert_array_equal(u_ih.numpy(), before[0])
    assert np.abs(u_hh.numpy() - before[1]).max() > 1e-3


def test_a_shared_module_a_nested_call_and_an_exception():
    class Twice(mg.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = mg.nn.Parameter(mg.ones(2, 2))

        def forward(self, x, depth=1):
            if depth < 0:
                raise KeyError("on purpose")
            return (self(x, depth - 1) if depth else x) @ self.weight

    twice = spectral_norm(Twice())
    model = mg.nn.Sequential(twice, twice)
    with substituted({(twice, "weight"): 2 * mg.eye(2)}):
        assert model(mg.ones(1, 2)).tolist() == [[16.0, 16.0]]
        with pytest.raises(KeyError):
            twice(mg.ones(1, 2), depth=-1)
        assert twice.weight.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    with pytest.raises(KeyError), substituted({(twice, "weight"): mg.zeros(2, 2)}):
        twice(mg.ones(1, 2), depth=-1)
    assert twice.weight.tolist()[0][0] == pytest.approx(0.5)


def test_values_are_those_of_one_thread():
    module, read = layer(), []
    with substituted({(module, "weight"): mg.zeros(4, 6, **F64)}):
        thread = threading.Thread(target=lambda: read.append(module.weight))
        thread.start()
        thread.join()
    assert np.abs(read[0].detach().numpy()).max() > 0


def test_values_that_fit_nothing_are_refused():
    for name, value, message in [
        ("bias", mg.ones(4), "'bias' of Linear is not parametrized; weight is"),
        ("weight", mg.ones(6, 4), r"expected a tensor of shape \(4, 6\) for 'weight' of Linear; got \(6, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message), substituted({(layer(), name): value}):
            pass
