"""The paper's SNDCGAN on CIFAR-10: python examples/sngan_cifar10.py --data FOLDER [--download].

The networks of table 3 of Miyato et al. 2018 (arXiv 1802.05957) under the settings A–F of its table 1. FOLDER holds
data_batch_1 … data_batch_5, in the binary form (.bin) or in that of Python pickles, as they come from
https://www.cs.toronto.edu/~kriz/cifar.html, unpacked; --download fetches the binary form into it. Made for a GPU:
on a CPU, --width 16 --batch 32 gives an idea.
"""

import hashlib
import pickle
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from _common import LOSSES, above_right, arguments, progress, save, show, whole
from matplotlib.figure import Figure

import minigrad as mg
from minigrad import nn
from minigrad.checkpoint import Checkpoint
from minigrad.cli import exit_on_interrupt
from minigrad.nn.utils import spectral_norm

SETTINGS = {  # α, β₁, β₂ of Adam, and how many steps the discriminator makes for one of the generator
    "A": (1e-4, 0.5, 0.9, 5),
    "B": (1e-4, 0.5, 0.999, 1),
    "C": (2e-4, 0.5, 0.999, 1),
    "D": (1e-3, 0.5, 0.9, 5),
    "E": (1e-3, 0.5, 0.999, 5),
    "F": (1e-3, 0.9, 0.999, 5),
}
LATENT = 128


# The data -------------------------------------------------------------------------------------------------------------

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def load(folder):
    """The training images as bytes, (N, 3, 32, 32), from whichever form is in the folder, or unpacked in it."""
    for form, suffix, read in (("bin", ".bin", from_binary), ("py", "", from_pickle)):
        for place in (folder, folder / f"cifar-10-batches-{form}"):
            files = [place / f"{name}{suffix}" for name in BATCHES]
            if any(file.exists() for file in files):
                return np.concatenate([read(file) for file in files])
    raise FileNotFoundError(
        f"{folder}: expected {BATCHES[0]} … {BATCHES[-1]} of CIFAR-10 in it, as .bin or as pickles. "
        f"--download fetches them from {URL}."
    )


def from_binary(file):
    """Records of a label and 3072 bytes: red, green and blue planes, row by row."""
    records = np.frombuffer(file.read_bytes(), np.uint8)
    if not records.size or records.size % 3073 or records[::3073].max() > 9:
        raise ValueError(f"{file}: expected records of a label from 0 to 9 and 3072 bytes; got {records.size} bytes")
    return records.reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32)


class Stored:
    """Stands for an array or its dtype in a pickle: what it was to be made from, and the state that it was given."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts, and arrays as `Stored`; any other name in the file is an error.

    A pickle is a program, which calls whatever it can name. All that this one can is the class above.
    """

    def find_class(self, module, name):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")} or (
            module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct"
        ):
            return Stored
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only arrays are read")


def from_pickle(file):
    """The dictionary that Python 2 wrote: b"data" are the same bytes, an array (N, 3072)."""
    with open(file, "rb") as stream:
        try:
            _, shape, dtype, fortran_order, data = ArraysOnly(stream, encoding="bytes").load()[b"data"].state
            if dtype.arguments[0] not in ("u1", b"u1") or fortran_order or shape[1:] != (3072,):
                raise TypeError(f"its data are {dtype.arguments[0]} {shape}")
            return np.frombuffer(data, np.uint8).reshape(shape[0], 3, 32, 32)
        except Exception as error:  # a broken pickle may raise anything
            raise ValueError(f"{file}: expected a dictionary with uint8 b'data' (N, 3072): {error}") from error


def download(folder, url=URL, sha256=SHA256):
    """Fetch the archive, and take the five files out of it, if it is the one that is expected."""
    folder.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=60) as answer, tempfile.TemporaryFile(dir=folder) as archive:
        digest, size = hashlib.sha256(), int(answer.headers.get("Content-Length") or 0)
        with progress("download", -(-size >> 20)) as advance:
            while chunk := answer.read(1 << 20):
                archive.write(chunk)
                digest.update(chunk)
                advance(MiB=archive.tell() / 2**20)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{url}: expected an archive with SHA-256 {sha256}; got {digest.hexdigest()}")
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for name in BATCHES:  # their bytes alone: a link, or a path that leads elsewhere, makes nothing here
                member = tar.getmember(f"cifar-10-batches-bin/{name}.bin")
                if not member.isfile():
                    raise ValueError(f"{url}: expected {member.name} to be a file")
                file = folder / "cifar-10-batches-bin" / f"{name}.bin"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(tar.extractfile(member).read())


# The networks ---------------------------------------------------------------------------------------------------------


def make_generator(width):
    layers = [nn.Linear(LATENT, 8 * width * 16), nn.Unflatten(1, (8 * width, 4, 4))]
    for channels in (8 * width, 4 * width, 2 * width):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),  # its bias would be the norm's
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())


def make_discriminator(width):
    layers, given = [], 3
    for channels in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(given, channels, 3, 1, 1), nn.LeakyReLU(0.1)]
        layers += [nn.Conv2d(channels, channels, 4, 2, 1), nn.LeakyReLU(0.1)]
        given = channels
    layers += [nn.Conv2d(given, 8 * width, 3, 1, 1), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(8 * width * 16, 1)]
    model = nn.Sequential(*layers)
    return spectral_norm(model, where=lambda path, module: isinstance(module, nn.Conv2d | nn.Linear))


# Training -------------------------------------------------------------------------------------------------------------


def main():
    parser = arguments(__doc__, "sngan_cifar10.png")
    parser.add_argument("--data", type=Path, default=Path("cifar10"), help="the folder")
    parser.add_argument("--download", action="store_true", help="fetch the data, 162 MB, where they are not there yet")
    parser.add_argument("--setting", default="C", choices=SETTINGS, help="of table 1")
    parser.add_argument("--loss", default="original", choices=LOSSES)
    parser.add_argument("--steps", type=whole(1), default=50_000, help="of the generator")
    parser.add_argument("--batch", type=whole(1), default=64)
    parser.add_argument("--width", type=whole(1), default=64, help="channels of the first layer; 64 in the paper")
    parser.add_argument("--look", type=whole(1), default=500, help="steps from one look at the networks to the next")
    parser.add_argument("--checkpoints", type=Path, help="a folder: goes on from its newest, adds one at every look")
    args = parser.parse_args()
    if args.download and not (args.data / "cifar-10-batches-bin" / f"{BATCHES[-1]}.bin").exists():
        download(args.data)
    try:
        images = load(args.data)
    except (OSError, ValueError) as error:
        parser.error(f"--data {error}")

    mg.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    alpha, beta1, beta2, d_steps = SETTINGS[args.setting]
    generator = make_generator(args.width).to(args.device)
    discriminator = make_discriminator(args.width).to(args.device)
    g_optimizer = mg.optim.Adam(generator.parameters(), lr=alpha, betas=(beta1, beta2))
    d_optimizer = mg.optim.Adam(discriminator.parameters(), lr=alpha, betas=(beta1, beta2))
    d_loss, g_loss = LOSSES[args.loss]
    seen = mg.randn(64, LATENT, device=args.device)
    losses_seen, norms = [], []
    models, optimizers = {"G": generator, "D": discriminator}, {"G": g_optimizer, "D": d_optimizer}
    training = Checkpoint(models, optimizers, generator=rng)
    if args.checkpoints and training.resume(args.checkpoints):
        print(f"goes on after step {training.step}; the curves begin there")
    if training.step >= args.steps:
        parser.error(f"--steps {args.steps}: {args.checkpoints} is at step {training.step} already")

    def real():
        """A batch of images from −1 to 1, the noise within a step of their 256 levels."""
        chosen = images[rng.integers(len(images), size=args.batch)]
        noisy = chosen / np.float32(128) - 1 + rng.random(chosen.shape, np.float32) / 128
        return mg.tensor(noisy, dtype=mg.float32, device=args.device)

    def fake():
        return generator(mg.randn(args.batch, LATENT, device=args.device))

    def d_step(images):
        with mg.no_grad():
            made = fake()
        d_optimizer.zero_grad()
        value = d_loss(discriminator(images), discriminator(made))
        value.backward()
        d_optimizer.step()
        return value

    def g_step():
        g_optimizer.zero_grad()
        discriminator.requires_grad_(False)  # its gradients are not asked for
        value = g_loss(discriminator(fake()))
        value.backward()
        discriminator.requires_grad_(True)
        g_optimizer.step()
        return value

    def keep():
        """What outlives the process."""
        if args.checkpoints:
            training.save(args.checkpoints, keep=2)
        mg.save(generator.state_dict(), Path(args.out).with_suffix(".safetensors"))
        generator.eval()
        with mg.no_grad():
            samples = generator(seen).to("cpu").numpy()
        generator.train()
        save(draw(samples, losses_seen, norms), args.out)

    d_step, g_step = (mg.capture(step, device=args.device) for step in (d_step, g_step))  # the same, without the graph
    with progress("training", args.steps - training.step) as advance:
        for step in range(training.step + 1, args.steps + 1):
            for _ in range(d_steps):
                d_value = d_step(real())
            g_value = g_step()
            training.step = step
            look, losses = step % args.look == 0 or step == args.steps, {}
            if step % 10 == 0 or look:
                losses = {"D": d_value.item(), "G": g_value.item()}
                losses_seen.append((step, *losses.values()))
            if look:
                rows = mg.spectral.diagnose(discriminator)
                norms.append((step, *(row["sigma_hat"] for row in rows), *(row["norm"] for row in rows)))
                keep()
            advance(**losses)
    print(f"wrote {args.out}, and the generator to {Path(args.out).with_suffix('.safetensors')}")
    worst = np.array(norms)[:, 9:].max()
    print(
        f"result: setting {args.setting}, {args.loss} loss, {args.steps} steps: losses D {losses['D']:.3f}, "
        f"G {losses['G']:.3f}; ‖W̄‖₂ at most {worst:.3f} at the looks, on {args.device}"
    )


def draw(samples, losses, norms):
    """Samples; the losses, and σ̂ and ‖W̄‖₂ of each layer of the discriminator."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplot_mosaic("PL;PS;PN", width_ratios=(1.5, 1))
    show(axes["P"], samples, 8, f"samples after {losses[-1][0]} steps")
    steps, *losses = np.array(losses).T
    for values, label in zip(losses, "DG", strict=True):
        axes["L"].plot(steps, values, linewidth=0.8, label=label)
    steps, *norms = np.array(norms).T
    for i in range(8):
        axes["S"].plot(steps, norms[i], ".-", markersize=3, label=f"{i + 1}")
        axes["N"].plot(steps, norms[8 + i], ".-", markersize=3)
    for name, title, columns in (("L", "losses", 2), ("S", "σ̂ of each layer", 8), ("N", "‖W̄‖₂ = σ₁/σ̂", 0)):
        axes[name].set_title(title, loc="left")
        if columns:
            above_right(axes[name], columns)
    axes["N"].set_xlabel("step of the generator")
    return figure


if __name__ == "__main__":
    exit_on_interrupt()
    main()
