"""State dicts, and whole trainings, as files. The format is safetensors: PyTorch reads it too, and nothing executes."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_bytes

from minigrad import _random
from minigrad._files import DTYPES, Array, Entry, PathLike, read, write
from minigrad._interrupt import deferred
from minigrad._tensor import Tensor
from minigrad._tree import differences, filled, flat, is_finite, said
from minigrad.nn._state import read_only
from minigrad.nn.module import Module
from minigrad.ops.creation import from_numpy
from minigrad.optim.lr_scheduler import LRScheduler
from minigrad.optim.optimizer import Optimizer

_SUFFIX = ".safetensors"
_METADATA = "minigrad.checkpoint"  # one key of the file's metadata: several of them are written in no order


def save(state_dict: Mapping[str, Tensor], path: PathLike) -> None:
    """Write a state dict to a safetensors file. A file of that name is replaced: by the whole new one or not at all.

    Tensors of any shape, dtype, device and strides; those that share memory are written once for each key.

    TypeError: no mapping, a key that is no string, a value that is no tensor. ValueError: the key "__metadata__", which
    the format reserves. OSError: the file cannot be written.

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
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"save: expected tensors by name; got {type(state_dict).__name__}. Use model.state_dict().")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(f"save: expected tensors by name; got {key!r}: {type(value).__name__}. Use mg.tensor().")
        if key == "__metadata__":
            raise ValueError("save: the format reserves the key '__metadata__'. Give the tensor another name.")
    write(path, to_bytes({key: _array(x) for key, x in state_dict.items()}))


def load(path: PathLike) -> dict[str, Tensor]:
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

    def known(entries: dict[str, Entry], metadata: dict[str, str]) -> None:
        for key, entry in entries.items():
            if entry.dtype not in DTYPES.values():
                raise TypeError(
                    f"load: {os.fspath(path)}: {key!r} is {entry.dtype}; expected one of {', '.join(DTYPES)}. "
                    f"Convert it with the library that wrote the file."
                )

    arrays, _ = read("load", path, known)
    return {key: from_numpy(array) for key, array in arrays.items()}


@dataclass(eq=False)
class Checkpoint:
    """All that a training is made of, so that it goes on from a file as if it had never stopped: to the bit, on a CPU.

    `model`, `optimizer`, `scheduler`, `generator`: one of each, or several by name, for a GAN perhaps
    `Checkpoint({"G": generator, "D": critic}, {"G": g_optimizer, "D": d_optimizer})`. `step`: how many steps are done.
    Generators are minigrad's or NumPy's (PCG64); the library's own, which dropout draws from, always belongs to it.
    Gradients do not: save between the steps.

    One safetensors file holds it: tensors by name, which `mg.load` reads too, and as metadata the numbers and a SHA-256
    of everything. Nothing of it is written anywhere before all of it has been checked against what is there.

    TypeError: parts of other kinds. ValueError: a name that is empty or has dots.

    >>> import minigrad as mg, tempfile
    >>> from minigrad.checkpoint import Checkpoint
    >>> model = mg.nn.Linear(2, 1)
    >>> optimizer = mg.optim.Adam(model.parameters())
    >>> checkpoint = Checkpoint(model, optimizer)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint.resume(folder)  # from the newest, if there is one
    ...     for step in range(checkpoint.step, 30):
    ...         optimizer.zero_grad()
    ...         model(mg.randn(8, 2)).square().mean().backward()
    ...         optimizer.step()
    ...         checkpoint.step = step + 1
    ...         if checkpoint.step % 10 == 0:
    ...             _ = checkpoint.save(folder, keep=2)
    ...     trained = model.weight.tolist()
    ...     list(Checkpoint.steps(folder)), checkpoint.resume(folder), model.weight.tolist() == trained
    False
    ([20, 30], True, True)
    """

    model: Module | Mapping[str, Module]
    optimizer: Optimizer | Mapping[str, Optimizer] | None = None
    scheduler: LRScheduler | Mapping[str, LRScheduler] | None = None
    generator: _random.Generator | np.random.Generator | Mapping[str, Any] | None = None
    step: int = 0

    def __post_init__(self) -> None:
        list(self._parts())

    def save(self, path: PathLike, keep: int | None = None) -> Path:
        """Write a file, `path`.safetensors, or into a folder of one training; returns the file.

        In a folder the file is named after the step, and the last `keep` stay (default: all). A file appears as a whole
        or not at all, whatever happens to the process, and Ctrl-C waits for it. Leftovers of a killed one are removed.

        ValueError: `keep` no integer ≥ 1 or without a folder, a later step there, a number that is not finite.
        TypeError: state that is no number, string or tensor. OSError: it cannot be written.
        """
        if type(self.step) is not int or self.step < 0:
            raise ValueError(f"Checkpoint.save: expected step to be an integer ≥ 0; got {self.step!r}")
        target = Path(path)
        in_folder = target.suffix != _SUFFIX
        if keep is not None and (not in_folder or not isinstance(keep, int) or keep < 1):
            raise ValueError(f"Checkpoint.save: expected int keep ≥ 1, and a folder; got keep={keep!r}, {target}")
        leaves = flat({"step": self.step, **{path: _state(part) for path, part in self._parts()}})
        arrays = {key: _array(x) for key, x in leaves.items() if isinstance(x, Tensor)}
        numbers = {key: _plain(key, x) for key, x in leaves.items() if key not in arrays}
        if in_folder:
            folder, target = target, target / f"step-{self.step:09d}{_SUFFIX}"
            folder.mkdir(parents=True, exist_ok=True)
            if later := [step for step in self.steps(folder) if step > self.step]:
                raise ValueError(
                    f"Checkpoint.save: {folder} has step {later[-1]}, which is later than {self.step}. Go on from "
                    f"there with resume(), or save elsewhere."
                )
        head = {"format": 1, "minigrad": _version(), "sha256": _digest(numbers, arrays), "state": numbers}
        write(target, to_bytes(arrays, {_METADATA: json.dumps(head)}))
        if keep is not None:
            for old in list(self.steps(folder).values())[:-keep]:
                old.unlink(missing_ok=True)
        return target

    def load(self, path: PathLike) -> None:
        """Take over the state in a file, or in the newest of a folder: all of it or, on an error, nothing.

        ValueError: a file that is truncated, corrupt, or of other parts; it names the file and, with what was expected
        and found, the keys. OSError: the file cannot be read. FileNotFoundError: a folder without checkpoints.
        """
        file = Path(path)
        if file.is_dir():
            if not (there := self.steps(file)):
                raise FileNotFoundError(f"Checkpoint.load: {file} holds no file step-…{_SUFFIX}")
            file = list(there.values())[-1]
        parts = dict(self._parts())
        templates: dict[str, Any] = {}

        def check(entries: dict[str, Entry], metadata: dict[str, str]) -> tuple[str, dict[str, Any]]:
            digest, numbers = _head(file, metadata)
            found = {**numbers, **entries}
            templates.update({path: _template(path, part, found) for path, part in parts.items()})
            wrong = list(differences(flat({"step": range(1 << 63), **templates}), found))
            if not wrong:
                wrong = [line for path, x in parts.items() for line in _refused(path, x, templates[path], numbers)]
            if wrong:
                more = [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
                raise ValueError("\n  ".join([f"Checkpoint.load: {file}: nothing was loaded:", *wrong[:10], *more]))
            return digest, numbers

        arrays, (digest, numbers) = read("Checkpoint.load", file, check)
        if _digest(numbers, arrays) != digest:
            raise ValueError(f"Checkpoint.load: {file} is corrupt: its contents have not the SHA-256 that it states")
        leaves = {**numbers, **{key: from_numpy(array) for key, array in arrays.items()}}
        with deferred():
            for path, part in parts.items():
                _restore(part, filled(path, templates[path], leaves))
            self.step = numbers["step"]

    def resume(self, folder: PathLike) -> bool:
        """Load the newest checkpoint of a folder if it has any; had it? Errors are those of `load`.

        NotADirectoryError: a file; to take it for an empty folder would start the training anew.
        """
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise NotADirectoryError(f"Checkpoint.resume: expected a folder; got the file {folder}. Use load().")
        if not self.steps(folder):
            return False
        self.load(folder)
        return True

    @staticmethod
    def steps(folder: PathLike) -> dict[int, Path]:
        """Step -> file, in this order, of the checkpoints in a folder; none if there is no such folder."""
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found = (re.fullmatch(rf"step-([0-9]{{9,18}}){re.escape(_SUFFIX)}", name) for name in names)
        return {int(match[1]): Path(folder, match[0]) for match in sorted(filter(None, found), key=lambda m: int(m[1]))}

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """(path, part) of everything that has state."""
        kinds: dict[str, tuple[type, ...]] = {
            "model": (Module,),
            "optimizer": (Optimizer,),
            "scheduler": (LRScheduler,),
            "generator": (_random.Generator, np.random.Generator),
        }
        for kind, types in kinds.items():
            given = getattr(self, kind)
            named = given if isinstance(given, Mapping) else {} if given is None else {None: given}
            for name, part in named.items():
                if not isinstance(part, types):
                    raise TypeError(
                        f"Checkpoint: expected {kind} to be a {types[0].__name__}, or several by name; "
                        f"got {type(part).__name__}"
                    )
                if name is not None and (not isinstance(name, str) or not name or "." in name):
                    raise ValueError(f"Checkpoint: expected names of {kind}s without dots; got {name!r}")
                yield kind if name is None else f"{kind}.{name}", part
        yield "random", _random.default


# Parts as trees of tensors and numbers, and back ---------------------------------------------------------------------


def _state(part: Any) -> Any:
    """The state of a part; strings in it must be the same where it is loaded."""
    if isinstance(part, Module):
        return part.state_dict()
    if isinstance(part, Optimizer):
        groups = [
            {**group, "params": [f"{p.shape}, {p.dtype}" for p in group["params"]]} for group in part.param_groups
        ]
        return {"class": type(part).__name__, "state": part.state_dict()["state"], "param_groups": groups}
    if isinstance(part, LRScheduler):
        return {"class": type(part).__name__, **part.state_dict()}
    return part.get_state() if isinstance(part, _random.Generator) else part.bit_generator.state


def _template(path: str, part: Any, found: Mapping[str, Any]) -> Any:
    """What the state of a part must look like: tensors of the same shape, numbers for numbers, integers in a range."""
    if isinstance(part, _random.Generator):
        return {"seed": range(1 << 64), "offset": range(1 << 64)}
    state = _state(part)
    if isinstance(part, Optimizer):  # has no state before its first step
        params = [p for group in part.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Any]] = {}
        for key, value in found.items():
            match = re.fullmatch(rf"{re.escape(path)}\.state\.([0-9]{{1,9}})\.(\w+)", key)
            if match and int(match[1]) < len(params):
                number = range(1 << 63) if match[2] == "step" else 0
                slot = params[int(match[1])] if isinstance(value, Entry) else number
                slots.setdefault(int(match[1]), {})[match[2]] = slot
        state["state"] = slots
    return state


def _refused(path: str, part: Any, template: Any, numbers: Mapping[str, Any]) -> Iterator[str]:
    """What a part itself has against the numbers in its place."""
    if isinstance(part, Optimizer):
        groups = filled(f"{path}.param_groups", template["param_groups"], numbers)
        for i, (ours, theirs) in enumerate(zip(part.param_groups, groups, strict=True)):
            try:
                part._check_options({**theirs, "params": ours["params"]})
            except ValueError as error:
                yield f"{path}.param_groups.{i}: {error}"
    elif isinstance(part, Module):
        yield from read_only({f"{path}.{key}": x for key, x in template.items()})
    elif isinstance(part, np.random.Generator):
        try:
            copy.deepcopy(part.bit_generator).state = filled(path, template, numbers)
        except (ValueError, TypeError, OverflowError) as error:
            yield f"{path}: {error}"


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, Optimizer):
        of = iter(range(sum(len(group["params"]) for group in part.param_groups)))
        groups = [{**group, "params": [next(of) for _ in group["params"]]} for group in state["param_groups"]]
        part.load_state_dict({"state": state["state"], "param_groups": groups})
    elif isinstance(part, LRScheduler):
        part.load_state_dict({key: value for key, value in state.items() if key != "class"})
    elif isinstance(part, Module):
        part.load_state_dict(state)
    elif isinstance(part, _random.Generator):
        part.set_state(state)
    else:
        part.bit_generator.state = state


# The file ------------------------------------------------------------------------------------------------------------


def _array(x: Tensor) -> Array:
    return np.asarray(x.detach().to(device="cpu").numpy(), order="C")


def _plain(key: str, value: Any) -> Any:
    """A number or string that JSON gives back as it was."""
    if type(value) not in (int, float, bool, str, type(None)):
        raise TypeError(
            f"Checkpoint.save: {key}: expected a number of Python's, a string or a tensor; got {type(value).__name__}. "
            f"Convert it, with float() perhaps."
        )
    if isinstance(value, float) and not is_finite(value):
        raise ValueError(f"Checkpoint.save: {key}: expected a finite number; got {value}")
    return value


def _version() -> str:
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def _digest(numbers: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 of the numbers, as sorted JSON, and of each tensor in the order of their names: a line, and its bytes."""
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for key in sorted(arrays):
        array = arrays[key]
        digest.update(f"\n{json.dumps(key)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).data)
    return digest.hexdigest()


def _head(file: Path, metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The digest and the numbers that a file states."""
    who = f"Checkpoint.load: {file}"
    if _METADATA not in metadata:
        raise ValueError(f"{who} is no checkpoint: it lacks the metadata {_METADATA!r}. mg.load() reads state dicts.")
    try:
        head = json.loads(metadata[_METADATA])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who}: expected JSON as its metadata {_METADATA!r}; {error}") from None
    if not isinstance(head, dict) or not isinstance(head.get("state"), dict):
        raise ValueError(f"{who}: expected 'state', a dict, in its metadata {_METADATA!r}; got {said(head)}")
    if head.get("format") != 1:
        raise ValueError(f"{who}: expected format 1; got {said(head.get('format'))}. A later minigrad may read it.")
    return str(head.get("sha256")), head["state"]
