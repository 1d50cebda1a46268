"""`spectral_norm` on modules: against torch over several steps, its options and its errors."""

import warnings

import numpy as np
import pytest
from naive_spectral import sweeps
from normalized_layers import F64, layer, parts, same, snapshot

import minigrad as mg
from minigrad.nn.utils import remove_spectral_norm, spectral_norm

LAYERS = {
    "Linear": (lambda nn, **k: nn.Linear(6, 4, **k), (3, 6)),
    "Conv1d": (lambda nn, **k: nn.Conv1d(3, 4, 3, **k), (2, 3, 7)),
    "Conv2d": (lambda nn, **k: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, **k), (2, 4, 6, 6)),
    "Conv3d": (lambda nn, **k: nn.Conv3d(2, 3, 2, **k), (1, 2, 3, 4, 3)),
    "ConvTranspose1d": (lambda nn, **k: nn.ConvTranspose1d(3, 4, 3, **k), (2, 3, 5)),
    "ConvTranspose2d": (lambda nn, **k: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, **k), (2, 4, 3, 3)),
    "ConvTranspose3d": (lambda nn, **k: nn.ConvTranspose3d(2, 3, 2, **k), (1, 2, 3, 2, 3)),
    "Embedding": (lambda nn, **k: nn.Embedding(7, 4, **k), None),
}


# Against torch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("n", [1, 3])
def test_torch_computes_the_same(kind, n):
    """Outputs, gradients and vectors over training steps and evaluation, from one state dict loaded strictly."""
    torch = pytest.importorskip("torch")
    make, shape = LAYERS[kind]
    rng = np.random.default_rng(0)
    mg.manual_seed(1)
    mine = spectral_norm(make(mg.nn, **F64), n_power_iterations=n, n_init_iterations=0)
    theirs = make(torch.nn, dtype=torch.float64)
    torch.nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=n)
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in mine.state_dict().items()}, strict=True)
    for step in range(5):
        training = step != 3
        x = rng.integers(0, 7, (3, 2)) if shape is None else rng.standard_normal(shape)
        a, b = mine.train(training)(mg.tensor(x)), theirs.train(training)(torch.tensor(x))
        g = rng.standard_normal(a.shape)
        mine.zero_grad()
        theirs.zero_grad()
        a.backward(mg.tensor(g))
        b.backward(torch.tensor(g))
        raw, u, v = parts(mine)
        twin = theirs.parametrizations.weight
        for got, expected in [
            (a.detach(), b.detach()), (raw.grad, twin.original.grad), (u, twin[0]._u), (v, twin[0]._v),
        ]:  # fmt: skip
            np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-10, atol=1e-10)
        with mg.no_grad(), torch.no_grad():
            for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
                one.copy_(one - 0.1 * one.grad)
                other -= 0.1 * other.grad


def test_torch_vectors_have_one_dimension_less():
    """A 1-d weight is W/‖W‖, with its exact first and second derivatives, and no vectors."""
    torch = pytest.importorskip("torch")
    w, d = np.random.default_rng(0).standard_normal((2, 5))
    for gradient in ("fixed_uv", "unrolled", "exact"):
        norm = mg.nn.BatchNorm1d(5, **F64)
        with mg.no_grad():
            norm.weight.copy_(mg.tensor(w))
        spectral_norm(norm, gradient=gradient)
        assert list(norm.parametrizations.state_dict()) == ["weight.original"]
        theirs = torch.tensor(w, requires_grad=True)
        loss = (torch.nn.functional.normalize(theirs, dim=0) ** 3).sum()
        (first,) = torch.autograd.grad(loss, theirs, create_graph=True)
        (second,) = torch.autograd.grad((first * torch.tensor(d)).sum(), theirs)
        raw = norm.parametrizations.weight.original
        (mine,) = mg.grad((norm.weight * norm.weight * norm.weight).sum(), raw, create_graph=True)
        (again,) = mg.grad((mine * mg.tensor(d)).sum(), raw)
        np.testing.assert_allclose(mine.detach().numpy(), first.detach().numpy(), atol=1e-13)
        np.testing.assert_allclose(again.numpy(), second.numpy(), atol=1e-12)
        norm(mg.ones(3, 5, **F64))
        np.testing.assert_array_equal(raw.detach().numpy(), w)


def test_names_of_the_state_dict():
    assert list(layer(learnable_scale=True).state_dict()) == [
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0.gamma",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    ]


def test_torchs_older_names_are_read():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.nn.utils.spectral_norm(torch.nn.Linear(6, 4, dtype=torch.float64))
    model = mg.nn.Sequential(mg.nn.ReLU(), layer())
    state = {f"1.{key}": mg.tensor(value.numpy()) for key, value in theirs.state_dict().items()}
    assert "1.weight_orig" in state and "1.weight_u" in state
    model.load_state_dict(state)
    x = np.ones((2, 6))
    np.testing.assert_allclose(
        model.eval()(mg.tensor(x)).detach().numpy(), theirs.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-12
    )


# Options -------------------------------------------------------------------------------------------------------------


def test_vectors_are_drawn_reproducibly_and_warmed_up():
    one, other, cold = layer(3), layer(3), layer(3, n_init_iterations=0)
    assert same(snapshot(one), snapshot(other))
    w, u, v = (x.detach().numpy() for x in parts(cold))
    assert np.linalg.norm(u) == pytest.approx(1) and np.linalg.norm(v) == pytest.approx(1)
    np.testing.assert_allclose(parts(one)[1].numpy(), sweeps(w, u, v, 1, "uv")[0], atol=1e-14)


def test_learnable_scale_and_factor():
    """W̃ = γ · factor · W/σ (32), with γ₀ = σ₁: the layer starts as it was."""
    mg.manual_seed(0)
    linear = mg.nn.Linear(6, 4, **F64)
    w = linear.weight.detach().numpy().copy()
    spectral_norm(linear, learnable_scale=True, factor=0.5, n_init_iterations=500).eval()
    gamma = linear.parametrizations.weight.state.gamma
    assert gamma.item() == pytest.approx(np.linalg.norm(w, 2)) and gamma.shape == ()
    np.testing.assert_allclose(linear.weight.detach().numpy(), 0.5 * w, rtol=1e-12)
    g = np.random.default_rng(0).standard_normal((6, 4))
    linear(mg.tensor(np.eye(6))).backward(mg.tensor(g))
    w_bar = w / np.linalg.norm(w, 2)
    assert gamma.grad.item() == pytest.approx((0.5 * w_bar * g.T).sum(), rel=1e-10)


def test_where_chooses_in_a_whole_model():
    model = mg.nn.Sequential(
        mg.nn.Conv2d(1, 2, 3), mg.nn.BatchNorm2d(2), mg.nn.Sequential(mg.nn.Flatten(), mg.nn.Linear(8, 2))
    )
    asked = []

    def chosen(path, module):
        asked.append(path)
        return isinstance(module, mg.nn.Conv2d | mg.nn.Linear)

    assert spectral_norm(model, where=chosen) is model
    assert asked == ["0", "1", "2.1"]
    normalized = [path for path, module in model.named_modules() if "parametrizations" in module._modules]
    assert normalized == ["0", "2.1"]
    model(mg.ones(3, 1, 4, 4)).sum().backward()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"'weight' of Linear '2\.1' is parametrized already"):
        spectral_norm(model, where=lambda path, module: path in ("1", "2.1"))
    assert same(before, snapshot(model))  # all or none
    two = mg.nn.Sequential(mg.nn.Linear(2, 3), mg.nn.BatchNorm1d(3))
    with pytest.raises(IndexError):
        spectral_norm(two, dim=1, where=lambda path, module: True)
    assert "weight" in two[0].state_dict()
    with pytest.raises(ValueError, match=r"chose none of the modules with a parameter 'weight': 0, 1, 2\.1"):
        spectral_norm(model, where=lambda path, module: False)


def test_errors():
    twice, empty = layer(), mg.nn.Module()
    empty.weight = mg.nn.Parameter(mg.ones(2, 0))
    for call, error, message in [
        (lambda: spectral_norm(twice), RuntimeError, "'weight' of Linear is parametrized already"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), "wight"), ValueError, "no parameter 'wight'; it has weight, bias"),
        (lambda: spectral_norm(mg.nn.ReLU()), ValueError, "ReLU has no parameter 'weight'; it has none"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), dim=2), IndexError, r"expected dim in \[-2, 1\]"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), n_power_iterations=0), ValueError, "at least 1; got 0"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), n_init_iterations=-1), ValueError, "at least 0; got -1"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), n_power_iterations=1.5), TypeError, "to be an int; got 1.5"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), eps=-1.0), ValueError, "eps of at least 0; got -1.0"),
        (lambda: spectral_norm(empty), ValueError, r"none of extent 0; got shape \(2, 0\)"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), gradient="fixed"), ValueError, "expected one of fixed_uv, detached"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), order="v"), ValueError, "expected order 'uv' or 'vu'; got 'v'"),
        (lambda: spectral_norm(mg.nn.Linear(3, 2), factor=-1.0), ValueError, "expected a positive factor"),
        (lambda: remove_spectral_norm(mg.nn.Linear(3, 2)), ValueError, "'weight' of Linear is not .*; nothing is"),
        (lambda: remove_spectral_norm(twice, "bias"), ValueError, "'bias' of Linear is not .*; weight is"),
    ]:
        with pytest.raises(error, match=message):
            call()


# The wrapper form ----------------------------------------------------------------------------------------------------


def test_the_wrapper_computes_what_the_function_does():
    mg.manual_seed(3)
    wrapped = mg.nn.SpectralNorm(mg.nn.Linear(6, 4, **F64), n_power_iterations=2, gradient="detached", factor=0.5)
    mg.manual_seed(3)
    plain = spectral_norm(mg.nn.Linear(6, 4, **F64), n_power_iterations=2, gradient="detached", factor=0.5)
    x, g = mg.randn(3, 6, **F64), mg.randn(3, 4, **F64)
    for module in (wrapped, plain):
        module(x).backward(g)
    assert {key.removeprefix("layer."): value.tolist() for key, value in wrapped.state_dict().items()} == {
        key: value.tolist() for key, value in plain.state_dict().items()
    }
    ours, theirs = parts(wrapped.layer)[0], parts(plain)[0]
    assert np.array_equal(ours.grad.numpy(), theirs.grad.numpy())
    assert np.array_equal(wrapped.eval()(x).detach().numpy(), plain.eval()(x).detach().numpy())


def test_the_wrapper_has_the_names_and_errors_of_the_function():
    wrapped = mg.nn.SpectralNorm(mg.nn.Conv2d(2, 3, 3))
    prefix = "layer.parametrizations.weight."
    assert set(wrapped.state_dict()) == {"layer.bias", *(prefix + name for name in ("original", "0._u", "0._v"))}
    with pytest.raises(RuntimeError, match="'weight' of Conv2d is parametrized already"):
        mg.nn.SpectralNorm(wrapped.layer)
    with pytest.raises(ValueError, match="n_power_iterations of at least 1; got 0"):
        mg.nn.SpectralNorm(mg.nn.Linear(2, 2), n_power_iterations=0)
