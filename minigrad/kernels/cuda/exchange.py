"""Memory shared with other libraries, without a copy: DLPack, and the CUDA array interface.

Either says where the memory is and whose stream its values come from. Ours go out on our stream, which the taker is
made to wait for; what comes in is waited for by our stream. A tensor that was given away lives as long as its taker.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from minigrad.kernels.cuda import memory
from minigrad.kernels.cuda._numba import SIMULATED, cuda
from minigrad.kernels.cuda._stream import handle, here, stream
from minigrad.kernels.cuda.array import Array, row_major
from minigrad.kernels.recording import GIVES, TAKES

_CUDA, _MANAGED = 2, 13  # DLPack's devices
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's kinds of dtypes, by NumPy's
_ACCEPTED = ("float16", "float32", "float64", "int64", "bool")


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


def _python(name: str, *types: Any) -> Any:
    """A function of Python's C API: its result's type, and its arguments'."""
    return ctypes.PYFUNCTYPE(*types)((name, ctypes.pythonapi))


_new = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_is_called = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_NEW, _USED = b"dltensor", b"used_dltensor"  # a capsule keeps its name's address: these must not go

_given: dict[int, Any] = {}  # what others hold of ours, by the address of its DLManagedTensor
_given_back = _Deleter(lambda address, given=_given: given.pop(address, None))
for lasting in (_given, _given_back):  # when Python exits, a taker may outlive this module
    _python("Py_IncRef", None, ctypes.py_object)(lasting)


def _references(entry: Any) -> int:
    return sys.getrefcount(entry[0])


_ALONE = _references((object(),))


def _forget_untaken() -> None:
    """Capsules that nobody has but us. (A destructor in Python would swallow the error that a capsule dies of.)"""
    for address, entry in list(_given.items()):
        if _references(entry) == _ALONE and _is_called(entry[0], _NEW):
            _given.pop(address, None)


def dlpack_device(x: Array) -> tuple[int, int]:
    return _CUDA, _device_number()


def _device_number() -> int:
    return 0 if SIMULATED else int(cuda.current_context().device.id)


def dlpack(x: Array, **options: Any) -> Any:
    """A capsule over the array's memory."""
    return _capsule(x, **options)


def _capsule(
    x: Array, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
) -> Any:
    """`stream`, the taker's, waits for ours: −1 for no waiting, None for stream 1, the legacy default one."""
    _not_in_a_step(GIVES)
    if dl_device not in (None, dlpack_device(x)):
        raise BufferError(f"__dlpack__: the tensor is on device {dlpack_device(x)}, not {dl_device}. Say x.to('cpu').")
    if copy:
        raise BufferError("__dlpack__: the memory is shared; for a copy say x.clone()")
    if stream != -1:
        _wait_for(handle(), 1 if stream is None else stream)
    shape, strides = (ctypes.c_int64 * x.ndim)(*x.shape), (ctypes.c_int64 * x.ndim)(*x.strides)
    first = x.buffer.block.address + x.offset * x.dtype.itemsize
    bits = 8 * x.dtype.itemsize
    tensor = _Tensor(first, *dlpack_device(x), x.ndim, _CODES[x.dtype.kind], bits, 1, shape, strides, 0)
    managed = _Managed(tensor, None, _given_back)
    capsule = _new(ctypes.addressof(managed), _NEW, None)
    _forget_untaken()
    _given[ctypes.addressof(managed)] = capsule, managed, x, shape, strides
    return capsule


class _Taken:
    """Keeps a DLManagedTensor alive."""

    def __init__(self, managed: Any):
        self.managed = managed

    def __del__(self) -> None:
        if self.managed.deleter:
            self.managed.deleter(ctypes.byref(self.managed))


def from_dlpack(x: Any) -> Array:
    """Another library's CUDA array, over its memory."""
    _not_in_a_step(TAKES)
    capsule = x.__dlpack__(stream=handle())
    managed = _Managed.from_address(_pointer(capsule, _NEW))
    taken = _Taken(managed)
    _rename(capsule, _USED)
    t = managed.tensor
    if t.device not in (_CUDA, _MANAGED) or (t.device == _CUDA and t.device_id != _device_number()):
        raise ValueError(f"from_dlpack: expected memory of the current CUDA device; got device {t.device, t.device_id}")
    kinds = {code: kind for kind, code in _CODES.items()}
    dtype = f"{kinds.get(t.code, '?')}{t.bits // 8}" if t.code != _CODES["b"] else "?"
    shape = tuple(t.shape[: t.ndim])
    strides = tuple(t.strides[: t.ndim]) if t.strides else None
    return _over((t.data or 0) + t.byte_offset, shape, strides, dtype if t.lanes == 1 else "V", taken, "from_dlpack")


def interface(x: Array) -> dict[str, Any]:
    """`__cuda_array_interface__`, version 3: whoever takes it waits for the stream that it names."""
    _not_in_a_step(GIVES)
    width = x.dtype.itemsize
    first = x.buffer.block.address + x.offset * width if x.size else 0
    return {
        "shape": x.shape, "typestr": x.dtype.str, "data": (first, False), "version": 3, "stream": handle(),
        "strides": None if x.is_contiguous else tuple(s * width for s in x.strides),
    }  # fmt: skip


def from_interface(x: Any) -> Array:
    """An object with `__cuda_array_interface__`, over its memory."""
    _not_in_a_step(TAKES)
    said = x.__cuda_array_interface__
    address, read_only = said["data"]
    dtype, strides = np.dtype(said["typestr"]), said.get("strides")
    if said.get("mask") is not None or read_only:
        raise ValueError("from_interface: expected an array without a mask that may be written to. Pass a copy of it.")
    if strides is not None and any(s % dtype.itemsize for s in strides):
        raise ValueError(f"from_interface: expected strides of whole elements; got {strides}. Pass a copy of it.")
    steps = None if strides is None else tuple(s // dtype.itemsize for s in strides)
    if said.get("stream") is not None:
        _wait_for(said["stream"], handle())
    return _over(address, tuple(said["shape"]), steps, dtype.str, x, "from_interface")


def _over(address: int, shape: Any, strides: Any, dtype: str, owner: Any, who: str) -> Array:
    """An array over memory that `owner` keeps alive; strides in elements, None for row-major ones."""
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype("V")
    if kind.name not in _ACCEPTED or not kind.isnative:
        raise TypeError(f"{who}: expected one of {', '.join(_ACCEPTED)}; got {kind.str}. Convert it first.")
    out = Array(None, shape, row_major(shape) if strides is None else tuple(strides), 0, kind, True)
    reach = [(n - 1) * s for n, s in zip(out.shape, out.strides, strict=True)] if out.size else []
    below, above = -sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + bool(out.size)
    size = (below + above) * kind.itemsize
    if not size:
        return Array(memory.allocate(0), shape, out.strides, 0, kind, False)
    lowest = address - below * kind.itemsize
    said = {"shape": (size,), "typestr": "|u1", "data": (lowest, False), "version": 3, "strides": None}
    out.buffer = memory.Buffer(memory.Block(size, _bytes(said, lowest, size, owner)), None)
    out.offset = below
    return out


def _wait_for(first: int, second: int) -> None:
    """What is put on the second stream from now on starts after what is on the first by now."""
    if first == second or SIMULATED:
        return
    ours = stream()
    event = cuda.event(timing=False)
    event.record(ours if first == handle() else cuda.external_stream(first))
    event.wait(ours if second == handle() else cuda.external_stream(second))


def _not_in_a_step(what: str) -> None:
    if here.recording is not None:
        here.recording.refuse(what)


if SIMULATED:

    def _bytes(said: Any, address: int, size: int, owner: Any) -> Any:
        held: Any = (ctypes.c_char * size).from_address(address)
        held.owner = owner
        return type(cuda.device_array(1, np.uint8))(np.frombuffer(held, np.uint8))

else:

    def _bytes(said: Any, address: int, size: int, owner: Any) -> Any:
        return cuda.from_cuda_array_interface(said, owner=owner, sync=False)
