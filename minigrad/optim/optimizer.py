"""What optimizers have in common: groups of parameters with options, state per parameter, and the order of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from minigrad import _dtypes
from minigrad._mode import enable_grad, mode
from minigrad._tensor import Tensor, changed, drop_grad
from minigrad.device import kernels
from minigrad.ops.creation import zeros_like

Group = dict[str, Any]

_TRAINED = (_dtypes.float32, _dtypes.float64)


class Optimizer:
    """Parameters in groups, each with its own options, and what the algorithm remembers about every parameter.

    `params`: tensors, or dicts with "params" and options that depart from the defaults. A step skips parameters whose
    gradient is None. ValueError: no parameters, one twice, one that is no leaf, an option out of range; TypeError: a
    parameter that holds float16, in which small updates would be lost, or no floats.

    >>> import minigrad as mg
    >>> body, head = mg.nn.Linear(2, 2), mg.nn.Linear(2, 1)
    >>> optimizer = mg.optim.SGD([{"params": body.parameters(), "lr": 0.01}, {"params": head.parameters()}], lr=0.1)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.01, 0.1]
    """

    param_groups: list[Group]
    state: dict[Tensor, dict[str, Any]]

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], defaults: Group):
        self.defaults = defaults
        self.param_groups = []
        self.state = {}
        if isinstance(params, Tensor) or not isinstance(params, Iterable):  # a tensor's rows would be no leaves
            self._refuse(params, "[tensor]" if isinstance(params, Tensor) else "module.parameters()")
        given = list(params)
        if not given:
            raise ValueError(f"{type(self).__name__}: expected parameters; got none")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)  # type: ignore[arg-type]

    def add_param_group(self, param_group: Group) -> None:
        """Train further parameters: a dict with "params" and options that depart from the defaults."""
        who = type(self).__name__
        if not isinstance(param_group, Mapping):
            self._refuse(param_group, "groups only, or tensors only")
        if "params" not in param_group:
            raise ValueError(f"{who}: expected 'params' in a group; got {', '.join(param_group) or 'nothing'}")
        params = param_group["params"]
        group = {**self.defaults, **param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
        if unknown := set(param_group) - {"params", "initial_lr", *self.defaults}:
            raise ValueError(f"{who}: no option {sorted(unknown)}; there is {', '.join(self.defaults)}")
        self._check_options(group)
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for p in group["params"]:
            if not isinstance(p, Tensor):
                raise TypeError(f"{who}: expected tensors; got {type(p).__name__}. Pass module.parameters().")
            self._check_dtype(p)
            if not p.is_leaf:
                raise ValueError(f"{who}: expected leaves; got the output of an op. Optimize what it was made from.")
            if id(p) in known:
                raise ValueError(f"{who}: a parameter of shape {p.shape} occurs twice")
            known.add(id(p))
        self.param_groups.append(group)

    def _refuse(self, params: Any, way_out: str) -> NoReturn:
        who, found = type(self).__name__, type(params).__name__
        raise TypeError(f"{who}: expected tensors or dicts with 'params'; got {found}. Pass {way_out}.")

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "eps", "weight_decay", "momentum"):
            if not hasattr(group.get(name, 0.0), "__float__"):
                raise TypeError(f"{type(self).__name__}: expected {name} as a number; got {group[name]!r}")
            if not group.get(name, 0.0) >= 0:
                raise ValueError(f"{type(self).__name__}: expected {name} ≥ 0; got {group[name]}")

    def _check_dtype(self, p: Tensor) -> None:
        if p.dtype not in _TRAINED:
            raise TypeError(
                f"{type(self).__name__}: expected parameters of dtype float32 or float64; got {p.dtype}. Train in "
                f"float32, and store in float16."
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    drop_grad(p)
                else:
                    p.grad = p.grad.detach().zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place; a `closure` is run first, and its loss returned.

        ValueError, TypeError, RuntimeError: a gradient unlike its parameter in shape, dtype, or device.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for _, ready in groups:  # all of them before the first one moves
            for p in ready:
                self._check_gradient(p)
        for group, ready in groups:
            for device in dict.fromkeys(p.device for p in ready):
                on_it = [p for p in ready if p.device == device]
                update = functools.partial(self._update_on, device, on_it, group)
                if mode.recorder is None:
                    update()
                else:
                    mode.recorder.updates(self, on_it, update)
            for p in ready:
                changed(p)
        return loss

    def _check_gradient(self, p: Tensor) -> None:
        g = p.grad
        assert g is not None
        if g.data.shape == p.data.shape and g.data.dtype == p.data.dtype in _TRAINED and g.device == p.device:
            return
        self._check_dtype(p)
        who = f"{type(self).__name__}.step"
        if g.shape != p.shape:
            raise ValueError(f"{who}: expected a gradient of the parameter's shape {p.shape}; got {g.shape}")
        if g.dtype != p.dtype:
            raise TypeError(f"{who}: expected a gradient of the parameter's dtype {p.dtype}; got {g.dtype}")
        if g.device != p.device:
            raise RuntimeError(f"{who}: expected a gradient on the parameter's device {p.device}; got {g.device}")

    def _update_on(self, device: str, params: list[Tensor], group: Group) -> None:
        self._update(kernels(device), params, group)

    def _update(self, k: Any, params: list[Tensor], group: Group) -> None:
        """One step for parameters on one device, each with a gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no _update()")

    def _states(self, params: Iterable[Tensor], *names: str) -> list[dict[str, Any]]:
        """What is remembered of each parameter, with tensors of these names, zeros at first."""
        states = []
        for p in params:
            state = self.state.get(p)
            if state is None:
                state = self.state[p] = {}
            for name in names:
                if name not in state:
                    state[name] = zeros_like(p)
            states.append(state)
        return states

    def state_dict(self) -> dict[str, Any]:
        """The groups' options, and the state of the parameters, which are numbered through; tensors share memory.

        >>> import minigrad as mg
        >>> optimizer = mg.optim.SGD(mg.nn.Linear(2, 1).parameters(), lr=0.1)
        >>> optimizer.state_dict()["param_groups"][0]["params"]
        [0, 1]
        """
        numbers = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        return {
            "state": {numbers[p]: dict(state) for p, state in self.state.items()},
            "param_groups": [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy options and state from a state dict of the same algorithm, made for as many parameters of such shapes.

        ValueError: other groups or shapes, an option that the algorithm has not or that is out of range, state of more
        parameters. TypeError: state that is neither tensor nor number. Nothing has changed then.
        """
        who = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            got = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"{who}: expected 'state' and 'param_groups', as state_dict() makes them; got {got}")
        groups = state_dict["param_groups"]
        expected = [len(group["params"]) for group in self.param_groups]
        if (found := [len(group["params"]) for group in groups]) != expected:
            raise ValueError(f"{who}: expected groups of {expected} parameters; got {found}")
        for theirs, ours in zip(groups, self.param_groups, strict=True):
            if unknown := set(theirs) - {"initial_lr", *ours}:
                raise ValueError(f"{who}: no option {sorted(unknown)}; there is {', '.join(self.defaults)}")
            self._check_options({**ours, **theirs})
        pairs = [
            (number, p)
            for theirs, ours in zip(groups, self.param_groups, strict=True)
            for number, p in zip(theirs["params"], ours["params"], strict=True)
        ]
        if foreign := set(state_dict["state"]) - {number for number, _ in pairs}:
            raise ValueError(f"{who}: state of {len(foreign)} parameters that are in no group: {sorted(foreign)}")
        state: dict[Tensor, dict[str, Any]] = {}
        for number, p in pairs:
            for name, value in state_dict["state"].get(number, {}).items():
                if not isinstance(value, Tensor | int | float):
                    raise TypeError(f"{who}: expected {name} to be a tensor or a number; got {type(value)}")
                if isinstance(value, Tensor):
                    if value.shape != p.shape:
                        raise ValueError(f"{who}: expected {name} of shape {p.shape}; got {value.shape}")
                    value = value.detach().to(dtype=p.dtype, device=p.device).clone()
                state.setdefault(p, {})[name] = value
        self.state = state
        for theirs, ours in zip(groups, self.param_groups, strict=True):
            ours.update({name: value for name, value in theirs.items() if name != "params"})

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            options = ", ".join(f"{name}={value}" for name, value in group.items() if name != "params")
            lines.append(f"  group {i}: {len(group['params'])} parameters, {options}")
        return "\n".join([*lines, ")"])
