"""The step of an optimizer in a recorded step: one piece of Python that runs again, for the sake of its numbers alone.

A learning rate, and what depends on the count of steps, lies in arrays of a few numbers. The launches that read them
are made again as they were. The Python runs before the step, and so ahead of its launches: should they never be made,
what it has counted is taken back.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from minigrad.kernels.cpu._jit import Launch, listening
from minigrad.kernels.cpu._replay import noted
from minigrad.kernels.cpu.array import Array
from minigrad.kernels.recording import check_stepped, other_optimizer


class Update(Protocol):
    """An optimizer's step, given its gradients; `take_back()` undoes what the last call has counted."""

    def __call__(self, *gradients: Array) -> None: ...
    def take_back(self) -> None: ...


class Renewal:
    """Of `update(*gradients)`, which must lead to the same arrays each time."""

    def __init__(self, update: Update, gradients: Sequence[Array]):
        self._update, self._gradients = update, gradients
        self._found: list[list[Any]] = []  # for each group of steps, its arrays: what gives them, while they are there
        self._arrays: list[Array | None] = []  # parameters, gradients and state
        self._slots: list[Array] = []  # for each parameter, where its launch finds numbers
        self.is_ahead = False  # of its launches

    def record(self) -> list[Launch]:
        """The launches of the first time; none if they cannot be made again, or are not all that it does."""
        with listening(self._begin) as launches:
            self._update(*self._gradients)
        if len(self._found) != 1 or len(launches) != self._steps:
            return []
        self._slots = [args[-1] for _, args in launches]
        return noted(launches)

    def _begin(self, steps: Sequence[Any]) -> bool:
        self._found.append([_nothing if x is None else weakref.ref(x) for _, xs, _ in steps for x in xs])
        self._steps = len(steps)
        return False

    def hold(self) -> None:
        """All is recorded: nobody can let go of the arrays any more."""
        self._arrays = [array() for array in self._found[0]]

    def renew(self) -> None:
        """Compute the numbers of the next time. RuntimeError if it would be a step for other arrays."""
        self.is_ahead = True
        with listening(self._take):
            self._update(*self._gradients)

    def take_back(self) -> None:
        """The launches were not made."""
        if self.is_ahead:
            self._update.take_back()
            self.is_ahead = False

    def _take(self, steps: Sequence[Any]) -> bool:
        arrays = [x for _, xs, _ in steps for x in xs]
        check_stepped(self._arrays, arrays)
        given: dict[int, tuple[float, ...]] = {}
        for slot, (*_, numbers) in zip(self._slots, steps, strict=True):
            there = given.setdefault(id(slot), numbers)
            if there is numbers:  # most parameters share them
                slot[:] = numbers
            elif there != numbers:
                other_optimizer("two learning rates or counts of steps where there was one")
        return True


def _nothing() -> None: ...
