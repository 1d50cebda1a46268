"""The devices, and the one function that chooses the kernels of an op."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import minigrad.kernels.cpu as _cpu

DEVICES = ("cpu", "cuda")


def check(device: Any, who: str) -> str:
    """The device's name, or an error that says what there is."""
    name = str(device)
    if name not in DEVICES:
        raise ValueError(f"{who}: expected a device out of 'cpu', 'cuda'; got {device!r}")
    if name == "cuda":
        kernels(name)
    return name


def kernels(device: str) -> ModuleType:
    """The kernel package of a device; the only place where one is chosen."""
    if device == "cpu":
        return _cpu
    raise RuntimeError(
        "device 'cuda': this version of minigrad has no CUDA kernels. Use device='cpu', or upgrade minigrad."
    )


def set_num_threads(n: int) -> None:
    """Let compiled kernels and BLAS use up to n CPU threads.

    ValueError unless 1 ≤ n ≤ the number of cores. RuntimeError if threadpoolctl, which tells BLAS, is not installed.

    >>> import minigrad as mg, os
    >>> mg.set_num_threads(os.cpu_count())
    """
    most = os.cpu_count() or 1
    if not 1 <= n <= most:
        raise ValueError(f"set_num_threads: expected a number in [1, {most}]; got {n}")
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise RuntimeError(
            "set_num_threads: the threads of BLAS are set through threadpoolctl, which is not installed: "
            "pip install threadpoolctl. (Or set OPENBLAS_NUM_THREADS and NUMBA_NUM_THREADS before Python starts.)"
        ) from None
    threadpool_limits(n, user_api="blas")
    _cpu.set_num_threads(n)


class cuda:
    """The CUDA half of the devices: `mg.cuda`. This version has no CUDA kernels, and says so when asked for one.

    >>> import minigrad as mg
    >>> mg.zeros(2, device="cuda")
    Traceback (most recent call last):
    ...
    RuntimeError: device 'cuda': this version of minigrad has no CUDA kernels. Use device='cpu', or upgrade minigrad.
    """

    @staticmethod
    def is_available() -> bool:
        """Can tensors be put on a GPU here?

        >>> import minigrad as mg
        >>> mg.cuda.is_available()
        False
        """
        return False
