"""Activation functions as layers, for use in `Sequential`."""

from __future__ import annotations

from minigrad._tensor import Tensor
from minigrad.nn.module import Module
from minigrad.ops import activation as ops


class ReLU(Module):
    """max(x, 0), with derivative 0 at 0.

    For x of any shape; in its floating dtype, or float32 for integers and booleans.

    >>> import minigrad as mg
    >>> mg.nn.ReLU()(mg.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class LeakyReLU(Module):
    """x where x > 0, else `negative_slope` · x, with that slope at 0. Shapes and dtypes as in `ReLU`.

    >>> import minigrad as mg
    >>> mg.nn.LeakyReLU(0.1)(mg.tensor([-1.0, 2.0]))
    tensor([-0.1,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01):
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """x where x > 0, else α (eˣ − 1). Shapes and dtypes as in `ReLU`.

    Clevert, Unterthiner, Hochreiter, arXiv 1511.07289.

    >>> import minigrad as mg
    >>> mg.nn.ELU(0.5)(mg.tensor([-100.0, 2.0]))
    tensor([-0.5,  2. ])
    """

    def __init__(self, alpha: float = 1.0):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class GELU(Module):
    """x Φ(x), Φ the standard normal distribution function. Shapes and dtypes as in `ReLU`.

    Hendrycks, Gimpel, arXiv 1606.08415.

    >>> import minigrad as mg
    >>> mg.nn.GELU()(mg.tensor([-1.0, 2.0]))
    tensor([-0.1587,  1.9545])
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class SiLU(Module):
    """x · sigmoid(x). Shapes and dtypes as in `ReLU`.

    >>> import minigrad as mg
    >>> mg.nn.SiLU()(mg.tensor([-1.0, 2.0]))
    tensor([-0.2689,  1.7616])
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)


class Tanh(Module):
    """The hyperbolic tangent, (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ). Shapes and dtypes as in `ReLU`.

    >>> import minigrad as mg
    >>> mg.nn.Tanh()(mg.tensor([0.0, 1.0]))
    tensor([0.    , 0.7616])
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + e⁻ˣ). Shapes and dtypes as in `ReLU`.

    >>> import minigrad as mg
    >>> mg.nn.Sigmoid()(mg.tensor([0.0, 2.0]))
    tensor([0.5   , 0.8808])
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Softplus(Module):
    """log(1 + e^{βx}) / β, without overflow. Shapes and dtypes as in `ReLU`.

    ValueError, when called, unless β > 0.

    >>> import minigrad as mg
    >>> mg.nn.Softplus(beta=2.0)(mg.tensor([0.0, 500.0]))
    tensor([3.4657e-01, 5.0000e+02])
    """

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return ops.softplus(x, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"
