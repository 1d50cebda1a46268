"""Dense products, by BLAS."""

from __future__ import annotations

import math

import numpy as np

from minigrad.kernels.cpu.array import Array


@np.errstate(all="ignore")
def matmul(x: Array, y: Array) -> Array:
    """Batched product of matrices (…, m, k) and (…, k, n); float16 is multiplied in float32 and rounded once."""
    if x.dtype == np.float16:
        return np.asarray(np.matmul(x.astype(np.float32), y.astype(np.float32)).astype(np.float16))
    return np.asarray(np.matmul(x, y))


@np.errstate(all="ignore")
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x weightᵀ + bias for x (…, in), weight (out, in), bias (out)."""
    if x.dtype == np.float16:
        wide = None if bias is None else bias.astype(np.float32)
        return linear(x.astype(np.float32), weight.astype(np.float32), wide).astype(np.float16)
    out = np.matmul(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight.T)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], weight.shape[0])
