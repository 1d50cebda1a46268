"""`mg.spectral.diagnose` on a model of a user's own: the numbers of every weight."""

import numpy as np
import pytest
from naive_spectral import matrix, pulled_back, unit
from normalized_layers import F64, layer, parts
from normalized_zoo import DIMS, NAMES, Zoo, named, owner

import minigrad as mg
from minigrad import _random
from minigrad._differences import derivative
from minigrad.nn._calls import substituted
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral import diagnose


@pytest.mark.parametrize("options", [{}, {"n_init_iterations": 0, "gradient": "exact"}, {"dtype": mg.float32}])
def test_the_numbers_of_every_kind_of_weight(options):
    model = Zoo(**options)
    table = diagnose(model)
    assert named(table) == NAMES
    tolerance = 1e-6 if "dtype" in options else 1e-12
    for row, name in zip(table, NAMES, strict=True):
        made = getattr(owner(model, name)[0].parametrizations, row["parameter"])
        w = matrix(made.original.detach().numpy().astype(np.float64), DIMS.get(name, 0))
        values = np.linalg.svd(w, compute_uv=False)
        if name == "gain":
            sigma_hat = np.linalg.norm(w)
        else:
            sigma_hat = values[0] if "gradient" in options else made.state._u.numpy() @ w @ made.state._v.numpy()
        assert row["shape"] == w.shape
        assert row["sigma_hat"] == pytest.approx(sigma_hat, rel=tolerance)
        assert row["sigma"] == pytest.approx(values[0], rel=1e-12)
        assert row["gap"] == pytest.approx(values[1] / values[0] if len(values) > 1 else 0, rel=1e-12)
        used = getattr(*owner(model, name)).detach().numpy() / row["scale"]
        norm = np.linalg.norm(matrix(used, DIMS.get(name, 0)), 2)
        assert row["norm"] == pytest.approx(norm, rel=max(tolerance, 1e-10))
        assert "lam" not in row
    scales = dict(zip(NAMES, (row["scale"] for row in table), strict=True))
    assert scales["gain"] == 2 and scales["again.weight"] == 0.5 and scales["conv.weight"] == 1
    assert scales["up.weight"] == pytest.approx(table[2]["sigma"], rel=1e-6)
    assert "γ·factor" in str(table)


def test_unconverged_vectors_show():
    rows = diagnose(Zoo(n_init_iterations=0))
    assert all(row["norm"] > 1.01 for row in rows if row["layer"])
    assert all(row["norm"] == pytest.approx(1, abs=1e-3) for row in diagnose(Zoo(n_init_iterations=400)))


def test_lambda_and_the_gradient_of_every_weight():
    """λ = d/dt L((1 + t) W̃) at 0, and (12) from the gradient that a twin without normalization has."""
    model = Zoo()
    table = diagnose(model, model.loss)
    assert named(table) == NAMES
    state = _random.default.get_state()
    for row, name in zip(table, NAMES, strict=True):
        module, parameter = owner(model, name)
        made = getattr(module.parametrizations, parameter)
        w, scale = made.original.detach().numpy(), row["scale"]
        read = {(m, n): getattr(m, n).detach() for m, n in (owner(model, each) for each in NAMES)}
        w_tilde = read[module, parameter]

        def value(t, read=read, key=(module, parameter), w_tilde=w_tilde):
            _random.default.set_state(state)
            with substituted({**read, key: (1 + t) * w_tilde}):
                return model.loss()

        assert row["lam"] == pytest.approx(derivative(lambda t, f=value: f(t).item(), 0.05).value, rel=1e-8, abs=1e-10)
        leaf = w_tilde.clone().requires_grad_()
        (g,) = mg.grad(value(0.0, w_tilde=leaf), [leaf])
        if name == "gain":
            u, v = unit(w), np.ones(1)
        else:
            u, v = made.state._u.numpy(), made.state._v.numpy()
        expected = pulled_back(scale * g.numpy(), w, u, v, DIMS.get(name, 0))
        assert row["grad_norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-9)
        assert abs(row["radial"]) < 1e-12 * max(1, abs(row["lam"])) and row["invariant"]
        _random.default.set_state(state)
    assert str(table).endswith("has ⟨∂L/∂W, W⟩ = 0.")


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64])
@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_a_gradient_that_is_none_of_w_over_sigma_is_named(gradient, dtype):
    mg.manual_seed(4)
    model = mg.nn.Sequential(mg.nn.Linear(5, 6, dtype=dtype), mg.nn.Tanh(), mg.nn.Linear(6, 3, dtype=dtype))
    spectral_norm(model[0], gradient=gradient, n_init_iterations=1)
    spectral_norm(model[2], n_init_iterations=1)
    x = mg.randn(7, 5, dtype=dtype)
    table = diagnose(model, lambda: model(x).sin().mean())
    row, right = table
    assert right["invariant"] and row["invariant"] == bool(CONVENTIONS[gradient].oracle)
    assert ("0.weight" in str(table).split("has ⟨∂L/∂W, W⟩ = 0")[1]) == (not row["invariant"])
    if gradient == "detached":
        assert row["radial"] == pytest.approx(row["lam"], rel=1e-5) and abs(row["lam"]) > 1e-3
    if gradient in ("straight_through", "projected"):
        assert row["radial"] == pytest.approx(row["lam"] * row["sigma_hat"], rel=1e-5)


def test_degenerate_and_frozen_weights_and_those_without_a_part_in_the_loss():
    model = mg.nn.Sequential(*(spectral_norm(mg.nn.Linear(3, 3, **F64), n_init_iterations=1) for _ in range(3)))
    with mg.no_grad():
        parts(model[0])[0].zero_()
    parts(model[1])[0].requires_grad = False
    x = mg.randn(4, 3, **F64)
    zero, frozen, unused = diagnose(model, lambda: model[1](model[0](x) + x).square().sum())
    assert zero["norm"] == zero["sigma"] == zero["grad_norm"] == 0 and np.isnan(zero["gap"])
    assert frozen["grad_norm"] > 0 and not parts(model[1])[0].requires_grad
    assert unused["lam"] is unused["grad_norm"] is unused["radial"] is unused["invariant"] is None
    assert "—" in str(diagnose(model, lambda: model[1](x).sum()))


def test_float16_has_the_numbers_and_no_differences():
    model = spectral_norm(mg.nn.Linear(6, 4, dtype=mg.float16))
    x = mg.randn(3, 6).half()
    (row,) = diagnose(model, lambda: model(x).square().sum())
    raw = parts(model)[0].detach().numpy().astype(np.float64)
    assert row["sigma"] == pytest.approx(np.linalg.norm(raw, 2), rel=1e-12)
    assert row["invariant"] and row["grad_norm"] > 0


def test_only_spectral_normalization_makes_a_row():
    class Positive(mg.nn.Parametrization):
        def read(self):
            return self.original.exp()

    model = mg.nn.Sequential(layer(), layer(1, m=3, n=4), mg.nn.Linear(3, 2, **F64))
    remove_spectral_norm(model[0])
    model[2].parametrize("weight", Positive(model[2].weight))
    assert [row["layer"] for row in diagnose(model)] == ["1"]
