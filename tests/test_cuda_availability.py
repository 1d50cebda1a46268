"""Where CUDA cannot be used: nothing is touched before it is asked for, and the error names what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import minigrad as mg
from minigrad import device as devices


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module that knows the compiler, to take a piece away from."""
    from minigrad.kernels.cuda import _numba

    monkeypatch.setattr(devices, "_cuda", None)
    monkeypatch.setattr(_numba, "SIMULATED", False)
    monkeypatch.setattr(_numba.cuda, "implementation", "NVIDIA", raising=False)
    monkeypatch.setattr(_numba.cuda, "gpus", [object()])
    monkeypatch.setattr(_numba, "driver", object())
    monkeypatch.setattr(_numba, "problem", _numba.problem)
    return _numba


class Broken:
    def __init__(self, message: str):
        self.message = message

    def __len__(self) -> int:
        raise ImportError(self.message)


def error() -> str:
    assert not mg.cuda.is_available()
    with pytest.raises(RuntimeError) as caught:
        mg.zeros(2, device="cuda")
    for call in (mg.cuda.synchronize, mg.cuda.memory_allocated, mg.cuda.memory_reserved, mg.cuda.empty_cache):
        with pytest.raises(RuntimeError, match="device 'cuda'"):
            call()
    return str(caught.value)


def test_with_all_pieces_it_is_there(parts: Any) -> None:
    assert mg.cuda.is_available()


def test_without_numba_cuda(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.cuda, "implementation", "Built-in")
    assert "numba-cuda is not installed" in error()
    assert 'pip install "numba-cuda[cu13]==0.30.*"' in error()


def test_without_cuda_bindings(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "driver", None)
    assert "cuda-bindings, which belongs to numba-cuda, is not installed" in error() and "pip install" in error()


def test_without_a_driver(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.cuda, "gpus", Broken("\nCUDA driver library cannot be found.\n:"))
    assert "the driver cannot be used. CUDA driver library cannot be found. See nvidia-smi" in error()
    assert "apt-get install" in error()


@pytest.mark.parametrize("gpus", [[], Broken("Error at driver init: CUDA_ERROR_NO_DEVICE (100)")])
def test_without_a_gpu(parts: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.cuda, "gpus", gpus)
    assert "finds no GPU" in error() and "nvidia-smi -L" in error()


def test_importing_minigrad_leaves_cuda_alone() -> None:
    code = "import sys, minigrad; print([m for m in sys.modules if 'cuda' in m and 'redirector' not in m])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert made.stdout.strip() == "[]"
