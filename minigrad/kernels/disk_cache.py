"""Compiled kernels on disk, for both devices: one file per kernel and argument types.

Numba's own disk cache is not used. It misses kernels that close over another jitted function (a lifted formula), and
it does not see an edit in a callee of another file, so that it would serve a stale kernel. The cache here names a
compiled kernel by everything that went into it: its own name and formula, the text of *all* kernel sources, the
versions of Python and of the compiler, the processor, and the argument types. Edit any kernel and none of the old ones
is found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import re
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import _Cache


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


def can_be_written(folder: Path) -> bool:
    """Are kernels kept there? It is made with the first of them."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)


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
def _sources(device: Path) -> str:
    """A hash of the text of every kernel module of a device: what a compiled kernel may depend on."""
    digest = hashlib.sha256()
    for path in sorted([*device.parent.glob("*.py"), *device.glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _announce() -> None:
    """Say, once, what a first run waits for. The logger "minigrad" is told: whoever minds can silence it."""
    try:
        folder = cache_directory()
        kept = f"the next run finds them in {folder}" if can_be_written(folder) else f"{folder} cannot be written"
    except OSError:
        kept = "there is no folder to keep them in"
    logging.getLogger("minigrad").warning("minigrad: kernels are being compiled for this machine; %s", kept)


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


class DiskCache(_Cache):  # type: ignore[misc]
    """What a Numba dispatcher asks of a cache. A device's own says what is kept of a kernel, and makes it one again."""

    def __init__(self, name: str, device: Path, compiler: str):
        """`name`: the kernel's; `device`: the folder with its sources; `compiler`: name and version."""
        self._name, self._device, self._compiler = name, device, compiler

    def reduced(self, compiled: Any) -> bytes | None:
        """What is written of a compiled kernel; None: it cannot be kept."""
        raise NotImplementedError

    def rebuilt(self, target_context: Any, reduced: bytes) -> Any:
        """The kernel of which that was written."""
        raise NotImplementedError

    cache_path = property(lambda self: str(cache_directory()))

    def _file(self, signature: Any, codegen: Any) -> Path:
        versions = self._compiler, numba.__version__, platform.python_version()
        made_of = repr((self._name, _sources(self._device), versions, codegen.magic_tuple(), signature))
        readable = re.sub(r"[^\w.-]", "_", self._name)  # Windows allows no question mark
        return cache_directory() / f"{readable}-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.kernel"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        target_context.refresh()
        try:
            path = self._file(signature, target_context.codegen())
            content = path.read_bytes()
            if _seal(path, content[32:]) == content[:32]:
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _DAY:
                        os.utime(path)  # the time of the last use, to the day
                return self.rebuilt(target_context, content[32:])
        except Exception:  # absent, unreadable or damaged: each is cured by compiling again
            pass
        _announce()
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        payload = self.reduced(compiled)
        if payload is None:
            return
        with contextlib.suppress(OSError):  # a full or read-only disk costs a compilation next time, nothing else
            path = self._file(signature, compiled.codegen)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _prune(path.parent)
            scratch = path.with_suffix(f".kernel-{os.getpid()}-{threading.get_ident()}")
            try:
                scratch.write_bytes(_seal(path, payload) + payload)
                os.replace(scratch, path)  # so that a reader sees a whole file or none
            finally:
                scratch.unlink(missing_ok=True)

    def enable(self) -> None: ...
    def disable(self) -> None: ...
    def flush(self) -> None: ...
