"""Parameter: a tensor that a module trains; and the one whose shape is not known yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from minigrad import _dtypes
from minigrad._tensor import Tensor
from minigrad.device import kernels


class Parameter(Tensor):
    """A tensor that a module trains: assigned to a module's attribute it is registered there.

    It lies in the memory of the tensor given, outside of its graph, and requires grad.

    >>> import minigrad as mg
    >>> mg.nn.Parameter(mg.tensor([1.0, 2.0]))
    Parameter([1., 2.], requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Tensor, requires_grad: bool = True):
        super().__init__(data.data, data.device, requires_grad)
        self.version = data.version


class UninitializedParameter(Parameter):
    """The place of a lazy layer's parameter: `materialize(shape)` turns this same object into a Parameter.

    It has a dtype and a device, which `Module.to` may change, and no shape and no values yet: asking for them is a
    RuntimeError.

    >>> import minigrad as mg
    >>> weight = mg.nn.UninitializedParameter(mg.float64)
    >>> weight.materialize((2, 3))
    >>> type(weight).__name__, weight.shape
    ('Parameter', (2, 3))
    """

    __slots__ = ()

    def __init__(self, dtype: Any = None, device: str = "cpu"):
        super().__init__(Tensor(kernels(device).empty((0,), dtype or _dtypes.float32), device))

    def materialize(self, shape: Sequence[int]) -> None:
        """Become a Parameter of this shape; its values are still to be set."""
        self.data = kernels(self.device).empty(tuple(shape), self.dtype)
        self.__class__ = Parameter  # type: ignore[assignment]

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            "the parameter of a lazy layer has no shape yet. Call the layer once with a batch of the right size, "
            "or load a state dict into it."
        )

    shape = property(_refuse)
    detach = _refuse
    numel = _refuse
