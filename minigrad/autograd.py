"""Reverse-mode differentiation: the walk back through the graph, and what starts it.

The walk runs the rules of the ops from the newest to the oldest; they are recorded themselves iff `create_graph`, so
that derivatives of every order are the same code.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minigrad._mode import enable_grad, mode
from minigrad._op import Node
from minigrad._tensor import Tensor, method
from minigrad.device import kernels


def _collect(
    roots: Iterable[Node | Tensor], targets: set[int] | None
) -> tuple[list[Node], list[Tensor], set[int] | None]:
    """Everything reachable: nodes from the newest to the oldest, leaves, and the ids on a path to a target."""
    nodes: list[Node] = []
    leaves: list[Tensor] = []
    seen: set[int] = set()
    stack: list[Node | Tensor | None] = list(roots)
    while stack:
        edge = stack.pop()
        if edge is None or id(edge) in seen:
            continue
        seen.add(id(edge))
        if isinstance(edge, Node):
            nodes.append(edge)
            stack += edge.edges
        else:
            leaves.append(edge)
    nodes.sort(key=lambda node: node.serial, reverse=True)
    needed = None if targets is None else targets & seen
    if needed is not None:
        for node in reversed(nodes):
            if any(id(e) in needed for e in node.edges if e is not None):
                needed.add(id(node))
    return nodes, leaves, needed


def _run_hooks(hooks: dict[int, Callable[[Tensor], Tensor | None]], g: Tensor) -> Tensor:
    for hook in tuple(hooks.values()):
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
    if mode.recorder is not None:
        mode.recorder.accumulates(tensor)
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
    pending: dict[int, Tensor] = {}  # id of an edge -> its gradient so far
    owned: set[int] = set()  # ids of the leaves whose gradient's memory nobody else holds
    captured: dict[int, Tensor] = {}
    # The walk looks at gradients itself, to name the op whose rule failed and not an op inside that rule. Assignments
    # instead of `with`: Ctrl-C may come at the beginning of an `__exit__`, and leave the mode as it was in the block.
    grad, anomaly = mode.grad, mode.anomaly
    mode.grad, mode.anomaly = create, False
    try:
        for root, g in roots:
            key = id(root.node or root)
            pending[key] = pending[key] + g if key in pending else g
        for node in nodes:
            entry = pending.pop(id(node), None)
            onward = needed is None or any(id(edge) in needed for edge in node.edges)
            target = wanted is not None and id(node) in wanted
            if entry is not None and (onward or target):
                g = _run_hooks(node.hooks, entry) if node.hooks else entry
                if target:
                    captured[id(node)] = g
                elif wanted is None and node.retained is not None and (tensor := node.retained()) is not None:
                    _accumulate(tensor, g, own=False)
                for edge, gradient, own in node.gradients(g, needed) if onward else ():
                    if anomaly and kernels(gradient.device).has_nan(gradient.data):
                        raise RuntimeError(f"detect_anomaly: the vjp of op {node.op.name!r} made the first NaN")
                    key = id(edge)
                    so_far = pending.get(key)
                    pending[key] = gradient if so_far is None else so_far + gradient
                    if own or so_far is not None:
                        owned.add(key)
            if onward and not retain:
                node.free()
        for leaf in leaves:
            entry = pending.pop(id(leaf), None)
            if entry is None or not leaf._requires_grad or (needed is not None and id(leaf) not in needed):
                continue
            g = _run_hooks(leaf.hooks, entry) if leaf.hooks else entry
            if wanted is not None:
                captured[id(leaf)] = g
            else:
                _accumulate(leaf, g, own=id(leaf) in owned and not leaf.hooks)
        if targets is None or wanted is None or needed is None:
            return []
        missing = {w: _zeros(t) for t, w in zip(targets, wanted, strict=True) if w in needed and w not in captured}
        return [captured.get(w, missing.get(w)) for w in wanted]
    finally:
        mode.grad, mode.anomaly = grad, anomaly


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
    if not isinstance(gradient, Tensor):
        raise TypeError(f"{who}: expected a tensor as gradient; got {type(gradient).__name__}. Make one: mg.tensor().")
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
    if grad_outputs is None:
        seeds: list[Tensor | None] = [None] * len(outs)
    else:
        seeds = list(grad_outputs) if isinstance(grad_outputs, Sequence) else [grad_outputs]
    if len(seeds) != len(outs):
        raise ValueError(f"grad: expected one of grad_outputs per output, {len(outs)}; got {len(seeds)}")
    for x in (*outs, *ins):
        if not isinstance(x, Tensor):
            raise TypeError(f"grad: expected tensors as outputs and inputs; got {type(x).__name__}")
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
    if len(vs) != len(xs):
        raise ValueError(f"hvp: expected one v per input, {len(xs)}; got {len(vs)}")
    with enable_grad():
        first = grad(fn(*xs), xs, create_graph=True, allow_unused=True)
        used = [(g, d) for g, d in zip(first, vs, strict=True) if g is not None and g.requires_grad]
        second: Sequence[Tensor | None] = [None] * len(xs)
        if used:
            second = grad([g for g, _ in used], xs, [d for _, d in used], allow_unused=True)
    products = tuple(_zeros(x) if h is None else h for x, h in zip(xs, second, strict=True))
    return products[0] if isinstance(inputs, Tensor) else products


_handles = itertools.count()


class RemovableHandle:
    """What `register_hook` returns: `remove()` takes the hook off again."""

    def __init__(self, hooks: dict[int, Any]):
        self._hooks = hooks
        self._key = next(_handles)

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
