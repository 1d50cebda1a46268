"""Convolution in one, two and three dimensions: three ops, each bilinear and each one's derivatives being the other two.

With y = x ⋆ w, ⟨g, x ⋆ w⟩ = ⟨conv_input_grad(g, w), x⟩ = ⟨conv_weight_grad(g, x), w⟩. A transposed convolution is
`conv_input_grad` under another name, so that nothing is left to derive, to any order.

The arithmetic of extents: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv 1603.07285.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from minigrad._tensor import Tensor
from minigrad.autograd import primitive
from minigrad.ops import _arguments as arguments
from minigrad.ops.reduce import sum
from minigrad.ops.shape import pad, reshape, squeeze, unsqueeze

Extents = tuple[int, ...]
IntOrTuple = int | Sequence[int]


class Layout(NamedTuple):
    """How a filter steps over an image."""

    stride: Extents
    padding: Extents
    dilation: Extents
    groups: int

    def output(self, space: Extents, kernel: Extents) -> Extents:
        """Extents of the output: ⌊(s + 2·padding − dilation·(k − 1) − 1) / stride⌋ + 1."""
        every = zip(space, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in every)


@primitive()
def _conv(k: Any, x: Any, w: Any, b: Any, *, layout: Layout) -> Any:
    return k.conv(x, w, b, *layout)


@primitive()
def _conv_input_grad(k: Any, y: Any, w: Any, *, input_shape: Extents, layout: Layout) -> Any:
    return k.conv_input_grad(y, w, input_shape, *layout)


@primitive()
def _conv_weight_grad(k: Any, y: Any, x: Any, *, kernel_shape: Extents, layout: Layout) -> Any:
    return k.conv_weight_grad(y, x, kernel_shape, *layout)


_conv.vjp(
    x=lambda g, w, x_shape, layout: _conv_input_grad(g, w, input_shape=x_shape[2:], layout=layout),
    w=lambda g, x, w_shape, layout: _conv_weight_grad(g, x, kernel_shape=w_shape[2:], layout=layout),
    b=lambda g: sum(g, (0, *range(2, g.ndim))),
)
_conv_input_grad.vjp(
    y=lambda g, w, layout: _conv(g, w, None, layout=layout),
    w=lambda g, y, w_shape, layout: _conv_weight_grad(y, g, kernel_shape=w_shape[2:], layout=layout),
)
_conv_weight_grad.vjp(
    y=lambda g, x, layout: _conv(x, g, None, layout=layout),
    x=lambda g, y, x_shape, layout: _conv_input_grad(y, g, input_shape=x_shape[2:], layout=layout),
)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d` with one spatial dimension: (N, C, L) ⋆ (K, C/groups, k) → (N, K, O).

    >>> import minigrad as mg
    >>> mg.conv1d(mg.tensor([[[1.0, 2.0, 4.0]]]), mg.tensor([[[-1.0, 1.0]]]))
    tensor([[[1., 2.]]])
    """
    return _convolution("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images with filters: out[n, k, o] = bias[k] + Σ_{c, t} input[n, c, s·o + d·t − p] · weight[k, c, t].

    `input` (N, C, H, W) or (C, H, W), `weight` (K, C/groups, kh, kw), `bias` (K,) → (N, K, OH, OW) or (K, OH, OW), with
    OH = ⌊(H + 2p − d(kh − 1) − 1)/s⌋ + 1. Stride s, padding p (zeros) and dilation d are ints or one int per
    dimension; `padding` may be "valid" (none) or "same" (OH = H, for stride 1). With groups, the g-th part of the
    filters sees the g-th part of the channels only.

    One floating dtype for all; float16 is computed in float32. ValueError for shapes and numbers that do not fit
    together, TypeError for dtypes. Extents: Dumoulin and Visin, arXiv 1603.07285.

    >>> import minigrad as mg
    >>> mg.conv2d(mg.ones(1, 1, 3, 3), mg.ones(1, 1, 2, 2), stride=2, padding=1)
    tensor([[[[1., 2.],
              [2., 4.]]]])
    """
    return _convolution("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d` with three spatial dimensions: (N, C, D, H, W) ⋆ (K, C/groups, kd, kh, kw) → (N, K, OD, OH, OW).

    >>> import minigrad as mg
    >>> mg.conv3d(mg.ones(1, 1, 2, 2, 3), mg.ones(1, 1, 2, 2, 2))
    tensor([[[[[8., 8.]]]]])
    """
    return _convolution("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """`conv_transpose2d` with one spatial dimension: (N, C, L), (C, K/groups, k) → (N, K, O).

    >>> import minigrad as mg
    >>> mg.conv_transpose1d(mg.tensor([[[1.0, 2.0]]]), mg.tensor([[[1.0, 1.0]]]), stride=2)
    tensor([[[1., 1., 2., 2.]]])
    """
    return _transposed("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """The adjoint of `conv2d` in its input (plus a bias): out[n, k, s·o + d·t − p] += input[n, c, o] · weight[c, k, t].

    `input` (N, C, H, W) or (C, H, W), `weight` (C, K/groups, kh, kw), `bias` (K,) → (N, K, OH, OW) or (K, OH, OW), with
    OH = (H − 1)s − 2p + d(kh − 1) + output_padding + 1. As s input extents of `conv2d` give the same output extent,
    `output_padding` says which one is meant; it must be smaller than the stride or the dilation.

    Dtypes and errors as in `conv2d`. Extents: Dumoulin and Visin, arXiv 1603.07285.

    >>> import minigrad as mg
    >>> mg.conv_transpose2d(mg.tensor([[[[1.0, 2.0]]]]), mg.ones(1, 1, 2, 2), stride=(1, 2))
    tensor([[[[1., 1., 2., 2.],
              [1., 1., 2., 2.]]]])
    """
    return _transposed("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """`conv_transpose2d` with three spatial dimensions: (N, C, D, H, W), (C, K/groups, kd, kh, kw) → (N, K, OD, OH, OW).

    >>> import minigrad as mg
    >>> mg.conv_transpose3d(mg.ones(1, 1, 1, 1, 2), mg.ones(1, 1, 1, 1, 2))
    tensor([[[[[1., 2., 1.]]]]])
    """
    return _transposed("conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    input_shape: Sequence[int],
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of ⟨grad_output, input ⋆ weight⟩ in the input: the adjoint of a convolution, itself differentiable.

    `grad_output` (N, K, *O), `weight` (K, C/groups, *k), `input_shape` the spatial extents S of the input → (N, C, *S).
    ValueError unless the convolution of such an input has the extents O; other errors and the dtypes as in `conv2d`.

    >>> import minigrad as mg
    >>> mg.conv_input_grad(mg.tensor([[[1.0, 10.0]]]), mg.tensor([[[1.0, 2.0]]]), [3])
    tensor([[[ 1., 12., 20.]]])
    """
    name, n = "conv_input_grad", weight.ndim - 2
    layout = _layout(name, n, stride, padding, dilation, groups)
    space = integers(name, "input_shape", input_shape, n, 1)
    _fit(name, n, weight, (grad_output, "grad_output", len_of(weight, 0)), layout)
    _same_extents(name, layout, space, weight.shape[2:], grad_output)
    return _conv_input_grad(grad_output, weight, input_shape=space, layout=layout)  # type: ignore[no-any-return]
