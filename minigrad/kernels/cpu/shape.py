"""Movement of data: views where NumPy has views."""

from __future__ import annotations

import numpy as np

from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu.array import Array, full


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def permute(x: Array, dims: tuple[int, ...]) -> Array:
    return x.transpose(dims)


def expand(x: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(x, shape)


def flip(x: Array, dims: tuple[int, ...]) -> Array:
    return np.flip(x, dims)


def pad(x: Array, widths: tuple[tuple[int, int], ...], value: float) -> Array:
    if not widths:
        return x.copy()
    out = full(tuple(n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)), value, x.dtype)
    out[tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True))] = x
    return out


def cat(xs: tuple[Array, ...], dim: int) -> Array:
    return np.concatenate(xs, dim)


def contiguous(x: Array) -> Array:
    return in_order(x)
