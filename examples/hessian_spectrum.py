"""The top of a normalized network's Hessian, with and without the turning pair: python examples/hessian_spectrum.py.

Double backward through W/(uᵀWv) holds u and v fixed and leaves −(λ/σ₁)(du v₁ᵀ + u₁ dvᵀ) out of the Hessian. In the
plane of the two leading pairs that term is a curvature of −λ/(σ₁(σ₁ − σ₂)): without bound as the gap of a layer closes.
"""

import numpy as np
from _common import arguments, finish, progress, whole
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import minigrad as mg
from minigrad.cli import exit_on_interrupt
from minigrad.nn.utils import spectral_norm

parser = arguments(__doc__, "hessian_spectrum.png")
parser.add_argument("--steps", type=whole(1), default=300, help="of training")
parser.add_argument("--iterations", type=whole(1), default=60, help="of Lanczos, a Hessian-vector product each")
args = parser.parse_args()
exit_on_interrupt()
mg.manual_seed(args.seed)
mg.set_num_threads(1)  # the matrices are small
rng = np.random.default_rng(args.seed)

digits = load_digits()
x = mg.tensor(digits.data / 4 - 2, device=args.device)
y = mg.tensor(digits.target, device=args.device)
model = mg.nn.Sequential(
    mg.nn.Linear(64, 32), mg.nn.Tanh(), mg.nn.Linear(32, 32), mg.nn.Tanh(), mg.nn.Linear(32, 10)
)
spectral_norm(model, where=lambda path, module: isinstance(module, mg.nn.Linear)).to(mg.float64).to(args.device)
optimizer = mg.optim.Adam(model.parameters(), lr=5e-3)
with progress("training", args.steps) as advance:
    for _ in range(args.steps):
        chosen = mg.tensor(rng.integers(len(digits.target), size=128), device=args.device)
        optimizer.zero_grad()
        error = mg.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        error.backward()
        optimizer.step()
        advance(loss=error.item())
parameters = dict(model.named_parameters())
layers = [f"{i}.parametrizations.weight.original" for i in (0, 2, 4)]


def loss():
    return mg.nn.functional.cross_entropy(model(x[:600]), y[:600])


def top(term, iterations=args.iterations):
    """The eigenvalues of the Hessian, largest first, by Lanczos iteration: the outermost ones converge."""
    q = rng.standard_normal(sum(p.numel() for p in parameters.values()))
    basis, diagonal, beside = [q / np.linalg.norm(q)], [], []
    for _ in range(iterations):
        parts = np.split(basis[-1], np.cumsum([p.numel() for p in parameters.values()])[:-1])
        along = {
            name: mg.tensor(part.reshape(p.shape), device=args.device)
            for (name, p), part in zip(parameters.items(), parts, strict=True)
        }
        product = getattr(mg.spectral.model_hvp(model, loss, along), term)
        q = np.concatenate([product[name].to("cpu").numpy().ravel() for name in parameters])
        diagonal.append(q @ basis[-1])
        for _ in range(2):  # orthogonal to working precision
            q = q - np.array(basis).T @ (np.array(basis) @ q)
        beside.append(np.linalg.norm(q))
        basis.append(q / beside[-1])
    return np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))[::-1]


def opened(name):
    """σ₁, σ₂ and the curvature along (u₁v₂ᵀ + u₂v₁ᵀ)/√2: with u and v fixed, and true."""
    left, values, right = np.linalg.svd(parameters[name].detach().to("cpu").numpy(), full_matrices=False)
    d = (np.outer(left[:, 0], right[1]) + np.outer(left[:, 1], right[0])) / np.sqrt(2)
    found = mg.spectral.model_hvp(model, loss, {name: mg.tensor(d, device=args.device)})
    return *values[:2], *(np.vdot(term[name].to("cpu").numpy(), d) for term in (found.fixed_uv, found.product))


def close(name, gap):
    """Set σ₂ to (1 − gap) σ₁."""
    left, values, right = np.linalg.svd(parameters[name].detach().to("cpu").numpy(), full_matrices=False)
    values[1] = (1 - gap) * values[0]
    with mg.no_grad():
        parameters[name].copy_(mg.tensor(left * values @ right, device=args.device))


fixed, true = top("fixed_uv"), top("product")
table = Table("layer", "σ₁", "(σ₁ − σ₂)/σ₁", "u, v fixed", "true", title="Curvature along (u₁v₂ᵀ + u₂v₁ᵀ)/√2")
for i, name in enumerate(layers):
    s1, s2, *curvatures = opened(name)
    table.add_row(str(i + 1), f"{s1:.3f}", f"{1 - s2 / s1:.4f}", *(f"{c:.4f}" for c in curvatures))
Console().print(table)
table = Table("", "u, v fixed", "true", title="Eigenvalues of the Hessian", min_width=30)
for i, pair in enumerate(zip(fixed[:6], true[:6], strict=True)):
    table.add_row(str(i + 1), *(f"{value:.4f}" for value in pair))
Console().print(table)

gaps, closing = np.logspace(-1, -4, 7), []
with progress("closing a gap", len(gaps)) as advance:
    for gap in gaps:
        close(layers[1], gap)
        *_, without, whole = opened(layers[1])
        closing.append((top("product", 20)[0], top("fixed_uv", 20)[0], whole - without))
        advance(eigenvalue=closing[-1][0])

figure = Figure(figsize=(10, 3.8), layout="constrained")
ranked, closed = figure.subplots(1, 2)
for values, column, ink, label in ((true, 0, "C1", "true"), (fixed, 1, "C0", "u and v fixed")):
    ranked.plot(np.arange(len(values[:12])) + 1, values[:12], "o-", color=ink, label=label)
    closed.loglog(gaps, np.array(closing)[:, column], "o-", color=ink, label=label)
closed.loglog(gaps, np.array(closing)[:, 2], "--", color="0.4", label="−λ/(σ₁(σ₁ − σ₂))")
ranked.set(title="Hessian of the trained network", xlabel="rank", ylabel="eigenvalue", ylim=(0, None))
closed.set(title="Largest eigenvalue as the gap of layer 2 closes", xlabel="(σ₁ − σ₂)/σ₁")
for ax in (ranked, closed):
    ax.legend(frameon=False)
finish(figure, args.out)
print(f"result: largest eigenvalue {true[0]:.4f}, with u and v fixed {fixed[0]:.4f}, on {args.device}")
