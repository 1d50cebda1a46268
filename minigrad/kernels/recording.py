"""What a step that is being recorded may not do, on either device."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

READS = "reads values back to the host (item, numpy, to('cpu'), an `if`, a boolean mask, an SVD on a GPU)"
COPIES = "copies values from the host (a tensor made of numbers or arrays; to(device))"
GIVES, TAKES = "gives memory away", "takes memory from outside"
SEEDS, SCHEDULES = "seeds a generator, or makes one", "sets learning rates by a schedule"


def refuse(what: str) -> NoReturn:
    raise RuntimeError(f"mg.capture: the step {what}{_who_asked()}: a captured step runs without Python.")


def let_go() -> NoReturn:
    raise RuntimeError(
        "mg.capture: the step let go of a tensor from before the step that it had used, so that it would use the old "
        "one for ever. Change it in place, with copy_(); drop gradients with zero_grad()."
    )


def old_gradient() -> NoReturn:
    raise RuntimeError(
        "mg.capture: the optimizer steps along a gradient from before the step, which would be used for ever. Call "
        "backward() in the step, too."
    )


def other_optimizer(what: str) -> NoReturn:
    raise RuntimeError(
        "mg.capture: since the step was captured, the optimizer has got other parameters, other options or another "
        f"state: {what}. Make the step anew."
    )


def check_stepped(was: Sequence[Any], now: Sequence[Any]) -> None:
    """Are the arrays that an optimizer steps (parameters, gradients, state or None) those that it was recorded with?"""
    if len(was) == len(now) and not any(map(operator.is_not, was, now)):
        return
    old, new = next(pair for pair in itertools.zip_longest(was, now) if pair[0] is not pair[1])
    old, new = ("none" if x is None else f"an array of shape {x.shape}" for x in (old, new))
    other_optimizer(f"it stepped {len(was)} arrays, and now {len(now)}; {new} stands where {old} stood")


def _who_asked() -> str:
    """The line of the user's code that we are called from."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "minigrad":
        frame = frame.f_back
    return f", at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
