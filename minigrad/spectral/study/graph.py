"""The computation graph of one normalized layer, read from the engine's own nodes and drawn as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import minigrad as mg
from minigrad._op import Node

WIDTH, ROW, TOP = 440, 84, 46
BOX_WIDTH, BOX_HEIGHT = 176, 44
PILL_WIDTH, PILL_HEIGHT = 92, 28
#: What stands in the node that this is all about: forward and backward.
SPECTRAL = "W̄ = W/(uᵀWv)", "∂L/∂W = (G − λ u vᵀ)/σ"


@dataclass(frozen=True)
class Input:
    """Something that enters an op from the side: a parameter (gradient flows back to it) or a constant."""

    label: str
    shape: tuple[int, ...] | None
    differentiated: bool


@dataclass(frozen=True)
class Step:
    """One op on the way from the raw weight to the output."""

    op: str
    shape: tuple[int, ...]
    inputs: list[Input]


def draw(module: Any) -> str:
    """The graph of one forward call of a normalized Linear or Conv2d, from the raw weight down to the output."""
    if isinstance(module, mg.nn.Linear):
        x = mg.ones(1, module.in_features)
    else:
        x = mg.ones(1, module.in_channels, 8, 8)
    module.eval()  # no sweep: u and v stay
    output = module(x.to(module.bias.device))
    module.train()
    labels = {id(parameter): name.rpartition(".")[2] for name, parameter in module.named_parameters()}
    return render(chain(output.node, labels))


def chain(node: Node | None, labels: dict[int, str]) -> list[Step]:
    """The ops from the raw weight to `node`, in the order of the forward pass, each with its inputs from the side."""
    steps = []
    while node is not None:
        onward, inputs = None, []
        for i, edge in enumerate(node.edges):
            name = node.op.input_name(i)
            if isinstance(edge, Node) and onward is None:
                onward = edge
            elif isinstance(edge, Node):
                inputs.append(Input(edge.op.name, edge.shape, True))
            elif edge is None:
                inputs.append(Input(name, None, False))
            else:
                inputs.append(Input(labels.get(id(edge), name), edge.shape, True))
        steps.append(Step(node.op.name, node.shape, inputs))
        node = onward
    return steps[::-1]


def render(steps: list[Step]) -> str:
    """The SVG: the raw weight on top, the ops below one another, other inputs at their sides."""
    first = next((one for one in steps[0].inputs if one.label == "original"), None)
    height = TOP + 40 + ROW * len(steps) + 34
    middle = WIDTH / 2
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Computation graph of one layer" class="graph">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0.5 L7.5 4 L0 7.5z" class="tip"/></marker></defs>',
    ]
    if first is not None:
        parts += _pill(middle, TOP - 12, Input("raw weight W", first.shape, True), wide=True)
    for row, step in enumerate(steps):
        y = TOP + 50 + ROW * row + BOX_HEIGHT / 2
        above = TOP - 12 + PILL_HEIGHT / 2 if row == 0 else y - ROW + BOX_HEIGHT / 2
        if row or first is not None:
            parts.append(_arrow(middle, above, middle, y - BOX_HEIGHT / 2))
        parts += _box(middle, y, step)
        sides = [one for one in step.inputs if one is not first]
        for i, one in enumerate(sides):
            left = i % 2 == 0
            x = 8 + PILL_WIDTH / 2 if left else WIDTH - 8 - PILL_WIDTH / 2
            at = y + (i // 2) * (PILL_HEIGHT + 6)
            parts += _pill(x, at, one)
            inner, edge = (
                (x + PILL_WIDTH / 2, middle - BOX_WIDTH / 2)
                if left
                else (
                    x - PILL_WIDTH / 2,
                    middle + BOX_WIDTH / 2,
                )
            )
            parts.append(_arrow(inner, at, edge, y + 9 * (i // 2), dashed=not one.differentiated))
    bottom = TOP + 50 + ROW * len(steps) - ROW + BOX_HEIGHT
    parts.append(_arrow(middle, bottom, middle, bottom + 26))
    parts.append(_text(middle, bottom + 42, f"output {_shape(steps[-1].shape)}"))
    return "\n".join([*parts, "</svg>"])


def _box(x: float, y: float, step: Step) -> list[str]:
    spectral = {"u", "v"} <= {one.label for one in step.inputs}
    kind = "node spectral" if spectral else "node"
    name, below = SPECTRAL if spectral else (step.op, _shape(step.shape))
    return [
        f'<rect x="{x - BOX_WIDTH / 2:g}" y="{y - BOX_HEIGHT / 2:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" '
        f'class="{kind}"/>',
        _text(x, y - 4, name, "name"),
        _text(x, y + 13, below, "small"),
    ]


def _pill(x: float, y: float, one: Input, wide: bool = False) -> list[str]:
    width = BOX_WIDTH if wide else PILL_WIDTH
    label = one.label + (f" {_shape(one.shape)}" if one.shape else "")
    kind = "parameter" if one.differentiated else "constant"
    return [
        f'<rect x="{x - width / 2:g}" y="{y - PILL_HEIGHT / 2:g}" width="{width}" height="{PILL_HEIGHT}" '
        f'rx="{PILL_HEIGHT / 2:g}" class="{kind}"/>',
        _text(x, y + 4.5, label),
    ]


def _arrow(x1: float, y1: float, x2: float, y2: float, dashed: bool = False) -> str:
    kind = "edge constant-edge" if dashed else "edge"
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" class="{kind}" marker-end="url(#tip)"/>'


def _text(x: float, y: float, text: str, kind: str = "label") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape or ()))
