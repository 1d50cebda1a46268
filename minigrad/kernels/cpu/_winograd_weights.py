"""The weight gradient of a convolution with 3×3 taps to a stride, or 2×2, in float32, with Winograd's products.

A pair of sums was Aᵀ[(G f) ⊙ (Bᵀ d)] (`_winograd_form`); its gradient in the filter, for the upstream gradient g of the
pair, is Gᵀ[(A g) ⊙ (Bᵀ d)]. Along two axes 2×2 pixels of g become as many numbers as the patch of pixels around them,
which are multiplied with those. The sum over all patches is taken in between, where it is for each of the numbers a
product of matrices, (channels, patches) × (patches, filters).

The error is 0.9 to 1.6 times that of the direct sum, in norm, for normally distributed numbers. As in `_winograd`, sums
that are not finite are reported, for the direct kernel to take over.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _conv_tables, _panels, _scratch, _tile
from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu._winograd import form_that_pays, is_finite
from minigrad.kernels.cpu._winograd_form import FORMS, Extents, Form, lines_of_taps, tables

#: Bytes of transformed patches that all threads work on at a time: they stay in the cache that threads share, and sums
#: of blocks are more accurate.
_SHARED = 3 * 2**19
#: Numbers in the upstream gradient from which a second thread pays.
_PARALLEL_FROM = 2**14


class _Laid(NamedTuple):
    """Where 2×2 pixels of the upstream gradient lie, for as many of its images as are laid out at a time."""

    image: int  # numbers in an image, channels last, with zeros where patches have no pixel
    line: int  # in a line of it
    inside: Any  # of each pixel, its offset in the image
    corners: Any  # (bands, patches): where the four of each patch begin


@functools.lru_cache(maxsize=64)
def _laid(filters: int, space: Extents, images: int, bands: int, patches: int) -> _Laid:
    height, columns = space[0], (space[1] + 1) // 2
    each, line = patches // (images * columns), 2 * columns * filters
    image = 2 * bands * each * line
    inside = np.arange(height)[:, None] * line + np.arange(space[1]) * filters
    corners = np.arange(bands * each)[:, None] * 2 * line + np.arange(columns) * 2 * filters
    corners = np.arange(images)[:, None] * image + corners.reshape(bands, 1, -1)
    return _Laid(image, line, inside.ravel(), corners.reshape(bands, -1))


@helper
def _lay(laid: Any, inside: Any, x: Any, plane: Any, is_new: bool) -> None:
    """Channels last, with zeros for the padding and for pixels that are not there."""
    if is_new:
        laid[:] = 0
    _tile.transpose(laid, inside, x, plane)


def _correlate(form: Form) -> Kernel:
    taps, points = form.taps, form.points
    transform_patch, transform_gradient, back_to_filters = form.patch, form.gradient, form.sums

    @jit(_PARALLEL_FROM, formula=form)
    def kernel(
        g: Any, x: Any, out: Any, images: Any, gradients: Any, patches: Any, panels: Any, sums: Any, products: Any,
        finite: Any, image: int, line: int, inside: Any, corners: Any,
        image_of_g: int, line_of_g: int, inside_of_g: Any, corners_of_g: Any,
        channels: int, together: int, rows: Any, steps: Any, place: Any, planes: Any,
    ) -> None:  # fmt: skip
        """out[k] = Σ_n x[n] ⋆ g[n, k]. Images are laid out and transformed by all threads, then used by all."""
        count, filters = len(x), g.shape[1]
        lines, pitch, width = patches.shape[1], patches.shape[2], panels.shape[3]
        height, vector, patch = rows.shape[1], width // 2, patches.reshape(-1)
        images[together * image :] = 0
        gradients[together * image_of_g :] = 0
        for first in range(0, count, together):
            here = min(together, count - first)
            used = steps[: steps.size // together * here]
            for i in prange(2 * here):
                n = np.int64(i) // 2
                if i % 2:
                    laid = images[n * image : (n + 1) * image]
                    _lay(laid, inside, x[first + n], planes[0], first == 0)
                else:
                    laid = gradients[n * image_of_g : (n + 1) * image_of_g]
                    _lay(laid, inside_of_g, g[first + n], planes[1], first == 0)
            for band in range(len(corners)):
                for t in prange(used.size):
                    step = lines * pitch
                    for c in range(0, pitch, vector):
                        to, at = np.int64(t) * pitch + c, corners[band, t] + c
                        transform_patch(patch, to, points * step, step, images, at, line, channels)
                    step = panels.shape[2] * width
                    for c in range(0, len(panels) * width, vector):
                        made, to = panels[c // width].reshape(-1), np.int64(t) * width + c % width
                        at = corners_of_g[band, t] + c
                        transform_gradient(made, to, points * step, step, gradients, at, line_of_g, filters)
                for task in prange(points * points * len(panels)):
                    k, panel = np.int64(task) // len(panels), np.int64(task) % len(panels)
                    left, right = patches[k].reshape(-1), panels[panel, k]
                    for i in range(len(rows)):
                        total, add = sums[panel, k, i * height :], first + band > 0
                        if 2 * (filters - panel * width) > width:
                            _tile.tile(total, left, rows[i], used, right, add)
                        else:
                            _tile.narrow_tile(total, left, rows[i], used, right, add)
        for i in prange(len(panels)):
            step, tap = sums.shape[2] * width, channels * width
            given, columns = sums[i].reshape(-1), width
            if 2 * (filters - np.int64(i) * width) <= width:
                products[i], columns = 0, vector
            for c in range(0, tap, width):
                for at in range(c, c + columns, vector):
                    back_to_filters(products[i], at, taps * tap, tap, given, at, points * step, step)
            finite[i] = is_finite(products[i])
            _tile.channels_first(products[i], place, out[np.int64(i) * width : (np.int64(i) + 1) * width], planes[2])

    return kernel


_KERNELS = {taps: _correlate(form) for taps, form in FORMS.items()}


@functools.lru_cache(maxsize=64)
def _plan(taps: int, g: Extents, x: Extents, stride: Extents, padding: Extents, most: int) -> tuple[Any, Any]:
    """What shapes say: the shapes of the memory, and what the kernel is given behind that."""
    (height, width), filters, channels = _tile.shape(32), g[1], x[1] * math.prod(stride)
    table = tables(taps, x[0], x[1], x[2:], g[2:], stride, padding, False, 1, most)
    corners, together = table.corners[:, 0], len(table.place)
    patches, panels, pitch = corners.shape[1], math.ceil(filters / width), channels + -channels % (width // 2)
    laid = _laid(filters, g[2:], together, *corners.shape)
    rows = _conv_tables.whole_tiles(np.arange(channels), height)
    shapes = (
        (together * table.image + width,),
        (together * laid.image + width,),
        ((taps + 1) ** 2, patches, pitch),
        (panels, (taps + 1) ** 2, patches, width),
        (panels, (taps + 1) ** 2, rows.size, width),
        (panels, taps**2 * channels * width),
    )
    place, _ = lines_of_taps(taps, stride, padding, x[1], filters)
    planes = _panels.planes(width // 2, math.prod(x[2:]), math.prod(g[2:]), taps**2 * channels)
    steps = np.arange(patches) * pitch
    return shapes, (*table[:3], corners, *laid, channels, together, rows, steps, place * width, planes)


def correlate(out: Any, g: Any, x: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> bool:
    """out[k, c] = Σ_n x[n, c] ⋆ g[n, k], for g (N, K, H, W) and x (N, C, *).

    False, with anything in `out`, where another way is faster, or where a number in between was not finite.
    """
    taps = form_that_pays(x.shape, out.shape[2:], g.shape, stride, padding, dilation, groups)
    if not taps or x.dtype != np.float32 or _tile.PLAIN:
        return False
    shapes, layout = _plan(taps, g.shape, x.shape, stride, padding, _SHARED)
    finite = np.empty(shapes[-1][0], bool)
    g, x, out = (a.reshape(*a.shape[:2], -1) for a in (g, x, out))
    with _scratch.Scratch(x.dtype, *shapes) as memory:
        _KERNELS[taps](g, x, out.reshape(len(out), -1), *memory, finite, *layout)
    return bool(finite.all())
