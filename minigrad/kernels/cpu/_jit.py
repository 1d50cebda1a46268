"""The one decorator that compiles CPU kernels: lazily, serial or parallel, cached on disk."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# How long GNU OpenMP's threads look for more work before they sleep: a millisecond or so, the Python code between two
# kernels. To wake them takes longer than many a kernel; to look for longer would keep the cores from others.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

import numba
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from minigrad._interrupt import deferred
from minigrad.kernels.cpu._lean import lean
from minigrad.kernels.disk_cache import DiskCache

#: Freedom to reorder sums (so that they vectorize) that still lets NaN and infinity through: never 'nnan', 'ninf'.
REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# What Python or C would call a helper by is not made: that took 7% of the time in which kernels are compiled.
_FOR_KERNELS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _OnDisk(DiskCache):
    """Of kernels for the processor."""

    def reduced(self, compiled: Any) -> bytes | None:
        return None if compiled.library.has_dynamic_globals else dumps(compiled._reduce())

    def rebuilt(self, target_context: Any, reduced: bytes) -> Any:
        return CompileResult._rebuild(target_context, *pickle.loads(reduced))


_threads: int | None = None  # None: as many as Numba takes


def set_num_threads(n: int) -> None:
    """How many threads a parallel variant may use, in every thread that calls one."""
    global _threads
    _threads = n


def num_threads() -> int:
    """How many threads a parallel variant uses at most: so many parts a kernel may cut its work into."""
    return _threads or int(numba.config.NUMBA_NUM_THREADS)


# A parallel region started in a forked child dies inside GNU OpenMP, so children use the serial variants.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
    # A fork waits until no thread is compiling: its child would have half a compiler, locked for ever.
    lock = global_compiler_lock
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

# Callers take turns. The workqueue layer, Numba's last resort, aborts the process on concurrent ones, and GNU OpenMP
# gives every calling thread a team of its own: more threads than cores, which wait for each other. A handler of a
# signal may come in between: the same thread need not wait for itself.
_one_at_a_time = threading.RLock()


def in_turn() -> threading.RLock:
    """To be held while parallel variants run, on as many threads as were asked for."""
    if _threads is not None:
        numba.set_num_threads(_threads)  # Numba keeps this number per thread
    return _one_at_a_time


def team() -> int:
    """How many threads a launch may have now; 0 in a forked child, where parallel variants may not run."""
    return 0 if _forked else num_threads()


class _Heard(threading.local):
    """Per thread, while somebody listens: the launches that `Kernel.only` makes, and who takes an optimizer's steps."""

    launches: list[Launch] | None = None
    renumber: Callable[[Any], bool] | None = None  # of steps that were recorded, only the numbers change


heard = _Heard()


@contextlib.contextmanager
def listening(renumber: Callable[[Any], bool] | None = None) -> Iterator[list[Launch]]:
    """Hear of each launch that is made by `Kernel.only`."""
    launches: list[Launch] = []
    heard.launches, heard.renumber = launches, renumber
    try:
        yield launches
    finally:
        heard.launches = heard.renumber = None


# Numba would make parallel regions of `np.zeros(3)` and of every `x[:] = y`, too, each worth microseconds.
_OTHERS = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")
_PRANGE_ALONE = {"prange": True} | dict.fromkeys(_OTHERS, False)


class Kernel:
    """A compiled function with two variants of one text. The size of its first argument chooses.

    The variants are made when first asked for. Both must give the same bits: reductions add up blocks whose borders
    depend on shapes alone.
    """

    def __init__(self, fn: Callable[..., Any], name: str, parallel_from: int | None):
        functools.update_wrapper(self, fn)
        self.parallel_from = parallel_from
        self._fn, self._name = fn, name

    @functools.cached_property
    def serial(self) -> Any:
        return self._variant("serial")

    @functools.cached_property
    def parallel(self) -> Any:
        return self._variant("parallel")

    def _variant(self, which: str) -> Any:
        # The name of its machine code. What other processes have compiled lies beside it, and a replay asks by name:
        # kernels of one text (relu, silu) would be told apart by nothing but how many their process compiled before.
        name, text = f"{self._name}-{which}", self._fn
        fn = types.FunctionType(text.__code__, text.__globals__, None, text.__defaults__, text.__closure__)
        fn.__qualname__ = name
        dispatcher = numba.njit(fn, parallel=which == "parallel" and dict(_PRANGE_ALONE), **_OPTIONS)
        dispatcher._cache = _OnDisk(name, Path(__file__).parent, "numba")
        compile = dispatcher._compile_for_args

        def whole(*args: Any, **kwargs: Any) -> Any:
            with deferred(), lean():  # Ctrl-C amid Numba's first compilation leaves a compiler in pieces
                return compile(*args, **kwargs)

        dispatcher._compile_for_args = whole
        return dispatcher

    @functools.cached_property
    def alone(self) -> Kernel:
        """The same without its parallel variant."""
        alone = Kernel(self._fn, self._name, None)
        alone.serial = self.serial
        return alone

    def is_parallel(self, first: Any) -> bool:
        """Which variant is it, for this first argument?"""
        return not (self.parallel_from is None or first.size < self.parallel_from or _forked or _threads == 1)

    def __call__(self, *args: Any) -> Any:
        if not self.is_parallel(args[0]):
            return self.serial(*args)
        with in_turn():
            return self.parallel(*args)

    def only(self, *args: Any) -> None:
        """A launch that is all its caller does with the contents of arrays: made again, it does the same again.

        No number among the arguments comes from an array, and the caller prepares none of the arrays.
        """
        if heard.launches is not None:
            heard.launches.append((self, args))
        self(*args)


Launch = tuple[Kernel, tuple[Any, ...]]  # and its arguments


@functools.cache
def _threading_layer() -> str:
    """The layer that parallel variants run on; asking starts it."""
    from numba.np.ufunc.parallel import _launch_threads

    _launch_threads()
    return str(numba.threading_layer())


def jit(parallel_from: int | None = None, *, formula: Any = None) -> Callable[[Callable[..., Any]], Kernel]:
    """Compile a kernel at its first call with each combination of argument types.

    `parallel_from`: size of the first argument from which the parallel variant is faster (measured); None: serial only.
    `formula`: what the kernel closes over, a function of `scalar.py` or a tile; its name becomes part of the kernel's.
    """

    def decorate(fn: Callable[..., Any]) -> Kernel:
        name = f"{fn.__module__.rpartition('.')[2]}.{fn.__qualname__}".replace("<locals>.", "")
        if formula is not None:
            name += f".{formula.__name__}"
        return Kernel(fn, name, parallel_from)

    return decorate


def helper(fn: Callable[..., Any], *, reassociate: bool = False, inline: bool = False) -> Any:
    """A jitted function for kernels to call; compiled as a part of them. `reassociate`: its sums may be reordered.

    `inline`: loops that call it shall vectorize, which a call prevents; by itself LLVM leaves long functions alone.
    """
    fastmath = {"fastmath": REASSOCIATE} if reassociate else {}
    return numba.njit(fn, **_OPTIONS, **_FOR_KERNELS, **fastmath, forceinline=inline)
