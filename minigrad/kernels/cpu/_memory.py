"""Large blocks of memory are kept when they are freed, and used again, instead of going back to the system.

The system clears every page that it hands out: four sums of a megabyte, each into fresh memory, took 1.5 ms, and 0.1 ms
into memory that had been used before. So all blocks are cut from the heap, also those above 32 MiB, which the C library
would map each for itself. What lies free in the heap is kept for later; at its end, a gigabyte of that.
"""

from __future__ import annotations

import ctypes
import functools
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # <malloc.h>
_LARGEST_REST = 1 << 30  # bytes
_ITS_OWN = "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"


@functools.cache
def reuse() -> str:
    """Ask the C library for it, once; what came of that. It is asked on behalf of the whole process.

    Its own variables of the environment have precedence; MINIGRAD_REUSE_MEMORY=0 leaves it alone.
    """
    if os.environ.get("MINIGRAD_REUSE_MEMORY") == "0":
        return "the C library's own ways: MINIGRAD_REUSE_MEMORY=0"
    chosen = [name for name in _ITS_OWN if name in os.environ]
    if chosen:
        return f"as {' and '.join(chosen)} in the environment say"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return "this system's own ways: its C library has no mallopt"
    if mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _LARGEST_REST):
        return f"freed blocks are kept and reused; at the heap's end, {_LARGEST_REST >> 30} GiB of them (mallopt)"
    return "the C library's own ways: it refused mallopt"
