"""The step of an optimizer in a recorded step: one piece of Python that runs again, for the sake of its numbers alone.

A learning rate, and what depends on the count of steps, lies in arrays of a few numbers. The launches that read them
are made again as they were.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from minigrad.kernels.cpu._jit import Launch, listening
from minigrad.kernels.cpu._replay import noted
from minigrad.kernels.cpu.array import Array
from minigrad.kernels.recording import check_stepped


class Renewal:
    """Of `update(*gradients)`, which must lead to the same arrays each time."""

    def __init__(self, update: Callable[..., None], gradients: Sequence[Array]):
        self._update, self._gradients = update, gradients
        self._found: list[Callable[[], Array | None]] = []
        self._arrays: list[Array | None] = []  # parameters, gradients and state
        self._slots: list[Array] = []  # for each parameter, where its launch finds numbers

    def record(self) -> list[Launch]:
        """The launches of the first time; none if they cannot be made again."""
        with listening(self._begin) as launches:
            self._update(*self._gradients)
        self._slots = [args[-1] for _, args in launches]
        return noted(launches)

    def _begin(self, steps: Sequence[Any]) -> bool:
        self._found = [_nothing if x is None else weakref.ref(x) for _, xs, _ in steps for x in xs]
        return False

    def hold(self) -> None:
        """All is recorded: nobody can let go of the arrays any more."""
        self._arrays = [array() for array in self._found]

    def renew(self) -> None:
        """Compute the numbers of the next time. RuntimeError if it would be a step for other arrays."""
        with listening(self._take):
            self._update(*self._gradients)

    def _take(self, steps: Sequence[Any]) -> bool:
        arrays = [x for _, xs, _ in steps for x in xs]
        check_stepped(self._arrays, arrays)
        last = None
        for slot, (*_, numbers) in zip(self._slots, steps, strict=True):
            if slot is not last:  # most parameters share them
                slot[:] = numbers
            last = slot
        return True


def _nothing() -> None: ...
