"""Winograd's convolution against the sum that defines it, by NumPy. On small whole numbers both are exact."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from test_tile import AVX2, INTEL

from minigrad.kernels.cpu import _jit, _tile, _winograd, _winograd_weights

kernels = importlib.import_module("minigrad.kernels.cpu.conv")  # the package has a function of that name
PLAIN = (1, 1), (1, 1), (1, 1), 1  # stride, padding, dilation, groups
HALVED = (2, 2), (1, 1), (1, 1), 1


def by_definition(x, w, b, g, stride, padding):
    """x ⋆ w + b, and the gradients of ⟨g, x ⋆ w⟩: tap by tap, each with the pixels that it meets."""
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    out, in_x, in_w = np.zeros_like(g) + b[:, None, None], np.zeros_like(padded), np.zeros_like(w)
    for i, j in np.ndindex(w.shape[2:]):
        met = (..., *(slice(t, t + s * n, s) for t, s, n in zip((i, j), stride, g.shape[2:], strict=True)))
        out += np.einsum("ncyx,kc->nkyx", padded[met], w[:, :, i, j], optimize=True)
        in_x[met] += np.einsum("nkyx,kc->ncyx", g, w[:, :, i, j], optimize=True)
        in_w[:, :, i, j] = np.einsum("ncyx,nkyx->kc", padded[met], g, optimize=True)
    inside = (..., *(slice(p, p + n) for p, n in zip(padding, x.shape[2:], strict=True)))
    return out, in_x[inside], in_w


def all_three(x, w, b, g, stride, padding, dilation=(1, 1), groups=1):
    layout = stride, padding, dilation, groups
    return (
        kernels.conv(x, w, b, *layout),
        kernels.conv_input_grad(g, w, x.shape[2:], *layout),
        kernels.conv_weight_grad(g, x, w.shape[2:], *layout),
    )


def shapes(batch, channels, filters, space, stride=(1, 1), padding=(1, 1), taps=3):
    kernel = [taps * s for s in stride]
    made = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(space, padding, kernel, stride, strict=True)]
    return (batch, channels, *space), (filters, channels, *kernel), (filters,), (batch, filters, *made)


SMALL = shapes(7, 48, 50, (8, 9))
STRIDED = shapes(13, 24, 33, (16, 13), (2, 2), taps=2)


def normal(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in sizes]


@pytest.fixture
def used(monkeypatch):
    """What `convolve` and `correlate` have answered."""
    answers = []

    def heard(compute):
        return lambda *args, **options: answers.append(compute(*args, **options)) or answers[-1]

    monkeypatch.setattr(_winograd, "convolve", heard(_winograd.convolve))
    monkeypatch.setattr(_winograd_weights, "correlate", heard(_winograd_weights.correlate))
    return answers


def pays(patched, answer):
    """Whether it pays or not."""
    for module in (_winograd, _winograd_weights):
        patched.setattr(module, "form_that_pays", answer)


@pytest.mark.usefixtures("dirty_memory")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 7),
    channels=st.integers(1, 70),
    filters=st.integers(1, 70),
    taps=st.sampled_from([2, 3]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    near=st.sampled_from([1, 2**14, 2**17, 2**19]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_extents_and_any_bands(batch, channels, filters, taps, stride, near, seed, data):
    """Also those where it does not pay: parts of images, images together, odd borders, vectors that are not full."""
    padding = tuple(data.draw(st.integers(0, taps * s - 1)) for s in stride)
    space = tuple(
        data.draw(st.integers(max(1, taps * s - 2 * p), 17)) for s, p in zip(stride, padding, strict=True)
    )
    rng = np.random.default_rng(seed)
    sizes = shapes(batch, channels, filters, space, stride, padding, taps)
    x, w, b, g = (rng.integers(-4, 5, size=s) for s in sizes)
    with pytest.MonkeyPatch.context() as patched:
        pays(patched, lambda *_: taps)
        patched.setattr(_winograd, "_NEAR", near)
        patched.setattr(_winograd_weights, "_SHARED", near)
        for other in ("_product", "_sums_of_images"):  # no other way shall be taken
            patched.setattr(kernels, other, None)
        ours = all_three(*(a.astype(np.float32) for a in (x, w, b, g)), stride, padding)
    for made, expected in zip(ours, by_definition(x, w, b, g, stride, padding), strict=True):
        assert made.dtype == np.float32 and (made == expected).all()


@pytest.mark.parametrize(
    ("sizes", "layout", "dtype", "taken"),
    [
        (SMALL, PLAIN, np.float32, True),
        (SMALL, PLAIN, np.float16, True),  # in float32
        (SMALL, PLAIN, np.float64, False),
        (STRIDED, HALVED, np.float32, True),
        (shapes(7, 23, 90, (8, 9)), PLAIN, np.float32, False),  # few channels,
        (shapes(7, 90, 23, (8, 9)), PLAIN, np.float32, False),  # few filters,
        (shapes(6, 48, 50, (8, 9)), PLAIN, np.float32, False),  # few patches,
        (shapes(7, 24, 25, (8, 9)), PLAIN, np.float32, False),  # little work,
        (shapes(64, 48, 50, (7, 7)), PLAIN, np.float32, False),  # patches that are outside by a quarter
        (((7, 96, 8, 9), (50, 48, 3, 3), (50,), (7, 50, 8, 9)), (*PLAIN[:3], 2), np.float32, False),
        (((7, 48, 16, 18), (50, 48, 3, 3), (50,), (7, 50, 8, 9)), HALVED, np.float32, False),
        (((7, 48, 8, 9), (50, 48, 3, 3), (50,), (7, 50, 8, 9)), ((1, 1), (2, 2), (2, 2), 1), np.float32, False),
        (((7, 48, 8, 9), (50, 48, 3, 3), (50,), (7, 50, 12, 13)), ((1, 1), (3, 3), (1, 1), 1), np.float32, False),
        (((7, 48, 8, 9), (50, 48, 3, 1), (50,), (7, 50, 8, 9)), ((1, 1), (1, 0), (1, 1), 1), np.float32, False),
        (((7, 48, 8, 9), (50, 48, 4, 4), (50,), (7, 50, 7, 8)), PLAIN, np.float32, False),
        (((70, 48, 9), (50, 48, 3), (50,), (70, 50, 9)), ((1,), (1,), (1,), 1), np.float32, False),
    ],
)
def test_where_it_is_taken(sizes, layout, dtype, taken, used):
    x, w, b, g = (a.astype(dtype) for a in normal(*sizes))
    all_three(x, w, b, g, *layout)
    assert used == [taken] * 3


def test_the_switch_turns_it_off(used, monkeypatch):
    monkeypatch.setattr(_tile, "PLAIN", True)
    all_three(*normal(*SMALL), *PLAIN)
    assert used == [False] * 3


@pytest.mark.parametrize(
    ("batch", "channels", "filters", "side", "stride"),
    [(16, 64, 128, 16, 1), (16, 128, 256, 8, 1), (64, 256, 512, 4, 1),
     (16, 64, 64, 32, 2), (16, 128, 128, 16, 2), (64, 256, 256, 8, 2)],
)
def test_its_error_is_that_of_the_direct_sum(batch, channels, filters, side, stride, used, monkeypatch):
    """On layers of SNDCGAN: little more, in norm, than the docstrings say."""
    layout = (stride, stride), (1, 1)
    arrays = normal(*shapes(batch, channels, filters, (side, side), *layout, taps=4 - stride))
    exact = by_definition(*(a.astype(np.float64) for a in arrays), *layout)

    def errors():
        made = all_three(*arrays, *layout)
        return [np.linalg.norm(a - e) / np.linalg.norm(e) for a, e in zip(made, exact, strict=True)]

    ours = errors()
    pays(monkeypatch, lambda *_: 0)
    for error, direct, most in zip(ours, errors(), (1.3, 1.3, 1.7), strict=True):
        assert error <= most * direct and direct < 1e-6
    assert used == [True] * 3 + [False] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(("sizes", "layout"), [(SMALL, PLAIN), (STRIDED, HALVED)])
def test_what_is_not_finite_stays_in_its_windows(value, sizes, layout, used):
    """The last number is finite, but not what is made of it."""
    x, w, b, g = normal(*sizes)
    clean = all_three(x, w, b, g, *layout)
    x[2, 5, 4, 4] = g[2, 5, 4, 4] = value
    its_x, its_g = (np.zeros((len(a), 1, *a.shape[2:])) for a in (x, g))
    its_x[2, 0, 4, 4] = its_g[2, 0, 4, 4] = 1
    seen = by_definition(its_x, np.ones((1, 1, *w.shape[2:])), np.zeros(1), its_g, *layout[:2])
    made = all_three(x, w, b, g, *layout)
    assert used == [True] * 3 + [False] * 3
    for a, then, where in zip(made[:2], clean[:2], seen[:2], strict=True):
        there = np.broadcast_to(where != 0, a.shape)
        np.testing.assert_allclose(a[~there], then[~there], rtol=0, atol=1e-4)
        assert not np.isfinite(a[there]).all() or value == 3e38
    elsewhere = np.ix_(np.arange(len(w)) != 5, np.arange(w.shape[1]) != 5)  # neither its channel nor its filter
    np.testing.assert_allclose(made[2][elsewhere], clean[2][elsewhere], rtol=0, atol=1e-4)
    assert not np.isfinite(made[2][5, 5]).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [shapes(5, 49, 70, (15, 14)), STRIDED])
def test_threads_change_no_bit(threads, sizes, used, monkeypatch):
    """Nor does the serial variant, however many parts the work is cut into."""
    arrays, layout = normal(*sizes), HALVED if sizes is STRIDED else PLAIN
    parallel = all_three(*arrays, *layout)
    monkeypatch.setattr(_jit, "_forked", True)
    monkeypatch.setattr(_winograd, "num_threads", lambda: threads)
    for ours, then in zip(all_three(*arrays, *layout), parallel, strict=True):
        assert (ours == then).all()
    assert used == [True] * 6


@pytest.mark.parametrize(
    ("sizes", "layout"),
    [(shapes(12, 48, 49, (12, 12)), PLAIN), (shapes(12, 24, 49, (24, 24), (2, 2), taps=2), HALVED)],
)
def test_an_image_makes_the_same_in_any_batch(sizes, layout, used):
    x, w, b, g = normal(*sizes)
    made, gradient, _ = all_three(x, w, b, g, *layout)
    some, gradients, _ = all_three(x[3:7], w, b, g[3:7], *layout)
    assert (some == made[3:7]).all() and (gradients == gradient[3:7]).all() and used == [True] * 6


@pytest.mark.parametrize(
    ("sizes", "layout"),
    [
        (shapes(5, 49, 50, (13, 9)), PLAIN),
        (shapes(5, 45, 44, (13, 9)), PLAIN),  # of the last tile's columns less than half
        (shapes(9, 27, 50, (17, 23), (2, 2), taps=2), HALVED),
        (shapes(9, 45, 37, (17, 23), (2, 2), taps=2), HALVED),
    ],
)
@pytest.mark.usefixtures("dirty_memory")
def test_what_its_memory_held_before_does_not_matter(sizes, layout, used):
    """It is neither multiplied, nor taken for a result. The patches are no whole tiles."""
    arrays = normal(*sizes)
    exact = by_definition(*(a.astype(float) for a in arrays), *layout[:2])
    for ours, expected, most in zip(all_three(*arrays, *layout), exact, (1e-4, 1e-4, 1e-4), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=most)
    assert used == [True] * 3


OLDER = """
import sys
sys.path.append("tests")
import numpy as np, test_winograd as here
assert here._tile.shape(32) == (6, 16)
here._jit.set_num_threads(1)  # half as much to compile
rng = np.random.default_rng(0)
for sizes, layout in ((here.SMALL, here.PLAIN), (here.STRIDED, here.HALVED)):
    x, w, b, g = (rng.integers(-4, 5, size=s) for s in sizes)
    ours = here.all_three(*(a.astype(np.float32) for a in (x, w, b, g)), *layout)
    exact = here.by_definition(x, w, b, g, *layout[:2])
    print(*[(made == e).all() for made, e in zip(ours, exact)])
"""


@INTEL
def test_an_older_processor():
    """Whose vectors are half as long, and whose instructions this one has too."""
    env = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
    done = subprocess.run(
        [sys.executable, "-c", OLDER], env=env, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.split() == ["True"] * 6, done.stderr
