"""The devices, and the one function that chooses the kernels of an op."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, ClassVar

import minigrad.kernels.cpu as _cpu
from minigrad.kernels.cpu.graph import here as _here

DEVICES = ("cpu", "cuda")


def check(device: Any, who: str) -> str:
    """The device's name, or an error that says what there is."""
    name = str(device)
    if name not in DEVICES:
        raise ValueError(f"{who}: expected a device out of 'cpu', 'cuda'; got {device!r}")
    if name == "cuda":
        kernels(name)
    return name


def of_dlpack(code: int) -> str:
    """The device that DLPack calls so: plain, pinned or managed memory."""
    names = {1: "cpu", 3: "cpu", 2: "cuda", 13: "cuda"}
    if code not in names:
        raise ValueError(f"from_dlpack: expected memory of a CPU or of CUDA; got DLPack's device type {code}")
    return check(names[code], "from_dlpack")


def kernels(device: str) -> Any:
    """The kernel package of a device; the only place where one is chosen."""
    if device == "cpu":
        return _cpu if _here.recording is None else _here.recording.kernels
    return _cuda or _load_cuda()


def out_of_memory(who: str, device: str, error: MemoryError) -> MemoryError:
    """The error of an allocation, which names its size, with who asked for it and what is in use already."""
    used = kernels(device).memory_allocated()
    return MemoryError(
        f"{who}: {error} (device '{device}'; {used:,} bytes are in use). Free tensors, or work on smaller batches."
    )


_cuda: ModuleType | None = None  # the GPU's kernels, once they were asked for and found to be usable
_lost = False  # is this a child, forked by a process that was using the GPU?


def _load_cuda() -> ModuleType:
    global _cuda
    if _lost:
        raise RuntimeError(
            "device 'cuda': a forked process cannot use the GPU through what its parent has set up. Start it by "
            "multiprocessing's method 'spawn', or fork before CUDA is first used."
        )
    try:
        from minigrad.kernels import cuda as found
    except ImportError as error:
        raise RuntimeError(f"device 'cuda': {error}") from None
    if problem := found.problem():
        raise RuntimeError(f"device 'cuda': {problem}")
    _cuda = found
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_lose_cuda)
    return found


def _lose_cuda() -> None:
    global _cuda, _lost
    _cuda, _lost = None, True


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
    """The CUDA half of the devices: `mg.cuda`. Nothing is imported or compiled for it before it is asked for.

    Where a GPU cannot be used, RuntimeError says which piece is missing (numba-cuda, the driver, the GPU) and the
    command that mends it.

    >>> import minigrad as mg
    >>> if mg.cuda.is_available():
    ...     x = mg.zeros(2, device="cuda")
    """

    graph: ClassVar[Any]  # set by the layers that they belong to
    from_array: ClassVar[Any]

    @staticmethod
    def is_available() -> bool:
        """Can tensors be put on a GPU here?

        >>> import minigrad as mg
        >>> mg.cuda.is_available() in (True, False)
        True
        """
        try:
            kernels("cuda")
        except RuntimeError:
            return False
        return True

    @staticmethod
    def synchronize() -> None:
        """Wait until all kernels and copies that were launched are done."""
        kernels("cuda").synchronize()

    @staticmethod
    def memory_allocated() -> int:
        """Bytes of device memory that tensors live in."""
        return kernels("cuda").memory_allocated()

    @staticmethod
    def memory_reserved() -> int:
        """Bytes held from the device: those of tensors, and those kept to be used again."""
        return kernels("cuda").memory_reserved()

    @staticmethod
    def empty_cache() -> None:
        """Give the memory that no tensor lives in back to the device."""
        kernels("cuda").empty_cache()
