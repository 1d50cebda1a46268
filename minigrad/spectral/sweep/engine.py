"""Where the cells run: joblib's processes on this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.spectral.study._extras import require
from minigrad.spectral.study.data import Dataset
from minigrad.spectral.sweep.cell import Outcome, attempt
from minigrad.spectral.sweep.plan import Cell

#: What comes of each cell, in the order in which they finish.
Outcomes = Iterator[tuple[Cell, Outcome]]
Engine = Callable[[list[Cell], Dataset], Outcomes]

#: Seconds that a scheduler may take to answer, and its workers to be there: those that died are being started again.
PATIENCE = 10
DIED = "the worker process died: killed, or out of memory"


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[Engine]:
    """Processes of this machine; −1: one per core."""
    joblib = require("joblib", "sweep")
    workers = joblib.effective_n_jobs(jobs)

    def pool(cells: list[Cell], data: Dataset) -> Outcomes:
        parallel = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1, pre_dispatch=2 * workers)
        yield from parallel(joblib.delayed(attempt)(cell, data) for cell in cells)

    def run(cells: list[Cell], data: Dataset) -> Outcomes:
        """A process that dies takes the pool along, and nobody says with which cell: those that it may have been
        are run again one by one, and the one that ends its process again is named."""
        left = dict.fromkeys(cells)
        while left:
            suspects: list[Cell] = []
            try:
                for cell, outcome in pool(list(left), data):
                    del left[cell]
                    yield cell, outcome
            except BrokenProcessPool:
                suspects = list(left)[: 2 * workers]
            for cell in suspects:
                del left[cell]
                try:
                    yield from pool([cell], data)
                except BrokenProcessPool:
                    yield cell, DIED

    yield run


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Engine]:
    """The workers of a Dask scheduler. UsageError: no scheduler, no workers, or another minigrad on them.

    By Dask's own futures: joblib's way to Dask waits for ever for a task whose worker has died.
    """
    distributed = require("distributed", "sweep")
    try:
        client = distributed.Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise UsageError(f"sweep --dask: no Dask scheduler answers at {address}: {error}") from None

    def run(cells: list[Cell], data: Dataset) -> Outcomes:
        shared = client.submit(_itself, data, pure=False)  # a task: made again if the worker that holds it dies
        futures = {client.submit(attempt, cell, shared, pure=False): cell for cell in cells}
        suspects = []
        for future in distributed.as_completed(futures):
            cell = futures.pop(future)
            if future.status == "error":
                suspects.append(cell)
            else:
                yield future.result()
        for cell in suspects:  # alone: another that shared its process may have been the one that ended it
            future = client.submit(attempt, cell, shared, pure=False)
            error = future.exception()
            if error is None:
                yield future.result()
            else:
                yield cell, DIED if isinstance(error, distributed.KilledWorker) else f"{type(error).__name__}: {error}"

    with client:
        _check(client, address)
        yield run


def _check(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        problem = f"sweep --dask: the scheduler at {address} has no workers. Start one: dask worker {address}"
        raise UsageError(problem) from None
    try:
        versions = set(client.run(_version).values())
    except Exception as error:  # whatever an import may raise, there
        raise UsageError(f"sweep --dask: the workers of {address} cannot import minigrad: {error}") from None
    if versions != {mg.__version__}:
        there = ", ".join(sorted(versions))
        raise UsageError(f"sweep --dask: expected minigrad {mg.__version__} on the workers of {address}; got {there}")


def _itself(data: Dataset) -> Dataset:
    return data


def _version() -> str:
    return mg.__version__
