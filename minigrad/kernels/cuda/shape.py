"""Movement of data: views wherever the strides allow one."""

from __future__ import annotations

from minigrad.kernels.cuda.array import Array, contiguous as contiguous, copy, empty, full, write
from minigrad.kernels.cuda.part import assign, part


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def permute(x: Array, dims: tuple[int, ...]) -> Array:
    return x.permute(dims)


def expand(x: Array, shape: tuple[int, ...]) -> Array:
    return x.expand(shape)


def flip(x: Array, dims: tuple[int, ...]) -> Array:
    return part(x, tuple(slice(None, None, -1 if d in dims else 1) for d in range(x.ndim)))


def pad(x: Array, widths: tuple[tuple[int, int], ...], value: float) -> Array:
    if not widths:
        return copy(x)
    out = full(tuple(n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)), value, x.dtype)
    assign(out, tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True)), x)
    return out


def cat(xs: tuple[Array, ...], dim: int) -> Array:
    shape = xs[0].shape
    out = empty((*shape[:dim], sum(x.shape[dim] for x in xs), *shape[dim + 1 :]), xs[0].dtype)
    start = 0
    for x in xs:
        write(part(out, (slice(None),) * dim + (slice(start, start + x.shape[dim]),)), x)
        start += x.shape[dim]
    return out
