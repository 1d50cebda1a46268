"""Random numbers: one counter-based generator for every device."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from minigrad._mode import mode

_lock = threading.Lock()  # of every generator: a fork takes it too, so that no child finds it taken for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Generator:
    """A stream of random numbers: Philox 4×32-10 under a seed, from an offset (in blocks of four 32-bit words) on.

    Element i of a draw is a function of (seed, offset, i) alone, so that the stream is the same on every device and for
    any number of threads. `get_state` and `set_state` save and restore it.

    >>> import minigrad as mg
    >>> g = mg.Generator(7)
    >>> state = g.get_state()
    >>> x = mg.rand(3, generator=g)
    >>> g.set_state(state)
    >>> bool((mg.rand(3, generator=g) == x).all())
    True
    """

    def __init__(self, seed: int = 0):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start anew from a seed in [0, 2⁶⁴)."""
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"manual_seed: expected a seed in [0, 2**64); got {seed}")
        if mode.recorder is not None:
            mode.recorder.seeds()
        self.seed, self.offset = int(seed), 0
        return self

    def get_state(self) -> dict[str, int]:
        return {"seed": self.seed, "offset": self.offset}

    def set_state(self, state: dict[str, int]) -> None:
        self.manual_seed(state["seed"])
        self.offset = int(state["offset"])

    def draw(self, elements: int, dtype: Any) -> tuple[int, int]:
        """Reserve a draw of so many elements; returns the seed, and the offset where it starts."""
        if mode.recorder is not None:
            mode.recorder.draws(self)
        per_block = 2 if dtype == np.float64 else 4
        with _lock:
            start = self.offset
            self.offset += -(-elements // per_block)
        return self.seed, start


default = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, which every random function uses unless it is given another.

    >>> import minigrad as mg
    >>> _ = mg.manual_seed(0)
    >>> mg.rand(2)
    tensor([0.399 , 0.8805])
    """
    return default.manual_seed(seed)
