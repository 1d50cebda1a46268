"""Numba's CUDA simulator, made fast and complete enough for the tests: import before any kernel is declared.

As it comes, it polls the threads of a block, has no warp functions, computes with Python's `math` (which raises where
a GPU says infinity or NaN, and is always in float64), and merges shared arrays that stand on one line. Here a block
without barriers runs in one thread, one with barriers on a condition variable; `math` keeps float32 and raises nothing.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.simulator import kernel as simulated
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
    threads = [tuple(reversed(p)) for p in itertools.product(*(range(n) for n in reversed(self._block_dim)))]
    if self._f.meets:
        _run_together(self, block, threads, args)
        return
    here: Any = threading.current_thread()
    here.blockIdx, here._manager = Dim3(*block), self
    with np.errstate(all="ignore"):
        for number, thread in enumerate(threads):
            here.threadIdx, here.thread_id = Dim3(*thread), number
            self._f(*args)


def _run_together(self: Any, block: Any, points: list[Any], args: Any) -> None:
    self.turn, self.waiting, self.living, self.failed = 0, 0, len(points), False
    self.meeting = threading.Condition()

    def body() -> None:
        try:
            with np.errstate(all="ignore"):
                self._f(*args)
        except BaseException:
            self.failed = True
            raise
        finally:
            with self.meeting:
                self.living -= 1
                _turn(self)

    threads = [simulated.BlockThread(body, self, block, point, self._debug) for point in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [thread.exception for thread in threads if thread.exception]
    if failures:
        error, trace = min(failures, key=lambda failure: isinstance(failure[0], threading.BrokenBarrierError))
        raise error.with_traceback(trace)


def _turn(manager: Any) -> None:
    """All who live are waiting, or one has failed: go on."""
    if manager.failed or manager.waiting >= manager.living:
        manager.waiting, manager.turn = 0, manager.turn + 1
        manager.meeting.notify_all()


def _syncthreads(self: Any) -> None:
    manager = self._manager
    with manager.meeting:
        turn = manager.turn
        manager.waiting += 1
        _turn(manager)
        while manager.turn == turn and not manager.failed:
            manager.meeting.wait()
        if manager.failed:
            raise threading.BrokenBarrierError("another thread of the block has failed")


# Warps: what a lane gives is written down, all meet, what others gave is read, all meet -------------------------------


def _exchange(value: Any) -> tuple[int, list[Any]]:
    thread: Any = threading.current_thread()
    manager, (warp, lane) = thread._manager, divmod(thread.thread_id, 32)
    size = min(32, math.prod(manager._block_dim) - 32 * warp)
    with manager.meeting:
        barrier, given = manager.__dict__.setdefault("warps", {}).setdefault(
            warp, (threading.Barrier(size), [None] * size)
        )
    given[lane] = value
    barrier.wait()
    values = list(given)
    barrier.wait()
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

_declaring = threading.Lock()


def _shared(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
    if np.prod(shape) == 0:
        return _dynamic(self, shape, dtype)
    frame, here = sys._getframe(1), threading.current_thread()
    with _declaring:
        arrays = here._manager.__dict__.setdefault("shared", {})  # type: ignore[attr-defined]
        place = frame.f_code, frame.f_lasti
        if place not in arrays:
            arrays[place] = _unset(shape, dtype)
        return arrays[place]


def _unset(shape: Any, dtype: Any) -> Any:
    kind = dtype if isinstance(dtype, np.dtype | type) else as_dtype(dtype)
    return np.full(shape, np.nan if np.dtype(kind).kind == "f" else 77, kind)  # whoever reads before writing will see


_dynamic = FakeCUDAShared.array


def install() -> None:
    cuda.jit = _jit
    simulated.BlockManager.run, simulated.BlockThread.syncthreads = _run, _syncthreads
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
