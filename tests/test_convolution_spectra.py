"""Norms and singular values of convolutions, against the matrix; and the Lanczos method that finds them."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from naive_convolution import LAYERS, dense, matrix_of, registered
from normalized_layers import F64

import minigrad as mg
from minigrad.spectral.krylov import leading_eigenvalues


@pytest.mark.parametrize("name", LAYERS)
def test_operator_norm_and_top_k_of_zero_padding(name):
    make, space = LAYERS[name]
    layer = make()
    expected = np.linalg.svd(matrix_of(layer, space), compute_uv=False)
    k = min(6, len(expected))
    np.testing.assert_allclose(
        mg.spectral.singular_values(layer, k, input_shape=space).numpy(), expected[:k], rtol=1e-10, atol=1e-10
    )
    assert mg.spectral.operator_norm(layer, space).item() == pytest.approx(expected[0], rel=1e-11)
    registered(layer, space)  # the raw weight, normalized or not
    assert mg.spectral.operator_norm(layer, space).item() == pytest.approx(expected[0], rel=1e-11)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_circular_spectra_are_exact(data, seed):
    """All singular values, for any kernel (larger than the image too), stride, dilation and groups."""
    n = data.draw(st.integers(1, 2))
    stride = tuple(data.draw(st.integers(1, 3)) for _ in range(n))
    space = tuple(t * data.draw(st.integers(1, 4)) for t in stride)
    dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(n))
    kernel = tuple(data.draw(st.integers(1, 4)) for _ in range(n))
    groups = data.draw(st.integers(1, 2))
    ins, outs = (groups * data.draw(st.integers(1, 2)) for _ in range(2))
    transposed = data.draw(st.booleans())
    make = [[mg.nn.Conv1d, mg.nn.Conv2d], [mg.nn.ConvTranspose1d, mg.nn.ConvTranspose2d]][transposed][n - 1]
    padding = tuple(0 if transposed else d * k for d, k in zip(dilation, kernel, strict=True))
    layer = make(ins, outs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, **F64)
    w = np.random.default_rng(seed).standard_normal(layer.weight.shape)
    with mg.no_grad():
        layer.weight.copy_(mg.tensor(w))
    expected = np.linalg.svd(dense(w, space, stride, padding, dilation, groups, circular=True), compute_uv=False)
    given_space = tuple(s // t for s, t in zip(space, stride, strict=True)) if transposed else space
    found = mg.spectral.singular_values(
        layer, len(expected), input_shape=given_space, padding_mode="circular"
    ).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    norm = mg.spectral.operator_norm(layer, given_space, padding_mode="circular")
    assert norm.item() == pytest.approx(expected[0], rel=1e-12) and norm.shape == ()


def test_an_all_ones_kernel_reaches_the_bound_and_has_its_values_in_pairs():
    conv = mg.nn.Conv2d(1, 1, 3, padding=1, bias=False, **F64)
    with mg.no_grad():
        mg.nn.init.ones_(conv.weight)
    reshaped = mg.spectral.singular_values(conv, 1).item()
    circular = mg.spectral.singular_values(conv, 5, input_shape=16, padding_mode="circular").numpy()
    assert circular[0] / reshaped == pytest.approx(3, rel=1e-12)
    np.testing.assert_allclose(circular[1:], circular[1], rtol=1e-12)  # ±k in either dimension
    zeros = mg.spectral.singular_values(conv, 3, input_shape=16).numpy()
    assert zeros[1] == pytest.approx(zeros[2], rel=1e-12) and zeros[0] < circular[0]


@pytest.mark.parametrize(("filters", "channels", "kernel"), [(16, 3, 3), (8, 8, 5)])
def test_the_reshaped_norm_is_too_small(filters, channels, kernel):
    conv = mg.nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    reshaped = mg.spectral.singular_values(conv, 1).item()
    zeros, circular = (mg.spectral.operator_norm(conv, 16, padding_mode=mode).item() for mode in ("zeros", "circular"))
    assert 1.3 * reshaped < zeros < circular <= kernel * reshaped


def test_special_weights():
    conv = mg.nn.Conv1d(1, 1, 2, **F64)
    for fill, expected in ((0.0, 0.0), (1e-300, 1e-300), (np.nan, np.nan)):
        with mg.no_grad():
            conv.weight.copy_(mg.full((1, 1, 2), fill, dtype=mg.float64))
        for mode in ("zeros", "circular"):
            found = mg.spectral.operator_norm(conv, 2, padding_mode=mode).item()
            scale = np.sqrt(2) if mode == "zeros" else 2
            assert found == pytest.approx(expected * scale, nan_ok=True, rel=1e-12)


def test_the_norms_errors():
    conv = mg.nn.Conv2d(1, 2, 3, stride=2, padding=1)
    with pytest.raises(ValueError, match="expected a convolutional layer; got 'weight' of Linear"):
        mg.spectral.operator_norm(mg.nn.Linear(2, 2), 4)
    with pytest.raises(ValueError, match="expected padding_mode 'zeros' or 'circular'; got 'reflect'"):
        mg.spectral.operator_norm(conv, 4, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"the stride must divide the input; got \(5, 4\) with stride \(2, 2\)"):
        mg.spectral.operator_norm(conv, (5, 4), padding_mode="circular")
    with pytest.raises(ValueError, match=r"expected k between 1 and 8 for a matrix \(8, 16\); got 9"):
        mg.spectral.singular_values(conv, 9, input_shape=4)
    with pytest.raises(ValueError, match="expected k between 1 and 8"):
        mg.spectral.singular_values(conv, 9, input_shape=4, padding_mode="circular")
    with pytest.raises(ValueError, match="padding_mode='circular' needs an input_shape"):
        mg.spectral.singular_values(conv, 1, padding_mode="circular")


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), rank=st.integers(0, 60), k=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_lanczos_finds_the_largest_eigenvalues(n, rank, k, seed):
    """Of matrices of any rank, with values that repeat."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.zeros(n)
    values[:rank] = rng.integers(1, 5, min(rank, n))
    matrix = turn * values @ turn.T
    k = min(k, n)
    found = leading_eigenvalues(lambda x: matrix @ x, n, k)
    np.testing.assert_allclose(found, np.sort(values)[::-1][:k], atol=1e-9 * max(1.0, values.max()))


def test_lanczos_restarts_and_gives_up():
    values = np.linspace(0.0, 1.0, 3000) ** 0.5
    np.testing.assert_allclose(leading_eigenvalues(lambda x: values[:, None] * x, 3000, 2), values[:-3:-1], rtol=1e-9)
    with pytest.raises(RuntimeError, match="did not bring the residuals below 0"):
        leading_eigenvalues(lambda x: values[:50, None] * x, 50, 2, tolerance=0.0)
    with pytest.raises(ValueError, match="expected k between 1 and 3; got 4"):
        leading_eigenvalues(lambda x: x, 3, 4)
