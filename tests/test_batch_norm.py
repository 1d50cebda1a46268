"""Batch normalization against NumPy in float64: statistics, all three gradients, and what it refuses."""

from __future__ import annotations

import copy
import importlib

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F
from minigrad.ops import batch_norm as ops
from minigrad.ops.batch_norm import standardize

rng = np.random.default_rng(0)
kernels = importlib.import_module("minigrad.kernels.cpu.batch_norm")  # the package has a function of that name


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 2), (2, 3, 5), (3, 2, 2, 3), (7, 1, 1), (23, 2, 3)])
def test_batch_norm_is_numpys(shape, dtype, device):
    x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(shape[1]).astype(dtype) for _ in range(2))
    dims, column = (0, *range(2, len(shape))), (-1, *[1] * (len(shape) - 2))
    wide, up, w, b = (a.astype(np.float64) for a in (x, g, weight.reshape(column), bias.reshape(column)))
    mean, var = wide.mean(dims, keepdims=True), wide.var(dims, keepdims=True)
    rstd = 1 / np.sqrt(var + 1e-5)
    hat = (wide - mean) * rstd
    dx = w * rstd * (up - up.mean(dims, keepdims=True) - hat * (up * hat).mean(dims, keepdims=True))
    xs = [mg.tensor(a, device=device, requires_grad=True) for a in (x, weight, bias)]
    y, *statistics = standardize(*xs)
    found = [*statistics, y, *mg.grad(y, xs, mg.tensor(g, device=device))]
    assert [t.dtype for t in found] == [np.float64] * 2 + [np.dtype(dtype)] * 4
    per_element, per_channel = (20 * np.finfo(t).eps for t in (dtype, np.promote_types(dtype, np.float32)))
    exact = (mean, var, hat * w + b, dx, (up * hat).sum(dims), up.sum(dims))
    sizes = [np.abs(a).max() for a in (mean, var, hat * w + b, w * rstd * up, *exact[4:])]  # in ∂x, up cancels
    for t, expected, size in zip(found, exact, sizes, strict=True):
        scale = (per_channel if t.dtype == mg.float64 else per_element) * max(1, size)
        np.testing.assert_allclose(t.detach().numpy(), expected.reshape(t.shape), rtol=0, atol=scale)


def test_the_three_gradients_share_their_sums(device, monkeypatch):
    asked, sums = [], ops._sums
    monkeypatch.setattr(ops, "_sums", lambda *args, **how: asked.append(args) or sums(*args, **how))
    xs = [mg.randn(*shape, device=device).requires_grad_() for shape in ((4, 3), (3,), (3,))]
    y, *_ = standardize(*xs)
    y.sum().backward()
    assert len(asked) == 1 and all(x.grad is not None for x in xs)


def test_derivatives_of_batch_norm_are_slopes(device):
    shapes = (3, 2, 2), (2,), (2,)
    inputs = [mg.tensor(rng.standard_normal(shape), device=device, requires_grad=True) for shape in shapes]
    assert mg.gradcheck(lambda *xs: standardize(*xs)[0], inputs)
    assert mg.gradgradcheck(lambda *xs: standardize(*xs)[0], inputs)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 3, 0)])
def test_batch_norm_of_nothing(shape, device):
    x = mg.zeros(*shape, device=device, requires_grad=True)
    y, mean, var = standardize(x)
    assert y.shape == mg.grad(y.sum(), x)[0].shape == shape
    assert mean.shape == var.shape == shape[1:2] and np.isnan(mean.numpy()).all() and np.isnan(var.numpy()).all()


def test_statistics_are_accurate_whatever_the_first_element(device):
    """Of channels far from zero, with a first element far from the rest, of equal ones, of zeros but for the first."""
    x = rng.standard_normal((50, 4, 4))
    x[:, 0] += 1e6
    x[0, 1, 0], x[:, 2], x[:, 3] = -1e5, 0.1, 0
    x[0, 3, 0] = 1.1
    x = x.astype(np.float32)
    y, mean, var = standardize(mg.tensor(x, device=device))
    exact = x.astype(np.float64)
    deviation = exact.std((0, 2))
    assert (np.abs(mean.numpy() - exact.mean((0, 2))) <= 1e-7 * deviation).all()
    np.testing.assert_allclose(var.numpy(), deviation**2, rtol=1e-7)
    expected = (exact - exact.mean((0, 2), keepdims=True)) / np.sqrt(exact.var((0, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_the_mean_is_infinite_where_an_element_is(value, place, device):
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    x[place, 1] = value
    y, mean, var = (t.numpy() for t in standardize(mg.tensor(x, device=device)))
    np.testing.assert_array_equal(mean, [5, value])
    assert var[0] == pytest.approx(35 / 3) and np.isnan(var[1])
    assert np.isfinite(y[:, 0]).all() and np.isnan(y[:, 1]).all()


def test_batch_norm_gives_the_same_bits_every_time(device):
    x, g = (mg.tensor(rng.standard_normal((5, 3, 7)).astype(np.float32), device=device) for _ in range(2))
    weight = mg.ones(3, device=device, requires_grad=True)
    x.requires_grad_()

    def results():
        y, mean, var = standardize(x, weight)
        return [t.numpy().tobytes() for t in (y.detach(), mean, var, *mg.grad(y, (x, weight), g))]

    assert results() == results()
    turned = x.detach().permute(1, 0, 2)
    assert standardize(turned)[0].tolist() == standardize(turned.contiguous())[0].tolist()


def test_batch_norm_keeps_its_digits_far_from_zero(device):
    x = (1e4 + np.random.default_rng(1).standard_normal((64, 3, 5, 5))).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(exact.var((0, 2, 3), keepdims=True) + 1e-5)
    layer = nn.BatchNorm2d(3, device=device)
    y = layer(mg.tensor(x, device=device))
    assert y.dtype == mg.float32
    assert np.abs(y.detach().numpy() - exact).max() < 1e-3  # half a unit of 1e4 in float32 is 5e-4
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * x.astype(float).var((0, 2, 3), ddof=1), rtol=1e-5)


def test_batch_norm_of_float16_is_computed_in_float32(device):
    x = np.random.default_rng(2).standard_normal((8, 3)).astype(np.float16)
    layer = nn.BatchNorm1d(3).to(device, dtype=mg.float16)
    x = mg.tensor(x, device=device)
    y = layer(x)
    wide = F.batch_norm(x.to(mg.float32), None, None, training=True)
    assert y.dtype == mg.float16 and y.tolist() == wide.to(mg.float16).tolist()
    assert layer.running_mean.dtype == mg.float16 and layer.num_batches_tracked.item() == 1
    wide = copy.deepcopy(layer).to(mg.float32).eval()(x.to(mg.float32))
    assert layer.eval()(x).tolist() == wide.to(mg.float16).tolist()


def test_batch_norm_has_a_third_derivative(device):
    where = {"dtype": mg.float64, "device": device}
    weight = mg.tensor([0.5, 2.0], **where)
    x, d = (mg.randn(4, 2, 3, generator=mg.Generator(i), **where).requires_grad_() for i in range(2))

    def second(x):
        y = F.batch_norm(x, None, None, weight, training=True)
        (first,) = mg.grad((y**3).sum(), x, create_graph=True)
        return mg.grad((first * d.detach()).sum(), x, create_graph=True)[0]

    (slope,) = mg.grad((second(x) * d.detach()).sum(), x)
    h = 1e-4
    ahead, behind = ((second((x + t * d).detach().requires_grad_()) * d).sum().item() for t in (h, -h))
    assert (slope * d).sum().item() == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)


def test_kernels_of_batch_norm_give_the_same_bits_serial_and_parallel(device):
    if device != "cpu":
        pytest.skip("two variants of one kernel are the CPU's")
    x, g = (np.random.default_rng(i).standard_normal((5, 3000)).astype(np.float32) for i in range(2))
    for pixels in (1, 1000):
        channels = 3000 // pixels
        sums, centred = np.empty((2, 2, channels)), np.empty((2, 2, channels))
        out, alone = np.empty((2, *x.shape), x.dtype), np.empty((2, *x.shape), x.dtype)
        for i, variant in enumerate(("serial", "parallel")):
            getattr(kernels._moments, variant)(g, x, pixels, np.zeros(channels), False, sums[i])
            getattr(kernels._moments, variant)(x, x, pixels, np.zeros(channels), True, centred[i])
            table = np.arange(4.0 * channels).reshape(4, channels)
            getattr(kernels._combine, variant)(out[i], g, x, True, pixels, table)
            getattr(kernels._combine, variant)(alone[i], g, x, False, pixels, table)
        for made in (sums, centred, out, alone):
            np.testing.assert_array_equal(made[0], made[1])


def evaluated(shape, dtype, rng):
    """What evaluation takes: x, weight and bias, and running statistics far from zero in terms of the deviation."""
    mean, var = 1e3 * rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1])
    column = (-1, *[1] * (len(shape) - 2))
    x = mean.reshape(column) + rng.standard_normal(shape)
    return [a.astype(dtype) for a in (x, mean, var, *rng.standard_normal((2, shape[1])))]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 2), (2, 3, 5), (3, 2, 5, 7), (7, 1, 1)])
def test_batch_norm_in_evaluation_is_numpys(shape, dtype, device):
    """To the dtype's last digits, also far from zero; and its gradients."""
    rng = np.random.default_rng(3)
    given, g = evaluated(shape, dtype, rng), rng.standard_normal(shape).astype(dtype)
    dims, column = (0, *range(2, len(shape))), (-1, *[1] * (len(shape) - 2))
    x, mean, var, weight, bias, up = (a.astype(np.float64) for a in (*given, g))
    mean, var, weight, bias = (a.reshape(column) for a in (mean, var, weight, bias))
    hat, rstd = (x - mean) / np.sqrt(var + 1e-5), 1 / np.sqrt(var + 1e-5)
    exact = hat * weight + bias, up * weight * rstd, (up * hat).sum(dims), up.sum(dims)
    inputs = [mg.tensor(a, device=device) for a in given]
    leaves = inputs[0].requires_grad_(), inputs[3].requires_grad_(), inputs[4].requires_grad_()
    y = F.batch_norm(*inputs)
    found = y, *mg.grad(y, leaves, mg.tensor(g, device=device))
    for t, expected in zip(found, exact, strict=True):
        assert t.dtype == dtype
        size = max(1, np.abs(expected).max(), np.abs(up * hat).sum() if expected.ndim == 1 else 0)
        np.testing.assert_allclose(t.detach().numpy(), expected, rtol=0, atol=4 * np.finfo(dtype).eps * size)


@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_of_batch_norm_in_evaluation_are_slopes(affine, device):
    given = evaluated((3, 2, 2), "float64", np.random.default_rng(4))
    given[0], given[1] = given[0] - given[1].reshape(-1, 1), given[1] / 1e3
    inputs = [mg.tensor(a, device=device, requires_grad=True) for a in given[: 5 if affine else 3]]
    assert mg.gradcheck(F.batch_norm, inputs)
    assert mg.gradgradcheck(F.batch_norm, inputs)


def test_batch_norm_in_evaluation_reads_x_once_and_shares_its_sums(device, monkeypatch):
    asked, sums = [], ops._channel_sums
    monkeypatch.setattr(ops, "_channel_sums", lambda *args: asked.append(args) or sums(*args))
    x, mean, var, *affine = (mg.tensor(a, device=device) for a in evaluated((4, 3), "float32", rng))
    y = F.batch_norm(x, mean, var, *(t.requires_grad_() for t in affine))
    assert y.node.op is ops._channel_affine
    y.sum().backward()
    assert len(asked) == 1 and all(t.grad is not None for t in affine)


@pytest.mark.parametrize("shape", [(40, 3), (4, 3, 50)])
def test_batch_norm_in_evaluation_takes_each_element_for_itself(shape, device):
    x, *given = evaluated(shape, "float32", np.random.default_rng(5))
    given = [mg.tensor(a, device=device) for a in given]
    finite = F.batch_norm(mg.tensor(x, device=device), *given).numpy()
    x[1, 2], x[2, 1], x[3, 0] = np.inf, -np.inf, np.nan
    y = F.batch_norm(mg.tensor(x, device=device), *given).numpy()
    sign = np.sign(given[2].numpy())
    np.testing.assert_array_equal(y[1, 2], np.full_like(y[1, 2], np.inf * sign[2]))
    np.testing.assert_array_equal(y[2, 1], np.full_like(y[2, 1], -np.inf * sign[1]))
    assert np.isnan(y[3, 0]).all() and (y == finite).sum() == x.size - 3 * (x.size // 3 // len(x))
    turned = mg.tensor(x.swapaxes(0, 1), device=device).transpose(0, 1)  # whose rows do not lie together
    np.testing.assert_array_equal(F.batch_norm(turned, *given).numpy(), y)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 3, 0)])
def test_batch_norm_in_evaluation_of_nothing(shape, device):
    x, *given = (mg.tensor(a, device=device, requires_grad=True) for a in evaluated(shape, "float32", rng))
    y = F.batch_norm(x, *(t.detach() for t in given[:2]), *given[2:])
    assert [g.tolist() for g in mg.grad(y.sum(), given[2:])] == [[0.0] * shape[1]] * 2 and y.shape == shape


def test_batch_norm_refuses_two_dtypes():
    with pytest.raises(TypeError, match="batch_norm: expected one dtype"):
        nn.BatchNorm1d(3)(mg.ones(4, 3, dtype=mg.float64))


@pytest.mark.parametrize("role", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_batch_norm_refuses_what_is_not_one_per_channel(role, training, channels, device):
    """A kernel would read past the end of it, or broadcast it."""
    ones = mg.ones(3, device=device)
    given = dict.fromkeys(("running_mean", "running_var", "weight", "bias"), ones)
    given[role] = mg.ones(channels, device=device)
    with pytest.raises(ValueError, match=rf"batch_norm: expected {role} of shape \(3,\), .*; got \({channels},\)"):
        F.batch_norm(mg.randn(4, 3, device=device), **given, training=training)
    assert ones.tolist() == [1.0] * 3


def test_batch_norm_refuses_integers():
    with pytest.raises(TypeError, match="batch_norm: expected a floating dtype; got int64"):
        F.batch_norm(mg.tensor([[1, 2], [3, 4]]), None, None, training=True)


def test_batch_norm_forwards_after_each_other_have_one_backward(device):
    layer = nn.BatchNorm1d(2, device=device)
    x = mg.randn(4, 2, device=device)
    y = layer.eval()(x)  # at running statistics that the next two move
    (y * layer.train()(x) * layer(2 * x)).sum().backward()
    assert layer.weight.grad is not None
