"""SpectralNorm: spectral normalization as a layer around a layer."""

from __future__ import annotations

from typing import Any

from minigrad.nn.module import Module
from minigrad.nn.utils.spectral_norm import spectral_norm


class SpectralNorm(Module):
    """The wrapper form of `spectral_norm`: a layer that holds another one and calls it with W̄ = W/σ(W) (8).

    `layer`: any module with the parameter; the other arguments, what they do and the errors are those of
    `mg.nn.utils.spectral_norm`, which does the work. In the state dict the names of the layer follow `layer.`.

    >>> import minigrad as mg
    >>> model = mg.nn.Sequential(mg.nn.SpectralNorm(mg.nn.Linear(4, 3), n_power_iterations=2), mg.nn.ReLU())
    >>> model(mg.ones(2, 4)).shape
    (2, 3)
    >>> list(model.state_dict())[:2]
    ['0.layer.bias', '0.layer.parametrizations.weight.original']
    """

    def __init__(self, layer: Module, *arguments: Any, **options: Any):
        super().__init__()
        self.layer = spectral_norm(layer, *arguments, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)
