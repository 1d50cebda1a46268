"""`mg.save` and `mg.load`: what a file holds, what it may not, and what a failed write leaves."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import safetensors.numpy

import minigrad as mg

DTYPES = ["float16", "float32", "float64", "int64", "bool"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def written(tensors, data=b""):
    """A file of that header, as the format has it: its length in eight bytes, JSON, data."""
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


# What comes back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_shape_and_stride(dtype, path, device):
    a = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    x = mg.tensor(a, device=device)
    views = {
        "whole": (x, a),
        "permuted": (x.permute(2, 0, 1), a.transpose(2, 0, 1)),
        "strided": (x[:, 1:, ::2], a[:, 1:, ::2]),
        "broadcast": (x[:, :1].expand(2, 3, 4), np.broadcast_to(a[:, :1], (2, 3, 4))),
        "0-d": (x[1, 2, 3], a[1, 2, 3]),
        "empty": (x[:0], a[:0]),
    }
    mg.save({key: view for key, (view, _) in views.items()}, path)
    for found in (mg.load(path), safetensors.numpy.load_file(path)):  # the second: the format's own reader
        assert found.keys() == views.keys()
        for key, (_, wanted) in views.items():
            assert (found[key].dtype, found[key].shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_array_equal(np.asarray(found[key]), wanted)


def test_a_model_with_a_shared_parameter(path):
    model, twin = (mg.nn.ModuleList([mg.nn.Linear(3, 3), mg.nn.Linear(3, 3)]) for _ in range(2))
    model[1].weight = model[0].weight
    mg.save(model.state_dict(), str(path))
    twin.load_state_dict(mg.load(str(path)))
    for linear in twin:
        assert linear.weight.tolist() == model[0].weight.tolist()
    assert twin[0].bias.tolist() != twin[1].bias.tolist()
    mg.save(dict(model.named_parameters()), path)  # which require grad
    assert not any(x.requires_grad for x in mg.load(path).values())


def test_what_is_loaded_is_ones_own(path):
    mg.save({"x": mg.zeros(3)}, path)
    one, other = mg.load(path)["x"], mg.load(path)["x"]
    one.copy_(mg.ones(3))
    path.write_bytes(bytes(path.stat().st_size))
    assert (one.tolist(), other.tolist()) == ([1, 1, 1], [0, 0, 0])


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_that_was_there(breaks, path, monkeypatch):
    mg.save({"x": mg.zeros(3)}, path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, breaks, full)
    with pytest.raises(OSError, match="no space left"):
        mg.save({"x": mg.ones(3)}, path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_file_is_complete_and_flushed_before_it_takes_the_name(path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def seen_fsync(fd):
        events.append(("fsync", os.fstat(fd).st_size))
        fsync(fd)

    def seen_replace(temporary, target):
        events.append(("replace", os.stat(temporary).st_size, os.path.dirname(temporary) == os.path.dirname(target)))
        replace(temporary, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    mg.save({"x": mg.ones(1000)}, path)
    size = path.stat().st_size
    assert events[:2] == [("fsync", size), ("replace", size, True)]
    assert events[2:] == ([("fsync", os.stat(path.parent).st_size)] if os.name == "posix" else [])  # the new name


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")
def test_permissions_and_links_are_as_with_any_file(path):
    path.with_name("other").touch()
    path.symlink_to("other")
    mg.save({"x": mg.ones(1)}, path)
    assert path.is_symlink() and mg.load(path.with_name("other"))["x"].tolist() == [1]
    mg.save({}, path.with_name("new"))
    path.with_name("usual").touch()
    assert path.with_name("new").stat().st_mode == path.with_name("usual").stat().st_mode


def test_what_is_no_state_dict(path):
    with pytest.raises(TypeError, match=r"save: expected tensors by name; got 'x': ndarray"):
        mg.save({"x": np.zeros(1)}, path)
    with pytest.raises(TypeError, match=r"save: expected tensors by name; got Linear\. Use model\.state_dict\(\)"):
        mg.save(mg.nn.Linear(1, 1), path)
    with pytest.raises(TypeError, match=r"got 1: Tensor"):
        mg.save({1: mg.zeros(1)}, path)
    with pytest.raises(ValueError, match="'__metadata__'"):
        mg.save({"__metadata__": mg.zeros(1)}, path)
    with pytest.raises(FileNotFoundError):
        mg.save({"x": mg.zeros(1)}, path / "no" / "folder")
    assert not os.listdir(path.parent)


# Reading -------------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os._exit, (1,)


X = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "pickle": pickle.dumps(Bomb()),
    "text": b"weights, honestly" * 10,
    "no header": b"",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "shape": written({"x": X | {"shape": [3]}}, bytes(8)),
    "dtype": written({"x": X | {"dtype": "F64"}}, bytes(8)),
    "overlap": written({"x": X, "y": X}, bytes(8)),
    "beyond the end": written({"x": X | {"data_offsets": [8, 16]}}, bytes(8)),
    "more data": written({"x": X}, bytes(9)),
    "unknown dtype": written({"x": X | {"dtype": "Q"}}, bytes(8)),
    "header of 2⁶³ bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "deep": struct.pack("<Q", 10**6) + b'{"x":' + b"[" * (10**6 - 5),
    "negative extent": written({"x": X | {"shape": [-2]}}, bytes(8)),
    "extents that overflow": written({"x": X | {"shape": [1 << 62, 8]}}, bytes(8)),
    "nothing, but of 2⁶² rows": written({"x": X | {"shape": [0, 1 << 62], "data_offsets": [0, 0]}}),
    "65 dimensions": written({"x": X | {"shape": [2] + [1] * 64}}, bytes(8)),
    "bool of 2": written({"x": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2"),
    "metadata of numbers": written({"x": X, "__metadata__": {"a": 1}}, bytes(8)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_none_is_named(kind, path):
    path.write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=r"load: .*model\.safetensors: expected a complete safetensors file"):
        mg.load(path)


def test_a_pipe_is_not_waited_for(path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"load: .*model\.safetensors: expected a regular file"):
        mg.load(path)


def test_a_file_cut_off_anywhere(path):
    mg.save({"x": mg.ones(3), "y": mg.ones(2)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            mg.load(path)


@pytest.mark.parametrize("code", ["BF16", "I16", "U8", "F8_E4M3"])
def test_dtypes_that_minigrad_has_not(code, path):
    size = {"BF16": 4, "I16": 4}.get(code, 2)
    path.write_bytes(written({"layer.x": {"dtype": code, "shape": [2], "data_offsets": [0, size]}}, bytes(size)))
    with pytest.raises(TypeError, match=rf"load: .*model\.safetensors: 'layer.x' is {code}; expected one of F16, F32"):
        mg.load(path)


def test_a_path_without_a_file(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        mg.load(path)
    with pytest.raises(OSError, match=path.parent.name):
        mg.load(path.parent)
