"""Convolution in float32 with filters of 3×3 taps to a stride, or of 2×2, by Winograd's products (`_winograd_form`).

Patches of pixels are transformed, and so are filters; for each of the numbers that they become, the sum over channels
is a product of matrices, (patches, channels) × (channels, filters), on the micro-kernel (`_tile`). What comes out is
transformed back to four pixels a patch. The input gradient is the same with turned filters, whose channels and filters
have changed places.

The error is that of the direct sum, 0.6 to 1.2 times as large in norm for normally distributed numbers; but it is
relative to the pixels of a patch, not to those under a filter alone. For the same reason an infinity would spread NaN
over its patch, and so sums that are not finite are reported, for the direct kernels to take over.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _panels, _scratch, _tile
from minigrad.kernels.cpu._jit import Kernel, helper, jit, num_threads
from minigrad.kernels.cpu._winograd_form import FORMS, Extents, Form, lines_of_taps, tables

#: Bytes of transformed patches that a thread works on at a time: they stay in its own cache, beside those of filters.
#: Where filters are many they do not, and then it takes longer to read them again and again.
_NEAR, _OF_FILTERS = 2**19, 1 / 8
#: Channels multiplied at a time: so much of a panel stays in the first cache, and sums of blocks are more accurate.
_STEPS = 256
#: Numbers in the output from which a second thread pays.
_PARALLEL_FROM = 2**14
#: How many must share what is transformed for that to pay: filters a patch, channels a result, and patches a filter.
#: And so much they must be, multiplied, that it takes longer than to launch more kernels.
_CHANNELS, _PATCHES, _WORK = 24, 128, 2**18


@functools.partial(helper, reassociate=True)
def is_finite(x: Any) -> bool:
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * x.dtype.type(0)
    return bool(total == 0)


def _filters(form: Form) -> Kernel:
    taps, points, transform = form.taps, form.points, form.filter

    @jit(_PARALLEL_FROM, formula=form)
    def kernel(out: Any, panels: Any) -> None:
        """out[p, ξ, c] = the filters of panel p at channel c, transformed, for panels[p, (tap, c)]."""
        _, _, channels, width = out.shape
        step = channels * width
        for i in prange(len(out) * channels):
            made, given, at = out[i // channels].reshape(-1), panels[i // channels].reshape(-1), i % channels * width
            for j in range(at, at + width, width // 2):
                transform(made, j, points * step, step, given, j, taps * step, step)

    return kernel


def _multiply(form: Form) -> Kernel:
    points, transform, back_to_pixels = form.points, form.patch, form.product
    middle = points + 1  # the transformed number that all four pixels take once: where the bias is added

    @jit(_PARALLEL_FROM, formula=form)
    def kernel(
        out: Any, x: Any, filters: Any, bias: Any, images: Any, patches: Any, sums: Any, products: Any, finite: Any,
        image: int, line: int, inside: Any, corners: Any, tiles: int, borders: Any, place: Any,
        rows: Any, steps: Any, planes: Any,
    ) -> None:  # fmt: skip
        """out[n, k] = bias[k] + x[n] ⋆ filter k. Each thread has images, and what becomes of them, of its own.

        The work is cut into bands of some images, or of some lines of one.
        """
        count, height, together = len(x), rows.size, len(place)
        bands, phases, each = corners.shape
        panels, _, _, channels, width = filters.shape
        pitch, vector = patches.shape[3], width // 2
        lines = phases * tiles
        tasks = (count + together - 1) // together * bands
        for thread in prange(len(images)):
            laid, patch, total = images[thread], patches[thread].reshape(-1), sums[thread]
            product, summed = products[thread].reshape(-1), sums[thread].reshape(-1)
            laid[:] = 0
            patch[:] = 0
            product[:] = 0
            finite[thread], last = True, -1
            for task in range(tasks * thread // len(images), tasks * (thread + 1) // len(images)):
                band, first = task % bands, task // bands * together
                here = min(together, count - first)
                used = (each // together * here + height - 1) // height * height
                if first != last:
                    last = first
                    for n in range(here):
                        _tile.transpose(laid[n * image :], inside, x[first + n], planes[0])
                step = lines * pitch
                for phase in range(phases):
                    for t in range(each):
                        to, at = (phase * tiles + t) * pitch, corners[band, phase, t]
                        for c in range(0, pitch, vector):
                            transform(patch, to + c, points * step, step, laid, at + c, line, channels)
                for panel in range(panels):
                    for i in range(lines):
                        for j in range(width):
                            total[middle, panel, i, j] = bias[panel, j]
                for k in range(points * points):
                    for c in range(0, channels, _STEPS):
                        some, add = steps[c : c + _STEPS], k == middle or c > 0
                        for part in range(panels * phases):
                            panel, begin = part // phases, part % phases * tiles
                            right = filters[panel, part % phases, k, c:]
                            for i in range(begin, begin + used, height):
                                left = patch[(k * lines + i) * pitch :]
                                if 2 * (out.shape[1] - panel * width) > width:
                                    _tile.tile(total[k, panel, i:], left, rows, some, right, add)
                                else:
                                    _tile.narrow_tile(total[k, panel, i:], left, rows, some, right, add)
                step = panels * lines * width
                low, high = borders[band], borders[band + 1]
                for panel in range(panels):
                    for phase in range(phases):
                        begin, end = phase * tiles * width, (phase * tiles + used) * width
                        columns = width if 2 * (out.shape[1] - panel * width) > width else vector
                        for j in range(begin, end, width):
                            for c in range(j, j + columns, vector):
                                at = panel * lines * width + c
                                back_to_pixels(product, 3 * j + c, 2 * width, width, summed, at, points * step, step)
                        finite[thread] &= is_finite(product[4 * begin : 4 * end])
                    for n in range(here):
                        made = out[first + n, panel * width : (panel + 1) * width, low:high]
                        _tile.channels_first(product, place[n], made, planes[1])

    return kernel


_KERNELS = {taps: (_filters(form), _multiply(form)) for taps, form in FORMS.items()}


@functools.lru_cache(maxsize=256)
def form_that_pays(
    x: Extents, kernel: Extents, made: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int,
    adjoint: bool = False,
) -> int:  # fmt: skip
    """The taps to a stride, if what has the shape `made` can be computed from x so, and that is faster; else 0."""
    taps, phases = kernel[0] // stride[0], math.prod(stride)
    if (
        len(kernel) != 2
        or taps not in FORMS
        or kernel != tuple(taps * s for s in stride)
        or any(p >= k for p, k in zip(padding, kernel, strict=True))
        or {*dilation, groups} != {1}
    ):
        return 0
    each = stride if adjoint else (1, 1)  # phases of the output
    patches = math.prod(math.ceil(math.ceil(size / s) / 2) for size, s in zip(made[2:], each, strict=True))
    pays = (
        min(x[1], made[1]) >= _CHANNELS
        and x[0] * patches >= _PATCHES
        and x[0] * patches * x[1] * made[1] * phases >= _WORK
        and 16 * patches * math.prod(each) <= 5 * math.prod(made[2:])  # what is computed outside of it is lost
    )
    return taps * pays


@functools.lru_cache(maxsize=64)
def _plan(
    taps: int, x: Extents, made: Extents, stride: Extents, padding: Extents, adjoint: bool, threads: int, most: int
) -> tuple[Any, Any, Any]:
    """What shapes say: the shapes of the memory, the lines of the filters' panels, what the kernel is given at last."""
    (height, width), phases = _tile.shape(32), math.prod(stride)
    channels = x[1] if adjoint else x[1] * phases
    panels, pitch = math.ceil(made[1] / width), channels + -channels % (width // 2)
    most = max(most, int(_OF_FILTERS * 4 * (taps + 1) ** 2 * x[1] * phases * made[1]))
    table = tables(taps, x[0], x[1], x[2:], made[2:], stride, padding, adjoint, threads, most)
    lines = table.corners.shape[1] * table.tiles
    shapes = (
        (panels, table.corners.shape[1], taps**2 * channels, width),
        (panels, table.corners.shape[1], (taps + 1) ** 2, channels, width),
        (threads, len(table.place) * table.image + width),
        (threads, (taps + 1) ** 2, lines, pitch),
        (threads, (taps + 1) ** 2, panels, lines, width),
        (threads, 4 * lines, width),
    )
    places = lines_of_taps(taps, stride, padding, x[1], x[1])[adjoint] * width
    planes = _panels.planes(width // 2, math.prod(x[2:]), math.prod(made[2:]))
    return shapes, places, (*table, np.arange(height) * pitch, np.arange(channels), planes)


def convolve(
    out: Any, x: Any, w: Any, b: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int,
    adjoint: bool = False,
) -> bool:  # fmt: skip
    """out[n, k] = b[k] + x[n] ⋆ w[k]; as `adjoint`, the input gradient `out` for the upstream gradient x.

    False, with anything in `out`, where another way is faster, or where a number in between was not finite.
    """
    taps = form_that_pays(x.shape, w.shape[2:], out.shape, stride, padding, dilation, groups, adjoint)
    if not taps or x.dtype != np.float32 or _tile.PLAIN:
        return False
    shapes, places, layout = _plan(taps, x.shape, out.shape, stride, padding, adjoint, num_threads(), _NEAR)
    panels, phases, _, width = shapes[0]
    bias = np.zeros((panels, width), x.dtype)
    if b is not None:
        bias.reshape(-1)[: b.size] = b
    finite = np.empty(num_threads(), bool)
    w = w.reshape(1, *w.shape[:2], -1) if adjoint else w.reshape(1, 1, len(w), -1)
    x, out = x.reshape(*x.shape[:2], -1), out.reshape(*out.shape[:2], -1)
    transform, multiply = _KERNELS[taps]
    with _scratch.Scratch(x.dtype, *shapes) as (right, transformed, *memory):
        _panels.fill(right.reshape(panels, -1, width), w, places)
        transform(transformed.reshape(-1, *shapes[1][2:]), right.reshape(panels * phases, -1, width))
        multiply(out, x, transformed, bias, *memory, finite, *layout)
    return bool(finite.all())
