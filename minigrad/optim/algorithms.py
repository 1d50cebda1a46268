"""SGD, Adam, AdamW, RMSprop: the options, and which state goes to which kernel."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from minigrad._tensor import Tensor
from minigrad.optim.optimizer import Group, Optimizer

Params = Iterable[Tensor] | Iterable[Group]


_data, _gradient = operator.attrgetter("data"), operator.attrgetter("grad.data")


def _stored(states: Sequence[dict[str, Any]], name: str, is_used: Any = True) -> list[Any]:
    """What the states hold under a name, or None for each."""
    return [state[name].data if is_used else None for state in states]


class SGD(Optimizer):
    """θ ← θ − lr · d, d = ∇ + weight_decay · θ; with momentum d is b ← momentum · b + (1 − dampening) d instead.

    The first b is d itself. With `nesterov` (momentum > 0, no dampening) the direction is d + momentum · b. Sutskever,
    Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013, in torch's
    form, where lr is outside of b.

    >>> import minigrad as mg
    >>> w = mg.tensor([1.0], requires_grad=True)
    >>> optimizer = mg.optim.SGD([w], lr=0.5)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w
    tensor([0.], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "nesterov": nesterov})

    def _check_options(self, group: Group) -> None:
        super()._check_options(group)
        if group["nesterov"] and not (group["momentum"] > 0 and group["dampening"] == 0):
            raise ValueError("SGD: nesterov needs a momentum > 0 and no dampening")

    def _update(self, k: Any, params: list[Tensor], group: Group) -> None:
        momentum, gain = group["momentum"], 1 - group["dampening"]
        gains = [gain if "momentum_buffer" in self.state.get(p, ()) else 1.0 for p in params]
        states = self._states(params, *["momentum_buffer"] * bool(momentum))
        k.sgd(
            [*map(_data, params)],
            [*map(_gradient, params)],
            _stored(states, "momentum_buffer", momentum),
            gains,
            group["lr"],
            momentum,
            group["weight_decay"],
            group["nesterov"],
        )


class Adam(Optimizer):
    """θ ← θ − lr · m̂ / (√v̂ + eps): running means m of ∇ and v of ∇², freed of their bias towards the zero start.

    m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ) at a parameter's t-th step. Weight decay is added to the gradient. Kingma, Ba,
    arXiv 1412.6980. The paper's settings for GANs are betas=(0.5, 0.999) or (0, 0.9).

    >>> import minigrad as mg
    >>> w = mg.tensor([1.0], requires_grad=True)
    >>> optimizer = mg.optim.Adam([w], lr=0.25)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w
    tensor([0.75], requires_grad=True)
    """

    _decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check_options(self, group: Group) -> None:
        super()._check_options(group)
        if not hasattr(group["betas"], "__len__"):
            raise TypeError(f"{type(self).__name__}: expected two betas in [0, 1); got {group['betas']}")
        if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"{type(self).__name__}: expected two betas in [0, 1); got {group['betas']}")

    def _update(self, k: Any, params: list[Tensor], group: Group) -> None:
        states = self._states(params, "exp_avg", "exp_avg_sq")
        for state in states:
            state["step"] = int(state.get("step", 0)) + 1
        k.adam(
            [*map(_data, params)],
            [*map(_gradient, params)],
            _stored(states, "exp_avg"),
            _stored(states, "exp_avg_sq"),
            [state["step"] for state in states],
            group["lr"],
            group["betas"],
            group["eps"],
            group["weight_decay"],
            self._decoupled,
        )


class AdamW(Adam):
    """Adam whose weight decay is θ ← (1 − lr · weight_decay) θ before a step. Loshchilov, Hutter, arXiv 1711.05101.

    >>> import minigrad as mg
    >>> w = mg.tensor([1.0], requires_grad=True)
    >>> w.grad = mg.zeros(1)
    >>> mg.optim.AdamW([w], lr=0.5, weight_decay=0.5).step()
    >>> w
    tensor([0.75], requires_grad=True)
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """θ ← θ − lr · ∇ / (√v + eps), v a running mean of ∇²; `centered`: of the variance. Tieleman, Hinton, 2012.

    With momentum, θ ← θ − lr · b, b ← momentum · b + ∇ / (√v + eps). Weight decay is added to the gradient.

    >>> import minigrad as mg
    >>> w = mg.tensor([1.0], requires_grad=True)
    >>> optimizer = mg.optim.RMSprop([w], lr=0.025)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w
    tensor([0.75], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ):
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "momentum": momentum, "centered": centered})

    def _check_options(self, group: Group) -> None:
        super()._check_options(group)
        if not 0 <= group["alpha"] <= 1:
            raise ValueError(f"RMSprop: expected alpha in [0, 1]; got {group['alpha']}")

    def _update(self, k: Any, params: list[Tensor], group: Group) -> None:
        used = {"square_avg": True, "grad_avg": group["centered"], "momentum_buffer": group["momentum"]}
        states = self._states(params, *[name for name in used if used[name]])
        k.rmsprop(
            [*map(_data, params)],
            [*map(_gradient, params)],
            _stored(states, "square_avg"),
            _stored(states, "grad_avg", group["centered"]),
            _stored(states, "momentum_buffer", group["momentum"]),
            group["lr"],
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
        )
