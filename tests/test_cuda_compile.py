"""The compile gate over all CUDA kernels, in a process of its own; that nothing gets past it; and what its PTX does.

The tests of any file run with that PTX in the place of a GPU: MINIGRAD_EMULATE=1 python -m pytest --device cuda tests/…
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from cuda_process import compiled, emulated

GATE = Path(__file__).with_name("cuda_gate.py")


def test_every_kernel_compiles_without_spills_or_stray_float64() -> None:
    made = compiled(GATE)
    rows = [line.split("\t") for line in made.stdout.splitlines()]
    assert not [row for row in rows if row[-1]], "\n".join(" ".join(row) for row in rows if row[-1])
    assert made.returncode == 0, made.stderr
    assert len(rows) > 300
    assert set(Counter(row[2] for row in rows)) == {"sm_80", "sm_90"}
    assert len({tuple(row[:3]) for row in rows}) == len(rows)
    print(made.stderr or f"{len(rows)} variants, most registers: {max(int(row[3]) for row in rows)}")


def test_what_kernels_are_compiled_to_computes_what_it_should(device: str) -> None:
    """Against NumPy, with the tiles, blocks and addresses of a GPU; the gate has left the PTX on disk."""
    names = ["ops", "cuda_spectral", "cuda_quads", "cuda_geometry", "cuda_turns", "cuda_instructions"]
    files = [*(f"test_{name}.py" for name in names), "test_pool.py::test_blocks_are_the_windows_that_they_stand_for"]
    assert emulated([*files, "-k", "not test_ops or values and float32"], device) > 475


def test_without_an_assembler_the_ptx_is_looked_at_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "ptxas").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    made = compiled(GATE, "array._fill")
    assert made.returncode == 0
    assert {tuple(line.split("\t")[3:]) for line in made.stdout.splitlines()} == {("?", "?", "?", "")}
    assert "ptxas is not installed" in made.stderr


BAD = '''
from minigrad.kernels.cuda.launch import kernel

@kernel("f4[] f4[]")
def _creeping(out, x):
    out[0] = x[0] * 0.1

@kernel("f4[]")
def _wrong(out):
    out.append(1)

@kernel("f4[]")
def _fine(out):
    out[0] = out[1]

@kernel("i8[] f2[]")
def _rounding(out, x):
    out[0] = x[0]

@kernel("T[]", name="quads", T=("f4", "f8"))
def _singly(out):
    out[0] = out[1]
'''


def test_the_gate_sees_what_is_wrong_in_a_file_that_nobody_imports(tmp_path: Path) -> None:
    shutil.copytree(GATE.parents[1] / "minigrad", tmp_path / "minigrad")
    shutil.copytree(GATE.parent, tmp_path / "tests")
    (tmp_path / "minigrad/kernels/cuda/bad.py").write_text(BAD)
    made = compiled(tmp_path / "tests" / GATE.name, "bad.")
    assert made.returncode == 1
    complaints = {row[0]: row[-1] for row in (line.split("\t") for line in made.stdout.splitlines())}
    assert complaints["bad._fine"] == "not in cuda_registers.tsv: run tests/cuda_gate.py --write"
    assert complaints["bad._creeping"] == "float64 instructions in a kernel without float64"
    assert complaints["bad._rounding"].startswith("a float16 becomes an integer by rounding")
    assert complaints["bad._wrong"].startswith("does not compile")
    assert complaints["bad._singly.quads"] == "0 times ld.global.v2.f64; expected 4"


def test_the_gate_sees_what_has_grown_and_what_is_gone() -> None:
    """A table that promises less than there is, and a kernel that is not there."""
    sys.path.insert(0, str(GATE.parent))
    gate = importlib.import_module(GATE.stem)
    row = gate.Row("k", "float32", "sm_90", "40", "0", "1024")
    for before, complaint in [
        ({"registers": "36"}, ""), ({"registers": "35"}, "40 registers, where cuda_registers.tsv has 35"),
        ({"shared": "512"}, "1024 bytes of shared memory, where cuda_registers.tsv has 512"),
    ]:  # fmt: skip
        assert gate.compared(row, {row[:3]: row._replace(**before)}).complaint == complaint
    assert gate.compared(row._replace(registers="?", shared="?"), {row[:3]: row}).complaint == ""
    assert gate.gone([row], {row[:3]: row, ("other", "", "sm_90"): row}) == [("other", "", "sm_90")]
