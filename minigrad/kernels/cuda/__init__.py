"""The GPU's kernels under one roof: what `minigrad.device.kernels("cuda")` hands to an op."""

from minigrad.kernels.cuda._numba import problem as problem
from minigrad.kernels.cuda.array import *
from minigrad.kernels.cuda.batch_norm import *
from minigrad.kernels.cuda.conv import *
from minigrad.kernels.cuda.elementwise import *
from minigrad.kernels.cuda.exchange import (
    dlpack as dlpack,
    dlpack_device as dlpack_device,
    from_dlpack as from_dlpack,
    from_interface as from_interface,
    interface as interface,
)
from minigrad.kernels.cuda.graph import new_recording as new_recording, recorded_update as recorded_update
from minigrad.kernels.cuda.index import *
from minigrad.kernels.cuda.matmul import *
from minigrad.kernels.cuda.memory import (
    empty_cache as empty_cache,
    memory_allocated as memory_allocated,
    memory_reserved as memory_reserved,
    synchronize as synchronize,
)
from minigrad.kernels.cuda.optim import *
from minigrad.kernels.cuda.part import assign as assign
from minigrad.kernels.cuda.pool import *
from minigrad.kernels.cuda.random import *
from minigrad.kernels.cuda.reduce import *
from minigrad.kernels.cuda.shape import *
from minigrad.kernels.cuda.softmax import *
from minigrad.kernels.cuda.spectral import *
from minigrad.kernels.cuda.spectrum import *


class MissingKernel(NotImplementedError, AttributeError):
    """An op was given CUDA tensors, and has kernels for the CPU only."""


def __getattr__(name: str) -> object:
    if name.startswith("_"):
        raise AttributeError(name)
    raise MissingKernel(f"no CUDA kernel {name!r} yet: the op that needs it runs on device 'cpu' only. Use to('cpu').")
