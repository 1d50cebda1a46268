"""Arrays of other GPU libraries as tensors."""

from __future__ import annotations

from typing import Any

from minigrad._tensor import Tensor
from minigrad.device import cuda, kernels


def from_array(x: Any) -> Tensor:
    """A tensor on 'cuda' in the memory of a CuPy, torch or Numba array, by its `__cuda_array_interface__`.

    Our kernels wait for the stream that the interface names. The other way round, such a library takes a tensor as it
    is (`cupy.asarray(x)`), and waits for ours; `mg.from_dlpack` and `torch.from_dlpack(x)` do the same by DLPack.

    TypeError: no such interface, or a dtype that is none of the five. ValueError: read-only or masked memory.

    >>> import minigrad as mg
    >>> if mg.cuda.is_available():
    ...     x = mg.zeros(3, device="cuda")
    ...     _ = mg.cuda.from_array(x).copy_(mg.ones(3, device="cuda"))
    ...     assert x.tolist() == [1, 1, 1]
    """
    if not hasattr(x, "__cuda_array_interface__"):
        raise TypeError(f"mg.cuda.from_array: {type(x).__name__} has no __cuda_array_interface__. Use mg.tensor().")
    return Tensor(kernels("cuda").from_interface(x), "cuda")


cuda.from_array = staticmethod(from_array)
