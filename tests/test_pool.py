"""Pooling and upsampling: against plain loops, and against torch to second order over random shapes."""

import importlib
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_conv import close, leaf, same_to_second_order

import minigrad as mg
from minigrad.device import kernels
from minigrad.kernels.cpu import _jit, pool
from minigrad.ops import pool as ops

CASES = [  # space, kernel, stride, padding
    ((7,), (2,), (2,), (1,)),
    ((5, 6), (3, 2), (2, 1), (1, 0)),
    ((4, 4), (2, 2), (3, 3), (1, 1)),
    ((6, 38), (2, 2), (2, 2), (0, 0)),
    ((3, 4, 2), (2, 2, 2), (1, 2, 1), (0, 1, 0)),
]


@pytest.fixture
def run(device):
    """`run(name, *arguments)` of a kernel of the device, from and to NumPy."""
    k = kernels(device)

    def call(name, *args):
        made = getattr(k, name)(*(k.from_host(a) if isinstance(a, np.ndarray) else a for a in args))
        return tuple(map(k.to_host, made)) if isinstance(made, tuple) else k.to_host(made)

    return call


def windows(space, kernel, stride, padding):
    """The input pixels of each window, one output pixel after the other."""
    extents = [(s + 2 * p - k) // t + 1 for s, k, t, p in zip(space, kernel, stride, padding, strict=True)]
    for o in np.ndindex(*extents):
        corner = [i * t - p for i, t, p in zip(o, stride, padding, strict=True)]
        pixels = [tuple(c + j for c, j in zip(corner, tap, strict=True)) for tap in np.ndindex(*kernel)]
        yield o, [at for at in pixels if all(0 <= i < s for i, s in zip(at, space, strict=True))]


@pytest.mark.parametrize("case", CASES)
def test_max_pool_against_loops(case, run):
    """Few distinct values, so that there are ties: the first one counts."""
    x = np.random.default_rng(0).integers(-2, 3, (2, 3, *case[0])).astype(np.float64)
    before = x.copy()
    values, indices = run("max_pool", x, *case[1:])
    for n, c in np.ndindex(2, 3):
        for o, pixels in windows(*case):
            best = max(pixels, key=lambda at: x[n, c, *at])
            assert values[n, c, *o] == x[n, c, *best]
            assert indices[n, c, *o] == np.ravel_multi_index(best, case[0])
    assert indices.dtype == np.int64 and (x == before).all()
    assert (run("pool_gather", x, indices) == values).all()
    g = np.random.default_rng(1).standard_normal(values.shape)
    spread = np.zeros((2, 3, int(np.prod(case[0]))))
    for n, c in np.ndindex(2, 3):
        np.add.at(spread[n, c], indices[n, c].ravel(), g[n, c].ravel())
    close(run("pool_scatter", g, indices, case[0], case[1:]), spread.reshape(x.shape))


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_avg_pool_against_loops(case, count_include_pad, run):
    x = np.random.default_rng(0).standard_normal((2, 3, *case[0]))
    out = run("avg_pool", x, *case[1:], count_include_pad)
    g = np.random.default_rng(1).standard_normal(out.shape)
    spread = np.zeros_like(x)
    for o, pixels in windows(*case):
        count = np.prod(case[1]) if count_include_pad else len(pixels)
        close(out[:, :, *o], sum(x[:, :, *at] for at in pixels) / count)
        for at in pixels:
            spread[:, :, *at] += g[:, :, *o] / count
    close(run("avg_pool_grad", g, case[0], *case[1:], count_include_pad), spread)


@pytest.mark.parametrize(
    ("space", "scale"), [((3,), (2,)), ((2, 3), (3, 1)), ((3, 19), (2, 2)), ((2, 1, 2), (1, 2, 3))]
)
def test_upsampling_against_repeat(space, scale, run):
    x = np.random.default_rng(0).standard_normal((2, 3, *space))
    repeated = x
    for axis, factor in enumerate(scale, 2):
        repeated = np.repeat(repeated, factor, axis)
    assert (run("upsample_nearest", x, scale) == repeated).all()
    g = np.random.default_rng(1).standard_normal(repeated.shape)
    adjoint = run("upsample_nearest_grad", g, scale)
    assert adjoint.shape == x.shape
    assert (adjoint * x).sum() == pytest.approx((g * repeated).sum(), rel=1e-12)


@st.composite
def poolings(draw):
    n = draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(n))
    stride = draw(st.none() | st.tuples(*[st.integers(1, 3)] * n))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    space = tuple(max(1, k - 2 * p) + draw(st.integers(0, 5)) for k, p in zip(kernel, padding, strict=True))
    return space, kernel, stride, padding


def upstream(shape, seed):
    return np.random.default_rng(seed + 1).standard_normal(tuple(shape))


@settings(max_examples=40, deadline=None)
@given(poolings(), st.integers(0, 99))
def test_max_pool_against_torch(device, case, seed):
    functional = pytest.importorskip("torch").nn.functional
    space, *how = case
    x = np.random.default_rng(seed).standard_normal((2, 3, *space))
    ours, theirs = (getattr(where, f"max_pool{len(space)}d") for where in (ops, functional))
    g = upstream(ours(mg.tensor(x), *how).shape, seed)
    same_to_second_order(lambda x: ours(x, *how), lambda x: theirs(x, *how), (x,), g, device)


@settings(max_examples=40, deadline=None)
@given(poolings(), st.booleans(), st.integers(0, 99))
def test_avg_pool_against_torch(device, case, count, seed):
    functional = pytest.importorskip("torch").nn.functional
    space, *how = case
    x = np.random.default_rng(seed).standard_normal((2, 3, *space))
    ours, theirs = (getattr(where, f"avg_pool{len(space)}d") for where in (ops, functional))
    g = upstream(ours(mg.tensor(x), *how).shape, seed)
    same_to_second_order(
        lambda x: ours(x, *how, count_include_pad=count),
        lambda x: theirs(x, *how, count_include_pad=count),
        (x,),
        g,
        device,
    )


@pytest.mark.parametrize("scale", [1, 2, (3, 2)])
def test_upsample_against_torch(scale, device):
    functional = pytest.importorskip("torch").nn.functional
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    g = upstream(ops.upsample(mg.tensor(x), scale).shape, 0)
    same_to_second_order(
        lambda x: ops.upsample(x, scale), lambda x: functional.interpolate(x, scale_factor=scale), (x,), g, device
    )


DERIVED = {
    "max": lambda x: ops.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "average": lambda x: ops.avg_pool2d(x, 2, (1, 2), 1),
    "average, padding uncounted": lambda x: ops.avg_pool2d(x, (3, 2), (2, 1), (1, 0), count_include_pad=False),
    "upsampling": lambda x: ops.upsample(x, (1, 2)),
}


@pytest.mark.parametrize("name", DERIVED)
def test_derivatives_are_slopes(name, device):
    """Squared, as pooling alone has no second derivative to speak of."""
    x = mg.tensor(np.random.default_rng(3).standard_normal((1, 2, 4, 3)), device=device, requires_grad=True)
    assert mg.gradcheck(lambda x: DERIVED[name](x) ** 2, x) and mg.gradgradcheck(lambda x: DERIVED[name](x) ** 2, x)


def test_the_same_bits_every_time(run):
    x, how = np.random.default_rng(4).standard_normal((2, 3, 7, 6)).astype(np.float32), ((3, 3), (1, 2), (1, 1))

    def results():
        values, indices = run("max_pool", x, *how)
        yield from (values, indices, run("pool_scatter", values, indices, x.shape[2:], how))
        yield from (run("avg_pool", x, *how, False), run("avg_pool_grad", values, x.shape[2:], *how, True))
        yield run("upsample_nearest_grad", x, (7, 3))

    for first, again in zip(results(), results(), strict=True):
        assert first.tobytes() == again.tobytes()


def test_no_images_and_no_channels(device):
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
        x = mg.zeros(*shape, device=device, requires_grad=True)
        for y in (ops.max_pool2d(x, 2), ops.avg_pool2d(x, 2), ops.upsample(x, 2)):
            assert y.shape[:2] == shape[:2] and mg.grad(y.sum(), x)[0].shape == shape


def test_max_pool_to_third_order(device):
    """With the maxima m: f = ∂/∂x Σ m³ = 3m², ∂/∂x Σ f² = 36m³, and 108m² after that; each at the maxima alone."""
    x = leaf(np.array([[[1.0, 3.0, 2.0, -1.0]]]), device)
    (first,) = mg.grad((ops.max_pool1d(x, 2) ** 3).sum(), x, create_graph=True)
    (second,) = mg.grad((first**2).sum(), x, create_graph=True)
    (third,) = mg.grad(second.sum(), x)
    assert first.tolist() == [[[0.0, 27.0, 12.0, 0.0]]]
    for found, expected in ((second, [0, 36 * 27, 36 * 8, 0]), (third, [0, 108 * 9, 108 * 4, 0])):
        np.testing.assert_allclose(found.detach().numpy(), [[expected]], rtol=1e-14)  # a GPU's powers are not exact


def test_nan_wins_and_minus_infinity_has_a_place(run):
    x = np.array([[[1.0, np.nan, 5.0, 2.0, -np.inf, -np.inf]]])
    values, indices = run("max_pool", x, (2,), (2,), (0,))
    np.testing.assert_array_equal(values, [[[np.nan, 5.0, -np.inf]]])
    assert indices.tolist() == [[[1, 2, 4]]]
    assert np.isnan(run("avg_pool", x, (2,), (2,), (0,), True)[0, 0]).tolist() == [True, False, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtypes_keep_their_precision(dtype, run):
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(dtype)
    epsilon = np.finfo(dtype).eps
    values, _ = run("max_pool", x, (2, 2), (2, 2), (0, 0))
    exact, _ = run("max_pool", x.astype(np.float64), (2, 2), (2, 2), (0, 0))
    assert values.dtype == dtype and (values == exact).all()
    every = (
        lambda x: run("avg_pool", x, (3, 3), (1, 1), (1, 1), False),
        lambda x: run("avg_pool_grad", x, (8, 8), (3, 3), (1, 1), (1, 1), False),
        lambda x: run("upsample_nearest_grad", x, (4, 4)),
    )
    for f in every:
        ours = f(x)
        assert ours.dtype == dtype
        assert (np.abs(ours - f(x.astype(np.float64))) <= 4 * epsilon * f(np.abs(x.astype(np.float64)))).all()
    many = np.full((1, 1, 64, 64), 0.1, dtype)
    assert (run("avg_pool", many, (64, 64), (1, 1), (0, 0), True) == dtype(0.1)).all()
    big = np.full((1, 1, 4), 6e4, np.float16)
    assert np.isinf(run("upsample_nearest_grad", big, (4,))).all()


def test_strided_and_read_only_inputs(device):
    k = kernels(device)
    whole = mg.tensor(np.random.default_rng(0).standard_normal((4, 2, 6, 4)), device=device)
    x = whole.permute(1, 0, 3, 2)[:, ::2].data
    here = k.copy(x)
    if device == "cpu":
        x.flags.writeable = False
    windows = (2, 2), (2, 2), (0, 0)

    def same(ours, theirs):
        np.testing.assert_array_equal(k.to_host(ours), k.to_host(theirs))

    (values, indices), (expected, at) = k.max_pool(x, *windows), k.max_pool(here, *windows)
    same(values, expected), same(indices, at)
    back, places = (k.permute(a, (0, 1, 3, 2)) for a in (values, indices))
    same(k.pool_gather(x, places), back)
    same(k.pool_scatter(back, places, (6, 4), windows), k.pool_scatter(k.copy(back), k.copy(places), (6, 4), windows))
    for count in (True, False):
        same(k.avg_pool(x, *windows, count), k.avg_pool(here, *windows, count))
        same(k.avg_pool_grad(back, (6, 4), *windows, count), k.avg_pool_grad(k.copy(back), (6, 4), *windows, count))
    same(k.upsample_nearest(x, (2, 1)), k.upsample_nearest(here, (2, 1)))
    same(k.upsample_nearest_grad(x, (2, 1)), k.upsample_nearest_grad(here, (2, 1)))


def test_serial_and_parallel_kernels_agree_to_the_bit(monkeypatch, device):
    if device != "cpu":
        pytest.skip("two variants of one kernel are the CPU's")
    x = np.random.default_rng(0).standard_normal((6, 11, 32, 33)).astype(np.float32)
    windows, blocks = ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0))

    def results():
        values, indices = pool.max_pool(x, *windows)
        yield values
        yield indices
        yield pool.pool_scatter(values, indices, x.shape[2:], windows)
        yield pool.avg_pool(x, *windows, False)
        yield pool.avg_pool_grad(values, x.shape[2:], *windows, True)
        yield from pool.max_pool(x[..., :32], *blocks)
        yield pool.avg_pool(x[..., :32], *blocks, True)
        yield pool.upsample_nearest(x, (2, 2))

    parallel = list(results())
    monkeypatch.setattr(_jit, "_forked", True)
    for ours, then in zip(results(), parallel, strict=True):
        assert (ours == then).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_blocks_are_the_windows_that_they_stand_for(dtype, monkeypatch, run, device):
    """Ties, infinities and NaN included; 11 and 33 blocks to a line."""
    kernels = importlib.import_module(f"minigrad.kernels.{device}._blocks")
    rng, windows = np.random.default_rng(0), ((2, 2), (2, 2), (0, 0))
    for height, width in ((2, 6), (4, 22), (4, 66)):
        x = rng.integers(-2, 3, (2, 3, height, width)).astype(dtype)
        x[rng.random(x.shape) < 0.1] = np.nan
        x[rng.random(x.shape) < 0.1] = -np.inf
        y = rng.standard_normal(x.shape).astype(dtype)

        def results(x=x, y=y):
            values, indices = run("max_pool", x, *windows)
            yield from (values, indices, run("pool_scatter", values, indices, x.shape[2:], windows))
            yield from (run("avg_pool", y, *windows, True), run("upsample_nearest_grad", y, (2, 2)))
            pixels = 2 * y.shape[2], 2 * y.shape[3]
            yield from (run("upsample_nearest", y, (2, 2)), run("avg_pool_grad", y, pixels, *windows, False))

        blocks = list(results())
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "cover", lambda *windows: False)
            for ours, plain in zip(blocks, results(), strict=True):
                assert ours.dtype == plain.dtype
                np.testing.assert_array_equal(ours, plain)


def test_one_image_without_a_batch(device):
    x = mg.tensor(np.random.default_rng(0).standard_normal((3, 4, 6)), device=device)
    assert ops.max_pool2d(x, 2).shape == ops.avg_pool2d(x, 2).shape == (3, 2, 3)


X = (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("kind", "op", "x", "options", "message"),
    [
        (
            ValueError,
            ops.max_pool2d,
            mg.ones(4, 4),
            (2,),
            "max_pool2d: expected input of 4 dimensions, 2 of them",
        ),
        (ValueError, ops.max_pool2d, mg.ones(X), (0,), "max_pool2d: expected kernel_size to be an int or 2 ints, each"),
        (ValueError, ops.avg_pool2d, mg.ones(X), (2, 0), "avg_pool2d: expected stride to be an int or 2 ints, each"),
        (ValueError, ops.avg_pool2d, mg.ones(X), (2, 2, 2), "of at most half the kernel (2, 2); got (2, 2)"),
        (ValueError, ops.max_pool2d, mg.ones(X), (5,), "max_pool2d: expected windows no larger than the padded input"),
        (ValueError, ops.max_pool2d, mg.ones(1, 1, 0, 4), (2, 2, 1), "max_pool2d: expected an image of at least"),
        (ValueError, ops.avg_pool1d, mg.ones(1, 1, 0), (2, 2, 1), "avg_pool1d: expected an image of at least"),
        (TypeError, ops.max_pool2d, mg.ones(X).long(), (2,), "max_pool2d: expected a floating dtype; got int64"),
        (
            TypeError,
            ops.upsample,
            mg.ones(X),
            (1.5,),
            "expected scale_factor to be an int or 2 ints; got 1.5",
        ),
        (ValueError, ops.upsample, mg.ones(4, 4), (2,), "upsample: expected input of 3 dimensions, 1 of them spatial"),
        (TypeError, ops.upsample, [1.0], (2,), "upsample: expected a tensor; got list"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(kind, op, x, options, message):
    with pytest.raises(kind, match=re.escape(message)):
        op(x, *options)
