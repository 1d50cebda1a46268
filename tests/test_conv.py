"""Convolutions: against plain loops, and against torch to second order over random shapes."""

import importlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import minigrad as mg
from minigrad.kernels.cpu import _conv_tables, _jit
from minigrad.ops import conv as ops

kernels = importlib.import_module("minigrad.kernels.cpu.conv")  # the package has a function of that name

CASES = {  # space, kernel, stride, padding, dilation, groups, filters, channels
    "1d": ((7,), (3,), (2,), (1,), (1,), 1, 2, 3),
    "2d, two groups": ((4, 5), (2, 3), (1, 2), (1, 0), (1, 1), 2, 4, 2),
    "2d, dilated": ((6, 5), (2, 2), (2, 1), (0, 2), (3, 2), 1, 3, 2),
    "2d, depthwise": ((4, 4), (3, 3), (1, 1), (1, 1), (1, 1), 3, 3, 3),
    "2d, a filter as large as the image": ((3, 2), (3, 2), (1, 1), (0, 0), (1, 1), 1, 2, 2),
    "2d, strides that leave a rest": ((6, 8), (2, 2), (3, 4), (0, 0), (1, 1), 1, 1, 2),
    "2d, more filters than a channel has taps": ((4, 3), (2, 2), (2, 1), (1, 0), (1, 2), 1, 17, 2),
    "2d, more channels than two vectors hold": ((3, 3), (2, 2), (1, 1), (0, 0), (1, 1), 1, 2, 70),
    "3d": ((3, 4, 3), (2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2), 1, 2, 2),
}


def loops(x, w, g, stride, padding, dilation, groups):
    """The sum that defines a convolution, term by term: x ⋆ w and both gradients of ⟨g, x ⋆ w⟩."""
    out, gx, gw = np.zeros_like(g), np.zeros_like(x), np.zeros_like(w)
    per_group = len(w) // groups
    for n, k, c in np.ndindex(len(x), len(w), w.shape[1]):
        for o, t in itertools.product(np.ndindex(g.shape[2:]), np.ndindex(w.shape[2:])):
            at = tuple(s * i + d * j - p for s, i, d, j, p in zip(stride, o, dilation, t, padding, strict=True))
            if all(0 <= i < size for i, size in zip(at, x.shape[2:], strict=True)):
                pixel = (n, k // per_group * w.shape[1] + c, *at)
                out[n, k, *o] += x[pixel] * w[k, c, *t]
                gx[pixel] += g[n, k, *o] * w[k, c, *t]
                gw[k, c, *t] += g[n, k, *o] * x[pixel]
    return out, gx, gw


def data(space, kernel, stride, padding, dilation, groups, filters, channels, seed=0, batch=2):
    """Random x, w, b, upstream g, and the layout."""
    layout = ops.Layout(stride, padding, dilation, groups)
    rng = np.random.default_rng(seed)
    shapes = (
        (batch, channels, *space),
        (filters, channels // groups, *kernel),
        (filters,),
        (batch, filters, *layout.output(space, kernel)),
    )
    return *(rng.standard_normal(s) for s in shapes), layout


def all_three(x, w, b, g, layout):
    """The kernels' x ⋆ w + b and both gradients of ⟨g, x ⋆ w⟩."""
    return (
        kernels.conv(x, w, b, *layout),
        kernels.conv_input_grad(g, w, x.shape[2:], *layout),
        kernels.conv_weight_grad(g, x, w.shape[2:], *layout),
    )


def leaf(x, device="cpu"):
    return mg.tensor(x, device=device, requires_grad=True)


def close(ours, theirs, tolerance=1e-10):
    ours, theirs = (a.detach().numpy() if hasattr(a, "detach") else np.asarray(a) for a in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1, np.abs(theirs).max(initial=0)))


@pytest.mark.usefixtures("dirty_memory")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_kernels_against_loops(case):
    x, w, b, g, layout = data(*case)
    expected = loops(x, w, g, *layout)
    before = [a.copy() for a in (x, w, b, g)]
    for ours, theirs in zip(all_three(x, w, None, g, layout), expected, strict=True):
        close(ours, theirs)
    close(kernels.conv(x, w, b, *layout), expected[0] + b.reshape(-1, *(1,) * (x.ndim - 2)))
    for a, then in zip((x, w, b, g), before, strict=True):
        assert (a == then).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_derivatives_against_loops(case):
    """With L = ⟨g, x ⋆ w⟩, also ∂⟨∂L/∂w, r⟩/∂(x, g): the same sums with r in the place of w."""
    x, w, _, g, layout = data(*case)
    r = np.random.default_rng(1).standard_normal(w.shape)
    _, gx, gw = loops(x, w, g, *layout)
    tx, tw, tg = leaf(x), leaf(w), leaf(g)
    got_x, got_w = mg.grad((ops._conv(tx, tw, None, layout=layout) * tg).sum(), (tx, tw), create_graph=True)
    close(got_x, gx)
    close(got_w, gw)
    out, gx, _ = loops(x, r, g, *layout)
    second_x, second_g = mg.grad((got_w * mg.tensor(r)).sum(), (tx, tg))
    close(second_x, gx)
    close(second_g, out)


@st.composite
def layouts(draw):
    """Arguments of `data` for any convolution that gives an output, down to single pixels."""
    n = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(n))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    space = tuple(low + draw(st.integers(0, 4)) for low in least)
    groups = draw(st.integers(1, 3))
    filters, channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    return space, kernel, stride, padding, dilation, groups, filters, channels


def same_to_second_order(ours, theirs, arrays, g, device="cpu"):
    """Equal values, gradients with upstream g, and gradients of ⟨those, random vectors⟩ with respect to everything."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    vectors = [rng.standard_normal(a.shape) for a in arrays]
    mine, other = [leaf(a, device) for a in (*arrays, g)], [torch.tensor(a, requires_grad=True) for a in (*arrays, g)]
    y, z = ours(*mine[:-1]), theirs(*other[:-1])
    close(y, z)
    first = mg.grad((y * mine[-1]).sum(), mine[:-1], create_graph=True)
    first_of_torch = torch.autograd.grad((z * other[-1]).sum(), other[:-1], create_graph=True)
    for a, b in zip(first, first_of_torch, strict=True):
        close(a, b)
    along = sum((a * leaf(v, device).detach()).sum() for a, v in zip(first, vectors, strict=True))
    along_in_torch = sum((a * torch.tensor(v)).sum() for a, v in zip(first_of_torch, vectors, strict=True))
    second = mg.grad(along, mine, allow_unused=True)
    second_of_torch = torch.autograd.grad(along_in_torch, other, allow_unused=True)
    for a, b, like in zip(second, second_of_torch, (*arrays, g), strict=True):
        nothing = np.zeros(like.shape)
        close(nothing if a is None else a, nothing if b is None else b)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 99))
def test_convolution_against_torch(shapes, seed):
    functional = pytest.importorskip("torch").nn.functional
    x, w, b, g, (stride, padding, dilation, groups) = data(*shapes, seed=seed)
    name = f"conv{x.ndim - 2}d"
    same_to_second_order(
        lambda x, w, b: getattr(ops, name)(x, w, b, stride, padding, dilation, groups),
        lambda x, w, b: getattr(functional, name)(x, w, b, stride, padding, dilation, groups),
        (x, w, b),
        g,
    )


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 2), st.integers(0, 99))
def test_transposed_convolution_against_torch(shapes, extra, seed):
    functional = pytest.importorskip("torch").nn.functional
    _, w, _, x, (stride, padding, dilation, groups) = data(*shapes, seed=seed)
    name = f"conv_transpose{x.ndim - 2}d"
    output_padding = tuple(min(extra, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    b = np.arange(w.shape[1] * groups, dtype=float)

    def call(f):
        return lambda x, w, b: f(x, w, b, stride, padding, output_padding, groups, dilation)

    every = zip(x.shape[2:], w.shape[2:], *(stride, padding, dilation, output_padding), strict=True)
    extents = [(i - 1) * s - 2 * p + d * (k - 1) + e + 1 for i, k, s, p, d, e in every]
    if min(extents) < 1:
        with pytest.raises(ValueError, match="Use less padding"):
            call(getattr(ops, name))(*map(mg.tensor, (x, w, b)))
        return
    g = np.random.default_rng(seed).standard_normal((len(x), len(b), *extents))
    same_to_second_order(call(getattr(ops, name)), call(getattr(functional, name)), (x, w, b), g)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's, that it copies the input
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(1, 2), (3, 4), (2, 3)])
def test_named_padding_against_torch(kernel, padding):
    functional = pytest.importorskip("torch").nn.functional
    x, w, b, _, _ = data((7, 8), kernel, (1, 1), (0, 0), (1, 2), 1, 2, 3)
    shape = functional.conv2d(*map(pytest.importorskip("torch").tensor, (x, w, b)), 1, padding, (1, 2)).shape
    same_to_second_order(
        lambda x, w, b: ops.conv2d(x, w, b, padding=padding, dilation=(1, 2)),
        lambda x, w, b: functional.conv2d(x, w, b, padding=padding, dilation=(1, 2)),
        (x, w, b),
        np.random.default_rng(3).standard_normal(tuple(shape)),
    )


def test_one_image_without_a_batch():
    x, w, b, g, layout = data(*CASES["2d, dilated"])
    one, all_ = (ops.conv2d(mg.tensor(a), mg.tensor(w), mg.tensor(b), *layout) for a in (x[0], x))
    assert one.shape == g.shape[1:]
    close(one, all_.numpy()[0])
    one, all_ = (ops.conv_transpose2d(mg.tensor(a), mg.tensor(w), stride=2) for a in (g[0], g))
    close(one, all_.numpy()[0])


def test_adjoints_are_public_and_adjoint():
    """⟨g, x ⋆ w⟩ = ⟨conv_input_grad(g, w), x⟩ = ⟨conv_weight_grad(g, x), w⟩, with defaults and ints for tuples."""
    x, w, _, g, _ = data((5, 6), (3, 2), (1, 1), (0, 0), (1, 1), 1, 3, 2)
    tx, tw, tg = map(mg.tensor, (x, w, g))
    value = (ops.conv2d(tx, tw) * tg).sum().item()
    assert (ops.conv_input_grad(tg, tw, [5, 6]) * tx).sum().item() == pytest.approx(value, rel=1e-12)
    assert (ops.conv_weight_grad(tg, tx, [3, 2]) * tw).sum().item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("near", [0, 4096, 2**20])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_blocks_change_nothing(case, near, monkeypatch):
    """One image at a time, several and all; products in many steps and in one."""
    for name, value in {"_NEAR": near, "_SHARED": near, "_DEPTH": 5 if near else 1024}.items():
        monkeypatch.setattr(_conv_tables, name, value)
    for tables in (_conv_tables.forward, _conv_tables.backward, _conv_tables.across):
        monkeypatch.setattr(_conv_tables, tables.__name__, tables.__wrapped__)  # none that was made before
    monkeypatch.setattr(kernels, "_WAITING", near)
    x, w, _, g, layout = data(*case, batch=5)
    for ours, theirs in zip(all_three(x, w, None, g, layout), loops(x, w, g, *layout), strict=True):
        close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from([np.float32, np.float64]))
def test_any_remainder_of_vectors_tiles_and_squares(shapes, filters, channels, batch, dtype):
    """More filters, channels and images than plain loops have patience for, against torch in float64."""
    torch = pytest.importorskip("torch")
    *space, groups, _, _ = shapes
    *arrays, layout = data(*space, groups, filters * groups, channels * groups, batch=batch)
    arrays = [a.astype(dtype) for a in arrays]

    def exact(x, w, b, g):
        x, w, b, g = (torch.tensor(a.astype(float), requires_grad=True) for a in (x, w, b, g))
        y = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")(x, w, b, *layout)
        return [a.detach().numpy() for a in (y, *torch.autograd.grad((y * g).sum(), (x, w)))]

    for ours, wanted, bound in zip(
        all_three(*arrays, layout), exact(*arrays), exact(*map(np.abs, arrays)), strict=True
    ):
        assert ours.dtype == dtype and (np.abs(ours - wanted) <= 30 * np.finfo(dtype).eps * bound).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_no_bit(threads, monkeypatch):
    """Nor does the serial variant, which a forked child uses, however many parts the work is cut into."""
    for channels in (17, 3):
        x, w, b, g, layout = data((33, 32), (3, 3), (1, 1), (1, 1), (1, 1), 1, 70, channels, batch=3)
        x, w, b, g = (a.astype(np.float32) for a in (x, w, b, g))
        parallel = all_three(x, w, b, g, layout)
        with monkeypatch.context() as patched:
            patched.setattr(_jit, "_forked", True)
            patched.setattr(kernels, "num_threads", lambda: threads)
            for ours, then in zip(all_three(x, w, b, g, layout), parallel, strict=True):
                assert (ours == then).all()


@pytest.mark.parametrize(("dtype", "epsilon"), [(np.float32, 1e-6), (np.float16, 1e-3)])
def test_dtypes_keep_their_precision(dtype, epsilon):
    """The error stays below ε of the sum of absolute values; float16 is computed in float32 and rounded once."""
    *arrays, layout = data((9, 8), (3, 3), (2, 1), (1, 1), (1, 1), 1, 8, 16)
    arrays = [a.astype(dtype) for a in arrays]
    exact = [a.astype(np.float64) for a in arrays]
    bounds = all_three(*map(np.abs, exact), layout)
    for ours, wanted, bound in zip(all_three(*arrays, layout), all_three(*exact, layout), bounds, strict=True):
        assert ours.dtype == dtype
        assert (np.abs(ours - wanted) <= epsilon * bound).all()


def test_strided_and_read_only_inputs():
    x, w, b, g, layout = data(*CASES["2d, two groups"])
    far = [np.repeat(a, 2, axis=0)[::2] for a in (x, w, b, g)]
    for a in far:
        a.flags.writeable = False
    for ours, plain in zip(all_three(*far, layout), all_three(x, w, b, g, layout), strict=True):
        assert (ours == plain).all()


def test_nan_and_infinity_reach_their_windows_only():
    x = np.ones((1, 1, 5, 5), np.float32)
    x[0, 0, 0, 0], x[0, 0, 4, 4] = np.nan, np.inf
    out = ops.conv2d(mg.tensor(x), mg.ones(1, 1, 2, 2)).numpy()[0, 0]
    assert np.isnan(out[0, 0]) and np.isinf(out[3, 3])
    assert (out[(out == out) & np.isfinite(out)] == 4).all() and np.isfinite(out).sum() == 14
    big = mg.tensor(np.full((1, 1, 2, 2), 6e4, np.float16))
    assert np.isinf(ops.conv2d(big, mg.ones(1, 1, 2, 2, dtype=mg.float16)).numpy()).all()


def test_an_empty_batch():
    x, w = mg.zeros(0, 2, 5, 5, requires_grad=True), mg.ones(3, 2, 3, 3, requires_grad=True)
    out = ops.conv2d(x, w, mg.ones(3))
    out.sum().backward()
    assert out.shape == (0, 3, 3, 3) and x.grad.shape == x.shape and (w.grad.numpy() == 0).all()


def test_the_weight_gradient_of_nothing_is_zero():
    """No pixels in the upstream gradient, or no channels on a side: the sums are empty, or there are none."""
    x, w = mg.zeros(1, 2, 0, requires_grad=True), mg.ones(2, 3, 3, requires_grad=True)
    out = ops.conv_transpose1d(x, w)
    out.sum().backward()
    assert (out.detach().numpy() == 0).all() and x.grad.shape == x.shape and (w.grad.numpy() == 0).all()
    for filters, channels in (0, 3), (2, 0):
        made = ops.conv_weight_grad(mg.ones(1, filters, 2), mg.ones(1, channels, 3), [2])
        assert made.shape == (filters, channels, 2)


X, W = (1, 4, 5, 5), (6, 4, 3, 3)


@pytest.mark.parametrize(
    ("op", "shapes", "options", "message"),
    [
        (ops.conv2d, [(4, 5), W], {}, "conv2d: expected input of 4 dimensions, 2 of them spatial; got shape (4, 5)"),
        (ops.conv2d, [X, (6, 4, 3)], {}, "conv2d: expected weight of 4 dimensions, 2 of them spatial"),
        (ops.conv2d, [X, W], {"groups": 2}, "conv2d: expected input of 8 channels, for weight of shape (6,"),
        (ops.conv2d, [X, (6, 1, 3, 3)], {"groups": 4}, "its first extent divisible by groups=4; got shape (6,"),
        (ops.conv2d, [X, (0, 4, 3, 3)], {}, "conv2d: expected a non-empty weight"),
        (ops.conv2d, [X, W, (4,)], {}, "conv2d: expected bias of shape (6,), one per output channel; got (4,)"),
        (ops.conv2d, [X, (6, 4, 6, 6)], {}, "conv2d: expected filters no larger than the padded input; got input of"),
        (ops.conv2d, [X, W], {"stride": 0}, "conv2d: expected stride to be an int or 2 ints, each at least 1; got 0"),
        (ops.conv2d, [X, W], {"stride": (1, 1, 1)}, "conv2d: expected stride to be an int or 2 ints, each at least 1"),
        (ops.conv2d, [X, W], {"padding": -1}, "expected padding to be an int or 2 ints, each at least 0; got -1"),
        (ops.conv2d, [X, W], {"padding": "full"}, "'valid', or (with stride 1) 'same'; got 'full' with stride (1, 1)"),
        (ops.conv2d, [X, W], {"padding": "same", "stride": 2}, "got 'same' with stride (2, 2)"),
        (ops.conv_transpose2d, [X, W], {}, "conv_transpose2d: expected input of 6 channels, for weight of shape"),
        (ops.conv_transpose2d, [X, (4, 6, 3, 3)], {"output_padding": 1}, "below the stride (1, 1) or the dil"),
        (ops.conv_transpose2d, [X, (4, 1, 1, 1)], {"padding": 3}, "expected a non-empty output; got extents (-1, -1)"),
        (ops.conv_input_grad, [X, (6, 4)], {"input_shape": [4, 4]}, "conv_input_grad: expected a tensor (N, C, …)"),
        (ops.conv_input_grad, [X, W], {"input_shape": [9, 9]}, "expected grad_output of 6 channels"),
        (ops.conv_input_grad, [X, (4, 1, 3, 3)], {"input_shape": [4, 4]}, "expected grad_output of extents (2, 2)"),
        (ops.conv_weight_grad, [X, X], {"kernel_shape": [2, 2]}, "expected grad_output of extents (4, 4)"),
        (ops.conv_weight_grad, [(2, 4, 3, 3), X], {"kernel_shape": [3, 3]}, "expected one batch size"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_what_came(op, shapes, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        op(*map(mg.ones, shapes), **options)


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (mg.ones(X), mg.ones(W, dtype=mg.float64), {}, "conv2d: expected one dtype; got float32, float64"),
        (mg.ones(X), mg.ones(W), {"bias": mg.ones(6, dtype=mg.float16)}, "expected one dtype; got float32, float32"),
        (mg.ones(X, dtype=mg.int64), mg.ones(W, dtype=mg.int64), {}, "conv2d: expected a floating dtype; got int64"),
        (np.ones(X), mg.ones(W), {}, "conv2d: expected a tensor; got ndarray"),
        (mg.ones(X), mg.ones(W), {"stride": 1.5}, "conv2d: expected stride to be an int or 2 ints; got 1.5"),
    ],
)  # fmt: skip
def test_wrong_types(x, w, options, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        ops.conv2d(x, w, **options)
