"""State dicts as files. The format is safetensors: PyTorch reads it too, and there is nothing in it to execute."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from minigrad._tensor import Tensor
from minigrad.ops.creation import from_numpy

_CODES = ("F16", "F32", "F64", "I64", "BOOL")  # the five dtypes, as the format has them


def save(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict to a safetensors file. A file of that name is replaced: by the whole new one or not at all.

    Tensors of any shape, dtype, device and strides; those that share memory are written once for each key.

    TypeError: a key that is no string, a value that is no tensor. ValueError: the key "__metadata__", which the format
    reserves. OSError: the file cannot be written.

    >>> import minigrad as mg, tempfile
    >>> model, twin = mg.nn.BatchNorm1d(1), mg.nn.BatchNorm1d(1)
    >>> _ = model(mg.tensor([[10.0], [30.0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mg.save(model.state_dict(), f"{folder}/model.safetensors")
    ...     twin.load_state_dict(mg.load(f"{folder}/model.safetensors"))
    IncompatibleKeys(missing_keys=[], unexpected_keys=[])
    >>> twin.running_mean
    tensor([2.])
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(f"save: expected tensors by name; got {key!r}: {type(value).__name__}. Use mg.tensor().")
        if key == "__metadata__":
            raise ValueError("save: the format reserves the key '__metadata__'. Give the tensor another name.")
    data = to_bytes({k: np.asarray(t.detach().to(device="cpu").numpy(), order="C") for k, t in state_dict.items()})
    target = Path(os.path.realpath(path))  # of a link, what it leads to
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # in the same folder: replacing is atomic there only
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU, for `Module.load_state_dict`, which moves them.

    Nothing else is read, pickles (torch.save) least of all: safetensors.torch.save_file writes what this reads.

    ValueError: no such format, or a file that is truncated or contradicts itself. TypeError: a dtype that is none of
    minigrad's five. OSError: the file cannot be read. All name the file.

    >>> import minigrad as mg, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mg.save({"x": mg.ones(2)}, f"{folder}/x.safetensors")
    ...     mg.load(f"{folder}/x.safetensors")
    {'x': tensor([1., 1.])}
    """
    open(path, "rb").close()  # an OSError of Python's own, which names the file
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - the file itself cannot be iterated
                code = file.get_slice(key).get_dtype()
                if code not in _CODES:
                    raise TypeError(
                        f"load: {os.fspath(path)}: {key!r} is {code}; expected one of {', '.join(_CODES)}. "
                        f"Convert it with the library that wrote the file."
                    )
                tensors[key] = from_numpy(file.get_tensor(key))
    except SafetensorError as error:
        raise ValueError(
            f"load: {os.fspath(path)}: expected a complete safetensors file: {error}. "
            f"Other formats, pickles (.pt) among them, are not read: write it with safetensors, or for np.load()"
        ) from None
    return tensors
