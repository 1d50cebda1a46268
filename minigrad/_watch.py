"""What watches over a step while its Python runs: it hears of all that is done beside the ops, and puts that back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minigrad._mode import mode
from minigrad._op import Op
from minigrad._random import Generator
from minigrad._tensor import Tensor
from minigrad.device import kernels
from minigrad.kernels.recording import SCHEDULES, SEEDS, refuse
from minigrad.nn.module import Module
from minigrad.optim.optimizer import Optimizer

WHO = "mg.capture"


class Watch:
    """Told of what a step does beside its ops: `mode.recorder`. While a step is recorded, it also says no."""

    def __init__(self, device: str, inputs: dict[Any, Any], recording: Any = None):
        self.device, self.recording = device, recording
        self.inputs = {id(x.version): name for name, x in inputs.items() if isinstance(x, Tensor)}
        self.modules: dict[int, Module] = {}
        self.roots: list[Module] = []  # those that are no part of others
        self.leaves: dict[int, Tensor] = {}  # whose gradients the step makes, or drops
        self.zeroed: set[int] = set()
        self.changed: list[list[int]] = []  # the version of a tensor, once for each change
        self.stepped: list[tuple[Optimizer, Tensor]] = []
        self.used: dict[int, tuple[weakref.ref[Tensor], Any]] = {}  # leaves, and their gradients, when first used
        self.optimizers: dict[int, Optimizer] = {}
        self.made: set[int] = set()  # ids of arrays
        self._undo: dict[int, Callable[[], None]] = {}

    def enters(self, module: Module) -> None:
        if id(module) not in self.modules:
            self.roots.append(module)
            self.modules.update((id(m), m) for m in module.modules())

    def changes(self, version: list[int]) -> None:
        if id(version) in self.inputs:
            raise RuntimeError(
                f"{WHO}: the step writes into argument {self.inputs[id(version)]!r}, which is a copy: the caller's "
                f"tensor would stay as it is. Return the new values, or write into a tensor from outside the step."
            )
        self.changed.append(version)

    def draws(self, generator: Generator) -> None:
        if id(generator) not in self._undo:
            state = generator.get_state()
            self._undo[id(generator)] = lambda: generator.set_state(state)

    def seeds(self) -> None:
        if self.recording is not None:
            refuse(SEEDS)

    def schedules(self) -> None:
        if self.recording is not None:
            refuse(SCHEDULES)

    def accumulates(self, leaf: Tensor) -> None:
        if self.recording is not None and leaf.grad is not None and id(leaf) not in self.leaves:
            raise RuntimeError(
                f"{WHO}: the step adds to the gradient, from before the step, of a tensor of shape {leaf.shape}. Call "
                f"optimizer.zero_grad() in the step, before backward()."
            )
        self.leaves[id(leaf)] = leaf

    def drops(self, leaf: Tensor) -> None:
        self.leaves[id(leaf)] = leaf
        self.zeroed.add(id(leaf))

    def updates(self, optimizer: Optimizer, params: list[Tensor], update: Callable[[], None]) -> None:
        self.optimizers[id(optimizer)] = optimizer
        if self.recording is None:
            update()
            return
        if id(optimizer) not in self._undo:
            state = {p: dict(entries) for p, entries in optimizer.state.items()}
            self._undo[id(optimizer)] = lambda: setattr(optimizer, "state", state)
        self.ran_on(params[0].device, f"{type(optimizer).__name__}.step")
        self.leaves.update((id(p), p) for p in params)
        before = {p: len(optimizer.state.get(p, ())) for p in params}
        gradients = [p.grad.data for p in params if p.grad is not None]
        kernels(self.device).recorded_update(_Update(optimizer, params, update), gradients)
        for p in params:
            if len(optimizer.state.get(p, ())) != before[p]:
                raise RuntimeError(
                    f"{WHO}: {type(optimizer).__name__} made its state for a parameter of shape {p.shape} in the "
                    f"second step. Every parameter must have a gradient in the first step, too."
                )
        self.stepped += [(optimizer, p) for p in params]

    def witness(self, op: Op, inputs: Any, attributes: Any, out: Tensor, aux: Any) -> None:
        self.ran_on(out.device, f"op {op.name!r}")
        for x in inputs:
            if isinstance(x, Tensor) and x.node is None and id(x.data) not in self.made:
                self.used.setdefault(id(x), (weakref.ref(x), None if x.grad is None else weakref.ref(x.grad)))
        self.made.update(id(x.data) for x in (out, *aux))

    def ran_on(self, device: str, what: str) -> None:
        if device != self.device:
            raise RuntimeError(
                f"{WHO}: {what} ran on {device!r}, and the step is captured on {self.device!r}. Move its tensors "
                f"there, or say mg.capture(fn, device={device!r})."
            )

    def undo(self) -> None:
        for restore in self._undo.values():
            restore()
        for leaf in self.leaves.values():
            leaf.grad = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        mode.recorder = self
        try:
            yield
        finally:
            mode.recorder = None


class _Update:
    """An optimizer's step, given its gradients; what it has counted can be taken back."""

    def __init__(self, optimizer: Optimizer, params: list[Tensor], update: Callable[[], None]):
        self._params, self._update = params, update
        states = [optimizer.state[p] for p in params if p in optimizer.state]
        self._counts = [(state, name) for state in states for name, x in state.items() if not isinstance(x, Tensor)]
        self._before: list[Any] = []

    def __call__(self, *gradients: Any) -> None:
        self._before = [state[name] for state, name in self._counts]
        for p, g in zip(self._params, gradients, strict=True):
            if p.grad is None or p.grad.data is not g:
                p.grad = Tensor(g, p.device)
        self._update()

    def take_back(self) -> None:
        for (state, name), count in zip(self._counts, self._before, strict=True):
            state[name] = count
