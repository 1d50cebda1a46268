"""CUDA kernels on Numba's simulator, in a process of its own: the op table and what else lives on the device.

All of it, which takes minutes: NUMBA_ENABLE_CUDASIM=1 python -m pytest --device cuda
"""

from __future__ import annotations

from importlib.util import find_spec

from cuda_process import passed

from minigrad.ops.conventions import CONVENTIONS

ON_THE_DEVICE = [
    "test_ops.py", "test_device.py", "test_device_products.py", "test_broadcasting.py", "test_special_values.py",
    "test_indexing.py", "test_dtypes.py", "test_autograd.py", "test_tensor.py",
    "test_capture.py", "test_capture_memory.py", "test_capture_refusals.py", "test_cuda_exchange.py",
    "test_device_features.py", "test_cuda_quads.py", "test_cuda_geometry.py", "test_pool.py", "test_nn.py",
    "test_batch_norm.py", "test_losses.py",
]  # fmt: skip
QUICKEST = [  # of training, gradcheck and the examples, whose other tests take up to a minute each
    "test_device_training.py::test_every_convention_trains",
    "test_device_training.py::test_double_backward_and_a_learned_scale",
    "test_device_training.py::test_the_norm_of_a_convolution",
    *(f"test_device_gradcheck.py::test_conventions[{name}-(5, 4)]" for name in CONVENTIONS),
    "test_device_examples.py::test_an_example[exact_gradients]",
]  # fmt: skip


def test_the_device_passes_the_suite_of_the_cpu(device: str) -> None:
    at_least = 3200 if find_spec("torch") else 2900  # a tenth of them asks torch
    assert passed(ON_THE_DEVICE + QUICKEST, device) > at_least
