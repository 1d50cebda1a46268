"""A recorded step: calls of kernels, written down while they were made, to be made again as one Python function.

A call is a line of that function, `v7 = conv(v2, v5, a3, …)`. Arrays that the step made are its variables. Arrays from
before the step are used where they lie, and must still be there when it is over; whatever else a kernel was given is a
constant. What is made of constants alone is made once, before the function. There is neither graph nor Tensor in it,
and so none of their cost, which for small networks is most of a step's.

Small results stay in the memory that they had when they were recorded: `v7[...] = gather(v2, 1, v5)`. Where all that a
kernel did was to launch a compiled one on memory that stays, Python need not be asked again: such launches in a row are
one call, `replay3()`, and the lines behind it say what it does. Numbers that change from step to step are asked for by
the kernels themselves (a draw of random numbers), or before the step (`_renewal`).
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.kernels.cpu._jit import Launch, listening
from minigrad.kernels.cpu._renewal import Renewal, Update
from minigrad.kernels.cpu._replay import Replay, memory_of, noted, places
from minigrad.kernels.cpu.array import Array
from minigrad.kernels.recording import COPIES, GIVES, READS, TAKES, let_go, old_gradient, refuse

Made = tuple[Sequence[Array], Sequence[Array]]  # by a step: results, in memory of their own, and gradients
_NOT_WRITTEN = {
    "is_view", "is_writable", "shares_memory", "memory_allocated", "dlpack_device", "new_recording", "recorded_update",
}  # fmt: skip
_REFUSED = {
    "to_host": READS, "has_nan": READS, "from_host": COPIES, "flat_places": COPIES,
    "dlpack": GIVES, "from_dlpack": TAKES,
}  # fmt: skip
#: Bytes of memory that a step keeps for a result that is made there, and for one that is copied, to there or to those
#: who get it. Larger ones take turns; the time of Python does not show with them.
_STAYS, _COPIED = 1 << 20, 1 << 16
_WRITERS = {"assign", "sgd", "adam", "rmsprop"}


class _Here(threading.local):
    """Per thread: the step that is being recorded."""

    recording: Recording | None = None


here = _Here()


@dataclass
class _Line:
    """A kernel's call. Its results are new in each step, or `stay`: the memory, or the view of it, is the same."""

    text: str
    made: list[str]
    used: set[str]  # variables, with those that it makes
    memory: list[weakref.ref[Array]]  # of what it makes
    varies: bool  # by itself: it was given more than constants, or what it makes is written over
    runs: str  # how the function says it; nothing, if it need not be said
    launches: list[Launch]  # that do the same
    renewal: Renewal | None  # and need new numbers before they do


class Recording:
    """The calls of one step; `run()` makes them."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._names: dict[int, tuple[Callable[[], Any], str]] = {}  # id -> an array that the step knows, its name
        self._outside: dict[str, weakref.ref[Array]] = {}
        self._constants: dict[str, Any] = {}
        self._staying: dict[str, Any] = {}  # variables that are the same arrays in every step
        self._memory: dict[int, tuple[weakref.ref[Array], bool]] = {}  # id -> memory of what it knows; does it stay?
        self._variables = 0
        self._written: list[tuple[Array, Array]] = []  # arrays, and what they held before
        self._updating = False
        self._used: set[str] = set()  # of the line that is being written
        self._varies = False
        self._varying: set[str] = set()  # variables
        self._replays = itertools.count()

    # While it is being recorded ------------------------------------------------------------------------------------

    @contextmanager
    def record(self) -> Iterator[None]:
        """Kernels that this thread calls are written down."""
        here.recording, self.kernels = self, _Kernels(self)  # which an op is given meanwhile
        try:
            yield
        finally:
            here.recording = None
            del self.kernels  # no cycle: memory shall go back at once

    def call(self, name: str, kernel: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if name in _WRITERS:
            self._written += [(x, x.copy()) for x in _arrays(args)]
            for x in _arrays(args[:1]):
                self._is_written(x)
        if self._updating:
            return kernel(*args, **options)
        with listening() as launches:
            out = kernel(*args, **options)
        if not self._known(out):  # what came back as it was given needs no line
            self._constants[name] = kernel
            words = [*map(self._word, args), *(f"{key}={self._word(x)}" for key, x in options.items())]
            only = self._only(launches, (*args, *options.values()), out)
            self._add(name, words, out, only)
        return out

    def update(self, update: Update, gradients: Sequence[Array]) -> None:
        if not all((name := self._known(g)) and name not in self._outside for g in gradients):
            old_gradient()
        renewal = Renewal(update, gradients)
        self._updating = True
        launches = renewal.record()
        self._updating = False
        words = list(map(self._word, gradients))
        name = f"update{len(self._lines)}"
        self._constants[name] = update
        self._varies = True
        self._add(name, words, None, launches if all(map(self._stays, gradients)) else [])
        self._lines[-1].renewal = renewal

    def _only(self, launches: list[Launch], args: Any, out: Any) -> list[Launch]:
        """The launch that is all that a kernel has done, if there is such a one, and its memory stays."""
        if len(launches) != 1 or not all(map(self._stays, _arrays(args))):
            return []
        only = noted(launches)
        there = {id(x.memory()) for x in places(only)}
        return only if {id(memory_of(x)) for x in _arrays(out)} <= there else []  # else it has copied it after that

    def _add(self, name: str, words: list[str], out: Any, launches: list[Launch]) -> None:
        call = f"{name}({', '.join(words)})"
        outs = out if type(out) is tuple else () if out is None else (out,)
        arrays = list(_arrays(outs))
        is_view = bool(outs) and all(map(self._stays, outs))
        varies = self._varies or bool(self._used & self._varying)
        most = math.inf if not varies else _STAYS if launches else _COPIED
        stays = is_view or all(self._may_stay(x, most) for x in outs)
        self._varies |= not stays
        made = [self._variable(x) for x in outs]
        text = runs = f"{', '.join(made)} = {call}" if made else call
        if stays:
            self._staying.update(zip(made, outs, strict=True))
            if made:
                runs = f"{', '.join(f'{v}[...]' for v in made)} = {call}"
        if varies or self._varies:
            self._varying.update(made)
        memory = [weakref.ref(memory_of(x)) for x in arrays]
        self._memory |= {id(memory_of(x)): (reference, stays) for x, reference in zip(arrays, memory, strict=True)}
        runs, launches = "" if is_view else runs, launches if stays else []
        self._lines.append(_Line(text, made, self._used, memory, self._varies, runs, launches, None))
        self._used, self._varies = set(), False

    def _stays(self, x: Any, unknown: bool = False) -> bool:
        """Does the array lie in memory that is the same in every step?"""
        if not isinstance(x, np.ndarray):
            return False
        reference, stays = self._memory.get(id(memory_of(x)), (None, unknown))
        return stays if reference is not None and reference() is memory_of(x) else unknown

    def _may_stay(self, x: Any, most: float) -> bool:
        """May its memory, if it is new?"""
        return self._stays(x, True) and x.flags.writeable and memory_of(x).nbytes <= most

    def _is_written(self, x: Array) -> None:
        """Every step must make it anew."""
        for line in self._lines:
            line.varies |= any(memory() is memory_of(x) for memory in line.memory)

    def _variable(self, x: Any) -> str:
        name = f"v{self._variables}"
        self._variables += 1
        self._names[id(x)] = (weakref.ref(x) if isinstance(x, np.ndarray) else lambda: x), name
        self._used.add(name)
        return name

    def _known(self, x: Any) -> str:
        """The name of an array that the step has made or met; of all else, nothing."""
        reference, name = self._names.get(id(x), (None, ""))
        return name if reference is not None and reference() is x else ""

    def _word(self, x: Any) -> str:
        """How the function speaks of an argument."""
        if name := self._known(x):
            if name in self._outside:
                self._varies = True
            else:
                self._used.add(name)
            return name
        if isinstance(x, np.ndarray):
            self._varies = True
            name = f"a{len(self._outside)}"
            self._outside[name] = weakref.ref(x)
            self._names[id(x)] = self._outside[name], name
            self._memory[id(memory_of(x))] = weakref.ref(memory_of(x)), True
            return name
        if type(x) is tuple:
            return _tuple(map(self._word, x))
        if x is ...:
            return "..."
        if x is None or type(x) in (bool, int, str, slice) or (type(x) is float and math.isfinite(x)):
            return repr(x)
        if isinstance(x, np.dtype):
            self._constants[x.name] = x
            return x.name
        self._varies = True  # a draw of random numbers, say
        name = f"c{len(self._constants)}"
        self._constants[name] = x
        return name

    def finish(self, results: Sequence[Array], gradients: Sequence[Array]) -> Made:
        """All is written down: make the function whose runs return such results and gradients."""
        for x in (*results, *gradients):  # theirs who get them
            self._is_written(x)
        self._give_away({id(memory_of(x)) for x in results if memory_of(x).nbytes > _COPIED})
        borrowed = [self._stays(x) or not self._known(memory_of(x)) for x in results]
        names, left = list(map(self._word, results)), list(map(self._word, gradients))
        own = [f"{name}.copy()" if needed else name for name, needed in zip(names, borrowed, strict=True)]
        for name, reference in self._outside.items():
            array = reference()
            if array is None:
                let_go()
            self._constants[name] = array
        self._renewals = [line.renewal for line in self._lines if line.renewal and line.launches]
        for renewal in self._renewals:
            renewal.hold()
        self._constants.update(self._staying)
        once, fixed, each = [], set[str](), []
        for line in self._lines:
            if line.varies or not line.used <= fixed.union(line.made):
                each.append(line)
            else:
                once.append(line.text)
                fixed.update(line.made)
        kept, lines = {*names, *left}, [f"    return {_tuple(own)}, {_tuple(left)}"]
        for runs, used in reversed(list(self._pieces(each))):
            used -= self._staying.keys()
            if gone := ", ".join(sorted(used - kept)):  # no later line has them
                lines.append(f"    del {gone}")
            lines.append(f"    {runs}")
            kept |= used
        function = "\n".join(["def step():", *reversed(lines)])
        exec(compile(function, "<captured step>", "exec"), self._constants)
        self._text, self._step = "\n".join([*once, function]), self._constants.pop("step")
        if any(line.runs and not line.launches for line in each):  # replays are silent by themselves
            self._step = np.errstate(all="ignore")(self._step)
        self._lines, self._names, self._written, self._memory, self._staying = [], {}, [], {}, {}
        return [x.copy() if needed else x for x, needed in zip(results, borrowed, strict=True)], gradients

    def _give_away(self, memory: set[int]) -> None:
        """This shall not stay: to make it anew in each step takes less time than to copy it. (Not what is others'.)"""
        gone = set[str]()
        memory -= {id(memory_of(x)) for reference in self._outside.values() if (x := reference()) is not None}
        for line in self._lines:
            made = {id(x): x.nbytes for reference in line.memory if (x := reference()) is not None}
            if line.used & gone and line.launches:  # the kernel will be called, and makes results of its own
                memory |= {i for i, size in made.items() if size > _COPIED}
                line.launches = []
            if made.keys() & memory:
                memory |= made.keys()
                self._memory |= {id(x()): (x, False) for x in line.memory}
                line.runs, line.launches = line.text, []
                gone.update(line.made)
        for name in gone & self._staying.keys():
            del self._staying[name]

    def _pieces(self, lines: list[_Line]) -> Iterator[tuple[str, set[str]]]:
        """What the function says, and the variables in it. Launches in a row are one replay: comments say of what."""
        for replayed, some in itertools.groupby(lines, lambda line: bool(line.launches or not line.runs)):
            group = list(some)
            if replayed:
                said = [f"# {line.text}" for line in group]
                if launches := [launch for line in group for launch in line.launches]:
                    name = f"replay{next(self._replays)}"
                    renewals = [line.renewal for line in group if line.renewal]
                    self._constants[name] = _replayed(Replay(launches), renewals) if renewals else Replay(launches)
                    said.insert(0, f"{name}()")
                yield "\n    ".join(said), set()
            else:
                yield from ((line.runs, line.used) for line in group)

    def text(self, names: dict[int, str]) -> str:
        """The function, below what its arrays are; `names`: id of an array -> what it is called elsewhere."""
        arrays = [(name, x) for name, x in self._constants.items() if name in self._outside]
        heads = [f"# {name}: {x.dtype} {x.shape} {names.get(id(x), '')}".rstrip() for name, x in arrays]
        others = [f"# {name}: {x!r}" for name, x in self._constants.items() if re.fullmatch(r"c\d+", name)]
        return "\n".join([*heads, *others, self._text])

    def undo(self) -> None:
        """Put back what the step has written over: it was made while it was recorded."""
        for array, before in reversed(self._written):
            array[...] = before

    # Afterwards ----------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Compute the numbers of the optimizers' next steps; all others are asked for in the step."""
        try:
            for renewal in self._renewals:
                renewal.renew()
        except BaseException:
            self._take_back()
            raise

    def run(self) -> Made:
        """One step."""
        try:
            made: Made = self._step()
        except BaseException:
            self._take_back()
            raise
        return made

    def _take_back(self) -> None:
        """An optimizer that has not made its step has not counted it."""
        for renewal in self._renewals:
            renewal.take_back()


def _replayed(replay: Replay, renewals: list[Renewal]) -> Callable[[], None]:
    def run() -> None:
        replay()
        for renewal in renewals:
            renewal.is_ahead = False

    return run


class _Kernels:
    """The kernels, for as long as a step is recorded."""

    def __init__(self, recording: Recording):
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        import minigrad.kernels.cpu as package  # which this module is a part of

        kernel, recording = getattr(package, name), self._recording
        if name in _NOT_WRITTEN:
            return kernel

        def call(*args: Any, **options: Any) -> Any:
            if name in _REFUSED:
                refuse(_REFUSED[name])
            return recording.call(name, kernel, args, options)

        return call


def _tuple(words: Iterable[str]) -> str:
    words = list(words)
    return f"({', '.join(words)}{',' * (len(words) == 1)})"


def _arrays(x: Any) -> Iterator[Array]:
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, tuple | list):
        for y in x:
            yield from _arrays(y)


def new_recording() -> Recording:
    """What a step is recorded with."""
    return Recording()


def recorded_update(update: Update, gradients: Sequence[Array]) -> None:
    """Record an optimizer's step, which is given its gradients."""
    assert here.recording is not None
    here.recording.update(update, gradients)
