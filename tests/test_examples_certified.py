"""The certificate and the attack of the example certified_mlp, each against what is known exactly of linear maps."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import certified_mlp as example


@pytest.fixture(autouse=True)
def _as_in_the_example():
    mg.set_num_threads(1)
    yield
    mg.set_num_threads(os.cpu_count())


def linear(weight):
    layer = mg.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(mg.float64)
    with mg.no_grad():
        layer.weight.copy_(mg.tensor(weight))
    return mg.nn.Sequential(layer)


def test_margins():
    out = np.random.default_rng(0).standard_normal((50, 4))
    y = np.arange(50) % 4
    expected = [row[i] - max(np.delete(row, i)) for row, i in zip(out, y, strict=True)]
    found = example.margins(linear(np.eye(4)), mg.tensor(out), mg.tensor(y)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_the_attack_crosses_a_plane_at_its_distance():
    """Two classes of a linear map change at the distance |(w₀ − w₁)·x|/‖w₀ − w₁‖."""
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((2, 6)), rng.standard_normal((40, 6))
    out = x @ weight.T
    distance = np.abs(out[:, 0] - out[:, 1]) / np.linalg.norm(weight[0] - weight[1])
    model, x, y = linear(weight), mg.tensor(x), mg.tensor(out.argmax(1))
    assert example.attack(model, x, y, mg.tensor(0.999 * distance[:, None])).all()
    assert not example.attack(model, x, y, mg.tensor(1.001 * distance[:, None])).any()
    assert not example.attack(model, x, 1 - y, 0.0).any()  # wrong answers are not kept


def test_an_attack_counts_what_it_met_on_its_way():
    """A gap of the width 2e-4 round 0, which the first step enters and the second one leaves."""
    one, other = mg.tensor([[1.0, 0.0]], dtype=mg.float64), mg.tensor([[0.0, 1e-4]], dtype=mg.float64)
    x, y = mg.tensor([[0.5], [0.55]], dtype=mg.float64), mg.tensor([0, 0])
    kept = example.attack(lambda x: (x.abs() + 1e-9 * x) @ one + other, x, y, 2.0)
    assert kept.tolist() == [False, True]


def test_what_an_attack_broke_stays_broken(monkeypatch):
    kept = iter(np.array([[1, 1], [0, 1], [1, 1]], bool))
    monkeypatch.setattr(example, "attack", lambda model, x, y, radius: next(kept))
    x = mg.tensor(np.eye(2))
    assert example.curves(linear(np.eye(2)), x, mg.tensor([0, 1]), [0.0, 0.1, 0.2])[1].tolist() == [1, 0.5, 0.5]


def test_the_certificate_is_tight_where_it_can_be():
    """f(x) = x has L = 1, and changes its answer at the distance margin/√2 exactly."""
    x = np.random.default_rng(2).standard_normal((40, 3))
    top = np.sort(x, 1)
    radii = example.certified_radii(linear(np.eye(3)), mg.tensor(x), mg.tensor(x.argmax(1)))
    np.testing.assert_allclose(radii, (top[:, 2] - top[:, 1]) / np.sqrt(2), rtol=1e-12)


def test_an_estimated_norm_certifies_nothing():
    """W/σ̂ at unconverged u and v is steeper than 1: an attack breaks what L = 1 would promise, never what L does."""
    difference = np.array([[1.0, -1.0], [-1.0, 1.0]]) / 2  # σ₁ of 3 along it, σ₂ of 1 beside it
    model = linear(3 * difference + np.ones((2, 2)) / 2)
    mg.nn.utils.spectral_norm(model[0], n_init_iterations=1)
    u, v = model[0].parametrizations.weight.stored()
    with mg.no_grad():
        for x in (u, v):
            x.copy_(mg.tensor(np.array([0.6, 0.8])))  # σ̂ = uᵀWv = 1.04
    x, y = mg.tensor([[0.3, 0.2]], dtype=mg.float64), mg.tensor([0])
    model.eval()
    promised = example.margins(model, x, y).item() / np.sqrt(2)
    radius = example.certified_radii(model, x, y)[0]
    assert radius == pytest.approx(promised * 1.04 / 3, rel=1e-12)
    assert not example.attack(model, x, y, 0.5 * promised)[0]
    assert example.attack(model, x, y, 0.999 * radius)[0]
    assert not example.attack(model, x, y, 1.001 * radius)[0]


@pytest.mark.parametrize("normalized", [True, False])
def test_certified_accuracy_is_at_most_that_under_attack(normalized):
    digits = example.load_digits()
    x, y = mg.tensor(digits.data / 16), mg.tensor(digits.target)
    trained = example.train(x[:600].to(mg.float32), y[:600], normalized, 200, seed=3)
    x, y = x[600:700], y[600:700]
    radii = np.linspace(0, 0.75, 5)
    certified, attacked = example.curves(trained.model, x, y, radii)
    assert certified[0] == attacked[0] > 0.8
    assert (certified <= attacked).all()
    assert (certified[2] > 0.3) == normalized
    assert (np.diff(certified) <= 0).all() and (np.diff(attacked) <= 0).all()
    proven = example.certified_radii(trained.model, x, y)
    for radius in radii[1:]:
        assert example.attack(trained.model, x, y, radius)[proven > radius].all()
    weights = [layer.weight.detach().numpy() for layer in trained.model if isinstance(layer, mg.nn.Linear)]
    steepness = np.prod([np.linalg.svd(weight)[1][0] for weight in weights])
    np.testing.assert_allclose(
        proven, example.margins(trained.model, x, y).detach().numpy() / np.sqrt(2) / steepness, rtol=1e-12
    )
    assert all(excess >= -1e-12 for _, excess in trained.excess)
