"""A recorded step: calls of kernels, written down while they were made, to be made again as one Python function.

A call is a line of that function, `v7 = linear(v2, v5, a3)`. Arrays that the step made are its variables. Arrays from
before the step are used where they lie, and must still be there when it is over; whatever else a kernel was given is a
constant. What is made of constants alone is made once, before the function. There is neither graph nor Tensor in it,
and so none of their cost, which for small networks is most of a step's. Numbers that change from step to step are asked
for by the kernels themselves (a draw of random numbers), or by the optimizer's own Python, which is one line.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import operator
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.kernels.cpu._jit import Kernel, listening
from minigrad.kernels.cpu._replay import Replay
from minigrad.kernels.cpu.array import Array
from minigrad.kernels.recording import COPIES, GIVES, READS, TAKES, let_go, other_optimizer, refuse

Launch = tuple[Kernel, tuple[Any, ...]]
Made = tuple[Sequence[Array], Sequence[Array]]  # by a step: results, in memory of their own, and gradients
_NOT_WRITTEN = {
    "is_view", "is_writable", "shares_memory", "memory_allocated", "dlpack_device", "new_recording", "recorded_update",
}  # fmt: skip
_REFUSED = {
    "to_host": READS, "has_nan": READS, "from_host": COPIES, "flat_places": COPIES,
    "dlpack": GIVES, "from_dlpack": TAKES,
}  # fmt: skip
#: Bytes of memory that a step keeps for a result; larger ones take turns, and their kernels make Python not matter.
_STAYS = 1 << 20
_WRITERS = {"assign", "sgd", "adam", "rmsprop"}


class _Here(threading.local):
    """Per thread: the step that is being recorded."""

    recording: Recording | None = None


here = _Here()


@dataclass
class _Place:
    """An array to launch a kernel on, without holding its memory."""

    memory: weakref.ref[Array]
    address: int
    shape: tuple[int, ...]
    dtype: Any
    is_writable: bool

    @staticmethod
    def of(x: Array) -> _Place:
        return _Place(weakref.ref(_memory(x)), x.ctypes.data, x.shape, x.dtype, x.flags.writeable)

    def array(self) -> Array:
        """The same array again, which holds its memory."""
        bytes_: Any = (ctypes.c_char * (math.prod(self.shape) * self.dtype.itemsize)).from_address(self.address)
        bytes_.owner = self.memory()
        x = np.ndarray(self.shape, self.dtype, bytes_)
        x.flags.writeable = self.is_writable
        return x


def _placed(launches: list[Launch]) -> list[Launch]:
    """The launches, without holding the memory that they work on; none if some of it was made for them, and is gone."""
    if not all(x.flags.c_contiguous for _, args in launches for x in _arrays(args)):
        return []
    made = [(k, tuple(_Place.of(x) if isinstance(x, np.ndarray) else x for x in args)) for k, args in launches]
    launches.clear()
    return [] if any(type(x) is _Place and x.memory() is None for _, args in made for x in args) else made


class _Numbers:
    """Those of an optimizer's step, which is one piece of Python: it runs again for their sake alone."""

    def __init__(self, update: Callable[..., None], gradients: Sequence[Array]):
        self._update, self._gradients = update, gradients
        self._references: list[Callable[[], Array | None]] = []
        self._arrays: list[Array | None] = []  # of all parameters
        self._slots: list[Array] = []  # of each parameter, where its launch finds numbers

    def record(self) -> list[Launch]:
        """The launches of the step, if they can be made again: with numbers in arrays of their own."""
        with listening(self._begin) as launches:
            self._update(*self._gradients)
        self._slots = [args[-1] for _, args in launches]
        return _placed(launches)

    def _begin(self, steps: Sequence[Any]) -> bool:
        self._references = [_nothing if x is None else weakref.ref(x) for _, xs, _ in steps for x in xs]
        return False

    def hold(self) -> None:
        self._arrays = [reference() for reference in self._references]

    def renew(self) -> None:
        with listening(self._take):
            self._update(*self._gradients)

    def _take(self, steps: Sequence[Any]) -> bool:
        arrays = [x for _, xs, _ in steps for x in xs]
        if len(arrays) != len(self._arrays) or any(map(operator.is_not, arrays, self._arrays)):
            other_optimizer()
        last = None
        for slot, (*_, numbers) in zip(self._slots, steps, strict=True):
            if slot is not last:  # they share it
                slot[:] = numbers
            last = slot
        return True


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


class Recording:
    """The calls of one step; `run()` makes them."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._names: dict[int, tuple[Callable[[], Any], str]] = {}  # id -> an array that the step knows, its name
        self._outside: dict[str, weakref.ref[Array]] = {}
        self._constants: dict[str, Any] = {"np": np}
        self._staying: dict[str, Any] = {}  # variables that are the same arrays in every step
        self._memory: dict[int, tuple[weakref.ref[Array], bool]] = {}  # id -> memory of what it knows; does it stay?
        self._variables = 0
        self._written: list[tuple[Array, Array]] = []  # arrays, and what they held before
        self._updating = False
        self._used: set[str] = set()  # of the line that is being written
        self._varies = False
        self._varying: set[str] = set()  # variables
        self._numbers: list[_Numbers] = []

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
            again = self._only(launches, out) if all(map(self._stays, _arrays(args))) else []
            self._add(name, words, out, again, getattr(kernel, "ufunc", None))
        return out

    def update(self, update: Callable[..., None], gradients: Sequence[Array]) -> None:
        numbers = _Numbers(update, gradients)
        self._updating = True
        launches = numbers.record()
        self._updating = False
        name = f"update{len(self._lines)}"
        self._constants[name] = update
        self._varies = True
        words = list(map(self._word, gradients))
        if not all(map(self._stays, gradients)):
            launches = []
        if launches:
            self._numbers.append(numbers)
        self._add(name, words, None, launches)

    def _only(self, launches: list[Launch], out: Any) -> list[Launch]:
        """The launch that is all that a kernel has done, if there is such a one: on memory that stays, and on `out`."""
        found = _placed(launches) if len(launches) == 1 else []
        there = {id(x.memory()) for _, args in found for x in args if type(x) is _Place}
        return found if {id(_memory(x)) for x in _arrays(out)} <= there else []  # else it has made a copy after that

    def _add(
        self, name: str, words: list[str], out: Any, launches: list[Launch], ufunc: Any = None
    ) -> None:
        call = f"{name}({', '.join(words)})"
        outs = out if type(out) is tuple else () if out is None else (out,)
        is_view = bool(outs) and all(map(self._stays, outs))
        if not all(isinstance(x, np.ndarray) for x in outs):
            self._varies = True  # Python has a number, which will be another one
        varies = self._varies or bool(self._used & self._varying)
        stays = is_view or all(self._may_stay(x, varies) for x in outs)
        made = [self._variable(x) for x in outs]
        if varies:
            self._varying.update(made)
        text = f"{', '.join(made)} = {call}" if made else call
        if not stays or not made:
            runs = text
        elif is_view:
            runs = ""
        elif isinstance(ufunc, np.ufunc) and outs[0].dtype != np.float16:  # where the kernel does more
            runs = f"np.{ufunc.__name__}({', '.join(words)}, out={made[0]})"
        else:
            runs = f"{', '.join(f'{v}[...]' for v in made)} = {call}"
        if stays:
            self._staying.update(zip(made, outs, strict=True))
        self._memory |= {id(_memory(x)): (weakref.ref(_memory(x)), stays) for x in outs if isinstance(x, np.ndarray)}
        memory = [weakref.ref(_memory(x)) for x in outs if isinstance(x, np.ndarray)]
        line = _Line(text, made, self._used, memory, self._varies, runs, launches if stays else [])
        self._lines.append(line)
        self._used, self._varies = set(), False

    def _stays(self, x: Any, unknown: bool = False) -> bool:
        """Does the array lie in memory that is the same in every step?"""
        if not isinstance(x, np.ndarray):
            return False
        reference, stays = self._memory.get(id(_memory(x)), (None, unknown))
        return stays if reference is not None and reference() is _memory(x) else unknown

    def _may_stay(self, x: Any, varies: bool) -> bool:
        """May its memory, if it is new?"""
        return self._stays(x, True) and x.flags.writeable and (not varies or _memory(x).nbytes <= _STAYS)

    def _is_written(self, x: Array) -> None:
        """Every step must make it anew."""
        for line in self._lines:
            line.varies |= any(memory() is _memory(x) for memory in line.memory)

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
            self._memory[id(_memory(x))] = weakref.ref(_memory(x)), True
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
        self._borrowed = [self._stays(x) or not self._known(_memory(x)) for x in results]
        ends = [*map(self._word, results), *map(self._word, gradients)]
        for name, reference in self._outside.items():
            array = reference()
            if array is None:
                let_go()
            self._constants[name] = array
        for numbers in self._numbers:
            numbers.hold()
        self._constants.update(self._staying)
        once, fixed, each = [], set[str](), []
        for line in self._lines:
            if line.varies or not line.used <= fixed.union(line.made):
                each.append(line)
            else:
                once.append(line.text)
                fixed.update(line.made)
        kept, lines = set(ends), [f"    return {_tuple(ends)}"]
        for runs, used in reversed(list(self._pieces(each))):
            used -= self._staying.keys()
            if gone := ", ".join(sorted(used - kept)):  # no later line has them
                lines.append(f"    del {gone}")
            lines.append(f"    {runs}")
            kept |= used
        function = "\n".join(["def step():", *reversed(lines)])
        exec(compile(function, "<captured step>", "exec"), self._constants)
        self._text, self._step = "\n".join([*once, function]), self._constants.pop("step")
        self._lines, self._names, self._written, self._memory, self._staying = [], {}, [], {}, {}
        return self._own(results), gradients

    def _pieces(self, lines: list[_Line]) -> Iterator[tuple[str, set[str]]]:
        """What the function says, and the variables in it. Launches in a row are one replay: comments say of what."""
        for replayed, some in itertools.groupby(lines, lambda line: bool(line.launches or not line.runs)):
            group = list(some)
            if replayed:
                said = [f"# {line.text}" for line in group]
                if launches := [launch for line in group for launch in line.launches]:
                    name = f"replay{len(self._constants)}"
                    self._constants[name] = Replay([(kernel, tuple(map(_array, args))) for kernel, args in launches])
                    said.insert(0, f"{name}()")
                yield "\n    ".join(said), set()
            else:
                yield from ((line.runs, line.used) for line in group)

    def _own(self, results: Sequence[Array]) -> list[Array]:
        """In memory that is nobody else's."""
        return [x.copy() if borrowed else x for x, borrowed in zip(results, self._borrowed, strict=True)]

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
        for numbers in self._numbers:
            numbers.renew()

    @np.errstate(all="ignore")
    def run(self) -> Made:
        """One step."""
        made = self._step()
        results = len(self._borrowed)
        return self._own(made[:results]), made[results:]


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


def _memory(x: Array) -> Array:
    """The array that owns it."""
    return x.base if isinstance(x.base, np.ndarray) else x


def _nothing() -> None: ...


def _array(x: Any) -> Any:
    return x.array() if type(x) is _Place else x


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


def recorded_update(update: Callable[..., None], gradients: Sequence[Array]) -> None:
    """Record an optimizer's step, which is given its gradients."""
    assert here.recording is not None
    here.recording.update(update, gradients)
