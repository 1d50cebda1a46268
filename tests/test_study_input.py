"""What `minigrad study` does with bad input, and where it cannot write."""

import re
import sys

import numpy as np
import pytest
from studies import study

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.spectral.study import data, output


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--steps", "-3"), "at least 1 training step; got -3"),
        (("--steps", "0"), "got 0"),
        (("--seed", "-1"), "not negative"),
        (("--seed", 2**64 - 1), "at most 2**64 - 5, as 5 training runs count on from it; got 18446744073709551615"),
        (("--model", "gan"), "expected one of mlp, conv; got 'gan'"),
        (("--conventions", "fixed_uv,wrong"), "'wrong'; choose among fixed_uv"),
        (("--layers", "hidden9"), "'hidden9'; choose among hidden1, hidden2, output"),
        (("--device", "tpu"), "cpu or cuda; got 'tpu'"),
        (("--data", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_a_wrong_argument(arguments, words, tmp_path):
    with pytest.raises(UsageError, match=re.escape(words)):
        study(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cuda_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(mg.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no usable CUDA device"):
        study("--device", "cuda", "--out", tmp_path)


X, Y = np.random.default_rng(0).standard_normal((40, 6)), np.arange(40) % 2


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": X}, "'y' is missing"),
        ({"x": X, "y": Y[:9]}, "got (40, 6) and (9,)"),
        ({"x": X.ravel(), "y": Y}, "expected x of shape (examples, …)"),
        ({"x": X[:5], "y": Y[:5]}, "at least 20 examples"),
        ({"x": np.where(X[3, 2] == X, np.nan, X), "y": Y}, "1 that are NaN or infinite, the first at (3, 2)"),
        ({"x": X.astype(str), "y": Y}, "expected numbers in x"),
        ({"x": X, "y": Y + 0.5}, "whole numbers"),
        ({"x": X, "y": 0 * Y}, "at least two classes"),
        ({"x": 0 * X, "y": Y}, "examples that differ"),
    ],
)
def test_wrong_arrays(arrays, words, tmp_path):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=re.escape(words)):
        data.load(str(path), 0)


@pytest.mark.parametrize("unit", [2.0**1000, 2.0**-1000])
def test_the_unit_of_the_examples_is_no_matter(unit):
    assert np.array_equal(data.split("x", unit * X, Y, 0).train_x, data.split("x", X, Y, 0).train_x)


@pytest.mark.parametrize("missing", [1e39, -1.797e308])  # as some write it
def test_one_example_far_from_all_others(missing):
    far = np.where(np.arange(40)[:, None] == np.random.default_rng(0).permutation(40)[-1], missing, X)
    with pytest.raises(UsageError, match="an entry of x in own lies farther from the others than float32 can tell"):
        data.split("own", far, Y, 0)


def test_a_file_that_is_no_archive(tmp_path):
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=r"expected an \.npz"):
            data.load(str(tmp_path / name), 0)
    np.savez_compressed(tmp_path / "whole.npz", x=X, y=Y)
    whole = (tmp_path / "whole.npz").read_bytes()
    entry = whole.rindex(b"PK\1\2")  # of y, in the archive's directory
    for at, byte in ((100, 255), (entry + 6, 99), (entry + 8, 1)):  # its data, the format's version, a password
        (tmp_path / "bad.npz").write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        with pytest.raises(UsageError, match=r"expected an \.npz"):
            data.load(str(tmp_path / "bad.npz"), 0)
    np.savez(tmp_path / "objects.npz", x=np.array([{}] * 30), y=np.arange(30))
    with pytest.raises(UsageError, match=r"expected an \.npz of plain arrays"):
        data.load(str(tmp_path / "objects.npz"), 0)


def test_flat_data_for_the_convolutional_net(tmp_path):
    np.savez(tmp_path / "flat.npz", x=X, y=Y)
    with pytest.raises(UsageError, match="expected images"):
        study("--quick", "--model", "conv", "--data", tmp_path / "flat.npz", "--out", tmp_path / "out")


def test_an_unwritable_folder_is_noticed_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out: expected a folder that can be written"):
        study("--quick", "--out", tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="--out: expected the name of a folder; got ''"):
        study("--quick", "--out", "")


def test_a_failing_write_leaves_the_older_report(tmp_path, monkeypatch):
    output.write(tmp_path, "old", {"a": 1}, {"t": [{"k": 1}]})

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.Path, "write_text", full)
    with pytest.raises(UsageError, match="No space left"):
        output.write(tmp_path, "new", {"a": 2}, {"t": [{"k": 2}]})
    assert (tmp_path / output.REPORT).read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {output.REPORT, "results.json", "t.csv"}


def test_no_numbers_of_an_earlier_run_stay_beside_the_report(tmp_path):
    output.write(tmp_path, "old", {}, {"t": [{"k": 1}], "s": [{"k": 1}]})
    (tmp_path / "mine.csv").write_text("")
    files = output.write(tmp_path, "new", {}, {"t": [{"k": 2}], "s": []})
    assert {path.name for path in files} == {output.REPORT, "results.json", "t.csv"}
    assert set(tmp_path.iterdir()) == {*files, tmp_path / "mine.csv"}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        UsageError, match=re.escape('jinja2, which is not installed here. pip install "minigrad[study]"')
    ):
        study("--quick", "--out", tmp_path)
