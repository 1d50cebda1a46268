"""Reverse-mode differentiation: what an op is, what it records, and the walk back.

An `Op` is a forward on raw arrays and one rule per input, a function on Tensors made of public ops. The walk runs those
rules, recorded themselves iff `create_graph`: derivatives of every order are the same code.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ContextDecorator
from typing import Any

import numpy as np

from minigrad._tensor import Tensor, method
from minigrad.device import kernels

Rule = Callable[..., Tensor | None]
Saved = dict[str, Any]
_serial_numbers = itertools.count()


class _Mode(threading.local):
    """Per thread: are ops recorded, and is every result searched for NaN?"""

    grad = True
    anomaly = False


_mode = _Mode()


class _Switch(ContextDecorator):
    """Set one field of the mode for a `with` block or a decorated function."""

    field: str
    value: bool

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(getattr(_mode, self.field))
        setattr(_mode, self.field, self.value)

    def __exit__(self, *exc: object) -> None:
        setattr(_mode, self.field, self._before.pop())

    def _recreate_cm(self) -> _Switch:  # a decorated function may be entered by several threads at once
        return type(self)()


class no_grad(_Switch):
    """Record nothing: a `with` block or a decorator.

    >>> import minigrad as mg
    >>> x = mg.ones(2, requires_grad=True)
    >>> with mg.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    field, value = "grad", False


class enable_grad(_Switch):
    """Record again, inside a `no_grad` block."""

    field, value = "grad", True


class detect_anomaly(_Switch):
    """Search every result, forward and backward, for NaN; raise RuntimeError naming the op that made the first one.

    >>> import minigrad as mg
    >>> with mg.detect_anomaly():
    ...     mg.tensor([-1.0]).sqrt()
    Traceback (most recent call last):
    ...
    RuntimeError: detect_anomaly: op 'sqrt' made the first NaN, from inputs of shapes (1,)
    """

    field, value = "anomaly", True


def is_grad_enabled() -> bool:
    """Are operations of this thread being recorded?"""
    return _mode.grad


class Op:
    """One differentiable operation: `forward(k, *inputs, **attributes)` on raw arrays, and a rule per input.

    `k` is the kernel package of the inputs' device. `forward` returns an array, or a tuple whose first entry is the
    output and whose others are by-products without gradient (indices of a maximum, say).

    A rule takes what it names: `g` (the upstream gradient), `out` (the output), an input or attribute by its name,
    `<input>_shape`, `aux` (the by-products), and for a variadic input `i` (which one). Only what the rules of inputs
    that require grad name is kept for the backward pass. A rule may return None for a gradient of zero. An input
    without a rule must not require grad.
    """

    def __init__(self, forward: Callable[..., Any], *, broadcasts: bool = False, view: bool = False):
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        self.forward = forward
        self.name = forward.__name__.strip("_")
        self.broadcasts = broadcasts  # gradients are summed over the dimensions that an input was stretched along
        self.view = view  # the output may lie in the memory of the first input
        self.inputs = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.attributes = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.rules: dict[str, tuple[Rule, tuple[str, ...]]] = {}
        self._plans: dict[int, tuple[tuple[str, str, int], ...]] = {}

    def vjp(self, **rules: Rule) -> None:
        """State the vector-Jacobian product for each input by name."""
        for name, rule in rules.items():
            if name not in self.inputs:
                raise TypeError(f"{self.name}.vjp: no input {name!r}; there are {self.inputs}")
            wants = tuple(inspect.signature(rule).parameters)
            known = {"g", "out", "aux", "i", *self.inputs, *self.attributes, *(f"{x}_shape" for x in self.inputs)}
            if unknown := [want for want in wants if want not in known]:
                raise TypeError(f"{self.name}.vjp for {name!r}: nothing is called {unknown}; there are {sorted(known)}")
            self.rules[name] = rule, wants

    def input_name(self, i: int) -> str:
        return self.inputs[min(i, len(self.inputs) - 1)]

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        device = None
        requiring = 0
        raw = []
        for i, x in enumerate(inputs):
            if isinstance(x, Tensor):
                if device is None:
                    device = x.device
                elif x.device != device:
                    raise RuntimeError(
                        f"{self.name}: expected all tensors on one device; got {[_where(y) for y in inputs]}. "
                        f"Move them with to('{device}')."
                    )
                if x._requires_grad:
                    requiring |= 1 << i
                raw.append(x.data)
            elif x is None or isinstance(x, bool | int | float):
                raw.append(x)
            else:
                raise self._no_tensor(x)
        if device is None:
            raise self._no_tensor(inputs[0] if inputs else None)
        k = kernels(device)
        made = self.forward(k, *raw, **attributes)
        out, *byproducts = made if type(made) is tuple else (made,)
        result = Tensor(out if type(out) is k.Array else np.asarray(out), device)
        if self.view and k.shares_memory(result.data, raw[0]):
            result.version = inputs[0].version
        aux = tuple(Tensor(array, device) for array in byproducts)
        if _mode.anomaly:
            self._look_for_nan(k, inputs, result)
        if requiring and _mode.grad and self.rules and result.dtype.kind == "f":  # a cast to integers ends here
            result.node = self._record(requiring, inputs, attributes, result, aux)
            result._requires_grad = True
        return (result, *aux) if aux else result

    def _record(self, requiring: int, inputs: tuple[Any, ...], attributes: Saved, out: Tensor, aux: Any) -> Node:
        plan = self._plans.get(requiring)
        if plan is None:
            plan = self._plans[requiring] = self._plan(requiring)
        saved: Saved = {}
        versions = {}
        for name, kind, i in plan:
            if kind == "input":
                x = saved[name] = inputs[i]
                if isinstance(x, Tensor):
                    versions[name] = x.version, x.version[0]
            elif kind == "shape":
                saved[name] = _shape(inputs[i]) if i >= 0 else tuple(map(_shape, inputs))
            elif kind == "attribute":
                saved[name] = attributes[name]
            elif kind == "out":  # the array, not the Tensor: that would close a cycle through its node
                saved[name] = out.data
                versions[name] = out.version, out.version[0]
            else:
                saved[name] = aux
        edges = [(x.node or x) if isinstance(x, Tensor) and x._requires_grad else None for x in inputs]
        return Node(self, edges, saved, versions, out)

    def _plan(self, requiring: int) -> tuple[tuple[str, str, int], ...]:
        """What to keep when these inputs (a bit mask) require grad."""
        wanted: dict[str, tuple[str, str, int]] = {}
        for name in dict.fromkeys(self.input_name(i) for i in range(requiring.bit_length()) if requiring >> i & 1):
            if name not in self.rules:
                raise RuntimeError(
                    f"{self.name}: input {name!r} is a constant of this op and may not require grad. "
                    f"Pass {name}.detach()."
                )
            for want in self.rules[name][1]:
                base = want.removesuffix("_shape")
                if want in self.inputs:
                    wanted[want] = want, "input", self.inputs.index(want)
                elif want in self.attributes:
                    wanted[want] = want, "attribute", 0
                elif base != want and base in self.inputs:
                    last = self.variadic and base == self.inputs[-1]
                    wanted[want] = want, "shape", -1 if last else self.inputs.index(base)
                elif want in ("out", "aux"):
                    wanted[want] = want, want, 0
        return tuple(wanted.values())

    def _no_tensor(self, x: Any) -> TypeError:
        return TypeError(
            f"{self.name}: expected a tensor; got {type(x).__name__}. Make it a tensor with mg.tensor()."
        )

    def _look_for_nan(self, k: Any, inputs: tuple[Any, ...], out: Tensor) -> None:
        tensors = {self.input_name(i): x for i, x in enumerate(inputs) if isinstance(x, Tensor)}
        given = [name for name, x in tensors.items() if k.has_nan(x.data)]
        if given:
            raise RuntimeError(f"detect_anomaly: op {self.name!r} was given NaN in {', '.join(given)}")
        if k.has_nan(out.data):
            shapes = ", ".join(str(x.shape) for x in tensors.values())
            raise RuntimeError(f"detect_anomaly: op {self.name!r} made the first NaN, from inputs of shapes {shapes}")

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def primitive(*, broadcasts: bool = False, view: bool = False) -> Callable[[Callable[..., Any]], Op]:
    """Make an `Op` of a forward function."""
    return lambda forward: Op(forward, broadcasts=broadcasts, view=view)


def _shape(x: Any) -> tuple[int, ...]:
    return getattr(x, "shape", ())


def _where(x: Any) -> str:
    return x.device if isinstance(x, Tensor) else "number"


class Node:
    """One application of an op: its edges to the nodes (or leaves) it came from, and what its rules need."""

    __slots__ = ("dtype", "edges", "hooks", "op", "retained", "saved", "serial", "shape", "versions")

    def __init__(self, op: Op, edges: list[Node | Tensor | None], saved: Saved, versions: Any, out: Tensor):
        self.op = op
        self.edges = edges
        self.saved: Saved | None = saved
        self.versions = versions  # name -> (the tensor's counter, its value at the time)
        self.shape = out.shape
        self.dtype = out.dtype
        self.serial = next(_serial_numbers)  # inputs are always older than outputs: the order of the walk
        self.hooks: dict[int, Callable[[Tensor], Tensor | None]] | None = None
        self.retained: weakref.ref[Tensor] | None = None

    def gradients(self, g: Tensor, needed: set[int] | None) -> Iterable[tuple[Node | Tensor, Tensor, bool]]:
        """(edge, gradient, whether nobody else holds the gradient's memory) for each input that needs one."""
        if self.saved is None:
            raise RuntimeError(
                f"backward a second time through op {self.op.name!r}: what it had saved was freed by the first walk. "
                f"Say retain_graph=True in the first call."
            )
        for name, (counter, then) in self.versions.items():
            if counter[0] != then:
                what = "its output" if name == "out" else f"its input {name!r}"
                raise RuntimeError(
                    f"backward through op {self.op.name!r}: {what}, of shape {tuple(self.saved[name].shape)}, was "
                    f"changed in place after the forward pass (version {counter[0]}, expected {then}). "
                    f"Change it after backward, or give the op a clone()."
                )
        known: Saved = {**self.saved, "g": g}
        if "out" in known:
            out = known["out"] = Tensor(known["out"], g.device)
            out.node, out._requires_grad, out.version = self, True, self.versions["out"][0]
        held = {id(x.data) for x in (*known.values(), *known.get("aux", ())) if isinstance(x, Tensor)}
        for i, edge in enumerate(self.edges):
            if edge is None or (needed is not None and id(edge) not in needed):
                continue
            known["i"] = i
            rule, wants = self.op.rules[self.op.input_name(i)]
            gradient = rule(*[known[want] for want in wants])
            if gradient is None:
                continue
            if self.op.broadcasts and gradient.shape != edge.shape:
                gradient = gradient.sum_to_size(edge.shape)
            if gradient.shape != edge.shape or gradient.dtype != edge.dtype:
                raise RuntimeError(
                    f"{self.op.name}.vjp for {self.op.input_name(i)!r}: expected a gradient of shape {edge.shape}, "
                    f"{edge.dtype}; the rule gave {gradient.shape}, {gradient.dtype}. The rule is wrong."
                )
            own = id(gradient.data) not in held and not kernels(g.device).is_view(gradient.data)
            yield edge, gradient, own

    def free(self) -> None:
        """Drop what the rules needed. The edges stay: a later walk must find this node, to say that it was freed."""
        self.saved = None
        self.versions = {}


def _collect(
    roots: Iterable[Node | Tensor], targets: set[int] | None
) -> tuple[list[Node], list[Tensor], set[int] | None]:
    """Everything reachable: nodes from the newest to the oldest, leaves, and the ids on a path to a target."""
    nodes: list[Node] = []
    leaves: list[Tensor] = []
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        edge = stack.pop()
        if id(edge) in seen:
            continue
        seen.add(id(edge))
        if isinstance(edge, Node):
            nodes.append(edge)
            stack.extend(e for e in edge.edges if e is not None)
        else:
            leaves.append(edge)
    nodes.sort(key=lambda node: node.serial, reverse=True)
    needed = None if targets is None else targets & seen
    if needed is not None:
        for node in reversed(nodes):
            if any(id(e) in needed for e in node.edges if e is not None):
                needed.add(id(node))
    return nodes, leaves, needed


def _run_hooks(hooks: dict[int, Callable[[Tensor], Tensor | None]] | None, g: Tensor) -> Tensor:
    for hook in tuple((hooks or {}).values()):
        replaced = hook(g)
        if replaced is None:
            continue
        if not isinstance(replaced, Tensor) or replaced.shape != g.shape or replaced.dtype != g.dtype:
            what = f"{replaced.shape}, {replaced.dtype}" if isinstance(replaced, Tensor) else type(replaced).__name__
            raise RuntimeError(f"a hook must return None or a gradient of shape {g.shape}, {g.dtype}; got {what}")
        g = replaced
    return g


def _accumulate(tensor: Tensor, g: Tensor, own: bool) -> None:
    """Add to `grad`. The first gradient is copied unless nobody else can hold its memory: `grad` never aliases."""
    if tensor.grad is not None:
        tensor.grad = tensor.grad + g
    else:
        tensor.grad = g if own else g.clone()


def _walk(
    roots: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Tensor] | None, retain: bool, create: bool
) -> list[Tensor | None]:
    """Carry gradients from the roots back: to `targets`, whose gradients are returned, or else into `leaf.grad`."""
    wanted = None if targets is None else [id(t.node or t) for t in targets]
    nodes, leaves, needed = _collect([t.node or t for t, _ in roots], None if wanted is None else set(wanted))
    pending: dict[int, tuple[Tensor, bool]] = {}  # id of an edge -> (its gradient so far, nobody else holds it)
    captured: dict[int, Tensor] = {}
    anomaly = _mode.anomaly

    def give(edge: Node | Tensor, g: Tensor, own: bool) -> None:
        before = pending.get(id(edge))
        pending[id(edge)] = (g, own) if before is None else (before[0] + g, True)

    with _grad_mode(create), _no_anomaly():
        for root, g in roots:
            give(root.node or root, g, False)
        for node in nodes:
            entry = pending.pop(id(node), None)
            onward = needed is None or any(id(edge) in needed for edge in node.edges)
            if entry is not None and (onward or (wanted is not None and id(node) in wanted)):
                g = _run_hooks(node.hooks, entry[0])
                if wanted is not None and id(node) in wanted:
                    captured[id(node)] = g
                elif wanted is None and node.retained is not None and (tensor := node.retained()) is not None:
                    _accumulate(tensor, g, own=False)
                for edge, gradient, own in node.gradients(g, needed) if onward else ():
                    if anomaly and kernels(g.device).has_nan(gradient.data):
                        raise RuntimeError(f"detect_anomaly: the vjp of op {node.op.name!r} made the first NaN")
                    give(edge, gradient, own)
            if onward and not retain:
                node.free()
        for leaf in leaves:
            entry = pending.pop(id(leaf), None)
            if entry is None or (needed is not None and id(leaf) not in needed):
                continue
            g = _run_hooks(leaf.hooks, entry[0])
            if wanted is not None:
                captured[id(leaf)] = g
            else:
                _accumulate(leaf, g, own=entry[1] and not leaf.hooks)
        if targets is None or wanted is None or needed is None:
            return []
        return [captured.get(w, _zeros(t) if w in needed else None) for t, w in zip(targets, wanted, strict=True)]


class _grad_mode(_Switch):
    field = "grad"

    def __init__(self, value: bool):
        super().__init__()
        self.value = value


class _no_anomaly(_Switch):
    """The walk looks at gradients itself, to name the op whose rule failed and not an op inside that rule."""

    field, value = "anomaly", False


def _zeros(like: Tensor) -> Tensor:
    return Tensor(kernels(like.device).full(like.shape, 0, like.dtype), like.device)


def _seed(output: Tensor, gradient: Tensor | None, who: str) -> Tensor:
    """The gradient to start from: the one given, checked, or 1 for a scalar."""
    if not output.requires_grad:
        raise RuntimeError(
            f"{who}: the output does not require grad: nothing it was made from did, or it was made under no_grad(). "
            f"Set requires_grad=True on the tensors to differentiate."
        )
    if gradient is None:
        if output.numel() != 1:
            raise RuntimeError(
                f"{who}: expected a scalar output or a gradient of its shape; got an output of shape {output.shape} "
                f"and no gradient. Reduce it, e.g. with sum(), or pass gradient=."
            )
        return Tensor(kernels(output.device).full(output.shape, 1, output.dtype), output.device)
    if gradient.shape != output.shape:
        raise ValueError(f"{who}: expected a gradient of shape {output.shape}; got {gradient.shape}")
    if gradient.dtype != output.dtype:
        raise TypeError(f"{who}: expected a gradient of dtype {output.dtype}; got {gradient.dtype}. Convert with to().")
    if gradient.device != output.device:
        raise RuntimeError(f"{who}: expected a gradient on {output.device}; got {gradient.device}. Move it with to().")
    return gradient


@method()
def backward(
    self: Tensor, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False
) -> None:
    """Add ∂self/∂leaf, contracted with `gradient`, to the `grad` of every leaf that requires grad.

    `gradient`: the upstream gradient, of the tensor's shape and dtype; may be left out for a scalar. `retain_graph`
    (default: `create_graph`) keeps what the ops saved, for another walk. `create_graph` records the walk itself, so
    that gradients can be differentiated again.

    RuntimeError: no grad is required, a non-scalar without `gradient`, a graph walked twice, a saved tensor changed in
    place. ValueError, TypeError: a gradient of another shape or dtype.

    >>> import minigrad as mg
    >>> w = mg.tensor([3.0], requires_grad=True)
    >>> (w ** 2).sum().backward()
    >>> w.grad
    tensor([6.])
    """
    retain = create_graph if retain_graph is None else retain_graph
    _walk([(self, _seed(self, gradient, "backward"))], None, retain, create_graph)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor, ...]:
    """Σ ∂outputs/∂input · grad_outputs for each input, returned and not stored; only paths to the inputs are walked.

    An input that the outputs do not depend on raises RuntimeError, or gives None under `allow_unused`. The other
    arguments and errors are those of `Tensor.backward`.

    >>> import minigrad as mg
    >>> x = mg.tensor(2.0, requires_grad=True)
    >>> (dx,) = mg.grad(x ** 3, x, create_graph=True)
    >>> (ddx,) = mg.grad(dx, x)
    >>> dx.item(), ddx.item()
    (12.0, 12.0)
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    seeds = [grad_outputs] if grad_outputs is None or isinstance(grad_outputs, Tensor) else list(grad_outputs)
    if grad_outputs is None:
        seeds = [None] * len(outs)
    if len(seeds) != len(outs):
        raise ValueError(f"grad: expected one of grad_outputs per output, {len(outs)}; got {len(seeds)}")
    for i, x in enumerate(ins):
        if not x.requires_grad:
            raise RuntimeError(f"grad: input {i}, of shape {x.shape}, does not require grad. Set requires_grad=True.")
    roots = [(out, _seed(out, seed, "grad")) for out, seed in zip(outs, seeds, strict=True)]
    gradients = _walk(roots, ins, create_graph if retain_graph is None else retain_graph, create_graph)
    for i, g in enumerate(gradients):
        if g is None and not allow_unused:
            raise RuntimeError(
                f"grad: the outputs do not depend on input {i}, of shape {ins[i].shape}. "
                f"Say allow_unused=True to get None for it."
            )
    return tuple(gradients)  # type: ignore[arg-type]  # None only where the caller allowed it


def hvp(
    fn: Callable[..., Tensor], inputs: Tensor | Sequence[Tensor], v: Tensor | Sequence[Tensor]
) -> Tensor | tuple[Tensor, ...]:
    """Hessian-vector product ∇²f(inputs) v of a scalar function, as the gradient of ⟨∇f, v⟩; shaped like `inputs`.

    Exact at the cost of two backward passes; the Hessian is never formed (Pearlmutter, "Fast exact multiplication by
    the Hessian", 1994). `fn` is called with the inputs; they are used as they are if they require grad.

    >>> import minigrad as mg
    >>> x = mg.tensor([1.0, 2.0])
    >>> mg.hvp(lambda x: (x ** 3).sum(), x, mg.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    xs = [x if x.requires_grad else x.detach().requires_grad_() for x in given]
    vs = [v] if isinstance(v, Tensor) else list(v)
    with enable_grad():
        first = grad(fn(*xs), xs, create_graph=True, allow_unused=True)
        used = [(g, d) for g, d in zip(first, vs, strict=True) if g is not None and g.requires_grad]
        second: Sequence[Tensor | None] = [None] * len(xs)
        if used:
            second = grad([g for g, _ in used], xs, [d for _, d in used], allow_unused=True)
    products = tuple(_zeros(x) if h is None else h for x, h in zip(xs, second, strict=True))
    return products[0] if isinstance(inputs, Tensor) else products


class RemovableHandle:
    """What `register_hook` returns: `remove()` takes the hook off again."""

    def __init__(self, hooks: dict[int, Any]):
        self._hooks = hooks
        self._key = next(_serial_numbers)

    def remove(self) -> None:
        self._hooks.pop(self._key, None)


@method()
def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `hook(gradient)` when this tensor's gradient is complete; what it returns, if not None, replaces it.

    RuntimeError if the tensor does not require grad.
    """
    if not self.requires_grad:
        raise RuntimeError("register_hook: the tensor does not require grad, so it never gets a gradient")
    owner: Tensor | Node = self if self.node is None else self.node
    if owner.hooks is None:
        owner.hooks = {}
    handle = RemovableHandle(owner.hooks)
    owner.hooks[handle._key] = hook
    return handle


@method()
def retain_grad(self: Tensor) -> None:
    """Let `backward` store the gradient of this intermediate tensor in its `grad`, as it does for leaves."""
    if not self.requires_grad:
        raise RuntimeError("retain_grad: the tensor does not require grad, so it never gets a gradient")
    if self.node is not None:
        self.node.retained = weakref.ref(self)
