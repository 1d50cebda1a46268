"""Large blocks of memory are kept when they are freed, and used again, instead of going back to the system.

The system clears every page that it hands out: four sums of a megabyte, each into fresh memory, took 1.5 ms, and 0.1 ms
into memory that had been used before. What is held is at most what was once in use.
"""

from __future__ import annotations

import ctypes
import functools
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST_BLOCK, _LARGEST_REST = 1 << 25, 1 << 30  # bytes; the first is the most that glibc takes


@functools.cache
def reuse() -> str:
    """Ask the C library for it, once; what came of that. Its own variables of the environment have precedence."""
    chosen = [name for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_") if name in os.environ]
    if chosen:
        return f"as {' and '.join(chosen)} in the environment say"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return "this system's own ways: its C library has no mallopt"
    if mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, _LARGEST_REST):
        return f"freed blocks up to {_LARGEST_BLOCK >> 20} MiB are kept and reused, {_LARGEST_REST >> 30} GiB at most"
    return "the C library's own ways: it refused mallopt"
