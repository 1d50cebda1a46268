"""Initializations: each fills a tensor in place, from the library's generator or the one given, and returns it.

Random ones are for floating dtypes, any other is a TypeError. Those with a fan raise the ValueError of `fans`.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad._mode import no_grad
from minigrad._random import Generator
from minigrad._tensor import Tensor
from minigrad.ops import _arguments as arguments
from minigrad.ops.creation import from_numpy, full, rand, randn


def _check(tensor: Tensor) -> Tensor:
    return arguments.tensor("init", tensor)


def _fill(tensor: Tensor, values: Tensor) -> Tensor:
    with no_grad():
        tensor.copy_(values)
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform on [a, b).

    >>> import minigrad as mg
    >>> weight = mg.nn.init.uniform_(mg.empty(1000), -2, 3)
    >>> weight.min().item() >= -2, weight.max().item() < 3
    (True, True)
    """
    _check(tensor)
    draw = rand(*tensor.shape, dtype=tensor.dtype, device=tensor.device, generator=generator)
    return _fill(tensor, a + (b - a) * draw)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """N(mean, std²), each element by itself, in any shape.

    >>> import minigrad as mg
    >>> weight = mg.nn.init.normal_(mg.empty(10000), mean=3.0, std=0.5, generator=mg.Generator(0))
    >>> print(f"{weight.mean().item():.1f} {weight.std().item():.1f}")
    3.0 0.5
    """
    _check(tensor)
    draw = randn(*tensor.shape, dtype=tensor.dtype, device=tensor.device, generator=generator)
    return _fill(tensor, mean + std * draw)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """`val` everywhere, for any shape and dtype.

    >>> import minigrad as mg
    >>> mg.nn.init.constant_(mg.empty(2), 0.5)
    tensor([0.5, 0.5])
    """
    _check(tensor)
    return _fill(tensor, full(tensor.shape, val, dtype=tensor.dtype, device=tensor.device))


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere, for any shape and dtype.

    >>> import minigrad as mg
    >>> mg.nn.init.zeros_(mg.empty(2))
    tensor([0., 0.])
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere, for any shape and dtype.

    >>> import minigrad as mg
    >>> mg.nn.init.ones_(mg.empty(2))
    tensor([1., 1.])
    """
    return constant_(tensor, 1.0)


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel): how many inputs reach an output, and how many outputs an input.

    ValueError for fewer than two dimensions.

    >>> import minigrad as mg
    >>> mg.nn.init.fans(mg.nn.Conv2d(3, 8, (4, 5)).weight)
    (60, 160)
    """
    if _check(tensor).ndim < 2:
        raise ValueError(f"init: expected a weight with at least 2 dimensions; got shape {tensor.shape}")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """By how much the layer before a nonlinearity is scaled up, so that its signals keep their variance.

    `param`: the slope of a leaky_relu (0.01 if None). ValueError for an unknown nonlinearity.

    >>> import minigrad as mg
    >>> mg.nn.init.calculate_gain("leaky_relu", 1.0)
    1.0
    """
    slope = 0.01 if param is None else param
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + slope**2)),
    }
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: expected a nonlinearity out of {', '.join(gains)}; got {nonlinearity!r}")
    return gains[nonlinearity]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform on ±gain √(6 / (fan_in + fan_out)). Glorot, Bengio, AISTATS 2010.

    >>> import minigrad as mg
    >>> weight = mg.nn.init.xavier_uniform_(mg.empty(100, 50), generator=mg.Generator(0))
    >>> print(f"{weight.abs().max().item():.2f}")  # √(6/150)
    0.20
    """
    bound = gain * math.sqrt(6 / max(sum(fans(tensor)), 1))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """N(0, gain² · 2 / (fan_in + fan_out)). Glorot, Bengio, AISTATS 2010.

    >>> import minigrad as mg
    >>> weight = mg.nn.init.xavier_normal_(mg.empty(150, 50), generator=mg.Generator(0))
    >>> print(f"{weight.std().item():.2f}")  # √(2/200)
    0.10
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2 / max(sum(fans(tensor)), 1)), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: expected mode 'fan_in' or 'fan_out'; got {mode!r}")
    fan = fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))  # without inputs there is nothing to draw


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform on ±√3 gain / √fan, `a` the slope of the leaky_relu that follows. He et al., arXiv 1502.01852.

    ValueError for a `mode` other than "fan_in" and "fan_out", or an unknown nonlinearity.

    >>> import minigrad as mg
    >>> weight = mg.nn.init.kaiming_uniform_(mg.empty(50, 150), generator=mg.Generator(0))
    >>> print(f"{weight.abs().max().item():.2f}")  # √(6/150)
    0.20
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """N(0, gain² / fan), `a` the slope of the leaky_relu that follows. He et al., arXiv 1502.01852.

    ValueError as in `kaiming_uniform_`.

    >>> import minigrad as mg
    >>> weight = mg.nn.init.kaiming_normal_(mg.empty(50, 200), nonlinearity="relu", generator=mg.Generator(0))
    >>> print(f"{weight.std().item():.2f}")  # √(2/200)
    0.10
    """
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """gain · Q, where the reshaped weight (out, the rest) has orthonormal rows or columns, whichever are fewer.

    Q is uniform over such matrices: the QR factor of a Gaussian one, with R's diagonal made positive (Mezzadri, "How to
    generate random matrices from the classical compact groups", 2007). Computed on the host. ValueError for fewer than
    two dimensions.

    >>> import minigrad as mg
    >>> w = mg.nn.init.orthogonal_(mg.empty(2, 5, dtype=mg.float64))
    >>> (w @ w.T - mg.eye(2, dtype=mg.float64)).norm().item() < 1e-12
    True
    """
    fans(tensor)
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    gaussian = randn(rows, columns, dtype=np.float64, generator=generator).numpy()
    q, r = np.linalg.qr(gaussian if rows >= columns else gaussian.T)
    q = gain * q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    values = from_numpy((q if rows >= columns else q.T).reshape(tensor.shape).astype(tensor.dtype))
    return _fill(tensor, values.to(tensor.device))
