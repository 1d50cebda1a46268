"""The spectrally normalized weights of any model, and its loss as a function of what they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from minigrad import _dtypes, _random
from minigrad._mode import enable_grad, no_grad
from minigrad._tensor import Tensor
from minigrad.autograd import grad
from minigrad.nn._calls import substituted
from minigrad.nn.module import Module
from minigrad.nn.utils.spectral_norm import SpectralParametrization, raw_weight
from minigrad.ops.conventions import normalize
from minigrad.ops.creation import ones, tensor
from minigrad.ops.linear_map import MatrixMap
from minigrad.ops.spectral import vector_dtype
from minigrad.spectral.linalg import leading_singular_values
from minigrad.spectral.oracles import Array
from minigrad.spectral.residuals import FLOOR

MOST_ENTRIES = 1 << 24  # of a convolution as a matrix

Values = Mapping[tuple[Module, str], Tensor]


class Normalized(NamedTuple):
    """One spectrally normalized weight of a model: where it is, and the parametrization that computes it."""

    path: str
    name: str
    module: Module
    rule: SpectralParametrization

    @property
    def full_name(self) -> str:
        """As in the state dict of a model without normalization."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def key(self) -> tuple[Module, str]:
        """What `substituted` knows it by."""
        return self.module, self.name

    @property
    def axis(self) -> int:
        """The axis that the reshaped weight has as rows."""
        return raw_weight("Normalized", self.module, self.name)[1]

    @property
    def reshaped(self) -> bool:
        """Is σ the norm of the reshaped weight? (Else of the convolution.)"""
        return isinstance(self.rule.map, MatrixMap)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        u, v = self.rule.map.shapes(self.rule.original)
        return math.prod(u), math.prod(v)

    def raw(self) -> Array:
        """W, in float64 on the host."""
        return host(self.rule.original)

    def matrix(self, values: np.ndarray[Any, Any]) -> Array:
        """The matrix whose norm σ is, where the weight has these values: it reshaped, or the convolution written out.

        ValueError for a convolution with more entries than are worth it.
        """
        if self.reshaped:
            return as_matrix(values, self.axis).astype(np.float64)
        if math.prod(self.shape) > MOST_ENTRIES:
            raise ValueError(
                f"compare_gradients: the convolution of {self.full_name}, for norm='operator', is a matrix "
                f"{self.shape}: too large to be written out. Leave it out with layers=, or use smaller images."
            )
        there, _ = self.rule.map.products(tensor(values, dtype=_dtypes.float64, device=self.rule.original.device))
        inputs = np.eye(self.shape[1]).reshape(-1, *self.rule.map.shapes(self.rule.original)[1])
        return host(there(tensor(inputs, device=self.rule.original.device))).reshape(self.shape[1], -1).T

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The stored u and v; those of a 1-d weight, as a column, are W/‖W‖ and 1."""
        weight = self.rule.original.detach()
        if weight.ndim > 1:
            return self.rule.stored()
        start = ones(weight.shape[0], dtype=vector_dtype(weight), device=weight.device)
        u, v, _ = self.rule.map.sweep(weight, start, start[:1], 1, self.rule.eps, "uv")
        return u, v

    def flat_vectors(self) -> tuple[Array, Array]:
        """The same on the host, as vectors of the matrix."""
        u, v = self.vectors()
        return host(u).ravel(), host(v).ravel()

    def spectrum(self) -> tuple[float, Array]:
        """σ̂, by which evaluation mode divides W, and the two largest singular values that it stands for."""
        weight = self.rule.original.detach().to(_dtypes.float64)
        values = leading_singular_values(self.rule.map, weight, min(2, *self.shape))
        if self.rule.original.ndim == 1 or self.rule.gradient == "exact":
            return float(values[0]), values
        u, v = (x.to(_dtypes.float64) for x in self.vectors())
        return self.rule.map.sigma(weight, u, v).item(), values

    def normalize(self, gradient: str, weight: Tensor, n_power_iterations: int) -> Tensor:
        """W̃ of a weight in the place of W, from the stored vectors, to be differentiated by the convention named."""
        rule = self.rule
        w_bar = normalize(
            gradient, weight, *self.vectors(), rule.map,
            n_power_iterations=n_power_iterations, eps=rule.eps, order=rule.order,
        )  # fmt: skip
        return self.scaled(w_bar)

    def scaled(self, w_bar: Tensor) -> Tensor:
        """W̃ = γ · factor · W̄."""
        return self.rule._scaled(w_bar)

    def scale(self) -> float:
        """γ · factor."""
        return float(self.scaled(ones((), dtype=self.rule.original.dtype, device=self.rule.original.device)).item())

    def eps(self) -> float:
        """The machine precision of the weight."""
        return float(np.finfo(self.rule.original.dtype).eps)

    def tensor(self, values: Array) -> Tensor:
        """The values in the dtype and on the device of the weight."""
        return tensor(values, dtype=self.rule.original.dtype, device=self.rule.original.device)


def normalized_weights(who: str, model: Module, layers: str = "") -> list[Normalized]:
    """All of them, in the order of the tree, a shared module once; `layers`: those of one part of the model.

    ValueError if there is none.
    """
    found = [
        Normalized(path, name, module, rule)
        for path, module in model.named_modules()
        for name, rule in module._parametrized().items()
        if isinstance(rule, SpectralParametrization)
    ]
    if not found:
        raise ValueError(
            f"{who}: {type(model).__name__} has no spectrally normalized weight. "
            f"Register one first, with mg.nn.utils.spectral_norm(module)."
        )
    chosen = [w for w in found if not layers or f"{w.path}.".startswith(f"{layers}.")]
    if not chosen:
        there = ", ".join(weight.full_name for weight in found)
        raise ValueError(f"{who}: no normalized weight below layers={layers!r}; there are {there}")
    return chosen


def as_matrix(weight: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """The axis as rows, all others as columns."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def host(x: Tensor) -> Array:
    """The values of a tensor on any device, in float64."""
    return np.array(x.detach().to("cpu").numpy(), np.float64)


class Loss:
    """A user's loss as a function of the values of normalized weights; whatever an evaluation changes is put back.

    Weights for which no value is given are what reading them gives, W̃ at the stored vectors.
    """

    def __init__(self, who: str, model: Module, loss: Callable[[], Tensor], weights: Sequence[Normalized]):
        if not callable(loss):
            got = type(loss).__name__
            raise TypeError(f"{who}: expected loss to be a callable, as lambda: criterion(model(x), y); got {got}")
        self.who, self.model, self.loss = who, model, loss
        self.read = {w.key: w.rule.read().detach() for w in weights}
        self.eps = math.nan  # the machine precision of what it returned last

    def __call__(self, values: Values) -> float:
        """The loss where the weights have these values."""
        with no_grad(), undisturbed(self.model):
            return float(self._evaluate(values).item())

    def gradients(self, values: Values, wanted: Sequence[Tensor]) -> list[Tensor | None]:
        """Its derivatives with respect to tensors that these values were made of; None where it does not depend."""
        with enable_grad(), undisturbed(self.model):
            out = self._evaluate(values)
            if not math.isfinite(out.item()):
                raise ValueError(f"{self.who}: expected a finite loss; loss() returned {out.item()}")
            if not out.requires_grad:
                return [None] * len(wanted)
            return list(grad(out, wanted, allow_unused=True))

    def floor(self, weight: Normalized) -> float:
        """What rounding may do to a gradient, relative to its size before anything is projected out of it."""
        return max(FLOOR, 256 * max(self.eps, weight.eps()))

    def _evaluate(self, values: Values) -> Tensor:
        with substituted({**self.read, **values}):
            out = self.loss()
        if not isinstance(out, Tensor) or out.numel() != 1 or out.dtype.kind != "f":
            got = f"shape {out.shape}, {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"{self.who}: expected loss() to return a scalar Tensor, e.g. by mean(); got {got}")
        self.eps = float(np.finfo(out.dtype).eps)
        return out


@contextmanager
def undisturbed(model: Module) -> Iterator[None]:
    """Put back what a forward call may change in a model: its buffers and training flags, and the default generator."""
    flags = [(module, module.training) for module in model.modules()]
    kept = [
        (module, name, buffer, buffer.version[0], buffer.detach().clone())
        for module, _ in flags
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    random = _random.default.get_state()
    try:
        yield
    finally:
        _random.default.set_state(random)
        for module, training in flags:
            module.training = training
        for module, name, buffer, version, values in kept:
            module._buffers[name] = buffer
            if buffer.version[0] != version:
                with no_grad():
                    buffer.copy_(values)
                buffer.version[0] = version  # graphs made before find what they had saved
