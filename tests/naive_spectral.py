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


def through_the_sweeps(g, m, u, v, n, order):
    """∂⟨G, M/σₙ⟩/∂M with n sweeps in between, from constant u and v: reverse mode by hand."""
    trail = []
    for turn in order * n:
        y = m @ v if turn == "u" else m.T @ u
        trail.append((turn, y, u, v))
        u, v = (unit(y), v) if turn == "u" else (u, unit(y))
    sigma = u @ m @ v
    slope = -(g * m).sum() / sigma**2
    dm, du, dv = g / sigma + slope * np.outer(u, v), slope * m @ v, slope * m.T @ u
    for turn, y, u, v in reversed(trail):
        d = du if turn == "u" else dv
        dy = (d - unit(y) * (unit(y) @ d)) / np.linalg.norm(y)
        if turn == "u":
            dm, du, dv = dm + np.outer(dy, v), 0 * du, dv + m.T @ dy
        else:
            dm, du, dv = dm + np.outer(u, dy), du + m @ dy, 0 * dv
    return dm


def trained(gradient, w, u, v, g, dim=0, n=1, order="uv"):
    """One training forward and backward of a convention, from the stored u, v: W̄, new u, new v, ∂⟨G, W̄⟩/∂W."""
    m, gm = (matrix(x.astype(np.float64), dim) for x in (w, g))
    if w.ndim == 1:
        start, n, order = (np.ones(len(w)), np.ones(1)), 1, "uv"
    else:
        start = u.astype(np.float64), v.astype(np.float64)
    if not m.any():
        back = gm if gradient in ("straight_through", "projected") else 0 * gm
        return np.zeros(w.shape), *start, in_layout(back, w.shape, dim)
    u, v, sigma = sweeps(m, *start, n, order)
    pair = u, v, sigma
    if gradient == "exact":
        left, values, right = np.linalg.svd(m, full_matrices=False)
        pair = left[:, 0], right[0], values[0]
    a, s = np.outer(*pair[:2]), pair[2]
    back = {
        "detached": lambda: gm / s,
        "straight_through": lambda: gm,
        "projected": lambda: gm,
        "elementwise": lambda: gm * (1 - a * (m / s).sum()) / s,
        "unrolled": lambda: through_the_sweeps(gm, m, *start, n, order),
    }.get(gradient, lambda: (gm - (gm * (m / s)).sum() * a) / s)()
    return in_layout(m / s, w.shape, dim), u, v, in_layout(back, w.shape, dim)
