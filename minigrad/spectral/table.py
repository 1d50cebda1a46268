"""Table: rows that read as dicts, and print as text or HTML."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, overload

WIDTH = 100
GAP = "  "
MISSING = "—"

Row = dict[str, Any]

STYLE = (
    "<style>.mg-table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    ".mg-table caption{caption-side:top;text-align:left;font-weight:600;padding:.3em .6em}"
    ".mg-table th,.mg-table td{padding:.2em .6em;text-align:right;vertical-align:top}"
    ".mg-table tbody td:not(.mg-text){white-space:nowrap}.mg-table .mg-text{text-align:left}"
    ".mg-table thead th{border-bottom:1px solid;vertical-align:bottom}"
    ".mg-table tfoot td{border-top:1px solid;text-align:left;font-size:90%;max-width:50em}</style>"
)


@dataclass(frozen=True)
class Column:
    """What a table shows of its rows: the value under `key`, or whatever `format` makes of the whole row.

    `format`: a format specification, or a function of the row. `text`: aligned to the left, and wrapped if need be.
    `once`: left out where the row above has the same.
    """

    key: str
    heading: str
    format: str | Callable[[Mapping[str, Any]], str] = ""
    text: bool = False
    once: bool = False

    def show(self, row: Mapping[str, Any]) -> str:
        """The cell of a row; "—" for None and NaN."""
        if callable(self.format):
            return self.format(row)
        value = row.get(self.key)
        return MISSING if value is None or value != value else format(value, self.format)


#: Which weight a row is about, under the name that it has in the state dict of a model without normalization.
WEIGHT = Column("layer", "weight", lambda row: f"{row['layer']}.{row['parameter']}".strip("."), text=True, once=True)


class Table(Sequence[Row]):
    """A sequence of rows, each a dict; printed, the columns chosen of them, with a title and a footnote.

    As text it is at most 100 characters wide, if wrapping the columns of text can make it so; notebooks show HTML.

    >>> from minigrad.spectral.table import Column, Table
    >>> table = Table([{"layer": "0", "sigma": 2.0}, {"layer": "2", "sigma": None}],
    ...               [Column("layer", "layer", text=True), Column("sigma", "σ₁", ".3f")], "Two layers")
    >>> print(table)
    Two layers
    layer     σ₁
    ------------
    0      2.000
    2          —
    >>> table[0]["sigma"], len(table)
    (2.0, 2)
    """

    def __init__(self, rows: Iterable[Row], columns: Iterable[Column], title: str = "", footnote: str = ""):
        self.rows = list(rows)
        self.columns = list(columns)
        self.title = title
        self.footnote = footnote

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Row | Table:
        if isinstance(index, slice):
            return Table(self.rows[index], self.columns, self.title, self.footnote)
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def _cells(self) -> list[list[str]]:
        shown = [[column.show(row) for column in self.columns] for row in self.rows]
        return [
            [
                "" if column.once and above and above[: i + 1] == cells[: i + 1] else cells[i]
                for i, column in enumerate(self.columns)
            ]
            for above, cells in zip([[], *shown], shown, strict=False)
        ]

    def __str__(self) -> str:
        cells = self._cells()
        widths = self._widths(cells)
        headings = self._lines([column.heading for column in self.columns], widths, bottom=True)
        body = [line for row in cells for line in self._lines(row, widths)]
        title, footnote = (wrap(text, WIDTH) if text else [] for text in (self.title, self.footnote))
        rule = "-" * (sum(widths) + len(GAP) * (len(widths) - 1))
        return "\n".join([*title, *headings, rule, *body, *([rule, *footnote] if footnote else [])])

    __repr__ = __str__

    def _widths(self, cells: list[list[str]]) -> list[int]:
        """As wide as the cells and the words of the heading; the widest columns of text give way until all fits."""
        texts = [[*column.heading.split(" "), *(row[i] for row in cells)] for i, column in enumerate(self.columns)]
        widths = [max(map(width, column)) for column in texts]
        words = [max(width(word) for text in column for word in text.split(" ")) for column in texts]
        while sum(widths) + len(GAP) * (len(widths) - 1) > WIDTH:
            widest = max(
                (i for i, column in enumerate(self.columns) if column.text and widths[i] > words[i]),
                key=widths.__getitem__,
                default=None,
            )
            if widest is None:
                break
            widths[widest] -= 1
        return widths

    def _lines(self, row: list[str], widths: list[int], bottom: bool = False) -> list[str]:
        parts = [wrap(text, size) for text, size in zip(row, widths, strict=True)]
        height = max(map(len, parts))
        parts = [[""] * (height - len(p)) + p if bottom else p + [""] * (height - len(p)) for p in parts]
        return [
            GAP.join(
                text + " " * (size - width(text)) if column.text else " " * (size - width(text)) + text
                for text, size, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in zip(*parts, strict=True)
        ]

    def _repr_html_(self) -> str:
        def line(tag: str, texts: Iterable[str]) -> str:
            kinds = (' class="mg-text"' if column.text else "" for column in self.columns)
            made = (f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
            return f"<tr>{''.join(made)}</tr>"

        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        note = f'<tr><td colspan="{len(self.columns)}">{escape(self.footnote)}</td></tr>' if self.footnote else ""
        return (
            f'{STYLE}<table class="mg-table">{caption}'
            f"<thead>{line('th', (column.heading for column in self.columns))}</thead>"
            f"<tbody>{''.join(line('td', row) for row in self._cells())}</tbody>"
            f"<tfoot>{note}</tfoot></table>"
        )


def width(text: str) -> int:
    """How many places the text takes: the bar of W̄ stands above its W."""
    return sum(not unicodedata.combining(c) for c in text)


def wrap(text: str, size: int) -> list[str]:
    """Lines of at most `size` places, broken at spaces; a longer word has a line of its own."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width(lines[-1]) + 1 + width(word) > size:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines
