"""What an op is: a forward on raw arrays, one rule per input made of public ops; and what it leaves in the graph."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from minigrad._mode import mode
from minigrad._tensor import Tensor
from minigrad.device import kernels, out_of_memory

Rule = Callable[..., Tensor | None]
Saved = dict[str, Any]
Version = tuple[list[int], int, int]  # the counter of a tensor, its value at the time, the place where it is kept
_serial_numbers = itertools.count()


class Op:
    """One differentiable operation: `forward(k, *inputs, **attributes)` on raw arrays, and a rule per input.

    `k` is the kernel package of the inputs' device. `forward` returns an array, or a tuple whose first entry is the
    output and whose others are by-products without gradient (indices of a maximum, say).

    A rule takes what it names: `g` (the upstream gradient), `out` (the output), an input or attribute by its name,
    `<input>_shape`, `aux` (the by-products), `shared` (a list for what several rules need, empty when the first of them
    runs), and for a variadic input `i` (which one). Only what the rules of inputs that require grad name is kept for
    the backward pass. A rule may return None for a gradient of zero. An input without a rule must not require grad.
    """

    def __init__(
        self, forward: Callable[..., Any], *, broadcasts: bool = False, view: bool = False, moves: bool = False
    ):
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        self.forward = forward
        self.name = forward.__name__.strip("_")
        self.broadcasts = broadcasts  # gradients are summed over the dimensions that an input was stretched along
        self.view = view  # the output may lie in the memory of the first input
        self.moves = moves  # the output is on the device that the attribute `device` names
        self.inputs = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.attributes = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.rules: dict[str, tuple[Rule, tuple[str, ...]]] = {}
        self._plans: dict[int, Plan] = {}

    def vjp(self, **rules: Rule) -> None:
        """State the vector-Jacobian product for each input by name."""
        for name, rule in rules.items():
            if name not in self.inputs:
                raise TypeError(f"{self.name}.vjp: no input {name!r}; there are {self.inputs}")
            wants = tuple(inspect.signature(rule).parameters)
            shapes = (f"{x}_shape" for x in self.inputs)
            known = {"g", "out", "aux", "i", "shared", *self.inputs, *self.attributes, *shapes}
            if unknown := [want for want in wants if want not in known]:
                raise TypeError(f"{self.name}.vjp for {name!r}: nothing is called {unknown}; there are {sorted(known)}")
            self.rules[name] = rule, wants
        self._plans.clear()

    def input_name(self, i: int) -> str:
        return self.inputs[min(i, len(self.inputs) - 1)]

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        device = None
        requiring, bit = 0, 1
        raw = []
        for x in inputs:
            if isinstance(x, Tensor):
                if device is None:
                    device = x.device
                elif x.device != device:
                    raise RuntimeError(
                        f"{self.name}: expected all tensors on one device; got {[_where(y) for y in inputs]}. "
                        f"Move them with to('{device}')."
                    )
                if x._requires_grad:
                    requiring |= bit
                raw.append(x.data)
            elif x is None or isinstance(x, (int, float)):
                raw.append(x)
            else:
                raise self._no_tensor(x)
            bit <<= 1
        if device is None:
            raise self._no_tensor(inputs[0] if inputs else None)
        k = kernels(device)
        try:
            out = self.forward(k, *raw, **attributes)
        except MemoryError as error:
            raise out_of_memory(self.name, attributes.get("device", device), error) from None
        if self.moves:
            device = attributes["device"]
            k = kernels(device)
        aux: tuple[Tensor, ...] = ()
        if type(out) is tuple:
            aux = tuple([Tensor(array, device) for array in out[1:]])
            out = out[0]
        result = Tensor(k.asarray(out), device)
        if self.view and k.shares_memory(result.data, raw[0]):
            result.version = inputs[0].version
        if mode.anomaly:
            self._look_for_nan(k, inputs, result)
        if mode.witness is not None:
            mode.witness(self, inputs, attributes, result, aux)
        if requiring and self.rules and mode.grad and result.data.dtype.kind == "f":  # a cast to integers ends here
            result.node = self._record(requiring, inputs, attributes, result, aux)
            result._requires_grad = True
        return (result, *aux) if aux else result

    def _record(self, requiring: int, inputs: tuple[Any, ...], attributes: Saved, out: Tensor, aux: Any) -> Node:
        plan = self._plans.get(requiring)
        if plan is None:
            plan = self._plans[requiring] = self._plan(requiring)
        saved: list[Any] = []
        versions: list[Version] = []
        for name, kind, i in plan.keeps:
            if kind == "input":
                x = inputs[i]
                if isinstance(x, Tensor):
                    versions.append((x.version, x.version[0], len(saved)))
                saved.append(x)
            elif kind == "attribute":
                saved.append(attributes[name])
            elif kind == "shape":
                saved.append(_shape(inputs[i]) if i >= 0 else tuple(map(_shape, inputs)))
            elif kind == "out":  # the array, not the Tensor: that would close a cycle through its node
                versions.append((out.version, out.version[0], len(saved)))
                saved.append(out.data)
            else:
                saved.append(aux)
        edges = [(x.node or x) if isinstance(x, Tensor) and x._requires_grad else None for x in inputs]
        return Node(self, plan, edges, saved, versions, out)

    def _plan(self, requiring: int) -> Plan:
        """What to keep, and which rules to run, when these inputs (a bit mask) require grad."""
        required = [i for i in range(requiring.bit_length()) if requiring >> i & 1]
        wanted: dict[str, tuple[str, str, int]] = {}
        for name in dict.fromkeys(map(self.input_name, required)):
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
        places = {name: place for place, name in enumerate([*wanted, "g", "shared", "i"])}
        rules = [(i, *self.rules[self.input_name(i)]) for i in required]
        return Plan(
            tuple(wanted.values()),
            tuple((i, rule, tuple(places[want] for want in wants)) for i, rule, wants in rules),
            places.get("out"),
        )

    def _no_tensor(self, x: Any) -> TypeError:
        return TypeError(
            f"{self.name}: expected a tensor; got {type(x).__name__}. Make it a tensor with mg.tensor()."
        )

    def _look_for_nan(self, k: Any, inputs: tuple[Any, ...], out: Tensor) -> None:
        tensors = {self.input_name(i): x for i, x in enumerate(inputs) if isinstance(x, Tensor)}
        given = [name for name, x in tensors.items() if kernels(x.device).has_nan(x.data)]
        if given:
            raise RuntimeError(f"detect_anomaly: op {self.name!r} was given NaN in {', '.join(given)}")
        if k.has_nan(out.data):
            shapes = ", ".join(str(x.shape) for x in tensors.values())
            raise RuntimeError(f"detect_anomaly: op {self.name!r} made the first NaN, from inputs of shapes {shapes}")

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def primitive(**properties: bool) -> Callable[[Callable[..., Any]], Op]:
    """Make an `Op` of a forward function; the properties are those of `Op`."""
    return lambda forward: Op(forward, **properties)


def _shape(x: Any) -> tuple[int, ...]:
    return getattr(x, "shape", ())


def _where(x: Any) -> str:
    return x.device if isinstance(x, Tensor) else "number"


class Plan(NamedTuple):
    """What a node keeps, and its rules: for each input that requires grad the rule and the places of its arguments.

    The places are those in the list of what was kept, then g, `shared` and i.
    """

    keeps: tuple[tuple[str, str, int], ...]  # name, kind, which input
    rules: tuple[tuple[int, Rule, tuple[int, ...]], ...]
    out: int | None


class Node:
    """One application of an op: its edges to the nodes (or leaves) it came from, and what its rules need."""

    __slots__ = ("dtype", "edges", "hooks", "op", "plan", "retained", "saved", "serial", "shape", "versions")

    def __init__(
        self,
        op: Op,
        plan: Plan,
        edges: list[Node | Tensor | None],
        saved: list[Any],
        versions: list[Version],
        out: Tensor,
    ):
        self.op = op
        self.plan = plan
        self.edges = edges
        self.saved: list[Any] | None = saved
        self.versions = versions
        self.shape = out.data.shape
        self.dtype = out.data.dtype
        self.serial = next(_serial_numbers)  # inputs are always older than outputs: the order of the walk
        self.hooks: dict[int, Callable[[Tensor], Tensor | None]] | None = None
        self.retained: weakref.ref[Tensor] | None = None

    def gradients(self, g: Tensor, needed: set[int] | None) -> list[tuple[Node | Tensor, Tensor, bool]]:
        """(edge, gradient, whether nobody else holds the gradient's memory) for each input that needs one.

        Who holds it matters, and is looked up, for leaves alone.
        """
        if self.saved is None:
            raise RuntimeError(
                f"backward a second time through op {self.op.name!r}: what it had saved was freed by the first walk. "
                f"Say retain_graph=True in the first call."
            )
        known: list[Any] = [*self.saved, g, [], 0]
        for counter, then, place in self.versions:
            if counter[0] != then:
                raise self._changed(counter[0], then, place)
            if place == self.plan.out:
                out = known[place] = Tensor(known[place], g.device)
                out.node, out._requires_grad, out.version = self, True, counter
        found = []
        for i, rule, places in self.plan.rules:
            edge = self.edges[i]
            if edge is None or (needed is not None and id(edge) not in needed):
                continue
            known[-1] = i
            gradient = rule(*[known[place] for place in places])
            if gradient is None:
                continue
            if self.op.broadcasts and gradient.data.shape != edge.shape:
                gradient = gradient.sum_to_size(edge.shape)
            if gradient.data.shape != edge.shape or gradient.data.dtype != edge.dtype:
                raise RuntimeError(
                    f"{self.op.name}.vjp for {self.op.input_name(i)!r}: expected a gradient of shape {edge.shape}, "
                    f"{edge.dtype}; the rule gave {gradient.shape}, {gradient.dtype}. The rule is wrong."
                )
            found.append((edge, gradient, isinstance(edge, Tensor) and self._owns(gradient, known)))
        return found

    def _owns(self, gradient: Tensor, known: list[Any]) -> bool:
        """Is the gradient's memory fresh: no view, and neither g's nor that of anything kept?"""
        data = gradient.data
        if kernels(gradient.device).is_view(data):
            return False
        for kept in known:
            if isinstance(kept, Tensor):
                if kept.data is data:
                    return False
            elif isinstance(kept, (tuple, list)) and any(isinstance(x, Tensor) and x.data is data for x in kept):
                return False
        return True

    def _changed(self, now: int, then: int, place: int) -> RuntimeError:
        name = self.plan.keeps[place][0]
        what = "its output" if place == self.plan.out else f"its input {name!r}"
        assert self.saved is not None
        return RuntimeError(
            f"backward through op {self.op.name!r}: {what}, of shape {tuple(self.saved[place].shape)}, was "
            f"changed in place after the forward pass (version {now}, expected {then}). "
            f"Change it after backward, or give the op a clone()."
        )

    def kept(self) -> Saved:
        """What the rules need, by name; nothing once it was freed."""
        return {name: value for (name, *_), value in zip(self.plan.keeps, self.saved or (), strict=False)}

    def free(self) -> None:
        """Drop what the rules needed. The edges stay: a later walk must find this node, to say that it was freed."""
        self.saved = None
        self.versions = []
