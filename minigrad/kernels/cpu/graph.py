"""A recorded step: calls of kernels, written down while they were made, to be made again as one Python function.

A call is a line of that function, `v7 = linear(v2, v5, a3)`. Arrays that the step made are its variables. Arrays from
before the step are used where they lie, and must still be there when it is over; whatever else a kernel was given is a
constant. What is made of constants alone is made once, before the function. There is neither graph nor Tensor in it,
and so none of their cost, which for small networks is most of a step's. Numbers that change from step to step are asked
for by the kernels themselves (a draw of random numbers), or by the optimizer's own Python, which is one line.
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.kernels.cpu.array import Array
from minigrad.kernels.recording import COPIES, GIVES, READS, TAKES, let_go, refuse

Made = tuple[Sequence[Array], Sequence[Array]]  # by a step: results, in memory of their own, and gradients
_NOT_WRITTEN = {
    "is_view", "is_writable", "shares_memory", "memory_allocated", "dlpack_device", "new_recording", "recorded_update",
}  # fmt: skip
_REFUSED = {
    "to_host": READS, "has_nan": READS, "from_host": COPIES, "flat_places": COPIES,
    "dlpack": GIVES, "from_dlpack": TAKES,
}  # fmt: skip
_WRITERS = {"assign", "sgd", "adam", "rmsprop"}


class _Here(threading.local):
    """Per thread: the step that is being recorded."""

    recording: Recording | None = None


here = _Here()


@dataclass
class _Line:
    text: str
    made: list[str]
    used: set[str]  # variables, with those that it makes
    memory: list[weakref.ref[Array]]  # of what it makes
    varies: bool  # by itself: it was given more than constants, or what it makes is written over


class Recording:
    """The calls of one step; `run()` makes them."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._names: dict[int, tuple[Callable[[], Any], str]] = {}  # id -> an array that the step knows, its name
        self._outside: dict[str, weakref.ref[Array]] = {}
        self._constants: dict[str, Any] = {"np": np}
        self._variables = 0
        self._written: list[tuple[Array, Array]] = []  # arrays, and what they held before
        self._updating = False
        self._used: set[str] = set()  # of the line that is being written
        self._varies = False

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
        out = kernel(*args, **options)
        if not (self._updating or self._known(out)):  # what came back as it was given needs no line
            if (ufunc := getattr(kernel, "ufunc", None)) and out.ndim and out.dtype != np.float16:
                name = f"np.{ufunc.__name__}"  # all that the kernel would do here
            else:
                self._constants[name] = kernel
            self._add(name, [*map(self._word, args), *(f"{key}={self._word(x)}" for key, x in options.items())], out)
        return out

    def update(self, update: Callable[..., None], gradients: Sequence[Array]) -> None:
        self._updating = True
        update(*gradients)
        self._updating = False
        name = f"update{len(self._lines)}"
        self._constants[name] = update
        self._varies = True
        self._add(name, list(map(self._word, gradients)), None)

    def _add(self, name: str, arguments: list[str], out: Any) -> None:
        call = f"{name}({', '.join(arguments)})"
        outs = out if type(out) is tuple else () if out is None else (out,)
        made = [self._variable(x) for x in outs]
        memory = [weakref.ref(_memory(x)) for x in outs if isinstance(x, np.ndarray)]
        text = f"{', '.join(made)} = {call}" if made else call
        self._lines.append(_Line(text, made, self._used, memory, self._varies))
        self._used, self._varies = set(), False

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
        memory = [self._known(_memory(x)) for x in results]  # "": a kernel's own
        self._borrowed = [not name or name in self._outside for name in memory]
        ends = [*map(self._word, results), *map(self._word, gradients)]
        for name, reference in self._outside.items():
            array = reference()
            if array is None:
                let_go()
            self._constants[name] = array
        once, fixed, each = [], set[str](), []
        for line in self._lines:
            if line.varies or not line.used <= fixed.union(line.made):
                each.append(line)
            else:
                once.append(line.text)
                fixed.update(line.made)
        kept, lines = fixed.union(ends), [f"    return {_tuple(ends)}"]
        for line in reversed(each):
            if gone := ", ".join(sorted(line.used - kept)):  # no later line has them
                lines.append(f"    del {gone}")
            lines.append(f"    {line.text}")
            kept |= line.used
        self._text = "\n".join([*once, "def step():", *reversed(lines)])
        exec(compile(self._text, "<captured step>", "exec"), self._constants)
        self._step = self._constants.pop("step")
        self._lines, self._names, self._written = [], {}, []
        return self._own(results), gradients

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
        """Nothing: numbers that change are asked for in the step."""

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
    return x if x.base is None else x.base


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
