"""One cell of a sweep, in whichever process it runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.spectral.study import models
from minigrad.spectral.study.data import Dataset
from minigrad.spectral.study.settings import Settings
from minigrad.spectral.study.study import Study
from minigrad.spectral.study.training import evaluate, train
from minigrad.spectral.study.verdict import must_meet
from minigrad.spectral.sweep.plan import Cell

#: What came of a cell: its measures by name, or why it failed.
Outcome = dict[str, Any] | str

#: Of `minigrad study`: training, the gradients at the node, and those through the network.
STAGES = 3

# Random numbers are the process's own: where a worker has several threads, as Dask's have, its cells take turns.
_alone = threading.Lock()


def attempt(cell: Cell, data: Dataset) -> tuple[Cell, Outcome]:
    """Run a cell on one thread. What goes wrong in it is its outcome."""
    with _alone:
        mg.set_num_threads(1)
        began = time.perf_counter()
        try:
            measures = {"training": training, "study": study}[cell.run](cell, data)
            return cell, measures | {"seconds": round(time.perf_counter() - began, 3)}
        except UsageError as error:
            return cell, str(error).removeprefix("study: ")
        except Exception as error:
            return cell, f"{type(error).__name__}: {error}"


def training(cell: Cell, data: Dataset) -> dict[str, Any]:
    """Train the network under the cell's convention; loss and accuracy on the test examples."""
    example = data.train_x.shape[1:]
    network = models.normalized(cell.model, example, data.classes, cell.convention, cell.seed, cell.width)
    network.to(cell.device)
    for _ in train(network, data, cell.steps, cell.seed, cell.device, cell.learning_rate):
        pass
    test = mg.tensor(data.test_x, device=cell.device), mg.tensor(data.test_y, device=cell.device)
    loss, accuracy = evaluate(network, *test)
    return {"loss": loss, "accuracy": accuracy}


def study(cell: Cell, data: Dataset) -> dict[str, Any]:
    """`minigrad study` of one convention: does it meet exactly the oracle that it must?

    `residual`: the largest against the oracle that it must meet, over layers, steps and directions; None if there is
    no such oracle. `nearest`: the smallest against the others.
    """
    settings = Settings(
        cell.model, cell.steps, (), (cell.convention,), cell.seed, 1, cell.device, None, "", True,
        cell.width, cell.learning_rate,
    )  # fmt: skip
    results = Study(settings, data, _Silent()).conduct(STAGES)
    if results.unfinished:
        raise KeyboardInterrupt
    verdict = results.verdict
    assert verdict is not None
    must = must_meet(cell.convention)
    _, loss, accuracy = results.tests[-1]
    return {
        "loss": loss,
        "accuracy": accuracy,
        "residual": verdict.cell(cell.convention, must).residual if must else None,
        "nearest": min((one.residual for one in verdict.cells if not one.must and one.distinct), default=None),
        "passed": verdict.passed,
        "failures": "; ".join(verdict.failures),
    }


class _Silent:
    """A study's progress that nobody watches."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        yield lambda: None
