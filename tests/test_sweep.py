"""`minigrad sweep`: what its file may say, the cells on processes and on a Dask cluster, and what is kept of them."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")
pytest.importorskip("joblib")

import minigrad as mg
from minigrad import cli
from minigrad.ops import conventions
from minigrad.spectral.study import data, models
from minigrad.spectral.study.training import evaluate, train
from minigrad.spectral.sweep import engine, plan
from minigrad.spectral.sweep.cell import attempt

TOO_FAST = 1e39  # is infinite in float32: the loss becomes NaN
FILE = """
steps = 8
seeds = [3, 4]
conventions = ["fixed_uv", "detached"]
widths = [8]
learning_rates = [0.1, 0.5]
data = "own.npz"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with FILE and its data; what is relative is relative to the file."""
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 40)
    np.savez(tmp_path / "own.npz", x=rng.standard_normal((120, 4, 4)) + y[:, None, None], y=y)
    write(tmp_path, FILE)
    return tmp_path


def write(folder, text):
    (folder / "sweep.toml").write_text(text, encoding="utf-8")


def run(folder, *arguments):
    return cli.main(["sweep", str(folder / "sweep.toml"), "--out", str(folder / "out"), *map(str, arguments)])


def table(folder):
    with (folder / "out" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def points(rows):
    return [(r["convention"], int(r["width"]), float(r["learning_rate"]), int(r["seed"])) for r in rows]


def kept(folder):
    return sorted((folder / "out" / "cells").iterdir())


# The file ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate = 1", "has a key 'learning_rate', which is none of run, model, steps, seeds, conventions, wid"),
        ("seeds = 5", "seeds in FILE: expected a list of whole numbers, at least 0; got 5"),
        ("seeds = []", "seeds in FILE: expected a list of whole numbers, at least 0; got []"),
        ("seeds = [0, true]", "expected a list of whole numbers, at least 0; got True"),
        ("seeds = [0, -1]", "expected a list of whole numbers, at least 0; got -1"),
        ("seeds = [0.5]", "got 0.5"),
        ("widths = [1]", "widths in FILE: expected a list of whole numbers, at least 2; got 1"),
        ("learning_rates = [0.1, 'x']", "learning_rates in FILE: expected a list of finite numbers above 0; got 'x'"),
        ("learning_rates = [0.0]", "expected a list of finite numbers above 0; got 0.0"),
        ("learning_rates = [inf]", "expected a list of finite numbers above 0; got inf"),
        (f"learning_rates = [1{400 * '0'}]", "expected a list of finite numbers above 0; got 1000"),
        ("learning_rates = [nan]", "expected a list of finite numbers above 0; got nan"),
        ("learning_rates = [true]", "expected a list of finite numbers above 0; got True"),
        ("conventions = ['fixed']", "expected a list of names out of fixed_uv, detached, straight_through, projected"),
        ("conventions = [['fixed_uv']]", "got ['fixed_uv']"),
        ("steps = 0", "steps in FILE: expected a whole number, at least 1; got 0"),
        ("run = 'both'", "run in FILE: expected training or study; got 'both'"),
        ("model = ['mlp']", "model in FILE: expected mlp or conv; got ['mlp']"),
        ("data = 1", "data in FILE: expected the path of an .npz; got 1"),
        ("data = 'none.npz'", "none.npz': No such file"),
        (r'data = "a\u0000b.npz"', "b.npz': embedded null byte"),
        ("seeds = [0", "expected TOML in FILE"),
    ],
)
def test_a_file_that_says_something_else(text, words, folder, capsys):
    write(folder, text)
    assert run(folder) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err.replace(str(folder / "sweep.toml"), "FILE")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected a FILE.toml"),
        (["none.toml"], "cannot read none.toml: No such file"),
        (["FILE", "--jobs", "0"], "--jobs: expected at least 1, or -1 for one per core; got 0"),
        (["FILE", "--dask", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_wrong_arguments(arguments, words, folder, capsys, monkeypatch):
    if "--dask" in arguments:
        pytest.importorskip("distributed", reason="clusters need dask[distributed]")
        monkeypatch.setattr(engine, "PATIENCE", 0.2)
    given = [word.replace("FILE", str(folder / "sweep.toml")) for word in arguments]
    assert cli.main(["sweep", *given, "--out", str(folder / "out")]) == 2
    assert words in capsys.readouterr().err


def test_the_example_of_the_help_is_a_file(folder):
    write(folder, plan.EXAMPLE)
    found = plan.read(str(folder / "sweep.toml"), 0, "cpu")
    assert set(plan.KEYS) == {line.split(" ")[0] for line in plan.EXAMPLE.splitlines()}
    assert len(found.cells) == len(set(found.cells)) == 5 * 2 * 2 * 3
    assert [cell.seed for cell in found.cells] == sorted(cell.seed for cell in found.cells)


def test_an_empty_file_is_one_of_defaults(folder):
    write(folder, "")
    cells = plan.read(str(folder / "sweep.toml"), 7, "cpu").cells
    assert [(c.run, c.model, c.steps, c.split, *c.group) for c in cells] == 5 * [
        ("training", "mlp", 150, 7, "fixed_uv", 128, 0.1)
    ]
    assert [c.seed for c in cells] == [0, 1, 2, 3, 4]


def test_a_cell_is_its_settings(folder):
    cell = plan.read(str(folder / "sweep.toml"), 0, "cpu").cells[0]
    others = [replace(cell, **{f.name: getattr(cell, f.name) * 2}) for f in fields(cell) if getattr(cell, f.name)]
    keys = {one.key for one in [cell, replace(cell, split=1), *others]}
    assert len(keys) == len(fields(cell)) + 1
    np.savez(folder / "own.npz", x=np.zeros((30, 2)), y=np.arange(30))
    assert plan.read(str(folder / "sweep.toml"), 0, "cpu").cells[0].key not in keys


# Local processes -----------------------------------------------------------------------------------------------------


def by_hand(folder, convention, width, rate, seed):
    """The same training, here."""
    own = data.load(str(folder / "own.npz"), 0)
    network = models.normalized("mlp", (4, 4), 3, convention, seed, width)
    for _ in train(network, own, 8, seed, "cpu", rate):
        pass
    return evaluate(network, mg.tensor(own.test_x), mg.tensor(own.test_y))


def deadly(cell, own):
    """A cell that takes its process along."""
    if (cell.convention, cell.seed, cell.learning_rate) == ("detached", 3, 0.1):
        os._exit(1)
    return attempt(cell, own)


def test_cells_on_processes(folder, monkeypatch, capsys):
    """With one that fails for each seed and convention, and one whose process dies."""
    monkeypatch.setattr(engine, "attempt", deadly)
    write(folder, FILE.replace("0.5", str(TOO_FAST)))
    assert run(folder, "--jobs", 2) == 1
    rows = table(folder)
    assert points(rows) == [(c, 8, r, s) for s in (3, 4) for c in ("fixed_uv", "detached") for r in (0.1, TOO_FAST)]
    for row, point in zip(rows, points(rows), strict=True):
        if point == ("detached", 8, 0.1, 3):
            assert row["state"] == "failed" and row["error"] == engine.DIED
        elif point[2] == TOO_FAST:
            assert row["state"] == "failed" and "the loss became nan at step" in row["error"] and not row["loss"]
        else:
            assert (float(row["loss"]), float(row["accuracy"])) == by_hand(folder, *point)
            assert row["state"] == "finished" and not row["error"]
    assert len(kept(folder)) == 3
    told = capsys.readouterr().out
    assert told.count("failed: ") == 5 and "failed: detached, width 8, learning rate 1e+39, seed 4: the loss" in told


def test_a_loss_that_is_lost_with_the_last_step(folder):
    """Only the test examples tell."""
    write(folder, FILE.replace("steps = 8", "steps = 1").replace("0.5", "3e38"))
    for _ in range(2):  # none of them is kept
        assert run(folder, "--jobs", 1) == 1
        lost = [row["error"] for row in table(folder) if row["learning_rate"] == "3e+38"]
        assert len(lost) == 4 and all(re.match("the loss became (nan|inf) on the test examples", e) for e in lost)
        assert len(kept(folder)) == 4


def test_a_folder_with_any_name_is_told_as_it_is(folder, capsys):
    write(folder, FILE.replace("[3, 4]", "[3]"))
    out = folder / "a[red]b[" / "c]:x:"
    assert cli.main(["sweep", str(folder / "sweep.toml"), "--out", str(out), "--jobs", "1"]) == 0
    assert f"Report: {out / 'report.html'}, every cell: {out / 'sweep.csv'}" in capsys.readouterr().out


def test_the_report(folder):
    write(folder, FILE.replace("0.5", str(TOO_FAST)))
    assert run(folder, "--jobs", 1) == 1
    rows = table(folder)
    assert len({row["loss"] for row in rows if row["loss"]}) == 4  # seeds and conventions do something
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    for convention in ("fixed_uv", "detached"):
        for measure in ("accuracy", "loss"):
            mine = [float(row[measure]) for row in rows if row["convention"] == convention and row[measure]]
            half = 12.706 * np.std(mine, ddof=1) / math.sqrt(2)  # Student's t, one degree of freedom
            (interval,) = re.search(rf">{np.mean(mine):.4f}\xa0±\xa0([\d.]+)<", page).groups()
            assert float(interval) == pytest.approx(half, rel=1e-4, abs=1e-4)
    assert ">failed<" in page and "4 of 8 cells are finished, 4 failed" in page and page.count("<svg") == 2
    assert all(f'<td class="why">{row["error"]}</td>' in page for row in rows if row["error"])
    assert "src=" not in page and "http" not in page  # self-contained
    numbers = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    assert len(numbers["sweep"]) == 8 and numbers["interrupted"] is False


def test_finished_cells_are_not_run_again(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(engine, "attempt", lambda cell, own: calls.append(cell) or attempt(cell, own))
    assert run(folder, "--jobs", 1) == 0
    assert len(calls) == len(kept(folder)) == 8
    before, times = table(folder), [path.stat().st_mtime_ns for path in kept(folder)]
    assert run(folder, "--jobs", 1) == 0 and len(calls) == 8 and table(folder) == before
    missing, torn, foreign = kept(folder)[1], kept(folder)[3], kept(folder)[5]
    missing.unlink()
    torn.write_text(torn.read_text()[:40])
    foreign.write_text(kept(folder)[0].read_text())  # another cell's
    assert run(folder, "--jobs", 1) == 0
    assert len(calls) == 11 and len(kept(folder)) == 8
    assert {calls[-k].key for k in (1, 2, 3)} == {missing.stem, torn.stem, foreign.stem}
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in table(folder)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in before]
    untouched = [(p, t) for p, t in zip(kept(folder), times, strict=True) if p not in (missing, torn, foreign)]
    assert all(path.stat().st_mtime_ns == t for path, t in untouched)
    write(folder, FILE.replace("[3, 4]", "[4, 5]"))
    assert run(folder, "--jobs", 1) == 0 and len(calls) == 15  # one seed of two is new


def test_an_interruption_leaves_what_is_finished(folder, monkeypatch):
    calls = []

    def third(cell, own):
        calls.append(cell)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attempt(cell, own)

    monkeypatch.setattr(engine, "attempt", third)
    assert run(folder, "--jobs", 1) == 130
    assert [row["state"] for row in table(folder)] == 2 * ["finished"] + 6 * ["not run"] and len(kept(folder)) == 2
    assert "the same command goes on" in (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert run(folder, "--jobs", 1) == 0
    assert len(calls) == 9 and {row["state"] for row in table(folder)} == {"finished"}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process group there")
@pytest.mark.usefixtures("ctrl_c")
def test_a_real_sigint_to_the_whole_group(folder):
    """As a terminal sends it: to the workers too."""
    write(folder, FILE.replace("steps = 8", "steps = 400"))
    process = subprocess.Popen(
        [sys.executable, "-m", "minigrad", "sweep", str(folder / "sweep.toml"), "--out", str(folder / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not ((folder / "out" / "cells").exists() and kept(folder)):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    done = [row for row in table(folder) if row["state"] == "finished"]
    assert 1 <= len(done) == len([path for path in kept(folder) if path.suffix == ".json"]) < 8


# A Dask cluster ------------------------------------------------------------------------------------------------------


@contextmanager
def local_cluster(workers):
    """On loopback: processes of two threads each."""
    distributed = pytest.importorskip("distributed", reason="clusters need dask[distributed]")
    import dask

    given = {"distributed.scheduler.allowed-failures": 0, "distributed.worker.daemon": True}
    with (
        mock.patch.dict(os.environ),  # in which Dask leaves its own settings of the allocator and of threads
        dask.config.set(given),
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=2, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def scheduler():
    """The address of a cluster of two."""
    with local_cluster(2) as cluster:
        yield cluster.scheduler_address


def test_workers_are_waited_for(folder, monkeypatch, capsys):
    with local_cluster(0) as cluster:
        with monkeypatch.context() as impatient:
            impatient.setattr(engine, "PATIENCE", 1)
            assert run(folder, "--dask", cluster.scheduler_address) == 2
        assert "has no workers. Start one: dask worker" in capsys.readouterr().err
        cluster.scale(1)  # which takes a while
        assert run(folder, "--dask", cluster.scheduler_address) == 0


def test_the_same_on_a_dask_cluster(folder, scheduler, monkeypatch, capsys):
    monkeypatch.setattr(engine, "attempt", deadly)
    assert run(folder, "--dask", scheduler) == 1
    rows = table(folder)
    for row, point in zip(rows, points(rows), strict=True):
        if point == ("detached", 8, 0.1, 3):
            assert row["state"] == "failed" and row["error"] == engine.DIED
        else:
            assert (float(row["loss"]), float(row["accuracy"])) == by_hand(folder, *point)
    monkeypatch.undo()
    assert run(folder, "--dask", scheduler) == 0  # with one cell left
    assert "7 of 8 cells were finished before" in capsys.readouterr().out
    monkeypatch.setattr(mg, "__version__", "0.0.0")
    (folder / "out" / "cells" / kept(folder)[0].name).unlink()
    assert run(folder, "--dask", scheduler) == 2
    assert "expected minigrad 0.0.0 on the workers" in capsys.readouterr().err


# Studies -------------------------------------------------------------------------------------------------------------

STUDY = """
run = "study"
steps = 2
seeds = [0]
widths = [6]
conventions = ["fixed_uv", "detached"]
data = "own.npz"
"""


def test_studies_pass_and_are_told_apart_when_they_do_not(folder, monkeypatch):
    write(folder, STUDY)
    assert run(folder, "--jobs", 1) == 0
    fixed, detached = table(folder)
    assert fixed["passed"] == detached["passed"] == "True" and not detached["residual"]
    assert float(fixed["residual"]) < 1e-10 < 1e-4 < min(float(fixed["nearest"]), float(detached["nearest"]))
    honest = conventions.apply
    monkeypatch.setattr(conventions, "apply", lambda name, *a, **k: honest("fixed_uv", *a, **k))
    write(folder, STUDY.replace("[0]", "[1]"))
    assert run(folder, "--jobs", 1) == 1
    fixed, detached = table(folder)
    assert (fixed["passed"], detached["passed"]) == ("True", "False")
    assert "detached meets oracle" in detached["failures"]
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert ">failed<" in page and "detached meets oracle" in page and "0 of 1" in page


@pytest.mark.parametrize("package", ["joblib", "matplotlib"])
def test_a_missing_package_names_the_extra(package, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(folder) == 2
    assert f'sweep: needs the package {package}, which is not installed here. pip install "minigrad[sweep]"' in (
        capsys.readouterr().err
    )
    assert not (folder / "out").exists()


