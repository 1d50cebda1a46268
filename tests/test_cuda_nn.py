"""CUDA kernels of pooling, batch normalization and losses on Numba's simulator, in a process of its own."""

from __future__ import annotations

from cuda_process import passed


def test_the_device_passes_the_tests_of_layers(device: str) -> None:
    assert passed(["test_pool.py", "test_nn.py", "test_losses.py"], device) > 120
