"""Spectral normalization in float16: weights and activations are, u, v, σ, γ and all arithmetic are float32."""

import copy

import numpy as np
import pytest
from naive_spectral import case, trained
from normalized_layers import parts, same, snapshot
from normalized_models import PLAIN

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.ops.conventions import CONVENTIONS


@pytest.mark.parametrize("name", PLAIN)
def test_float16_is_close_to_its_float64_reference(name):
    """Weights and activations in float16, u, v and γ in float32; gradients of the very same numbers in float64."""
    subject = PLAIN[name]
    key = subject.targets[0][1]
    half = subject.build(mg).to(mg.float16)
    spectral_norm(half, key, learnable_scale=True, n_init_iterations=0)
    wide = copy.deepcopy(half).to(mg.float64)
    x = mg.randn(*subject.shape, dtype=mg.float16)
    for _ in range(3):
        outs = subject.run(half, x), subject.run(wide, x.to(mg.float64))
        g = mg.randn(*outs[0].shape, dtype=mg.float16)
        for model, out in ((half, outs[0]), (wide, outs[1])):
            model.zero_grad()
            out.backward(g.to(out.dtype))
        assert outs[0].dtype == mg.float16
        np.testing.assert_allclose(outs[0].detach().numpy(), outs[1].detach().numpy(), rtol=0, atol=1e-2)
        for (path, p), (_, q) in zip(half.named_parameters(), wide.named_parameters(), strict=True):
            assert p.grad.dtype == p.dtype == (mg.float32 if path.endswith("gamma") else mg.float16)
            expected = q.grad.numpy()
            np.testing.assert_allclose(p.grad.numpy(), expected, rtol=0, atol=2e-2 * np.abs(expected).max())
        for p, q in zip(parts(half, key)[1:], parts(wide, key)[1:], strict=True):
            assert p.dtype == mg.float32
            np.testing.assert_allclose(p.numpy(), q.numpy(), atol=1e-5)


def test_to_float16_keeps_the_vectors_and_gamma_in_float32():
    """The file of a model that has trained in float16 loads into one that has not, and the other way round."""
    mg.manual_seed(0)
    wide = spectral_norm(mg.nn.Linear(3, 4), learnable_scale=True)
    exact = [x.numpy().copy() for x in parts(wide)[1:]]
    half = copy.deepcopy(wide).to(mg.float16)
    for got, expected in zip(parts(half)[1:], exact, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)
    assert half.parametrizations.weight.state.gamma.dtype == mg.float32 and parts(half)[0].dtype == mg.float16
    trained_one = copy.deepcopy(half)
    x = mg.ones(2, 3, dtype=mg.float16)
    trained_one(x).sum().backward()
    half.load_state_dict(trained_one.state_dict())
    assert same(snapshot(half), snapshot(trained_one))
    trained_one.to(mg.float64)
    assert {value.dtype for value in trained_one.state_dict().values()} == {np.dtype(mg.float64)}
    assert {p.grad.dtype for p in trained_one.parameters()} == {np.dtype(mg.float64)}


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_float16_in_every_convention(gradient):
    """Also a weight whose 1/σ is beyond float16: all that is no tensor of the user's is float32."""
    w, *_ = case((4, 6), 0)
    linear = mg.nn.Linear(6, 4, bias=False, dtype=mg.float16)
    with mg.no_grad():
        linear.weight.copy_(mg.tensor((w * 2e-5).astype(np.float16)))
    spectral_norm(linear, n_power_iterations=2, gradient=gradient, order="vu", n_init_iterations=0)
    w, u, v = (x.detach().numpy().copy() for x in parts(linear))
    g = (np.random.default_rng(0).standard_normal((6, 4)) / 64).astype(np.float16)
    w_bar, u, v, grad = trained(gradient, w, u, v, g.T, 0, 2, "vu")
    out = linear(mg.tensor(np.eye(6, dtype=np.float16)))
    out.backward(mg.tensor(g))
    raw, *vectors = parts(linear)
    np.testing.assert_allclose(out.detach().numpy().T, w_bar, rtol=2e-3)
    np.testing.assert_allclose(raw.grad.numpy(), grad, rtol=0, atol=3e-3 * np.abs(grad).max())
    assert np.abs(grad).max() < 6e4
    for got, expected in zip(vectors, (u, v), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
