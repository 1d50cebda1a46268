"""What the README's table promises of spectral normalization, on the device: whatever training steps do not touch."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.spectral.libraries import measure

pytestmark = pytest.mark.usefixtures("second_device")


def model(**options: object) -> mg.nn.Module:
    mg.manual_seed(0)
    made = mg.nn.Sequential(mg.nn.Conv2d(1, 2, 3, padding=1), mg.nn.ReLU(), mg.nn.Flatten(), mg.nn.Linear(32, 2))
    return spectral_norm(made, where=lambda path, module: hasattr(module, "weight"), **options)


def images(device: str) -> mg.Tensor:
    return mg.tensor(np.random.default_rng(0).standard_normal((2, 1, 4, 4)), dtype=mg.float32, device=device)


def host(x: mg.Tensor) -> np.ndarray:
    return x.detach().to("cpu").numpy()


def test_copies_files_and_removal_keep_every_bit(device: str, tmp_path: Path) -> None:
    x, one = images(device), model(learnable_scale=True, factor=0.5).to(device)
    one(x)
    expected = host(one.eval()(x))
    mg.save(one.state_dict(), tmp_path / "model.safetensors")
    loaded = model(learnable_scale=True, factor=0.5).to(device).eval()
    loaded.load_state_dict(mg.load(tmp_path / "model.safetensors"))
    baked = copy.deepcopy(one)
    remove_spectral_norm(baked[0]), remove_spectral_norm(baked[3])
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), loaded, baked):
        out = other(x)
        assert out.device == device and np.array_equal(host(out), expected)


def test_steps_are_of_training_forwards_alone_and_modes_share_a_backward(device: str) -> None:
    states = []
    for where in (device, "cpu"):
        one, x = model().to(where).to(mg.float64), images(where).to(mg.float64)
        losses = []
        for training in (True, False, True):
            one.train(training)
            losses.append(one(x).square().sum())
            _ = one[0].weight
        (losses[0] + losses[1] + losses[2]).backward()
        states.append([*map(host, one.state_dict().values()), *(host(p.grad) for p in one.parameters())])
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


LAYERS = {
    "Conv1d, groups": (lambda: mg.nn.Conv1d(2, 2, 2, groups=2), (1, 2, 4), "weight"),
    "Conv3d": (lambda: mg.nn.Conv3d(1, 2, 2), (1, 1, 2, 2, 3), "weight"),
    "ConvTranspose2d": (lambda: mg.nn.ConvTranspose2d(2, 3, 2), (1, 2, 2, 2), "weight"),
    "ConvTranspose3d, groups": (lambda: mg.nn.ConvTranspose3d(2, 2, 2, groups=2), (1, 2, 2, 2, 2), "weight"),
    "RNNCell": (lambda: mg.nn.RNNCell(3, 4), (2, 3), "weight_ih"),
    "GRUCell": (lambda: mg.nn.GRUCell(3, 4), (2, 3), "weight_ih"),
    "LSTMCell": (lambda: mg.nn.LSTMCell(3, 4), (2, 3), "weight_ih"),
    "a vector": (lambda: mg.nn.BatchNorm1d(3), (4, 3), "weight"),
    "LazyLinear": (lambda: mg.nn.LazyLinear(3), (2, 4), "weight"),
    "LazyConv2d": (lambda: mg.nn.LazyConv2d(2, 2), (1, 2, 3, 3), "weight"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_the_gradient_of_frozen_vectors(name: str, device: str) -> None:
    """(G − λ u vᵀ)/σ in NumPy from what the forward call has left; that of W/‖W‖ for a vector."""
    make, shape, weight = LAYERS[name]
    layer = spectral_norm(make(), weight, n_init_iterations=0)
    rng = np.random.default_rng(1)
    x = mg.tensor(rng.standard_normal(shape), dtype=mg.float32, device=device)
    if "Lazy" in name:
        layer.to(device)(x)  # made by its first batch
    layer.to(mg.float64).to(device)
    rule = layer.parametrizations._modules[weight]
    w_bar, commit = rule.begin(training=True)
    commit()
    g = rng.standard_normal(w_bar.shape)
    (grad,) = mg.grad(w_bar, rule.original, mg.tensor(g, device=device))
    w = host(rule.original)
    if w.ndim == 1:
        n = w / np.linalg.norm(w)
        expected = (g - n * (n @ g)) / np.linalg.norm(w)
    else:
        u, v, dim = host(rule.state._u), host(rule.state._v), rule.map.dim
        outer = np.outer(u, v).reshape(np.moveaxis(w, dim, 0).shape)
        a = np.moveaxis(outer, 0, dim)
        sigma = (a * w).sum()
        expected = (g - (g * w).sum() / sigma * a) / sigma
    np.testing.assert_allclose(host(grad), expected, rtol=1e-9, atol=1e-11)
    out = layer(x.to(mg.float64))
    assert (out[0] if isinstance(out, tuple) else out).device == device


def test_an_embedding(device: str) -> None:
    layer = spectral_norm(mg.nn.Embedding(5, 3)).to(device)
    layer(mg.tensor([0, 2, 2], device=device)).sum().backward()
    w = layer.parametrizations.weight.original
    assert abs((host(w.grad) * host(w)).sum()) < 1e-6


@pytest.mark.parametrize("dtype", [mg.float16, mg.float32, mg.float64])
def test_precision_and_a_zero_weight(dtype: np.dtype, device: str) -> None:
    for scale in (1.0, 0.0):
        layer = mg.nn.Linear(6, 4, bias=False)
        with mg.no_grad():
            layer.weight.copy_(layer.weight * scale)
        spectral_norm(layer).to(dtype).to(device)
        (layer(mg.ones(2, 6, dtype=dtype, device=device)) * 0.5).square().sum().backward()
        rule = layer.parametrizations.weight
        u, v, w = (host(x).astype(np.float64) for x in (rule.state._u, rule.state._v, rule.original))
        sigma = u @ w @ v
        expected = np.zeros_like(w)
        if scale:
            g = np.ones((1, 6)) * (w / sigma).sum(1, keepdims=True)  # of two rows of ones, ∂ Σ (W̄·1/2)²/∂W̄
            expected = (g - (g * w).sum() / sigma * np.outer(u, v)) / sigma
        tolerance = {2: 1e-2, 4: 1e-5, 8: 1e-11}[dtype.itemsize]
        grad = rule.original.grad
        assert grad.dtype == dtype and rule.state._u.dtype == np.promote_types(dtype, np.float32)
        np.testing.assert_allclose(host(grad), expected, atol=tolerance * max(1.0, np.abs(expected).max()))


def test_states_of_others_and_their_conventions(device: str) -> None:
    layer = spectral_norm(mg.nn.Linear(2, 3), order="vu").to(device)
    u, v, w = np.full(3, 3**-0.5, np.float32), np.full(2, 2**-0.5, np.float32), np.arange(6, dtype=np.float32)
    state = {"weight_orig": w.reshape(2, 3), "weight_u": u, "weight_v": v, "bias": np.zeros(3, np.float32)}
    layer.load_state_dict(mg.spectral.convert_state(state, "paddle", layer))
    w_bar = w.reshape(2, 3).T / (u @ w.reshape(2, 3).T @ v)
    np.testing.assert_allclose(host(layer.eval()(mg.eye(2, device=device))), w_bar.T, rtol=1e-6)
    for like in ("torch", "keras-tf", "paddle-op", "chainer"):
        assert measure(like, device=device).passed


def test_hessians(device: str) -> None:
    w, d = np.random.default_rng(2).standard_normal((2, 3, 4))

    def slope(w: np.ndarray) -> np.ndarray:
        """Of Σ W̄⁴ with σ₁, by SVD."""
        left, s, right = np.linalg.svd(w, full_matrices=False)
        g = 4 * (w / s[0]) ** 3
        return (g - (g * w).sum() / s[0] * np.outer(left[:, 0], right[0])) / s[0]

    numeric = (slope(w + 1e-6 * d) - slope(w - 1e-6 * d)) / 2e-6
    on_device = (mg.tensor(x, device=device) for x in (w, d))
    found = mg.spectral.true_hvp(lambda w_bar: (w_bar * w_bar).square().sum(), *on_device)
    np.testing.assert_allclose(host(found.product), numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())


def test_export(device: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    one = model().to(device)
    mg.export.onnx(one, images(device), tmp_path / "model.onnx")
    stored = {x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(tmp_path / "model.onnx").graph.initializer}
    np.testing.assert_array_equal(stored["0.weight"], host(one[0].weight))
