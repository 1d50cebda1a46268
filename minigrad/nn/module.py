"""Module: a tree of parameters, buffers and submodules, and what a model needs of it; Parametrization.

The tree is three dictionaries. A forward call of a module whose parameter is computed from another one (a
`Parametrization`) carries the computed value in the call's own context, `_calls`, and not on the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from minigrad import _dtypes
from minigrad._mode import mode
from minigrad._tensor import Tensor, drop_grad
from minigrad.autograd import RemovableHandle
from minigrad.nn import _calls
from minigrad.nn._state import IncompatibleKeys, load
from minigrad.nn.parameter import Parameter


class Module:
    """The base of every layer and model: attributes that are Parameters, Modules or registered buffers form its tree.

    A subclass calls `super().__init__()` first and states its computation in `forward`; a call runs it.

    >>> import minigrad as mg
    >>> class Scale(mg.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.factor = mg.nn.Parameter(mg.tensor(3.0))
    ...     def forward(self, x):
    ...         return self.factor * x
    >>> scale = Scale()
    >>> scale(mg.tensor([1.0, 2.0])).tolist(), list(scale.state_dict())
    ([3.0, 6.0], ['factor'])
    """

    training: bool
    _narrowest: ClassVar[Any] = _dtypes.float16  # floating dtype that `to` gives this module's own tensors

    def __init__(self) -> None:
        vars(self).update(
            training=True, _parameters={}, _buffers={}, _modules={}, _not_persistent=set(), _forward_hooks={}
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of the module; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(). Define it, or call its submodules.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.recorder is not None:
            mode.recorder.enters(self)
        if "parametrizations" in self._modules:
            out = _calls.call(self, args, kwargs)
        else:
            out = self.forward(*args, **kwargs)
        if self._forward_hooks:
            for hook in tuple(self._forward_hooks.values()):
                replaced = hook(self, args, out)
                out = out if replaced is None else replaced
        return out

    def extra_repr(self) -> str:
        """What stands in the brackets of the repr."""
        return ""

    def __repr__(self) -> str:
        name, extra = type(self).__name__, self.extra_repr()
        children = [f"({key}): {module!r}".replace("\n", "\n  ") for key, module in self._modules.items()]
        if not children:
            return f"{name}({extra})"
        return "\n  ".join([f"{name}(", *([extra] if extra else []), *children]) + "\n)"

    # Attributes ------------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        own = vars(self)
        if "_modules" not in own:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before setting {name!r}")
        self._refuse_parametrized(name)
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.register_module(name, value)
        elif name in self._parameters:
            if value is not None:
                raise TypeError(
                    f"{type(self).__name__}.{name} is a Parameter; got {type(value).__name__}. Assign a Parameter or "
                    f"None, or write into it with copy_() under no_grad()."
                )
            self._parameters[name] = None
        elif name in self._buffers and (value is None or isinstance(value, Tensor)):
            self._buffers[name] = value
        else:
            self._forget(name)
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Only asked for what is no plain attribute: the tree, and the values of parametrizations."""
        own = self.__dict__
        for tree in ("_parameters", "_buffers", "_modules"):
            found = own.get(tree)
            if found is not None and name in found:
                return found[name]
        parametrized = self._parametrized() if "_modules" in own else {}
        if name in parametrized:
            value = _calls.value(self, name)
            return parametrized[name].read() if value is None else value
        there = ", ".join(self._names()) or "nothing" if "_modules" in own else "nothing before super().__init__()"
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; in its tree there is {there}")

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._names()})

    def _names(self) -> list[str]:
        return [*self._parameters, *self._buffers, *self._modules, *self._parametrized()]

    def _forget(self, name: str) -> bool:
        """Take a name out of the tree; was it there?"""
        self._not_persistent.discard(name)
        return any(tree.pop(name, self) is not self for tree in (self._parameters, self._buffers, self._modules))

    def _claim(self, name: str, value: Any, kind: type) -> None:
        """Check a name and its value, and free the name from what it held before."""
        if not name or "." in name:
            raise ValueError(f"{type(self).__name__}: a name in the tree must be non-empty, without dots; got {name!r}")
        if not isinstance(value, kind) and (value is not None or kind is Module):  # the tree goes through every module
            raise TypeError(f"{type(self).__name__}.{name}: expected a {kind.__name__}; got {type(value).__name__}")
        if hasattr(type(self), name):  # which Python finds first
            raise ValueError(f"{type(self).__name__} has {name!r} in its class, which would hide it. Rename it.")
        self._refuse_parametrized(name)
        vars(self).pop(name, None)

    def _refuse_parametrized(self, name: str) -> None:
        if name in self._parametrized():
            raise RuntimeError(
                f"{type(self).__name__}.{name} is computed by a parametrization and cannot be set. "
                f"Write into parametrizations.{name}.original, or remove the parametrization first."
            )

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a parameter under a name; None holds the place of one that the module does without."""
        self._claim(name, parameter, Parameter)
        if name not in self._parameters:
            self._forget(name)
        self._parameters[name] = parameter

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is state but not trained; in the state dict iff `persistent`."""
        self._claim(name, tensor, Tensor)
        self._forget(name)
        self._buffers[name] = tensor
        if not persistent:
            self._not_persistent.add(name)

    def register_module(self, name: str, module: Module) -> None:
        """Add a submodule under a name."""
        self._claim(name, module, Module)
        if name not in self._modules:
            self._forget(name)
        self._modules[name] = module

    add_module = register_module

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> RemovableHandle:
        """Call `hook(module, args, output)` after each forward; what it returns, if not None, replaces the output."""
        handle = RemovableHandle(self._forward_hooks)
        self._forward_hooks[handle._key] = hook
        return handle

    # The tree --------------------------------------------------------------------------------------------------------

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """(path, module) for this module and all below it, parents first, a shared one once."""
        return self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            yield from module._walk(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, parents first, a shared one once."""
        seen: dict[int, Module] = {}
        stack = [self]
        while stack:
            module = stack.pop()
            if id(module) not in seen:
                seen[id(module)] = module
                stack.extend(reversed(module._modules.values()))
        return iter(seen.values())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for the direct submodules, a shared one once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules."""
        return (module for _, module in self.named_children())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) of the whole tree, or of this module alone; a shared one once."""
        return self._tensors("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters of the whole tree, or of this module alone; a shared one once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(path, buffer) of the whole tree, or of this module alone; a shared one once."""
        return self._tensors("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers of the whole tree, or of this module alone; a shared one once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _tensors(self, tree: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix, remove_duplicate) if recurse else [(prefix, self)]:
            for name, tensor in vars(module)[tree].items():
                if tensor is not None and not (remove_duplicate and id(tensor) in seen):
                    seen.add(id(tensor))
                    yield f"{path}.{name}" if path else name, tensor

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on every module of the tree, children first, and return the module."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training (or evaluation) mode in the whole tree, and return the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode in the whole tree, and return the module."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let all parameters require grad, or none, and return the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None and (set_to_none or parameter.grad is None):
                    drop_grad(parameter)
                elif parameter is not None:
                    parameter.grad = parameter.grad.detach().zero_()

    def to(self, *target: Any, device: str | None = None, dtype: Any = None) -> Self:
        """Move the tree to a device, its floating tensors to a dtype: `to("cuda")`, `to(mg.float64)`, or both.

        The Parameters stay the same objects, so that an optimizer made before still holds them. What a module keeps
        in a wider dtype (spectral normalization its u, v and γ: never below float32) stays that wide.
        """
        for value in target:
            device, dtype = (value, dtype) if isinstance(value, str) else (device, value)
        if dtype is not None and _dtypes.check(dtype, "Module.to").kind != "f":
            raise TypeError(f"Module.to: expected a floating dtype; got {np.dtype(dtype)}")
        for module in self.modules():
            wanted = None if dtype is None else np.promote_types(dtype, module._narrowest)
            own = *module.parameters(recurse=False), *module.buffers(recurse=False)
            for t in (t for tensor in own for t in (tensor, tensor.grad) if t is not None):
                moved = Tensor(t.data, t.device).to(dtype=wanted if t.dtype.kind == "f" else None, device=device)
                if moved.data is not t.data:
                    t.data, t.device = moved.data, moved.device
                    t.version[0] += 1
        return self

    # State -----------------------------------------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Path -> tensor, for every parameter and persistent buffer; the tensors share the module's memory.

        >>> import minigrad as mg
        >>> list(mg.nn.Sequential(mg.nn.Linear(2, 3), mg.nn.ReLU(), mg.nn.Linear(3, 1, bias=False)).state_dict())
        ['0.weight', '0.bias', '2.weight']
        """
        return {path: tensor.detach() for path, tensor in self._saved(prefix)}

    def _saved(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
        for name, tensor in [*self._parameters.items(), *self._buffers.items()]:
            if tensor is not None and name not in self._not_persistent:
                yield prefix + name, tensor
        for name, module in self._modules.items():
            yield from module._saved(f"{prefix}{name}.")

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> IncompatibleKeys:
        """Copy the values of a state dict into the module's tensors, in place; all of them or, on an error, none.

        ValueError lists keys that are missing or unexpected (with `strict=False` these are returned instead) and
        tensors of another shape or dtype.
        """
        if not isinstance(state_dict, Mapping):
            who, found = type(self).__name__, type(state_dict).__name__
            raise TypeError(f"{who}.load_state_dict: expected a dict of tensors; got {found}. Pass mg.load(path).")
        return load(self, dict(state_dict), strict)

    def _adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Rewrite, in place, the part of a state dict under `prefix` that another layout of this module has named."""

    # Parametrizations ------------------------------------------------------------------------------------------------

    def _parametrized(self) -> dict[str, Parametrization]:
        container = self._modules.get("parametrizations")
        return {} if container is None else container._modules

    def parametrize(self, name: str, parametrization: Parametrization) -> None:
        """Let `parametrization` compute the value of `name` from the Parameter that was there, its `original`.

        ValueError: no such Parameter, or not the parametrization's own. RuntimeError: parametrized already.
        """
        who = f"{type(self).__name__}.parametrize"
        if name in self._parametrized():
            raise RuntimeError(f"{who}: {name!r} is parametrized already. Remove that parametrization first.")
        if self._parameters.get(name) is None:
            there = [key for key, parameter in self._parameters.items() if parameter is not None]
            raise ValueError(f"{who}: no Parameter {name!r}; there is {', '.join(there) or 'none'}")
        if parametrization.original is not self._parameters[name]:
            raise ValueError(f"{who}: the parametrization's original is not the module's Parameter {name!r}")
        if "parametrizations" not in self._modules:
            self.register_module("parametrizations", Parametrizations())
        del self._parameters[name]
        self._modules["parametrizations"].register_module(name, parametrization)

    def unparametrize(self, name: str) -> Parametrization:
        """Take a parametrization out and return it; its `original` is then the caller's to assign.

        ValueError: `name` is not parametrized.
        """
        there = self._parametrized()
        if name not in there:
            raise ValueError(
                f"{type(self).__name__}.unparametrize: {name!r} is not parametrized; {', '.join(there) or 'nothing'} is"
            )
        parametrization = there.pop(name)
        if not there:
            del self._modules["parametrizations"]
        return parametrization


class Parametrizations(Module):
    """The parametrizations of one module, by the name of the parameter that each stands for."""


class Parametrization(Module):
    """A rule that computes a module's parameter from another one, `original`, which it owns.

    A subclass says how in `begin`, for a forward call of the owning module, and in `read`, for everything else.

    >>> import minigrad as mg
    >>> class Positive(mg.nn.Parametrization):
    ...     def read(self):
    ...         return self.original.exp()
    >>> layer = mg.nn.Linear(2, 2)
    >>> layer.parametrize("weight", Positive(layer.weight))
    >>> layer.weight.min().item() > 0
    True
    """

    original: Parameter

    def __init__(self, original: Parameter):
        super().__init__()
        self.original = original

    def read(self) -> Tensor:
        """The value at the present state; changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} defines no read()")

    def begin(self, training: bool) -> tuple[Tensor, Callable[[], None]]:
        """The value for one forward call, and what to do to the state once that call has succeeded."""
        return self.read(), lambda: None

    def materialized(self) -> None:
        """Called once when `original`, a lazy layer's, has got its shape."""
