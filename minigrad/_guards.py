"""What a captured step takes for granted: the objects that it was recorded with, looked up anew before each call."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from minigrad._tensor import Tensor
from minigrad.nn.module import Module
from minigrad.optim.optimizer import Optimizer

_data, _required, _hooks = map(operator.attrgetter, ("data", "_requires_grad", "hooks"))


class Guards:
    """Of modules, of the parameters that optimizers have stepped, and of other tensors."""

    def __init__(self, modules: Iterable[Module], stepped: Sequence[tuple[Optimizer, Tensor]], others: list[Tensor]):
        self._trees = [tree for m in modules for tree in (m._parameters, m._buffers, m._modules, m._forward_hooks)]
        self._forms = [dict(tree) for tree in self._trees]
        self._filled, self._empty = [t for t in self._trees if t], [t for t in self._trees if not t]
        named = {id(x): (x, name) for form in self._forms for name, x in form.items() if isinstance(x, Tensor)}
        named |= {id(x): (x, "") for x in others if id(x) not in named}
        self._tensors, self._names = [x for x, _ in named.values()], [name for _, name in named.values()]
        self._stepped = stepped
        self._optimizers = list({id(optimizer): optimizer for optimizer, _ in stepped}.values())
        self._groups = [_sizes(optimizer) for optimizer in self._optimizers]
        self._hooks, self._then = self._hooked(), self._look()

    def _hooked(self) -> list[Any]:
        """The hooks of the tensors."""
        return [*chain.from_iterable(map(dict.values, filter(None, map(_hooks, self._tensors))))]

    def _look(self) -> list[Any]:
        """All that must stay the same object; listed without Python where it can be, as each step asks for it."""
        found = [*chain.from_iterable(map(dict.values, self._filled)), *map(_data, self._tensors)]
        found += map(_required, self._tensors)
        found.append(any(self._empty))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                found += group["params"]
        found += [optimizer.state.get(p) for optimizer, p in self._stepped] if self._stepped else ()
        return found + self._hooked()

    def check(self) -> None:
        """RuntimeError if anything is not what it was."""
        now = self._look()
        if not _same(now, self._then):
            raise RuntimeError(f"mg.capture: {self._difference()}. Make the step anew.")

    def _difference(self) -> str:
        for tree, form in zip(self._trees, self._forms, strict=True):
            for name in {**form, **tree}:
                was, now = form.get(name), tree.get(name)
                if was is not now and isinstance(was, Tensor) and now is not None:
                    return f"{name!r}, of shape {was.shape}, has been replaced since the step was captured"
                if was is not now:
                    what = repr(name) if isinstance(name, str) else "a hook"
                    return f"{what} was put into a module, or taken out of it, since the step was captured"
        there = self._then[sum(map(len, self._forms)) :]
        kept = zip(self._tensors, self._names, there, there[len(self._tensors) :], strict=False)
        for x, name, data, required in kept:
            what = f"{name!r}" if name else "a tensor"
            if x.data is not data:
                return f"{what}, of shape {x.shape}, has been moved since the step was captured"
            if x.requires_grad is not required:
                return (
                    f"requires_grad of {what}, of shape {x.shape}, was {required} when the step was captured and is "
                    f"{x.requires_grad} now"
                )
        for optimizer, sizes in zip(self._optimizers, self._groups, strict=True):
            if _sizes(optimizer) != sizes:
                return (
                    f"{type(optimizer).__name__} had groups of {sizes} parameters when the step was captured and has "
                    f"{_sizes(optimizer)} now (add_param_group)"
                )
        if not _same(self._hooked(), self._hooks):
            return "a hook was registered on a tensor, or removed, since the step was captured"
        return "an optimizer has got another state, or other parameters, since the step was captured (load_state_dict)"


def _same(now: list[Any], then: list[Any]) -> bool:
    return len(now) == len(then) and all(map(operator.is_, now, then))


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]
