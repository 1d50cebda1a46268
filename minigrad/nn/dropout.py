"""Dropout: the function and its layer."""

from __future__ import annotations

from minigrad import _dtypes
from minigrad._random import Generator
from minigrad._tensor import Tensor
from minigrad.nn.module import Module
from minigrad.ops import _arguments as arguments
from minigrad.ops.creation import rand


def dropout(x: Tensor, p: float = 0.5, training: bool = True, *, generator: Generator | None = None) -> Tensor:
    """In training: each element 0 with probability p, else x / (1 − p). Else x itself.

    The mask is drawn in float32 whatever x holds, so that one seed gives one mask. ValueError unless 0 ≤ p ≤ 1.
    Srivastava et al., JMLR 15, 2014.

    >>> import minigrad as mg
    >>> y = mg.nn.functional.dropout(mg.ones(1000), 0.2, generator=mg.Generator(0))
    >>> sorted(set(y.tolist())), 0.9 < y.mean().item() < 1.1
    ([0.0, 1.25], True)
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: expected a probability p in [0, 1]; got {p}")
    arguments.tensor("dropout", x)
    if not training or p == 0:
        return x
    kept = rand(*x.shape, dtype=_dtypes.float32, device=x.device, generator=generator) >= p
    return x * (kept.to(x.dtype) * (1 / (1 - p) if p < 1 else 0.0))


class Dropout(Module):
    """`functional.dropout` in training mode, x itself in evaluation mode; any shape, any floating dtype.

    The mask is drawn from the library's generator. ValueError unless 0 ≤ p ≤ 1.

    >>> import minigrad as mg
    >>> layer, x = mg.nn.Dropout(0.2), mg.ones(1000)
    >>> sorted(set(layer(x).tolist())), layer.eval()(x) is x
    ([0.0, 1.25], True)
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: expected a probability p in [0, 1]; got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
