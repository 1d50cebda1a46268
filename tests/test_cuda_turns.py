"""Sizes at which loops of CUDA kernels turn several times, unrolled by the compiler and not; NumPy is the oracle.

They run on the PTX of the kernels (test_cuda_compile.py) and on a GPU; the simulator, which takes 20 µs for an element,
has fewer threads instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F

SIZES = [(1 << 18) + 1, 5 * (1 << 18) + 7]  # there are 2**18 threads


@pytest.fixture(autouse=True)
def _on_a_gpu(on_cuda: None, most_elements: int) -> None:
    if most_elements < SIZES[-1]:
        pytest.skip("minutes on the simulator, which has eight threads and so as many turns with small arrays")


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def there(x: Any) -> mg.Tensor:
    return mg.tensor(x, device="cuda")


def same(got: mg.Tensor, expected: Any) -> None:
    np.testing.assert_array_equal(got.numpy(), expected)


def close(got: mg.Tensor, expected: Any, tolerance: float = 2e-6) -> None:
    assert np.linalg.norm(got.numpy() - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("size", SIZES)
def test_elements(size: int) -> None:
    x, y = drawn(size), drawn(size, seed=1)
    a, b = there(x), there(y)
    same(a + b, x + y)
    same(2.0 * a, 2 * x)
    same(F.relu(a), np.maximum(x, 0))
    same(F.leaky_relu(a, 0.5), np.where(x > 0, x, x / 2))
    same(a > b, x > y)
    same(mg.where(a > b, a, b), np.maximum(x, y))
    same(a.to(mg.float64), x.astype(np.float64))
    same(mg.full((size,), 3.5, device="cuda"), np.full(size, 3.5, np.float32))
    same(mg.flip(a, (0,)) - b, x[::-1] - y)


def test_elements_that_lie_apart() -> None:
    x, row, column = drawn(601, 1201), drawn(601, seed=1), drawn(1201, 1, seed=2)
    same(there(x).T.contiguous(), x.T)
    same(there(x).T + there(row), x.T + row)
    same(there(x).T * there(column), x.T * column)
    same(mg.embedding(there(np.arange(3000) * 7 % 601), there(x)), x[np.arange(3000) * 7 % 601])


@pytest.mark.parametrize("shape", [(3, 100_003), (40_000, 11), (7, 5, 5003)])
def test_sums_and_extremes(shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    wide = x.astype(np.float64)
    for dim in range(x.ndim):
        close(there(x).sum(dim), wide.sum(dim), 1e-6)
        same(there(x).amax(dim), x.max(dim))
        same(there(x).argmin(dim), x.argmin(dim))
    close(there(x).sum(), wide.sum(), 1e-6)


def test_rows() -> None:
    x = drawn(3, 5003)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    close(mg.softmax(there(x), 1), e / e.sum(1, keepdims=True))
    close(mg.logsumexp(there(x), 1), np.log(np.exp(x.astype(np.float64)).sum(1)))
    close(there(x).cumsum(1), x.astype(np.float64).cumsum(1))


def test_images() -> None:
    x = drawn(9, 5, 83, 83)
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 2, 3), keepdims=True), wide.var((0, 2, 3), keepdims=True)
    close(F.batch_norm(there(x), None, None, training=True), (wide - mean) / np.sqrt(var + 1e-5))
    blocks = x[:, :, :82, :82].reshape(9, 5, 41, 2, 41, 2)
    same(F.max_pool2d(there(x), 2), blocks.max((3, 5)))
    close(F.avg_pool2d(there(x), 2), blocks.astype(np.float64).mean((3, 5)))


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_steps(algorithm: str) -> None:
    w, g = drawn(5003), drawn(5003, seed=1)
    p = mg.nn.Parameter(there(w))
    p.grad = there(g)
    optimizer = mg.optim.SGD([p], lr=0.5) if algorithm == "sgd" else mg.optim.Adam([p], lr=0.5)
    optimizer.step()
    wide = g.astype(np.float64)
    close(p.detach(), w - 0.5 * (wide if algorithm == "sgd" else wide / (np.abs(wide) + 1e-8)))
