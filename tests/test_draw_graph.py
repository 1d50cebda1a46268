"""`mg.spectral.draw_graph`: what is in the text and in the picture, and that nothing in it covers anything else."""

import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, strategies as st

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.spectral.graph import _separated

SVG = "{http://www.w3.org/2000/svg}"


class Residual(mg.nn.Module):
    """Two branches, a shared weight, normalized layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = spectral_norm(mg.nn.Conv2d(1, 4, 3, padding=1))
        self.conv2 = spectral_norm(mg.nn.Conv2d(4, 4, 3, padding=1))
        self.skip = mg.nn.Conv2d(1, 4, 1)
        self.out = mg.nn.Linear(64, 64)

    def forward(self, x):
        h = (self.conv2(mg.silu(self.conv1(x))) + self.skip(x)).reshape(x.shape[0], -1)
        return mg.tanh(self.out(self.out(h)))


def recurrent():
    cell, h = spectral_norm(mg.nn.LSTMCell(3, 4), "weight_hh"), (mg.zeros(2, 4), mg.zeros(2, 4))
    for _ in range(4):
        h = cell(mg.randn(2, 3), h)
    return h[0].sum(), cell


def pulled_back():
    weight = mg.randn(3, 4, requires_grad=True)
    u, v = (x / x.norm() for x in (mg.randn(3), mg.randn(4)))
    w_bar, sigma = mg.nn.functional.spectral_normalize(weight, u, v)
    (gradient,) = mg.grad((w_bar**3).sum() * sigma, weight, create_graph=True)
    return (gradient * gradient).sum(), None


def residual():
    net = Residual()
    return net(mg.randn(2, 1, 4, 4)).sum(), net


def crowd():
    xs = [mg.randn(k + 1, requires_grad=True) for k in range(12)]
    return mg.cat([mg.exp(x) for x in xs] + [mg.sin(mg.sin(mg.sin(xs[3])))]).sum(), None


def fork():
    """The older of two branches is the shorter one."""
    y = mg.exp(mg.randn(3, requires_grad=True))
    short = mg.sin(y)
    return (short + mg.sin(mg.sin(mg.sin(mg.cos(y))))).sum(), None


DRAWN = [recurrent, pulled_back, residual, crowd, fork]


def number(element, name):
    return float(element.get(name))


def parts(drawing):
    """(class, x, y, width, height, its words) of each box, and the paths."""
    root = ElementTree.fromstring(drawing.svg)
    assert root.tag == f"{SVG}svg"
    boxes, found = [], list(root)
    for rect, *words in zip(found, found[1:], found[2:], strict=False):
        if rect.tag == f"{SVG}rect" and rect.get("x"):
            x, y, width, height = (number(rect, name) for name in ("x", "y", "width", "height"))
            assert [word.tag for word in words] == [f"{SVG}text"] * 2
            assert all(number(word, "x") == pytest.approx(x + width / 2, abs=0.2) for word in words)
            assert all(y < number(word, "y") < y + height for word in words)
            boxes.append((rect.get("class"), x, y, width, height, *[word.text for word in words]))
    return root, boxes, root.findall(f"{SVG}path")


@pytest.mark.parametrize("make", DRAWN)
def test_no_box_covers_another_and_names_fit(make):
    drawing = mg.spectral.draw_graph(*make())
    root, boxes, _ = parts(drawing)
    assert len(boxes) > 7
    for (_, ax, ay, aw, ah, *_), (_, bx, by, bw, bh, *_) in combinations(boxes, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
    for _, x, y, width, height, name, below in boxes:
        assert x >= 0 and y >= 0 and x + width <= number(root, "width") and y + height <= number(root, "height")
        assert width >= 7.4 * len(name) and width >= 6.6 * len(below)  # wider than any letter of 12 and 10.5 pixels


@pytest.mark.parametrize("make", DRAWN)
def test_edges_lead_down_from_box_to_box_and_past_all_others(make):
    _, boxes, paths = parts(mg.spectral.draw_graph(*make()))
    assert len(paths) >= len(boxes) - 1
    for path in paths:
        numbers = list(map(float, re.findall(r"[-\d.]+", path.get("d"))))
        (x, y), (end_x, end_y) = numbers[:2], numbers[-2:]
        starts = [b for b in boxes if b[2] + b[4] == pytest.approx(y, abs=0.2) and b[1] < x < b[1] + b[3]]
        ends = [b for b in boxes if b[2] == pytest.approx(end_y, abs=0.2) and b[1] < end_x < b[1] + b[3]]
        assert len(starts) == len(ends) == 1 and end_y > y
        for x, y in along(path):
            assert not any(bx < x < bx + width and by < y < by + height for _, bx, by, width, height, *_ in boxes)


def along(path):
    """Points of a path of cubic curves and vertical lines."""
    x, y = 0.0, 0.0
    for command, rest in re.findall(r"([MCV])([-\d. ]+)", path.get("d")):
        numbers = np.array(rest.split(), float)
        if command == "C":
            curve = np.array([[x, y], *numbers.reshape(3, 2)])
            for t in np.linspace(0.02, 0.98, 25):
                yield np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]) @ curve
        elif command == "V":
            yield from ((x, y + t * (numbers[-1] - y)) for t in (0.1, 0.5, 0.9))
        x, y = numbers[-2:] if command != "V" else (x, numbers[-1])


def test_what_is_in_it():
    loss, net = residual()
    drawing = mg.spectral.draw_graph(loss, net)
    _, boxes, _ = parts(drawing)
    ops = [(name, below) for kind, *_, name, below in boxes if kind == "op"]
    assert sorted(ops) == sorted(
        [("conv", "2×4×4×4")] * 3 + [("silu", "2×4×4×4"), ("add", "2×4×4×4"), ("reshape", "2×64")]
        + [("linear", "2×64")] * 2 + [("tanh", "2×64"), ("sum", "scalar")]
    )  # fmt: skip
    spectral = [(name, below) for kind, *_, name, below in boxes if kind == "spectral"]
    assert spectral == [("W̄ = W/(uᵀWv)", "normalize 4×1×3×3"), ("W̄ = W/(uᵀWv)", "normalize 4×4×3×3")]
    leaves = [name for kind, *_, name, _ in boxes if kind == "leaf"]
    assert set(leaves) == {name for name, _ in net.named_parameters()} and leaves.count("out.weight") == 2
    fixed = [(name, below) for kind, *_, name, below in boxes if kind == "constant"]
    assert sorted(fixed) == sorted(
        [("x", "2×1×4×4")] * 2 + [("u", "4"), ("v", "9"), ("u", "4"), ("v", "36")] + [("sigma", "scalar")] * 2
    )


def test_the_text_has_everything_once():
    loss, net = residual()
    text = mg.spectral.draw_graph(loss, net).dot
    assert text.startswith("digraph {") and text.endswith("}")
    labels = dict(re.findall(r'(n\d+) \[label="(.*?)\\n', text))
    edges = re.findall(r"(n\d+) -> (n\d+)", text)
    assert len(labels) == len(re.findall("label=", text))
    assert sum(label == "out.weight" for label in labels.values()) == 1
    into = {name: [labels[a] for a, b in edges if labels[b] == name] for name in ("linear", "W̄ = W/(uᵀWv)", "sum")}
    assert sorted(into["linear"]) == sorted(2 * ["out.weight", "out.bias"] + ["reshape", "linear"])
    assert sorted(into["W̄ = W/(uᵀWv)"])[-3:] == ["u", "v", "v"] or into["W̄ = W/(uᵀWv)"].count("u") == 2
    assert into["sum"] == ["tanh"]
    assert {a for a, _ in edges} | {b for _, b in edges} == set(labels)


@pytest.mark.parametrize(
    ("gradient", "marked"),
    [
        ("fixed_uv", {"W̄ = W/(uᵀWv)"}),
        ("projected", {"W̄, gradient G"}),
        ("exact", {"σ₁(W)"}),
        ("elementwise", {"W̄, elementwise gradient"}),
        ("straight_through", {"W̄, gradient G"}),
        ("detached", set()),
        ("unrolled", set()),
    ],
)
def test_the_marks_of_the_conventions(gradient, marked):
    layer = spectral_norm(mg.nn.Linear(3, 2), gradient=gradient)
    _, boxes, _ = parts(mg.spectral.draw_graph(layer(mg.ones(1, 3)), layer))
    assert {name for kind, *_, name, _ in boxes if kind == "spectral"} == marked


def test_gradients_of_gradients():
    _, boxes, _ = parts(mg.spectral.draw_graph(*pulled_back()))
    spectral = {name for kind, *_, name, _ in boxes if kind == "spectral"}
    assert spectral >= {"W̄ = W/(uᵀWv)", "(G − λ u vᵀ)/σ", "σ = uᵀWv"}


def test_nothing_changes_and_a_freed_graph_is_drawn_too():
    layer = spectral_norm(mg.nn.Linear(3, 2))
    loss = layer(mg.randn(4, 3)).sum()
    mg.spectral.draw_graph(loss)
    loss.backward()
    wanted = layer.parametrizations.weight.original.grad.numpy().copy()
    assert np.abs(wanted).max() > 0
    names = [name for *_, name, _ in parts(mg.spectral.draw_graph(loss, layer))[1]]
    assert "u" not in names and {"linear", "bias", "W̄ = W/(uᵀWv)"} <= set(names)


def test_names_are_escaped():
    model = mg.nn.Module()
    setattr(model, 'a<"&', mg.nn.Parameter(mg.ones(2)))
    drawing = mg.spectral.draw_graph(getattr(model, 'a<"&').sum(), model)
    assert 'a<"&' in [name for *_, name, _ in parts(drawing)[1]]
    assert r'label="a<\"&\n2"' in drawing.dot


def test_a_deep_graph():
    x = mg.ones(2, requires_grad=True)
    y = x
    for _ in range(3000):
        y = y * x
    assert mg.spectral.draw_graph(y).dot.count("mul") == 3000


def test_saving(tmp_path):
    drawing = mg.spectral.draw_graph(mg.ones(2, requires_grad=True).sum())
    drawing.save(tmp_path / "graph.svg")
    drawing.save(tmp_path / "graph.dot")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == drawing.svg == drawing._repr_svg_()
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == drawing.dot
    with pytest.raises(ValueError, match=r"expected a path that ends in \.svg or \.dot; got .*graph\.png"):
        drawing.save(tmp_path / "graph.png")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (3.0, TypeError, "draw_graph: expected a tensor; got float"),
        (mg.ones(2), ValueError, "has no graph"),
        (mg.ones(2, requires_grad=True), ValueError, "has no graph"),
    ],
)
def test_what_has_no_graph(given, error, words):
    with pytest.raises(error, match=words):
        mg.spectral.draw_graph(given)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(1, 50)), min_size=1, max_size=8))
def test_places_are_apart_and_nothing_is_nearer(rows):
    wanted, apart = [w for w, _ in rows], [a for _, a in rows][1:]
    found = _separated(wanted, apart)
    assert all(b - a >= s - 1e-9 for a, b, s in zip(found, found[1:], apart, strict=False))
    best = sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True))
    rng = np.random.default_rng(0)
    for _ in range(50):  # any other places that are far enough apart
        tried = np.array(found) + rng.standard_normal(len(found)) * rng.choice([0.01, 1, 20])
        for i, s in enumerate(apart):
            tried[i + 1] = max(tried[i + 1], tried[i] + s)
        assert ((tried - wanted) ** 2).sum() >= best - 1e-6
