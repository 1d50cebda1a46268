"""The study itself: stage after stage, each leaving its results where an interruption finds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import minigrad as mg
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.libraries import Row, measure as measure_library
from minigrad.spectral.oracles import ORACLES
from minigrad.spectral.study import models
from minigrad.spectral.study.comparison import Paired, Record, differences, run
from minigrad.spectral.study.convergence import DEEP, Falling, StepCurve, falling, step_curve
from minigrad.spectral.study.data import Dataset
from minigrad.spectral.study.end_to_end import Around, Through, through
from minigrad.spectral.study.graph import draw
from minigrad.spectral.study.lipschitz import Steepness, steepness
from minigrad.spectral.study.opening import Layer, Opened, measure, open_layers
from minigrad.spectral.study.second_order import Second, second_order
from minigrad.spectral.study.settings import Settings, chosen_layers
from minigrad.spectral.study.training import evaluate, train
from minigrad.spectral.study.verdict import Verdict, judge

#: Examples of the batch that gives G, and of the smaller one that goes through the network again and again.
OPENED_ON, THROUGH_ON = 256, 64


class Progress(Protocol):
    """What the study tells of its progress."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A stage of so many parts; the function marks one as done."""


@dataclass
class Results:
    """Everything found so far. `unfinished` names the stage that was running; empty when all are done."""

    settings: Settings
    data: str
    layers: list[str] = field(default_factory=list)
    openings: list[Opened] = field(default_factory=list)
    throughs: list[Through] = field(default_factory=list)
    second: list[Second] = field(default_factory=list)
    steepness: Steepness | None = None
    libraries: list[Row] = field(default_factory=list)
    falling: list[Falling] = field(default_factory=list)
    step_curve: StepCurve | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    tests: list[tuple[int, float, float]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    graph: str = ""
    unfinished: str = ""

    @property
    def followed(self) -> str:
        """The layer that stands for the others where only one is shown: the middle one."""
        return self.layers[len(self.layers) // 2]

    @property
    def verdict(self) -> Verdict | None:
        """The verdict over all that was opened; None before anything was."""
        return judge(self.openings, self.settings.conventions) if self.openings else None

    @property
    def differences(self) -> list[Paired]:
        """The paired comparisons of training, over the seeds that every convention has finished."""
        return differences(self.records, self.settings.reference)


class Study:
    """One study of one network on one dataset."""

    def __init__(self, settings: Settings, data: Dataset, progress: Progress):
        self.settings, self.data, self.progress = settings, data, progress
        self.example = data.train_x.shape[1:]
        there = models.layers(self.plain())
        self.results = Results(settings, data.name, chosen_layers(settings, there))
        self.opened: dict[int, list[Layer]] = {}
        self.network: Any = None
        self.batch = (
            mg.tensor(data.train_x[:OPENED_ON], dtype=mg.float64),
            mg.tensor(data.train_y[:OPENED_ON]),
        )

    def plain(self) -> Any:
        """The network without normalization, in float64 on the CPU."""
        settings = self.settings
        return models.plain(settings.model, self.example, self.data.classes, settings.width).to(mg.float64)

    def conduct(self, stages: int | None = None) -> Results:
        """Run every stage, or the first so many.

        On Ctrl-C the stage's name stays in `results.unfinished`, with what is finished.

        On one thread: for matrices so small a second one costs more than it brings, far more on a busy machine.
        """
        mg.set_num_threads(1)
        try:
            return self._stages(stages)
        finally:
            mg.set_num_threads(os.cpu_count() or 1)

    def _stages(self, count: int | None) -> Results:
        for name, stage in (
            ("training the network", self._train),
            ("gradients at the node", self._measure),
            ("gradients through the network", self._through),
            ("second derivatives", self._second_order),
            ("the network's steepness", self._steepness),
            ("the libraries' gradients", self._libraries),
            ("errors against sweeps", self._converge),
            ("training under the conventions", self._compare),
        )[:count]:
            self.results.unfinished = name
            try:
                stage(name)
            except KeyboardInterrupt:
                return self.results
        self.results.unfinished = ""
        return self.results

    def _train(self, name: str) -> None:
        settings, data, results = self.settings, self.data, self.results
        self.network = models.normalized(
            settings.model, self.example, data.classes, "fixed_uv", settings.seed, settings.width
        ).to(settings.device)
        twin = self.plain()
        test = mg.tensor(data.test_x, device=settings.device), mg.tensor(data.test_y, device=settings.device)
        with self.progress.stage(name, settings.steps + 1) as done:
            for step, value in train(
                self.network, data, settings.steps, settings.seed, settings.device, settings.rate
            ):
                if step:
                    results.losses.append((step, value))
                if step in settings.opened_at:
                    everything = models.layers(self.network)
                    self.opened[step] = open_layers(self.network, twin, everything, *self.batch, settings.seed)
                    results.tests.append((step, *evaluate(self.network, *test)))
                done()
        results.graph = draw(getattr(self.network, results.followed))

    def _measure(self, name: str) -> None:
        settings, results = self.settings, self.results
        chosen = {step: [one for one in found if one.name in results.layers] for step, found in self.opened.items()}
        smallest = min(chosen[0], key=lambda one: one.weight.size)
        entries = smallest.name if smallest.weight.size <= settings.entries else None
        with self.progress.stage(name, 6 * sum(map(len, chosen.values()))) as done:
            for step, found in chosen.items():
                for layer in found:
                    entrywise = layer.name == entries and step == settings.steps
                    for part in measure(
                        step, layer, settings.conventions, settings.random_directions, entrywise, settings.seed
                    ):
                        done()
                        if part is not None:
                            results.openings.append(part)

    @property
    def last(self) -> list[Layer]:
        """The chosen layers as they were at the last step."""
        return [one for one in self.opened[self.settings.steps] if one.name in self.results.layers]

    @property
    def around(self) -> Around:
        """What each layer stands in at the last step."""
        everything = self.opened[self.settings.steps]
        normalized = {one.name: ORACLES["frozen"].normalize(one.weight, one.u, one.v) for one in everything}
        batch = self.batch[0][:THROUGH_ON], self.batch[1][:THROUGH_ON]
        return Around(self.plain, self.network, normalized, batch)

    def _through(self, name: str) -> None:
        settings, results, around = self.settings, self.results, self.around
        with self.progress.stage(name, 4 * len(results.layers)) as done:
            for layer in self.last:
                count = settings.through_directions
                for part in through(settings.steps, layer, around, settings.conventions, count, settings.seed):
                    done()
                    if part is not None:
                        results.throughs.append(part)

    def _second_order(self, name: str) -> None:
        settings, results, around = self.settings, self.results, self.around
        with self.progress.stage(name, 3 * len(results.layers)) as done:
            for layer in self.last:
                for part in second_order(settings.steps, layer, around, settings.seed):
                    done()
                    if part is not None:
                        results.second.append(part)

    def _steepness(self, name: str) -> None:
        with self.progress.stage(name, 2) as done:
            x = self.batch[0].to(self.settings.device)
            self.results.steepness = steepness(self.settings.steps, self.network, x, done)

    def _libraries(self, name: str) -> None:
        with self.progress.stage(name, len(LIBRARIES)) as done:
            for like in LIBRARIES:
                self.results.libraries.append(measure_library(like, self.settings.seed, self.settings.device))
                done()

    def _converge(self, name: str) -> None:
        settings, results = self.settings, self.results
        last = self.last
        with self.progress.stage(name, 1 + (2 + len(DEEP)) * len(last)) as done:
            for layer in last:
                for part in falling(layer, settings.seed):
                    done()
                    if part is not None:
                        results.falling.append(part)
            results.step_curve = step_curve(next(one for one in last if one.name == results.followed), settings.seed)
            done()

    def _compare(self, name: str) -> None:
        settings, results = self.settings, self.results
        layer = results.followed
        total = settings.seeds * len(settings.conventions) * (settings.steps + 1)
        with self.progress.stage(name, total) as done:
            for seed in range(settings.seed, settings.seed + settings.seeds):
                for convention in settings.conventions:
                    finished = []
                    for part in run(
                        settings.model, self.data, convention, seed, settings.steps, layer, settings.device
                    ):
                        done()
                        if part is not None:
                            finished.append(part)
                    results.records += finished
