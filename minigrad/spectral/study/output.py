"""Writing the report and its numbers: all of the files or none, each whole."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigrad._errors import UsageError
from minigrad._interrupt import deferred
from minigrad.spectral.study.tables import Row, finite

#: The file to open first. It is moved into place last, so that it never stands beside older numbers.
REPORT = "report.html"


def prepare(out: str, part: str = "study") -> Path:
    """The output folder, made if need be; UsageError if nothing can be written there."""
    if not out:  # what `--out "$UNSET"` gives: the report's files would be strewn over the folder that one is in
        raise UsageError(f"{part} --out: expected the name of a folder; got ''. Use . for this one.")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{part} --out: expected a folder that can be written; {folder}: {error.strerror}. Name another one."
        ) from None
    return folder


def write(
    folder: Path, report: str, about: Mapping[str, Any], tables: Mapping[str, list[Row]], part: str = "study"
) -> list[Path]:
    """Write report.html, results.json and one CSV per table; on an error the folder is left as it was.

    A table without rows has no file, and none that an earlier run has left.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
        try:
            for name, rows in tables.items():
                if rows:
                    _csv(scratch / f"{name}.csv", rows)
            (scratch / "results.json").write_text(
                json.dumps(finite({**about, **tables}), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
            )
            (scratch / REPORT).write_text(report, encoding="utf-8")
            names = sorted((path.name for path in scratch.iterdir()), key=lambda name: name == REPORT)
            with deferred():
                for name in [name for name, rows in tables.items() if not rows]:
                    (folder / f"{name}.csv").unlink(missing_ok=True)
                for name in names:
                    os.replace(scratch / name, folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"{part} --out: cannot write to {folder}: {error.strerror}. Make room or name another one."
        ) from None
    return [folder / name for name in names]


def _csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
