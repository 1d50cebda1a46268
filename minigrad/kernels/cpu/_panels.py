"""The filters of a convolution, laid out for the micro-kernel (`_tile`): in panels, as many side by side as a tile has
columns, a step of the product after the other."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _tile
from minigrad.kernels.cpu._jit import jit

#: Numbers in the panels from which a second thread pays.
_PARALLEL_FROM = 2**14


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _fill(panels: Any, w: Any, places: Any, planes: Any) -> None:
    """Panels of each group of filters w (groups, images, filters, pixels): the filters are their channels."""
    groups, images, filters, _ = w.shape
    width, each = panels.shape[2], len(panels) // groups
    for i in prange(len(panels)):
        group, first = np.int64(i) // each, np.int64(i) % each * width
        if first + width > filters:
            panels[i] = 0
        for n in range(images):
            some = w[group, n, first : min(first + width, filters)]
            _tile.transpose(panels[i, n:].reshape(-1), places, some, planes[0])


def fill(panels: Any, w: Any, places: Any) -> None:
    """panels[p, n + places[s] / width, j] = w[g, n, k, s] for the j-th filter k of panel p, which is of group g."""
    _fill(panels, w, places, planes(panels.shape[2] // 2, w.shape[3]))


@functools.lru_cache(maxsize=64)
def planes(side: int, *sizes: int) -> Any:
    """Where the planes of as many channels as a square has begin, for planes of these sizes."""
    return np.array(sizes)[:, None] * np.arange(side)
