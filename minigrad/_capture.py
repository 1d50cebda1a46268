"""Captured steps: a training step as a list of kernels (on a GPU, a CUDA graph), and what watches over it.

A step's Python is taken apart. The kernels that it calls are recorded once, and from then on run without it; numbers
that change (learning rates, step counts, places in streams of random numbers) are computed anew for each run, by the
same code; the shapes, modes and memory that all of it depends on are compared with what they were.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minigrad._mode import is_grad_enabled, mode, witnessed
from minigrad._op import Op
from minigrad._random import Generator
from minigrad._tensor import Tensor
from minigrad.device import check, cuda, kernels, out_of_memory
from minigrad.kernels.recording import SCHEDULES, SEEDS, let_go, refuse
from minigrad.nn.module import Module
from minigrad.ops.shape import clone
from minigrad.optim.optimizer import Optimizer

_WHO = "mg.capture"
_CONSTANTS = bool | int | float | str | None


class _Watch:
    """Told of what a step does beside its ops: `mode.recorder`. While a step is recorded, it also says no."""

    def __init__(self, device: str, inputs: dict[Any, Any], recording: Any = None):
        self.device, self.recording = device, recording
        self.inputs = {id(x.version): name for name, x in inputs.items() if isinstance(x, Tensor)}
        self.modules: dict[int, Module] = {}
        self.roots: list[Module] = []  # those that are no part of others
        self.leaves: dict[int, Tensor] = {}  # whose gradients the step makes, or drops
        self.zeroed: set[int] = set()
        self.changed: list[list[int]] = []  # the version of a tensor, once for each change
        self.states: list[tuple[Optimizer, Tensor, dict[str, Any]]] = []
        self.groups: dict[int, tuple[Optimizer, list[list[int]]]] = {}
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
                f"{_WHO}: the step writes into argument {self.inputs[id(version)]!r}, which is a copy: the caller's "
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
                f"{_WHO}: the step adds to the gradient, from before the step, of a tensor of shape {leaf.shape}. Call "
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
                    f"{_WHO}: {type(optimizer).__name__} made its state for a parameter of shape {p.shape} in the "
                    f"second step. Every parameter must have a gradient in the first step, too."
                )
        self.groups[id(optimizer)] = optimizer, _members(optimizer)
        self.states += [(optimizer, p, optimizer.state[p]) for p in params if p in optimizer.state]

    def witness(self, op: Op, inputs: Any, attributes: Any, out: Tensor, aux: Any) -> None:
        self.ran_on(out.device, f"op {op.name!r}")
        for x in inputs:
            if isinstance(x, Tensor) and x.node is None and id(x.data) not in self.made:
                self.used.setdefault(id(x), (weakref.ref(x), None if x.grad is None else weakref.ref(x.grad)))
        self.made.update(id(x.data) for x in (out, *aux))

    def ran_on(self, device: str, what: str) -> None:
        if device != self.device:
            raise RuntimeError(
                f"{_WHO}: {what} ran on {device!r}, and the step is captured on {self.device!r}. Move its tensors "
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
            p.grad = Tensor(g, p.device)
        self._update()

    def take_back(self) -> None:
        for (state, name), count in zip(self._counts, self._before, strict=True):
            state[name] = count


class CapturedStep:
    """What `mg.capture(fn)` returns: call it like `fn`."""

    def __init__(self, fn: Callable[..., Any], device: str):
        self._fn, self._device = fn, device
        self._asked: dict[Any, Any] = {}  # what the arguments looked like
        self._modules: dict[int, Module] = {}
        self._roots: list[Module] = []
        self._modes: list[tuple[Module, bool]] = []
        self._recording: Any = None
        self._one_at_a_time = threading.RLock()  # the memory is the step's: threads take turns
        self._leaves: list[Tensor] = []  # with a gradient when the step is over
        self._dropped: list[Tensor] = []  # without one, though the step has made it, or dropped another
        self._bare: list[Tensor] = []  # without one when the step was recorded, which did not say that it drops it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.recorder is not None:
            raise RuntimeError(f"{_WHO}: a captured step cannot be a part of another one")
        with self._one_at_a_time:
            return self._call({**dict(enumerate(args)), **kwargs})

    def _call(self, given: dict[Any, Any]) -> Any:
        modes = {"grad mode": is_grad_enabled(), "anomaly mode": mode.anomaly}
        asked = {name: _look(name, x) for name, x in given.items()} | modes
        if not self._asked:
            return self._warm_up(given, asked)
        self._compare(asked)
        if any(leaf.grad is not None for leaf in self._bare):
            self._recording = None  # does the step drop them itself? The record does not say
        if self._recording is None:
            results, gradients = self._capture(given)
        else:
            self._check_memory()
            for name, x in given.items():
                if isinstance(x, Tensor):
                    self._inputs[name].copy_(x.to(device=self._device))
            self._recording.renew()
            for version in self._changed:
                version[0] += 1
            for leaf in (*self._leaves, *self._dropped):
                leaf.grad = None  # so that its memory is used again
            try:
                results, gradients = self._recording.run()
            except BaseException as error:
                for leaf in (*self._leaves, *self._dropped):
                    leaf.grad = None
                if isinstance(error, MemoryError):
                    raise out_of_memory(_WHO, self._device, error) from None
                raise
        for leaf, g in zip(self._leaves, gradients, strict=True):
            leaf.grad = Tensor(g, self._device)
        for leaf in self._dropped:
            leaf.grad = None
        left = iter(results)
        return _each(self._form, lambda _: Tensor(next(left), self._device))

    def __str__(self) -> str:
        if self._recording is None:
            return f"<a step of {self._fn!r} that is captured by its second call>"
        named = [pair for root in self._roots for pair in (*root.named_parameters(), *root.named_buffers())]
        named += [(f"argument {name}", x) for name, x in self._inputs.items() if isinstance(x, Tensor)]
        text: str = self._recording.text({id(x.data): name for name, x in named})
        return text

    def _warm_up(self, given: dict[Any, Any], asked: dict[Any, Any]) -> Any:
        inputs = self._copies(given)
        watch = _Watch(self._device, inputs)
        with watch.watching():
            out = _run(self._fn, inputs)
        self._asked, self._modules, self._roots = asked, watch.modules, watch.roots
        self._modes = [(m, m.training) for m in watch.modules.values()]
        self._leaves, self._optimizers = list(watch.leaves.values()), list(watch.optimizers.values())
        # Copies: nobody else shall hold what the step lets go of, as the second call sees that by its being gone.
        return _each(out, lambda x: clone(x.detach()))

    def _copies(self, given: dict[Any, Any]) -> dict[Any, Any]:
        return {
            name: clone(x.detach().to(device=self._device)) if isinstance(x, Tensor) else x for name, x in given.items()
        }

    def _capture(self, given: dict[Any, Any]) -> tuple[Any, Any]:
        """Record the step, and make it. If that fails, what it has changed is put back."""
        recording = kernels(self._device).new_recording()
        inputs = self._copies(given)
        watch = _Watch(self._device, inputs, recording)
        self._inputs = _each(inputs, lambda x: x.detach())  # which require no grad, whatever the step says of its own
        before = [(tree, name, x) for tree, name, x in self._tensors()]
        options = [(optimizer, _options(optimizer)) for optimizer in self._optimizers]
        bare = [leaf for leaf in (*self._leaves, *self._dropped) if leaf.grad is None]
        try:
            with recording.record(), watch.watching(), witnessed(watch.witness):
                out = _each(_run(self._fn, inputs), lambda x: x.detach())
            if any(tree.get(name) is not x for tree, name, x in before):
                let_go()
            self._form = _each(out, lambda x: Tensor(None))
            for optimizer, were in options:
                if _options(optimizer) != were:
                    raise RuntimeError(
                        f"{_WHO}: the step changes options of {type(optimizer).__name__}, such as its learning rate, "
                        f"which a captured step would not. Change them between the calls."
                    )
            used = [(x, grad) for reference, grad in watch.used.values() if (x := reference()) is not None]
            for x, grad in used:
                if x.grad is not None and (grad is None or grad() is not x.grad):
                    watch.leaves[id(x)] = x
            leaves = [leaf for leaf in watch.leaves.values() if leaf.grad is not None]
            made = recording.finish(_arrays(out), [leaf.grad.data for leaf in leaves if leaf.grad is not None])
        except BaseException:
            recording.undo()
            watch.undo()
            raise
        self._recording, self._leaves = recording, leaves
        self._dropped = [leaf for leaf in watch.leaves.values() if leaf.grad is None]
        self._bare = [leaf for leaf in bare if id(leaf) in watch.leaves.keys() - watch.zeroed]
        self._states, self._groups, self._changed = watch.states, list(watch.groups.values()), watch.changed
        self._modules, self._roots = watch.modules, watch.roots
        self._modes = [(m, m.training) for m in watch.modules.values()]
        self._memory = [(tree, name, x, x.data, x.requires_grad) for tree, name, x in self._tensors()]
        theirs = {id(x) for _, _, x in self._tensors()}
        self._others = [(x, x.data, x.requires_grad) for x, _ in used if id(x) not in theirs]
        self._trees = [tree for m in self._modules.values() for tree in (m._modules, m._forward_hooks)]
        self._forms = [dict(tree) for tree in self._trees]
        self._absent = [
            (tree, name)
            for m in self._modules.values()
            for tree in (m._parameters, m._buffers)
            for name, x in tree.items()
            if x is None
        ]
        return made

    def _tensors(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        for m in self._modules.values():
            for tree in (m._parameters, m._buffers):
                for name, x in tree.items():
                    if x is not None:
                        yield tree, name, x

    def _compare(self, asked: dict[Any, Any]) -> None:
        if asked != self._asked:
            for name in {**self._asked, **asked}:
                was, now = (_said(looks.get(name, "absent")) for looks in (self._asked, asked))
                if was != now:
                    what = name if name in ("grad mode", "anomaly mode") else f"argument {name!r}"
                    raise ValueError(
                        f"{_WHO}: {what} was {was} in the first step; got {now}. A captured step does one thing: make "
                        f"another one, and pass numbers that change as tensors."
                    )
        for module, training in self._modes:
            if module.training is not training:
                words = ("evaluation", "training")
                raise RuntimeError(
                    f"{_WHO}: {type(module).__name__} was in {words[training]} mode in the first step, and is in "
                    f"{words[module.training]} mode now. Make a step for each mode."
                )

    def _check_memory(self) -> None:
        for tree, name, x, data, required in self._memory:
            if tree.get(name) is not x or x.data is not data:
                raise RuntimeError(
                    f"{_WHO}: {name!r}, of shape {x.shape}, has been replaced, or moved, since the step was captured. "
                    f"Make the step anew, or write into it with copy_()."
                )
            if x.requires_grad is not required:
                raise RuntimeError(
                    f"{_WHO}: requires_grad of {name!r}, of shape {x.shape}, was {required} when the step was captured "
                    f"and is {x.requires_grad} now. Make the step anew."
                )
        for x, data, required in self._others:
            if x.data is not data or x.requires_grad is not required:
                raise RuntimeError(
                    f"{_WHO}: a tensor of shape {x.shape} was moved, or its requires_grad is not {required} any more, "
                    f"since the step was captured. Make the step anew."
                )
        if self._trees != self._forms or any(tree.get(name) is not None for tree, name in self._absent):
            raise RuntimeError(
                f"{_WHO}: modules, parameters or hooks were put in or taken out since the step was captured. Make the "
                f"step anew."
            )
        for optimizer, members in self._groups:
            if (now := _members(optimizer)) != members:
                was, has = (list(map(len, groups)) for groups in (members, now))
                raise RuntimeError(
                    f"{_WHO}: {type(optimizer).__name__} had groups of {was} parameters when the step was captured "
                    f"and has {has if has != was else 'others'} now (add_param_group). Make the step anew."
                )
        for optimizer, p, state in self._states:
            if optimizer.state.get(p) is not state:
                raise RuntimeError(
                    f"{_WHO}: {type(optimizer).__name__} has got another state since the step was captured "
                    f"(load_state_dict). Make the step anew."
                )


def _run(fn: Callable[..., Any], inputs: dict[Any, Any]) -> Any:
    args = [x for name, x in inputs.items() if isinstance(name, int)]
    return fn(*args, **{name: x for name, x in inputs.items() if isinstance(name, str)})


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{name: x for name, x in group.items() if name != "params"} for group in optimizer.param_groups]


def _members(optimizer: Optimizer) -> list[list[int]]:
    """Which parameters are in its groups."""
    return [list(map(id, group["params"])) for group in optimizer.param_groups]


def _look(name: Any, x: Any) -> Any:
    """What must stay the same of an argument."""
    if isinstance(x, Tensor):
        if x.requires_grad:
            raise ValueError(
                f"{_WHO}: argument {name!r} requires grad, but no gradient leaves a captured step by its arguments. "
                f"Pass x.detach(), and say requires_grad_() in the step."
            )
        return x.dtype, x.shape
    if not isinstance(x, _CONSTANTS):
        raise TypeError(f"{_WHO}: expected tensors, or constants, as arguments; got {type(x).__name__} for {name!r}")
    return repr(x)


def _said(look: Any) -> Any:
    return "a {} tensor of shape {}".format(*look) if type(look) is tuple else look


def _each(out: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """f of every tensor in what a step returned."""
    if isinstance(out, Tensor):
        return f(out)
    if isinstance(out, dict):
        return {key: _each(x, f) for key, x in out.items()}
    if isinstance(out, tuple | list):
        made = [_each(x, f) for x in out]
        return type(out)(*made) if hasattr(out, "_fields") else type(out)(made)
    if not isinstance(out, _CONSTANTS):
        raise TypeError(f"{_WHO}: expected the step to return tensors, alone or in tuples; got {type(out).__name__}")
    return out


def _arrays(out: Any) -> list[Any]:
    """Of the tensors, in that order."""
    found: list[Any] = []

    def look(x: Tensor) -> Tensor:
        found.append(x.data)
        return x

    _each(out, look)
    return found


def capture(fn: Callable[..., Any], *, device: str = "cpu") -> CapturedStep:
    """A training step without its Python: `step = mg.capture(fn)`, then `step(x, y)` as often as needed.

    `fn` does a whole step: zero_grad(), forward, backward, optimizer step, on tensors on `device`. The first call runs
    it as it is. The second one records the kernels that it calls; all later calls run the record: bit for bit what `fn`
    would have done. On the CPU a record is a function that calls kernels on arrays; no graph is made, and kernels whose
    arrays lie where they lay are called from machine code, without Python, which for small networks is most of a step's
    time. On a GPU it is a CUDA graph (`mg.cuda.graph(fn)` is the same as `device="cuda"`). `print(step)` shows what a
    call does, below what is made once.

    Arguments are copied into the step's own memory, row by row (the sum of a transposed one is then that of its
    `clone()`, which may differ in the last bit); what `fn` returned (tensors, alone or in tuples, lists and dicts)
    is copied out of it, detached. Parameters, u and v, and the optimizer's state stay the same tensors. A gradient
    may be written where that of the call before was: clone() it to keep it.
    Learning rates and other options of the optimizer, its step counts and the generators' offsets are read, and
    advanced, at every call.

    A call is refused with what has changed since the first step: ValueError for shapes, dtypes, constants among the
    arguments, the grad and the anomaly mode, RuntimeError for training or evaluation mode, other modules or hooks,
    replaced or frozen parameters, other parameters or state of an optimizer.
    RuntimeError, at the second call, for a step that cannot be recorded: it reads values on the host (item(), an `if`
    on a tensor, a boolean mask, on a GPU an SVD), makes tensors from host values, seeds generators, changes learning
    rates, works on another device, adds to, or steps along, gradients of the step before, or replaces a tensor that it
    should change in place. State is then as before that call. RuntimeError, at any call, for a step that writes into
    its arguments. Values and Python objects that are no tensors (a counter, a list) are what they were in the second
    call.

    >>> import minigrad as mg
    >>> net = mg.nn.utils.spectral_norm(mg.nn.Linear(3, 1))
    >>> optimizer = mg.optim.SGD(net.parameters(), lr=0.1)
    >>> @mg.capture
    ... def step(x):
    ...     optimizer.zero_grad()
    ...     loss = net(x).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> losses = [step(mg.ones(4, 3)).item() for _ in range(10)]
    >>> losses[-1] < losses[0]
    True
    """
    return CapturedStep(fn, check(device, _WHO))


def graph(fn: Callable[..., Any]) -> CapturedStep:
    """`mg.capture(fn, device="cuda")`: a training step as one CUDA graph."""
    return capture(fn, device="cuda")


cuda.graph = staticmethod(graph)
