"""The finished cells of a sweep, one file each: written whole or not at all, found again by the cell's settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigrad._files import write
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
        kept = json.dumps({"cell": asdict(cell), "measures": finite(measures)}, indent=1, ensure_ascii=False)
        write(self._path(cell), kept.encode())
