"""The paper's SN-GAN on scikit-learn's digits of 8×8 pixels: python examples/sngan_digits.py [--compare].

The networks are table 3's of Miyato et al. 2018 (arXiv 1802.05957), one level less deep: every weight of the
discriminator is W/σ(W), equation (8), one power iteration per update. --compare trains the same discriminator without
normalization, with weight normalization, with a gradient penalty (which is differentiated through a gradient), and with
a spectral normalization that the gradient knows nothing of, all from the same weights, batches and noise.
"""

import time
from dataclasses import dataclass, field

import numpy as np
from _common import LOSSES, above_right, arguments, finish, progress, show, whole
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table
from scipy.special import entr, rel_entr
from sklearn.datasets import load_digits

import minigrad as mg
from minigrad import nn
from minigrad.cli import exit_on_interrupt
from minigrad.nn import functional as F
from minigrad.nn.utils import spectral_norm

LATENT = 32
LOOKS = 20  # at the networks, in a training
METHODS = {
    "sn": "spectral normalization",
    "none": "no normalization",
    "wn": "weight normalization",
    "gp": "gradient penalty",
    "st": "SN, straight-through",
}


# The networks ---------------------------------------------------------------------------------------------------------


def make_generator(width):
    return nn.Sequential(
        nn.Linear(LATENT, 4 * width * 4), nn.Unflatten(1, (4 * width, 2, 2)),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 1, 3, 1, 1), nn.Tanh(),
    )  # fmt: skip


def make_discriminator(width, method):
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.1),
        nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.LeakyReLU(0.1),
        nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(16 * width, 1),
    )  # fmt: skip
    if method in ("sn", "st"):
        gradient = "fixed_uv" if method == "sn" else "straight_through"
        spectral_norm(model, where=lambda path, module: isinstance(module, nn.Conv2d | nn.Linear), gradient=gradient)
    elif method == "wn":
        for layer in weighted(model):
            layer.parametrize("weight", UnitRows(layer.weight))
    return model


class UnitRows(nn.Parametrization):
    """Weight normalization (Salimans, Kingma 2016) without a learned scale: the weights of an output have norm 1."""

    def read(self):
        rows = self.original.reshape(len(self.original), -1)
        return (rows / rows.norm(dim=1, keepdim=True)).reshape(self.original.shape)


def gradient_penalty(model, x):
    """E(‖∇ₓD‖ − 1)², differentiable (Gulrajani et al. 2017)."""
    x = x.detach().requires_grad_()
    (slope,) = mg.grad(model(x).sum(), x, create_graph=True)
    return (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean()


def weighted(model):
    return [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]


def norm_in_use(layer):
    """‖W̄‖₂ of the weight that the layer computes with, whatever its normalization."""
    weight = layer.weight.detach().to("cpu").numpy().astype(np.float64)
    return np.linalg.norm(weight.reshape(len(weight), -1), 2)


# Training -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A training: what was seen of it, and how long it took. Each row of a list begins with its step."""

    method: str
    loss: str
    losses: list = field(default_factory=list)  # of the discriminator and of the generator
    norms: list = field(default_factory=list)  # ‖W̄‖₂ of each layer, by SVD
    spectral: list = field(default_factory=list)  # σ̂ of each layer, λ of each layer: SN only
    scores: list = field(default_factory=list)  # what the judge says of as many samples as there are digits
    samples: dict = field(default_factory=dict)  # step: images
    seconds: float = 0.0  # of training, without the looks

    @property
    def name(self):
        return METHODS[self.method] if self.loss == "hinge" else f"{METHODS[self.method]}, {self.loss} loss"


def train(args, method, loss, judge):
    """Adam with the paper's β = (0, 0.9), of its ResNets; the rate, for networks so small, is ten times the paper's."""
    mg.manual_seed(args.seed)
    rng, noise = np.random.default_rng(args.seed), mg.Generator(args.seed)
    generator = make_generator(args.width).to(args.device)
    discriminator = make_discriminator(args.width, method).to(args.device)
    optimizers = [
        mg.optim.Adam(model.parameters(), lr=args.lr, betas=(0.0, 0.9)) for model in (discriminator, generator)
    ]
    schedules = [
        mg.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / args.steps))
        for optimizer in optimizers
    ]
    d_optimizer, g_optimizer = optimizers
    d_loss, g_loss = LOSSES[loss]
    digits = mg.tensor(judge.digits, dtype=mg.float32, device=args.device)
    seen = mg.randn(len(digits), LATENT, generator=mg.Generator(args.seed + 1), device=args.device)
    run, start = Run(method, loss), time.perf_counter()

    def fake():
        return generator(mg.randn(args.batch, LATENT, generator=noise, device=args.device))

    def step(real):
        with mg.no_grad():
            made = fake()
        d_optimizer.zero_grad()
        d_value = d_loss(discriminator(real), discriminator(made))
        total = d_value
        if method == "gp":
            t = mg.rand(args.batch, 1, 1, 1, device=args.device)
            total = d_value + 10 * gradient_penalty(discriminator, t * real + (1 - t) * made)
        total.backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        discriminator.requires_grad_(False)  # its gradients are not asked for
        g_value = g_loss(discriminator(fake()))
        g_value.backward()
        discriminator.requires_grad_(True)
        g_optimizer.step()
        return d_value, g_value, made

    def look(step, real, made):
        run.norms.append((step, *(norm_in_use(layer) for layer in weighted(discriminator))))
        if method in ("sn", "st"):
            rows = mg.spectral.diagnose(discriminator, lambda: d_loss(discriminator(real), discriminator(made)))
            run.spectral.append((step, *(row["sigma_hat"] for row in rows), *(row["lam"] for row in rows)))
        generator.eval()
        with mg.no_grad():
            images = generator(seen).to("cpu").numpy()
        generator.train()
        run.scores.append((step, *judge(images)))
        run.samples[step] = images[:100]

    captured = mg.capture(step, device=args.device)  # the same numbers, without the Python of the graph
    with progress(run.name, args.steps) as advance:
        for step in range(1, args.steps + 1):
            real = digits[mg.tensor(rng.integers(len(digits), size=args.batch), device=args.device)]
            d_value, g_value, made = captured(real)
            for schedule in schedules:
                schedule.step()  # constant, and from the middle on down to 0
            losses = {}
            if step % 10 == 0 or step == args.steps:
                losses = {"D": d_value.item(), "G": g_value.item()}
                run.losses.append((step, *losses.values()))
            if step % max(1, args.steps // LOOKS) == 0 or step == args.steps:
                pause = time.perf_counter()
                look(step, real, made)
                start += time.perf_counter() - pause
            advance(**losses)
    run.seconds = time.perf_counter() - start
    return run


# What the samples are worth -------------------------------------------------------------------------------------------


class Judge:
    """A classifier of the digits, trained by minigrad from a seed of its own, and the statistics of what it sees."""

    def __init__(self, device):
        self.device = device
        data = load_digits()
        self.digits = data.images[:, None] / 8 - 1
        mg.manual_seed(0)
        rng = np.random.default_rng(0)
        order = rng.permutation(len(data.target))
        x = mg.tensor(self.digits[order], dtype=mg.float32, device=device)
        y = mg.tensor(data.target[order], device=device)
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 32), nn.ReLU(),
        ).to(device)  # fmt: skip
        self.top = nn.Linear(32, 10).to(device)
        optimizer = mg.optim.Adam([*self.features.parameters(), *self.top.parameters()], lr=2e-3)
        with progress("classifier", 12) as advance:
            for _ in range(12):
                for batch in np.split(rng.permutation(1400), 20):
                    chosen = mg.tensor(batch, device=device)
                    optimizer.zero_grad()
                    loss = F.cross_entropy(self.top(self.features(x[chosen])), y[chosen])
                    loss.backward()
                    optimizer.step()
                advance(loss=loss.item())
        features, probabilities = self.see(self.digits)
        self.moments = moments(features)
        self.accuracy = np.mean(self.see(self.digits[order[1400:]])[1].argmax(1) == data.target[order[1400:]])
        halves = features[order[::2]], features[order[1::2]]
        self.scores = frechet_distance(*map(moments, halves)), *variety(probabilities)

    def see(self, images):
        """The features and the class probabilities of images (N, 1, 8, 8), in float64."""
        with mg.no_grad():
            features = self.features(mg.tensor(images, dtype=mg.float32, device=self.device))
            probabilities = self.top(features).softmax(1)
        return [x.to("cpu").numpy().astype(np.float64) for x in (features, probabilities)]

    def __call__(self, images):
        features, probabilities = self.see(images)
        return frechet_distance(moments(features), self.moments), *variety(probabilities)


def moments(features):
    return features.mean(0), np.cov(features, rowvar=False)


def frechet_distance(one, other):
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of two normal distributions (μ, Σ)."""
    (mean1, cov1), (mean2, cov2) = one, other
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov2 @ root)  # the eigenvalues of Σ₁Σ₂
    return np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2) - 2 * np.sqrt(product.clip(0)).sum()


def variety(probabilities):
    """exp E KL(p(y|x) ‖ p(y)), an inception score by this classifier; the entropy and the shares of its classes."""
    divergence = rel_entr(probabilities, probabilities.mean(0)).sum(1).mean()
    shares = np.bincount(probabilities.argmax(1), minlength=10) / len(probabilities)
    return np.exp(divergence), entr(shares).sum(), *shares


# Pictures -------------------------------------------------------------------------------------------------------------


def draw(run, judge):
    """One training: samples early and late beside digits; the losses, the distance, σ̂ and λ of each layer."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    below = "DDDFFFSSSLLL" if run.spectral else "DDDDFFFFNNNN"
    axes = figure.subplot_mosaic(f"EEEEMMMMRRRR;{below}", height_ratios=(1.5, 1))
    early, late = min(run.samples), max(run.samples)
    show(axes["E"], run.samples[early], 10, f"samples after {early} steps")
    show(axes["M"], run.samples[late], 10, f"after {late}")
    show(axes["R"], judge.digits[:100], 10, "digits")
    steps, *losses = np.array(run.losses).T
    for values, label in zip(losses, "DG", strict=True):
        axes["D"].plot(steps, values, linewidth=0.8, label=label)
    axes["D"].set_title("losses", loc="left")
    above_right(axes["D"], 2)
    draw_distances(axes["F"], [run], judge)
    if run.spectral:
        steps, *spectral = np.array(run.spectral).T
        layers = len(spectral) // 2
        for i in range(layers):
            axes["S"].plot(steps, spectral[i], label=f"{i + 1}")
            axes["L"].plot(steps, spectral[layers + i])
        axes["S"].set_title("σ̂ of layer", loc="left")
        axes["S"].set_ylim(0, None)
        above_right(axes["S"], 5)
        axes["L"].axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes["L"].set(title="λ = ⟨∂L/∂W̄, W̄⟩ of each layer")
    else:
        draw_norms(axes["N"], [run])
    for ax in figure.axes[3:]:
        ax.set_xlabel("step")
    return figure


def compare(runs, judge):
    """Several trainings: their samples; the distances, the norms, and which classes the judge sees."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    names = [run.name.replace("normalization, ", "normalization,\n") for run in runs]
    for ax, run, name in zip(above.subplots(1, len(runs)), runs, names, strict=True):
        show(ax, run.samples[max(run.samples)][:64], 8, name)
    distances, norms, classes = below.subplots(1, 3)
    draw_distances(distances, runs, judge)
    draw_norms(norms, runs)
    below.legend(handles=norms.lines, loc="outside lower left", ncols=len(runs), frameon=False)
    for ax in (distances, norms):
        ax.set_xlabel("step")
    shares = np.array([run.scores[-1][4:] for run in runs])
    classes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=30, aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        classes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color="white" if share > 0.2 else "black")
    classes.set(title="classes of the samples, %", xticks=range(10), yticks=range(len(runs)))
    classes.set_yticklabels(names)
    return figure


def draw_distances(ax, runs, judge):
    for run in runs:
        ax.semilogy(*np.array(run.scores).T[:2])
    floor = judge.scores[0]
    ax.axhline(floor, color="0.6", linestyle="--", linewidth=0.8)
    ax.text(0, floor * 0.95, " one half of the digits from the other", va="top", fontsize="small", color="0.4")
    ax.set(title="Fréchet distance from the digits", xlim=(0, None))
    ax.set_ylim(min(0.75 * floor, ax.get_ylim()[0]))
    number(ax.yaxis)


def draw_norms(ax, runs):
    for run in runs:
        steps, *norms = np.array(run.norms).T
        ax.semilogy(steps, np.prod(norms, axis=0), label=run.name)
    ax.set(title="Π ‖W̄‖₂ of the discriminator", xlim=(0, None))
    number(ax.yaxis)


def number(axis):
    """Plain numbers beside a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def tabulate(runs, judge):
    """The trainings, and the digits themselves, as the judge has them."""
    title = f"{len(judge.digits)} samples, seen by a classifier that is right for {judge.accuracy:.1%} of unseen digits"
    table = Table("", "Fréchet\ndistance", "classifier\nscore", "entropy", "Π ‖W̄‖₂", "seconds", title=title)
    for run in runs:
        _, distance, score, entropy, *_ = run.scores[-1]
        norm = np.prod(run.norms[-1][1:])
        table.add_row(
            run.name, f"{distance:.1f}", f"{score:.2f}", f"{entropy:.3f}", f"{norm:.4g}", f"{run.seconds:.0f}"
        )
    distance, score, entropy, *_ = judge.scores
    table.add_row("digits, one half from the other", f"{distance:.1f}", f"{score:.2f}", f"{entropy:.3f}")
    Console().print(table)


def main():
    parser = arguments(__doc__, "sngan_digits.png")
    parser.add_argument("--method", default="sn", choices=METHODS, help="; ".join(map(": ".join, METHODS.items())))
    parser.add_argument("--loss", default="hinge", choices=LOSSES)
    parser.add_argument("--compare", action="store_true", help="all methods, and spectral normalization by both losses")
    parser.add_argument("--steps", type=whole(1), default=2000, help="of the generator, and of the discriminator")
    parser.add_argument("--batch", type=whole(1), default=64)
    parser.add_argument("--width", type=whole(1), default=16, help="channels of the discriminator's first layer")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    mg.set_num_threads(1)  # the layers are small
    judge = Judge(args.device)
    if args.compare:
        other = next(loss for loss in LOSSES if loss != args.loss)
        settings = [("sn", args.loss), ("sn", other), *((method, args.loss) for method in METHODS if method != "sn")]
    else:
        settings = [(args.method, args.loss)]
    runs = [train(args, *setting, judge) for setting in settings]
    tabulate(runs, judge)
    finish(compare(runs, judge) if args.compare else draw(runs[0], judge), args.out)
    _, distance, score, entropy, *_ = runs[0].scores[-1]
    print(
        f"result: {runs[0].name}: Fréchet distance {distance:.2f} (digits {judge.scores[0]:.2f}), classifier score "
        f"{score:.2f}, entropy {entropy:.3f} of {np.log(10):.3f}, in {runs[0].seconds:.0f} s on {args.device}"
    )


if __name__ == "__main__":
    exit_on_interrupt()
    main()
