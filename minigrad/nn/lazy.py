"""Layers that learn the number of their input features from the first batch, or from a state dict."""

from __future__ import annotations

from typing import Any, ClassVar

from minigrad._tensor import Tensor
from minigrad.nn.conv import Conv1d, Conv2d, Conv3d, _ConvNd
from minigrad.nn.linear import Linear, reset
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter, UninitializedParameter
from minigrad.ops import _arguments as arguments
from minigrad.ops.conv import IntOrTuple


class _Lazy(Module):
    """Parameters without a shape; materialized, the layer is an ordinary one: even its class is."""

    becomes: ClassVar[type[Module]]
    parts = ("weight", "bias")

    def _shapes(self, features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of weight and bias for this many input features, which the layer notes down."""
        raise NotImplementedError

    def _features(self, x: Tensor) -> int:
        """The input features of a batch."""
        raise NotImplementedError

    def _own(self, name: str) -> Parameter | None:
        """The parameter itself, parametrized or not."""
        if name in self._parametrized():
            return self._parametrized()[name].original
        parameter: Parameter | None = self._parameters[name]
        return parameter

    def materialize(self, features: int) -> None:
        """Give the parameters their shapes and initial values; if a parametrization refuses them, they stay lazy."""
        lazy, own = type(self), [self._own(name) for name in self.parts]
        waiting = [parameter for parameter in own if isinstance(parameter, UninitializedParameter)]
        for parameter, shape in zip(own, self._shapes(features), strict=True):
            if isinstance(parameter, UninitializedParameter):
                parameter.materialize(shape)
        weight, bias = own
        assert weight is not None
        reset(weight, bias)
        self.__class__ = self.becomes  # type: ignore[assignment]
        try:
            for parametrization in self._parametrized().values():
                parametrization.materialized()
        except Exception:
            for parameter in waiting:
                parameter.data = UninitializedParameter(parameter.dtype, parameter.device).data
                parameter.__class__ = UninitializedParameter
            self.__class__ = lazy
            raise

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.materialize(self._features(x))
        return self(x, *args, **kwargs)

    def _adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        for name in ("weight", "weight_orig", "parametrizations.weight.original"):
            weight = state.get(prefix + name)
            if isinstance(weight, Tensor) and weight.ndim >= 2:
                self.materialize(weight.shape[1] * getattr(self, "groups", 1))
                return


class LazyLinear(_Lazy, Linear):
    """A `Linear` whose `in_features` is the last extent of its first batch.

    >>> import minigrad as mg
    >>> layer = mg.nn.LazyLinear(2)
    >>> layer(mg.ones(5, 3)).shape, layer
    ((5, 2), Linear(in_features=3, out_features=2, bias=True))
    """

    becomes = Linear

    def __init__(self, out_features: int, bias: bool = True, *, dtype: Any = None, device: str = "cpu"):
        Module.__init__(self)
        self.in_features = 0
        self.out_features = out_features
        self.weight = UninitializedParameter(dtype, device)
        self.register_parameter("bias", UninitializedParameter(dtype, device) if bias else None)

    def _features(self, x: Tensor) -> int:
        if not arguments.tensor("LazyLinear", x).ndim:
            raise ValueError("LazyLinear: expected x (…, in_features); got a 0-d tensor")
        return x.shape[-1]

    def _shapes(self, features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        self.in_features = features
        return (self.out_features, features), (self.out_features,)


class _LazyConv(_Lazy, _ConvNd):
    def __init__(
        self,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: str = "cpu",
    ):
        super().__init__(groups, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.in_channels = 0
        self.weight = UninitializedParameter(dtype, device)
        self.register_parameter("bias", UninitializedParameter(dtype, device) if bias else None)

    def _features(self, x: Tensor) -> int:
        ndim = arguments.tensor(type(self).__name__, x).ndim
        if ndim not in (self.dims + 1, self.dims + 2) or x.shape[-self.dims - 1] % self.groups:
            raise ValueError(
                f"{type(self).__name__}: expected a batch (N, C, …) with {self.dims} spatial dimensions and C "
                f"divisible by groups={self.groups}; got {x.shape}"
            )
        return x.shape[-self.dims - 1]

    def _shapes(self, features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        self.in_channels = features
        return self.weight_shape(features), (self.out_channels,)


class LazyConv1d(_LazyConv, Conv1d):
    """A `Conv1d` whose `in_channels` is that of its first batch; errors as in `LazyConv2d`.

    >>> import minigrad as mg
    >>> layer = mg.nn.LazyConv1d(8, 3)
    >>> layer(mg.zeros(2, 5, 10)).shape, layer
    ((2, 8, 8), Conv1d(5, 8, kernel_size=(3,), stride=(1,)))
    """

    becomes = Conv1d


class LazyConv2d(_LazyConv, Conv2d):
    """A `Conv2d` whose `in_channels` is that of its first batch.

    ValueError: a batch of another number of dimensions, or of channels that `groups` does not divide.

    >>> import minigrad as mg
    >>> mg.nn.LazyConv2d(8, 3, padding=1)(mg.zeros(1, 3, 4, 4)).shape
    (1, 8, 4, 4)
    """

    becomes = Conv2d


class LazyConv3d(_LazyConv, Conv3d):
    """A `Conv3d` whose `in_channels` is that of its first batch; errors as in `LazyConv2d`.

    >>> import minigrad as mg
    >>> layer = mg.nn.LazyConv3d(4, 2, bias=False)
    >>> layer(mg.zeros(1, 3, 4, 4, 4)).shape, layer.in_channels
    ((1, 4, 3, 3, 3), 3)
    """

    becomes = Conv3d
