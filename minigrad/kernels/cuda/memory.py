"""Device memory: blocks by size class, kept when they are given back and handed out again.

cuMemAlloc and cuMemFree synchronize; this does not. All kernels and copies run on one stream, so that whoever gets a
block next runs after whoever had it last, and a block may go back while kernels that use it are still running.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import defaultdict
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import address_of, cuda
from minigrad.kernels.cuda._stream import here

_SMALLEST = 512  # bytes; every block is a multiple of it, and starts at a multiple of 256
_VIEWS = 64  # typed views that a block remembers


class Block:
    """One allocation, and in the simulator its views as flat typed arrays."""

    __slots__ = ("__weakref__", "_views", "address", "bytes", "size")

    def __init__(self, size: int, memory: Any = None):
        """`memory`: a flat device array of bytes that somebody else has allocated."""
        self.size = size
        self.bytes = cuda.device_array(size, np.uint8) if memory is None else memory
        self.address = address_of(self.bytes)
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


Free = defaultdict[int, list[Block]]


class Buffer:
    """A block on loan: it goes back to the pool that it came from when the last array in it is gone."""

    __slots__ = ("__weakref__", "block", "pool")

    def __init__(self, block: Block, pool: Free | None):
        self.block, self.pool = block, pool

    def __del__(self) -> None:
        if self.pool is not None:
            self.pool[self.block.size].append(self.block)


_free: Free = defaultdict(list)
_reserved = 0
_lock = threading.Lock()


def allocate(nbytes: int, shared: bool = False) -> Buffer:
    """At least so many bytes, with whatever values they hold. MemoryError if the device has not got them.

    While a step is recorded they come from its own pool; what outlives the step is `shared`.
    """
    size = size_class(nbytes)
    pool = _free if shared or here.recording is None else here.recording.pool
    try:
        return Buffer(pool[size].pop(), pool)
    except IndexError:
        pass
    try:
        return Buffer(_reserve(size), pool)
    except cuda.cudadrv.driver.CudaAPIError:
        _release()
    try:
        return Buffer(_reserve(size), pool)
    except cuda.cudadrv.driver.CudaAPIError as error:
        raise MemoryError(f"unable to allocate {size:,} bytes: {error}") from None


@functools.lru_cache(maxsize=4096)
def size_class(nbytes: int) -> int:
    """Rounded up to one of eight steps between powers of two: at most an eighth is wasted."""
    step = max(_SMALLEST, 1 << max(0, (nbytes - 1).bit_length() - 4))
    return -(-max(nbytes, 1) // step) * step


def _reserve(size: int) -> Block:
    block = Block(size)
    _count(size)
    weakref.finalize(block, _count, -size).atexit = False
    return block


def _count(size: int) -> None:
    global _reserved
    with _lock:
        _reserved += size


def adopt(pool: Free) -> None:
    """Take the blocks of a pool whose work is behind all that is to come."""
    for size, blocks in list(pool.items()):
        while blocks:
            _free[size].append(blocks.pop())


def memory_reserved() -> int:
    """Bytes held from the device, in use or waiting to be used again."""
    return _reserved


def memory_allocated() -> int:
    """Bytes of the blocks that arrays live in."""
    return _reserved - sum(size * len(blocks) for size, blocks in list(_free.items()))


def empty_cache() -> None:
    """Give the blocks that no array uses back to the device."""
    synchronize()
    _release()


def _release() -> None:
    cuda.synchronize()
    for blocks in list(_free.values()):
        blocks.clear()
    manager = getattr(cuda.current_context(), "memory_manager", None)  # the simulator has none
    if manager is not None:
        manager.deallocations.clear()  # where the compiler lets freed memory wait; its context has another such list


def synchronize() -> None:
    """Wait until all work given to the device is done."""
    if here.recording is not None:
        here.recording.refuse("waits for the device (synchronize, empty_cache)")
    cuda.synchronize()
