"""A recorded step: launches that were written down instead of made, to be made again and again as one CUDA graph.

While a step is recorded its Python code runs and the device does nothing. Memory comes from a pool of the recording's
own, so that every address stays what it was; memory from outside must still be there when the step is over. Numbers
that change from step to step (a learning rate, the place in a stream of random numbers) lie in the recording's letter:
host memory that is filled anew, and copied to the device, before each run.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.kernels.cuda import memory
from minigrad.kernels.cuda._numba import SIMULATED
from minigrad.kernels.cuda._stream import copy_in, handle, here
from minigrad.kernels.cuda.array import Array, copy
from minigrad.kernels.recording import check_stepped, let_go, old_gradient, other_optimizer, refuse

Made = tuple[Sequence[Array], Sequence[Array]]  # by a step: results, in memory of their own, and gradients
_LETTER = 1 << 15  # bytes; up to twice as many are copied without waiting for the device
_ALIGNED = 64


class Recording:
    """The launches of one step, and all that they need; `run()` makes them."""

    def __init__(self) -> None:
        self.pool: memory.Free = defaultdict(list)
        self._launches: list[Any] = []
        self._outside: dict[int, weakref.ref[memory.Buffer]] = {}
        self._kept: list[Any] = []
        self._again: list[Callable[[], None]] = []
        self._letter, self._written = np.zeros(_LETTER, np.uint8), 0
        self._sent = memory.allocate(_LETTER, shared=True)
        self.updates: list[Any] = []  # of the optimizer's step that is being recorded
        self.ahead: list[Callable[[], None]] = []  # what takes back what the optimizers have counted for the next run
        self._graph: Any = None
        weakref.finalize(self, memory.adopt, self.pool).atexit = False

    # While it is being recorded ------------------------------------------------------------------------------------

    @contextmanager
    def record(self) -> Iterator[None]:
        """Launches of this thread are written down."""
        here.recording = self
        try:
            yield
        finally:
            here.recording = None

    def add(self, variant: Any, grid: Any, block: Any, packed: Any, args: tuple[Any, ...]) -> None:
        self._launches.append((variant, grid, block, packed))
        for x in args:
            if type(x) is Array:
                self.keep(x.buffer)

    def keep(self, buffer: memory.Buffer) -> None:
        """The recording uses this memory: if it is not its own, it must stay."""
        if not self.owns(buffer) and id(buffer) not in self._outside:
            self._outside[id(buffer)] = weakref.ref(buffer)

    def owns(self, buffer: memory.Buffer) -> bool:
        """Is it memory that the step itself has written?"""
        return buffer.pool is self.pool

    def hold(self, buffer: memory.Buffer) -> None:
        """The recording uses this memory, and keeps it itself."""
        self._kept.append(buffer)

    refuse = staticmethod(refuse)

    def number(self, compute: Callable[[], Any]) -> Array:
        """A few numbers on the device; `compute` is called now, and again before each later run."""
        values = np.asarray(compute())
        array = self.slot(values)
        write = weakref.WeakMethod(self.write)  # no cycle: memory shall go back at once
        self._again.append(lambda: write()(array, compute()))  # type: ignore[misc]
        return array

    def renewed_by(self, compute: Callable[[], None]) -> None:
        """`compute` is called before each later run."""
        self._again.append(compute)

    def renumber(self, steps: Any) -> bool:
        """Has an optimizer's launch been made before, so that it only needs its numbers? Not while it is recorded."""
        return False

    def slot(self, values: Any) -> Array:
        """A place in the letter, and on the device."""
        start = self._written
        self._written += -(-values.nbytes // _ALIGNED) * _ALIGNED
        if self._written > _LETTER:
            raise RuntimeError(f"mg.capture: more than {_LETTER} bytes of numbers that change from step to step")
        array = Array(self._sent, values.shape, (1,), start // values.itemsize, values.dtype, True)
        self.write(array, values)
        return array

    def write(self, slot: Array, values: Any) -> None:
        """What the slot will hold in the next run."""
        start = slot.offset * slot.dtype.itemsize
        self._letter[start : start + slot.size * slot.dtype.itemsize].view(slot.dtype)[:] = values

    def finish(self, results: Sequence[Array], gradients: Sequence[Array]) -> Made:
        """All is written down: make the graph, whose runs leave such results and gradients where these are; run it.

        RuntimeError if memory from before the step is gone.
        """
        buffers = [reference() for reference in self._outside.values()]
        if None in buffers:
            let_go()
        self._kept += buffers
        self._outside.clear()
        if not SIMULATED and self._launches:
            self._graph = _built(self._launches)
        self._results, self._gradients = results, gradients
        return self.run()

    def text(self, names: dict[int, str]) -> str:
        """The launches, a line each."""
        return "\n".join(f"{variant.name}[{grid}, {block}]" for variant, grid, block, _ in self._launches)

    def undo(self) -> None:
        """Nothing: the device has done nothing yet."""

    # Afterwards ----------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Compute the numbers of the next run. Should that fail, no optimizer has counted it."""
        self.ahead = []
        try:
            for compute in self._again:
                compute()
        except BaseException:
            for take_back in self.ahead:
                take_back()
            raise

    def run(self) -> Made:
        """One step on the device; does not wait for it."""
        if self._written:
            copy_in(self._sent.block.address, self._letter[: self._written])
        if self._graph is not None:
            self._graph()
        else:
            for variant, grid, block, packed in self._launches:
                variant.run(grid, block, packed)
        return list(map(copy, self._results)), self._gradients


def _built(launches: list[Any]) -> Callable[[], None]:
    """The launches as a CUDA graph, which one call puts on our stream."""
    from cuda.core import Device, Stream

    for variant, *_ in launches:
        variant.prepare()  # nothing is compiled or loaded while the driver listens
    device = Device()
    device.set_current()
    builder = device.create_graph_builder().begin_building()
    for variant, grid, block, packed in launches:
        variant.run(grid, block, packed, int(builder.stream.handle))
    graph = builder.end_building().complete()
    stream = Stream.from_handle(handle())
    graph.upload(stream)
    return functools.partial(graph.launch, stream)


# An optimizer's step is one piece of Python: it runs again for the sake of the numbers in it -------------------------


class _Renewal:
    """Takes the place of the recording while an optimizer's step runs again: it may not do anything new."""

    def __init__(self, recording: Any, updates: list[Any]):
        self.pool = recording.pool
        self._write, self._updates = recording.write, iter(updates)

    def renumber(self, steps: Any) -> bool:
        arrays, kinds = next(self._updates, ([], ()))
        check_stepped([x for xs in arrays for x in xs], [x for _, xs, _ in steps for x in xs])
        for members, slot in kinds:
            numbers = {steps[i][2] for i in members}
            if len(numbers) > 1:
                other_optimizer(f"{len(numbers)} learning rates or counts of steps where there was one")
            given_now = numbers.pop()
            self._write(slot, given_now + (0.0,) * (slot.size - len(given_now)))
        return True

    def add(self, *launch: Any) -> None:
        other_optimizer("it launches a kernel that it did not launch, or holds memory that it did not hold")

    hold = refuse = add


def new_recording() -> Recording:
    """What a step is recorded with."""
    return Recording()


def recorded_update(update: Any, gradients: Sequence[Array]) -> None:
    """Record an optimizer's step; before each later run it runs again, for its learning rate and its count alone."""
    recording = here.recording
    if not all(recording.owns(g.buffer) for g in gradients):
        old_gradient()
    updates = recording.updates = []
    update(*gradients)

    def again() -> None:
        recording_of_step.ahead.append(update.take_back)
        here.recording = _Renewal(recording_of_step, updates)
        try:
            update(*gradients)
        finally:
            here.recording = None

    recording_of_step = weakref.proxy(recording)  # which holds this function
    recording.renewed_by(again)
