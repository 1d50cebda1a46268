"""Sides in processes of their own, as their users run them: without another library's threads and settings.

minigrad has the C library keep memory that is freed; in one process with it torch would be several times as fast at
large matrices. The sides still take turns; each has a stopwatch.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import cases, suite
from benchmarks.processes import OTHERS
from benchmarks.timer import Call, wall_clock
from benchmarks.work import LeftOut, Running


class Apart:
    """A side of `suite.SIDES` in another process, which starts now. Errors over there are raised here, by name."""

    def __init__(self, name: str, quick: bool):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, quick), daemon=True)
        self.process.start()
        theirs.close()
        self.name = name
        self.version = str(self.ask("version"))

    def ask(self, *request: Any) -> Any:
        """RuntimeError if the process is no more."""
        try:
            self._pipe.send(request)
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self.process.join(1)
            raise RuntimeError(
                f"the process of {self.name} has ended, with exit code {self.process.exitcode}; what it said is above. "
                f"Leave it out with --peers, or give it more memory."
            ) from None
        if kind == "left out":
            raise LeftOut(answer)
        if kind:
            raise type(kind, (Exception,), {})(answer)
        return answer

    def start(self, case: cases.Case) -> Running:
        """Begin a piece of work over there. LeftOut: not there."""
        self.ask("start", case.group, case.name)
        return Running(_Step(self), lambda _: self.ask("results"))

    def synchronize(self) -> None:
        """Its steps are over when they return."""


class _Step:
    """One step over there."""

    def __init__(self, side: Apart):
        self.side = side

    def __call__(self) -> None:
        self.side.ask("seconds", 1)


def their_clocks(call: Call, times: int) -> float:
    """Seconds of `times` steps by the clock of the process that makes them."""
    assert isinstance(call, _Step)
    return float(call.side.ask("seconds", times))


def installed(names: Iterable[str], quick: bool) -> tuple[list[Apart], dict[str, str]]:
    """The sides that there are, minigrad first, and why the others are not there."""
    there: list[Apart] = []
    missing: dict[str, str] = {}
    for name, (package, _) in suite.SIDES.items():
        if name in names or package == "minigrad":
            if importlib.util.find_spec(package) is None:
                missing[name] = f'not installed: pip install "minigrad[peers]" ({package})'
            else:
                there.append(Apart(name, quick))
    return there, missing


# Over there -----------------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, name: str, quick: bool) -> None:
    if not name.startswith("minigrad"):
        os.environ.update(OTHERS)
    there = _There(name, quick)
    while True:
        try:
            kind, *arguments = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        try:
            pipe.send(("", getattr(there, kind)(*arguments)))
        except LeftOut as why:
            pipe.send(("left out", str(why)))
        except Exception as error:
            pipe.send((type(error).__name__, str(error)))


class _There:
    """What can be asked for."""

    def __init__(self, name: str, quick: bool):
        self._side = suite.made(name)
        self._cases = {(case.group, case.name): case for case in cases.table(quick)}
        self._running: Running | None = None

    def version(self) -> str:
        return self._side.version

    def start(self, group: str, name: str) -> None:
        self._running = self._made = None  # memory of the case before
        self._running = self._side.start(self._cases[group, name])

    def _step(self) -> None:
        assert self._running is not None
        self._made = self._running.step()

    def seconds(self, times: int) -> float:
        taken = wall_clock(self._step, times)
        self._side.synchronize()
        return taken

    def results(self) -> Any:
        assert self._running is not None
        return self._running.results(self._made)
