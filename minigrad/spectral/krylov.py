"""The largest singular values of a linear map that is known by its products alone.

Block Lanczos with restarts, in the form of Davidson's method: the space grows by the residuals of its best vectors,
and shrinks to those when it is full. A block, unlike power iteration's one vector, finds repeated singular values too
(those of a convolution come in pairs where its filters are symmetric), and near-equal ones hardly slow it down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

SPARE = 3  # vectors beyond the k that are asked for
FULL = 24  # blocks in the space before it restarts
MOST = 2000  # blocks in all


def leading_eigenvalues(gram: Callable[[Array], Array], n: int, k: int, tolerance: float = 1e-8) -> Array:
    """The k largest eigenvalues of a symmetric positive semidefinite map of ℝⁿ, in decreasing order.

    `gram` takes a matrix (n, b) to its image. An eigenvalue is done when its residual ‖Ax − θx‖ is below `tolerance`
    times θ₁: it is at most that far from a true one, and at most its square over the gap to the others. The first block
    is random, the same every time.

    RuntimeError if there is no end to it. ValueError unless 1 ≤ k ≤ n.

    >>> import numpy as np
    >>> from minigrad.spectral.krylov import leading_eigenvalues
    >>> matrix = np.diag([4.0, 4.0, 3.0, 1.0, 0.5])
    >>> leading_eigenvalues(lambda x: matrix @ x, 5, 3).round(12).tolist()
    [4.0, 4.0, 3.0]
    """
    if not 1 <= k <= n:
        raise ValueError(f"leading_eigenvalues: expected k between 1 and {n}; got {k}")
    block = min(n, k + SPARE)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((n, block)))[0]
    images = gram(basis)
    for _ in range(MOST):
        small = basis.T @ images
        values, turn = np.linalg.eigh((small + small.T) / 2)
        values, turn = values[::-1], turn[:, ::-1]
        residuals = images @ turn[:, :block] - basis @ turn[:, :block] * values[:block]
        if np.linalg.norm(residuals[:, :k], axis=0).max() <= tolerance * max(values[0], 0.0):
            return np.maximum(values[:k], 0.0)
        if basis.shape[1] + block > FULL * block:
            basis, images = basis @ turn[:, : 2 * block], images @ turn[:, : 2 * block]
        left, size, _ = np.linalg.svd(residuals - basis @ (basis.T @ residuals), full_matrices=False)
        grown = left[:, size > 1e-8 * size[0]]  # those of finished vectors are noise
        grown = np.linalg.qr(grown - basis @ (basis.T @ grown))[0]
        basis, images = np.hstack([basis, grown]), np.hstack([images, gram(grown)])
    raise RuntimeError(
        f"leading_eigenvalues: {MOST} blocks did not bring the residuals below {tolerance:g}. "
        f"Ask for a larger tolerance."
    )
