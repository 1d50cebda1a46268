"""State dicts of other libraries under minigrad's names and in its layout, u and v with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from minigrad import _dtypes
from minigrad._tensor import Tensor
from minigrad.nn._state import as_it_was_on_an_error
from minigrad.nn.linear import Linear
from minigrad.nn.module import Module
from minigrad.nn.norm import BatchNorm1d, BatchNorm2d
from minigrad.nn.utils.spectral_norm import SpectralParametrization
from minigrad.ops.creation import tensor
from minigrad.ops.reduce import norm
from minigrad.ops.shape import clone, transpose

SOURCES = ("torch", "torch-old", "paddle", "chainer")
_PLAIN = {"chainer": {"weight": "W", "bias": "b"}}  # minigrad's name -> the source's, where they differ
_BATCH_NORM = {
    "paddle": {"running_mean": "_mean", "running_var": "_variance"},
    "chainer": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "avg_mean",
        "running_var": "avg_var",
        "num_batches_tracked": "N",
    },
}


def convert_state(state: Mapping[str, Any], source: str, model: Module) -> dict[str, Tensor]:
    """The state of another library's model as the state dict of the same model here, for `model.load_state_dict`.

    `state`: name -> array or tensor, such as `mg.load(path)` or `np.load(path)` gives. `model`: has the same layers
    under the same names. It is asked for names and shapes only, but lazy layers get their shape from the state.
    `source`: which library's names and layout they are, of a normalized layer's weight for one:

    - "torch": `parametrizations.weight.original` and `.0._u`, `.0._v`: minigrad's own.
    - "torch-old", the older hook: `weight_orig`, `weight_u`, `weight_v`; of a file without v, and with the computed
      `weight`, v is made from u.
    - "paddle", the hook: as "torch-old", but the weights of Linear layers, normalized or not, are in × out; BatchNorm's
      `_mean` and `_variance`.
    - "chainer", the link hook: `W`, `W_u`, the scale `gamma`, `b`, paths with "/"; BatchNormalization's `gamma`,
      `beta`, `avg_mean`, `avg_var`, `N`. u, which is not of unit norm there, is normalized, and v made from it.

    v = Mᵀu/‖Mᵀu‖ is what the next step in the order "vu" makes of u, so that training goes on as it would have there.
    That order, and n_power_iterations, eps, factor, momentum, are no part of a state: build the model with them, with
    order="vu" for all but "torch". (In evaluation Chainer sweeps from u without storing; here σ = ‖Mᵀu‖ until the next
    step.) A BatchNorm's `num_batches_tracked` that the source does not count stays the model's. Floating dtypes stay
    as they are.

    ValueError: another `source`; keys that match nothing in the model, tensors of it that are missing, shapes that do
    not fit, all of them by name. TypeError: a dtype that is none of minigrad's.

    Source: torch/nn/utils/spectral_norm.py, python/paddle/nn/utils/spectral_norm_hook.py,
    chainer/link_hooks/spectral_normalization.py.

    >>> import minigrad as mg, numpy as np
    >>> model = mg.nn.Sequential(mg.nn.utils.spectral_norm(mg.nn.Linear(3, 2), order="vu"))
    >>> npz = {"0/W": np.float32([[3, 0, 0], [0, 1, 0]]), "0/b": np.zeros(2, "f"), "0/W_u": np.float32([2, 0])}
    >>> _ = model.load_state_dict(mg.spectral.convert_state(npz, "chainer", model))
    >>> model.eval()(mg.eye(3)).tolist()
    [[1.0, 0.0], [0.0, 0.3333333432674408], [0.0, 0.0]]
    """
    if source not in SOURCES:
        raise ValueError(f"convert_state: expected source to be one of {', '.join(SOURCES)}; got {source!r}")
    with as_it_was_on_an_error(model):
        return _converted("convert_state", state, source, model)


def _converted(who: str, state: Mapping[str, Any], source: str, model: Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    spelled: list[tuple[Tensor, str]] = []  # what the source calls a tensor, for the errors
    for key in state:
        name = key.strip("/").replace("/", ".") if source == "chainer" else key
        found[name] = _tensor(who, key, state)
        spelled.append((found[name], key))
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for theirs, ours, changed in _differences(source, module):
            if prefix + theirs in found and (theirs == ours or prefix + ours not in found):  # else it is there twice
                x = found.pop(prefix + theirs)
                found[prefix + ours] = changed(x)
                spelled += [(found[prefix + ours], key) for y, key in spelled if y is x]
        module._adapt_state(found, prefix)

    own = dict(model._saved())
    for name, x in own.items():
        if name.rpartition(".")[2] == "num_batches_tracked":
            found.setdefault(name, clone(x.detach()))
    calls = {name: next((key for y, key in spelled if y is x), name) for name, x in found.items()}
    wrong = [f"{calls[name]}: nothing in the model has this name" for name in found if name not in own]
    wrong += [f"{name}: not in the state" for name in own if name not in found]
    wrong += [
        f"{calls[name]}: expected {x.shape} as {name}; got {found[name].shape}"
        for name, x in own.items()
        if name in found and x.shape != found[name].shape
    ]
    if wrong:
        raise ValueError("\n  ".join([f"{who}: read as {source!r}, the state does not fit the model:", *wrong]))
    return {name: found[name] for name in own}


def from_torch_state_dict(state_dict: Mapping[str, Any], model: Module) -> dict[str, Tensor]:
    """The state dict of a torch model as that of the same model here, for `model.load_state_dict`.

    `state_dict`: what torch's `module.state_dict()` or `torch.load(path, weights_only=True)` gives, or `mg.load(path)`
    of a file that safetensors.torch wrote. `model`: has the same layers under the same names; torch's layouts and names
    are the ones used here, and both of torch's layouts of spectral normalization are read (`convert_state`). The values
    are copied to the CPU, from where `load_state_dict` moves them.

    A floating tensor takes the dtype of the model's where that holds its values exactly: bfloat16 and float16 become
    float32 or float64, float32 becomes float64. Nothing is rounded.

    ValueError: names or shapes that do not fit, all of them, as by `convert_state`. TypeError: an entry that is no
    dense tensor of numbers, or a dtype that the model's would round: `model.to(mg.float64)` before, for one.

    >>> import minigrad as mg, numpy as np
    >>> model = mg.nn.Linear(2, 1)
    >>> state = {"weight": np.float16([[1, 2]]), "bias": np.float32([3])}   # or torch.nn.Linear(2, 1).state_dict()
    >>> _ = model.load_state_dict(mg.from_torch_state_dict(state, model))
    >>> model(mg.ones(1, 2)).tolist()
    [[6.0]]
    """
    host = {key: _from_torch(key, x) for key, x in state_dict.items()}
    with as_it_was_on_an_error(model):
        found = _converted("from_torch_state_dict", host, "torch", model)
        own = dict(model._saved())
        return {key: _widened(key, x, own[key].dtype) for key, x in found.items()}


def _from_torch(key: str, x: Any) -> Any:
    """A torch tensor as a NumPy array; float32 for a bfloat16, which NumPy lacks. Anything else as it is."""
    if isinstance(x, Tensor | np.ndarray):
        return x
    if not hasattr(x, "detach"):
        raise TypeError(f"from_torch_state_dict: {key!r}: expected a tensor; got {type(x).__name__}")
    try:
        host = x.detach().cpu()
        return (host.float() if str(host.dtype) == "torch.bfloat16" else host).numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantized, dtypes that NumPy lacks
        raise TypeError(f"from_torch_state_dict: {key!r}, {x.dtype}: {error}. Convert it in torch first.") from None


def _widened(key: str, x: Tensor, dtype: Any) -> Tensor:
    if x.dtype != dtype and not (x.dtype.kind == dtype.kind == "f" and np.can_cast(x.dtype, dtype)):
        floats = x.dtype.kind == dtype.kind == "f"  # a model becomes no other
        raise TypeError(
            f"from_torch_state_dict: {key!r}: {x.dtype} would not keep its values as the model's {dtype}. "
            f"{f'Use model.to(mg.{x.dtype}), or convert' if floats else 'Convert'} it in torch."
        )
    return x.to(dtype)


def _tensor(who: str, key: str, state: Mapping[str, Any]) -> Tensor:
    """A tensor as it is, anything else as a new one; integers as int64."""
    try:
        x = state[key]
        if isinstance(x, Tensor):
            return x.detach()
        host = np.asarray(x)
        return tensor(host, dtype=_dtypes.int64 if host.dtype.kind in "iu" else None)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {key!r}: {error}") from None


def _same(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    return transpose(x, 0, 1) if x.ndim == 2 else x


def _unit(x: Tensor) -> Tensor:
    return x / norm(x) if x.dtype.kind == "f" else x


def _differences(source: str, module: Module) -> Iterator[tuple[str, str, Callable[[Tensor], Tensor]]]:
    """(the source's name, the name in PyTorch's older layout, the change) of a module's own tensors."""
    names = (_BATCH_NORM if isinstance(module, BatchNorm1d | BatchNorm2d) else _PLAIN).get(source, {})
    normalized = {k: p for k, p in module._parametrized().items() if isinstance(p, SpectralParametrization)}
    if source == "chainer":
        for ours in normalized:
            theirs = names.get(ours, ours)
            yield theirs, f"{ours}_orig", _same
            yield f"{theirs}_u", f"{ours}_u", _unit
            if "gamma" in normalized[ours].state._parameters:
                yield "gamma", f"parametrizations.{ours}.0.gamma", _same
    if source == "paddle" and isinstance(module, Linear):
        yield "weight", "weight", _transposed
        yield "weight_orig", "weight_orig", _transposed
    yield from ((theirs, ours, _same) for ours, theirs in names.items() if ours not in normalized)
