"""Numba's CUDA simulator, made fast and complete enough for the tests: import before any kernel is declared.

As it comes, it polls the threads of a block, has no warp functions, computes with Python's `math` (which raises where
a GPU says infinity or NaN, and is always in float64), and merges shared arrays that stand on one line. Here the threads
of a block take turns within one, as greenlets where they have to wait for each other; `math` keeps float32 and raises
nothing.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import sys
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

import greenlet
import numpy as np
from numba import cuda
from numba.cuda.simulator import kernel as simulated
from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray
from numba.cuda.simulator.kernelapi import Dim3, FakeCUDALocal, FakeCUDAModule, FakeCUDAShared
from numba.np.numpy_support import as_dtype

# Mathematics as a GPU does it ----------------------------------------------------------------------------------------

_SLOW = {name: np.vectorize(getattr(math, name), otypes=[float]) for name in ("erf", "erfc", "lgamma", "gamma")}
_UFUNCS = "exp log log1p expm1 sqrt sin cos tan tanh floor ceil copysign ldexp frexp isnan isinf isfinite"


def _in_dtype_of_x(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, *more: Any) -> Any:
        made = function(x, *more)
        return made if isinstance(made, tuple) or np.asarray(made).dtype == bool else type(x)(made)

    return call


class _Mathematics(types.SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"math.{name} in a kernel: add it to {__name__}")


MATH = _Mathematics(
    **{name: _in_dtype_of_x(getattr(np, name)) for name in _UFUNCS.split()},
    **{name: _in_dtype_of_x(function) for name, function in _SLOW.items()},
    pow=np.power, fabs=np.abs, fma=lambda x, y, z: type(x)(float(x) * float(y) + float(z)),
    pi=math.pi, inf=math.inf, nan=math.nan,
)  # fmt: skip


# Declaration: kernels and helpers see the running block as `cuda`, and the mathematics above as `math` ----------------


class _Current:
    """The simulated device of the kernel that runs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(simulated._get_kernel_context(), name)


_HERE = _Current()
_declare = cuda.jit


def _jit(fn: Any = None, *, device: bool = False, **options: Any) -> Any:
    if fn is None:
        return lambda fn: _jit(fn, device=device, **options)
    seen = {**fn.__globals__}
    seen.update({name: _HERE for name, thing in seen.items() if thing is cuda})
    seen.update({name: MATH for name, thing in seen.items() if thing is math})
    seeing = types.FunctionType(fn.__code__, seen, fn.__name__, fn.__defaults__, fn.__closure__)
    return seeing if device else _declare(seeing, **options)


# Execution -----------------------------------------------------------------------------------------------------------

_MEETINGS = ("syncthreads", "syncwarp", "shfl", "_sync", "shared", "this_grid")


def _meets(fn: Any, seen: set[Any]) -> bool:
    """May a thread of the kernel wait for another?"""
    if fn in seen:
        return False
    seen.add(fn)
    names = fn.__code__.co_names
    cells = [cell.cell_contents for cell in fn.__closure__ or ()]
    called = [fn.__globals__.get(name) for name in names] + cells
    return any(part in name for name in names for part in _MEETINGS) or any(
        _meets(f, seen) for f in called if isinstance(f, types.FunctionType)
    )


def _run(self: Any, block: Any, *args: Any) -> None:
    if not hasattr(self._f, "meets"):
        self._f.meets = _meets(self._f, set())
    points = [Dim3(*reversed(p)) for p in itertools.product(*(range(n) for n in reversed(self._block_dim)))]
    args = tuple(x._item._ary if isinstance(x, FakeWithinKernelCUDAArray) else x for x in args)  # faster to index
    here: Any = threading.current_thread()
    here.blockIdx, here._manager = Dim3(*block), self
    if self._f.meets:
        _Together(self, args, points).run(sign=next(_signs))
        return
    with np.errstate(all="ignore"):
        for here.thread_id, here.threadIdx in enumerate(points):
            self._f(*args)


_signs = itertools.cycle((1, -1))


class _Together:
    """The threads of a block: one runs until it has to wait for others, then the first that need not.

    So a warp is as far ahead of the others as barriers allow; in every other block the last threads come first.
    What a thread reads too early, or writes too early for others, is seen in either direction.
    """

    def __init__(self, manager: Any, args: Any, points: list[Any]):
        self.f, self.args, self.points, self.living = manager._f, args, points, len(points)
        self.waiting: dict[Any, list[int]] = {}  # who waits for whom: a warp, or the block
        self.given: dict[int, list[Any]] = {}
        manager.together = self

    def run(self, sign: int) -> None:
        threads = [greenlet.greenlet(self._body) for _ in self.points]
        self.ready, self.sign = [], sign
        self._run_on(range(len(threads)))
        here: Any = threading.current_thread()
        try:
            while self.ready:
                number = self.sign * heapq.heappop(self.ready)
                here.thread_id, here.threadIdx = number, self.points[number]
                threads[number].switch()
                if threads[number].dead:
                    self.living -= 1
                    self._go_on("block", self.living)
            if self.living:
                raise RuntimeError(f"{self.f.__name__}: threads wait for others, which do not come: {self.waiting}")
        finally:
            for thread in threads:
                if thread and not thread.dead:
                    thread.throw(greenlet.GreenletExit)

    def _body(self) -> None:
        with np.errstate(all="ignore"):
            self.f(*self.args)

    def meet(self, group: Any, size: int) -> None:
        """Wait until as many of the group have come."""
        self.waiting.setdefault(group, []).append(threading.current_thread().thread_id)  # type: ignore[attr-defined]
        self._go_on(group, size)
        greenlet.getcurrent().parent.switch()

    def _go_on(self, group: Any, size: int) -> None:
        if 0 < size <= len(self.waiting.get(group, ())):
            self._run_on(self.waiting.pop(group))

    def _run_on(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            heapq.heappush(self.ready, self.sign * number)


def _syncthreads() -> None:
    together = threading.current_thread()._manager.together  # type: ignore[attr-defined]
    together.meet("block", together.living)


# Warps: what a lane gives is written down, all meet, what others gave is read, all meet -------------------------------


def _exchange(value: Any) -> tuple[int, list[Any]]:
    thread: Any = threading.current_thread()
    together, (warp, lane) = thread._manager.together, divmod(thread.thread_id, 32)
    size = min(32, len(together.points) - 32 * warp)
    given = together.given.setdefault(warp, [None] * size)
    given[lane] = value
    together.meet(warp, size)
    values = list(given)
    together.meet(warp, size)
    return lane, values


def _shuffle(source: Callable[[int, int], int]) -> Callable[..., Any]:
    def shfl(self: Any, mask: Any, value: Any, which: Any) -> Any:
        lane, values = _exchange(value)
        at = source(lane, int(which))
        return values[at] if 0 <= at < len(values) else value

    return shfl


def _vote(result: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    return lambda self, mask, vote: result(_exchange(bool(vote))[1])


# Arrays of a block and of a thread -----------------------------------------------------------------------------------

def _shared(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
    if np.prod(shape) == 0:
        return _dynamic(self, shape, dtype)
    frame, here = sys._getframe(1), threading.current_thread()
    arrays = here._manager.__dict__.setdefault("shared", {})  # type: ignore[attr-defined]
    place = frame.f_code, frame.f_lasti
    if place not in arrays:
        arrays[place] = _unset(shape, dtype)
    return arrays[place]


def _unset(shape: Any, dtype: Any) -> Any:
    return _nothing(shape, dtype).copy()


@functools.cache
def _nothing(shape: Any, dtype: Any) -> Any:
    kind = dtype if isinstance(dtype, np.dtype | type) else as_dtype(dtype)
    return np.full(shape, np.nan if np.dtype(kind).kind == "f" else 77, kind)  # whoever reads before writing will see


_dynamic = FakeCUDAShared.array


def install() -> None:
    cuda.jit = _jit
    simulated.BlockManager.run = _run
    FakeCUDAModule.syncthreads = lambda self: _syncthreads()
    FakeCUDAShared.array = _shared
    FakeCUDALocal.array = lambda self, shape, dtype, alignment=None: _unset(shape, dtype)
    FakeCUDAModule.fma = lambda self, x, y, z: type(x)(np.longdouble(x) * np.longdouble(y) + np.longdouble(z))
    warp = {
        "shfl_sync": _shuffle(lambda lane, which: which % 32),
        "shfl_up_sync": _shuffle(lambda lane, which: lane - which),
        "shfl_down_sync": _shuffle(lambda lane, which: lane + which),
        "shfl_xor_sync": _shuffle(lambda lane, which: lane ^ which),
        "ballot_sync": _vote(lambda votes: sum(1 << i for i, vote in enumerate(votes) if vote)),
        "any_sync": _vote(any),
        "all_sync": _vote(all),
        "syncwarp": lambda self, mask=0xFFFFFFFF: _exchange(None) and None,
    }
    for name, function in warp.items():
        setattr(FakeCUDAModule, name, function)
