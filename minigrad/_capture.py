"""Captured steps: a training step as a list of kernels (on a GPU, a CUDA graph), and what watches over it.

A step's Python is taken apart. The kernels that it calls are recorded once, and from then on run without it; numbers
that change (learning rates, step counts, places in streams of random numbers) are computed anew for each run, by the
same code; the shapes, modes and memory that all of it depends on are compared with what they were.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

from minigrad._guards import Guards
from minigrad._mode import mode, witnessed
from minigrad._tensor import Tensor
from minigrad._watch import WHO, Watch
from minigrad.device import check, cuda, kernels, out_of_memory
from minigrad.kernels.recording import let_go
from minigrad.nn.module import Module
from minigrad.ops.shape import clone
from minigrad.optim.optimizer import Optimizer

_training = operator.attrgetter("training")
_CONSTANTS = bool | int | float | str | None


class CapturedStep:
    """What `mg.capture(fn)` returns: call it like `fn`."""

    def __init__(self, fn: Callable[..., Any], device: str):
        self._fn, self._device = fn, device
        self._asked: dict[Any, Any] = {}  # what the arguments looked like
        self._roots: list[Module] = []
        self._modes: dict[Module, bool] = {}  # was it in training mode?
        self._recording: Any = None
        self._one_at_a_time = threading.RLock()  # the memory is the step's: threads take turns
        self._leaves: list[Tensor] = []  # with a gradient when the step is over
        self._dropped: list[Tensor] = []  # without one, though the step has made it, or dropped another
        self._bare: list[Tensor] = []  # without one when the step was recorded, which did not say that it drops it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.recorder is not None:
            raise RuntimeError(f"{WHO}: a captured step cannot be a part of another one")
        given: dict[Any, Any] = dict(enumerate(args))
        given.update(kwargs)
        with self._one_at_a_time:
            return self._call(given)

    def _call(self, given: dict[Any, Any]) -> Any:
        asked = {name: _look(name, x) for name, x in given.items()}
        asked["grad mode"], asked["anomaly mode"] = mode.grad, mode.anomaly
        if not self._asked:
            return self._warm_up(given, asked)
        self._compare(asked)
        if self._bare and any(leaf.grad is not None for leaf in self._bare):
            self._recording = None  # does the step drop them itself? The record does not say
        if self._recording is None:
            results, gradients = self._capture(given)
        else:
            self._guards.check()
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
                    raise out_of_memory(WHO, self._device, error) from None
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
        watch = Watch(self._device, inputs)
        with watch.watching():
            out = _run(self._fn, inputs)
        self._asked, self._roots = asked, watch.roots
        self._modes = {m: m.training for m in watch.modules.values()}
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
        watch = Watch(self._device, inputs, recording)
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
                        f"{WHO}: the step changes options of {type(optimizer).__name__}, such as its learning rate, "
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
        self._roots, self._changed = watch.roots, watch.changed
        self._modes = {m: m.training for m in watch.modules.values()}
        self._guards = Guards(watch.modules.values(), watch.stepped, [x for x, _ in used])
        return made

    def _tensors(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        for m in self._modes:
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
                        f"{WHO}: {what} was {was} in the first step; got {now}. A captured step does one thing: make "
                        f"another one, and pass numbers that change as tensors."
                    )
        if list(map(_training, self._modes)) != list(self._modes.values()):
            words = ("evaluation", "training")
            module, training = next((m, then) for m, then in self._modes.items() if m.training is not then)
            raise RuntimeError(
                f"{WHO}: {type(module).__name__} was in {words[training]} mode in the first step, and is in "
                f"{words[module.training]} mode now. Make a step for each mode."
            )


def _run(fn: Callable[..., Any], inputs: dict[Any, Any]) -> Any:
    args = [x for name, x in inputs.items() if isinstance(name, int)]
    return fn(*args, **{name: x for name, x in inputs.items() if isinstance(name, str)})


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{name: x for name, x in group.items() if name != "params"} for group in optimizer.param_groups]


def _look(name: Any, x: Any) -> Any:
    """What must stay the same of an argument."""
    if isinstance(x, Tensor):
        if x.requires_grad:
            raise ValueError(
                f"{WHO}: argument {name!r} requires grad, but no gradient leaves a captured step by its arguments. "
                f"Pass x.detach(), and say requires_grad_() in the step."
            )
        return x.dtype, x.shape
    if not isinstance(x, _CONSTANTS):
        raise TypeError(f"{WHO}: expected tensors, or constants, as arguments; got {type(x).__name__} for {name!r}")
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
        raise TypeError(f"{WHO}: expected the step to return tensors, alone or in tuples; got {type(out).__name__}")
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
    return CapturedStep(fn, check(device, WHO))


def graph(fn: Callable[..., Any]) -> CapturedStep:
    """`mg.capture(fn, device="cuda")`: a training step as one CUDA graph."""
    return capture(fn, device="cuda")


cuda.graph = staticmethod(graph)
