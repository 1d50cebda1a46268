"""A table of vectors: the function and its layer."""

from __future__ import annotations

from typing import Any

from minigrad._mode import no_grad
from minigrad._tensor import Tensor
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops import index as ops
from minigrad.ops.comparison import where
from minigrad.ops.creation import empty


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` (num, dim) at `input` (any shape, int64): shape (*input.shape, dim).

    The row `padding_idx` gets no gradient. TypeError for indices that are no integers, IndexError for one out of range.

    >>> import minigrad as mg
    >>> mg.nn.functional.embedding(mg.tensor([1, 0]), mg.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[3., 4.],
            [1., 2.]])
    """
    rows = ops.embedding(input, weight)
    if padding_idx is None:
        return rows
    padding = _row(padding_idx, weight.shape[0])
    return where((input == padding).unsqueeze(-1), rows.detach(), rows)


def _row(index: int, count: int) -> int:
    if not -count <= index < count:
        raise IndexError(f"embedding: expected padding_idx in [{-count}, {count - 1}]; got {index}")
    return index % count


class Embedding(Module):
    """`functional.embedding` with a trained `weight` (num_embeddings, embedding_dim), drawn from N(0, 1).

    The row `padding_idx` starts at zero and stays there.

    >>> import minigrad as mg
    >>> mg.nn.Embedding(10, 4)(mg.tensor([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = None,
        device: str = "cpu",
    ):
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = None if padding_idx is None else _row(padding_idx, num_embeddings)
        self.weight = Parameter(empty(num_embeddings, embedding_dim, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0.0

    def forward(self, input: Tensor) -> Tensor:
        return embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
