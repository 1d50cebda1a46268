"""The devices, and the one function that chooses the kernels of an op."""

from __future__ import annotations

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


class cuda:
    """The CUDA half of the devices: `mg.cuda`."""

    @staticmethod
    def is_available() -> bool:
        """Can tensors be put on a GPU here?

        >>> import minigrad as mg
        >>> mg.cuda.is_available()
        False
        """
        return False
