"""The gradient of the spectral normalization paper, beside finite differences: python examples/exact_gradients.py."""

import argparse

import numpy as np

import minigrad as mg
from minigrad.cli import exit_on_interrupt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cpu", help="cpu or cuda")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
exit_on_interrupt()
rng = np.random.default_rng(args.seed)
weight, upstream, direction = rng.standard_normal((3, 5, 8))
v = rng.standard_normal(8)
u = weight @ v / np.linalg.norm(weight @ v)  # one half sweep: u and v are far from converged
v /= np.linalg.norm(v)


def loss(w):
    """⟨G, W̄⟩ of equation (8), W̄ = W/(uᵀWv), with u and v frozen; in plain NumPy."""
    return np.sum(upstream * w) / (u @ w @ v)


w, g, left, right = (mg.tensor(a, device=args.device) for a in (weight, upstream, u, v))
w_bar, sigma = mg.nn.functional.spectral_normalize(w.requires_grad_(), left, right)
(g * w_bar).sum().backward()
analytic = float(np.sum(w.grad.to("cpu").numpy() * direction))  # equation (12): (G − λ u vᵀ)/σ, along one direction
numeric = (loss(weight + 1e-5 * direction) - loss(weight - 1e-5 * direction)) / 2e-5
detached = float(np.sum(upstream * direction) / sigma.item())  # what comes of a σ outside the graph: G/σ
print(f"analytic  {analytic:+.10f}\nnumeric   {numeric:+.10f}\ndetached  {detached:+.10f}")
error = abs(analytic - numeric) / abs(numeric)
print(f"result: relative error {error:.1e} on {args.device}")
