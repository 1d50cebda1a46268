"""The mode of a thread, and the `with` blocks that switch it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class _Mode(threading.local):
    """Per thread: are ops recorded, is every result searched for NaN, and who is told of every op that has run?

    `recorder` is told of what a step changes, or depends on, beside its tensors; see `_capture.py`.
    """

    grad = True
    anomaly = False
    witness: Callable[..., None] | None = None
    recorder: Any = None


mode = _Mode()


class Switch(ContextDecorator):
    """Set one field of the mode for a `with` block or a decorated function.

    Ctrl-C is heard after a call, and at the beginning of a function. The assignments here are neither, so that it finds
    the field set and `__exit__` called for, or neither of them.
    """

    field: str
    value: Any

    def __init__(self) -> None:
        self._before: list[Any] = []

    def __call__(self, fn: F) -> F:
        if inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(
                f"{type(self).__name__}: expected a function whose call runs it; got {fn.__name__}, a generator or a "
                f"coroutine, which runs later. Use a `with` block in it, around what lies between two of its pauses."
            )
        return super().__call__(fn)

    def __enter__(self) -> None:
        self._before.append(getattr(mode, self.field))
        mode.__dict__[self.field] = self.value

    def __exit__(self, *exc: object) -> None:
        mode.__dict__[self.field] = self._before[-1]
        self._before.pop()

    def _recreate_cm(self) -> Switch:  # a decorated function may be entered by several threads at once
        return type(self)()


class no_grad(Switch):
    """Record nothing: a `with` block or a decorator.

    >>> import minigrad as mg
    >>> x = mg.ones(2, requires_grad=True)
    >>> with mg.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    field, value = "grad", False


class enable_grad(Switch):
    """Record again, inside a `no_grad` block: a `with` block or a decorator.

    >>> import minigrad as mg
    >>> x = mg.ones(2, requires_grad=True)
    >>> with mg.no_grad(), mg.enable_grad():
    ...     y = x * 2
    >>> y.requires_grad
    True
    """

    field, value = "grad", True


class detect_anomaly(Switch):
    """Search every result, forward and backward, for NaN; raise RuntimeError naming the op that made the first one.

    >>> import minigrad as mg
    >>> with mg.detect_anomaly():
    ...     mg.tensor([-1.0]).sqrt()
    Traceback (most recent call last):
    ...
    RuntimeError: detect_anomaly: op 'sqrt' made the first NaN, from inputs of shapes (1,)
    """

    field, value = "anomaly", True


def is_grad_enabled() -> bool:
    """Are operations of this thread being recorded?

    >>> import minigrad as mg
    >>> with mg.no_grad():
    ...     mg.is_grad_enabled()
    False
    """
    return mode.grad


class witnessed(Switch):
    """Tell `witness(op, inputs, attributes, out, aux)` of every op that this thread runs, also under no_grad."""

    field = "witness"

    def __init__(self, witness: Callable[..., None]):
        super().__init__()
        self.value = witness
