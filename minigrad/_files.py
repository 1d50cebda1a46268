"""Files that appear as a whole or not at all, and safetensors that are believed only once they have been checked."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from minigrad._interrupt import deferred

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]

_TEMPORARY = ".minigrad-{}.tmp"


class Entry(NamedTuple):
    """What the header of a file says of a tensor; a dtype that minigrad has not keeps the format's own name."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape}, {self.dtype}"


DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "BOOL": "bool"}


def write(path: PathLike, data: bytes) -> None:
    """Replace a file, or make it: by the whole new one or not at all, and on the disk when this returns.

    Ctrl-C waits for it. A process that is killed leaves a hidden file, which the next write into the folder removes.
    """
    target = Path(os.path.realpath(path))  # of a link, what it leads to
    temporary = target.with_name(_TEMPORARY.format(secrets.token_hex(8)))  # replacing is atomic in one folder only
    with deferred(), _writing_in(target.parent):
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    """Hold a folder while a file appears in it, clean it first if nobody else does, and put its names on the disk.

    Who writes holds a shared lock, so that what lies there under an exclusive one was left by the dead.
    """
    if sys.platform == "win32":  # which opens no folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # others are writing, or a file system without locks: leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in folder.glob(_TEMPORARY.format("*")):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(
    who: str, path: PathLike, check: Callable[[dict[str, Entry], dict[str, str]], T]
) -> tuple[dict[str, Array], T]:
    """The arrays of a safetensors file, and what `check(entries, metadata)` returns; it runs before any data are read.

    ValueError: no such format, or a file that is truncated or contradicts itself. OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise OSError(f"{who}: {os.fspath(path)}: expected a regular file")
    open(path, "rb").close()  # an OSError of Python's own, which names the file
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in sorted(file.keys())}
            entries = {
                key: Entry(tuple(x.get_shape()), DTYPES.get(x.get_dtype(), x.get_dtype())) for key, x in slices.items()
            }
            checked = check(entries, file.metadata() or {})
            return {key: _array(file, key) for key in entries}, checked
    except SafetensorError as error:
        raise ValueError(
            f"{who}: {os.fspath(path)}: expected a complete safetensors file: {error}. "
            f"Other formats, pickles (.pt) among them, are not read: write it with safetensors, or for np.load()"
        ) from None


def _array(file: Any, key: str) -> Array:
    try:
        array: Array = file.get_tensor(key)
    except ValueError as error:  # a shape that is none for NumPy
        raise SafetensorError(f"{key!r}: {error}") from None
    if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
        raise SafetensorError(f"{key!r}: expected the bytes 0 and 1 for bool")
    return array
