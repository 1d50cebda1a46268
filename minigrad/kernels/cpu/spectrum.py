"""The whole spectrum of a weight, in float64: of its matrix, and of the circular convolution that it makes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.kernels.cpu.array import Array, cast
from minigrad.kernels.cpu.spectral import rank_one

Extents = tuple[int, ...]


def _matrix(w: Array, dim: int) -> Array:
    return np.moveaxis(w, dim, 0).reshape(w.shape[dim], -1).astype(np.float64)


def svd(w: Array, dim: int) -> tuple[Array, Array, Array, Array]:
    """σ₁ in the dtype of u and v, and the thin factors U, S, Vᵀ of M in float64; all NaN if W is not finite."""
    matrix = _matrix(w, dim)
    if np.isfinite(matrix).all():
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        r = min(matrix.shape)
        left, values, right = (np.full(shape, np.nan) for shape in ((len(matrix), r), (r,), (r, matrix.shape[1])))
    return cast(values[:1], np.promote_types(w.dtype, np.float32)).reshape(()), left, values, right


def leading_pair(left: Array, right: Array, shape: tuple[int, ...], dim: int, dtype: Any) -> Array:
    """u₁v₁ᵀ of the factors U, Vᵀ, in the layout of W."""
    return rank_one(np.float64(1), left[:, 0], right[0], shape, dim, dtype)


def turned_pair(d: Array, left: Array, values: Array, right: Array, dim: int) -> Array:
    """du v₁ᵀ + u₁ dvᵀ: how u₁v₁ᵀ moves as M = U S Vᵀ moves along D. Not finite where σ₁ = σ₂; 0 where M = 0.

    du = Σ_{i≥2} (σ₁D̃_{i1} + σ_iD̃_{1i})/(σ₁² − σ_i²) u_i with D̃ = UᵀDV, and dv with U and V exchanged. Only D v₁ and
    Dᵀu₁ come in. Outside the spans of U and V the σ_i are 0: what is left of D v₁ there counts by 1/σ₁.
    """
    if values[0] == 0:
        return np.zeros(d.shape, d.dtype)
    matrix = _matrix(d, dim)
    u, v = left[:, 0], right[0]
    x, y = matrix @ v, matrix.T @ u
    x_in, y_in = left.T @ x, right @ y
    with np.errstate(all="ignore"):
        gap = (values[0] - values[1:]) * (values[0] + values[1:])
        du = np.append(0.0, (values[0] * x_in[1:] + values[1:] * y_in[1:]) / gap)
        dv = np.append(0.0, (values[0] * y_in[1:] + values[1:] * x_in[1:]) / gap)
        du = left @ du + (x - left @ x_in) / values[0]
        dv = dv @ right + (y - y_in @ right) / values[0]
        turned = np.outer(du, v) + np.outer(u, dv)
    moved = np.moveaxis(np.empty(d.shape, np.bool_), dim, 0).shape
    return cast(np.ascontiguousarray(np.moveaxis(turned.reshape(moved), 0, dim)), d.dtype)


def singular_values(w: Array, k: int, dim: int) -> Array:
    """The k largest singular values of M, in the dtype of u and v; NaN if W is not finite."""
    matrix = _matrix(w, dim)
    finite = np.isfinite(matrix).all()
    values = np.linalg.svd(matrix, compute_uv=False) if finite else np.full(min(matrix.shape), np.nan)
    return cast(values[:k], np.promote_types(w.dtype, np.float32))


def circular_singular_values(
    w: Array, k: int, space: Extents, stride: Extents, dilation: Extents, groups: int
) -> Array:
    """The k largest singular values of x ↦ x ⋆ w on images with the extents `space`, their borders joined.

    The Fourier transform takes the convolution apart into one matrix per frequency (Sedghi, Gupta, Long, arXiv
    1805.10408). A stride of s keeps each s-th output, which makes s frequencies in each dimension one: their matrices
    stand side by side, times s^(−1/2).
    """
    if not np.isfinite(w).all():
        return np.full(k, np.nan, np.promote_types(w.dtype, np.float32))
    n, filters = len(space), np.zeros((*w.shape[:2], *space))
    taps = np.ix_(*(np.arange(t) * d % s for t, d, s in zip(w.shape[2:], dilation, space, strict=True)))
    np.add.at(filters, (..., *taps), w)  # type: ignore[arg-type]  # a filter larger than the image goes around it
    split = [e for s, t in zip(space, stride, strict=True) for e in (t, s // t)]
    transfer = np.fft.fftn(filters, axes=range(2, n + 2)).reshape(groups, w.shape[0] // groups, w.shape[1], *split)
    aliases, frequencies = range(3, 3 + 2 * n, 2), range(4, 4 + 2 * n, 2)
    matrices = transfer.transpose(0, *frequencies, 1, 2, *aliases)
    matrices = matrices.reshape(-1, w.shape[0] // groups, w.shape[1] * math.prod(stride))
    values = np.linalg.svd(matrices / math.sqrt(math.prod(stride)), compute_uv=False).ravel()
    return cast(np.sort(values)[::-1][:k], np.promote_types(w.dtype, np.float32))
