"""A spectrally normalized convolutional net on handwritten digits: python examples/spectral_conv_digits.py."""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import minigrad as mg
from minigrad.cli import exit_on_interrupt
from minigrad.nn.utils import spectral_norm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cpu", help="cpu or cuda")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=6)
args = parser.parse_args()
exit_on_interrupt()
mg.manual_seed(args.seed)
rng = np.random.default_rng(args.seed)

digits = load_digits()
order = rng.permutation(len(digits.target))
x = mg.tensor(digits.images[order][:, None] / 4 - 2, dtype=mg.float32, device=args.device)
y = mg.tensor(digits.target[order], device=args.device)
train, test = slice(0, 1400), slice(1400, None)

model = mg.nn.Sequential(
    mg.nn.Conv2d(1, 16, 3, padding=1),
    mg.nn.LeakyReLU(0.1),
    mg.nn.Conv2d(16, 32, 4, stride=2, padding=1),
    mg.nn.LeakyReLU(0.1),
    mg.nn.Flatten(),
    mg.nn.Linear(512, 10),
)
spectral_norm(model, where=lambda name, module: isinstance(module, mg.nn.Conv2d | mg.nn.Linear))
model.to(args.device)
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
reshaped = [model[i].weight.detach().to("cpu").numpy().reshape(len(model[i].weight), -1) for i in (0, 2, 5)]
print("σ₁ of the reshaped W̄", ", ".join(f"{np.linalg.norm(w, 2):.3f}" for w in reshaped))
print(f"result: test accuracy {accuracy:.4f} on {args.device}")
