"""The benchmarks: what the timer makes of a clock, who is refused, and that every case runs, in its smallest size."""

from __future__ import annotations

import doctest
import importlib.util
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fresh import python

import minigrad as mg
from benchmarks import __main__ as command, apart, cases, cuda, processes, report, suite, timer
from benchmarks.eager import Minigrad
from benchmarks.timer import Pace, Spread, interleave, ratio, wall_clock
from benchmarks.work import LeftOut, Running

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
TABLE = cases.table(quick=True)
NAMES = [f"{case.group}: {case.name}" for case in TABLE]
WITH_TORCH = importlib.util.find_spec("torch") is not None
NO_CUDA = pytest.mark.skipif(mg.cuda.is_available(), reason="needs a machine without CUDA")


@pytest.mark.parametrize("module", [cases, report, timer], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    done = doctest.testmod(module)
    assert done.attempted and not done.failed


def test_the_readme_has_the_figures_of_the_last_run():
    found = json.loads((command.RESULTS / "cpu.json").read_text("utf-8"))
    assert report.overview(found) in (command.RESULTS.parents[1] / "README.md").read_text("utf-8")


# The timer ------------------------------------------------------------------------------------------------------------


class Clock:
    """A stopwatch without a clock: each side takes as long as it says, and what was called is kept."""

    def __init__(self, **seconds: list[float]):
        self.seconds, self.calls = seconds, []
        self.sides = {name: lambda name=name: name for name in seconds}

    def __call__(self, call, times):
        name = call()
        left = self.seconds[name]
        self.calls.append((name, times))
        return times * (left.pop(0) if len(left) > 1 else left[0])


def instant(call, times):
    """A stopwatch that calls nobody."""
    return float(times)


def test_medians_and_quartiles():
    assert Spread.of((5.0, 1.0, 3.0, 2.0, 4.0)) == Spread(3.0, 2.0, 4.0)
    assert Spread.of((1.0, 2.0)) == Spread(1.5, 1.25, 1.75)
    assert Spread.of((7.0,)) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds():
    found = ratio((30.0, 20.0, 90.0), (10.0, 20.0, 30.0))  # round by round 3, 1, 3
    assert found == Spread(30.0 / 20.0, 2.0, 3.0)


def test_sides_take_turns_and_settle_first():
    clock = Clock(a=[1.0], b=[0.25])
    found = interleave(clock.sides, Pace(rounds=3, sample=1.0, settle=0.5, budget=math.inf), clock)
    assert found == {"a": (1.0, 1.0, 1.0), "b": (0.25, 0.25, 0.25)}
    begin = [("a", 1), ("b", 1), ("b", 4)]  # how many calls last a second
    a, b = [("a", 1), ("a", 1)], [("b", 1), ("b", 1), ("b", 4)]  # half a second that does not count, and a sample
    assert clock.calls == begin + (a + b) + (b + a) + (a + b)


def test_seconds_are_per_call_and_settling_does_not_count():
    clock = Clock(a=[2.0, 9.0, 3.0, 9.0, 5.0, 9.0, 7.0])  # the length of a sample; then settle, sample, …
    pace = Pace(rounds=3, sample=1.0, settle=1.0, budget=math.inf)
    assert interleave(clock.sides, pace, clock) == {"a": (3.0, 5.0, 7.0)}


def test_rounds_end_with_the_budget_but_not_before_the_third():
    for budget, rounds in ((0.0, 3), (9.0, 5), (1e9, 20)):
        clock = Clock(a=[1.0])
        found = interleave(clock.sides, Pace(rounds=20, sample=1.0, settle=0.1, budget=budget), clock)
        assert len(found["a"]) == rounds


def test_the_clock_on_the_wall():
    calls = []
    assert 0 <= wall_clock(lambda: calls.append(0), 5) < 5 and len(calls) == 5


# The comparison -------------------------------------------------------------------------------------------------------


class Altered:
    """minigrad under another name, whose results are altered before they are compared."""

    version = "0"

    def __init__(self, alter, name="peer"):
        self.alter, self.name, self.timed = alter, name, False

    def start(self, case):
        running = Minigrad().start(case)
        return Running(running.step, lambda made: self.alter(running.results(made)))

    def synchronize(self): ...


def case_of(name):
    return next(case for case in TABLE if case.name == name)


MATRIX = "16×16"
FAST = Pace(rounds=3, sample=1e-4, settle=0.0, budget=0.0)


def test_who_agrees_is_timed():
    found = suite.one(case_of(MATRIX), [Minigrad(), Altered(lambda x: x)], FAST)
    assert not found.failure and found.differences == {"peer": 0.0}
    assert {name: len(taken) for name, taken in found.seconds.items()} == {"minigrad": 3, "peer": 3}


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda x: x | {"output": x["output"] * np.float32(1.001)}, "output of peer and of minigrad differ by 1.0e-03"),
        (lambda x: x | {"output": x["output"].T[:8]}, "differ by inf"),
        (lambda x: x | {"output": x["output"].astype(np.float64)}, "differ by inf"),
        (lambda x: x | {"output": x["output"] * np.float32(np.nan)}, "differ by inf"),
        (lambda x: {k: v for k, v in x.items() if k != "output"}, "only one of minigrad and peer computed output"),
    ],
)
def test_who_computed_something_else_is_refused(alter, said):
    stopwatch = Clock(none=[0.0])
    found = suite.one(case_of(MATRIX), [Minigrad(), Altered(alter)], FAST, stopwatch)
    assert said in found.failure and MATRIX in found.failure
    assert not found.seconds and not stopwatch.calls


def test_who_cannot_is_left_out_and_says_why():
    class Unable(Altered):
        def start(self, case):
            raise LeftOut("no such thing")

    case = next(case for case in TABLE if "torch.compile" in case.without)
    sides = [Minigrad(), Unable(None, "peer"), Altered(lambda x: x, "torch.compile")]
    found = suite.one(case, sides, FAST)
    assert found.left_out == {"peer": "no such thing", "torch.compile": case.without["torch.compile"]}
    assert set(found.seconds) == {"minigrad"}


def test_who_fails_is_left_out_and_without_minigrad_nobody_is_timed():
    class Broken(Altered):
        def start(self, case):
            raise ZeroDivisionError("no\nmore")

    found = suite.one(case_of(MATRIX), [Minigrad(), Broken(None)], FAST)
    assert found.left_out == {"peer": "failed with ZeroDivisionError: no"} and set(found.seconds) == {"minigrad"}
    found = suite.one(case_of(MATRIX), [Broken(None, "minigrad"), Altered(lambda x: x)], FAST)
    assert found.failure == "16×16: minigrad failed with ZeroDivisionError: no" and not found.seconds


# A process for each --------------------------------------------------------------------------------------------------


def test_a_side_in_a_process_of_its_own():
    side = apart.Apart("NumPy", quick=True)
    case = case_of("16×16×16")
    running = side.start(case)
    local = suite.made("NumPy").start(case)
    np.testing.assert_array_equal(running.results(running.step())["product"], local.results(local.step())["product"])
    assert 0 < apart.their_clocks(running.step, 1000) < 10 and side.version == np.__version__
    with pytest.raises(LeftOut, match="has no derivatives"):
        side.start(case_of(MATRIX))
    with pytest.raises(Exception, match="no such case") as raised:
        side.ask("start", "matmul", "no such case")
    assert type(raised.value).__name__ == "KeyError"
    running = side.start(case)  # it goes on
    assert running.results(running.step()).keys() == {"product"}
    side.process.kill()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the process of NumPy has ended, with exit code -9"):
            running.step()


SERVED = """
import multiprocessing, os
from benchmarks import apart
ours, theirs = multiprocessing.Pipe()
ours.close()
apart._serve(theirs, os.environ["SIDE"], True)
from minigrad.kernels.cpu import _memory
print("MINIGRAD_REUSE_MEMORY=0" in _memory.reuse())
"""


def test_peers_are_timed_without_minigrads_memory_and_minigrad_with_it():
    assert [python(SERVED, SIDE=name) for name in ("NumPy", "minigrad")] == ["True", "False"]


# The cases ------------------------------------------------------------------------------------------------------------


def test_the_table_has_what_was_asked_for():
    full = {f"{case.group}: {case.name}" for case in cases.table()}
    assert len(full) == len(cases.table())
    for shape in ("64×64", "128×1024", "1024×1024", "512×2304", "512×4608", "4096×4096"):
        assert f"SN node: {shape}" in full
    assert {"training steps: SN-MLP 64-128-128-1, batch 64", "training steps: SNDCGAN D step"} <= full
    assert sum(name.startswith("convolutions, float64") for name in full) == 7
    gpu = {f"{case.group}: {case.name}" for case in cases.table(gpu=True)}
    assert {"SN node: 16384×16384", "matmul: 8192×8192×8192"} <= gpu - full


@pytest.mark.parametrize("case", TABLE, ids=NAMES)
@pytest.mark.skipif(WITH_TORCH, reason="the next test has them, and torch's results beside them")
def test_a_case_with_minigrad_alone(case):
    work = Minigrad().start(case)
    found = work.results(work.step())
    assert found and all(array.size and np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("case", TABLE, ids=NAMES)
def test_a_case_with_torch(case):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other wherever a core is taken
    try:
        found = suite.one(case, [Minigrad(), suite.made("torch")], FAST, instant)
    finally:
        torch.set_num_threads(threads)
    assert not found.failure and found.seconds.keys() == {"minigrad", "torch"}
    assert found.differences["torch"] <= case.tolerance


def test_some_cases_with_jax():
    pytest.importorskip("jax")
    side = importlib.import_module("benchmarks.with_jax").JAX()
    for name in (MATRIX, "SN-CNN on 8×8, batch 8"):
        found = suite.one(case_of(name), [Minigrad(), side], FAST)
        assert not found.failure and found.seconds.keys() == {"minigrad", "JAX jit"}


def test_sides_that_are_not_installed_say_so(monkeypatch):
    monkeypatch.setattr(apart.importlib.util, "find_spec", lambda name: None if name in ("torch", "jax") else name)
    monkeypatch.setattr(apart, "Apart", lambda name, quick: name)
    there, missing = apart.installed(suite.SIDES, True)
    assert there == ["minigrad", "minigrad, captured", "NumPy"]
    assert set(missing) == {"torch", "torch.compile", "JAX jit"} and "minigrad[peers]" in missing["torch"]


# The commands ---------------------------------------------------------------------------------------------------------

FIELDS = {
    "date", "machine", "versions", "missing", "quick", "copy bandwidth", "share of normalization", "cases", "starts",
}  # fmt: skip


def test_the_command_prints_writes_and_draws(tmp_path, capsys):
    path = tmp_path / "new" / "found.json"
    assert command.main(["--quick", "--only", "matmul", "--peers", "NumPy", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "× NumPy" in said and "16×16×16" in said and "geometric mean" in said and str(path) in said
    found = json.loads(path.read_text())
    assert set(found) == FIELDS and found["quick"] is True
    assert found["versions"]["minigrad"] == mg.__version__ and found["versions"]["numpy"] == np.__version__
    assert {"platform", "processor", "cores", "threads", "memory"} <= set(found["machine"])
    row = found["cases"][0]
    assert row["name"] == "16×16×16" and row["differences"]["NumPy"] <= row["tolerance"] and row["failure"] == ""
    taken = {name: side["median"] for name, side in row["seconds"].items()}
    assert row["ratios"]["minigrad"]["NumPy"]["median"] == pytest.approx(taken["NumPy"] / taken["minigrad"])
    for side in row["seconds"].values():
        assert len(side["rounds"]) == 3 and side["low"] <= side["median"] <= side["high"]
    assert (path.parent / "found-ratios.png").read_bytes().startswith(b"\x89PNG")


def test_a_refused_case_fails_the_command(tmp_path, monkeypatch, capsys):
    wrong = Altered(lambda x: {name: array + np.float32(1) for name, array in x.items()})
    monkeypatch.setattr(apart, "installed", lambda *_: ([Minigrad(), wrong], {"torch": "not installed"}))
    path = tmp_path / "found.json"
    assert command.main(["--quick", "--only", "SN node: 16", "--json", str(path)]) == 1
    said = capsys.readouterr().out
    assert "refused SN node, 16×16: " in said and "torch: not installed" in said
    (row,) = json.loads(path.read_text())["cases"]
    assert "differ by" in row["failure"] and row["seconds"] == {}


def test_what_is_not_a_whole_run_overwrites_none():
    def where(*options):
        return command.destination(command.parser("benchmarks", "").parse_args(options), "cpu")

    assert where() == command.RESULTS / "cpu.json"
    assert where("--quick") == where("--only", "SN") == command.RESULTS / "partial" / "cpu.json"
    assert where("--quick", "--json", "x.json") == Path("x.json")


@pytest.mark.parametrize("options", [["--only", "no such case"], ["--peers", "tf"], ["--threads", "0"]])
def test_bad_usage(options, capsys):
    try:
        code = command.main(["--quick", *options])
    except SystemExit as left:
        code = left.code
    assert code == 2 and capsys.readouterr().err


def test_a_start_with_an_empty_and_a_filled_cache():
    found = processes.starts("minigrad", "SN-MLP 8-16-16-1, batch 8", quick=True)
    assert found["empty cache"] > found["filled cache"] > found["second step"] > 0 and found["import"] > 0
    assert found["cache bytes"] > 0 and any(name.startswith("spectral.") for name in found["kernels"])


def test_peak_memory_sees_what_is_held():
    small, large = (processes.peak("minigrad", "memory", cases.COPY, quick) for quick in (True, False))
    assert small < 2**24 and large == pytest.approx(2 * 4 * 2**26, rel=0.1)


# On a GPU -------------------------------------------------------------------------------------------------------------


@NO_CUDA
def test_without_a_gpu_the_command_says_what_is_missing(capsys):
    assert cuda.main(["--quick"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("benchmarks.cuda: device 'cuda': ")


def test_captured_steps_are_left_out_on_a_cpu_alone():
    left_out = [[c.name for c in cases.table(gpu=gpu) if "minigrad, captured" in c.without] for gpu in (False, True)]
    assert len(left_out[0]) > 20 and not left_out[1]
    assert any("torch.compile" in c.without for c in cases.table(gpu=True))


def test_the_gpu_command_on_a_fake_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "card", lambda: {"name": "a card", "driver_version": "1.0"})
    monkeypatch.setattr(processes, "child", None)  # nothing is asked of fresh processes
    clock = {"minigrad": 1.0, "minigrad, captured": 0.25, "torch": 4.0}
    captured = Altered(lambda x: x, "minigrad, captured")
    sides = [Minigrad(), captured, Altered(lambda x: x, "torch")]

    def interleaved(calls, pace, stopwatch):
        assert stopwatch is wall_clock and list(calls) == list(clock)
        return {name: (clock[name],) * 3 for name in calls}

    monkeypatch.setattr(suite, "interleave", interleaved)
    path = tmp_path / "cuda.json"
    assert cuda.main(["--quick", "--only", "SN node: 16", "--json", str(path)], sides, wall_clock) == 0
    assert "16×16, captured" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["gpu"] == {"name": "a card", "driver_version": "1.0"} and set(found) == FIELDS | {"gpu"}
    (row,) = found["cases"]
    assert {own: peers["torch"]["median"] for own, peers in row["ratios"].items()} == {
        "minigrad": 4.0,
        "minigrad, captured": 16.0,
    }


def test_a_run_that_is_cut_short_leaves_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "card", dict)
    one, begun = suite.one, []

    def until_the_second(case, *rest):
        begun.append(case.name)
        if len(begun) > 1:
            raise KeyboardInterrupt
        return one(case, *rest)

    monkeypatch.setattr(suite, "one", until_the_second)
    path = tmp_path / "cuda.json"
    with pytest.raises(KeyboardInterrupt):
        cuda.main(["--quick", "--only", "SN node", "--json", str(path)], [Minigrad()], wall_clock)
    assert [case["name"] for case in json.loads(path.read_text())["cases"]] == begun[:1]


def test_the_script_for_a_gpu_goes_on_after_failures(tmp_path):
    if not (bash := shutil.which("bash")):
        pytest.skip("needs bash")
    script = Path(command.__file__).parent / "gpu_session.sh"
    stub = '#!/bin/sh\necho "ran $* in $PYTHONPATH"\ncase "$*" in *-m\\ pytest*) exit 3;; *) exit 0;; esac\n'
    for name, text in (("python", stub), ("nvidia-smi", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    out = tmp_path / "out"
    environment = {"PATH": path, "PYTHON": str(tmp_path / "python")}

    def session(*parts):
        given = [bash, str(script), str(out), *parts]
        return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=20)

    chosen = session("example", "info")
    assert chosen.returncode == 0 and sorted(path.name for path in out.glob("*.log")) == ["example.log", "info.log"]
    assert f"in {script.parents[1]}" in (out / "example.log").read_text()
    done = session()
    assert done.returncode == 1 and "-- tests: exit code 3" in done.stdout
    assert f"ran -m benchmarks.cuda --json {out}/cuda.json" in (out / "benchmarks.log").read_text()
    assert "failed (tests" in done.stdout.splitlines()[-1]
