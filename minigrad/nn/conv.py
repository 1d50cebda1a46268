"""Convolutional layers: one implementation for one, two and three dimensions, forward and transposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from minigrad._tensor import Tensor
from minigrad.nn.linear import reset
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops import conv as ops
from minigrad.ops.conv import Extents, IntOrTuple, extents
from minigrad.ops.creation import empty
from minigrad.ops.linear_map import ConvolutionMap, convolution_map


class _ConvNd(Module):
    dims: ClassVar[int]
    transposed: ClassVar[bool] = False
    op: ClassVar[Callable[..., Tensor]]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
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
        super().__init__()
        who, n = type(self).__name__, self.dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = extents(who, "kernel_size", kernel_size, n, 1)
        self.stride = extents(who, "stride", stride, n, 1)
        self.padding = padding if isinstance(padding, str) else extents(who, "padding", padding, n, 0)
        self.dilation = extents(who, "dilation", dilation, n, 1)
        self.groups = groups
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"{who}: {in_channels} and {out_channels} channels are not divisible by groups={groups}")
        self.weight = Parameter(empty(self.weight_shape(in_channels), dtype=dtype, device=device))
        self.register_parameter("bias", Parameter(empty(out_channels, dtype=dtype, device=device)) if bias else None)
        self.reset_parameters()

    def weight_shape(self, in_channels: int) -> Extents:
        """The weight's shape for this many input channels."""
        sides = (in_channels, self.out_channels) if self.transposed else (self.out_channels, in_channels)
        return sides[0], sides[1] // self.groups, *self.kernel_size

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return type(self).op(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def linear_map(self, input_shape: IntOrTuple) -> ConvolutionMap:
        """What the layer does, without its bias, to images with these extents in space: a linear map."""
        who, n = type(self).__name__, self.dims
        layout = ops.make_layout(who, n, self.stride, self.padding, self.dilation, self.groups)
        tail = getattr(self, "output_padding", (0,) * n)
        if isinstance(self.padding, str):
            layout, tail = ops.named_padding(who, self.padding, self.kernel_size, layout)
        space = extents(who, "input_shape", input_shape, n, 1)
        return convolution_map(who, layout, tail, self.kernel_size, space, self.transposed)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, usual in (("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name, None)
            if value is not None and value != (usual,) * self.dims:
                parts.append(f"{name}={value!r}")
        parts += [f"groups={self.groups}"] * (self.groups != 1) + ["bias=False"] * (self.bias is None)
        return ", ".join(parts)


class Conv1d(_ConvNd):
    """`functional.conv1d` of (N, in_channels, L) with trained filters: (N, out_channels, L′); the rest as in `Conv2d`.

    >>> import minigrad as mg
    >>> layer = mg.nn.Conv1d(3, 8, 5, padding=2)
    >>> layer(mg.zeros(2, 3, 10)).shape, layer.weight.shape
    ((2, 8, 10), (8, 3, 5))
    """

    dims = 1
    op = staticmethod(ops.conv1d)


class Conv2d(_ConvNd):
    """`functional.conv2d` of (N, in_channels, H, W) with trained filters: (N, out_channels, H′, W′).

    `weight`: (out_channels, in_channels/groups, *kernel_size), `bias`: (out_channels,); both uniform on ±1/√fan_in with
    fan_in = in_channels/groups · the kernel's area. x may be one image, without N.

    ValueError: numbers that do not fit together, here or with the shape of x. TypeError: x of another dtype.

    >>> import minigrad as mg
    >>> layer = mg.nn.Conv2d(3, 64, 4, stride=2, padding=1)
    >>> layer(mg.zeros(1, 3, 8, 8)).shape, layer
    ((1, 64, 4, 4), Conv2d(3, 64, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1)))
    """

    dims = 2
    op = staticmethod(ops.conv2d)


class Conv3d(_ConvNd):
    """`functional.conv3d` of (N, in_channels, D, H, W): (N, out_channels, D′, H′, W′); the rest as in `Conv2d`.

    >>> import minigrad as mg
    >>> layer = mg.nn.Conv3d(1, 4, (1, 3, 3))
    >>> layer(mg.zeros(2, 1, 5, 6, 6)).shape, layer.weight.shape
    ((2, 4, 5, 4, 4), (4, 1, 1, 3, 3))
    """

    dims = 3
    op = staticmethod(ops.conv3d)


class _ConvTransposeNd(_ConvNd):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: IntOrTuple = 0,
        output_padding: IntOrTuple = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrTuple = 1,
        *,
        dtype: Any = None,
        device: str = "cpu",
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            extents(type(self).__name__, "padding", padding, self.dims, 0),
            dilation,
            groups,
            bias,
            dtype=dtype,
            device=device,
        )
        self.output_padding = extents(type(self).__name__, "output_padding", output_padding, self.dims, 0)

    def forward(self, x: Tensor) -> Tensor:
        return type(self).op(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class ConvTranspose1d(_ConvTransposeNd):
    """`functional.conv_transpose1d` of (N, in_channels, L): (N, out_channels, L′); the rest as in `ConvTranspose2d`.

    >>> import minigrad as mg
    >>> layer = mg.nn.ConvTranspose1d(3, 8, 4, stride=2, padding=1)
    >>> layer(mg.zeros(2, 3, 10)).shape, layer.weight.shape
    ((2, 8, 20), (3, 8, 4))
    """

    dims = 1
    op = staticmethod(ops.conv_transpose1d)


class ConvTranspose2d(_ConvTransposeNd):
    """`functional.conv_transpose2d` of (N, in_channels, H, W) with trained filters: (N, out_channels, H′, W′).

    `weight`: (in_channels, out_channels/groups, *kernel_size), `bias`: (out_channels,); both uniform on ±1/√fan_in with
    fan_in = out_channels/groups · the kernel's area. x may be one image, without N. Errors as in `Conv2d`.

    >>> import minigrad as mg
    >>> mg.nn.ConvTranspose2d(512, 256, 4, stride=2, padding=1)(mg.zeros(1, 512, 4, 4)).shape
    (1, 256, 8, 8)
    """

    dims = 2
    op = staticmethod(ops.conv_transpose2d)


class ConvTranspose3d(_ConvTransposeNd):
    """`functional.conv_transpose3d` of (N, in_channels, D, H, W): (N, out_channels, D′, H′, W′).

    The rest as in `ConvTranspose2d`.

    >>> import minigrad as mg
    >>> mg.nn.ConvTranspose3d(2, 4, 2, stride=2)(mg.zeros(1, 2, 3, 4, 5)).shape
    (1, 4, 6, 8, 10)
    """

    dims = 3
    op = staticmethod(ops.conv_transpose3d)
