"""How NumPy does what it can: matrix products, by its BLAS, and copies."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case
from benchmarks.eager import factors
from benchmarks.work import Copy, LeftOut, Matmul, Running, normal


class NumPy:
    """NumPy and its BLAS."""

    name = "NumPy"
    version = np.__version__

    def start(self, case: Case) -> Running:
        """Begin a piece of work. LeftOut: not here."""
        work = case.work
        if isinstance(work, Matmul):
            a, b = factors(work)
            return Running(lambda: a @ b, lambda y: {"product": y})
        if isinstance(work, Copy):
            x, y = normal((work.size,)), np.zeros(work.size, np.float32)
            return Running(lambda: np.copyto(y, x), lambda _: {"copy": y})
        raise LeftOut("has no derivatives and no optimizers")

    def synchronize(self) -> None:
        """All calls return when they are done."""
