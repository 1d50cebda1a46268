"""logsumexp, softmax and log_softmax over one dimension: stable at any size of the logits."""

from __future__ import annotations

from typing import Any

from minigrad._op import primitive
from minigrad._tensor import Tensor, method
from minigrad.ops import _arguments as arguments
from minigrad.ops._operands import floating
from minigrad.ops.reduce import sum
from minigrad.ops.shape import unsqueeze
from minigrad.ops.unary import exp


@primitive()
def _logsumexp(k: Any, x: Any, *, dim: int, keepdim: bool) -> Any:
    return k.logsumexp(x, dim, keepdim)


@primitive()
def _softmax(k: Any, x: Any, *, dim: int) -> Any:
    return k.softmax(x, dim)


@primitive()
def _log_softmax(k: Any, x: Any, *, dim: int) -> Any:
    return k.log_softmax(x, dim)


@primitive()
def _softmax_vjp(k: Any, h: Any, y: Any, *, dim: int) -> Any:
    return k.softmax_vjp(h, y, dim)


@primitive()
def _log_softmax_vjp(k: Any, h: Any, y: Any, *, dim: int) -> Any:
    return k.log_softmax_vjp(h, y, dim)


def _total(x: Tensor, dim: int) -> Tensor:
    return sum(x, dim, keepdim=True)


_logsumexp.vjp(x=lambda g, x, dim, keepdim: (g if keepdim else unsqueeze(g, dim)) * _softmax(x, dim=dim))
_softmax.vjp(x=lambda g, out, dim: _softmax_vjp(g, out, dim=dim))
_softmax_vjp.vjp(
    h=lambda g, y, dim: _softmax_vjp(g, y, dim=dim),
    y=lambda g, h, y, dim: g * (h - _total(h * y, dim)) - h * _total(g * y, dim),
)
_log_softmax.vjp(x=lambda g, out, dim: _log_softmax_vjp(g, out, dim=dim))
_log_softmax_vjp.vjp(
    h=lambda g, y, dim: g - _total(g * exp(y), dim),
    y=lambda g, h, y, dim: -g * exp(y) * _total(h, dim),
)


def _along(name: str, x: Tensor, dim: int) -> tuple[Tensor, int]:
    at = arguments.dim(name, x, dim)
    if not x.shape[at]:
        raise ValueError(f"{name}: expected at least one element along dim {at}; got shape {x.shape}")
    return floating(x), at


@method()
def logsumexp(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """log Σ eˣ over `dim`, shifted by the maximum.

    >>> import minigrad as mg
    >>> mg.logsumexp(mg.tensor([0.0, 0.0]), 0)
    tensor(0.6931)
    """
    x, at = _along("logsumexp", x, dim)
    return _logsumexp(x, dim=at, keepdim=keepdim)


@method()
def softmax(x: Tensor, dim: int) -> Tensor:
    """eˣ / Σ eˣ over `dim`.

    >>> import minigrad as mg
    >>> mg.softmax(mg.tensor([1000.0, 1000.0]), 0)
    tensor([0.5, 0.5])
    """
    x, at = _along("softmax", x, dim)
    return _softmax(x, dim=at)


@method()
def log_softmax(x: Tensor, dim: int) -> Tensor:
    """x − log Σ eˣ over `dim`.

    >>> import minigrad as mg
    >>> mg.log_softmax(mg.tensor([0.0, 1000.0]), 0)
    tensor([-1000.,     0.])
    """
    x, at = _along("log_softmax", x, dim)
    return _log_softmax(x, dim=at)
