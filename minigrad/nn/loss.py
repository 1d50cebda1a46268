"""Losses: functions, and those with a layer in torch as layers too. Numbers (15)–(17) are the paper's equations:

Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, arXiv 1802.05957.
"""

from __future__ import annotations

from minigrad._tensor import Tensor
from minigrad.nn.module import Module
from minigrad.ops import _arguments as arguments
from minigrad.ops.activation import relu, softplus
from minigrad.ops.index import gather_checked
from minigrad.ops.softmax import log_softmax
from minigrad.ops.unary import abs, square


def _reduced(name: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f"{name}: expected reduction 'mean', 'sum' or 'none'; got {reduction!r}")


def _tensors(name: str, *xs: Tensor) -> None:
    for x in xs:
        arguments.tensor(name, x)


def _same_shape(name: str, input: Tensor, target: Tensor) -> None:
    _tensors(name, input, target)
    if input.shape != target.shape:
        raise ValueError(f"{name}: expected input and target of one shape; got {input.shape} and {target.shape}")


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input − target)², averaged, summed, or one by one (`reduction` "mean", "sum", "none").

    ValueError for two shapes or another reduction.

    >>> import minigrad as mg
    >>> mg.nn.functional.mse_loss(mg.tensor([1.0, 2.0]), mg.tensor([0.0, 0.0]))
    tensor(2.5)
    """
    _same_shape("mse_loss", input, target)
    return _reduced("mse_loss", square(input - target), reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input − target|, with derivative 0 where they are equal; shapes, reductions and errors as in `mse_loss`.

    >>> import minigrad as mg
    >>> mg.nn.functional.l1_loss(mg.tensor([1.0, 2.0]), mg.tensor([0.0, 0.0]))
    tensor(1.5)
    """
    _same_shape("l1_loss", input, target)
    return _reduced("l1_loss", abs(input - target), reduction)


def binary_cross_entropy_with_logits(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """−y log σ(x) − (1 − y) log(1 − σ(x)) of logits x = input and probabilities y = target.

    Computed as y softplus(−x) + (1 − y) softplus(x): no overflow, smooth at 0. Shapes, reductions and errors as in
    `mse_loss`.

    >>> import minigrad as mg
    >>> mg.nn.functional.binary_cross_entropy_with_logits(mg.tensor([1000.0, -1000.0]), mg.tensor([0.0, 1.0]))
    tensor(1000.)
    """
    _same_shape("binary_cross_entropy_with_logits", input, target)
    losses = target * softplus(-input) + (1 - target) * softplus(input)
    return _reduced("binary_cross_entropy_with_logits", losses, reduction)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """−log softmax(input)[target]: logits (N, C), (C,) or (N, C, …), and class indices (N,), () or (N, …), int64.

    With `label_smoothing` ε the target distribution is (1 − ε) at the class plus ε/C everywhere.
    ValueError for shapes that do not fit, ε outside [0, 1], or another reduction; TypeError for targets that are no
    integers, IndexError for a class out of range.

    >>> import minigrad as mg
    >>> mg.nn.functional.cross_entropy(mg.tensor([[0.0, 0.0], [1e4, 0.0]]), mg.tensor([1, 1]), reduction="none")
    tensor([6.9315e-01, 1.0000e+04])
    """
    _tensors("cross_entropy", input, target)
    dim = min(input.ndim - 1, 1)
    if dim < 0 or target.shape != (*input.shape[:dim], *input.shape[dim + 1 :]):
        raise ValueError(
            f"cross_entropy: expected logits (N, C, …) and class indices (N, …); got {input.shape} and {target.shape}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: expected label_smoothing in [0, 1]; got {label_smoothing}")
    arguments.integers("cross_entropy", target, input.shape[dim])
    logs = log_softmax(input, dim)
    losses = -gather_checked(logs, dim, target.unsqueeze(dim)).squeeze(dim)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * logs.mean(dim)
    return _reduced("cross_entropy", losses, reduction)


def hinge_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """max(0, 1 − target · input) for targets ±1, with derivative 0 at the kink; shapes and errors as in `mse_loss`.

    >>> import minigrad as mg
    >>> mg.nn.functional.hinge_loss(mg.tensor([2.0, 0.5]), mg.tensor([1.0, -1.0]), reduction="none")
    tensor([0. , 1.5])
    """
    _same_shape("hinge_loss", input, target)
    return _reduced("hinge_loss", relu(1 - target * input), reduction)


def gan_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(15) as the discriminator's loss: −E[log σ(real)] − E[log(1 − σ(fake))], of its logits on data and samples.

    >>> import minigrad as mg
    >>> mg.nn.functional.gan_discriminator_loss(mg.tensor([[0.0]]), mg.tensor([[0.0]]))
    tensor(1.3863)
    """
    _tensors("gan_discriminator_loss", real, fake)
    return softplus(-real).mean() + softplus(fake).mean()


def gan_generator_loss(fake: Tensor, *, saturating: bool = False) -> Tensor:
    """The generator's part of (15): −E[log σ(fake)], or, saturating, E[log(1 − σ(fake))] as (15) has it.

    `fake` is the discriminator's logits on samples. The first form has the same fixed points and stronger gradients
    early on; it is what the paper trains with.

    >>> import minigrad as mg
    >>> mg.nn.functional.gan_generator_loss(mg.tensor([[0.0]]))
    tensor(0.6931)
    """
    _tensors("gan_generator_loss", fake)
    return -softplus(fake).mean() if saturating else softplus(-fake).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(16), negated: −E[min(0, real − 1)] − E[min(0, −fake − 1)], of the discriminator's outputs on data and samples.

    >>> import minigrad as mg
    >>> mg.nn.functional.hinge_discriminator_loss(mg.tensor([[0.5]]), mg.tensor([[-3.0]]))
    tensor(0.5)
    """
    _tensors("hinge_discriminator_loss", real, fake)
    return relu(1 - real).mean() + relu(1 + fake).mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """(17), the generator's loss: −E[fake], of the discriminator's outputs on samples.

    >>> import minigrad as mg
    >>> mg.nn.functional.hinge_generator_loss(mg.tensor([[2.0]]))
    tensor(-2.)
    """
    _tensors("hinge_generator_loss", fake)
    return -fake.mean()


class _Loss(Module):
    """A loss with a `reduction` "mean", "sum" or "none"; shapes, dtypes and errors are those of the function."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def extra_repr(self) -> str:
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """`functional.mse_loss` as a layer: (input − target)², averaged, summed, or one by one.

    >>> import minigrad as mg
    >>> mg.nn.MSELoss(reduction="sum")(mg.tensor([1.0, 2.0]), mg.tensor([0.0, 0.0]))
    tensor(5.)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return mse_loss(input, target, self.reduction)


class L1Loss(_Loss):
    """`functional.l1_loss` as a layer: |input − target|, averaged, summed, or one by one.

    >>> import minigrad as mg
    >>> mg.nn.L1Loss()(mg.tensor([1.0, 2.0]), mg.tensor([0.0, 0.0]))
    tensor(1.5)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return l1_loss(input, target, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """`functional.binary_cross_entropy_with_logits` as a layer: −y log σ(x) − (1 − y) log(1 − σ(x)) of logits x.

    >>> import minigrad as mg
    >>> mg.nn.BCEWithLogitsLoss()(mg.tensor([0.0, 50.0]), mg.tensor([1.0, 1.0]))
    tensor(0.3466)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(input, target, self.reduction)


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy` as a layer: −log softmax(input)[target] of logits (N, C, …) and int64 classes (N, …).

    >>> import minigrad as mg
    >>> mg.nn.CrossEntropyLoss()(mg.zeros(3, 4), mg.tensor([0, 1, 3]))  # log 4
    tensor(1.3863)
    """

    def __init__(self, *, reduction: str = "mean", label_smoothing: float = 0.0):
        super().__init__(reduction)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(input, target, reduction=self.reduction, label_smoothing=self.label_smoothing)
