"""One step of a recurrent network: RNN, LSTM and GRU cells."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from minigrad._tensor import Tensor
from minigrad.nn import init
from minigrad.nn.module import Module
from minigrad.nn.parameter import Parameter
from minigrad.ops import _arguments as arguments
from minigrad.ops.activation import relu, sigmoid, tanh
from minigrad.ops.creation import empty, zeros
from minigrad.ops.matmul import linear


class _Cell(Module):
    """`weight_ih` (gates · hidden, input), `weight_hh` (gates · hidden, hidden), a bias for each: on ±1/√hidden."""

    gates: ClassVar[int]
    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = None, device: str = "cpu"):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = self.gates * hidden_size
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        self.weight_ih = Parameter(empty(rows, input_size, **where))
        self.weight_hh = Parameter(empty(rows, hidden_size, **where))
        self.register_parameter("bias_ih", Parameter(empty(rows, **where)) if bias else None)
        self.register_parameter("bias_hh", Parameter(empty(rows, **where)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew."""
        bound = 1 / math.sqrt(max(self.hidden_size, 1))  # without a hidden state there is nothing to draw
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _checked(self, x: Tensor, state: Tensor | None) -> Tensor:
        who = type(self).__name__
        for given in (x,) if state is None else (x, state):
            arguments.tensor(who, given)
        expected = (*x.shape[:-1], self.hidden_size)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size or (state is not None and state.shape != expected):
            raise ValueError(
                f"{who}: expected x (N, {self.input_size}) or ({self.input_size},) and a state of "
                f"shape {expected}; got {x.shape} and {None if state is None else state.shape}"
            )
        return zeros(*expected, dtype=x.dtype, device=x.device) if state is None else state

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}"


class RNNCell(_Cell):
    """h′ = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu for tanh; x (N, input_size), h (N, hidden_size), 0 if None.

    >>> import minigrad as mg
    >>> mg.nn.RNNCell(3, 4)(mg.ones(2, 3)).shape
    (2, 4)
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = None,
        device: str = "cpu",
    ):
        super().__init__(input_size, hidden_size, bias, dtype=dtype, device=device)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNNCell: expected nonlinearity 'tanh' or 'relu'; got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = self._checked(x, h)
        total = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        return tanh(total) if self.nonlinearity == "tanh" else relu(total)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class LSTMCell(_Cell):
    """c′ = σ(f) c + σ(i) tanh(g), h′ = σ(o) tanh(c′), with (i, f, g, o) = W_ih x + b_ih + W_hh h + b_hh.

    Takes x (N, input_size) and (h, c), each (N, hidden_size), 0 if None; returns (h′, c′). Hochreiter, Schmidhuber,
    Neural Computation 9(8), 1997.

    >>> import minigrad as mg
    >>> h, c = mg.nn.LSTMCell(3, 4)(mg.ones(2, 3))
    >>> h.shape, c.shape
    ((2, 4), (2, 4))
    """

    gates = 4

    def forward(self, x: Tensor, state: tuple[Tensor | None, Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
        state = (None, None) if state is None else state
        if not isinstance(state, tuple | list) or len(state) != 2:
            found = f"{len(state)} of them" if isinstance(state, tuple | list) else f"a {type(state).__name__}"
            raise TypeError(f"LSTMCell: expected its state as a pair of tensors (h, c); got {found}")
        h, c = (self._checked(x, part) for part in state)
        total = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = total.chunk(4, dim=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c


class GRUCell(_Cell):
    """h′ = (1 − z) n + z h, with n = tanh(n_x + r n_h) and gates r, z = σ(·), each part affine in x and in h.

    Takes x (N, input_size) and h (N, hidden_size), 0 if None. Cho et al., arXiv 1406.1078, with the reset gate after
    the matrix product, as in torch.

    >>> import minigrad as mg
    >>> mg.nn.GRUCell(3, 4)(mg.ones(2, 3)).shape
    (2, 4)
    """

    gates = 3

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = self._checked(x, h)
        r_x, z_x, n_x = linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=-1)
        r_h, z_h, n_h = linear(h, self.weight_hh, self.bias_hh).chunk(3, dim=-1)
        n = tanh(n_x + sigmoid(r_x + r_h) * n_h)
        return n + sigmoid(z_x + z_h) * (h - n)
