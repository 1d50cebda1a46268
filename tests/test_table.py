"""The tables of `mg.spectral`: rows that read as dicts, text of a bounded width, HTML that is whole."""

import math
from html.parser import HTMLParser

import pytest

from minigrad.spectral.table import Column, Table, width, wrap


def made(rows=None, **options):
    rows = rows or [{"name": "a", "x": 1.5, "n": 3}, {"name": "a", "x": math.nan, "n": None}]
    columns = [Column("name", "name", text=True, once=True), Column("x", "σ̂ of W̄", ".3f"), Column("n", "count")]
    return Table(rows, columns, **options)


def test_rows_are_dicts_in_a_sequence():
    table = made(title="T")
    assert len(table) == 2 and table[0]["x"] == 1.5 and table[-1]["n"] is None
    assert [row["name"] for row in table] == ["a", "a"]
    part = table[1:]
    assert isinstance(part, Table) and len(part) == 1 and str(part).startswith("T\n")
    with pytest.raises(IndexError):
        table[2]


def test_text_is_aligned_by_places_and_not_by_code_points():
    assert str(made(title="Title", footnote="Note.")).split("\n") == [
        "Title",
        "       σ̂ of",
        "name      W̄  count",
        "------------------",
        "a     1.500      3",
        "          —      —",
        "------------------",
        "Note.",
    ]
    assert repr(made()) == str(made())
    assert width("W̄ = W/σ̂") == 7


def test_a_format_may_read_the_whole_row():
    table = Table([{"a": 2, "b": 3}], [Column("a", "product", lambda row: str(row["a"] * row["b"]))])
    assert str(table).endswith("6")


def test_what_repeats_is_left_out_only_below_the_same():
    rows = [{"a": a, "b": b} for a, b in [(1, 1), (1, 1), (2, 1), (1, 2)]]
    cells = Table(rows, [Column("a", "a", once=True), Column("b", "b", once=True)])._cells()
    assert cells == [["1", "1"], ["", ""], ["2", "1"], ["1", "2"]]


def test_a_wide_table_wraps_its_text_into_a_hundred_columns():
    words = "one two three four five six seven eight nine ten " * 3
    columns = [Column("a", "a", text=True), Column("b", "b", text=True), Column("x", "number", ".6f")]
    table = Table([{"a": words.strip(), "b": "short", "x": math.pi}] * 2, columns, "A title " * 20, "A footnote " * 20)
    lines = str(table).split("\n")
    assert max(map(width, lines)) == 100
    assert "  3.141593" in str(table) and "short" in str(table)
    assert "".join(str(table).split()).count("ten") == 6


def test_what_cannot_be_wrapped_is_wide_rather_than_broken():
    long = "x" * 120
    table = Table([{"a": long, "b": "c d"}], [Column("a", "a", text=True), Column("b", "b", text=True)])
    assert str(table).split("\n")[-2:] == [f"{long}  c", " " * 122 + "d"]
    assert wrap("aa bbbb c", 4) == ["aa", "bbbb", "c"]
    assert wrap("", 4) == [""]


def test_html_is_escaped_and_whole():
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.texts = [], []

        def handle_starttag(self, tag, attrs):
            assert not {"src", "href"} & {key for key, _ in attrs}
            self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            self.texts.append((self.open[-1], data))

    rows = [{"name": "<b>&", "x": 1.0, "n": None}]
    reader = Reader()
    reader.feed(made(rows, title="<T>", footnote='"F" < 1')._repr_html_())
    assert not reader.open
    found = [(tag, text) for tag, text in reader.texts if tag != "style"]
    assert found == [
        ("caption", "<T>"), ("th", "name"), ("th", "σ̂ of W̄"), ("th", "count"),
        ("td", "<b>&"), ("td", "1.000"), ("td", "—"), ("td", '"F" < 1'),
    ]  # fmt: skip


def test_no_rows():
    assert str(Table([], [Column("a", "heading")])) == "heading\n-------"
