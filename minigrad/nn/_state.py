"""Loading a state: all of it or, where it is refused, nothing; lazy layers then stay lazy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from minigrad import _random
from minigrad._mode import no_grad
from minigrad._tensor import Tensor
from minigrad.device import kernels
from minigrad.nn.parameter import UninitializedParameter

if TYPE_CHECKING:
    from minigrad.nn.module import Module


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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


def load(model: Module, state: dict[str, Tensor], strict: bool) -> IncompatibleKeys:
    """What `Module.load_state_dict` says."""
    with as_it_was_on_an_error(model):
        for path, module in model.named_modules(remove_duplicate=False):
            module._adapt_state(state, f"{path}." if path else "")
        own = dict(model._saved())
        skipped = IncompatibleKeys([key for key in own if key not in state], [key for key in state if key not in own])
        wrong = [f"{key}: missing" for key in skipped.missing_keys if strict]
        wrong += [f"{key}: unexpected" for key in skipped.unexpected_keys if strict]
        taken = {key: tensor for key, tensor in own.items() if key in state}
        for key, tensor in taken.items():
            if not isinstance(found := state[key], Tensor):
                wrong.append(f"{key}: expected a tensor; got {type(found).__name__}")
            elif isinstance(tensor, UninitializedParameter):
                wrong.append(f"{key}: a lazy layer takes its shape from a weight of 2 or more dimensions; got none")
            elif (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                wrong.append(f"{key}: expected {tensor.shape}, {tensor.dtype}; got {found.shape}, {found.dtype}")
        wrong += read_only(taken)
        if wrong:
            raise ValueError("\n  ".join([f"{type(model).__name__}.load_state_dict: nothing was loaded:", *wrong]))
        memory = {id(tensor.version) for tensor in taken.values()}  # a state of its own: two names swapped, perhaps
        with no_grad():
            values = [state[key].clone() if id(state[key].version) in memory else state[key] for key in taken]
            for tensor, value in zip(taken.values(), values, strict=True):
                tensor.copy_(value.to(device=tensor.device))
        return skipped
