"""Winograd's convolution against the sum that defines it, by NumPy. On small whole numbers both are exact."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_tile import AVX2, INTEL

from minigrad.kernels.cpu import _jit, _scratch, _tile, _winograd, _winograd_weights

kernels = importlib.import_module("minigrad.kernels.cpu.conv")  # the package has a function of that name
EVERY = (1, 1), (1, 1), (1, 1), 1  # stride, padding, dilation, groups


def windows(x, padding):
    """(n, c, pixel y, pixel x, 3, 3)."""
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


def by_definition(x, w, b, g, padding):
    """x ⋆ w + b, and the gradients of ⟨g, x ⋆ w⟩: in x what each window has got from the pixels of g that see it."""
    out = np.einsum("ncyxij,kcij->nkyx", windows(x, padding), w, optimize=True) + b[:, None, None]
    turned = w[:, :, ::-1, ::-1]
    grad = np.einsum("nkyxij,kcij->ncyx", windows(g, [2 - p for p in padding]), turned, optimize=True)
    return out, grad, np.einsum("ncyxij,nkyx->kcij", windows(x, padding), g, optimize=True)


def all_three(x, w, b, g, *layout):
    layout = (1, 1), *layout, (1, 1), 1
    return (
        kernels.conv(x, w, b, *layout),
        kernels.conv_input_grad(g, w, x.shape[2:], *layout),
        kernels.conv_weight_grad(g, x, w.shape[2:], *layout),
    )


def shapes(batch, channels, filters, space, padding):
    made = [size + 2 * p - 2 for size, p in zip(space, padding, strict=True)]
    return (batch, channels, *space), (filters, channels, 3, 3), (filters,), (batch, filters, *made)


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
    monkeypatch.setattr(_winograd_weights, "_PAYS_FROM", 0)  # so that small ones tell
    return answers


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 7),
    channels=st.integers(1, 70),
    filters=st.integers(1, 70),
    space=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    near=st.sampled_from([1, 2**14, 2**17, 2**19]),
    seed=st.integers(0, 99),
)
def test_any_extents_and_any_bands(batch, channels, filters, space, padding, near, seed):
    """Also those where it does not pay: parts of images, images together, odd borders, vectors that are not full."""
    rng = np.random.default_rng(seed)
    sizes = shapes(batch, channels, filters, space, padding)
    x, w, b, g = (rng.integers(-4, 5, size=s) for s in sizes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_winograd, "pays", lambda *_: True)
        patched.setattr(_winograd, "_NEAR", near)
        patched.setattr(_winograd_weights, "_SHARED", near)
        patched.setattr(_winograd_weights, "_PAYS_FROM", 0)
        ours = all_three(*(a.astype(np.float32) for a in (x, w, b, g)), padding)
    for made, expected in zip(ours, by_definition(x, w, b, g, padding), strict=True):
        assert made.dtype == np.float32 and (made == expected).all()


@pytest.mark.parametrize(
    ("sizes", "layout", "dtype", "taken"),
    [
        (shapes(7, 48, 50, (8, 9), (1, 1)), EVERY, np.float32, True),
        (shapes(7, 48, 50, (8, 9), (1, 1)), EVERY, np.float16, True),  # in float32
        (shapes(7, 48, 50, (8, 9), (1, 1)), EVERY, np.float64, False),
        (shapes(7, 47, 50, (8, 9), (1, 1)), EVERY, np.float32, False),  # few channels,
        (shapes(7, 48, 47, (8, 9), (1, 1)), EVERY, np.float32, False),  # few filters,
        (shapes(6, 48, 50, (8, 9), (1, 1)), EVERY, np.float32, False),  # few patches,
        (shapes(64, 48, 50, (7, 7), (1, 1)), EVERY, np.float32, False),  # patches that are outside by a quarter
        (((7, 96, 8, 9), (50, 48, 3, 3), (50,), (7, 50, 8, 9)), (*EVERY[:3], 2), np.float32, False),
        (((7, 48, 16, 18), (50, 48, 3, 3), (50,), (7, 50, 8, 9)), ((2, 2), *EVERY[1:]), np.float32, False),
        (((7, 48, 8, 9), (50, 48, 3, 3), (50,), (7, 50, 8, 9)), ((1, 1), (2, 2), (2, 2), 1), np.float32, False),
        (((7, 48, 8, 9), (50, 48, 3, 3), (50,), (7, 50, 12, 13)), ((1, 1), (3, 3), (1, 1), 1), np.float32, False),
        (((7, 48, 8, 9), (50, 48, 3, 1), (50,), (7, 50, 8, 9)), ((1, 1), (1, 0), (1, 1), 1), np.float32, False),
        (((70, 48, 9), (50, 48, 3), (50,), (70, 50, 9)), ((1,), (1,), (1,), 1), np.float32, False),
    ],
)
def test_where_it_is_taken(sizes, layout, dtype, taken, used):
    x, w, b, g = (a.astype(dtype) for a in normal(*sizes))
    kernels.conv(x, w, b, *layout)
    kernels.conv_input_grad(g, w, x.shape[2:], *layout)
    kernels.conv_weight_grad(g, x, w.shape[2:], *layout)
    assert used == [taken] * 3


@pytest.mark.parametrize(("batch", "taken"), [(24, False), (25, True)])
def test_weights_want_more_work(batch, taken):
    x, w, _, g = normal(*shapes(batch, 48, 50, (8, 9), (1, 1)))
    assert _winograd_weights.correlate(np.empty_like(w), g, x, *EVERY) == taken


def test_the_switch_turns_it_off(used, monkeypatch):
    monkeypatch.setattr(_tile, "PLAIN", True)
    all_three(*normal(*shapes(7, 48, 50, (8, 9), (1, 1))), (1, 1))
    assert used == [False] * 3


@pytest.mark.parametrize(
    ("batch", "channels", "filters", "side"), [(16, 64, 128, 16), (16, 128, 256, 8), (64, 256, 512, 4)]
)
def test_its_error_is_that_of_the_direct_sum(batch, channels, filters, side, used, monkeypatch):
    """On layers of SNDCGAN: little more, in norm, than the docstrings say."""
    arrays = normal(*shapes(batch, channels, filters, (side, side), (1, 1)))
    exact = by_definition(*(a.astype(np.float64) for a in arrays), (1, 1))

    def errors():
        made = all_three(*arrays, (1, 1))
        return [np.linalg.norm(a - e) / np.linalg.norm(e) for a, e in zip(made, exact, strict=True)]

    ours = errors()
    monkeypatch.setattr(_winograd, "pays", lambda *_: False)
    for error, direct, most in zip(ours, errors(), (1.5, 1.5, 1.7), strict=True):
        assert error <= most * direct and direct < 1e-6
    assert used == [True] * 3 + [False] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_windows(value, used):
    """The last number is finite, but not what is made of it."""
    x, w, b, g = normal(*shapes(7, 48, 50, (8, 9), (1, 1)))
    x[2, 5, 4, 4] = g[2, 5, 4, 4] = value
    seen = np.zeros((7, 1, 8, 9), bool)
    seen[2, 0, 3:6, 3:6] = True
    before = all_three(np.where(np.isfinite(x) & (abs(x) < 1e38), x, 0), w, b, np.where(abs(g) < 1e38, g, 0), (1, 1))
    made = all_three(x, w, b, g, (1, 1))
    assert used == [True] * 3 + [False] * 3
    for a, then in zip(made[:2], before[:2], strict=True):
        np.testing.assert_allclose(*(np.where(seen, 0, y) for y in (a, then)), rtol=0, atol=1e-4)
        assert not np.isfinite(a[2, :, 3:6, 3:6]).all() or value == 3e38
    ours, then = made[2], before[2]  # where neither the channel nor the filter is that of the number
    elsewhere = np.ix_(np.arange(50) != 5, np.arange(48) != 5)
    np.testing.assert_allclose(ours[elsewhere], then[elsewhere], rtol=0, atol=1e-4)
    assert not np.isfinite(ours[5, 5]).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_no_bit(threads, used, monkeypatch):
    """Nor does the serial variant, however many parts the work is cut into."""
    arrays = normal(*shapes(5, 49, 70, (15, 14), (1, 1)))
    parallel = all_three(*arrays, (1, 1))
    monkeypatch.setattr(_jit, "_forked", True)
    monkeypatch.setattr(_winograd, "num_threads", lambda: threads)
    for ours, then in zip(all_three(*arrays, (1, 1)), parallel, strict=True):
        assert (ours == then).all()
    assert used == [True] * 6


def test_an_image_makes_the_same_in_any_batch(used):
    x, w, b, _ = normal(*shapes(8, 48, 49, (12, 12), (1, 1)))
    together = kernels.conv(x, w, b, *EVERY)
    assert (kernels.conv(x[3:7], w, b, *EVERY) == together[3:7]).all() and used == [True, True]


def test_what_its_memory_held_before_does_not_matter(used, monkeypatch):
    """NaN there: it is neither multiplied, nor taken for a result. 35 patches are no whole tiles."""
    new = _scratch._new
    monkeypatch.setattr(_scratch, "_buffers", [])
    monkeypatch.setattr(_scratch, "_new", lambda size: np.full_like(new(size), 255))
    arrays = normal(*shapes(5, 49, 50, (13, 9), (1, 1)))
    exact = by_definition(*(a.astype(float) for a in arrays), (1, 1))
    for ours, expected, most in zip(all_three(*arrays, (1, 1)), exact, (5e-5, 5e-5, 1e-4), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=most)
    assert used == [True] * 3


OLDER = """
import sys
sys.path.append("tests")
import numpy as np, test_winograd as here
assert here._tile.shape(32) == (6, 16)
here._jit.set_num_threads(1)  # half as much to compile
rng = np.random.default_rng(0)
x, w, b, g = (rng.integers(-4, 5, size=s) for s in here.shapes(5, 50, 49, (9, 11), (1, 1)))
ours = here.all_three(*(a.astype(np.float32) for a in (x, w, b, g)), (1, 1))
print(*[(made == exact).all() for made, exact in zip(ours, here.by_definition(x, w, b, g, (1, 1)))])
"""


@INTEL
def test_an_older_processor():
    """Whose vectors are half as long, and whose instructions this one has too."""
    env = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
    done = subprocess.run(
        [sys.executable, "-c", OLDER], env=env, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr
