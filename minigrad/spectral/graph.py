"""The computation graph behind a tensor, as the engine recorded it: in the language of Graphviz, and drawn as SVG.

Drawn in layers down to the tensor (Sugiyama, Tagawa, Toda 1981): each op right above the first that takes it, the order
within a layer by the mean place of the neighbours, and places that come as near to that as the widths allow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

from minigrad._op import Node
from minigrad._tensor import Tensor
from minigrad.nn.module import Module

#: What some ops of spectral normalization are: what stands in the box, and below it.
FORMULAS = {
    "normalize": "W̄ = W/(uᵀWv)",
    "sigma": "σ = uᵀWv",
    "rank_one": "c u vᵀ",
    "pullback": "(G − λ u vᵀ)/σ",
    "sigma_max": "σ₁(W)",
    "misread": "W̄, elementwise gradient",
    "pretend": "W̄, gradient G",
}
_SPECTRAL = ("minigrad.ops.spectral", "minigrad.ops.conventions", "minigrad.ops.singular")
LETTER, PAD, GAP, BOX, ROW = 7.4, 12, 20, 40, 78  # pixels: of a letter, in a box, between boxes, a box, a layer
_INK, _MUTED, _PAPER = "var(--ink, #1e1d1b)", "var(--muted, #69665f)", "var(--paper, #fcfbf8)"
#: The colours of the study's page where it is drawn in one, else those that the page has by day.
STYLE = f"""
.graph text {{ font: 12px var(--sans, system-ui, "DejaVu Sans", sans-serif); fill: {_INK}; text-anchor: middle; }}
.graph .name {{ font-weight: 600; }}
.graph .below {{ font-size: 10.5px; fill: {_MUTED}; }}
.graph .paper {{ fill: {_PAPER}; }}
.graph .op {{ fill: var(--tint, #f4f2ec); stroke: {_MUTED}; stroke-width: 0.9; }}
.graph .spectral {{ fill: var(--good-tint, #e4f1e7); stroke: var(--good, #14713f); stroke-width: 1.4; }}
.graph .leaf {{ fill: {_PAPER}; stroke: var(--fixed-uv, #1c5fb0); stroke-width: 1.2; }}
.graph .constant {{ fill: {_PAPER}; stroke: {_MUTED}; stroke-dasharray: 3 2.5; }}
.graph .edge {{ fill: none; stroke: {_INK}; }}
.graph .dashed {{ fill: none; stroke: {_MUTED}; stroke-dasharray: 3 2.5; }}
.graph .tip {{ fill: {_INK}; }}
"""


@dataclass(eq=False)
class Box:
    """What is drawn: an op, a leaf (once per op that takes it), a constant; or, without a name, a bend of an edge."""

    kind: str  # op, spectral, leaf, constant; "" for a bend
    name: str = ""
    below: str = ""
    key: str = ""  # its name in the DOT text
    inputs: list[Box] = field(default_factory=list)
    layer: int = 0  # that of the tensor; those above are negative
    x: float = 0.0

    @property
    def width(self) -> float:
        return max(len(self.name) * LETTER, len(self.below) * LETTER * 0.9) + 2 * PAD if self.kind else 2.0

    @property
    def y(self) -> float:
        return PAD + BOX / 2 + ROW * self.layer


@dataclass(frozen=True)
class Drawing:
    """A computation graph: `dot` is its text for Graphviz, `svg` a picture, which a notebook shows by itself."""

    dot: str
    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file that the name ends in: `.svg`, or `.dot`. ValueError: another ending."""
        written = {".svg": self.svg, ".dot": self.dot}
        ending = Path(path).suffix
        if ending not in written:
            raise ValueError(f"draw_graph: expected a path that ends in .svg or .dot; got {os.fspath(path)!r}")
        Path(path).write_text(written[ending], encoding="utf-8")


def draw_graph(tensor: Tensor, model: Module | None = None) -> Drawing:
    """The graph that made a tensor: ops with the shapes of their outputs, from the leaves above to the tensor below.

    The ops of spectral normalization are marked. (`detached` and `unrolled` are made of ordinary ops.) Leaves that get
    a gradient are outlined in blue, under the names that `model` has for them, or else that of the op's input; tensors
    that a gradient needs and does not flow to, such as u and v, are dashed, as long as the graph holds them: `backward`
    frees them. A leaf stands beside every op that takes it, in the DOT text once.

    TypeError: no tensor. ValueError: a tensor without a graph.

    >>> import minigrad as mg
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(3, 2))
    >>> drawing = mg.spectral.draw_graph(layer(mg.ones(1, 3)).sum(), layer)
    >>> print(drawing.dot)
    digraph {
      node [shape=box, fontname="sans-serif"];
      n0 [label="parametrizations.weight.original\\n2×3", shape=ellipse, color="#1c5fb0"];
      ...
      n4 [label="W̄ = W/(uᵀWv)\\nnormalize 2×3", style=filled, fillcolor="#e4f1e7", color="#14713f"];
      n5 [label="x\\n1×3", shape=ellipse, style=dashed, color="#69665f"];
      n6 [label="bias\\n2", shape=ellipse, color="#1c5fb0"];
      n7 [label="linear\\n1×2"];
      n8 [label="sum\\nscalar"];
      n0 -> n4;
      ...
    }
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"draw_graph: expected a tensor; got {type(tensor).__name__}")
    if tensor.node is None:
        raise ValueError(
            "draw_graph: the tensor has no graph: nothing that it was made from requires grad, or it was made under "
            "no_grad(). Draw the output of a forward pass."
        )
    names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    ops = _boxes(tensor.node, names)
    return Drawing(_dot(ops), _svg(ops))


def _boxes(root: Node, names: dict[int, str]) -> list[Box]:
    """The ops from the oldest to the newest, each linked to its inputs."""
    made: dict[int, Box] = {}
    for node in _reachable(root):
        formula = FORMULAS.get(node.op.name, "") if _is_spectral(node) else ""
        shape = _written(node.shape)
        box = Box("spectral" if _is_spectral(node) else "op", formula or node.op.name, shape, f"n{len(made)}")
        if formula:
            box.below = f"{node.op.name} {shape}"
        for i, edge in enumerate(node.edges):
            name = node.op.input_name(i)
            if isinstance(edge, Node):
                box.inputs.append(made[id(edge)])
            elif edge is not None:
                box.inputs.append(Box("leaf", names.get(id(edge), name), _written(edge.shape), f"t{id(edge)}"))
            elif isinstance(x := node.kept().get(name), Tensor) and not node.op.variadic:
                box.inputs.append(Box("constant", name, _written(x.shape), f"{box.key}_{name}"))
        made[id(node)] = box
    for box in reversed(made.values()):
        for one in box.inputs:
            one.layer = min(one.layer, box.layer - 1)
    return list(made.values())


def _reachable(root: Node) -> list[Node]:
    """All nodes behind this one and itself, from the oldest to the newest."""
    seen: dict[int, Node] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack.extend(edge for edge in node.edges if isinstance(edge, Node))
    return sorted(seen.values(), key=lambda node: node.serial)


def _is_spectral(node: Node) -> bool:
    return node.op.forward.__module__ in _SPECTRAL


def _written(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"


# Text ----------------------------------------------------------------------------------------------------------------

_LOOKS = {
    "op": "",
    "spectral": ', style=filled, fillcolor="#e4f1e7", color="#14713f"',
    "leaf": ', shape=ellipse, color="#1c5fb0"',
    "constant": ', shape=ellipse, style=dashed, color="#69665f"',
}


def _dot(ops: list[Box]) -> str:
    """The graph for Graphviz: everything once, in the order of the computation."""
    keys: dict[str, str] = {}  # of leaves by their identity, numbered as they come
    lines, edges = [], []
    for op in ops:
        for one in (*op.inputs, op):
            if one.key not in keys:
                keys[one.key] = f"n{len(keys)}"
                label = f"{one.name}\\n{one.below}".replace('"', '\\"')
                lines.append(f'{keys[one.key]} [label="{label}"{_LOOKS[one.kind]}];')
        for one in op.inputs:
            dashed = " [style=dashed]" if one.kind == "constant" else ""
            edges.append(f"{keys[one.key]} -> {keys[op.key]}{dashed};")
    return "\n  ".join(["digraph {", 'node [shape=box, fontname="sans-serif"];', *lines, *edges]) + "\n}"


# Picture -------------------------------------------------------------------------------------------------------------


def _svg(ops: list[Box]) -> str:
    paths = [_bent(one, op) for op in ops for one in dict.fromkeys(op.inputs)]
    boxes = list(dict.fromkeys([box for path in paths for box in path] + ops))
    _place(boxes, [link for path in paths for link in pairwise(path)])
    left = min(box.x - box.width / 2 for box in boxes) - PAD
    top = min(box.layer for box in boxes)
    for box in boxes:
        box.x -= left
        box.layer -= top
    width, height = max(box.x + box.width / 2 for box in boxes) + PAD, max(box.y for box in boxes) + BOX / 2 + PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Computation graph" class="graph">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0.5 L7.5 4 L0 7.5z" class="tip"/></marker></defs>',
        '<rect width="100%" height="100%" class="paper"/>',
        *map(_line, paths),
        *(_drawn(box) for box in boxes if box.kind),
    ]
    return "\n".join([*parts, "</svg>"])


def _bent(start: Box, end: Box) -> list[Box]:
    """An edge with a bend in each layer that it crosses."""
    return [start, *(Box("", layer=layer) for layer in range(start.layer + 1, end.layer)), end]


def _place(boxes: list[Box], links: list[tuple[Box, Box]]) -> None:
    """Give each box its x: first the order within the layers, then the places."""
    rows: dict[int, list[Box]] = {}
    near: dict[Box, list[Box]] = {box: [] for box in boxes}
    for box in boxes:
        rows.setdefault(box.layer, []).append(box)
    for above, below in links:
        near[above].append(below)
        near[below].append(above)
    for row in rows.values():
        for i, box in enumerate(row):
            box.x = i - len(row) / 2
    down, up = sorted(rows), sorted(rows, reverse=True)
    for turn in range(8):
        for layer in up if turn % 2 else down:
            rows[layer].sort(key=lambda box: _mean([other.x for other in near[box]], box.x))
            for i, box in enumerate(rows[layer]):
                box.x = i - len(rows[layer]) / 2
    for turn in range(24):
        for layer in down if turn % 2 else up:
            row = rows[layer]
            apart = [(a.width + b.width) / 2 + GAP for a, b in pairwise(row)]
            wanted = [_mean([other.x for other in near[box]], box.x) for box in row]
            for box, x in zip(row, _separated(wanted, apart), strict=True):
                box.x = x


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _separated(wanted: Sequence[float], apart: Sequence[float]) -> list[float]:
    """The x that minimize Σ(xᵢ − wantedᵢ)² with xᵢ₊₁ − xᵢ ≥ apartᵢ: isotonic regression, by pooling neighbours.

    >>> _separated([0.0, 0.0, 9.0], [2.0, 2.0])
    [-1.0, 1.0, 9.0]
    """
    offsets = [0.0]
    for one in apart:
        offsets.append(offsets[-1] + one)
    pools: list[tuple[float, int]] = []  # (sum, number) of those that are pushed together
    for x, offset in zip(wanted, offsets, strict=True):
        total, count = x - offset, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            more, others = pools.pop()
            total, count = total + more, count + others
        pools.append((total, count))
    means = [total / count for total, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _line(path: list[Box]) -> str:
    d = f"M{path[0].x:.1f} {path[0].y + BOX / 2:.1f}"
    for above, below in pairwise(path):
        top, bottom = above.y + BOX / 2, below.y - BOX / 2
        middle = (top + bottom) / 2
        d += f" C{above.x:.1f} {middle:.1f} {below.x:.1f} {middle:.1f} {below.x:.1f} {bottom:.1f}"
        d += "" if below.kind else f" V{below.y + BOX / 2:.1f}"
    return f'<path d="{d}" class="{"dashed" if path[0].kind == "constant" else "edge"}" marker-end="url(#tip)"/>'


def _drawn(box: Box) -> str:
    round_off = 5 if box.kind in ("op", "spectral") else BOX / 2
    return (
        f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y - BOX / 2:.1f}" width="{box.width:.1f}" height="{BOX}" '
        f'rx="{round_off:g}" class="{box.kind}"/>'
        f'<text x="{box.x:.1f}" y="{box.y - 2:.1f}" class="name">{escape(box.name)}</text>'
        f'<text x="{box.x:.1f}" y="{box.y + 13:.1f}" class="below">{escape(box.below)}</text>'
    )
