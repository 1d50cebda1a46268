"""CUDA kernels on Numba's simulator, in a process of its own: the op table and what else lives on the device.

All of it, which takes minutes: NUMBA_ENABLE_CUDASIM=1 python -m pytest --device cuda
"""

from __future__ import annotations

from cuda_process import passed

ON_THE_DEVICE = [
    "test_ops.py", "test_device.py", "test_device_products.py", "test_broadcasting.py", "test_special_values.py",
    "test_indexing.py", "test_dtypes.py", "test_autograd.py", "test_tensor.py", "test_device_training.py",
    "test_capture.py", "test_capture_refusals.py", "test_cuda_exchange.py", "test_device_features.py",
]  # fmt: skip


def test_the_device_passes_the_suite_of_the_cpu(device: str) -> None:
    assert passed(ON_THE_DEVICE, device) > 1000
