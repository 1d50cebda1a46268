"""The ops, one row each: how minigrad and torch call it, what it is in NumPy, where it is tried.

A row's function takes the library first, as both have the same names and arguments; `TORCH` gathers torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Shapes = tuple[tuple[int, ...], ...]
ONE: tuple[Shapes, ...] = (((3, 4),), ((),), ((0, 3),))
TWO: tuple[Shapes, ...] = (((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 3)), ((2, 1, 3), (2, 1)), ((0, 3), (1, 3)))
BOTH_SIGNS, POSITIVE = (-2.0, 2.2), (0.4, 2.5)


class Row(NamedTuple):
    name: str  # the public function, then what is particular about the row
    function: Callable[..., Any]
    reference: Callable[..., Any]
    shapes: tuple[Shapes, ...] = ONE
    domain: tuple[float, float] = BOTH_SIGNS  # values are spread over it evenly, in random order: no ties, no kinks
    in_torch: bool = True


def spread(rng: np.random.Generator, shape: tuple[int, ...], domain: tuple[float, float], shift: float = 0.0) -> Any:
    """Distinct values in the domain, in random order; another `shift` gives values distinct from those."""
    n = math.prod(shape)
    places = (rng.permutation(n) + 0.5 + 0.31 * shift) / max(n, 1)
    return (domain[0] + (domain[1] - domain[0]) * places).reshape(shape)


def inputs(row: Row, shapes: Shapes, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [spread(rng, shape, row.domain, i) for i, shape in enumerate(shapes)]


class TORCH:
    """torch's functions under one roof."""

    def __getattr__(self, name: str) -> Any:
        import torch

        found = next((where for where in (torch.nn.functional, torch) if hasattr(where, name)), torch.Tensor)
        return getattr(found, name)


erf = np.vectorize(math.erf, otypes=[float])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def same(name: str, **more: Any) -> Row:
    """An op with the same name and arguments everywhere."""
    return Row(name, lambda lib, *xs: getattr(lib, name)(*xs), getattr(np, name), **more)


def unary(name: str, reference: Callable[..., Any] | None = None, domain: tuple[float, float] = BOTH_SIGNS) -> Row:
    return Row(name, lambda lib, x: getattr(lib, name)(x), reference or getattr(np, name), domain=domain)


WIDE, TALL, CUBE = (((2, 5),),), (((4, 3),),), (((2, 3, 4),),)
REPEATED = [2, 0, 2, 1]  # an index that visits a place twice
GRID = [[0, 2, 2], [1, 0, 1]]

ELEMENTWISE = [
    same("add", shapes=TWO),
    Row("sub", lambda lib, x, y: lib.sub(x, y), np.subtract, TWO),
    Row("mul", lambda lib, x, y: lib.mul(x, y), np.multiply, TWO),
    Row("div", lambda lib, x, y: lib.div(x, y), np.divide, TWO, POSITIVE),
    Row("pow", lambda lib, x, y: lib.pow(x, y), np.power, TWO, POSITIVE),
    Row("add a number", lambda lib, x: 3 + x + 0.5, lambda x: x + 3.5),
    Row("sub a number", lambda lib, x: 3 - (x - 0.5), lambda x: 3.5 - x),
    Row("mul a number", lambda lib, x: 3 * x * 0.5, lambda x: 1.5 * x),
    Row("div a number", lambda lib, x: 3 / (x / 0.5), lambda x: 1.5 / x, domain=POSITIVE),
    Row("pow 2", lambda lib, x: x**2, np.square),
    Row("pow 3", lambda lib, x: x**3, lambda x: x**3),
    Row("pow −2", lambda lib, x: x**-2, lambda x: x**-2.0, domain=POSITIVE),
    Row("pow 2.5", lambda lib, x: x**2.5, lambda x: x**2.5, domain=POSITIVE),
    Row("pow of a number", lambda lib, x: 1.7**x, lambda x: 1.7**x),
    unary("neg", np.negative),
    unary("abs"),
    unary("sign"),
    unary("exp"),
    unary("log", domain=POSITIVE),
    unary("log1p", domain=POSITIVE),
    unary("expm1"),
    unary("sqrt", domain=POSITIVE),
    unary("rsqrt", lambda x: 1 / np.sqrt(x), POSITIVE),
    unary("square"),
    unary("reciprocal", domain=POSITIVE),
    unary("sin"),
    unary("cos"),
    Row("where", lambda lib, x, y: lib.where(x > y, x, y * y), lambda x, y: np.where(x > y, x, y * y), TWO),
    Row("where a number", lambda lib, x: lib.where(x > 0, x * x, 0.5), lambda x: np.where(x > 0, x * x, 0.5)),
    same("maximum", shapes=TWO),
    same("minimum", shapes=TWO),
    Row("maximum a number", lambda lib, x: lib.maximum(x, 0.45), lambda x: np.maximum(x, 0.45), in_torch=False),
    Row("minimum a number", lambda lib, x: lib.minimum(0.45, x), lambda x: np.minimum(x, 0.45), in_torch=False),
    Row("clip", lambda lib, x: lib.clip(x, -0.63, 1.2), lambda x: np.clip(x, -0.63, 1.2)),
    Row("clip from below", lambda lib, x: lib.clip(x, min=-0.63), lambda x: np.maximum(x, -0.63)),
]

ACTIVATION = [
    unary("sigmoid", sigmoid),
    unary("tanh"),
    unary("softplus", lambda x: np.logaddexp(0, x)),
    Row("softplus β", lambda lib, x: lib.softplus(x, 2.0), lambda x: np.logaddexp(0, 2 * x) / 2),
    unary("relu", lambda x: np.maximum(x, 0)),
    Row("leaky_relu", lambda lib, x: lib.leaky_relu(x, 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
    Row("elu", lambda lib, x: lib.elu(x, 1.3), lambda x: np.where(x > 0, x, 1.3 * np.expm1(x))),
    unary("gelu", lambda x: x * (1 + erf(x / math.sqrt(2))) / 2),
    unary("silu", lambda x: x * sigmoid(x)),
]

REDUCE = [
    Row("sum", lambda lib, x: lib.sum(x), np.sum, (((3, 4),), ((),), ((0, 3),))),
    Row("sum dim", lambda lib, x: lib.sum(x, dim=1), lambda x: x.sum(1), CUBE),
    Row("sum dims", lambda lib, x: x.sum((0, -1), keepdim=True), lambda x: x.sum((0, 2), keepdims=True), CUBE),
    Row("mean", lambda lib, x: lib.mean(x), np.mean, (((3, 4),), ((),))),
    Row("mean dims", lambda lib, x: lib.mean(x, (1, 2)), lambda x: x.mean((1, 2)), CUBE),
    Row("var", lambda lib, x: lib.var(x), lambda x: x.var(ddof=1), CUBE),
    Row("var dim", lambda lib, x: lib.var(x, 0, correction=0, keepdim=True), lambda x: x.var(0, keepdims=True), TALL),
    Row("std", lambda lib, x: lib.std(x, 1), lambda x: x.std(1, ddof=1), CUBE),
    Row("amax", lambda lib, x: lib.amax(x, (0, 2)), lambda x: x.max((0, 2)), CUBE),
    Row("amin", lambda lib, x: lib.amin(x, 1, keepdim=True), lambda x: x.min(1, keepdims=True), CUBE),
    Row("max", lambda lib, x: lib.max(x), np.max, CUBE),
    Row("max dim", lambda lib, x: lib.max(x, 1)[0], lambda x: x.max(1), CUBE),
    Row("min", lambda lib, x: lib.min(x), np.min, CUBE),
    Row("min dim", lambda lib, x: lib.min(x, -1, keepdim=True)[0], lambda x: x.min(-1, keepdims=True), CUBE),
    Row("prod", lambda lib, x: lib.prod(x), np.prod, (((2, 3),), ((),), ((1,),), ((0,),))),
    Row("prod dim", lambda lib, x: lib.prod(x, 1), lambda x: x.prod(1), (((2, 5),), ((2, 4),), ((2, 0),))),
    Row("norm", lambda lib, x: lib.norm(x), lambda x: np.sqrt((x * x).sum()), CUBE),
    Row("norm dim", lambda lib, x: lib.norm(x, 2, 1), lambda x: np.sqrt((x * x).sum(1)), CUBE),
    Row("norm 1", lambda lib, x: lib.norm(x, 1, 0), lambda x: np.abs(x).sum(0), TALL),
    Row("norm 3", lambda lib, x: lib.norm(x, 3, 1), lambda x: (np.abs(x) ** 3).sum(1) ** (1 / 3), WIDE),
    Row("norm ∞", lambda lib, x: lib.norm(x, math.inf, 1), lambda x: np.abs(x).max(1), WIDE),
    Row("cumsum", lambda lib, x: lib.cumsum(x, 1), lambda x: x.cumsum(1), CUBE),
    Row("logsumexp", lambda lib, x: lib.logsumexp(x, 1), lambda x: np.log(np.exp(x).sum(1)), CUBE),
    Row("logsumexp keepdim", lambda lib, x: lib.logsumexp(x, 0, True), lambda x: np.log(np.exp(x).sum(0)[None]), TALL),
    Row("softmax", lambda lib, x: lib.softmax(x, 1), lambda x: softmax(x, 1), CUBE),
    Row("log_softmax", lambda lib, x: lib.log_softmax(x, -1), lambda x: np.log(softmax(x, -1)), CUBE),
]

SHAPE = [
    Row("reshape", lambda lib, x: lib.reshape(x, (4, -1)), lambda x: x.reshape(4, -1), CUBE),
    Row("flatten", lambda lib, x: lib.flatten(x, 1), lambda x: x.reshape(2, 12), CUBE),
    Row("permute", lambda lib, x: lib.permute(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), CUBE),
    Row("transpose", lambda lib, x: lib.transpose(x, 0, -1), lambda x: x.swapaxes(0, 2), CUBE),
    Row("transpose T", lambda lib, x: x.T, lambda x: x.T, TALL),
    Row("transpose mT", lambda lib, x: x.mT, lambda x: x.swapaxes(1, 2), CUBE),
    Row("expand", lambda lib, x: x.expand(2, 3, -1), lambda x: np.broadcast_to(x, (2, 3, 4)), (((3, 4),), ((1, 4),))),
    Row("sum_to_size", lambda lib, x: x.sum_to_size(3, 1), lambda x: x.sum((0, 2))[:, None], CUBE),
    Row("squeeze", lambda lib, x: lib.squeeze(x), np.squeeze, (((1, 3, 1),), ((),))),
    Row("squeeze dim", lambda lib, x: lib.squeeze(x, 1), lambda x: x[:, 0], (((3, 1, 2),),)),
    Row("unsqueeze", lambda lib, x: lib.unsqueeze(x, -2), lambda x: x[..., None, :], (((2, 3),), ((3,),))),
    Row("flip", lambda lib, x: lib.flip(x, (0, 2)), lambda x: x[::-1, :, ::-1], CUBE),
    Row("pad", lambda lib, x: lib.pad(x, (1, 2, 0, 3), value=7.0), lambda x: pad(x, (0, 3), (1, 2)), WIDE),
    Row("pad crops", lambda lib, x: lib.pad(x, (-1, 2), value=7.0), lambda x: pad(x[:, 1:], (0, 0), (0, 2)), WIDE),
    Row("cat", lambda lib, x, y: lib.cat([x, y, x], 1), lambda x, y: np.concatenate([x, y, x], 1), (((2, 3), (2, 1)),)),
    Row("stack", lambda lib, x, y: lib.stack([x, y], -1), lambda x, y: np.stack([x, y], -1), (((2, 3), (2, 3)),)),
    Row("split", lambda lib, x: lib.split(x, 2, 1)[2], lambda x: x[:, 4:], WIDE),
    Row("split sizes", lambda lib, x: x.split([1, 4], 1)[1], lambda x: x[:, 1:], WIDE),
    Row("chunk", lambda lib, x: lib.chunk(x, 2, 1)[0], lambda x: x[:, :3], WIDE),
    Row("clone", lambda lib, x: lib.clone(x), np.copy),
    Row("contiguous", lambda lib, x: x.T.contiguous(), np.transpose, TALL),
    Row("getitem", lambda lib, x: x[1, None, ..., ::2], lambda x: x[1, None, ..., ::2], CUBE),
    Row("getitem integers", lambda lib, x: x[:, REPEATED], lambda x: x[:, REPEATED], CUBE),
    Row("getitem mask", lambda lib, x: x[x > 0.1], lambda x: x[x > 0.1], CUBE),
    Row(
        "gather",
        lambda lib, x: lib.gather(x, 1, lib.tensor(GRID, device=x.device)),
        lambda x: np.take_along_axis(x[:2], np.array(GRID), 1),
        TALL,
    ),
    Row(
        "index_select",
        lambda lib, x: lib.index_select(x, 1, lib.tensor(REPEATED, device=x.device)),
        lambda x: x[:, REPEATED],
        CUBE,
    ),
    Row(
        "embedding",
        lambda lib, w: lib.embedding(lib.tensor(GRID, device=w.device), w),
        lambda w: w[np.array(GRID)],
        TALL,
    ),
]


def pad(x: Any, rows: tuple[int, int], columns: tuple[int, int]) -> Any:
    return np.pad(x, (rows, columns), constant_values=7.0)


MATMUL = [
    same("matmul", shapes=(((3, 4), (4, 2)), ((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 2)), ((2, 0), (0, 3)))),
    Row("matmul batched", lambda lib, x, y: x @ y, np.matmul, (((2, 3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)))),
    Row("matmul a batch by a vector", lambda lib, x, y: x @ y, np.matmul, (((4,), (2, 4, 3)), ((2, 3, 4), (4,)))),
    Row("linear", lambda lib, x, w: lib.linear(x, w), lambda x, w: x @ w.T, (((5, 3), (2, 3)), ((3,), (2, 3)))),
    Row("linear +", lambda lib, x, w, b: lib.linear(x, w, b), lambda x, w, b: x @ w.T + b, (((5, 3), (2, 3), (2,)),)),
    same("dot", shapes=(((4,), (4,)),)),
    same("outer", shapes=(((3,), (4,)),)),
    Row(
        "einsum",
        lambda lib, x, y: lib.einsum("bik,bjk->ibj", x, y),
        lambda x, y: np.einsum("bik,bjk->ibj", x, y),
        (((2, 3, 4), (2, 5, 4)),),
    ),
    Row(
        "einsum of three",
        lambda lib, x, y, z: lib.einsum("ij,jk,ki->i", x, y, z),
        lambda x, y, z: np.einsum("ij,jk,ki->i", x, y, z),
        (((2, 3), (3, 4), (4, 2)),),
    ),
]

TABLE = {row.name: row for row in [*ELEMENTWISE, *ACTIVATION, *REDUCE, *SHAPE, *MATMUL]}
