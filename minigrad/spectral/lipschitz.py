"""Bounds of a network's Lipschitz constant in the 2-norm: from its layers above, from its Jacobians at data below."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minigrad import nn
from minigrad._mode import enable_grad
from minigrad._op import Node
from minigrad._tensor import Tensor
from minigrad.autograd import grad
from minigrad.nn.module import Module
from minigrad.ops.conv import extents
from minigrad.ops.creation import tensor
from minigrad.spectral.linalg import leading_singular_values
from minigrad.spectral.oracles import Array
from minigrad.spectral.table import Column, Row, Table
from minigrad.spectral.weights import host, undisturbed


class LipschitzBounds(NamedTuple):
    """lower ≤ Lipschitz constant ≤ upper; the factors of `upper`; which example of x attains `lower`."""

    lower: float
    upper: float
    layers: Table
    example: int

    def __str__(self) -> str:
        return str(self.layers)

    def _repr_html_(self) -> str:
        return self.layers._repr_html_()


def lipschitz_bounds(model: Module, x: Tensor) -> LipschitzBounds:
    """Bounds of the Lipschitz constant, in the 2-norm, of a model in evaluation mode: `lower`, `upper`, `layers`.

    Upper: the product of the constants of its layers, (7), in the order of the calls in model(x); a layer that is
    called twice counts twice. `layers` is a Table of them, whose rows read as dicts: `layer`, `kind`, `shape` of its
    input, `constant`, `how` it is known. Those are exact but for rounding: σ₁ of the weight that is used, by an SVD in
    float64 (and not its estimate σ̂, which may be too small); the norm of a convolution as a map of images of the size
    seen, and not that of its reshaped weight; and see `CONSTANTS`.

    Lower: the largest ‖J‖₂ over the examples of x, J being the Jacobian of the network at the example, in the dtype of
    the model; `example` is the index of one that attains it. Where the network has no kink there it is a true bound.

    x: a batch, (N, …), floating. The layers must be ones of `mg.nn` in `CONSTANTS` (an Embedding, of integers, is not),
    and lead in one chain from x to the output, with N examples all along; reshaping between them is fine. Sums,
    products and functions between layers, residual branches say, cannot be seen from them, and are refused. Nothing
    changes.

    ValueError: a layer that is not known or has no constant, one with a forward hook or called with its input by name,
    and whatever is not a chain, all with the layer's name; an x without examples, a model(x) that is not finite.
    TypeError: an x that is not floating.

    Source: Miyato et al. 2018, arXiv 1802.05957, (7). Convolutions: Gouk et al., arXiv 1804.04368.

    >>> import minigrad as mg
    >>> _ = mg.manual_seed(0)
    >>> sn = mg.nn.utils.spectral_norm
    >>> model = mg.nn.Sequential(sn(mg.nn.Linear(8, 16)), mg.nn.LeakyReLU(0.1), sn(mg.nn.Linear(16, 4)))
    >>> bounds = mg.spectral.lipschitz_bounds(model, mg.randn(10, 8))
    >>> print(f"{bounds.lower:.3f} ≤ Lipschitz constant ≤ {bounds.upper:.3f}")
    0.597 ≤ Lipschitz constant ≤ 1.001
    """
    if x.dtype.kind != "f":
        raise TypeError(
            f"lipschitz_bounds: expected a floating x; got {x.dtype}. Convert it with to(mg.float32). Of a model that "
            f"begins with an Embedding, take what follows it, and the rows that it gives as x."
        )
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"lipschitz_bounds: expected a batch (N, …) with examples; got shape {x.shape}")
    start = x.detach().clone().requires_grad_()
    with enable_grad(), undisturbed(model):
        calls, out = _traced(model.eval(), start)
        _check_chain(calls, start, out)
        if not np.isfinite(host(out)).all():
            raise ValueError("lipschitz_bounds: expected a finite model(x); got NaN or infinity in it")
        rows = [_row(call) for call in calls]
        norms = np.linalg.norm(_jacobians(out, start), 2, axis=(1, 2))
    columns = [
        Column("layer", "layer", text=True),
        Column("kind", "kind", text=True),
        Column("shape", "input", lambda row: "×".join(map(str, row["shape"])), text=True),
        Column("constant", "constant", ".6g"),
        Column("how", "how", text=True),
    ]
    lower, upper, example = float(norms.max()), math.prod(row["constant"] for row in rows), int(norms.argmax())
    note = f"{lower:.6g} ≤ Lipschitz constant ≤ {upper:.6g}: largest ‖J‖₂ over the examples; product of the layers."
    layers = Table(rows, columns, f"Lipschitz constants of the layers of {type(model).__name__}", note)
    return LipschitzBounds(lower, upper, layers, example)


# The chain of calls ---------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call of a layer."""

    path: str
    module: Any
    input: Tensor
    output: Tensor

    @property
    def name(self) -> str:
        """For errors."""
        return f"{type(self.module).__name__} {self.path!r}" if self.path else type(self.module).__name__


def _traced(model: Module, x: Tensor) -> tuple[list[Call], Tensor]:
    """The calls of the modules that hold no others, in their order, and what the model returns."""
    calls: list[Call] = []
    handles = []
    for path, module in model.named_modules():
        if "parametrizations" in path.split(".") or set(module._modules) - {"parametrizations"}:
            continue
        hooked = bool(module._forward_hooks)

        def record(module: Module, args: tuple[Any, ...], out: Any, path: str = path, hooked: bool = hooked) -> None:
            call = Call(path, module, args[0] if args else out, out)
            if type(module) not in CONSTANTS:
                known = ", ".join(kind.__name__ for kind in CONSTANTS)
                raise ValueError(f"lipschitz_bounds: no constant is known for {call.name}; there is one for {known}")
            if hooked:
                raise ValueError(f"lipschitz_bounds: {call.name} has a forward hook, which may change what it gives")
            if not args:
                raise ValueError(
                    f"lipschitz_bounds: {call.name} is called with its input by name, which hooks are not told. "
                    f"Give it as the first argument."
                )
            calls.append(call)

        handles.append(module.register_forward_hook(record))
    try:
        out = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(out, Tensor):
        raise ValueError(f"lipschitz_bounds: expected the model to return a tensor; got {type(out).__name__}")
    return calls, out


def _check_chain(calls: list[Call], x: Tensor, out: Tensor) -> None:
    """ValueError unless each call's input is the output of the call before, but for its shape."""
    before, giver = x, "x"
    for given, taker, after in [*((c.input, f"the input of {c.name}", c) for c in calls), (out, "the output", None)]:
        source = _through_shapes(given.node or given, before.node or before)
        if source is not None:
            raise ValueError(
                f"lipschitz_bounds: not a chain of layers: {taker} comes from {source}, and is not what {giver} gives. "
                f"Make what is between them layers of mg.nn; branches that join again are not bounded by a product."
            )
        if given.shape[:1] != x.shape[:1]:
            raise ValueError(f"lipschitz_bounds: expected {taker} to be {x.shape[0]} examples; got shape {given.shape}")
        if after is not None:
            before, giver = after.output, after.name


def _through_shapes(edge: Node | Tensor, wanted: Node | Tensor) -> str | None:
    """None if a value is another one in a new shape; else what it comes from."""
    at: Node | Tensor | None = edge
    while at is not wanted:
        if not isinstance(at, Node):
            return "elsewhere"
        if at.op.name not in ("reshape", "contiguous", "clone"):
            return f"op {at.op.name!r}"
        at = at.edges[0]
    return None


def _jacobians(out: Tensor, x: Tensor) -> Array:
    """∂out/∂x of each example, (N, outputs, inputs): one walk back per output serves all examples."""
    n, outputs = out.shape[0], out.numel() // out.shape[0]
    made = np.empty((n, outputs, x.numel() // n))
    for j in range(outputs):
        chosen = np.zeros((n, outputs))
        chosen[:, j] = 1.0
        upstream = tensor(chosen.reshape(out.shape), dtype=out.dtype, device=out.device)
        (found,) = grad(out, [x], upstream, retain_graph=True)
        assert found is not None
        made[:, j] = host(found).reshape(n, -1)
    return made


# The constants of layers ----------------------------------------------------------------------------------------------

Constant = tuple[float, str]


def _row(call: Call) -> Row:
    constant, how = CONSTANTS[type(call.module)](call)
    kind = type(call.module).__name__
    return {"layer": call.path, "kind": kind, "shape": call.input.shape, "constant": constant, "how": how}


def _linear(call: Call) -> Constant:
    return float(np.linalg.norm(host(call.module.weight), 2)), "σ₁, by SVD"


def _convolution(call: Call) -> Constant:
    space = call.input.shape[2:]
    if len(space) != call.module.dims:
        raise ValueError(
            f"lipschitz_bounds: expected a batch (N, C, …) as the input of {call.name}; got shape {call.input.shape}"
        )
    sigma = leading_singular_values(call.module.linear_map(space), call.module.weight, 1)
    return float(sigma[0]), f"norm of the map of {'×'.join(map(str, space))} images"


def _batch_norm(call: Call) -> Constant:
    layer: Any = call.module
    if layer.running_var is None:
        raise ValueError(
            f"lipschitz_bounds: {call.name} has no running statistics, so that examples depend on one another"
        )
    scale = 1 / np.sqrt(host(layer.running_var) + layer.eps)
    if layer.weight is not None:
        scale = scale * np.abs(host(layer.weight))
    return float(scale.max()), "max |γ|/√(var + ε)"


def _windows(call: Call) -> Iterator[tuple[Array, int]]:
    """For both axes: which inputs are in which window, (windows, inputs), and the extent of the kernel."""
    settings = [extents(call.name, x, getattr(call.module, x), 2, 0) for x in ("kernel_size", "stride", "padding")]
    for extent, kernel, stride, padding in zip(call.input.shape[-2:], *settings, strict=True):
        starts = np.arange(0, extent + 2 * padding - kernel + 1, stride)[:, None] - padding
        places = np.arange(extent)
        yield ((places >= starts) & (places < starts + kernel)).astype(np.float64), kernel


def _max_pool(call: Call) -> Constant:
    most = [inside.sum(0).max() for inside, _ in _windows(call)]
    return math.sqrt(most[0] * most[1]), "√(windows that share an input)"


def _avg_pool(call: Call) -> Constant:
    padded = call.module.count_include_pad
    counts = [(inside, kernel if padded else inside.sum(1, keepdims=True)) for inside, kernel in _windows(call)]
    return math.prod(float(np.linalg.norm(inside / n, 2)) for inside, n in counts), "σ₁ of rows × σ₁ of columns"


def _upsample(call: Call) -> Constant:
    n = call.input.ndim - 2
    return math.sqrt(math.prod(extents("Upsample", "scale_factor", call.module.scale_factor, n, 1))), "√(copies)"


def _always(value: Callable[[Any], float], how: str) -> Callable[[Call], Constant]:
    """A constant that knows no shapes."""
    return lambda call: (value(call.module), how)


#: GELU′ = Φ(x) + x φ(x) is largest where GELU″ = φ(x)(2 − x²) = 0, at x = √2: (1 + erf 1)/2 + 1/(e√π).
GELU_SLOPE = (1 + math.erf(1)) / 2 + 1 / (math.e * math.sqrt(math.pi))
#: SiLU′ is largest where SiLU″ = 0: x tanh(x/2) = 2. With y = x/2 = coth y (OEIS A085984) it is (1 + y)/2 there.
SILU_SLOPE = (1 + 1.19967864025773383) / 2

#: The layers that are known: the Lipschitz constant of each in a call, and how it comes about. Activations
#: have the largest |derivative|. A window's maximum and mean: |max a − max b| ≤ max |a − b|, so that the squares sum to
#: at most that of each input times the windows that it is in, which is attained; the means of a plane are the Kronecker
#: product of those of its rows and its columns.
CONSTANTS: dict[type[Module], Callable[[Call], Constant]] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    nn.ReLU: _always(lambda layer: 1.0, "slope ≤ 1"),
    nn.LeakyReLU: _always(lambda layer: max(1.0, abs(layer.negative_slope)), "max(1, |slope|)"),
    nn.ELU: _always(lambda layer: max(1.0, abs(layer.alpha)), "max(1, |α|)"),
    nn.Tanh: _always(lambda layer: 1.0, "slope at 0"),
    nn.Sigmoid: _always(lambda layer: 0.25, "slope at 0"),
    nn.Softplus: _always(lambda layer: 1.0, "slope at ∞"),
    nn.GELU: _always(lambda layer: GELU_SLOPE, "slope at √2"),
    nn.SiLU: _always(lambda layer: SILU_SLOPE, "slope at 2.3994"),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), _always(lambda layer: 1.0, "the same numbers")),
    nn.Dropout: _always(lambda layer: 1.0, "the identity in evaluation"),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.Upsample: _upsample,
}
