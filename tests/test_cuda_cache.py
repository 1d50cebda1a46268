"""Kernels for a GPU are compiled once, and found on disk by the next process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_process import compiled

ROOT = Path(__file__).parents[1]


def process(root: Path, *architecture: str) -> tuple[list[bool], list[str], str]:
    """Which kernels were compiled, their code, and what was said."""
    made = compiled(root / "tests" / "cuda_cache.py", *architecture)
    assert made.returncode == 0, made.stderr
    rows = [line.split() for line in made.stdout.splitlines()]
    return [int(count) > 0 for count, *_ in rows], [code for *_, code in rows], made.stderr


def test_a_second_process_finds_them_and_another_gpu_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    first, code, said = process(ROOT, "9", "0")
    assert first == [True, True]
    found = f"the next run finds them in {tmp_path / 'cache'}"
    assert said.splitlines() == [f"minigrad: kernels are being compiled for this machine; {found}"]
    assert process(ROOT, "9", "0") == ([False, False], code, "")
    another, older, _ = process(ROOT, "8", "0")
    assert another == [True, True] and not set(older) & set(code)

    shutil.copytree(ROOT / "minigrad", tmp_path / "minigrad")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    formulas = tmp_path / "minigrad" / "kernels" / "scalar.py"
    text = formulas.read_text()
    old = "return x if x > type(x)(0) or x != x else type(x)(0)"
    assert text.count(old) == 1
    formulas.write_text(text.replace(old, old.replace("else type(x)(0)", "else type(x)(7)")))
    edited, changed, _ = process(tmp_path, "9", "0")
    assert edited == [True, True] and changed[0] == code[0] and changed[1] != code[1]
