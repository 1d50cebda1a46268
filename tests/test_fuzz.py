"""The fuzzer of `python -m tests.fuzz`: finds nothing in a few seconds, and finds what is planted."""

from __future__ import annotations

import re

import pytest
from fresh import ROOT, python, run

pytest.importorskip("torch")

FAULTS = {
    "a value": "ops._softplus.forward = lambda k, x, *, parameters: k.softplus(x, *parameters) + 1e-7",
    "a first derivative": "ops._softplus.vjp(x=lambda g, x, parameters: g * ops.sigmoid(x) * 1.0001)",
    "a second derivative": "ops._tanh.vjp(x=lambda g, out, parameters: g * (1 - out * out).detach())",
}


def test_a_short_run_finds_nothing() -> None:
    said = run("-m", "tests.fuzz", "--minutes", "1", "--programs", "40", "--seed", "0")
    assert re.fullmatch(r"no difference in 40 programs of \d+ ops, seed 0", said.splitlines()[-1])


PLANTED = """
import contextlib, io
from minigrad.ops import activation as ops
FAULT
from tests import fuzz
said = io.StringIO()
with contextlib.redirect_stdout(said):
    assert fuzz.main(["--minutes", "1", "--seed", "0"]) == 1
program = said.getvalue()[said.getvalue().index("from tests.fuzz import compare") :]
try:
    exec(program, {})
except AssertionError as error:
    assert "off by" in str(error)
    print(program)
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_laid_bare(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = python(PLANTED.replace("FAULT", FAULTS[fault]))
    assert len(re.findall(r"^    v\d+ = ", program, re.M)) == 1, "it could be smaller"
    monkeypatch.syspath_prepend(ROOT)
    exec(program, {})  # agrees without the fault
