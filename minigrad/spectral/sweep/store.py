"""The finished cells of a sweep, one file each: written whole or not at all, found again by the cell's settings."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigrad.spectral.study.tables import finite
from minigrad.spectral.sweep.plan import Cell


class Store:
    """A folder of cells."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell measured. A file that says something else is as good as none."""
        try:
            kept = json.loads(self._path(cell).read_text(encoding="utf-8"))
            return dict(kept["measures"]) if kept["cell"] == asdict(cell) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, cell: Cell, measures: dict[str, Any]) -> None:
        """Write a finished cell."""
        scratch = self._path(cell).with_suffix(f".{os.getpid()}")
        try:
            with scratch.open("w", encoding="utf-8") as file:
                json.dump({"cell": asdict(cell), "measures": finite(measures)}, file, indent=1, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self._path(cell))
        finally:
            scratch.unlink(missing_ok=True)
