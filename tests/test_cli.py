"""The command line: exit codes, one-line errors without a traceback, and what `info` and `gradcheck` print."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from fresh import complaints

import minigrad as mg
from minigrad import _checks, _info, cli
from minigrad._cases import Case
from minigrad._errors import UsageError
from minigrad.ops.conventions import CONVENTIONS

NO_CUDA = pytest.mark.skipif(mg.cuda.is_available(), reason="needs a machine without CUDA")


def process(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, timeout=120, check=False)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, which must fail as bad usage with one line on stderr, and return that line."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minigrad: error: ") and err.count("\n") == 1
    return err


# How parts are found, and how they end -------------------------------------------------------------------------------


def test_python_dash_m_runs_the_command() -> None:
    done = process("-m", "minigrad", "--version")
    assert (done.returncode, done.stdout) == (0, f"minigrad {mg.__version__}\n")


@pytest.mark.parametrize("part", cli.PARTS)
def test_every_part_explains_itself(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([part, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert f"usage: minigrad {part}" in out and "--device" in out and "--seed" in out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--nonsense"], ["info", "--seed", "x"]])
def test_what_argparse_refuses_is_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("part", cli.PARTS)
def test_seed_and_device_are_checked_before_a_part_runs(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seed: expected a number in [0, 2**64); got -1" in error_of([part, "--seed", "-1"], capsys)
    assert "expected a device out of 'cpu', 'cuda'; got 'tpu'" in error_of([part, "--device", "tpu"], capsys)


@NO_CUDA
@pytest.mark.parametrize("part", cli.PARTS)
def test_cuda_where_there_is_none(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cuda" in error_of([part, "--device", "cuda"], capsys)


def part_that(monkeypatch: pytest.MonkeyPatch, ending: BaseException | int) -> None:
    """Let `info` be a part that ends like this."""
    part = types.ModuleType("part")

    def run(arguments: object) -> int:
        if isinstance(ending, BaseException):
            raise ending
        return ending

    part.run = run
    part.add_arguments = lambda parser: parser.set_defaults(device="cpu", seed=0)
    monkeypatch.setitem(sys.modules, "part", part)
    monkeypatch.setitem(cli.PARTS, "info", ("part", "a part"))


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (UsageError("no such file"), 2, "minigrad: error: no such file\n"),
        (KeyboardInterrupt(), 130, "\nminigrad: interrupted\n"),
    ],
)
def test_exit_codes(
    ending: BaseException | int,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    part_that(monkeypatch, ending)
    assert cli.main(["info"]) == code
    assert capsys.readouterr().err == message


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    part_that(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])


def test_a_pipe_whose_reader_has_left() -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "minigrad", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert complaints(running.stderr.read().decode()) == ""


def test_an_output_without_the_letters_of_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = process("-m", "minigrad", "libraries")
    assert (done.returncode, complaints(done.stderr)) == (0, "") and r"\u2202L/\u2202W" in done.stdout


# info ----------------------------------------------------------------------------------------------------------------


def test_info_prints_aligned_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path))
    (tmp_path / "a.kernel").write_bytes(bytes(3 * 2**20))
    assert cli.main(["info", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {line[:14].strip(): line[14:] for line in lines}
    assert facts["minigrad"] == mg.__version__ and facts["NumPy"] == f"{np.__version__}, large ufuncs on all threads"
    assert {"Python", "Numba", "BLAS", "processor", "vectors", "threads", "memory", "CUDA"} <= set(facts)
    assert facts["kernel cache"] == f"{tmp_path} (1 files, 3.0 MiB)"
    first = mg.rand(3, dtype=mg.float64, generator=mg.Generator(3)).tolist()
    assert facts["random"] == f"seed 3 begins {' '.join(f'{x:.8f}' for x in first)}"


def test_info_says_that_no_kernels_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "cannot be written" in _info.gather(0)["kernel cache"]
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path / "later" / "cache"))
    assert "cannot be written" not in _info.gather(0)["kernel cache"] and not (tmp_path / "later").exists()


def test_info_needs_no_extra_and_no_other_part() -> None:
    code = "import sys; from minigrad.cli import main; main(['info']); print(*sys.modules, file=sys.stderr)"
    done = process("-c", code)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert not {"rich", "matplotlib", "sklearn", "jinja2", "minigrad.spectral.study", "minigrad._checks"} & loaded


# gradcheck -----------------------------------------------------------------------------------------------------------


def test_gradcheck_passes_over_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gradcheck"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    checks = [line for line in lines if " ± " in line]
    assert lines[-1] == f"{len(checks)} passed, 0 failed"
    for name, row in CONVENTIONS.items():
        mine = [line for line in checks if line.startswith(f"{name}, against ")]
        verdict = f"meets {row.oracle}" if row.oracle else "meets none, as known"
        assert len(mine) == len(_checks.WEIGHTS) and all(line.endswith(verdict) for line in mine)


def wrong(x: mg.Tensor) -> mg.Tensor:
    return x * x.detach()


def random(x: mg.Tensor) -> mg.Tensor:
    return x + mg.randn(3, dtype=mg.float64)


def test_gradcheck_fails_on_a_wrong_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def layers(seed: int, device: str) -> list[Case]:
        x = mg.tensor([0.5, -1.0, 2.0], dtype=mg.float64, requires_grad=True)
        return [Case("right", mg.exp, [x]), Case("wrong", wrong, [x]), Case("random", random, [x])]

    monkeypatch.setattr(_checks, "layers", layers)
    monkeypatch.setattr(_checks, "WEIGHTS", {})
    assert cli.main(["gradcheck"]) == 1
    right, half, drawn, why, last = capsys.readouterr().out.splitlines()[3:]
    assert right.startswith("right") and right.endswith("agrees")
    assert half.startswith("wrong") and "5.0e-01 ± " in half and half.endswith("WRONG")
    assert drawn.startswith("random") and "refused" in drawn and "not deterministic" in why
    assert last == "1 passed, 2 failed"


@pytest.mark.parametrize(("claim", "verdict"), [("svd", "FAILS svd"), ("live", "FAILS live"), (None, "MEETS frozen")])
def test_a_convention_with_a_false_claim_fails(
    claim: str | None, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONVENTIONS, "fixed_uv", CONVENTIONS["fixed_uv"]._replace(oracle=claim))
    row = _checks.convention("fixed_uv", next(iter(_checks.WEIGHTS)), 0, "cpu")
    assert not row.passed and row.verdict == verdict


@pytest.mark.parametrize("installed", [True, False])
def test_on_a_terminal_a_progress_bar_if_rich_is_there(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if installed:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(_checks, "layers", lambda seed, device: [])
    monkeypatch.setattr(_checks, "WEIGHTS", {"(5, 4)": ((5, 4), 0)})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(["gradcheck"]) == 0
    out = capsys.readouterr().out
    assert "meets frozen" in out and out.endswith("7 passed, 0 failed\n")


# study ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--conventions", "fixed_uv,no_such"], "there is no 'no_such'; choose among fixed_uv"),
        (["--steps", "-5"], "expected at least 1 training step; got -5"),
        (["--model", "transformer"], "expected one of mlp, conv; got 'transformer'"),
        (["--data", "no-such-file.npz"], "no-such-file.npz"),
    ],
)
def test_bad_usage_of_the_study(
    option: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    assert expected in error_of(["study", *option, "--out", str(tmp_path / "report")], capsys)
    assert list(tmp_path.iterdir()) == []  # no half-written report


@pytest.mark.parametrize("package", ["matplotlib", "rich", "jinja2", "sklearn"])
def test_a_missing_extra_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert 'pip install "minigrad[study]"' in error_of(["study"], capsys)
