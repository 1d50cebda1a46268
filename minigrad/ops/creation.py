"""Tensors made from nothing, from data, and at random."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad import _dtypes, _random, device as devices
from minigrad._random import Generator
from minigrad._tensor import Number, Tensor
from minigrad.ops import _arguments as arguments

Shape = int | Sequence[int]


def _made(who: str, device: str, requires_grad: bool, kernel: str, *arguments: Any) -> Tensor:
    """What a kernel makes out of nothing, as a tensor."""
    try:
        return Tensor(getattr(devices.kernels(device), kernel)(*arguments), device, requires_grad)
    except MemoryError as error:
        raise devices.out_of_memory(who, device, error) from None


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of `data`: numbers, nested sequences, a NumPy array, a tensor.

    Arrays and tensors keep their dtype; Python floats become float32, ints int64. TypeError for a dtype that is none of
    the five, or for integers that shall require grad; ValueError for ragged data.

    >>> import minigrad as mg
    >>> mg.tensor([[1, 2], [3, 4]], dtype=mg.float64)
    tensor([[1., 2.],
            [3., 4.]], dtype=float64)
    """
    if isinstance(data, Tensor):
        device = data.device if device is None else device
        data = devices.kernels(data.device).to_host(data.data)
    typed = hasattr(data, "dtype")
    try:
        host = np.asarray(data)
    except ValueError as error:
        raise ValueError(f"tensor: expected numbers or nested sequences of equal length: {error}") from None
    if host.dtype.kind not in "biuf":
        raise TypeError(f"tensor: expected real numbers; got {type(data).__name__}, in NumPy's terms {host.dtype}")
    if dtype is None and not typed and host.dtype.kind == "f":
        dtype = _dtypes.float32
    dtype = _dtypes.check(host.dtype if dtype is None else dtype, "tensor")
    where = devices.check("cpu" if device is None else device, "tensor")
    with np.errstate(all="ignore"):  # overflow to infinity, NaN to an integer
        host = host.astype(dtype, copy=False)
    return _made("tensor", where, requires_grad, "from_host", host)


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """A CPU tensor in the array's own memory. TypeError for a dtype that is none of the five.

    >>> import minigrad as mg, numpy as np
    >>> a = np.zeros(2)
    >>> x = mg.from_numpy(a)
    >>> a[0] = 5
    >>> x
    tensor([5., 0.], dtype=float64)
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array; got {type(array).__name__}. Use mg.tensor().")
    _dtypes.check(array.dtype, "from_numpy")
    return Tensor(np.asarray(array))


def from_dlpack(x: Any) -> Tensor:
    """A tensor in the memory of another library's array, on its device, by the DLPack protocol.

    It keeps the memory alive, and sees what is written there; it is read-only if its owner says so, as JAX does. The
    other way round, `np.from_dlpack`, `torch.from_dlpack` and `jnp.from_dlpack` take a tensor that does not require
    grad. (JAX copies what is not aligned to its liking; torch writes to read-only memory if told to.)

    TypeError for a dtype that is none of the five, and for what does not speak DLPack. ValueError for an array on a
    device that is none of ours.

    >>> import minigrad as mg, numpy as np
    >>> mg.from_dlpack(np.ones(2))
    tensor([1., 1.], dtype=float64)
    """
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: {type(x).__name__} does not speak DLPack. Use mg.tensor().")
    device = devices.of_dlpack(x.__dlpack_device__()[0])
    raw = devices.kernels(device).from_dlpack(x)
    _dtypes.check(raw.dtype, "from_dlpack")
    return Tensor(raw, device)


def full(
    shape: Shape, fill_value: Number, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor filled with one value; its dtype is that of the value (float32, int64, bool) unless given.

    >>> import minigrad as mg
    >>> mg.full((2,), 7.0)
    tensor([7., 7.])
    """
    wanted = _dtypes.check(_dtypes.of_number(fill_value) if dtype is None else dtype, "full")
    where = devices.check(device, "full")
    sizes = arguments.shape("full", [shape], 0)
    return _made("full", where, requires_grad, "full", sizes, fill_value, wanted)


def zeros(*shape: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Zeros, float32 unless a dtype is given.

    >>> import minigrad as mg
    >>> mg.zeros(2)
    tensor([0., 0.])
    """
    return full(arguments.shape("zeros", shape, 0), 0.0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones(*shape: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Ones, float32 unless a dtype is given.

    >>> import minigrad as mg
    >>> mg.ones(2)
    tensor([1., 1.])
    """
    return full(arguments.shape("ones", shape, 0), 1.0, dtype=dtype, device=device, requires_grad=requires_grad)


def empty(*shape: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Memory as it comes, float32 unless a dtype is given: to be filled in.

    >>> import minigrad as mg
    >>> mg.empty(2, 3).shape
    (2, 3)
    """
    where = devices.check(device, "empty")
    wanted = _dtypes.check(_dtypes.float32 if dtype is None else dtype, "empty")
    return _made("empty", where, requires_grad, "empty", arguments.shape("empty", shape, 0), wanted)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Ones on the diagonal of an n × m matrix (m = n if not given).

    >>> import minigrad as mg
    >>> mg.eye(2)
    tensor([[1., 0.],
            [0., 1.]])
    """
    where = devices.check(device, "eye")
    wanted = _dtypes.check(_dtypes.float32 if dtype is None else dtype, "eye")
    rows, columns = arguments.shape("eye", (n, n if m is None else m), 0)
    return _made("eye", where, requires_grad, "eye", rows, columns, wanted)


def arange(
    start: Number, stop: Number | None = None, step: Number = 1, *, dtype: Any = None, device: str = "cpu"
) -> Tensor:
    """start + i · step below stop; `arange(stop)` starts at 0. int64 unless a float is among the arguments.

    ValueError for a step of 0, and for a stop that is never reached.

    >>> import minigrad as mg
    >>> mg.arange(0, 1, 0.25)
    tensor([0.  , 0.25, 0.5 , 0.75])
    """
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ValueError("arange: expected a step other than 0")
    with_floats = any(isinstance(a, float) for a in (start, stop, step))
    steps = (stop - start) / step if with_floats else -((start - stop) // step)
    if not math.isfinite(steps):
        raise ValueError(f"arange: expected finite numbers; got start {start}, stop {stop}, step {step}")
    natural = _dtypes.float32 if with_floats else _dtypes.int64
    where = devices.check(device, "arange")
    wanted = _dtypes.check(natural if dtype is None else dtype, "arange")
    return _made("arange", where, False, "arange", start, max(0, math.ceil(steps)), step, wanted)


def _drawn(
    kind: str, shape: tuple[Any, ...], dtype: Any, device: str, requires_grad: bool, generator: Generator | None
) -> Tensor:
    where = devices.check(device, kind)
    sizes = arguments.shape(kind, shape, 0)
    wanted = _dtypes.check(_dtypes.float32 if dtype is None else dtype, kind)
    if wanted.kind != "f":
        raise TypeError(f"{kind}: expected a floating dtype; got {wanted}")
    source = _random.default if generator is None else generator
    draw = functools.partial(source.draw, math.prod(sizes), wanted)
    return _made(kind, where, requires_grad, kind, sizes, wanted, draw)


def rand(
    *shape: Any,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in [0, 1), from the default generator unless one is given.

    >>> import minigrad as mg
    >>> mg.rand(2, generator=mg.Generator(0))
    tensor([0.399 , 0.8805])
    """
    return _drawn("rand", shape, dtype, device, requires_grad, generator)


def randn(
    *shape: Any,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """N(0, 1), from the default generator unless one is given.

    >>> import minigrad as mg
    >>> mg.randn(2, 2, generator=mg.Generator(0)).shape
    (2, 2)
    """
    return _drawn("randn", shape, dtype, device, requires_grad, generator)


def randperm(n: int, *, device: str = "cpu", generator: Generator | None = None) -> Tensor:
    """The numbers 0 … n − 1 in random order, each order equally likely.

    >>> import minigrad as mg
    >>> sorted(mg.randperm(4).tolist())
    [0, 1, 2, 3]
    """
    keys = rand(n, dtype=_dtypes.float64, generator=generator)
    return tensor(np.argsort(keys.numpy(), kind="stable"), device=device)


def _like(name: str) -> Callable[..., Tensor]:
    make = globals()[name]

    def function(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
        return make(
            x.shape,
            dtype=x.dtype if dtype is None else dtype,
            device=x.device if device is None else device,
            requires_grad=requires_grad,
        )

    function.__name__ = function.__qualname__ = f"{name}_like"
    function.__doc__ = f"""`{name}` with the shape and, unless given, the dtype and device of x.

    >>> import minigrad as mg
    >>> x = mg.{name}_like(mg.eye(2, 3), dtype=mg.float64)
    >>> x.shape, x.dtype
    ((2, 3), dtype('float64'))
    """
    return function


zeros_like, ones_like, empty_like, rand_like, randn_like = map(_like, ("zeros", "ones", "empty", "rand", "randn"))


def full_like(
    x: Tensor, fill_value: Number, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """`full` with the shape and, unless given, the dtype and device of x.

    >>> import minigrad as mg
    >>> mg.full_like(mg.ones(2), 7)
    tensor([7., 7.])
    """
    return full(
        x.shape,
        fill_value,
        dtype=x.dtype if dtype is None else dtype,
        device=x.device if device is None else device,
        requires_grad=requires_grad,
    )
