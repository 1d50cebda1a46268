"""Spectral normalization in plain NumPy and float64, as the paper writes it: the readable reference of the tests."""

import numpy as np


def unit(x):
    return x / np.linalg.norm(x)


def matrix(w, dim):
    """W with the axis `dim` as rows, all others as columns."""
    return np.moveaxis(w, dim, 0).reshape(w.shape[dim], -1)


def in_layout(m, shape, dim):
    """A matrix back in the layout of a weight of this shape."""
    return np.moveaxis(m.reshape(np.moveaxis(np.empty(shape), dim, 0).shape), 0, dim)


def case(shape, dim, seed=0, dtype=np.float64):
    """A random weight, unit vectors that have nothing to do with it, and an upstream gradient."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)
    u, v = unit(rng.standard_normal(shape[dim])), unit(rng.standard_normal(w.size // shape[dim]))
    vectors = np.promote_types(dtype, np.float32)
    return w.astype(dtype), u.astype(vectors), v.astype(vectors), rng.standard_normal(shape).astype(dtype)


def sweeps(m, u, v, n, order):
    """u, v and σ after n power iterations (18–22)."""
    m, u, v = (x.astype(np.float64) for x in (m, u, v))
    for _ in range(n):
        if order == "uv":
            u = unit(m @ v)
            v = unit(m.T @ u)
        else:
            v = unit(m.T @ u)
            u = unit(m @ v)
    return u, v, u @ m @ v


def pulled_back(g, w, u, v, dim):
    """(G − ⟨G, W̄⟩ u vᵀ)/σ, (12)."""
    m, gm = matrix(w, dim).astype(np.float64), matrix(g, dim).astype(np.float64)
    sigma = u @ m @ v
    return in_layout((gm - (gm * m).sum() / sigma * np.outer(u, v)) / sigma, w.shape, dim)
