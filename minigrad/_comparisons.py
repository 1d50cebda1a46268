"""What a gradient check compares: numbers by the rules, and the same numbers by finite differences.

For random upstream gradients g the rules give Jᵀg. Finite differences give ⟨g, fn(x + t d)⟩′ = ⟨Jᵀg, d⟩ along a
direction d: each unit vector for a small input, some random unit vectors for a large one. The second order is the first
order of the function (x, g) ↦ Jᵀg, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad._differences import EPS, Array, differentiate, measure_noise, size_of
from minigrad._dtypes import float64
from minigrad._mode import enable_grad, is_grad_enabled, no_grad
from minigrad._tensor import Tensor
from minigrad.autograd import grad
from minigrad.device import kernels

STEP = 0.125  # of the input's scale: where the steps begin
RTOL = 1e-9
ENTRYWISE = 64  # an input of up to this many elements is checked entry by entry
DIRECTIONS = 8  # a larger one along so many random directions
UPSTREAM = 2  # random upstream gradients per output
TRUST = 10.0  # times its own estimate: how far a difference may be off
UNSETTLED = 1e-3  # a difference less certain than this, against the slope or fn over the input's scale, is none
VANISHING = 1e-6  # unless it concerns a change of fn below this: where fn and slope vanish, all is uncertain to them

Function = Callable[..., Tensor | Sequence[Tensor]]


class GradcheckError(RuntimeError):
    """A gradient disagrees with finite differences, or fn has none to compare with; the message says where."""


class Comparison(NamedTuple):
    """One number held against another: ⟨Jᵀg, d⟩ by the rules and by finite differences."""

    input: str
    where: str  # the entry or direction d
    output: str  # where the upstream gradient g is nonzero
    analytic: float
    numeric: float
    error: float  # of `numeric`, as estimated
    step: float
    tolerance: float
    settled: bool  # do the differences converge at all?

    @property
    def residual(self) -> float:
        return abs(self.analytic - self.numeric)

    @property
    def excess(self) -> float:
        """The residual over the tolerance: above 1 the gradient is wrong."""
        if not self.settled or not math.isfinite(self.residual):
            return math.inf
        return self.residual / self.tolerance if self.residual else 0.0


def comparisons(
    fn: Function,
    inputs: Tensor | Sequence[Any],
    eps: float = STEP,
    atol: float = 0.0,
    rtol: float = RTOL,
    *,
    seed: int = 0,
    names: Sequence[str] | None = None,
    against: Function | None = None,
    entrywise: int = ENTRYWISE,
) -> Iterator[Comparison]:
    """Every number that `gradcheck` compares; the differences are those of `against`, if given, in place of `fn`."""
    if not 0 < eps < math.inf:
        raise ValueError(f"gradcheck: expected a positive eps, the first step over the input's scale; got {eps}")
    arguments = _arguments(inputs)
    checked = _checked(arguments)
    rng = np.random.default_rng(seed)
    xs = _copies(arguments)
    for i in checked:
        xs[i].requires_grad_()
    with enable_grad():
        outputs = _outputs(fn, xs)
    labels, weights = _upstream(rng, outputs)
    _require_sanity(fn, arguments, outputs, checked)
    gradients = _gradients(outputs, weights, [xs[i] for i in checked])
    size = size_of(weights, _flat(outputs))
    for i, gradient in zip(checked, gradients, strict=True):
        x = _host(arguments[i])

        def along(direction: Array, i: int = i, x: Array = x) -> Callable[[float], Array]:
            def f(t: float) -> Array:
                moved = _copies(arguments)
                moved[i] = _tensor_like(moved[i], x + t * direction)
                with no_grad():
                    return _flat(_outputs(against or fn, moved))

            return f

        if not x.size or not len(weights):
            continue
        noise = measure_noise(along(_unit(_signed(rng, x.shape))), weights, STEP * _norm(x))
        for where, direction, scale in _directions(rng, x, entrywise):
            numeric = differentiate(along(direction), weights, eps * scale, noise)
            with np.errstate(invalid="ignore"):  # infinite gradients: they fail the comparison
                analytic = gradient @ direction.reshape(-1)
            for k, label in enumerate(labels):
                a, n, error, step = (float(v[k]) for v in (analytic, *numeric))
                larger = max(abs(a), abs(n))
                certain = UNSETTLED * max(larger, float(size[k]) / scale), VANISHING / scale
                yield Comparison(
                    input=names[i] if names else f"input {i}",
                    where=where,
                    output=label,
                    analytic=a,
                    numeric=n,
                    error=error,
                    step=step,
                    tolerance=max(atol + rtol * larger, TRUST * error),
                    settled=error <= max(atol, *certain),
                )


def second_order(
    fn: Function, inputs: Tensor | Sequence[Any], grad_outputs: Tensor | Sequence[Tensor] | None = None, seed: int = 0
) -> tuple[Function, list[Any], list[str]]:
    """(x, g) ↦ Jᵀg with its arguments and their names: what `gradcheck` is to be run on for the second order."""
    arguments = _arguments(inputs)
    checked = _checked(arguments)
    with no_grad():
        outputs = _outputs(fn, _copies(arguments))
    if grad_outputs is None:
        rng = np.random.default_rng(seed)
        given = [_tensor_like(y, _signed(rng, y.shape)) for y in outputs]
    else:
        given = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
        if [g.shape for g in given] != [y.shape for y in outputs]:
            raise ValueError(
                f"gradgradcheck: expected grad_outputs of shapes {[y.shape for y in outputs]}; "
                f"got {[g.shape for g in given]}"
            )
    upstream = [g.detach().requires_grad_() for g in given]
    names = [f"input {i}" for i in range(len(arguments))] + [f"upstream gradient {j}" for j in range(len(upstream))]
    return gradient_of(fn, checked, len(arguments)), [*arguments, *upstream], names


def gradient_of(fn: Function, checked: Sequence[int], count: int) -> Function:
    """The function (x, g) ↦ Jᵀg of `fn`, for its inputs `checked` out of `count`; itself differentiable."""

    def first(*arguments: Any) -> list[Tensor]:
        record = is_grad_enabled()
        xs = list(arguments[:count])
        if not record:
            for i in checked:
                xs[i] = xs[i].detach().requires_grad_()
        with enable_grad():
            pairs = [(y, g) for y, g in zip(_outputs(fn, xs), arguments[count:], strict=True) if y.requires_grad]
            leaves = [xs[i] for i in checked]
            found = _vjp(pairs, leaves, record)
            return [_zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    return first


# What is compared ----------------------------------------------------------------------------------------------------


def _directions(rng: np.random.Generator, x: Array, entrywise: int) -> Iterator[tuple[str, Array, float]]:
    """(name, unit vector, scale of x along it)."""
    if x.size > entrywise:
        for j in range(DIRECTIONS):
            yield f"random direction {j}", _unit(_signed(rng, x.shape)), _norm(x)
        return
    typical = _norm(x) / math.sqrt(x.size)
    for index in np.ndindex(x.shape):
        direction = np.zeros(x.shape)
        direction[index] = 1.0
        yield f"entry {list(index)}", direction, max(abs(float(x[index])), typical)


def _upstream(rng: np.random.Generator, outputs: Sequence[Tensor]) -> tuple[list[str], Array]:
    """Random upstream gradients, a row each over all outputs laid end to end, and what to call them."""
    ends = np.cumsum([0, *(y.numel() for y in outputs)])
    labels, rows = [], []
    for j, y in enumerate(outputs):
        for _ in range(min(y.numel(), UPSTREAM)):
            row = np.zeros(ends[-1])
            row[ends[j] : ends[j + 1]] = _signed(rng, (y.numel(),))
            labels.append(f"output {j}")
            rows.append(row)
    if len(outputs) > 1 and rows:
        labels.append("all outputs")
        rows.append(_signed(rng, (int(ends[-1]),)))
    return labels, np.reshape(rows, (len(rows), int(ends[-1])))


def _gradients(outputs: Sequence[Tensor], weights: Array, leaves: Sequence[Tensor]) -> list[Array]:
    """For each leaf x the rows Jᵀg, flattened, one for each row g of `weights`."""
    found: list[list[Array]] = [[] for _ in leaves]
    ends = np.cumsum([0, *(y.numel() for y in outputs)])
    for row in weights:
        pairs = []
        for y, start, end in zip(outputs, ends[:-1], ends[1:], strict=True):
            if y.requires_grad and row[start:end].any():
                pairs.append((y, _tensor_like(y, row[start:end].reshape(y.shape))))
        for rows, x, g in zip(found, leaves, _vjp(pairs, leaves, False, retain=True), strict=True):
            rows.append(np.zeros(x.numel()) if g is None else _host(g).reshape(-1))
    return [np.reshape(rows, (len(weights), x.numel())) for rows, x in zip(found, leaves, strict=True)]


def _vjp(
    pairs: Sequence[tuple[Tensor, Tensor]], leaves: Sequence[Tensor], record: bool, retain: bool | None = None
) -> Sequence[Tensor | None]:
    if not pairs:
        return [None] * len(leaves)
    ys, gs = zip(*pairs, strict=True)
    return grad(ys, leaves, gs, retain_graph=retain, create_graph=record, allow_unused=True)


# What may be compared ------------------------------------------------------------------------------------------------


def _arguments(inputs: Tensor | Sequence[Any]) -> list[Any]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def _checked(arguments: Sequence[Any]) -> list[int]:
    """Which arguments require grad; they must be float64."""
    checked = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: no input requires grad. Set requires_grad=True on the tensors to check.")
    for i in checked:
        if arguments[i].dtype != float64:
            raise TypeError(
                f"gradcheck: expected float64 inputs; input {i}, of shape {arguments[i].shape}, is "
                f"{arguments[i].dtype}, whose rounding would hide errors. Convert it with x.detach().to(mg.float64)."
            )
    return checked


def _outputs(fn: Function, arguments: Sequence[Any]) -> list[Tensor]:
    """The differentiable outputs of a call: those of floats, which must be float64."""
    made = fn(*arguments)
    outputs = [made] if isinstance(made, Tensor) else list(made)
    for j, y in enumerate(outputs):
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: expected fn to return tensors; output {j} is a {type(y).__name__}")
        if y.dtype.kind == "f" and y.dtype != float64:
            raise TypeError(
                f"gradcheck: expected fn to compute in float64; its output {j} is {y.dtype}. Convert what it uses "
                f"(a module with module.to(mg.float64))."
            )
    return [y for y in outputs if y.dtype == float64]


def _require_sanity(fn: Function, arguments: Sequence[Any], outputs: Sequence[Tensor], checked: Sequence[int]) -> None:
    """fn uses its arguments, is finite here, and gives the same twice, recorded or not."""
    pairs = [(y, _zeros_like(y)) for y in outputs if y.requires_grad]
    for i, g in zip(checked, _vjp(pairs, [arguments[i] for i in checked], False, retain=True), strict=True):
        if g is not None:
            raise ValueError(
                f"gradcheck: fn uses input {i} from outside and not as its argument, so that it cannot be varied. "
                f"Write it as a function of its arguments."
            )
    first = _flat(outputs)
    if not np.all(np.isfinite(first)):
        raise GradcheckError("gradcheck: fn is not finite at these inputs: there is no derivative to compare with.")
    with no_grad():
        again = [_flat(_outputs(fn, _copies(arguments))) for _ in range(2)]
    for second in again:
        off = np.max(abs(first - second), initial=0.0) if second.shape == first.shape else math.inf
        if off > 1e4 * EPS * np.max(abs(first), initial=0.0):
            raise GradcheckError(
                f"gradcheck: fn is not deterministic: two calls with the same inputs differ by {off:.1e}. Freeze "
                f"what it draws or updates (a seed set inside fn, eval(), fixed u and v)."
            )


# Tensors and arrays --------------------------------------------------------------------------------------------------


def _copies(arguments: Sequence[Any]) -> list[Any]:
    return [Tensor(kernels(x.device).copy(x.data), x.device) if isinstance(x, Tensor) else x for x in arguments]


def _tensor_like(x: Tensor, values: Array) -> Tensor:
    return Tensor(kernels(x.device).from_host(values), x.device)


def _zeros_like(x: Tensor) -> Tensor:
    return _tensor_like(x, np.zeros(x.shape))


def _host(x: Tensor) -> Array:
    return np.array(x.detach().numpy())


def _flat(outputs: Sequence[Tensor]) -> Array:
    return np.concatenate([np.zeros(0), *(_host(y).reshape(-1) for y in outputs)])


def _signed(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers of either sign and not near zero, so that no entry goes unseen."""
    return rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x)


def _norm(x: Array) -> float:
    """‖x‖, safe for entries whose squares would overflow or vanish; √n for a zero input of n elements."""
    largest = float(np.max(abs(x), initial=0.0))
    if not largest or not math.isfinite(largest):
        return math.sqrt(x.size)
    return largest * float(np.linalg.norm(x / largest))
