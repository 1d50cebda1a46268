"""What parametrized weights are worth during the forward calls of one thread, and values that stand in for them.

The values live in the thread and not on the modules, so that threads may run forwards of one model at once, and an
exception leaves everything as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from minigrad._tensor import Tensor

if TYPE_CHECKING:
    from minigrad.nn.module import Module

Values = dict[int, dict[str, Tensor]]  # id of the module -> name -> value


class _Calls(threading.local):
    def __init__(self) -> None:
        self.given: Values = {}
        self.running: Values = {}


_calls = _Calls()


def value(module: Module, name: str) -> Tensor | None:
    """The value given for a parametrized weight, or else that of the forward call now running; None outside of both."""
    key = id(module)
    for values in (_calls.given, _calls.running):
        found = values.get(key)
        if found is not None and name in found:
            return found[name]
    return None


def call(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward call: each parametrization begins it, and may step its state once it has succeeded."""
    key, running = id(module), _calls.running
    given = _calls.given.get(key, ())
    values: dict[str, Tensor] = {}
    commits = []
    for name, rule in module._parametrized().items():
        if name not in given:
            values[name], commit = rule.begin(module.training)
            commits.append(commit)
    outer = running.get(key)  # a call of this module from within its own forward
    running[key] = values
    try:
        out = module.forward(*args, **kwargs)
    finally:
        if outer is None:
            del running[key]
        else:
            running[key] = outer
    for commit in commits:
        commit()
    return out


@contextmanager
def substituted(values: Mapping[tuple[Module, str], Tensor]) -> Iterator[None]:
    """Let tensors stand in for parametrized weights, in this thread: `values` maps (module, name) to them.

    In the block a forward call of the module computes with the tensor, and reading the attribute gives it; its
    parametrization is not asked, so that no state is stepped. Blocks nest: the inner one's values hide the outer's.

    ValueError: a name that is not parametrized, or a tensor of another shape than its original.

    >>> import minigrad as mg
    >>> from minigrad.nn._calls import substituted
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(2, 2, bias=False))
    >>> with substituted({(layer, "weight"): mg.eye(2)}):
    ...     layer(mg.tensor([3.0, 4.0]))
    tensor([3., 4.])
    """
    outer = _calls.given
    given = {key: dict(names) for key, names in outer.items()}
    for (module, name), x in values.items():
        rules = module._parametrized()
        if name not in rules:
            there = ", ".join(rules) or "nothing"
            raise ValueError(f"substituted: {name!r} of {type(module).__name__} is not parametrized; {there} is")
        if x.shape != rules[name].original.shape:
            raise ValueError(
                f"substituted: expected a tensor of shape {rules[name].original.shape} for {name!r} of "
                f"{type(module).__name__}; got {x.shape}"
            )
        given.setdefault(id(module), {})[name] = x
    _calls.given = given
    try:
        yield
    finally:
        _calls.given = outer
