"""Each op in ONNX's words: one table from the name of an op to the nodes that compute it, opset 20.

A form takes what the op's forward takes, with names of the graph in the place of arrays; the node that it makes last is
the result.
Source: https://onnx.ai/onnx/operators (the ops), https://onnx.ai/onnx/repo-docs/IR.html (the file).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad import _dtypes
from minigrad._trace import Affine, Constant, Program, Repeated, Step, Value
from minigrad.ops.conv import Extents, Layout

OPSET = 20
IR_VERSION = 9  # the format of the time of opset 20: what reads the one reads the other
_END = np.iinfo(np.int64).max  # clamped to the end of the axis

FORMS: dict[str, Callable[..., str]] = {}


class Term(str):
    """A name in the graph, with what is known of its tensor."""

    __slots__ = ("dtype", "shape")

    shape: tuple[Any, ...]
    dtype: Any

    def __new__(cls, name: str, shape: tuple[Any, ...], dtype: Any) -> Term:
        term = super().__new__(cls, name)
        term.shape, term.dtype = shape, dtype
        return term


class Graph:
    """Nodes and initializers in the making; `onnx` is the package, `outputs` the names of what the program returns."""

    def __init__(self, onnx: Any, program: Program, outputs: Sequence[str], who: str):
        self.onnx = onnx
        self.who = who
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.input = program.inputs[0].name
        self.taken = {x.name for x in (*program.inputs, *(step.out for step in program.steps))} | set(outputs)
        self._batch = ""
        self._step = ""  # the step whose nodes are being made
        for step in program.steps:
            self._add(step)
        for name, value in zip(outputs, program.outputs, strict=True):
            self.node("Identity", value.name)
            self._rename(name)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        name = f"{self._step}/{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = None, name: str | None = None) -> str:
        """An initializer; one that is there already, if it is the same under the same name."""
        array = np.asarray(value, dtype)
        base = name = name or f"{self._step}/constant_{len(self.initializers)}"
        while name in self.initializers or name in self.taken:
            if name in self.initializers and np.array_equal(self.initializers[name], array):
                return name
            name = f"{base}_{len(self.initializers)}"
        self.initializers[name] = array
        return name

    def extents(self, sizes: Sequence[Any]) -> str:
        """A vector of int64, computed from the batch size where an entry is Affine."""
        if not any(isinstance(n, Affine) for n in sizes):
            return self.constant(sizes, np.int64)
        if not self._batch:
            self._batch = self.node("Shape", self.input, start=0, end=1)
        affine = [n if isinstance(n, Affine) else Affine(0, n) for n in sizes]
        product = self.node("Mul", self._batch, self.constant([n.slope for n in affine], np.int64))
        return self.node("Add", product, self.constant([n.intercept for n in affine], np.int64))

    def cast(self, x: str, dtype: Any) -> str:
        if isinstance(x, Term) and x.dtype == dtype:
            return x
        return self.node("Cast", x, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def refuse(self, what: str) -> Any:
        raise ValueError(f"{self.who}: op {self._step}: {what}")

    def _add(self, step: Step) -> None:
        self._step = step.out.name
        if step.op not in _FLEXIBLE and _varies(step.attributes):
            self.refuse(f"{step.attributes} depends on the batch size, which ONNX cannot say here. Use constant sizes.")
        number = [x.dtype for x in step.inputs if isinstance(x, Value | Constant | Repeated)][-1]
        FORMS[step.op](self, *(self._term(x, number) for x in step.inputs), **step.attributes)
        self._rename(self._step)

    def _rename(self, name: str) -> None:
        """Give the last node and its output a name."""
        self.nodes[-1].output[0] = self.nodes[-1].name = name

    def _term(self, x: Any, number: Any) -> Term | str:
        """An input of a step by its name; `number`: the dtype of one that is no tensor."""
        if x is None:
            return ""
        if isinstance(x, Value):
            return Term(*x)
        if isinstance(x, Constant):
            array = x.tensor.detach().to(device="cpu").numpy()
            return Term(self.constant(array, name=x.name), array.shape, array.dtype)
        if isinstance(x, Repeated):
            return Term(self.node("Expand", self.constant(x.array), self.extents(x.shape)), x.shape, x.dtype)
        name = self.cast(self.node("Squeeze", self.extents([x])), number) if isinstance(x, Affine) else ""
        return Term(name or self.constant(x, number), (), number)


def _varies(attribute: Any) -> bool:
    """Is there an Affine anywhere in it?"""
    if isinstance(attribute, dict):
        attribute = tuple(attribute.values())
    return isinstance(attribute, Affine) or (isinstance(attribute, tuple) and any(map(_varies, attribute)))


def _form(rule: Callable[..., str]) -> Callable[..., str]:
    FORMS[rule.__name__.strip("_")] = rule
    return rule


# One node each -------------------------------------------------------------------------------------------------------

for _op, _kind in {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow",
    "neg": "Neg", "abs": "Abs", "sign": "Sign", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos",
    "reciprocal": "Reciprocal", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
    "ge": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or", "logical_not": "Not", "isnan": "IsNaN",
    "where": "Where", "maximum": "Max", "minimum": "Min", "matmul": "MatMul",
    "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "softplus": "Softplus", "gelu": "Gelu",
}.items():  # fmt: skip
    FORMS[_op] = lambda g, *xs, _kind=_kind, parameters=(): g.node(_kind, *xs)


# Several nodes, or attributes ----------------------------------------------------------------------------------------


@_form
def _rsqrt(g: Graph, x: str) -> str:
    return g.node("Reciprocal", g.node("Sqrt", x))


@_form
def _square(g: Graph, x: str) -> str:
    return g.node("Mul", x, x)


@_form
def _log1p(g: Graph, x: Term) -> str:
    """log(u) x / (u − 1) for u = 1 + x, where the rounding of u cancels; x where u is 1."""
    rounded = g.node("Sub", u := g.node("Add", x, one := g.constant(1, x.dtype)), one)
    scale = g.node("Where", g.node("Equal", rounded, x), one, g.node("Div", x, rounded))
    return g.node("Where", g.node("Equal", u, one), x, g.node("Mul", g.node("Log", u), scale))


@_form
def _expm1(g: Graph, x: Term) -> str:
    """tanh(x/2) (eˣ + 1), which loses nothing near 0."""
    half = g.node("Tanh", g.node("Mul", x, g.constant(0.5, x.dtype)))
    return g.node("Mul", half, g.node("Add", g.node("Exp", x), g.constant(1, x.dtype)))


@_form
def _ne(g: Graph, x: str, y: str) -> str:
    return g.node("Not", g.node("Equal", x, y))


@_form
def _isfinite(g: Graph, x: str) -> str:
    return g.node("Not", g.node("Or", g.node("IsNaN", x), g.node("IsInf", x)))


@_form
def _clip(g: Graph, x: Term, *, low: Any, high: Any) -> str:
    return g.node("Clip", x, *("" if bound is None else g.constant(bound, x.dtype) for bound in (low, high)))


@_form
def _cast(g: Graph, x: str, *, dtype: Any, source: Any) -> str:
    return g.cast(x, dtype)


@_form
def _silu(g: Graph, x: str, *, parameters: tuple[float, ...]) -> str:
    return g.node("Mul", x, g.node("Sigmoid", x))


@_form
def _leaky_relu(g: Graph, x: str, *, parameters: tuple[float, ...]) -> str:
    return g.node("LeakyRelu", x, alpha=parameters[0])


@_form
def _elu(g: Graph, x: str, *, parameters: tuple[float, ...]) -> str:
    return g.node("Elu", x, alpha=parameters[0])


# Shapes --------------------------------------------------------------------------------------------------------------

_FLEXIBLE = {"reshape", "expand", "slice"}  # whose sizes may depend on the batch size


@_form
def _reshape(g: Graph, x: str, *, shape: tuple[Any, ...]) -> str:
    varying = [n for n in shape if isinstance(n, Affine)]
    inferred = len(varying) == 1 and 0 not in shape
    extents = g.extents([-1 if n in varying else n for n in shape] if inferred else shape)
    return g.node("Reshape", x, extents, allowzero=not inferred)  # else 0 means the input's own extent


@_form
def _expand(g: Graph, x: str, *, shape: tuple[Any, ...]) -> str:
    return g.node("Expand", x, g.extents(shape))


@_form
def _permute(g: Graph, x: str, *, dims: Extents) -> str:
    return g.node("Transpose", x, perm=dims)


@_form
def _flip(g: Graph, x: str, *, dims: Extents) -> str:
    n = len(dims)
    return g.node("Slice", x, *map(g.extents, ([-1] * n, [-_END] * n, dims, [-1] * n)))


@_form
def _slice(g: Graph, x: Term, *, index: tuple[Any, ...]) -> str:
    parts = list(index)
    full = [slice(None)] * (len(x.shape) - sum(p is not None and p is not Ellipsis for p in parts))
    dots = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    parts[dots : dots + 1] = full
    cuts: list[tuple[Any, ...]] = []
    gone: list[int] = []
    new: list[int] = []
    axis = 0
    for part in parts:
        if part is None:
            new.append(axis - len(gone) + len(new))
            continue
        if isinstance(part, slice):
            step = part.step or 1
            first, last = (0, _END) if step > 0 else (_END, -_END)
            cut = first if part.start is None else part.start, last if part.stop is None else part.stop, axis, step
            cuts += [cut] * (part != slice(None))
        elif isinstance(part, int):
            cuts.append((part, part + 1 or _END, axis, 1))
            gone.append(axis)
        else:
            g.refuse(f"an index of {part}. Count from the end, with a negative one.")
        axis += 1
    out: str = x
    if cuts:
        out = g.node("Slice", out, *map(g.extents, zip(*cuts, strict=True)))
    if gone:
        out = g.node("Squeeze", out, g.extents(gone))
    return g.node("Unsqueeze", out, g.extents(new)) if new else out


@_form
def _pad(g: Graph, x: Term, *, widths: tuple[tuple[int, int], ...], value: float) -> str:
    before, after = zip(*widths, strict=True)
    return g.node("Pad", x, g.extents(before + after), g.constant(value, x.dtype))


@_form
def _cat(g: Graph, *xs: str, dim: int) -> str:
    return g.node("Concat", *xs, axis=dim)


@_form
def _clone(g: Graph, x: str) -> str:
    return g.node("Identity", x)


FORMS["contiguous"] = _clone


# Reductions ----------------------------------------------------------------------------------------------------------


def _reduction(kind: str) -> Callable[..., str]:
    def form(g: Graph, x: Term, *, dims: Extents, keepdim: bool) -> str:
        whole = g.cast(x, _dtypes.int64) if x.dtype == _dtypes.bool_ else x
        return g.node(kind, whole, g.extents(dims), keepdims=keepdim, noop_with_empty_axes=1)

    return form


for _op, _kind in {"sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"}.items():
    FORMS[_op] = _reduction(_kind)


@_form
def _norm(g: Graph, x: Term, *, dims: Extents, keepdim: bool) -> str:
    """In float64 for float32, where the squares of 1e-30 and 1e+30 would be 0 and infinite."""
    wide = Term(g.cast(x, _dtypes.float64), x.shape, _dtypes.float64) if x.dtype == _dtypes.float32 else x
    return g.cast(_reduction("ReduceL2")(g, wide, dims=dims, keepdim=keepdim), x.dtype)


for _op, _kind in {"any": "amax", "all": "amin"}.items():
    FORMS[_op] = lambda g, x, _kind=_kind, **how: g.cast(FORMS[_kind](g, x, **how), _dtypes.bool_)


for _op, _kind in {"argmax": "ArgMax", "argmin": "ArgMin"}.items():
    FORMS[_op] = lambda g, x, dim, keepdim, _kind=_kind: g.node(_kind, x, axis=dim, keepdims=keepdim)


@_form
def _cumsum(g: Graph, x: str, *, dim: int) -> str:
    return g.node("CumSum", x, g.constant(dim, np.int64))


@_form
def _logsumexp(g: Graph, x: str, *, dim: int, keepdim: bool) -> str:
    return g.node("ReduceLogSumExp", x, g.extents([dim]), keepdims=keepdim)


@_form
def _softmax(g: Graph, x: str, *, dim: int) -> str:
    return g.node("Softmax", x, axis=dim)


@_form
def _log_softmax(g: Graph, x: str, *, dim: int) -> str:
    return g.node("LogSoftmax", x, axis=dim)


# Indices -------------------------------------------------------------------------------------------------------------


@_form
def _index_select(g: Graph, x: str, index: str, *, dim: int) -> str:
    return g.node("Gather", x, index, axis=dim)


@_form
def _gather(g: Graph, x: str, index: str, *, dim: int) -> str:
    return g.node("GatherElements", x, index, axis=dim)


@_form
def _take(g: Graph, x: str, places: str) -> str:
    return g.node("Gather", g.node("Reshape", x, g.extents([-1])), places)


# Layers --------------------------------------------------------------------------------------------------------------


@_form
def _linear(g: Graph, x: Term, weight: str, bias: str) -> str:
    if len(x.shape) == 2:
        return g.node("Gemm", x, weight, *[bias] * bool(bias), transB=1)
    product = g.node("MatMul", x, g.node("Transpose", weight, perm=(1, 0)))
    return g.node("Add", product, bias) if bias else product


def _filter(w: Term, layout: Layout) -> dict[str, Any]:
    return {
        "kernel_shape": w.shape[2:],
        "strides": layout.stride,
        "pads": layout.padding * 2,
        "dilations": layout.dilation,
        "group": layout.groups,
    }


@_form
def _conv(g: Graph, x: str, w: Term, b: str, *, layout: Layout) -> str:
    return g.node("Conv", x, w, *[b] * bool(b), **_filter(w, layout))


@_form
def _conv_input_grad(g: Graph, y: Term, w: Term, *, input_shape: Extents, layout: Layout) -> str:
    every = zip(input_shape, y.shape[2:], w.shape[2:], *layout[:3], strict=True)
    extra = [s - (n - 1) * t + 2 * p - d * (k - 1) - 1 for s, n, k, t, p, d in every]
    return g.node("ConvTranspose", y, w, **_filter(w, layout), output_padding=extra)


@_form
def _batch_norm(g: Graph, x: Term, weight: Term, bias: Term, *, eps: float) -> str:
    """With the statistics of the batch."""
    dims = g.extents([0, *range(2, len(x.shape))])
    deviation = g.node("Sub", x, g.node("ReduceMean", x, dims))
    variance = g.node("ReduceMean", g.node("Mul", deviation, deviation), dims)
    scale = g.node("Sqrt", g.node("Add", variance, g.constant(eps, x.dtype)))
    return _channel_affine(g, Term(g.node("Div", deviation, scale), x.shape, x.dtype), weight, "", bias)


@_form
def _channel_affine(g: Graph, x: Term, scale: str, mean: str, bias: str) -> str:
    dtype = np.promote_types(x.dtype, np.float32)
    out, column = g.cast(x, dtype), g.extents([-1, *[1] * (len(x.shape) - 2)])
    for kind, numbers in (("Sub", mean), ("Mul", scale), ("Add", bias)):
        out = g.node(kind, out, g.node("Reshape", g.cast(numbers, dtype), column)) if numbers else out
    return out if dtype == x.dtype else g.cast(out, x.dtype)


@_form
def _max_pool(g: Graph, x: str, *, windows: tuple[Extents, Extents, Extents]) -> str:
    kernel, stride, padding = windows
    return g.node("MaxPool", x, kernel_shape=kernel, strides=stride, pads=padding * 2)


@_form
def _avg_pool(g: Graph, x: str, *, windows: tuple[Any, ...]) -> str:
    kernel, stride, padding, count = windows
    return g.node("AveragePool", x, kernel_shape=kernel, strides=stride, pads=padding * 2, count_include_pad=int(count))


@_form
def _upsample_nearest(g: Graph, x: str, *, scale: Extents) -> str:
    scales = g.constant((1, 1, *scale), np.float32)
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return g.node("Resize", x, "", scales, mode="nearest", **how)
