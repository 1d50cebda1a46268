"""A GPU that is not there: the driver's calls, taken over by an interpreter of the code that kernels are compiled to.

With MINIGRAD_EMULATE=1, `--device cuda` is this one. All of `minigrad.kernels.cuda` runs as it does on a GPU: its sizes
of tiles and blocks, what a launch hands over, addresses, the types that Numba infers, the code that NVVM makes of them.
Not proven so are the driver, the assembler, and the order in which a GPU's threads run. A CUDA graph is a list here.
"""

from __future__ import annotations

import ctypes
import types
from collections import Counter
from typing import Any

import cuda_gate
import numpy as np
import ptx
from numba import cuda
from numba.cuda.cudadrv import devices

import minigrad.kernels.cuda as package
from minigrad.kernels.cuda import _stream, graph, memory
from minigrad.kernels.cuda.launch import KERNELS

_MEMORY = ptx.Memory()
#: Per kernel, how many instructions its warps have done.
ISSUED: Counter[str] = Counter()


class _Device:
    compute_capability = cuda_gate.ARCHITECTURES[0]
    id = 0
    name = b"emulated"


class _Bytes:
    """An array of Numba's, as far as it is looked at."""

    def __init__(self, address: int, size: int, owner: Any = None):
        self.device_ctypes_pointer = ctypes.c_uint64(address)
        self.size, self.owner = size, owner


def _allocated(size: int, dtype: Any) -> _Bytes:
    assert dtype is np.uint8
    return _Bytes(_MEMORY.allocate(size), size)


def _taken(said: Any, owner: Any, sync: bool) -> _Bytes:
    return _Bytes(said["data"][0], said["shape"][0], owner)


class _Driver:
    """The calls that minigrad makes of the package cuda-bindings."""

    def cuLaunchKernel(self, program: ptx.Program, *numbers: Any) -> tuple[int]:
        *shape, shared, _, pointers, extra = numbers
        assert (shared, extra) == (0, 0)
        places = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
        given = [
            np.frombuffer((ctypes.c_char * size).from_address(places[i] or 0), f"u{size}")[0]
            for i, size in enumerate(program.parameters)
        ]
        ISSUED[program.name] += program.launch(tuple(shape[:3]), tuple(shape[3:]), given)
        return (0,)

    def cuMemcpyHtoDAsync(self, address: int, host: int, size: int, stream: int) -> tuple[int]:
        _MEMORY.holds(address, size)
        ctypes.memmove(address, host, size)
        return (0,)

    def cuMemcpyDtoHAsync(self, host: int, address: int, size: int, stream: int) -> tuple[int]:
        _MEMORY.holds(address, size)
        ctypes.memmove(host, address, size)
        return (0,)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)


def _prepare(self: Any) -> None:
    """Of a variant: to PTX, as Numba would on a GPU, and from there to Python."""
    if self._function is None:
        self._function = ptx.Program(cuda_gate.ptx_of(KERNELS[self.name], self._types), _MEMORY)
        self._function.name = self.name


def _built(launches: list[Any]) -> Any:
    """In the place of a CUDA graph."""

    def run() -> None:
        for variant, grid, block, packed in launches:
            variant.run(grid, block, packed)

    return run


def install() -> None:
    device = _Device()
    package.problem = lambda: None
    devices.get_current_device = lambda: device
    cuda.device_array, cuda.from_cuda_array_interface = _allocated, _taken
    cuda.current_context = lambda *_: types.SimpleNamespace(device=device)
    cuda.synchronize = lambda: None
    cuda.stream = cuda.external_stream = lambda *_: types.SimpleNamespace(handle=77)
    cuda.event = lambda **_: types.SimpleNamespace(record=lambda stream: None, wait=lambda stream: None)
    _stream.driver, _stream.handle = _Driver(), lambda: 77
    _stream.Variant.prepare = _prepare
    graph._built = _built
    memory.address_of = lambda flat: int(flat.device_ctypes_pointer.value)
