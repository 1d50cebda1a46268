"""The one decorator that compiles CPU kernels: lazily, serial or parallel, cached on disk.

Numba's own disk cache is not used. It misses kernels that close over another jitted function (a lifted formula), and
it does not see an edit in a callee of another file, so that it would serve a stale kernel. The cache here names a
compiled kernel by everything that went into it: its own name and formula, the text of *all* kernel sources, the
versions of Python and Numba, the processor, and the argument types. Edit any kernel and none of the old ones is found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# How long GNU OpenMP's threads look for more work before they sleep: a millisecond or so, the Python code between two
# kernels. To wake them takes longer than many a kernel; to look for longer would keep the cores from others.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from minigrad._interrupt import deferred

#: Freedom to reorder sums (so that they vectorize) that still lets NaN and infinity through: never 'nnan', 'ninf'.
REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def cache_directory() -> Path:
    """Where compiled kernels live: `$MINIGRAD_CACHE_DIR`, else the user's cache folder, else a temporary one."""
    if chosen := os.environ.get("MINIGRAD_CACHE_DIR"):
        return Path(chosen)
    with contextlib.suppress(OSError, RuntimeError):  # a home that cannot be written, a user without one
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigrad"
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return _temporary_directory()


@functools.cache
def _temporary_directory() -> Path:
    """A folder of this user's in the shared temporary one; a fresh one if somebody else holds its name."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"minigrad-{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid == user and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="minigrad-"))  # cached kernels are machine code: nobody else may write them


@functools.cache
def _sources() -> str:
    """A hash of the text of every kernel module of this device: what a compiled kernel may depend on."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.parent.glob("*.py"), *here.glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


_DAY = 24 * 60 * 60


def _seal(path: Path, payload: bytes) -> bytes:
    """What stands before a kernel: machine code with a flipped bit, or under another kernel's name, may do anything."""
    return hashlib.sha256(path.name.encode() + payload).digest()


def _prune(folder: Path) -> None:
    """Remove what nobody has loaded for a month: kernels of old sources, the scratch of a process that was killed."""
    for path in folder.glob("*.kernel*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 30 * _DAY:
                path.unlink()


class _DiskCache(_Cache):  # type: ignore[misc]
    """What a Numba dispatcher asks of a cache, over one file per kernel and signature."""

    def __init__(self, name: str):
        self._name = name

    cache_path = property(lambda self: str(cache_directory()))

    def _file(self, signature: Any, codegen: Any) -> Path:
        versions = numba.__version__, platform.python_version()
        made_of = repr((self._name, _sources(), versions, codegen.magic_tuple(), signature))
        return cache_directory() / f"{self._name}-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.kernel"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        target_context.refresh()
        try:
            path = self._file(signature, target_context.codegen())
            content = path.read_bytes()
            if _seal(path, content[32:]) != content[:32]:
                return None
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _DAY:
                    os.utime(path)  # the time of the last use, to the day
            return CompileResult._rebuild(target_context, *pickle.loads(content[32:]))
        except Exception:  # absent, unreadable or damaged: each is cured by compiling again
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        if compiled.library.has_dynamic_globals:
            return
        with contextlib.suppress(OSError):  # a full or read-only disk costs a compilation next time, nothing else
            path = self._file(signature, compiled.codegen)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _prune(path.parent)
            payload = dumps(compiled._reduce())
            scratch = path.with_suffix(f".kernel-{os.getpid()}-{threading.get_ident()}")
            try:
                scratch.write_bytes(_seal(path, payload) + payload)
                os.replace(scratch, path)  # so that a reader sees a whole file or none
            finally:
                scratch.unlink(missing_ok=True)

    def enable(self) -> None: ...
    def disable(self) -> None: ...
    def flush(self) -> None: ...


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
        dispatcher = numba.njit(self._fn, parallel=which == "parallel" and dict(_PRANGE_ALONE), **_OPTIONS)
        dispatcher._cache = _DiskCache(f"{self._name}-{which}")
        compile = dispatcher._compile_for_args

        def whole(*args: Any, **kwargs: Any) -> Any:
            with deferred():  # Ctrl-C in the middle of Numba's first compilation leaves a compiler in pieces
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
    `formula`: the function of `scalar.py` that the kernel closes over; it becomes part of the kernel's name.
    """

    def decorate(fn: Callable[..., Any]) -> Kernel:
        name = f"{fn.__module__.rpartition('.')[2]}.{fn.__qualname__}".replace("<locals>.", "")
        if formula is not None:
            name += f".{formula.__name__}"
        return Kernel(fn, name, parallel_from)

    return decorate


def helper(fn: Callable[..., Any], *, reassociate: bool = False) -> Any:
    """A jitted function for kernels to call; compiled as a part of them. `reassociate`: its sums may be reordered."""
    return numba.njit(fn, **_OPTIONS, **({"fastmath": REASSOCIATE} if reassociate else {}))
