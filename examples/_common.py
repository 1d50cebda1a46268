"""What the examples with a picture share: arguments, a bar with the losses, grids of images, and how they end."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from minigrad import device
from minigrad.nn import functional as F

#: Of the spectral normalization paper, for the discriminator and for the generator.
LOSSES = {
    "hinge": (F.hinge_discriminator_loss, F.hinge_generator_loss),  # (16), (17)
    "original": (F.gan_discriminator_loss, F.gan_generator_loss),  # (15), the generator's not saturating
}


def arguments(text: str, picture: str) -> argparse.ArgumentParser:
    """A parser with what all of them take; `text` is the docstring of the example."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--out", type=_file, default=picture, help="the picture")
    return parser


def whole(least: int) -> Callable[[str], int]:
    """The `type` of an argument that is a whole number, not less than this; noticed before the work."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}; got {text}")
        return int(text)

    return number


def _device(name: str) -> str:
    try:
        return device.check(name, "--device")
    except (ValueError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _file(name: str) -> str:
    """Where a picture can be written; noticed before the work."""
    path, kinds = Path(name), Figure().canvas.get_supported_filetypes()
    path = path if path.suffix else path.with_suffix(".png")
    if not os.access(path.parent, os.W_OK) or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} that can be written")
    if path.suffix[1:] not in kinds:
        raise argparse.ArgumentTypeError(f"expected a name that ends in one of {', '.join(kinds)}; got {name!r}")
    return str(path)


@contextmanager
def progress(doing: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar. What it gives is called after each step, with the numbers that are to stand beside the bar, if any."""
    bar = Progress(
        TextColumn(doing), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    )
    with bar:
        task = bar.add_task("", total=total)

        def advance(**shown: float) -> None:
            text = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
            bar.update(task, advance=1, description=text or None)

        yield advance


def tiles(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, …, H, W) with values from −1 to 1, a border of one pixel round each, as one: (rows, columns, …)."""
    n, *channels, height, width = images.shape
    padded = np.pad(images.reshape(n, -1, height, width), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    grid = padded.reshape(n // columns, columns, -1, height + 2, width + 2).transpose(0, 3, 1, 4, 2)
    return grid.reshape(n // columns * (height + 2), columns * (width + 2), *[size for size in channels if size > 1])


def save(figure: Figure, path: str) -> None:
    """Write the picture; axes with curves lose the lines that say nothing."""
    for ax in figure.axes:
        if not ax.images:
            ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def finish(figure: Figure, path: str) -> None:
    """Write the picture, and say where it is."""
    save(figure, path)
    print(f"wrote {path}")


def show(ax: Any, images: np.ndarray, columns: int, title: str) -> None:
    """Draw images (N, …, H, W) into axes: grey ones as ink on paper."""
    ax.imshow((tiles(images, columns) + 1) / 2, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])


def above_right(ax: Any, columns: int) -> None:
    """A legend in one line beside the title, where no curve comes by."""
    ax.legend(
        loc="lower right", bbox_to_anchor=(1, 0.97), ncols=columns, frameon=False,
        fontsize="small", handlelength=0.8, columnspacing=0.7, borderaxespad=0,
    )  # fmt: skip
