"""The libraries of the extras, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from minigrad._errors import UsageError

_PACKAGES = {"sklearn": "scikit-learn"}


def require(module: str, part: str = "study") -> Any:
    """The module, or a UsageError that says what to install: the extra of the command's part."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise UsageError(
            f"{part}: needs the package {_PACKAGES.get(name, name)}, which is not installed here. "
            f'pip install "minigrad[{part}]"'
        ) from None
