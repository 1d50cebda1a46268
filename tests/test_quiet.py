"""NumPy's warnings: none for NaN and infinity in tensors, and its settings stay the user's, in every thread."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels.cpu import elementwise

LOUD: dict[str, Callable[[], mg.Tensor]] = {
    "0/0": lambda: mg.zeros(2) / mg.zeros(2),
    "1/0": lambda: 1 / mg.zeros(2),
    "overflow": lambda: mg.full((2,), 3e38) * 10.0,
    "float16 and a number": lambda: mg.full((2,), 6e4, dtype=mg.float16) * 1e300,
    "log of -1": lambda: mg.log(mg.full((2,), -1.0)),
    "a number out of range": lambda: _written(1e300),
    "cast": lambda: mg.full((2,), 1e300, dtype=mg.float64).to(mg.float32),
    "product": lambda: mg.full((2, 2), 3e38) @ mg.full((2, 2), 3e38),
    "product and bias": lambda: mg.linear(mg.full((2, 2), 3e38), mg.full((2, 2), 1.0), mg.full((2,), 3e38)),
    "clip": lambda: mg.clip(mg.full((2,), 1.0, dtype=mg.float16), 0.0, 1e300),
    "where": lambda: mg.where(mg.ones(2) > 2, mg.full((2,), 1.0, dtype=mg.float16), 1e300),
}


def _written(value: float) -> mg.Tensor:
    x = mg.zeros(2)
    x[0] = value
    return x[:1]


@pytest.mark.parametrize("name", LOUD)
def test_no_warning_and_no_error_whatever_the_settings(name: str) -> None:
    """What NumPy would raise here, it would show as a warning elsewhere."""
    with np.errstate(all="raise"):
        before = np.geterr()
        assert not np.isfinite(LOUD[name]().numpy()).any() or name == "clip"
        assert np.geterr() == before


def test_every_thread_is_quiet() -> None:
    """Also at the same time: for large arrays NumPy lets go of Python's lock."""
    failed: list[BaseException] = []
    large = mg.zeros(100_000)

    def work() -> None:
        try:
            with np.errstate(all="raise"):
                for make in LOUD.values():
                    make()
                for _ in range(100):
                    large / large
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_nothing_written_in_python_runs_there() -> None:
    """In the middle of it a handler of a signal, or another op, would find the context entered already."""
    written = [f for f in vars(elementwise).values() if inspect.isfunction(f)]
    ufuncs = [f for g in written if (f := inspect.getclosurevars(g).nonlocals.get("ufunc")) is not None]
    assert len(ufuncs) > 30
    assert all(isinstance(f, np.ufunc) for f in ufuncs)
