"""What a model does to its input: the ops of its forward, in a form that holds for every batch size.

The forward runs on the example and on other values in two larger batches, and the runs are laid over each other. What
is the same in all of them is constant; an int that changes must be affine in the batch size, and becomes `Affine`; all
else depends on the values of the input, or on chance, and is refused. Ops that do not see the input are not recorded:
what they made is a constant, as a spectrally normalized weight is.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from minigrad._mode import no_grad, witnessed
from minigrad._op import Op
from minigrad._tensor import Tensor
from minigrad.nn import _calls
from minigrad.nn.module import Module
from minigrad.ops.creation import tensor


class Affine(NamedTuple):
    """An int that depends on the batch size n: slope · n + intercept."""

    slope: int
    intercept: int

    def __str__(self) -> str:
        product = "batch" if self.slope == 1 else f"{self.slope}*batch"
        return f"{product} + {self.intercept}" if self.intercept else product


class Value(NamedTuple):
    """A tensor that depends on the input: the input itself, or what a step made."""

    name: str
    shape: tuple[Any, ...]
    dtype: Any


class Constant(NamedTuple):
    """A tensor that does not depend on the input, and its name in the state dict if it has one."""

    name: str | None
    tensor: Tensor

    @property
    def dtype(self) -> Any:
        return self.tensor.dtype


class Repeated(NamedTuple):
    """A constant in a shape that depends on the batch size: an array, repeated along those axes."""

    array: Any
    shape: tuple[Any, ...]

    @property
    def dtype(self) -> Any:
        return self.array.dtype


class Step(NamedTuple):
    """One op; each input is a Value, a Constant, a Repeated, a number (an Affine, too) or None."""

    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any]
    out: Value


class Program(NamedTuple):
    """The steps that the outputs need, in order."""

    inputs: tuple[Value, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]


def trace(model: Module, example: tuple[Tensor, ...], supported: Container[str], who: str) -> Program:
    """The program of `model(*example)`, whose tensors have the batch as axis 0.

    NotImplementedError for an op that is not `supported`. ValueError for what is no function of the input made of ops:
    values that leave the tensors, random numbers, changes in place, other batch sizes refused.
    """
    sizes = [example[0].shape[0] + k for k in range(3)]
    programs = [_Run(model, supported, who)(example)]
    for k in (1, 2):
        others = tuple(_others(x, sizes[k], k) for x in example)
        try:
            programs.append(_Run(model, supported, who)(others))
        except Exception as error:
            raise ValueError(
                f"{who}: forward ran on the example, but not on other values in a batch of {sizes[k]}. Write it for "
                f"every batch size, with x.shape[0] or −1 in the place of {sizes[0]}. It raised: {error}"
            ) from error
    paths = [[step.op for step in program.steps] for program in programs]
    if paths.count(paths[0]) != 3:
        raise ValueError(
            f"{who}: on other values, or at another batch size, forward ran other ops. "
            f"An `if` on values has no place in the graph: use where()."
        )
    merge = _Merge(sizes, who)
    return Program(
        merge("the input", *(program.inputs for program in programs)),
        tuple(merge(f"op {steps[0].op!r}", *steps) for steps in zip(*(p.steps for p in programs), strict=True)),
        merge("the output", *(program.outputs for program in programs)),
    )


def _others(x: Tensor, size: int, k: int) -> Tensor:
    """Values unlike the example's; indices stay in range, as they only get closer to 0."""
    host = x.detach().to(device="cpu").numpy()
    shape = size, *x.shape[1:]
    if x.dtype.kind == "f":
        return tensor(np.random.default_rng(k).standard_normal(shape).astype(x.dtype), device=x.device)
    stretched = np.resize(host, shape)
    return tensor(~stretched if x.dtype.kind == "b" else stretched * (2 - k) // 2, device=x.device)


class _Run:
    """The witness of one forward. A tensor is known by its raw array: `detach()` makes another tensor over the same."""

    def __init__(self, model: Module, supported: Container[str], who: str):
        self.model = model
        self.supported = supported
        self.who = who
        self.steps: list[Step] = []
        self.names = {id(x.data): path for path, x in reversed(model.state_dict().items())}
        self.known: dict[int, Value] = {}
        self.seen: list[tuple[Tensor, int]] = []  # with their versions
        self.alive: list[Tensor] = []  # so that no id comes twice
        self.normalized = [
            (f"{path}.{name}".lstrip("."), module, name)
            for path, module in model.named_modules()
            for name in module._parametrized()
        ]

    def __call__(self, inputs: tuple[Tensor, ...]) -> Program:
        values = tuple(map(self._enter, inputs))
        with no_grad(), witnessed(self._witness):
            made = self.model(*inputs)
        outputs = made if isinstance(made, tuple | list) else (made,)
        if not all(isinstance(out, Tensor) for out in outputs):
            found = [type(out).__name__ for out in outputs]
            raise TypeError(f"{self.who}: expected forward to return a tensor or a tuple of tensors; got {found}")
        for x, version in self.seen:
            if x.version[0] != version:
                raise ValueError(
                    f"{self.who}: forward changed a tensor of shape {x.shape} in place. "
                    f"Use an op that makes a new one, such as where, cat or stack."
                )
        results = tuple(self.known.get(id(out.data)) for out in outputs)
        if None in results:
            raise ValueError(f"{self.who}: output {results.index(None)} is not made from the input by ops")
        return self._program(values, results)

    def _enter(self, x: Tensor) -> Value:
        self.seen.append((x, x.version[0]))
        value = self.known[id(x.data)] = Value(str(len(self.seen)), x.shape, x.dtype)
        return value

    def _witness(self, op: Op, inputs: Sequence[Any], attributes: Any, out: Tensor, aux: Sequence[Tensor]) -> None:
        if not any(isinstance(x, Tensor) and id(x.data) in self.known for x in inputs):
            if op.view and id(inputs[0].data) in self.names:
                self.names[id(out.data)] = self.names[id(inputs[0].data)]
            self.alive.append(out)
            return
        if op.name not in self.supported:
            raise NotImplementedError(
                f"{self.who}: op {op.name!r}, on shapes {[getattr(x, 'shape', x) for x in inputs]}, has no ONNX form "
                f"here; the traceback says which layer ran it. Compose it of other ops, or compute it outside of "
                f"the model."
            )
        operands = tuple(self._operand(x) for x in inputs)
        self.steps.append(Step(op.name, operands, attributes, self._enter(out)))
        for x in aux:
            self.known[id(x.data)] = Value(f"by-product of {op.name}", x.shape, x.dtype)
            self.alive.append(x)

    def _operand(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x.data) not in self.known:
            self.seen.append((x, x.version[0]))
            return Constant(self._name(x), x)
        return self.known[id(x.data)]

    def _name(self, x: Tensor) -> str | None:
        """The path of a parameter or a buffer, or of the weight that a running call has normalized."""
        for path, module, name in self.normalized:
            running = _calls.value(module, name)
            if running is not None and running.data is x.data:
                return path
        return self.names.get(id(x.data))

    def _program(self, inputs: Sequence[Value], outputs: Sequence[Any]) -> Program:
        """Only what the outputs need, under names that all runs have in common."""
        wanted = {out.name for out in outputs}
        needed = []
        for step in reversed(self.steps):
            if step.out.name in wanted:
                wanted.update(x.name for x in step.inputs if isinstance(x, Value))
                needed.append(step)
        needed.reverse()
        names = {x.name: "input" if len(inputs) == 1 else f"input_{i}" for i, x in enumerate(inputs)}
        names |= {step.out.name: f"{step.op}_{i}" for i, step in enumerate(needed)}
        if unknown := wanted - names.keys():
            raise NotImplementedError(f"{self.who}: the {', '.join(unknown)} has no ONNX form here")

        def named(xs: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(x._replace(name=names[x.name]) if isinstance(x, Value) else x for x in xs)

        steps = [step._replace(inputs=named(step.inputs), out=named([step.out])[0]) for step in needed]
        return Program(named(inputs), tuple(steps), named(outputs))


class _Merge:
    """Several runs' versions of one thing as one thing that holds at every batch size."""

    def __init__(self, sizes: list[int], who: str):
        self.sizes = sizes
        self.who = who

    def __call__(self, where: str, *versions: Any) -> Any:
        first = versions[0]
        if len({type(v) for v in versions}) > 1:
            self._refuse(where, versions)
        if isinstance(first, Constant):
            return self._constant(where, versions)
        if isinstance(first, tuple) and len({len(v) for v in versions}) == 1:
            parts = [self(where, *each) for each in zip(*versions, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
        if isinstance(first, dict):
            return {key: self(f"{where}, {key}", *(v[key] for v in versions)) for key in first}
        if isinstance(first, slice):
            return slice(*self(where, *((v.start, v.stop, v.step) for v in versions)))
        if all(v == first or (v != v and first != first) for v in versions):  # NaN, too, is the same each time
            return first
        if isinstance(first, int):
            slope = versions[1] - first
            affine = Affine(slope, first - slope * self.sizes[0])
            if versions[2] - versions[1] == slope:
                return affine
        return self._refuse(where, versions)

    def _constant(self, where: str, versions: Sequence[Constant]) -> Constant | Repeated:
        first = versions[0]
        if all(v.tensor.data is first.tensor.data for v in versions):
            return first
        arrays = [v.tensor.detach().to(device="cpu").numpy() for v in versions]
        shapes = [a.shape for a in arrays]
        if len({len(shape) for shape in shapes}) == 1:
            varying = [len(set(extents)) > 1 for extents in zip(*shapes, strict=True)]
            one = arrays[0][tuple(slice(1) if varies else slice(None) for varies in varying)]
            nan = one.dtype.kind == "f"
            if all(np.array_equal(a, np.broadcast_to(one, a.shape), equal_nan=nan) for a in arrays):
                return Repeated(one, self(where, *shapes)) if any(varying) else first
        return self._refuse(where, [f"a tensor of shape {a.shape}" for a in arrays])

    def _refuse(self, where: str, versions: Sequence[Any]) -> NoReturn:
        raise ValueError(
            f"{self.who}: {where}: neither constant nor affine in the batch size; in batches of {self.sizes}, of "
            f"other values, it was {', '.join(map(str, versions))}. It depends on values that left the tensors "
            f"(item(), numpy(), a mask or a list as index), or on random numbers. Use ops on tensors, such as where, "
            f"gather and index_select."
        )
