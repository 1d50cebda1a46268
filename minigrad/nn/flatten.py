"""Changes of shape as layers, for use in `Sequential`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minigrad._tensor import Tensor
from minigrad.nn.module import Module
from minigrad.ops import _arguments as arguments


class Flatten(Module):
    """Dimensions start_dim … end_dim as one: by default everything but the batch.

    >>> import minigrad as mg
    >>> mg.nn.Flatten()(mg.zeros(2, 3, 4)).shape
    (2, 12)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Dimension `dim` as several, of extents `unflattened_size`; one of them may be −1.

    ValueError, when called, unless they make the extent of the dimension.

    >>> import minigrad as mg
    >>> mg.nn.Unflatten(1, (3, 4))(mg.zeros(2, 12)).shape
    (2, 3, 4)
    """

    def __init__(self, dim: int, unflattened_size: Sequence[int]):
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, x: Tensor) -> Tensor:
        at = arguments.dim("Unflatten", x, self.dim)
        extent, sizes = x.shape[at], self.unflattened_size
        known = math.prod(n for n in sizes if n != -1)
        if sizes.count(-1) == 1 and known:  # of this dimension alone: there may be no elements to tell it by
            sizes = tuple(extent // known if n == -1 else n for n in sizes)
        if -1 in sizes or math.prod(sizes) != extent:
            raise ValueError(
                f"Unflatten: expected sizes that make the {extent} of dim {at}; got {self.unflattened_size}"
            )
        return x.reshape(*x.shape[:at], *sizes, *x.shape[at + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
