"""Is a gradient right? Every vjp held against finite differences, of the first and of higher orders.

The differences are extrapolated and come with an estimate of their own error (`_differences.py`), so that agreement is
asked for to nine digits or to that error, not to the third digit. What is compared is in `_comparisons.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad._comparisons import RTOL, STEP, Comparison, Function, GradcheckError, comparisons, second_order
from minigrad._differences import Difference, derivative
from minigrad._tensor import Tensor

__all__ = ["Difference", "GradcheckError", "derivative", "gradcheck", "gradgradcheck"]


def gradcheck(
    fn: Function,
    inputs: Tensor | Sequence[Any],
    eps: float = STEP,
    atol: float = 0.0,
    rtol: float = RTOL,
    *,
    seed: int = 0,
) -> bool:
    """True if the gradients of `fn` agree with central differences of it at `inputs`, else GradcheckError.

    `fn(*inputs)` returns a float64 tensor or several; what it computes must come from its arguments and be the same at
    every call. `inputs`: one tensor, or a sequence in which those that require grad are checked, of any shape, and the
    others, tensors or not, are handed on. fn is called with copies; nothing of the caller's is changed.

    Compared are ⟨Jᵀg, d⟩ and the derivative of t ↦ ⟨g, fn(x + t d)⟩ for two random g per output, and one over all of
    them; d runs through the unit vectors of an input of up to 64 elements, else through 8 random directions in which
    every entry takes part. Steps begin at `eps` times the input's scale (larger than usual: extrapolation likes it) and
    halve until rounding rules; the difference comes with an error estimate. Both must agree within
    max(atol + rtol · scale, 10 · estimate), where scale is the larger of the two numbers.

    What is caught: a rule off by the factor 1 + δ, always for δ ≥ 1e-8 where fn is computed to nearly full precision
    (the estimate is then about 1e-12 of the derivative); for an input of n > 64 elements, a single wrong entry of the
    size of the others from δ ≈ 1e-8 √n on. An fn that loses digits raises the estimate and with it these bounds.

    A kink (relu at 0, a tie in a maximum) is harmless from 1e-5 of the input's scale on. Nearer, what it does to fn may
    pass for noise; *at* the kink central differences give the mean of the two one-sided slopes, which is not what every
    convention says (relu′(0) = 0). The check then fails: check beside it, and pin the kink by a test of its own.

    TypeError: an input to check, or an output, that is not float64. ValueError: no input requires grad, fn uses one of
    them from outside and not as its argument, or eps is not positive. GradcheckError names the input, the entry or
    direction, both numbers, their tolerance and the step; it is also raised if fn is not deterministic, not finite at
    the inputs, or not continuous there.

    Source: Ridders, "Accurate computation of F′(x) and F′(x)F″(x)", 1982; Richardson, 1911.

    >>> import minigrad as mg
    >>> x = mg.tensor([0.5, -1.0, 2.0], dtype=mg.float64, requires_grad=True)
    >>> mg.gradcheck(lambda x: (x * x).sum().sin(), x)
    True
    """
    return _verdict("gradcheck", list(comparisons(fn, inputs, eps, atol, rtol, seed=seed)))


def gradgradcheck(
    fn: Function,
    inputs: Tensor | Sequence[Any],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    eps: float = STEP,
    atol: float = 0.0,
    rtol: float = RTOL,
    *,
    seed: int = 0,
) -> bool:
    """True if the second derivatives of `fn` agree with differences of its first gradients, else GradcheckError.

    It is `gradcheck` of the function (x, g) ↦ Jᵀg, which `gradient_of` makes: of the gradient by x and also by the
    upstream gradients g (`grad_outputs`, one per output; random if None). Each order is held against the one below, so
    run `gradcheck` too. A rule that is right at first order and wrong at second (one that keeps σ as a plain number,
    say) is found here, from the same sizes on. Arguments and errors as in `gradcheck`.

    >>> import minigrad as mg
    >>> x = mg.tensor([0.5, -1.0, 2.0], dtype=mg.float64, requires_grad=True)
    >>> mg.gradgradcheck(lambda x: x.exp() / x, x)
    True
    """
    first, arguments, names = second_order(fn, inputs, grad_outputs, seed)
    return _verdict("gradgradcheck", list(comparisons(first, arguments, eps, atol, rtol, seed=seed, names=names)))


def _verdict(who: str, compared: Sequence[Comparison]) -> bool:
    wrong = [c for c in compared if not c.excess <= 1]
    if not wrong:
        return True
    worst = max(wrong, key=lambda c: (c.excess, c.residual))
    if worst.settled:
        what = "disagrees with finite differences"
    else:
        what = "cannot be checked: the finite differences do not settle (does fn jump, or end, here?)"
    raise GradcheckError(
        f"{who}: the gradient by {worst.input}, {worst.where}, for {worst.output}, {what}\n"
        f"  by the rules       {worst.analytic: .15g}\n"
        f"  by differences     {worst.numeric: .15g} ± {worst.error:.1e} (steps down to {worst.step:.1e})\n"
        f"  they differ by     {worst.residual: .3e}; tolerance {worst.tolerance:.3e}\n"
        f"  {len(wrong)} of {len(compared)} comparisons fail; this is the worst of them. At a kink this is no error of "
        f"the rule: check beside it."
    )
