"""A digits classifier whose answers come with a proof: python examples/certified_mlp.py.

If f is L-Lipschitz, then f_y − f_j is √2 L-Lipschitz, and no change of the image that is shorter than margin/(√2 L)
changes the answer y; the margin is f_y − max f_j over j ≠ y. By (7) of Miyato et al. 2018, L ≤ Π ‖W̄‖₂ for activations
with slopes of at most 1, and spectral normalization makes that about 1. About: the norm that it divides by is an
estimate σ̂ = uᵀWv ≤ σ₁, so that ‖W̄‖₂ = σ₁/σ̂ ≥ 1, and L = 1 would be no proof. The L here is the product of the norms
of the W̄ that are used, by SVD in float64.

An attack bounds the accuracy from above: projected gradient descent looks for a wrong answer within the radius. The
truth lies between the two. An ordinary network of the same size has a certificate too, and it is worth little.
"""

from typing import NamedTuple

import numpy as np
from _common import arguments, finish, progress, whole
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import minigrad as mg
from minigrad import nn
from minigrad.cli import exit_on_interrupt
from minigrad.nn.utils import spectral_norm

TRAIN = 1300  # examples; the others are the test


class Trained(NamedTuple):
    """A classifier in float64, and by how much Π ‖W̄‖₂ was above 1 at each look during its training."""

    model: nn.Module
    excess: list[tuple[int, float]]


def train(x, y, normalized, steps, seed, temperature=8.0):
    """A multilayer perceptron, 64-256-256-10.

    The cross-entropy of `temperature` times the outputs goes on rewarding margins until they are some 4/temperature
    wide; without it a 1-Lipschitz network could not make its probabilities say anything.
    """
    mg.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.LeakyReLU(0.1), nn.Linear(256, 256), nn.LeakyReLU(0.1), nn.Linear(256, 10)
    ).to(x.device)
    if normalized:
        spectral_norm(model, where=lambda path, module: isinstance(module, nn.Linear), n_init_iterations=1)
    optimizer = mg.optim.Adam(model.parameters(), lr=2e-3)
    schedule = mg.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, excess = np.random.default_rng(seed), []
    with progress("spectral normalization" if normalized else "no normalization", steps) as advance:
        for step in range(steps):
            if normalized and (step < 20 or step % 20 == 0):
                excess.append((step, np.prod([row["norm"] for row in mg.spectral.diagnose(model)]) - 1))
            chosen = mg.tensor(rng.integers(len(y), size=128), device=x.device)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy((temperature if normalized else 1) * model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(**({"loss": loss.item()} if step % 10 == 0 else {}))
    return Trained(model.to(mg.float64).eval(), excess)


def margins(model, x, y):
    """f_y − max f_j over j ≠ y, for each example; differentiable. Wrong answers have negative ones."""
    out = model(x)
    own = mg.tensor(np.eye(out.shape[1])[y.to("cpu").numpy()], device=x.device)
    return (out * own).sum(1) - (out - 1e9 * own).amax(1)


def certified_radii(model, x, y):
    """margin/(√2 L) with L = Π ‖W̄‖₂: nothing shorter changes a right answer; negative where the answer is wrong."""
    with mg.no_grad():
        return margins(model, x, y).to("cpu").numpy() / (np.sqrt(2) * mg.spectral.lipschitz_bounds(model, x).upper)


def attack(model, x, y, radius, steps=40):
    """Which examples keep their answers when gradient descent on the margin walks within `radius` of them, (N,).

    Each step goes a quarter of the radius along the gradient's direction, shorter towards the end, and is taken back to
    the ball in the 2-norm. Pixels may leave [0, 1]: the certificate holds for them too.
    """
    start = x.detach()
    at, kept = start, np.ones(len(x), bool)
    for step in range(steps + 1):
        at = at.detach().requires_grad_()
        margin = margins(model, at, y)
        kept &= margin.detach().to("cpu").numpy() > 0
        (slope,) = mg.grad(margin.sum(), at)
        move = slope / slope.norm(dim=1, keepdim=True).clip(1e-12)
        offset = at.detach() - (radius / 4 * (1 - step / (steps + 1))) * move - start
        at = start + offset * (radius / offset.norm(dim=1, keepdim=True).clip(1e-12)).clip(max=1)
    return kept


def curves(model, x, y, radii):
    """(certified accuracy, accuracy under attack) at each radius; what an attack broke stays broken at larger ones."""
    certified = certified_radii(model, x, y)
    kept, attacked = np.ones(len(x), bool), []
    with progress("attack", len(radii)) as advance:
        for radius in radii:
            kept &= attack(model, x, y, radius)
            attacked.append(kept.mean())
            advance(accuracy=attacked[-1])
    return np.array([np.mean((certified > r) if r else certified > 0) for r in radii]), np.array(attacked)


def main():
    parser = arguments(__doc__, "certified_mlp.png")
    parser.add_argument("--steps", type=whole(1), default=2000)
    parser.add_argument("--radii", type=whole(2), default=26, help="how many, from 0 to 1.25")
    args = parser.parse_args()
    mg.set_num_threads(1)  # the matrices are small
    digits = load_digits()
    order = np.random.default_rng(args.seed).permutation(len(digits.target))
    x = mg.tensor(digits.data[order] / 16, device=args.device)
    y = mg.tensor(digits.target[order], device=args.device)
    few = x[:TRAIN].to(mg.float32)
    models = {
        "1-Lipschitz": train(few, y[:TRAIN], True, args.steps, args.seed),
        "unnormalized": train(few, y[:TRAIN], False, args.steps, args.seed),
    }
    x, y = x[TRAIN:], y[TRAIN:]
    radii = np.linspace(0, 1.25, args.radii)
    found = {name: curves(trained.model, x, y, radii) for name, trained in models.items()}
    report(models, found, radii, x, y)
    finish(draw(models, found, radii), args.out)
    name, (certified, attacked) = "1-Lipschitz", found["1-Lipschitz"]
    half = np.argmin(np.abs(radii - 0.5))
    median = np.median(certified_radii(models[name].model, x, y))
    print(
        f"result: accuracy {certified[0]:.4f}; at radius {radii[half]:.3f} certified {certified[half]:.4f}, "
        f"under attack {attacked[half]:.4f}; median certified radius {median:.3f}, on {args.device}"
    )


def report(models, found, radii, x, y):
    """Three tables: why σ̂ certifies nothing, what L comes to, and the accuracies."""
    console = Console()
    table = Table("layer", "σ̂", "σ₁, by SVD", "‖W̄‖₂ = σ₁/σ̂", title="What spectral normalization leaves")
    rows = mg.spectral.diagnose(models["1-Lipschitz"].model)
    for i, row in enumerate(rows):
        table.add_row(str(i + 1), *(f"{row[key]:.9f}" for key in ("sigma_hat", "sigma", "norm")))
    table.add_section()
    table.add_row("all", "", "L = 1 is not proven:", f"{np.prod([row['norm'] for row in rows]):.9f}")
    console.print(table)
    table = Table("", "steepest slope seen", "L", "median radius certified", title="Lipschitz constants")
    for name, trained in models.items():
        bounds = mg.spectral.lipschitz_bounds(trained.model, x)
        median = np.median(certified_radii(trained.model, x, y))
        table.add_row(name, f"{bounds.lower:.4g}", f"{bounds.upper:.4g}", f"{median:.2g}")
    console.print(table)
    table = Table("radius", title=f"Accuracy on {len(y)} digits, by a perturbation's 2-norm")
    for name in models:
        table.add_column(f"{name}:\ncertified")
        table.add_column("under\nattack")
    for i in range(0, len(radii), max(1, len(radii) // 12)):
        table.add_row(f"{radii[i]:.3f}", *(f"{curve[i]:.4f}" for name in models for curve in found[name]))
    console.print(table)


def draw(models, found, radii):
    figure = Figure(figsize=(11, 4), layout="constrained")
    accuracy, norm = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for (name, (certified, attacked)), ink in zip(found.items(), ("C0", "C1"), strict=True):
        accuracy.plot(radii, attacked, "--", color=ink, label=f"{name}, under attack")
        accuracy.plot(radii, certified, "-", color=ink, label=f"{name}, certified")
        accuracy.fill_between(radii, certified, attacked, color=ink, alpha=0.12, linewidth=0)
    accuracy.set(title="Accuracy on unseen digits", xlabel="radius: 2-norm of a change of the pixels, from 0 to 1")
    accuracy.set(ylim=(0, 1), xlim=(0, radii[-1]))
    accuracy.legend(frameon=False)
    steps, excess = np.array(models["1-Lipschitz"].excess).T
    norm.semilogy(steps, np.maximum(excess, 1e-9))
    norm.set(title="Π ‖W̄‖₂ − 1, which σ̂ ≤ σ₁ does not show", xlabel="step of the training")
    return figure


if __name__ == "__main__":
    exit_on_interrupt()
    main()
