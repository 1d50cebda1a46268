"""What the example sngan_digits measures and compares: distances, scores, normalizations, one start for all."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg

pytest.importorskip("sklearn")
linalg = pytest.importorskip("scipy.linalg")
EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import _common as common  # noqa: E402
import sngan_digits as example  # noqa: E402


def test_frechet_distance_of_normal_distributions():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)) + 1, rng.standard_normal((90, 6)) ** 3
    (mean1, cov1), (mean2, cov2) = ((x.mean(0), np.cov(x.T)) for x in (one, other))
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * linalg.sqrtm(cov1 @ cov2).real)
    found = example.frechet_distance(example.moments(one), example.moments(other))
    assert found == pytest.approx(expected, rel=1e-10)
    singular = rng.standard_normal((2, 200, 3)) @ rng.standard_normal((3, 9))  # eigenvalues of 0, and rounding
    for x in singular:
        assert example.frechet_distance(example.moments(x), example.moments(x)) == pytest.approx(0, abs=1e-5)


def test_variety_of_what_the_classifier_sees():
    sure = np.eye(10)[np.arange(200) % 10]
    score, entropy, *shares = example.variety(sure)
    assert (score, entropy, shares) == (pytest.approx(10), pytest.approx(np.log(10)), [pytest.approx(0.1)] * 10)
    score, entropy, *shares = example.variety(np.eye(10)[[3] * 50])
    assert (score, entropy) == (pytest.approx(1), pytest.approx(0))
    assert shares == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    p = np.random.default_rng(1).dirichlet(np.ones(10), 30)
    divergence = np.mean([np.sum(row * np.log(row / p.mean(0))) for row in p])
    assert example.variety(p)[0] == pytest.approx(np.exp(divergence))


def test_the_weights_of_each_method():
    mg.manual_seed(0)
    layers = example.weighted(example.make_discriminator(4, "none"))
    plain = [np.linalg.norm(layer.weight.detach().numpy().reshape(len(layer.weight), -1)) for layer in layers]
    for method in example.METHODS:
        mg.manual_seed(0)
        layers = example.weighted(example.make_discriminator(4, method))
        matrices = [layer.weight.detach().numpy().reshape(len(layer.weight), -1) for layer in layers]
        norms = [np.linalg.svd(m.astype(np.float64))[1][0] for m in matrices]
        np.testing.assert_allclose([example.norm_in_use(layer) for layer in layers], norms, rtol=1e-12)
        if method in ("sn", "st"):
            np.testing.assert_allclose(norms, 1, atol=0.05)
            gradient = {layer.parametrizations.weight.gradient for layer in layers}
            assert gradient == {"fixed_uv" if method == "sn" else "straight_through"}
        elif method == "wn":
            for matrix in matrices:
                np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, rtol=1e-6)
        else:
            assert [np.linalg.norm(m) for m in matrices] == plain


class NoJudge:
    digits = example.load_digits().images[:, None] / 8 - 1

    def __call__(self, images):
        return (0.0,)


def test_all_methods_start_alike():
    """At a rate of 0 the generator stays as it began, and its batch norms have seen the same noise."""
    args = Namespace(seed=5, width=4, batch=8, steps=3, lr=0.0, device="cpu")
    judge = NoJudge()
    runs = [example.train(args, method, "hinge", judge) for method in example.METHODS]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.samples[3], runs[0].samples[3])
    assert runs[0].samples[3].std() > 0
    assert [bool(run.spectral) for run in runs] == [method in ("sn", "st") for method in example.METHODS]


def test_gradient_penalty_of_a_linear_map():
    """∇ₓ(w·x) = w, so that the penalty is (‖w‖ − 1)² and its gradient 2(‖w‖ − 1) w/‖w‖."""
    model = mg.nn.Sequential(mg.nn.Flatten(), mg.nn.Linear(16, 1)).to(mg.float64)
    penalty = example.gradient_penalty(model, mg.randn(5, 1, 4, 4, dtype=mg.float64))
    penalty.backward()
    w = model[1].weight.detach().numpy()
    norm = np.linalg.norm(w)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, rel=1e-12)
    np.testing.assert_allclose(model[1].weight.grad.numpy(), 2 * (norm - 1) * w / norm, rtol=1e-12)


def test_the_comparison(tmp_path):
    command = [sys.executable, str(EXAMPLES / "sngan_digits.py"), "--compare", "--out", str(tmp_path / "all.png")]
    command += ["--steps", "6", "--width", "4", "--batch", "16"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stderr
    for name in (*example.METHODS.values(), "spectral normalization, original loss"):
        assert name in found.stdout
    assert found.stdout.splitlines()[-1].startswith("result: spectral normalization: ")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_tiles():
    images = np.arange(2 * 3 * 4 * 3 * 2).reshape(6, 4, 3, 2)[:, :1]
    grid = common.tiles(images, 3)
    assert grid.shape == (2 * 5, 3 * 4)
    np.testing.assert_array_equal(grid[5 + 1 : 5 + 4, 4 + 1 : 4 + 3], images[4, 0])
    assert (grid[[0, 4, 5, 9]] == -1).all()
    colour = np.arange(4 * 3 * 5 * 5).reshape(4, 3, 5, 5)
    assert common.tiles(colour, 2).shape == (14, 14, 3)
    np.testing.assert_array_equal(common.tiles(colour, 2)[8:13, 1:6], colour[2].transpose(1, 2, 0))
