"""What other libraries compute when they normalize a weight: their differences as a table, and a call that reads it.

All take W̄ = W/σ with σ = uᵀMv at the vectors that their sweeps end with, and differ in the columns of `LIBRARIES`.
Those that were run have left their numbers in `tests/golden/`, and `tests/test_emulate.py` finds the same ones here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from minigrad._tensor import Tensor
from minigrad.ops.comparison import maximum
from minigrad.ops.conventions import Point, convention
from minigrad.ops.creation import ones, zeros
from minigrad.ops.linear_map import MatrixMap
from minigrad.ops.matmul import dot
from minigrad.ops.reduce import norm
from minigrad.ops.shape import clone, pad, reshape
from minigrad.ops.spectral import check, matrix_shape, vector_dtype
from minigrad.ops.unary import sqrt

When = Literal["never", "training", "always"]


class Library(NamedTuple):
    """A row of the table.

    `order`: u ← N(Mv) before ("uv") or after ("vu") v ← N(Mᵀu). `form` and `eps`: N, see `NORMALIZERS`.
    `rows`: the axis of the weight that M has as rows, in the library's layout; "square": M has the entries of the
    weight, one after another, in ⌈√N⌉ rows of that length, filled up with zeros.
    `gradient`: the name in `minigrad.ops.conventions.CONVENTIONS`.
    `evaluation`: σ in evaluation mode is taken at the "stored" vectors, after as many sweeps from there as in training
    ("sweep") or after one ("sweep1"), or not at all: the weight is used as it is ("raw").
    `overwrites`: when W̄ takes the place of W. `keeps`: when the vectors of the sweeps take the place of u and v.
    `ran`: recorded from the library, or else only read in its source.
    """

    version: str
    order: Literal["uv", "vu"]
    form: Literal["clamp", "add", "sqrt"]
    eps: float
    rows: str
    gradient: str
    evaluation: Literal["stored", "sweep", "sweep1", "raw"]
    overwrites: When = "never"
    keeps: When = "training"
    ran: bool = True


NORMALIZERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "clamp": lambda x, eps: x / maximum(norm(x), eps),
    "add": lambda x, eps: x / (norm(x) + eps),
    "sqrt": lambda x, eps: x / sqrt(dot(x, x) + eps),
}

_OUT = "0; transposed convolution: 1"
_PADDLE = "outputs; embedding: 0"
_SINGLE = 9.999999960041972e-13  # 1e-12 in float32, as which the op has it

LIBRARIES = {
    "torch": Library("torch 2.13.0, parametrizations", "uv", "clamp", 1e-12, _OUT, "fixed_uv", "stored"),
    "torch-old": Library("torch 2.13.0, the older hook", "vu", "clamp", 1e-12, _OUT, "fixed_uv", "stored"),
    "paddle": Library("paddle 3.3.1, the hook", "vu", "clamp", 1e-12, _PADDLE, "fixed_uv", "stored"),
    "paddle-op": Library(
        "paddle 3.3.1, nn.SpectralNorm", "vu", "add", _SINGLE, "any", "elementwise", "sweep", keeps="never"
    ),
    "chainer": Library("chainer 7.8.1", "vu", "add", 1e-6, _OUT, "fixed_uv", "sweep"),
    "keras-jax": Library("keras 3.15.1, jax 0.10.2", "vu", "clamp", 1e-7, "last", "fixed_uv", "raw"),
    "keras-tf": Library("keras 3.15.1, tensorflow 2.21.0", "vu", "clamp", 1e-7, "last", "projected", "raw", "training"),
    "keras-torch": Library("keras 3.15.1, torch 2.13.0", "vu", "clamp", 1e-7, "last", "projected", "raw", "training"),
    "flax-linen": Library("flax 0.12.8, jax 0.10.2", "vu", "sqrt", 1e-12, "last", "fixed_uv", "sweep"),
    "flax-nnx": Library("flax 0.12.8, jax 0.10.2", "vu", "sqrt", 1e-12, "last", "fixed_uv", "sweep", "always"),
    "haiku": Library("dm-haiku 0.0.17, jax 0.10.2", "vu", "sqrt", 1e-4, "last", "fixed_uv", "sweep"),
    "equinox": Library("equinox 0.13.8, jax 0.10.2", "uv", "clamp", 1e-12, "0", "fixed_uv", "stored"),
    "biggan": Library("BigGAN-PyTorch 9845943, torch 2.13.0", "vu", "clamp", 1e-12, "0", "fixed_uv", "sweep1"),
    # Its ε on σ too, W/(σ + ε), is left out. The square is as reported; the source at e5efcb9 has outputs × inputs.
    "aidotnet": Library(
        "AiDotNet", "vu", "add", 1e-12, "square", "straight_through", "sweep", keeps="always", ran=False
    ),
}


class Emulated(NamedTuple):
    """What a call computes, and the state that it leaves; all but `weight_bar` are constants."""

    weight_bar: Tensor
    sigma: Tensor
    u: Tensor
    v: Tensor | None
    weight_after: Tensor


def emulate(
    like: str,
    weight: Tensor,
    u: Tensor,
    v: Tensor | None = None,
    *,
    axis: int = 0,
    n_power_iterations: int = 1,
    training: bool = True,
) -> Emulated:
    """One call of a layer whose weight another library normalizes: W̄, with that library's ∂L/∂W, and what is left.

    `like`: a name in `LIBRARIES`. weight: any shape with dimensions, floating; its matrix M (m, n) has `axis` as rows
    (that of "aidotnet" is a padded square whatever the axis). u (m), v (n): the vectors before the call, float64 for a
    float64 weight, else float32. v is read only by sweeps that begin with u ("torch", "equinox") and by evaluation at
    stored vectors; the others make it from u. Nothing given is changed: the next call takes this one's `u`, `v` and
    `weight_after`.

    Returns `weight_bar`, W/σ in the shape and dtype of the weight, to be differentiated as the library does; `sigma`,
    uᵀMv after the sweeps (0-d, in the dtype of u; 1 for a weight that is used raw); `u` and `v` after the call, where v
    is the last one computed even if the library stores only u; `weight_after`, the raw weight after the call.

    ε acts on raw norms, as it does there, and not scaled as in `power_iteration`. Where σ = 0, W̄ and its derivatives
    are 0 instead of NaN.

    ValueError: an unknown `like`, n_power_iterations below 1, no v where it is read, shapes. TypeError: dtypes.
    IndexError: axis. RuntimeError: u or v requires grad; double backward with "paddle-op".

    Source: the libraries themselves, in the versions of the table.

    >>> import minigrad as mg
    >>> w = mg.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> for like in ("torch", "paddle-op", "keras-tf"):
    ...     call = mg.spectral.emulate(like, w, mg.tensor([0.6, 0.8]), mg.tensor([0.8, 0.6]))
    ...     (grad,) = mg.grad(call.weight_bar.sum(), w)
    ...     print(f"{like:9s} sigma {call.sigma.item():.4f}", [f"{x:+.3f}" for x in grad.flatten().tolist()])
    torch     sigma 2.9205 ['-0.111', '+0.305', '+0.229', '+0.333']
    paddle-op sigma 2.7714 ['-0.110', '+0.152', '+0.291', '+0.330']
    keras-tf  sigma 2.7714 ['+1.000', '+1.000', '+1.000', '+1.000']
    """
    if like not in LIBRARIES:
        raise ValueError(f"emulate: expected like to be one of {', '.join(LIBRARIES)}; got {like!r}")
    if n_power_iterations < 1:
        raise ValueError(f"emulate: expected n_power_iterations of at least 1; got {n_power_iterations}")
    library = LIBRARIES[like]
    _, _, axis = matrix_shape("emulate", weight, axis)
    raw = not training and library.evaluation == "raw"
    n = n_power_iterations if training else {"sweep": n_power_iterations, "sweep1": 1}.get(library.evaluation, 0)
    if v is None and not raw and (library.order == "uv" or not n):
        raise ValueError(f"emulate: {like!r} {'trains' if training else 'evaluates'} from v too; got v=None")
    seen, rows = (_square(weight.detach()), 0) if library.rows == "square" else (weight.detach(), axis)
    matrix = MatrixMap(rows)
    like_u = {"dtype": vector_dtype(weight), "device": weight.device}
    new_u, new_v = u, zeros(matrix.shapes(seen)[1], **like_u) if v is None else v
    check("emulate", seen, u, new_v, rows)
    if raw:
        one = ones((), **like_u)
        return Emulated(clone(weight), one, u, v, clone(weight.detach()))

    there, back = matrix.products(seen)
    for _ in range(n):
        for letter in library.order:
            if letter == "u":
                new_u = NORMALIZERS[library.form](there(new_v), library.eps)
            else:
                new_v = NORMALIZERS[library.form](back(new_u), library.eps)
    at = Point(new_u, new_v, dot(new_u, there(new_v)), n, library.eps, MatrixMap(axis), library.order)
    w_bar = convention(library.gradient).normalize(weight, at)
    left = w_bar if _happens(library.overwrites, training) else weight
    return Emulated(
        w_bar,
        at.sigma,
        new_u if _happens(library.keeps, training) else u,
        v if library.keeps == "never" else new_v,
        clone(left.detach()),
    )


def _happens(when: When, training: bool) -> bool:
    return when == "always" or (when == "training" and training)


def _square(weight: Tensor) -> Tensor:
    """The entries in ⌈√N⌉ rows of that length, zeros at the end."""
    side = math.isqrt(weight.numel() - 1) + 1
    return reshape(pad(reshape(weight, -1), (0, side * side - weight.numel())), side, side)
