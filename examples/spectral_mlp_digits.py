"""A spectrally normalized multilayer perceptron on handwritten digits: python examples/spectral_mlp_digits.py."""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import minigrad as mg
from minigrad.cli import exit_on_interrupt
from minigrad.nn.utils import spectral_norm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cpu", help="cpu or cuda")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=12)
args = parser.parse_args()
exit_on_interrupt()
mg.manual_seed(args.seed)
rng = np.random.default_rng(args.seed)

digits = load_digits()
order = rng.permutation(len(digits.target))
x = mg.tensor(digits.data[order] / 4 - 2, dtype=mg.float32, device=args.device)
y = mg.tensor(digits.target[order], device=args.device)
train, test = slice(0, 1400), slice(1400, None)

model = mg.nn.Sequential(
    spectral_norm(mg.nn.Linear(64, 128)),
    mg.nn.LeakyReLU(0.1),
    spectral_norm(mg.nn.Linear(128, 128)),
    mg.nn.LeakyReLU(0.1),
    spectral_norm(mg.nn.Linear(128, 10)),
).to(args.device)
optimizer = mg.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(args.epochs):
    total = 0.0
    for batch in np.split(rng.permutation(1400), 20):
        chosen = mg.tensor(batch, device=args.device)
        optimizer.zero_grad()
        loss = mg.nn.functional.cross_entropy(model(x[train][chosen]), y[train][chosen])
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch + 1:2d}  loss {total / 20:.4f}")

model.eval()
with mg.no_grad():
    accuracy = (model(x[test]).argmax(1) == y[test]).to(mg.float32).mean().item()
norms = [mg.spectral.singular_values(model[i], 1)[0].item() for i in (0, 2, 4)]
normalized = [float(np.linalg.norm(model[i].weight.detach().to("cpu").numpy(), 2)) for i in (0, 2, 4)]
print("σ₁ of the raw weights", ", ".join(f"{s:.3f}" for s in norms))
print("σ₁ of W̄             ", ", ".join(f"{s:.3f}" for s in normalized))
print(f"result: test accuracy {accuracy:.4f}, Lipschitz bound {np.prod(normalized):.3f}, on {args.device}")
