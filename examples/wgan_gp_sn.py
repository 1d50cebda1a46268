"""A WGAN-GP whose critic is spectrally normalized, on handwritten digits: python examples/wgan_gp_sn.py.

The penalty (‖∇ₓD(x)‖ − 1)² contains a gradient: its own differentiates that backward pass, reaches each W̃ by two ways,
and goes on through σ to W. W̃ = γ W/σ(W), equation (32) of the spectral normalization paper, with γ learned: the layers
may be as steep as they like, and the penalty holds the slope of D at 1.
"""

import copy

import numpy as np
from _common import arguments, finish, progress, show, whole
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import minigrad as mg
from minigrad.cli import exit_on_interrupt
from minigrad.nn.utils import spectral_norm

parser = arguments(__doc__, "wgan_gp_sn.png")
parser.add_argument("--steps", type=whole(1), default=1500, help="of the generator; the critic makes 3 for each")
args = parser.parse_args()
exit_on_interrupt()
mg.manual_seed(args.seed)
mg.set_num_threads(1)  # the matrices are small
rng = np.random.default_rng(args.seed)

digits = load_digits().data / 8 - 1
real = mg.tensor(digits, dtype=mg.float32, device=args.device)
generator = mg.nn.Sequential(
    mg.nn.Linear(16, 128), mg.nn.ReLU(), mg.nn.Linear(128, 128), mg.nn.ReLU(), mg.nn.Linear(128, 64), mg.nn.Tanh()
).to(args.device)
averaged = copy.deepcopy(generator)
critic = mg.nn.Sequential(
    mg.nn.Linear(64, 128), mg.nn.LeakyReLU(0.2), mg.nn.Linear(128, 128), mg.nn.LeakyReLU(0.2), mg.nn.Linear(128, 1)
)
spectral_norm(critic, where=lambda path, module: isinstance(module, mg.nn.Linear), learnable_scale=True)
critic.to(args.device)
gammas = [critic[i].parametrizations.weight.state.gamma for i in (0, 2, 4)]
g_optimizer = mg.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
d_optimizer = mg.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))


def made(network, n=128):
    return network(mg.randn(n, 16, device=args.device))


def slope(x):
    """‖∇ₓD‖ at each x, differentiable."""
    x = x.detach().requires_grad_()
    (gradient,) = mg.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().sum(1).sqrt()


curves = []
with progress("training", args.steps) as advance:
    for _ in range(args.steps):
        for _ in range(3):
            x = real[mg.tensor(rng.integers(len(digits), size=128), device=args.device)]
            fake = made(generator).detach()
            t = mg.rand(128, 1, device=args.device)
            steepness = slope(t * x + (1 - t) * fake)
            distance = critic(x).mean() - critic(fake).mean()
            penalty = (steepness - 1).square().mean()
            d_optimizer.zero_grad()
            (3 * penalty - distance).backward()
            d_optimizer.step()
        g_optimizer.zero_grad()
        (-critic(made(generator)).mean()).backward()
        g_optimizer.step()
        with mg.no_grad():
            for mean, p in zip(averaged.parameters(), generator.parameters(), strict=True):
                mean.copy_(mean + 0.005 * (p - mean))
        curves.append([z.item() for z in (distance, penalty, steepness.mean(), *gammas)])
        advance(distance=curves[-1][0], penalty=curves[-1][1])

with mg.no_grad():
    images = made(averaged, 100).to("cpu").numpy()
    critic.eval()
    distance = (critic(real).mean() - critic(made(averaged, len(digits))).mean()).item()
steepness = slope(real).mean().item()

figure = Figure(figsize=(11, 4.2), layout="constrained")
axes = figure.subplot_mosaic("RMD;RMS", width_ratios=(1, 1, 0.85))
show(axes["R"], digits[:100].reshape(-1, 1, 8, 8), 10, "real")
show(axes["M"], images.reshape(-1, 1, 8, 8), 10, "generated")
curves = np.array(curves)
axes["D"].plot(curves[:, 0], linewidth=0.8)
axes["D"].set(title="D(real) − D(generated)", ylim=(0, None))
axes["S"].plot(curves[:, 2], linewidth=0.8, label="‖∇ₓD‖")
for i, gamma in enumerate(curves[:, 3:].T):
    axes["S"].plot(gamma, linewidth=1.5, label=f"γ, layer {i + 1}")
axes["S"].set(title="slope, and norms of the layers", xlabel="steps of the generator", ylim=(0, None))
axes["S"].legend(ncols=2, frameon=False)
finish(figure, args.out)
print(f"result: D(real) − D(generated) {distance:.3f}, ‖∇ₓD‖ {steepness:.3f} on real digits, on {args.device}")
