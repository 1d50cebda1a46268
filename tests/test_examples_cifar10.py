"""The CIFAR-10 example: its files in both forms, files that mean harm, the download, and a training on a few images."""

import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import sngan_cifar10 as example  # noqa: E402

IMAGES = np.random.default_rng(0).integers(256, size=(5, 4, 3, 32, 32), dtype=np.uint8)  # four per file
LABELS = np.arange(20).reshape(5, 4) % 10


def binary(images, labels):
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def python_2(images, labels):
    """Opcode by opcode, what Python 2's cPickle wrote for the files that are offered, but for its memo."""

    def string(s):
        return b"U" + bytes([len(s)]) + s if len(s) < 256 else b"T" + struct.pack("<i", len(s)) + s

    shape = b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R(K\x01" + shape
    array += dtype + b"K\x00tb\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    title = string(b"batch_label") + string(b"training batch 1 of 5")
    return b"\x80\x02}(" + title + string(b"labels") + numbers + string(b"data") + array + b"u."


def python_3(images, labels, protocol):
    return pickle.dumps({b"data": images.reshape(-1, 3072), b"labels": labels.tolist()}, protocol)


FORMS = {
    "binary": (".bin", binary),
    "Python 2": ("", python_2),
    "protocol 3": ("", partial(python_3, protocol=3)),
    "protocol 4": ("", partial(python_3, protocol=4)),
}


def write(folder, form):
    suffix, written = FORMS[form]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        (folder / f"data_batch_{i + 1}{suffix}").write_bytes(written(IMAGES[i], LABELS[i]))


@pytest.mark.parametrize("form", FORMS)
def test_the_images_of_each_form(form, tmp_path):
    write(tmp_path, form)
    np.testing.assert_array_equal(example.load(tmp_path), IMAGES.reshape(-1, 3, 32, 32))
    unpacked = tmp_path / "there" / f"cifar-10-batches-{'bin' if form == 'binary' else 'py'}"
    write(unpacked, form)
    np.testing.assert_array_equal(example.load(unpacked.parent), IMAGES.reshape(-1, 3, 32, 32))


def test_python_2_pickles_are_what_numpy_reads():
    """The oracle of the test above: the ordinary unpickler."""
    found = pickle.loads(python_2(IMAGES[0], LABELS[0]).replace(b"numpy.core", b"numpy._core"), encoding="bytes")
    np.testing.assert_array_equal(found[b"data"].reshape(-1, 3, 32, 32), IMAGES[0])
    assert found[b"labels"] == LABELS[0].tolist()


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["instead", "inside", "after"])
def test_a_pickle_cannot_call_what_it_names(where, protocol, tmp_path):
    made, data = tmp_path / "made", IMAGES[0].reshape(-1, 3072)
    for hostile in (Calls(os.mkdir, str(made)), Calls(eval, f"__import__('os').mkdir({str(made)!r})")):
        after = {b"data": data, b"labels": hostile}
        written = {"instead": hostile, "inside": {b"data": hostile}, "after": after}[where]
        if where == "after" and protocol < 3:  # arrays in these name a codec
            written[b"data"] = 0
        file = tmp_path / "data_batch_1"
        file.write_bytes(pickle.dumps(written, protocol))
        with pytest.raises(ValueError, match=r"data_batch_1: expected .* it names (posix|nt|_*builtins?_*|_codecs)\."):
            example.from_pickle(file)
        assert not made.exists()


@pytest.mark.parametrize("name", [("numpy", "load"), ("numpy", "ndarray.tofile"), ("os", "_reconstruct")])
def test_other_names_of_numpy_are_refused(name, tmp_path):
    file = tmp_path / "data_batch_1"
    file.write_bytes(b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in name) + b"\x93.")
    with pytest.raises(ValueError, match=f"it names {'.'.join(name)}, and only arrays"):
        example.from_pickle(file)


def broken():
    whole = python_2(IMAGES[0], LABELS[0])
    yield whole[: len(whole) // 2]
    yield b""
    yield b"no pickle"
    yield pickle.dumps([1, 2], 3)
    yield pickle.dumps({b"other": 1}, 3)
    yield pickle.dumps({b"data": b"bytes"}, 3)
    for shape, dtype in (((4, 3072), np.int8), ((4, 3072), np.float32), ((4, 3071), np.uint8), (3072, np.uint8)):
        yield pickle.dumps({b"data": np.zeros(shape, dtype)}, 3)
    yield pickle.dumps({b"data": np.asfortranarray(np.zeros((4, 3072), np.uint8))}, 3)


def test_broken_files_are_errors_that_name_them(tmp_path):
    file = tmp_path / "data_batch_1"
    for content in broken():
        file.write_bytes(content)
        with pytest.raises(ValueError, match="data_batch_1: expected a dictionary"):
            example.from_pickle(file)
    for content in (b"", binary(IMAGES[0], LABELS[0])[:-1], binary(IMAGES[0], [1, 2, 3, 10])):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="data_batch_1: expected records"):
            example.from_binary(file)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1 … data_batch_5 .* --download"):
        example.load(tmp_path)
    write(tmp_path, "binary")
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_4"):
        example.load(tmp_path)


# The download ---------------------------------------------------------------------------------------------------------


def archive(**replaced):
    """The five files, some of them replaced by another member, and two that nobody asked for."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name in ("../outside.bin", "cifar-10-batches-bin/unasked.bin"):
            tar.addfile(tarfile.TarInfo(name))
        for i in range(5):
            content = binary(IMAGES[i], LABELS[i])
            member = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i + 1}.bin")
            member.size = len(content)
            tar.addfile(*replaced.get(f"data_batch_{i + 1}", (member, io.BytesIO(content))))
    return made.getvalue()


@pytest.fixture
def served(tmp_path):
    """Serve bytes on the loopback: gives their URL."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(content):
            (folder / "archive.tar.gz").write_bytes(content)
            return f"http://127.0.0.1:{server.server_port}/archive.tar.gz"

        yield serve
        server.shutdown()


def test_the_download_takes_the_five_files_and_nothing_else(served, tmp_path):
    content, folder = archive(), tmp_path / "inner" / "data"
    example.download(folder, served(content), hashlib.sha256(content).hexdigest())
    np.testing.assert_array_equal(example.load(folder), IMAGES.reshape(-1, 3, 32, 32))
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    names = [f"inner/data/cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
    assert found == {*names, "served/archive.tar.gz"}


def test_another_archive_is_refused_and_nothing_of_it_is_left(served, tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(ValueError, match=r"127\.0\.0\.1.*: expected an archive with SHA-256 c4a38c50a1"):
        example.download(folder, served(archive()))
    assert list(folder.iterdir()) == []


def test_a_link_is_refused(served, tmp_path):
    link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    content = archive(data_batch_1=(link, None))
    with pytest.raises(ValueError, match=r"data_batch_1\.bin to be a file"):
        example.download(tmp_path / "data", served(content), hashlib.sha256(content).hexdigest())


# The networks and the training ----------------------------------------------------------------------------------------


def test_the_networks_are_those_of_table_3():
    mg.manual_seed(0)
    shapes = [w.shape for name, w in example.make_discriminator(64).named_parameters() if name.endswith("original")]
    assert [(s[0], int(np.prod(s[1:]))) for s in shapes] == [
        (64, 27), (64, 1024), (128, 576), (128, 2048), (256, 1152), (256, 4096), (512, 2304), (1, 8192)
    ]  # fmt: skip
    generator = example.make_generator(64)
    maps = [tuple(w.shape) for name, w in generator.named_parameters() if w.ndim > 1]
    assert maps == [(8192, 128), (512, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (3, 64, 3, 3)]
    assert generator(mg.randn(2, 128)).shape == (2, 3, 32, 32)


def run(folder, steps):
    """The end of its output; `samples` lies in the folder, and the checkpoints below it."""
    command = [sys.executable, str(EXAMPLES / "sngan_cifar10.py"), "--data", str(folder.parent / "data"), "--seed", "1"]
    command += ["--out", str(folder / "samples.png"), "--checkpoints", str(folder / "checkpoints")]
    command += ["--setting", "D", "--loss", "hinge", "--width", "4", "--batch", "8", "--look", "2"]
    folder.mkdir(exist_ok=True)
    found = subprocess.run([*command, "--steps", str(steps)], capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stderr
    return found


def test_the_example(tmp_path):
    write(tmp_path / "data", "Python 2")
    found = run(tmp_path / "whole", 3)
    last = re.match(
        r"result: setting D, hinge loss, 3 steps: losses D (\S+), G (\S+); ‖W̄‖₂ at most (\S+) at the looks, on cpu",
        found.stdout.splitlines()[-1],
    )
    assert 0 < float(last[1]) < 4
    assert 1 <= float(last[3]) < 1.3
    assert (tmp_path / "whole" / "samples.png").read_bytes().startswith(b"\x89PNG")
    generator = example.make_generator(4)
    generator.load_state_dict(mg.load(tmp_path / "whole" / "samples.safetensors"))
    run(tmp_path / "parts", 2)
    assert "goes on after step 2" in run(tmp_path / "parts", 3).stdout
    whole, parts = ((tmp_path / name / "samples.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
