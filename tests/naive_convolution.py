"""Convolutions written out as matrices, by loops, in NumPy; and layers of every kind to do it for."""

import itertools

import numpy as np
from normalized_layers import F64

import minigrad as mg
from minigrad.nn.utils import spectral_norm


def dense(w, space, stride, padding, dilation, groups, circular=False):
    """The matrix (K·O, C·S) of a convolution, entry by entry; `circular`: borders joined, as many outputs as fit."""
    n, filters = len(space), w.shape[0]
    reach = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    outputs = [
        s // t if circular else (s + 2 * p - r) // t + 1
        for s, t, p, r in zip(space, stride, padding, reach, strict=True)
    ]
    out = np.zeros((filters, *outputs, w.shape[1] * groups, *space))
    for k, c in itertools.product(range(filters), range(w.shape[1])):
        channel = k // (filters // groups) * w.shape[1] + c
        for o in itertools.product(*map(range, outputs)):
            for tap in itertools.product(*map(range, w.shape[2:])):
                at = [o[i] * stride[i] + tap[i] * dilation[i] - padding[i] for i in range(n)]
                if circular:
                    at = [a % s for a, s in zip(at, space, strict=True)]
                if all(0 <= a < s for a, s in zip(at, space, strict=True)):
                    out[(k, *o, channel, *at)] += w[(k, c, *tap)]
    return out.reshape(filters * int(np.prod(outputs)), -1)


def matrix_of(layer, space, w=None):
    """The matrix of a layer, (outputs, inputs)."""
    w = layer.weight.detach().numpy() if w is None else w
    if not layer.transposed:
        return dense(w, space, layer.stride, layer.padding, layer.dilation, layer.groups)
    wide = [
        (s - 1) * t - 2 * p + d * (k - 1) + e + 1
        for s, t, p, d, k, e in zip(
            space, layer.stride, layer.padding, layer.dilation, layer.kernel_size, layer.output_padding, strict=True
        )
    ]
    full = dense(w, wide, layer.stride, layer.padding, layer.dilation, layer.groups)
    outputs = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(wide, layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    ]
    rows = full.reshape(layer.in_channels, *outputs, -1)
    rows = rows[(slice(None), *(slice(s) for s in space))]  # an output_padding of a stride or more has further ones
    return rows.reshape(-1, rows.shape[-1]).T


LAYERS = {
    "Conv2d": (lambda: mg.nn.Conv2d(2, 3, 3, padding=1, **F64), (4, 5)),
    "Conv2d, stride, dilation, groups": (
        lambda: mg.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, **F64),
        (5, 4),
    ),
    "Conv1d": (lambda: mg.nn.Conv1d(3, 2, 4, stride=3, **F64), (11,)),
    "Conv3d": (lambda: mg.nn.Conv3d(1, 2, 2, padding=1, stride=(1, 2, 1), **F64), (2, 3, 2)),
    "ConvTranspose2d": (lambda: mg.nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1, **F64), (3, 2)),
    "ConvTranspose1d, output_padding": (
        lambda: mg.nn.ConvTranspose1d(4, 2, 3, stride=3, padding=1, output_padding=2, groups=2, **F64),
        (4,),
    ),
    "ConvTranspose2d, output_padding beyond the stride": (
        lambda: mg.nn.ConvTranspose2d(2, 2, 2, dilation=3, output_padding=2, **F64),
        (3, 3),
    ),
    "ConvTranspose3d": (lambda: mg.nn.ConvTranspose3d(2, 1, 2, stride=2, **F64), (2, 1, 2)),
}


def registered(layer, space, **options):
    return spectral_norm(layer, norm="operator", input_shape=space, **{"n_init_iterations": 0, **options})
