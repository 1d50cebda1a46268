"""Device memory: blocks by size class, kept when they are given back and handed out again.

cuMemAlloc and cuMemFree synchronize; this does not. All kernels and copies run on one stream, so that whoever gets a
block next runs after whoever had it last, and a block may go back while kernels that use it are still running.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import cuda

_SMALLEST = 512  # bytes; every block is a multiple of it, and starts at a multiple of 256
_VIEWS = 64  # typed views that a block remembers


class Block:
    """One allocation, and its views as flat typed arrays: made once, as Numba's are slow to make and to look at."""

    __slots__ = ("_views", "bytes", "size")

    def __init__(self, size: int):
        self.size = size
        self.bytes = cuda.device_array(size, np.uint8)
        self._views: dict[tuple[Any, int], Any] = {}

    def flat(self, dtype: Any, offset: int) -> Any:
        """The memory from the element `offset` on, as a contiguous one-dimensional device array."""
        view = self._views.get((dtype, offset))
        if view is None:
            if len(self._views) >= _VIEWS:
                self._views.clear()
            start = offset * dtype.itemsize
            view = self._views[dtype, offset] = self.bytes[start:].view(dtype)
        return view


class Buffer:
    """A block on loan: it goes back to the pool when the last array in it is gone."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: Block):
        self.block = block
        weakref.finalize(self, _free[block.size].append, block).atexit = False


_free: defaultdict[int, list[Block]] = defaultdict(list)
_reserved = 0
_lock = threading.Lock()


def allocate(nbytes: int) -> Buffer:
    """At least so many bytes, with whatever values they hold. MemoryError if the device has not got them."""
    size = size_class(nbytes)
    try:
        return Buffer(_free[size].pop())
    except IndexError:
        pass
    try:
        return Buffer(_reserve(size))
    except cuda.cudadrv.driver.CudaAPIError:
        empty_cache()
    try:
        return Buffer(_reserve(size))
    except cuda.cudadrv.driver.CudaAPIError as error:
        raise MemoryError(
            f"device 'cuda': no {size} bytes left beside the {memory_allocated()} in use ({error}). "
            f"Free tensors, or work on smaller batches."
        ) from None


def size_class(nbytes: int) -> int:
    """Rounded up to one of eight steps between powers of two: at most an eighth is wasted."""
    step = max(_SMALLEST, 1 << max(0, (nbytes - 1).bit_length() - 4))
    return -(-max(nbytes, 1) // step) * step


def _reserve(size: int) -> Block:
    global _reserved
    block = Block(size)
    with _lock:
        _reserved += size
    return block


def memory_reserved() -> int:
    """Bytes held from the device, in use or waiting to be used again."""
    return _reserved


def memory_allocated() -> int:
    """Bytes of the blocks that arrays live in."""
    return _reserved - sum(size * len(blocks) for size, blocks in list(_free.items()))


def empty_cache() -> None:
    """Give the blocks that no array uses back to the device."""
    global _reserved
    synchronize()
    for size, blocks in list(_free.items()):
        while blocks:
            blocks.pop()
            with _lock:
                _reserved -= size
    waiting = getattr(cuda.current_context(), "deallocations", None)  # the simulator keeps no such list
    if waiting is not None:
        waiting.clear()


def synchronize() -> None:
    """Wait until all work given to the device is done."""
    cuda.synchronize()
