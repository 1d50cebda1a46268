"""What a step that is being recorded may not do, on either device."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

READS = "reads values back to the host (item, numpy, to('cpu'), an `if`, a boolean mask, an SVD on a GPU)"
COPIES = "copies values from the host (a tensor made of numbers or arrays; to(device))"
GIVES, TAKES = "gives memory away", "takes memory from outside"


def refuse(what: str) -> NoReturn:
    raise RuntimeError(f"mg.capture: the step {what}{_who_asked()}: a captured step runs without Python.")


def let_go() -> NoReturn:
    raise RuntimeError(
        "mg.capture: the step let go of a tensor from before the step that it had used, so that it would use the old "
        "one for ever. Change it in place, with copy_(); drop gradients with zero_grad()."
    )


def other_optimizer() -> NoReturn:
    raise RuntimeError(
        "mg.capture: since the step was captured, the optimizer has got other parameters, other options or another "
        "state (load_state_dict, add_param_group, to). Make the step anew."
    )


def _who_asked() -> str:
    """The line of the user's code that we are called from."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "minigrad":
        frame = frame.f_back
    return f", at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
