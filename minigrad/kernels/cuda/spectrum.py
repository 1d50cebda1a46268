"""The whole spectrum of a weight, on the host: copied there, decomposed by the CPU's functions, copied back.

Decompositions are for diagnosis and for σ₁ itself, not for a training step: each waits for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cpu import spectrum as host
from minigrad.kernels.cuda.array import Array, from_host, full, to_host
from minigrad.kernels.cuda.part import part
from minigrad.kernels.cuda.spectral import rank_one

Extents = tuple[int, ...]


def svd(w: Array, dim: int) -> tuple[Array, Array, Array, Array]:
    sigma, left, values, right = host.svd(to_host(w), dim)
    return from_host(sigma), from_host(left), from_host(values), from_host(right)


def leading_pair(left: Array, right: Array, shape: tuple[int, ...], dim: int, dtype: Any) -> Array:
    """u₁v₁ᵀ; this one on the device."""
    one = full((), 1, np.float64)
    return rank_one(one, part(left, (slice(None), 0)), part(right, 0), shape, dim, dtype)


def turned_pair(d: Array, left: Array, values: Array, right: Array, dim: int) -> Array:
    return from_host(host.turned_pair(to_host(d), to_host(left), to_host(values), to_host(right), dim))


def singular_values(w: Array, k: int, dim: int) -> Array:
    return from_host(host.singular_values(to_host(w), k, dim))


def circular_singular_values(
    w: Array, k: int, space: Extents, stride: Extents, dilation: Extents, groups: int
) -> Array:
    return from_host(host.circular_singular_values(to_host(w), k, space, stride, dilation, groups))
