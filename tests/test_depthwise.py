"""Convolutions with few channels and filters to a group: against plain loops, and that no other kernel made them."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_conv import all_three, data, kernels, loops

from minigrad.kernels.cpu import _depthwise, _jit, _tile, _winograd

SMALL = (9, 8), (3, 3), (2, 1), (1, 1), (1, 1), 6, 12, 6


@pytest.fixture
def alone(monkeypatch):
    """No other way shall be taken."""
    for other in ("_product", "_sums_of_images", "_few_channels"):
        monkeypatch.setattr(kernels, other, None)
    monkeypatch.setattr(_winograd, "convolve", None)


@st.composite
def cases(draw):
    n = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(n))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    space = tuple(low + draw(st.integers(0, 9 if n < 3 else 3)) for low in least)
    groups = draw(st.integers(2, 5) | st.sampled_from([9, 17]) if n < 3 else st.just(2))
    filters, channels = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 2), (16, 1)] if n < 3 else [(1, 1), (2, 1)]))
    return space, kernel, stride, padding, dilation, groups, groups * filters, groups * channels


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.usefixtures("alone", "dirty_memory")
@settings(max_examples=25, deadline=None)
@given(cases(), st.integers(1, 3), st.integers(0, 99))
def test_any_layout_against_loops(dtype, case, batch, seed):
    """Whole numbers, whose sums are exact in any order."""
    *arrays, layout = data(*case, seed=seed, batch=batch)
    x, w, b, g = (np.rint(3 * a) for a in arrays)
    expected = loops(x, w, g, *layout)
    expected[0][:] += b.reshape(-1, *(1,) * (x.ndim - 2))
    for ours, exact in zip(all_three(*(a.astype(dtype) for a in (x, w, b, g)), layout), expected, strict=True):
        assert ours.dtype == dtype and (ours == exact.astype(dtype)).all()


@pytest.mark.parametrize(("dtype", "epsilon"), [(np.float32, 3e-7), (np.float64, 1e-15), (np.float16, 1e-3)])
@pytest.mark.usefixtures("alone")
def test_long_lines_keep_their_precision(dtype, epsilon):
    """More blocks than one; the error stays below epsilon of the sum of absolute values."""
    x, w, b, g, layout = (
        a.astype(dtype) if isinstance(a, np.ndarray) else a
        for a in data((2 * _depthwise._NEAR + 37,), (5,), (1,), (2,), (1,), 3, 3, 3, batch=9)
    )
    exact = [a.astype(np.longdouble) for a in (x, w, b, g)]

    def sums(x, w, b, g):
        wide = np.pad(x, ((0, 0), (0, 0), (2, 2)))
        shifted = [wide[:, :, t : t + x.shape[2]] for t in range(5)]
        back = np.pad(g, ((0, 0), (0, 0), (2, 2)))
        yield b[:, None] + sum(w[:, 0, t, None] * s for t, s in enumerate(shifted))
        yield sum(w[:, 0, t, None] * back[:, :, 4 - t : 4 - t + x.shape[2]] for t in range(5))
        yield np.stack([(s * g).sum((0, 2)) for s in shifted], 1)[:, None]

    for ours, wanted, bound in zip(all_three(x, w, b, g, layout), sums(*exact), sums(*map(np.abs, exact)), strict=True):
        assert (np.abs(ours - wanted) <= epsilon * bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (4, 7), (8, 3)])
@pytest.mark.usefixtures("alone")
def test_what_is_not_finite_stays_in_its_windows(value, place):
    """Also where a window that only fills up the plane would see it, from the end of a line to the next."""
    *arrays, layout = data(*SMALL)
    x, w, b, g = (np.rint(4 * a) + 0.5 for a in arrays)
    x[1, 3, *place] = g[1, 6, place[0] // 2, place[1]] = value
    w = np.abs(w)
    expected = loops(x, w, g, *layout)
    expected[0][:] += b[:, None, None]
    made = all_three(*(a.astype(np.float32) for a in (x, w, b, g)), layout)
    for i, (ours, exact) in enumerate(zip(made, expected, strict=True)):
        if i == 2:  # the padding is multiplied by g, too
            finite = np.isfinite(exact) & (np.arange(12) != 6)[:, None, None, None]
            assert (np.isfinite(ours) | ~finite).all() and (ours == exact)[finite].all()
            assert not np.isfinite(ours[~np.isfinite(exact)]).any()
        else:
            np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.usefixtures("alone")
def test_threads_change_no_bit(threads, monkeypatch):
    """Nor does the serial variant, however many parts the work is cut into."""
    *arrays, layout = data((33, 32), (3, 3), (2, 1), (1, 1), (1, 1), 19, 38, 19, batch=3)
    arrays = [a.astype(np.float32) for a in arrays]
    parallel = all_three(*arrays, layout)
    monkeypatch.setattr(_jit, "_forked", True)
    monkeypatch.setattr(_depthwise, "num_threads", lambda: threads)
    for ours, then in zip(all_three(*arrays, layout), parallel, strict=True):
        assert (ours == then).all()


@pytest.mark.usefixtures("alone")
def test_an_image_makes_the_same_in_any_batch():
    x, w, b, g, layout = data(*SMALL, batch=7)
    made, gradient, _ = all_three(x, w, b, g, layout)
    some, gradients, _ = all_three(x[2:5], w, b, g[2:5], layout)
    assert (some == made[2:5]).all() and (gradients == gradient[2:5]).all()


def test_where_it_is_taken(monkeypatch):
    used = []
    for name in ("convolve", "convolve_back", "correlate"):
        call = getattr(_depthwise, name)
        monkeypatch.setattr(_depthwise, name, lambda *args, call=call: used.append(call(*args)) or used[-1])

    def taken(groups, filters, channels):
        used.clear()
        all_three(*data(*SMALL[:-3], groups, groups * filters, groups * channels))
        assert len(used) == 3
        return used[0] if len(set(used)) == 1 else used

    assert taken(6, 1, 1) and taken(2, 4, 4) and taken(3, 16, 1)
    assert not taken(1, 1, 1) and not taken(2, 17, 1) and not taken(2, 4, 5)
    monkeypatch.setattr(_tile, "PLAIN", True)
    assert not taken(6, 1, 1)


def test_an_empty_batch():
    x, w, b, g, layout = data(*SMALL, batch=0)
    made, gradient, sums = all_three(x, w, b, g, layout)
    assert made.shape == g.shape and gradient.shape == x.shape and sums.shape == w.shape and (sums == 0).all()
