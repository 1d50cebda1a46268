"""State as a tree of tensors and numbers: its leaves by their paths, and how those of another one differ."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from minigrad._files import Entry
from minigrad._tensor import Tensor

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


def _children(tree: Any) -> Iterable[tuple[Any, Any]] | None:
    if isinstance(tree, Mapping):
        return tree.items()
    return enumerate(tree) if isinstance(tree, list | tuple) else None


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, "param_groups.0.lr"."""
    leaves: dict[str, Any] = {}

    def walk(path: str, tree: Any) -> None:
        children = _children(tree)
        if children is None:
            if path in leaves:
                raise ValueError(f"two things are called {path!r}. Give one of them another name.")
            leaves[path] = tree
        else:
            for key, child in children:
                walk(f"{path}.{key}" if path else str(key), child)

    walk("", tree)
    return leaves


def filled(path: str, template: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree like the template at `path`, with leaves taken from these."""
    children = _children(template)
    if children is None:
        return leaves[path]
    tree = {key: filled(f"{path}.{key}", child, leaves) for key, child in children}
    return tree if isinstance(template, Mapping) else type(template)(tree.values())


def differences(template: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key that is missing, unexpected, or holds something else.

    Wanted are a tensor's shape and dtype, an integer in a range, this very string, a bool, a finite number; for None,
    whatever is no tensor.
    """
    for key, wanted in template.items():
        if key not in found:
            yield f"{key}: expected {_kind(wanted)}; it is missing"
        elif not _fits(wanted, found[key]):
            yield f"{key}: expected {_kind(wanted)}; got {said(found[key])}"
    for key, value in found.items():
        if key not in template:
            yield f"{_short.repr(key)[1:-1]}: unexpected; got {said(value)}"


def _fits(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(value, Entry) and value == (wanted.shape, str(wanted.dtype))
    if isinstance(wanted, range):
        return type(value) is int and value in wanted
    if isinstance(wanted, str):
        return bool(value == wanted)
    if wanted is None:
        return value is None or isinstance(value, bool | str) or _fits(0, value)
    if isinstance(wanted, bool):
        return isinstance(value, bool)
    return type(value) in (int, float) and is_finite(value)


def _kind(wanted: Any) -> str:
    if isinstance(wanted, Tensor):
        return str(Entry(wanted.shape, str(wanted.dtype)))
    if isinstance(wanted, range):
        return f"an integer in [0, 2**{wanted.stop.bit_length() - 1})"
    if isinstance(wanted, str):
        return repr(wanted)
    if wanted is None:
        return "a number or a string"
    return "a bool" if isinstance(wanted, bool) else "a finite number"


def said(value: Any) -> str:
    """A value that was found, in few words."""
    return str(value) if isinstance(value, Entry) else _short.repr(value)


def is_finite(value: float) -> bool:
    """Also an integer must be one that floats reach."""
    return -sys.float_info.max <= value <= sys.float_info.max
