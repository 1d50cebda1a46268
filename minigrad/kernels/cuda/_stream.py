"""The one stream that everything runs on, what is put on it, and who is listening.

A launch through Numba looks at the type of every argument anew and takes it apart: 20–50 µs. Here a kernel's arguments
are packed into memory that the driver has been shown once, and the driver is called directly. In the simulator there is
no stream, and kernels get arrays.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import SIMULATED, cuda, driver

# What a kernel takes for an array: two owners, extent, size of an element, address, extent, stride. All is zero but the
# address: of a one-dimensional contiguous array a kernel needs nothing else to find an element.
_ARRAY = "32xQ16x"
_BYTES = {"f2": "e6x", "f4": "f4x", "f8": "d", "i8": "q", "u4": "I4x", "u8": "Q", "?": "?7x"}
_lock = threading.Lock()  # one launch at a time: a variant has one place for its arguments, the simulator one block


class _Here(threading.local):
    """Per thread: the recording that launches go to instead of the stream; and has it met the device yet?"""

    recording: Any = None
    ready = False


here = _Here()


class Variant:
    """A kernel for the dtypes of its parameters: `pack` arguments, and `run` what was packed."""

    def __init__(self, name: str, compiled: Any, types: Any, parameters: list[tuple[Any, bool]]):
        """`parameters`: dtype, and is it an array?, of each."""
        self.name = name
        self.parameters = parameters
        self._arrays = [array for _, array in parameters]
        self._compiled, self._types = compiled, types
        self._function: Any = None  # asked of the compiler at the first launch
        self._layout = struct.Struct("<" + "".join(_ARRAY if array else _code(dtype) for dtype, array in parameters))
        self._memory = ctypes.create_string_buffer(self._layout.size)
        places = range(ctypes.addressof(self._memory), ctypes.addressof(self._memory) + self._layout.size, 8)
        self._pointers = (ctypes.c_void_p * len(places))(*places)
        self._parameters_at = ctypes.addressof(self._pointers)

    def pack(self, args: tuple[Any, ...]) -> Any:
        """The arguments as the driver takes them; scalars are converted to their dtypes."""
        if SIMULATED:
            pairs = zip(self.parameters, args, strict=True)
            return [x.flat if array else _scalar(self.name, dtype, x) for (dtype, array), x in pairs]
        try:
            return self._layout.pack(*[x.place if array else x for array, x in zip(self._arrays, args, strict=True)])
        except (struct.error, OverflowError):  # a number of another kind, or out of range
            pairs = zip(self.parameters, args, strict=True)
            return self.pack(tuple(x if array else _scalar(self.name, dtype, x) for (dtype, array), x in pairs))

    def prepare(self) -> None:
        """Compile, and load onto the device, what has not been."""
        if self._function is None:
            self._function = function_of(self._compiled.compile(self._types))

    def run(self, grid: Any, block: Any, packed: Any, stream: Any = None) -> None:
        if not SIMULATED and self._function is None:
            self.prepare()  # others launch meanwhile, among them finalizers of this thread's garbage
        with _lock:
            if SIMULATED:
                self._compiled[grid, block](*packed)
                return
            ctypes.memmove(self._memory, packed, len(packed))  # a slice would be set byte by byte
            launch(self._function, grid, block, self._parameters_at, handle() if stream is None else stream)


def _code(dtype: Any) -> str:
    return _BYTES[dtype if isinstance(dtype, str) else "?" if dtype.char == "?" else dtype.str[1:]]


def _scalar(name: str, dtype: Any, value: Any) -> Any:
    if dtype == "u4" and not 0 <= value < 1 << 32:
        raise ValueError(f"kernel {name}: expected fewer than 2**32 elements; got {value}")
    with np.errstate(all="ignore"):
        return np.dtype(dtype).type(value)


# The driver -----------------------------------------------------------------------------------------------------------

_stream: Any = None


def stream() -> Any:
    """Our stream: not the default one, which cannot be captured; it and the default stream wait for each other."""
    global _stream
    if not here.ready:
        cuda.current_context()
        here.ready = True
    if _stream is None:
        with _meeting:
            _stream = _stream or cuda.stream()
    return _stream


_meeting = threading.Lock()


def handle() -> int:
    """The stream's number, for those who speak to the driver; 1, the legacy default stream, in the simulator."""
    return 1 if SIMULATED else int(stream().handle)


if SIMULATED:

    def copy_in(address: int, host: Any) -> None:
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def copy_out(host: Any, address: int) -> None:
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def wait() -> None:
        pass

else:

    def function_of(kernel: Any) -> Any:
        """What the driver launches, of a kernel that Numba has compiled."""
        return driver.CUfunction(int(kernel._codelibrary.get_cufunc().handle))

    def launch(function: Any, grid: Any, block: Any, parameters_at: int, stream: int) -> None:
        x, y, z = (grid, 1, 1) if type(grid) is int else (*grid, 1, 1)[:3]
        i, j, k = (block, 1, 1) if type(block) is int else (*block, 1, 1)[:3]
        _checked(driver.cuLaunchKernel(function, x, y, z, i, j, k, 0, stream, parameters_at, 0))

    def copy_in(address: int, host: Any) -> None:
        """Contiguous host memory to the device; it may be changed as soon as this returns."""
        _checked(driver.cuMemcpyHtoDAsync(address, host.ctypes.data, host.nbytes, handle()))

    def copy_out(host: Any, address: int) -> None:
        """Device memory into contiguous host memory, once all work before is done."""
        _checked(driver.cuMemcpyDtoHAsync(host.ctypes.data, address, host.nbytes, handle()))
        wait()

    def wait() -> None:
        _checked(driver.cuStreamSynchronize(handle()))

    def _checked(made: tuple[Any, ...]) -> None:
        if made[0]:
            raise RuntimeError(f"device 'cuda': the driver says {made[0].name}")
