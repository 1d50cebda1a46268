"""What kernels do for an element, counted in their PTX: little enough that a GPU waits for memory, and not for them.

An H200 has 132 multiprocessors that begin four instructions of 32 threads a clock, at 1.7 GHz or so, and moves 4.8e12
bytes a second: there is time for six instructions for each byte that a kernel must read or write.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F

pytestmark = [
    pytest.mark.usefixtures("on_cuda"),
    pytest.mark.skipif(
        "MINIGRAD_EMULATE" not in os.environ, reason="the interpreter of PTX counts them: see test_cuda_compile.py"
    ),
]
PER_BYTE = 6


def drawn(*shape: int) -> mg.Tensor:
    return mg.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32), device="cuda")


def done(call: Callable[[], Any], elements: int) -> dict[str, float]:
    """By kernel, the instructions for an element."""
    from cuda_emulator import ISSUED

    ISSUED.clear()
    call()
    return {kernel: 32 * count / elements for kernel, count in ISSUED.items()}


ELEMENTWISE: dict[str, tuple[Callable[[Any, Any], Any], int]] = {  # by the kernel: a call, and the bytes of an element
    "elementwise._unary.one.relu": (lambda x, y: F.relu(x), 8),
    "elementwise._unary.one.exp": (lambda x, y: x.exp(), 8),
    "elementwise._shaped.shaped.leaky_relu": (lambda x, y: F.leaky_relu(x, 0.1), 8),
    "elementwise._binary.two.add": (lambda x, y: x + y, 12),
    "elementwise._binary.two.mul": (lambda x, y: x * 2.0, 8),
    "elementwise._binary.two.div": (lambda x, y: x / y, 12),
    "elementwise._binary.two.gt": (lambda x, y: x > y, 9),
    "array._conversion.convert.f4": (lambda x, y: x.to(mg.float64), 12),
    "array._fill": (lambda x, y: mg.zeros(*x.shape, device="cuda"), 4),
}


@pytest.mark.parametrize("kernel", ELEMENTWISE)
def test_elementwise(kernel: str) -> None:
    call, moved = ELEMENTWISE[kernel]
    x, y = drawn(1024, 1024), drawn(1024, 1024)
    assert done(lambda: call(x, y), x.numel())[kernel] <= PER_BYTE * moved


def test_elements_that_lie_apart() -> None:
    """With what it takes to find them: a transposed copy, a row that is added to all others."""
    x, row = drawn(1024, 1024), drawn(1024)
    assert done(lambda: x.T.contiguous(), x.numel())["array._conversion.convert.f4"] <= PER_BYTE * 8
    assert done(lambda: x + row, x.numel())["elementwise._binary.two.add"] <= PER_BYTE * 8


def test_sums() -> None:
    """Along one dimension, and along two that are apart, which take ten a byte, not yet six."""
    x, image = drawn(1 << 20), drawn(16, 64, 32, 32)
    assert done(lambda: x.sum(), x.numel())["reduce._reduction.by_blocks.sum"] <= PER_BYTE * 4
    assert done(lambda: x.view(1024, 1024).sum(0), x.numel())["reduce._reduction.by_threads.sum"] <= PER_BYTE * 4
    assert done(lambda: image.sum((0, 2, 3)), image.numel())["reduce._reduction.by_blocks.sum"] <= 10 * 4


def test_pooling_by_two() -> None:
    """For each pixel: four bytes, and a quarter of what a window has, for a maximum its place of eight bytes too."""
    x = drawn(16, 64, 32, 32).requires_grad_()
    largest, average = F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
    g = drawn(*average.shape)

    def every() -> Any:
        F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
        return mg.grad(largest, x, g, retain_graph=True), mg.grad(average, x, g, retain_graph=True)

    found = done(every, x.numel())
    assert found["_blocks.max_blocks"] <= PER_BYTE * 7 and found["_blocks.put_back_blocks"] <= PER_BYTE * 7
    assert found["_blocks.sum_blocks"] <= PER_BYTE * 5 and found["_blocks.deal_blocks"] <= PER_BYTE * 5


def test_batch_norm() -> None:
    """Sums in two numbers take twelve a byte, not yet six; the combination seven."""
    found = done(lambda: F.batch_norm(drawn(16, 64, 32, 32), None, None, training=True), 1 << 20)
    assert found["batch_norm._moments"] <= 12 * 4 and found["batch_norm._combine"] <= 7 * 8


@pytest.mark.parametrize("columns", [1024, 4608, 16384])
def test_spectral_norm(columns: int) -> None:
    """In one pass over W as long as a block can hold a row; a pass has up to eight instructions a byte, not yet six."""
    rows = (1 << 21) // columns
    w, u, v, g = drawn(rows, columns).requires_grad_(), drawn(rows), drawn(columns), drawn(rows, columns)
    sweep = done(lambda: mg.spectral.power_iteration(w, u, v), w.numel())
    passes = [count for kernel, count in sweep.items() if "_times_" in kernel or ".hold." in kernel]
    assert len(passes) == (1 if columns <= 8192 else 2) and max(passes) <= 8 * 4
    node = done(lambda: mg.grad(F.spectral_normalize(w, u, v)[0], w, g), w.numel())
    for kernel in ("spectral._scaled", "spectral._inner_parts", "spectral._pulled_back"):
        assert node[kernel] <= PER_BYTE * 8, kernel


def test_adam() -> None:
    p = mg.nn.Parameter(drawn(1 << 20))
    optimizer = mg.optim.Adam([p])
    p.grad = drawn(1 << 20)
    assert done(optimizer.step, p.numel())["optim._stepping.step._adam"] <= PER_BYTE * 28
