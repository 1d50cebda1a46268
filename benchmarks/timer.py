"""The timer: sides take turns in rounds; medians with quartiles, and ratios of medians with those of the rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

Call = Callable[[], Any]
#: Runs a call so many times and says how many seconds that took.
Stopwatch = Callable[[Call, int], float]


def wall_clock(call: Call, times: int) -> float:
    """Seconds of `times` calls, by the clock on the wall, without garbage collection in between."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: tuple[float, ...]) -> Spread:
        """Of at least one value.

        >>> Spread.of((4.0, 1.0, 2.0, 3.0, 5.0))
        Spread(median=3.0, low=2.0, high=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


@dataclass(frozen=True)
class Pace:
    """How a side is timed: so many rounds (fewer, but at least three, once the budget is spent), each a sample of at
    least `sample` seconds after `settle` seconds of calls that do not count.

    Those calls bring back caches and threads: another library's may still be spinning on the cores, OpenBLAS's for a
    tenth of a second.
    """

    rounds: int = 15
    sample: float = 0.05
    settle: float = 0.12
    budget: float = 60.0


QUICK = Pace(rounds=3, sample=0.002, settle=0.0, budget=1.0)


def interleave(
    sides: Mapping[str, Call],
    pace: Pace,
    stopwatch: Stopwatch = wall_clock,
) -> dict[str, tuple[float, ...]]:
    """Name -> seconds per call, one value per round. The sides take turns, each round begins with the next."""
    calls = {name: _calls(call, pace, stopwatch) for name, call in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order, spent = list(sides), 0.0
    for turn in range(pace.rounds):
        if turn >= 3 and spent > pace.budget:
            break
        for name in order:
            call, times = sides[name], calls[name]
            settled = stopwatch(call, 1)
            while settled < pace.settle:
                settled += stopwatch(call, max(1, times // 8))
            taken = stopwatch(call, times)
            spent += settled + taken
            seconds[name].append(taken / times)
        order = order[1:] + order[:1]
    return {name: tuple(found) for name, found in seconds.items()}


def _calls(call: Call, pace: Pace, stopwatch: Stopwatch) -> int:
    """How many calls make a sample: doubled until they do."""
    times = 1
    while (taken := stopwatch(call, times)) < pace.sample:
        times = max(2 * times, min(10 * times, round(times * pace.sample / max(taken, 1e-9))))
    return times


def ratio(peer: tuple[float, ...], ours: tuple[float, ...]) -> Spread:
    """How many times as long as we the peer takes: the ratio of the medians, the quartiles of the rounds' ratios.

    >>> ratio((2.0, 4.0, 6.0), (1.0, 2.0, 2.0))
    Spread(median=2.0, low=2.0, high=2.5)
    """
    rounds = Spread.of(tuple(theirs / mine for theirs, mine in zip(peer, ours, strict=True)))
    return Spread(median(peer) / median(ours), rounds.low, rounds.high)
