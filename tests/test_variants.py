"""The serial and the parallel variant of every kernel give the same bits, so that threads never change a result."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F
from minigrad.kernels.cpu._jit import Kernel


def copies(args: tuple[Any, ...]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let every kernel call run both variants and compare all arrays; gives the names of the kernels that were."""
    names: set[str] = set()

    def both(self: Kernel, *args: Any) -> Any:
        one, other = copies(args), copies(args)
        results = self.serial(*one), (self.parallel if self.parallel_from else self.serial)(*other)
        for a, b in zip([*one, results[0]], [*other, results[1]], strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), f"{self._name}: serial and parallel differ"
        for mine, given in zip(one, args, strict=True):
            if isinstance(given, np.ndarray) and given.flags.writeable:
                given[...] = mine
        names.add(self._name)
        return results[0]

    monkeypatch.setattr(Kernel, "__call__", both)
    return names


def twice(f: Callable[..., mg.Tensor], *xs: mg.Tensor) -> None:
    """f, its gradient, and the gradient of that."""
    xs = tuple(x.detach().requires_grad_() for x in xs)
    y = f(*xs)
    gs = mg.grad(y, xs, mg.randn(*y.shape, dtype=y.dtype), create_graph=True)
    total = mg.cat([(g * g).sum().reshape(1) for g in gs]).sum()
    if total.requires_grad:
        mg.grad(total, xs, allow_unused=True)


def elementwise(dtype: str) -> None:
    x = mg.randn(37, 1031, dtype=dtype)
    for f in (mg.sigmoid, mg.tanh, mg.softplus, mg.relu, mg.leaky_relu, mg.elu, mg.gelu, mg.silu):
        twice(f, x)
    for exponent in (3, -2, 0.5):
        twice(lambda x, exponent=exponent: x**exponent, x)
    twice(lambda x, y: mg.where(x > y, x, mg.where(x > 0, 0.5, y)), x, mg.randn(37, 1031, dtype=dtype))
    mg.rsqrt(x.abs())
    mg.clip(x, -1, 1).sign()
    for make in (mg.rand, mg.randn):
        make(10_007, dtype=dtype)


def reductions(dtype: str) -> None:
    x = mg.randn(37, 1031, dtype=dtype)
    for dims in (None, 0, 1):
        x.sum(dims)
        x.norm(2, dims)
    for dim in (0, 1):
        x.cumsum(dim)
    short, long = x[:, :1024].reshape(-1, 32), mg.rand(70_001, 3, dtype=dtype)
    for f in (mg.amax, mg.amin, mg.prod):
        for y in (short, x, long, long.reshape(-1)):
            f(y, -1)
        f(x, 0)
        f(long, 0)
    for f in (mg.argmax, mg.argmin):
        f(short, 0)
        f(short, 1)
    for y in (mg.rand(3, 700_001, dtype=dtype), long):
        y.sum()
        y.sum(0)
    mg.rand(301, 307, dtype=dtype).T.contiguous()
    for f in (mg.softmax, mg.log_softmax, mg.logsumexp):
        twice(functools.partial(f, dim=1), x)
        twice(functools.partial(f, dim=0), x)
        f(x[:, :1024].reshape(-1, 32), 1)


def convolutions(dtype: str) -> None:
    x, w, b = mg.randn(5, 4, 19, 17, dtype=dtype), mg.randn(6, 4, 3, 3, dtype=dtype), mg.randn(6, dtype=dtype)
    twice(lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), x, w, b)
    twice(lambda x, w: F.conv2d(x, w), x[:, :1], mg.randn(24, 1, 3, 3, dtype=dtype))  # few channels
    many = mg.randn(25, 48, 9, 8, dtype=dtype), mg.randn(50, 48, 3, 3, dtype=dtype)
    twice(lambda x, w: F.conv2d(x, w, padding=1), *many)  # by Winograd
    halved = mg.randn(13, 24, 16, 13, dtype=dtype), mg.randn(33, 24, 4, 4, dtype=dtype)
    twice(lambda x, w: F.conv2d(x, w, stride=2, padding=1), *halved)
    twice(lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=4), x, mg.randn(8, 1, 3, 3, dtype=dtype))  # depthwise
    twice(lambda x: F.max_pool2d(x, 3), x)
    twice(lambda x: F.avg_pool2d(x, 3), x)
    twice(lambda x: F.avg_pool2d(F.max_pool2d(mg.upsample(x, 2), 2), 2), x[:, :, :18, :16])  # by blocks
    twice(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), x, w[:4, 0, 0, 0], b[:4])
    twice(lambda x, w, b: F.batch_norm(x, b, b.exp(), w, b), x, w[:4, 0, 0, 0], b[:4])  # by given statistics


def products(dtype: str) -> None:
    x, w, b = mg.randn(150, 67, dtype=dtype), mg.randn(91, 67, dtype=dtype), mg.randn(91, dtype=dtype)
    twice(mg.linear, x, w, b)
    twice(mg.matmul, mg.randn(150, 1100, dtype=dtype), mg.randn(1100, dtype=dtype))
    twice(mg.matmul, mg.randn(2, 120, 70, dtype=dtype), mg.randn(70, 80, dtype=dtype).expand(2, 70, 80))
    mg.matmul(mg.randn(70, 90, dtype=dtype).T, mg.randn(70, 530, dtype=dtype))  # laid out first


def gathers(dtype: str) -> None:
    index = mg.tensor(np.random.default_rng(0).integers(0, 31, (59, 43, 17)))
    twice(lambda x: mg.gather(x, 1, index), mg.randn(60, 31, 17, dtype=dtype))
    twice(lambda x: mg.gather(x, 2, index), mg.randn(60, 43, 31, dtype=dtype))  # lines of memory
    twice(lambda x: mg.embedding(index[:23, 0], x), mg.randn(31, 701, dtype=dtype))


def optimizers(dtype: str) -> None:
    for make in (mg.optim.SGD, mg.optim.Adam, mg.optim.RMSprop):
        p = mg.nn.Parameter(mg.randn(10_007, dtype=dtype))
        p.grad = mg.randn(10_007, dtype=dtype)
        make([p], lr=0.1).step()


def spectral(dtype: str) -> None:
    w, u, v = (mg.randn(*shape, dtype=dtype) for shape in ((67, 301), (67,), (301,)))
    for order in ("uv", "vu"):
        mg.spectral.power_iteration(w, u, v, order=order)
    twice(lambda w: F.spectral_normalize(w, u, v)[0], w)


WORK = elementwise, reductions, convolutions, products, gathers, optimizers, spectral


def test_serial_and_parallel_agree_bit_for_bit_and_no_kernel_is_left_out(compared: set[str]) -> None:
    for work in WORK:
        work("float32")
    reductions("float64")
    mg.randn(10_007, dtype=mg.float64)
    package = {k for k in gc.get_objects() if type(k) is Kernel and k.__module__.startswith("minigrad.")}
    assert {k._name for k in package if k.parallel_from is not None} <= compared
    variants = [vars(k)[name] for k in package for name in ("serial", "parallel") if name in vars(k)]
    made = [compiled for variant in variants for compiled in variant.overloads.values()]
    assert not [compiled for compiled in made if compiled.library.has_dynamic_globals]  # these cannot be kept on disk
