"""A state that is refused changes nothing: lazy layers stay lazy, and what cannot be written to is found before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minigrad import _random
from minigrad._tensor import Tensor
from minigrad.device import kernels
from minigrad.nn.parameter import UninitializedParameter

if TYPE_CHECKING:
    from minigrad.nn.module import Module


@contextmanager
def as_it_was_on_an_error(model: Module) -> Iterator[None]:
    """Lazy layers get their shapes before a state can be compared with them; on an error they lose them again."""
    lazy = [m for m in model.modules() if any(isinstance(p, UninitializedParameter) for p in m.parameters())]
    modules = [(m, type(m), dict(vars(m))) for m in {m: None for owner in lazy for m in owner.modules()}]
    trees = [(tree, dict(tree)) for _, _, own in modules for tree in own.values() if isinstance(tree, dict)]
    parameters = [(p, type(p), p.data) for owner in lazy for p in owner.parameters()]
    random = _random.default.get_state()
    try:
        yield
    except Exception:
        for m, kind, own in modules:
            object.__setattr__(m, "__class__", kind)
            trees.append((vars(m), own))
        for tree, before in trees:
            tree.clear()
            tree.update(before)
        for p, cls, data in parameters:
            p.__class__, p.data = cls, data
        if lazy:  # their first values were drawn
            _random.default.set_state(random)
        raise


def read_only(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A line for each tensor that no values can be copied into."""
    for key, x in tensors.items():
        if not kernels(x.device).is_writable(x.data):
            yield f"{key}: is read-only here: an expanded view, or an array that forbids writing. Put a clone() there"
