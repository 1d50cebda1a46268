"""Tensor: an array on a device, and its place in a graph.

It knows its data and nothing of mathematics: the layers above attach their functions as methods (`@method`), so that
an op is stated in one place and imports only go down. `_methods.pyi` lists them for type checkers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from minigrad import _dtypes, device as _device
from minigrad._mode import mode

if TYPE_CHECKING:
    from minigrad._methods import Methods
    from minigrad._op import Node
else:
    Methods = object

F = TypeVar("F", bound=Callable[..., Any])
Number = bool | int | float


class Tensor(Methods):
    """An array with a dtype, a device, and, if it requires grad, a node in the graph of the computation.

    Made by `mg.tensor` and its relatives. A leaf (made by a user) collects ∂loss/∂leaf in `grad` when `backward` runs.

    >>> import minigrad as mg
    >>> x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([2., 4., 6.])
    """

    __slots__ = ("__weakref__", "_requires_grad", "data", "device", "grad", "hooks", "node", "version")

    __array_ufunc__ = None  # so that `ndarray * tensor` asks the tensor, which explains itself

    data: Any
    device: str
    grad: Tensor | None
    node: Node | None

    def __init__(self, data: Any, device: str = "cpu", requires_grad: bool = False):
        self.data = data
        self.device = device
        self.grad = None
        self.node = None  # None: a leaf
        self.version = [0]  # raised by every in-place change; the list is shared by all views of one memory
        self.hooks: dict[int, Callable[[Tensor], Tensor | None]] | None = None
        self._requires_grad = False
        if requires_grad:
            self.requires_grad = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return len(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def is_leaf(self) -> bool:
        return self.node is None

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        if self.node is not None and not flag:
            raise RuntimeError(
                f"requires_grad: only a leaf's can be cleared; this is the output of {self.node.op.name}. Use detach()."
            )
        if flag and self.dtype.kind != "f":
            raise TypeError(
                f"requires_grad: expected a floating dtype; got {self.dtype}. Convert the tensor, e.g. to(mg.float32)."
            )
        self._requires_grad = bool(flag)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` and return the tensor itself. TypeError for integer and bool tensors."""
        self.requires_grad = requires_grad
        return self

    def numel(self) -> int:
        """The number of elements."""
        return int(self.data.size)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or its extent along `dim`."""
        return self.shape if dim is None else self.shape[dim]

    def detach(self) -> Tensor:
        """The same memory outside the graph: a stop-gradient."""
        view = Tensor(self.data, self.device)
        view.version = self.version
        return view

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array: for a CPU tensor its own memory (writes through it are not seen by autograd).

        RuntimeError if the tensor requires grad: say `detach()` first.
        """
        if self._requires_grad:
            raise RuntimeError("numpy(): the tensor requires grad, which NumPy would not see. Use x.detach().numpy().")
        return _device.kernels(self.device).to_host(self.data)

    def item(self) -> Any:
        """The value of a tensor of one element as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item(): expected a tensor of one element; got shape {self.shape}. Use tolist().")
        return _device.kernels(self.device).to_host(self.data).item()

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return _device.kernels(self.device).to_host(self.data).tolist()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len(): a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(f"bool(): a tensor of shape {self.shape} is neither true nor false. Use .any() or .all().")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind == "f":
            raise TypeError(f"index: expected an integer tensor; got {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    __hash__ = object.__hash__  # by identity, though `==` compares elements

    def __repr__(self) -> str:
        host = _device.kernels(self.device).to_host(self.data)
        values = np.array2string(host, precision=4, separator=", ", prefix="tensor(")
        notes = [] if self.dtype in (_dtypes.float32, _dtypes.int64, _dtypes.bool_) else [f"dtype={self.dtype}"]
        notes += [] if self.device == "cpu" else [f"device='{self.device}'"]
        notes += [f"op={self.node.op.name}"] if self.node is not None else ["requires_grad=True"] * self._requires_grad
        return f"{'tensor' if type(self) is Tensor else type(self).__name__}({', '.join([values, *notes])})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        host = self.numpy()
        if copy is False and dtype is not None and host.dtype != dtype:
            raise ValueError(f"__array__: {host.dtype} cannot become {dtype} without a copy")
        return np.array(host, dtype) if copy else np.asarray(host, dtype)

    def __dlpack__(self, **options: Any) -> Any:
        raw = self._shared("__dlpack__")
        if min(raw.strides, default=0) < 0:
            raise BufferError(
                "__dlpack__: the tensor runs backwards through its memory (x.flip(0), x[::-1]), and torch ends the "
                "process over that. Use x.clone()."
            )
        return _device.kernels(self.device).dlpack(raw, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _device.kernels(self.device).dlpack_device(self.data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device == "cpu":
            raise AttributeError("a tensor on the CPU has no such interface. Use __dlpack__ or numpy().")
        try:
            return _device.kernels(self.device).interface(self._shared("the array interface"))
        except AttributeError as error:  # which would say that there is no such attribute
            raise RuntimeError(str(error)) from error

    def _shared(self, who: str) -> Any:
        if self._requires_grad:
            raise RuntimeError(f"{who}: the tensor requires grad, which others would not see. Use x.detach().")
        return self.data

    def __reduce__(self) -> Any:
        """Pickling and `copy.deepcopy`: leaves only, as a graph belongs to the process that made it."""
        if self.node is not None:
            raise RuntimeError(f"copying the output of {self.node.op.name} would cut its graph. Use detach() first.")
        host = np.array(_device.kernels(self.device).to_host(self.data))
        return _rebuild, (type(self), host, self.device, self._requires_grad, self.grad)


def _rebuild(cls: type[Tensor], host: Any, device: str, requires_grad: bool, grad: Tensor | None) -> Tensor:
    tensor = cls.__new__(cls)
    Tensor.__init__(tensor, _device.kernels(_device.check(device, "unpickling")).from_host(host), device, requires_grad)
    tensor.grad = grad
    return tensor


def changed(x: Tensor) -> None:
    """Its memory holds something else now: graphs that had saved it are told, and a step that is being captured."""
    x.version[0] += 1
    if mode.recorder is not None:
        mode.recorder.changes(x.version)


def drop_grad(x: Tensor) -> None:
    """Clear `grad`; a step that is being captured is told that it need not be clear before."""
    x.grad = None
    if mode.recorder is not None:
        mode.recorder.drops(x)


def method(*names: str) -> Callable[[F], F]:
    """Attach a function to Tensor under its own name, or under the names given."""

    def attach(fn: F) -> F:
        for name in names or (fn.__name__,):
            setattr(Tensor, name, fn)
        return fn

    return attach
