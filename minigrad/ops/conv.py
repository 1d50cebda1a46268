"""Convolution in one, two and three dimensions: three bilinear ops, each one's derivatives being the other two.

With y = x ⋆ w, ⟨g, x ⋆ w⟩ = ⟨conv_input_grad(g, w), x⟩ = ⟨conv_weight_grad(g, x), w⟩. A transposed convolution is
`conv_input_grad` under another name, so that nothing is left to derive, to any order.

The arithmetic of extents: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning" (2016), arXiv
1603.07285.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad._op import primitive
from minigrad._tensor import Tensor
from minigrad.ops import _arguments as arguments
from minigrad.ops.arithmetic import add
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

    def transposed_output(self, space: Extents, kernel: Extents, extra: Extents) -> Extents:
        """The same for the transpose: (s − 1)·stride − 2·padding + dilation·(k − 1) + extra + 1."""
        every = zip(space, kernel, self.stride, self.padding, self.dilation, extra, strict=True)
        return tuple((s - 1) * t - 2 * p + d * (k - 1) + e + 1 for s, k, t, p, d, e in every)


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
    return _convolution(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Images ⋆ filters: out[n, k, o] = bias[k] + Σ_{c, t} input[n, c, s·o + d·t − p] · weight[k, c, t].

    `input` (N, C, H, W) or (C, H, W), `weight` (K, C/groups, kh, kw), `bias` (K,) → (N, K, OH, OW) or (K, OH, OW), with
    OH = ⌊(H + 2p − d(kh − 1) − 1)/s⌋ + 1. Stride s, padding p (zeros) and dilation d are ints or one int per
    dimension; `padding` may be "valid" (none) or "same" (OH = H, for stride 1). With groups, the g-th part of the
    filters sees the g-th part of the channels only.

    One floating dtype for all; float16 is computed in float32. ValueError for shapes and numbers that do not fit
    together, TypeError for dtypes. Extents: Dumoulin and Visin, arXiv 1603.07285.

    On the CPU, where 24 or more filters that are three times, or twice, as long as their stride see as many channels in
    float32, and the work is large enough, it is Winograd's F(2×2, 3×3), or F(2×2, 2×2): its error is as small, but
    relative to the largest pixel under 2×2 neighbouring windows. If anything in between is not finite, the sums are
    taken directly, as by `MINIGRAD_PLAIN_KERNELS=1`. Depthwise convolutions, and others with at most 16 channels times
    filters to a group, are sums of shifted planes.

    >>> import minigrad as mg
    >>> mg.conv2d(mg.ones(1, 1, 3, 3), mg.ones(1, 1, 2, 2), stride=2, padding=1)
    tensor([[[[1., 2.],
              [2., 4.]]]])
    """
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups)


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
    return _convolution(3, input, weight, bias, stride, padding, dilation, groups)


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
    return _transposed(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


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
    return _transposed(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


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
    """`conv_transpose2d` with three spatial dimensions: (N, C, D, H, W), (C, K/groups, kd, kh, kw) → (N, K, *O).

    >>> import minigrad as mg
    >>> mg.conv_transpose3d(mg.ones(1, 1, 1, 1, 2), mg.ones(1, 1, 1, 1, 2))
    tensor([[[[[1., 2., 1.]]]]])
    """
    return _transposed(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


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
    name, n = "conv_input_grad", _spatial("conv_input_grad", weight)
    layout = make_layout(name, n, stride, padding, dilation, groups)
    _check(name, n, weight, None, layout.groups, transposed=True, grad_output=grad_output)
    space = extents(name, "input_shape", input_shape, n, 0)
    _check_extents(name, layout, space, weight.shape[2:], grad_output)
    return _conv_input_grad(grad_output, weight, input_shape=space, layout=layout)


def conv_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    kernel_shape: Sequence[int],
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of ⟨grad_output, input ⋆ weight⟩ in the weight, itself differentiable.

    `grad_output` (N, K, *O), `input` (N, C, *S), `kernel_shape` the spatial extents k of the filters →
    (K, C/groups, *k). ValueError unless the convolution of `input` with such filters has the extents O; other errors
    and the dtypes as in `conv2d`.

    >>> import minigrad as mg
    >>> mg.conv_weight_grad(mg.tensor([[[1.0, 10.0]]]), mg.tensor([[[1.0, 2.0, 3.0]]]), [2])
    tensor([[[21., 32.]]])
    """
    name, n = "conv_weight_grad", _spatial("conv_weight_grad", input)
    layout = make_layout(name, n, stride, padding, dilation, groups)
    _check_tensors(name, n, grad_output=grad_output, input=input)
    for x in (grad_output, input):
        if x.shape[1] % layout.groups or x.shape[0] != input.shape[0]:
            raise ValueError(
                f"{name}: expected one batch size, and channels divisible by groups={layout.groups}; "
                f"got grad_output of shape {grad_output.shape}, input of shape {input.shape}"
            )
    kernel = extents(name, "kernel_shape", kernel_shape, n, 1)
    _check_extents(name, layout, input.shape[2:], kernel, grad_output)
    return _conv_weight_grad(grad_output, input, kernel_shape=kernel, layout=layout)


def _convolution(
    n: int,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
) -> Tensor:
    """Any `conv…d`, of a batch or of one image."""
    name = f"conv{n}d"
    if arguments.tensor(name, x).ndim == n + 1:
        return squeeze(_convolution(n, unsqueeze(x, 0), w, b, stride, padding, dilation, groups), 0)
    layout = make_layout(name, n, stride, padding, dilation, groups)
    _check(name, n, w, b, layout.groups, transposed=False, input=x)
    if isinstance(padding, str):
        layout, tail = named_padding(name, padding, w.shape[2:], layout)
        if any(tail):
            x = pad(x, [width for t in reversed(tail) for width in (0, t)])
    if min(layout.output(x.shape[2:], w.shape[2:])) < 1:
        raise ValueError(
            f"{name}: expected filters no larger than the padded input; got input of shape {x.shape}, weight of shape "
            f"{w.shape}, padding {layout.padding}, dilation {layout.dilation}. Use more padding or a smaller filter."
        )
    return _conv(x, w, b, layout=layout)


def named_padding(name: str, padding: str, kernel: Extents, layout: Layout) -> tuple[Layout, Extents]:
    """The layout for "valid" or "same", and the zeros to put behind the input where "same" is an odd amount."""
    if padding not in ("valid", "same") or (padding == "same" and max(layout.stride) > 1):
        raise ValueError(
            f"{name}: expected padding to be ints, 'valid', or (with stride 1) 'same'; "
            f"got {padding!r} with stride {layout.stride}"
        )
    every = zip(layout.dilation, kernel, strict=True)
    total = [d * (k - 1) if padding == "same" else 0 for d, k in every]
    return layout._replace(padding=tuple(t // 2 for t in total)), tuple(t % 2 for t in total)


def _transposed(
    n: int,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: IntOrTuple,
    padding: IntOrTuple,
    output_padding: IntOrTuple,
    groups: int,
    dilation: IntOrTuple,
) -> Tensor:
    """Any `conv_transpose…d`, of a batch or of one image."""
    name = f"conv_transpose{n}d"
    if arguments.tensor(name, x).ndim == n + 1:
        return squeeze(_transposed(n, unsqueeze(x, 0), w, b, stride, padding, output_padding, groups, dilation), 0)
    layout = make_layout(name, n, stride, padding, dilation, groups)
    _check(name, n, w, b, layout.groups, transposed=True, input=x)
    extra = extents(name, "output_padding", output_padding, n, 0)
    if any(e >= max(t, d) for e, t, d in zip(extra, layout.stride, layout.dilation, strict=True)):
        raise ValueError(
            f"{name}: expected output_padding below the stride {layout.stride} or the dilation {layout.dilation}; "
            f"got {extra}"
        )
    space = layout.transposed_output(x.shape[2:], w.shape[2:], extra)
    if min(space) < 1:
        raise ValueError(
            f"{name}: expected a non-empty output; got extents {space} from input of shape {x.shape}, weight of shape "
            f"{w.shape}, padding {layout.padding}. Use less padding."
        )
    missing = [o - s for o, s in zip(layout.output(space, w.shape[2:]), x.shape[2:], strict=True)]
    if any(missing):  # output_padding of a stride or more: as if x had gone on with zeros
        x = pad(x, [width for m in reversed(missing) for width in (0, m)])
    out: Tensor = _conv_input_grad(x, w, input_shape=space, layout=layout)
    return out if b is None else add(out, reshape(b, -1, *(1,) * n))


def extents(name: str, what: str, value: IntOrTuple, n: int, least: int) -> Extents:
    """An int, or one per spatial dimension, as `n` ints of at least `least`."""
    try:
        found = tuple(v.__index__() for v in ((value,) if isinstance(value, int | np.integer) else value))
    except (AttributeError, TypeError):
        raise TypeError(f"{name}: expected {what} to be an int or {n} ints; got {value!r}") from None
    found *= n if len(found) == 1 else 1
    if len(found) != n or min(found) < least:
        raise ValueError(f"{name}: expected {what} to be an int or {n} ints, each at least {least}; got {value!r}")
    return found


def make_layout(
    name: str, n: int, stride: IntOrTuple, padding: IntOrTuple | str, dilation: IntOrTuple, groups: int
) -> Layout:
    """The layout of checked numbers; for a padding with a name `named_padding` goes on."""
    return Layout(
        extents(name, "stride", stride, n, 1),
        extents(name, "padding", 0 if isinstance(padding, str) else padding, n, 0),
        extents(name, "dilation", dilation, n, 1),
        *extents(name, "groups", groups, 1, 1),
    )


def _spatial(name: str, x: Tensor) -> int:
    """How many spatial dimensions a tensor (·, ·, *spatial) has."""
    if arguments.tensor(name, x).ndim < 3:
        raise ValueError(f"{name}: expected a tensor (N, C, …) with spatial dimensions; got shape {x.shape}")
    return x.ndim - 2


def _check_tensors(name: str, n: int, **tensors: Tensor) -> None:
    """Tensors of n + 2 dimensions and one floating dtype."""
    for role, x in tensors.items():
        if arguments.tensor(name, x).ndim != n + 2:
            raise ValueError(f"{name}: expected {role} of {n + 2} dimensions, {n} of them spatial; got shape {x.shape}")
    arguments.same_dtype(name, *tensors.values())
    dtype = next(iter(tensors.values())).dtype
    if dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype; got {dtype}. Convert with to(mg.float32).")


def _check(name: str, n: int, w: Tensor, b: Tensor | None, groups: int, *, transposed: bool, **images: Tensor) -> None:
    """Filters, bias and images (by their role) that fit together; `transposed`: the images lie on the filters' side."""
    _check_tensors(name, n, **images, weight=w)
    ((role, x),) = images.items()
    if math.prod(w.shape) == 0 or w.shape[0] % groups:
        raise ValueError(
            f"{name}: expected a non-empty weight, its first extent divisible by groups={groups}; got shape {w.shape}"
        )
    sides = w.shape[0], w.shape[1] * groups
    given, made = sides if transposed else sides[::-1]
    if x.shape[1] != given:
        raise ValueError(
            f"{name}: expected {role} of {given} channels, for weight of shape {w.shape} and groups={groups}; "
            f"got shape {x.shape}"
        )
    if b is not None:
        arguments.same_dtype(name, x, w, arguments.tensor(name, b))
        if b.shape != (made,):
            raise ValueError(f"{name}: expected bias of shape ({made},), one per output channel; got {b.shape}")


def _check_extents(name: str, layout: Layout, space: Extents, kernel: Extents, grad_output: Tensor) -> None:
    expected = layout.output(space, kernel)
    if grad_output.shape[2:] != expected:
        raise ValueError(
            f"{name}: expected grad_output of extents {expected}, which an input of extents {space} and filters of "
            f"extents {kernel} make; got shape {grad_output.shape}"
        )
