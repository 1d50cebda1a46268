"""The libraries of the `study` extra, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from minigrad._errors import UsageError

_PACKAGES = {"sklearn": "scikit-learn"}


def require(module: str) -> Any:
    """The module, or a UsageError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise UsageError(
            f"study: needs the package {_PACKAGES.get(name, name)}, which is not installed here. "
            f'pip install "minigrad[study]"'
        ) from None
