"""What σ is the norm of: the linear map that a weight makes, by its matrix or as the convolution that it is.

Either way ⟨u, M v⟩ is linear in the weight, σ = ⟨A, W⟩, so that with u and v fixed W̄ = W/σ has the gradient
(G − ⟨G, W̄⟩ A)/σ. For the matrix A = u vᵀ, in the layout of W (Miyato et al. 2018, §4 and (12)); for the convolution it
is the gradient of its filters at the input v and the upstream gradient u.

The convolution's norm is not that of its reshaped filters: power iteration goes through the convolution and its
transpose (Gouk, Frank, Pfahringer, Cree, arXiv 1804.04368; Farnia, Zhang, Tse, arXiv 1811.07457).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minigrad._tensor import Tensor
from minigrad.ops._operands import to_dtype
from minigrad.ops.arithmetic import mul
from minigrad.ops.comparison import gt, isfinite, logical_and, minimum, where
from minigrad.ops.conv import Extents, Layout, conv1d, conv2d, conv3d, conv_input_grad, conv_weight_grad
from minigrad.ops.reduce import norm, sum
from minigrad.ops.shape import pad, permute, reshape, squeeze, unsqueeze
from minigrad.ops.spectral import divide, normalize_at, rank_one, spectral_sigma, sweep, vector_dtype

Product = Callable[[Tensor], Tensor]


class MatrixMap(NamedTuple):
    """The matrix of a weight: its axis `dim` as rows, all others as columns. u and v have one dimension."""

    dim: int

    def shapes(self, weight: Tensor) -> tuple[Extents, Extents]:
        """The shapes of u and v."""
        m = weight.shape[self.dim]
        return (m,), (weight.numel() // m,)

    def products(self, weight: Tensor) -> tuple[Product, Product]:
        """v ↦ Mv and u ↦ Mᵀu, differentiable in the weight."""
        others = (d for d in range(weight.ndim) if d != self.dim)
        matrix = reshape(permute(weight, self.dim, *others), weight.shape[self.dim], -1)
        matrix = to_dtype(matrix, vector_dtype(weight))
        return lambda v: matrix @ v, lambda u: matrix.T @ u

    def sigma(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """σ = uᵀMv, differentiable in the weight."""
        return spectral_sigma(weight, u, v, self.dim)

    def slope(self, c: Tensor, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """c ∂σ/∂W, in the layout of the weight."""
        return rank_one(c, weight, u, v, self.dim)

    def normalize(self, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """W̄ = W/σ with u and v fixed, for a σ that is known to be uᵀMv."""
        return normalize_at(weight, u, v, sigma, self.dim)

    def sweep(
        self, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, order: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u, v after some power iterations, and σ at them: constants, new ones."""
        return sweep(weight, u, v, n_power_iterations, eps, self.dim, order)


class ConvolutionMap(NamedTuple):
    """A convolution of images of one shape, or its transpose, as a linear map; u is an output of it and v an input.

    The convolution takes images with the extents `wide` to such with the extents `narrow`; a transposed layer goes the
    other way. `tail`: zeros that the layer puts behind its input before.
    """

    layout: Layout
    wide: Extents
    narrow: Extents
    tail: Extents
    transposed: bool

    def shapes(self, weight: Tensor) -> tuple[Extents, Extents]:
        """The shapes of u and v: channels, and extents in space."""
        narrow, wide = (weight.shape[0], *self.narrow), (weight.shape[1] * self.layout.groups, *self.wide)
        u, v = (wide, narrow) if self.transposed else (narrow, wide)
        return u, (v[0], *(n - t for n, t in zip(v[1:], self.tail, strict=True)))

    def products(self, weight: Tensor) -> tuple[Product, Product]:
        """v ↦ Mv and u ↦ Mᵀu, of one image or a batch, differentiable in the weight."""
        w = to_dtype(weight, vector_dtype(weight))
        forward = (conv1d, conv2d, conv3d)[len(self.wide) - 1]

        def convolve(x: Tensor) -> Tensor:
            return forward(x, w, None, *self.layout)

        def transpose(y: Tensor) -> Tensor:
            if y.ndim == len(self.wide) + 1:
                return squeeze(transpose(unsqueeze(y, 0)), 0)
            return conv_input_grad(y, w, self.wide, *self.layout)

        there, back = (transpose, convolve) if self.transposed else (convolve, transpose)
        return lambda v: there(self._lengthened(v, 1)), lambda u: self._lengthened(back(u), -1)

    def sigma(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """σ = ⟨u, Mv⟩, differentiable in the weight."""
        return self._along(weight, self._filters(weight, u, v))

    def slope(self, c: Tensor, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """c ∂σ/∂W."""
        return to_dtype(c * self._filters(weight, u, v), weight.dtype)

    def normalize(self, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """W̄ = W/σ with u and v fixed. One convolution gives A; σ = ⟨A, W⟩ needs no other, in any derivative."""
        return divide(weight, self._along(weight, self._filters(weight, u, v)))

    def sweep(
        self, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, order: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u, v after some power iterations, and σ at them: constants, new ones; as `power_iteration` of a matrix."""
        there, back = self.products(weight.detach())
        first, second, x, y = (there, back, v, u) if order == "uv" else (back, there, u, v)
        for _ in range(n_power_iterations):
            product = first(x)
            size = norm(product)
            turns = logical_and(gt(size, 0), isfinite(size))
            opposite = second(divide(product, size))
            sigma = norm(opposite)
            length = minimum(divide(size, sigma) / eps, 1.0) if eps else 1.0  # less than 1 where the clamp bites
            other = minimum(length / eps, 1.0) if eps else 1.0
            y = where(turns, divide(product, size) * length, y)
            x = where(turns, divide(opposite, sigma) * other, x)
            sigma = where(turns, sigma * length * other, size)
        return (y, x, sigma) if order == "uv" else (x, y, sigma)

    def _filters(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """A = ∂⟨u, Mv⟩/∂W, in the dtype of u."""
        u, v = unsqueeze(u, 0), unsqueeze(self._lengthened(v, 1), 0)
        narrow, wide = (v, u) if self.transposed else (u, v)
        return conv_weight_grad(narrow, wide, weight.shape[2:], *self.layout)

    def _along(self, weight: Tensor, filters: Tensor) -> Tensor:
        return sum(mul(filters, to_dtype(weight, filters.dtype)))

    def _lengthened(self, x: Tensor, by: int) -> Tensor:
        """With the tail (1), or without it (−1)."""
        return pad(x, [width for t in reversed(self.tail) for width in (0, by * t)]) if any(self.tail) else x


LinearMap = MatrixMap | ConvolutionMap


def convolution_map(
    name: str, layout: Layout, tail: Extents, kernel: Extents, space: Extents, transposed: bool
) -> ConvolutionMap:
    """The map of a layer whose input has the extents `space`; ValueError if the filters are larger than that."""
    if transposed:
        wide = layout.transposed_output(space, kernel, tail)
        narrow = layout.output(wide, kernel)
        tail = tuple(n - s for n, s in zip(narrow, space, strict=True))
    else:
        wide = tuple(s + t for s, t in zip(space, tail, strict=True))
        narrow = layout.output(wide, kernel)
    if min(*wide, *narrow) < 1:
        raise ValueError(
            f"{name}: expected an input_shape that the filters fit into; got {space} with a kernel {kernel}, padding "
            f"{layout.padding}, dilation {layout.dilation}. Give the extents of the images that the layer is used on."
        )
    return ConvolutionMap(layout, wide, narrow, tail, transposed)
