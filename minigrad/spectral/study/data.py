"""The data of a study: scikit-learn's 1,797 handwritten digits, or the user's own `.npz`."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigrad._errors import UsageError
from minigrad.spectral.study._extras import require

#: Fewer examples than this cannot be split into something to learn from and something to test on.
SMALLEST = 20


@dataclass(frozen=True)
class Dataset:
    """Standardized float32 examples and labels 0 … classes − 1, a quarter of them kept for testing."""

    name: str
    classes: int
    train_x: Any
    train_y: Any
    test_x: Any
    test_y: Any


def load(path: str | None, seed: int) -> Dataset:
    """The digits, or the arrays `x` and `y` of an `.npz`, shuffled by the seed and split 3 : 1."""
    if path is None:
        digits = require("sklearn.datasets").load_digits()
        return split("scikit-learn digits", digits.images, digits.target, seed)
    return split(Path(path).name, *read(path), seed)


def read(path: str) -> tuple[Any, Any]:
    """`x` and `y` of an `.npz`; UsageError if it cannot be read or lacks them."""
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError
            if missing := [key for key in ("x", "y") if key not in archive]:
                raise UsageError(
                    f"data: expected arrays 'x' and 'y' in {path}; {missing[0]!r} is missing, there is "
                    f"{', '.join(map(repr, archive.files)) or 'nothing'}. Save it with np.savez(path, x=…, y=…)."
                )
            return archive["x"], archive["y"]
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it holds something else"  # NumPy's texts speak of pickles
        raise UsageError(
            f"data: expected an .npz of plain arrays; cannot read {path}: {reason}. "
            f"Save it with np.savez(path, x=…, y=…)."
        ) from None


def split(name: str, x: Any, y: Any, seed: int) -> Dataset:
    """Check, shuffle, split and standardize; UsageError names what is wrong with the arrays."""
    _check(name, x, y)
    labels, y = np.unique(y, return_inverse=True)
    if len(labels) < 2:
        raise UsageError(f"data: expected at least two classes in y of {name}; got {len(labels)}")
    order = np.random.default_rng(seed).permutation(len(x))
    cut = len(x) - len(x) // 4
    value, x, y = x.flat[0], x[order].astype(np.float64), y[order].astype(np.int64)
    with np.errstate(over="ignore"):  # in examples that are kept for testing
        x = np.ldexp(x, -np.frexp(np.abs(x[:cut]).max())[1])  # a power of two, exactly: no square overflows or vanishes
        mean, scale = x[:cut].mean(0), x[:cut].std()
        if scale == 0:
            raise UsageError(f"data: expected examples that differ; every entry of x in {name} is {value:g}")
        x = ((x - mean) / scale).astype(np.float32)
    if not np.isfinite(x).all():
        raise UsageError(f"data: an entry of x in {name} lies farther from the others than float32 can tell")
    return Dataset(name, len(labels), x[:cut], y[:cut], x[cut:], y[cut:])


def _check(name: str, x: Any, y: Any) -> None:
    if x.ndim < 2 or y.shape != x.shape[:1]:
        raise UsageError(
            f"data: expected x of shape (examples, …) and y of shape (examples,) in {name}; "
            f"got {x.shape} and {y.shape}"
        )
    if len(x) < SMALLEST or x.size == 0:
        raise UsageError(f"data: expected at least {SMALLEST} examples in {name}; got x of shape {x.shape}")
    if x.dtype.kind not in "fiub":
        raise UsageError(f"data: expected numbers in x of {name}; got dtype {x.dtype}")
    if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and np.array_equal(y, np.rint(y))):
        raise UsageError(f"data: expected whole numbers (class labels) in y of {name}; got dtype {y.dtype}")
    if bad := int(np.size(x) - np.isfinite(x).sum()):
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise UsageError(
            f"data: expected finite numbers in x of {name}; got {bad} that are NaN or infinite, the first at {first}. "
            f"Drop those examples or fill them in."
        )
