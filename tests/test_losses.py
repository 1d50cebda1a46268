"""Losses: against torch, against their formulas, at extreme logits, and at NaN."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.device import kernels
from minigrad.nn import functional as F

rng = np.random.default_rng(0)
REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture
def tensor(device):
    return functools.partial(mg.tensor, device=device)


def same(loss, other, xs, ts):
    """Values and gradients, for a random upstream where the loss is no scalar."""
    np.testing.assert_allclose(loss.detach().numpy(), other.detach().numpy(), rtol=1e-12, atol=1e-12)
    g = rng.standard_normal(loss.shape)
    gradients = mg.grad(loss, xs, mg.tensor(g, device=loss.device))
    torch = pytest.importorskip("torch")
    for mine, theirs in zip(gradients, torch.autograd.grad(other, ts, torch.tensor(g)), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "binary_cross_entropy_with_logits"])
def test_pairwise_losses_are_torchs(name, reduction, device):
    torch = pytest.importorskip("torch")
    a, b = rng.standard_normal((4, 3)), rng.random((4, 3))
    xs = [mg.tensor(v, device=device, requires_grad=True) for v in (a, b)]
    ts = [torch.tensor(v, requires_grad=True) for v in (a, b)]
    same(
        getattr(F, name)(*xs, reduction=reduction), getattr(torch.nn.functional, name)(*ts, reduction=reduction), xs, ts
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("logits", "target"), [((4, 5), (4,)), ((5,), ()), ((2, 5, 3, 2), (2, 3, 2))])
def test_cross_entropy_is_torchs(logits, target, smoothing, reduction, device):
    torch = pytest.importorskip("torch")
    a, index = rng.standard_normal(logits), rng.integers(0, 5, target)
    x, t = mg.tensor(a, device=device, requires_grad=True), torch.tensor(a, requires_grad=True)
    mine = F.cross_entropy(x, mg.tensor(index, device=device), reduction=reduction, label_smoothing=smoothing)
    theirs = torch.nn.functional.cross_entropy(t, torch.tensor(index), reduction=reduction, label_smoothing=smoothing)
    same(mine, theirs, [x], [t])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(("logits", "target"), [((4, 5), (4,)), ((1,), ()), ((2, 9, 3), (2, 3)), ((3, 41), (3,))])
def test_cross_entropy_is_numpys(logits, target, dtype, tensor):
    a, t = rng.standard_normal(logits).astype(dtype), rng.integers(0, logits[min(1, len(logits) - 1)], target)
    wide = np.moveaxis(np.atleast_2d(a).astype(np.float64), 1, -1)
    hot = np.eye(wide.shape[-1])[np.reshape(t, wide.shape[:-1])]
    e = np.exp(wide)
    share = e / e.sum(-1, keepdims=True)
    gradient = np.moveaxis(share - hot, -1, 1).reshape(logits)
    x = tensor(a, requires_grad=True)
    losses = F.cross_entropy(x, tensor(t), reduction="none")
    same = functools.partial(np.testing.assert_allclose, rtol=8 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)
    same(losses.detach().numpy(), -np.log((share * hot).sum(-1)).reshape(target))
    same(mg.grad(losses.sum(), x)[0].numpy(), gradient)


def test_derivatives_are_slopes(tensor):
    x, y = (tensor(rng.standard_normal((2, 3)), requires_grad=True) for _ in range(2))
    index = tensor([2, 0])
    for loss, inputs in (
        (lambda x: F.cross_entropy(x, index, label_smoothing=0.1), (x,)),
        (lambda x: F.cross_entropy(x, index, reduction="none"), (x,)),
        (lambda x: F.cross_entropy(x.T, tensor([1, 0, 1]), reduction="sum"), (x,)),
        (F.binary_cross_entropy_with_logits, (x, y)),
        (F.mse_loss, (x, y)),
    ):
        assert mg.gradcheck(loss, inputs) and mg.gradgradcheck(loss, inputs)


def test_layers_are_the_functions(device):
    x, y = mg.randn(3, 4, device=device), mg.rand(3, 4, device=device)
    index = mg.tensor([0, 3, 1], device=device)
    for layer, function in (
        (nn.MSELoss, F.mse_loss),
        (nn.L1Loss, F.l1_loss),
        (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
    ):
        for reduction in REDUCTIONS:
            assert layer(reduction)(x, y).tolist() == function(x, y, reduction).tolist()
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    assert smooth(x, index).item() == F.cross_entropy(x, index, reduction="sum", label_smoothing=0.1).item()
    assert repr(smooth) == "CrossEntropyLoss(reduction='sum')" and repr(nn.MSELoss()) == "MSELoss()"


def test_extreme_logits_stay_finite_and_exact(tensor):
    x = tensor([1e4, -1e4, 1e4, -1e4, 0.0], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, tensor([1.0, 0.0, 0.0, 1.0, 0.5]), "none")
    assert loss.tolist() == [0.0, 0.0, 1e4, 1e4, pytest.approx(math.log(2))]
    loss.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 1.0, -1.0, 0.0]
    z = tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    assert [F.cross_entropy(z, tensor([c])).item() for c in range(3)] == [0.0, 1e4, 2e4]
    F.cross_entropy(z, tensor([1])).backward()
    assert z.grad.tolist() == [[1.0, -1.0, 0.0]]
    for value in (1e4, -1e4):
        d = tensor([[value]], requires_grad=True)
        losses = [F.gan_discriminator_loss(d, d), F.gan_generator_loss(d), F.gan_generator_loss(d, saturating=True)]
        assert all(math.isfinite(loss.item()) for loss in losses)
        assert all(math.isfinite(g.item()) for loss in losses for g in mg.grad(loss, d))


def test_bce_is_smooth_at_zero(tensor):
    x = tensor([0.0], dtype=mg.float64, requires_grad=True)
    (first,) = mg.grad(F.binary_cross_entropy_with_logits(x, tensor([0.3], dtype=mg.float64)), x, create_graph=True)
    (second,) = mg.grad(first, x)
    assert first.item() == pytest.approx(0.5 - 0.3, abs=1e-15) and second.item() == pytest.approx(0.25, abs=1e-15)


def test_nan_propagates(tensor):
    x, y = tensor([math.nan, 1.0]), tensor([1.0, -1.0])
    for loss in (F.mse_loss, F.l1_loss, F.binary_cross_entropy_with_logits, F.hinge_loss):
        assert math.isnan(loss(x, y).item())
        assert np.isnan(loss(x, y, "none").numpy()).tolist() == [True, False]
    assert math.isnan(F.cross_entropy(tensor([[math.nan, 1.0]]), tensor([1])).item())
    for value in (
        F.gan_discriminator_loss(x, y),
        F.gan_discriminator_loss(y, x),
        F.gan_generator_loss(x),
        F.hinge_discriminator_loss(x, y),
        F.hinge_discriminator_loss(y, x),
        F.hinge_generator_loss(x),
    ):
        assert math.isnan(value.item())


def test_gan_losses_are_the_papers(tensor):
    real, fake = rng.standard_normal((2, 7, 1))
    d_real, d_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    x, y = tensor(real), tensor(fake)
    value = np.log(d_real).mean() + np.log(1 - d_fake).mean()  # (15)
    assert F.gan_discriminator_loss(x, y).item() == pytest.approx(-value, rel=1e-12)
    assert F.gan_generator_loss(y, saturating=True).item() == pytest.approx(np.log(1 - d_fake).mean(), rel=1e-12)
    assert F.gan_generator_loss(y).item() == pytest.approx(-np.log(d_fake).mean(), rel=1e-12)
    value = np.minimum(0, -1 + real).mean() + np.minimum(0, -1 - fake).mean()  # (16)
    assert F.hinge_discriminator_loss(x, y).item() == pytest.approx(-value, rel=1e-12)
    assert F.hinge_generator_loss(y).item() == pytest.approx(-fake.mean(), rel=1e-12)  # (17)


def test_hinge_losses_have_zero_slope_at_their_kinks(tensor):
    x = tensor([1.0, 0.5, 2.0, -1.0], requires_grad=True)
    y = tensor([1.0, 1.0, 1.0, -1.0])
    assert F.hinge_loss(x, y, "none").tolist() == [0.0, 0.5, 0.0, 0.0]
    assert mg.grad(F.hinge_loss(x, y, "sum"), x)[0].tolist() == [0.0, -1.0, 0.0, 0.0]
    assert mg.grad(F.hinge_discriminator_loss(x, x), x)[0].tolist() == [0.25, 0.0, 0.25, -0.25]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: F.l1_loss(mg.ones(2), 0.0), TypeError, "l1_loss: expected a tensor; got float"),
        (lambda: F.mse_loss(mg.ones(2), mg.ones(3)), ValueError, r"mse_loss: .* one shape; got \(2,\) and \(3,\)"),
        (lambda: F.l1_loss(mg.ones(2, 1), mg.ones(2)), ValueError, "l1_loss"),
        (lambda: F.binary_cross_entropy_with_logits(mg.ones(2), mg.ones(1)), ValueError, "one shape"),
        (lambda: F.hinge_loss(mg.ones(2), mg.ones(1)), ValueError, "hinge_loss"),
        (lambda: F.mse_loss(mg.ones(2), mg.ones(2), "average"), ValueError, "'mean', 'sum' or 'none'; got 'average'"),
        (lambda: F.cross_entropy(mg.ones(2, 3), mg.tensor([0, 3])), IndexError, r"cross_entropy: .*\[0, 2\]; got 3"),
        (lambda: F.cross_entropy(mg.ones(2, 3), mg.ones(2)), TypeError, "int64"),
        (lambda: F.cross_entropy(mg.ones(2, 3), mg.tensor([0])), ValueError, r"got \(2, 3\) and \(1,\)"),
        (lambda: F.cross_entropy(mg.ones(()), mg.tensor(0)), ValueError, "expected logits"),
        (lambda: F.cross_entropy(mg.ones(3), mg.tensor(0), label_smoothing=2.0), ValueError, r"\[0, 1\]; got 2.0"),
    ],
)
def test_errors_say_what_was_expected(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_cross_entropy_looks_at_its_classes_once(monkeypatch, tensor, device):
    """On a GPU each look is a wait."""
    k, looks = kernels(device), []
    bounds = k.bounds
    monkeypatch.setattr(k, "bounds", lambda x, check: (looks.append(x.shape), bounds(x, check)))
    F.cross_entropy(tensor(np.zeros((4, 3))), tensor([0, 1, 2, 2]))
    assert looks == [(4,)]
