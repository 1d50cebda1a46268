"""Batch normalization: the function and its layers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from minigrad import _dtypes
from minigrad._tensor import Tensor
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops import _arguments as arguments
from minigrad.ops.batch_norm import channel_affine, standardize
from minigrad.ops.creation import ones, tensor, zeros


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x − μ) / √(var + ε) · weight + bias, channel by channel, for x of shape (N, C, …).

    In training μ and var are those of the batch, over all dimensions but the channel's, in float64. The running
    statistics, if given, move towards them in place, r ← (1 − momentum) r + momentum · new, var with the unbiased
    estimate n/(n − 1). Else μ and var are the running ones. Differentiable to any order.
    Ioffe, Szegedy, arXiv 1502.03167.

    ValueError: fewer than two dimensions, another shape than (C,), one value per channel in training, no statistics
    outside of it. TypeError: integers, or two dtypes.

    >>> import minigrad as mg
    >>> x = mg.tensor([[1.0], [3.0]])
    >>> mg.nn.functional.batch_norm(x, None, None, training=True, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    """
    if arguments.tensor("batch_norm", x).ndim < 2:
        raise ValueError(f"batch_norm: expected x (N, C, …); got shape {x.shape}")
    if x.dtype.kind != "f":
        raise TypeError(f"batch_norm: expected a floating dtype; got {x.dtype}. Convert with to(mg.float32).")
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for role, t in given.items():  # the kernels take them by channel, and look at no shape
        if t is not None and arguments.tensor("batch_norm", t, f"a tensor as {role}").shape != x.shape[1:2]:
            raise ValueError(f"batch_norm: expected {role} of shape {x.shape[1:2]}, as x is {x.shape}; got {t.shape}")
    arguments.same_dtype("batch_norm", x, *(t for t in (weight, bias) if t is not None))
    if training:
        n = math.prod((x.shape[0], *x.shape[2:]))
        if n < 2:
            raise ValueError(f"batch_norm: expected more than one value per channel in training; got shape {x.shape}")
        y, mean, var = standardize(x, weight, bias, eps)
        _move(running_mean, mean.detach(), momentum)
        _move(running_var, var.detach() * (n / (n - 1)), momentum)
        return y
    if running_mean is None or running_var is None:
        raise ValueError("batch_norm: expected running_mean and running_var outside of training")
    scale = (running_var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    return channel_affine(x, scale, running_mean.double(), None if bias is None else bias.double())


def _move(running: Tensor | None, new: Tensor, momentum: float | Tensor) -> None:
    if running is not None:
        running.copy_(((1 - momentum) * running + momentum * new).to(running.dtype))


class _BatchNorm(Module):
    ranks: ClassVar[dict[int, str]]
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = None,
        device: str = "cpu",
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        self.register_parameter("weight", Parameter(ones(num_features, **where)) if affine else None)
        self.register_parameter("bias", Parameter(zeros(num_features, **where)) if affine else None)
        self.register_buffer("running_mean", zeros(num_features, **where) if track_running_stats else None)
        self.register_buffer("running_var", ones(num_features, **where) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", tensor(0, device=device) if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        if arguments.tensor(type(self).__name__, x).ndim not in self.ranks or x.shape[1] != self.num_features:
            shapes = " or ".join(self.ranks.values()).replace("C", str(self.num_features))
            raise ValueError(f"{type(self).__name__}: expected a batch of shape {shapes}; got {x.shape}")
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            count = self.num_batches_tracked + 1
            if self.momentum is None:  # the plain average of all batches so far
                momentum = 1 / count.to(_dtypes.float64)
        training = self.training or self.running_mean is None
        y = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, momentum, self.eps)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.copy_(count)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """`functional.batch_norm` of (N, C) or (N, C, L), with `weight` and `bias` (C,) unless `affine=False`.

    Buffers `running_mean`, `running_var` (C,) and `num_batches_tracked` unless `track_running_stats=False`; then batch
    statistics serve in evaluation too. `momentum=None` averages over all batches.

    ValueError: a batch of another shape, or one value per channel in training.

    >>> import minigrad as mg
    >>> norm = mg.nn.BatchNorm1d(3)
    >>> norm(mg.randn(8, 3)).shape, norm.num_batches_tracked.item()
    ((8, 3), 1)
    """

    ranks: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """`functional.batch_norm` of (N, C, H, W); the rest as in `BatchNorm1d`.

    >>> import minigrad as mg
    >>> norm = mg.nn.BatchNorm2d(1, eps=0.0)
    >>> norm(mg.tensor([[[[1.0, 3.0]]]])).tolist(), norm.running_mean
    ([[[[-1.0, 1.0]]]], tensor([0.2]))
    """

    ranks: ClassVar = {4: "(N, C, H, W)"}
