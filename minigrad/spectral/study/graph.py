"""The computation graph of one normalized layer."""

from __future__ import annotations

from typing import Any

import minigrad as mg


def draw(module: Any) -> str:
    """The graph of one forward call of a normalized Linear or Conv2d, as SVG."""
    if isinstance(module, mg.nn.Linear):
        x = mg.ones(1, module.in_features)
    else:
        x = mg.ones(1, module.in_channels, 8, 8)
    module.eval()  # no sweep: u and v stay
    output = module(x.to(module.bias.device))
    module.train()
    return mg.spectral.draw_graph(output, module).svg
