"""Files that chance or malice has made: an error that names the file, or exactly what was saved; nothing in between."""

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from trainings import forged

import minigrad as mg
from minigrad.checkpoint import Checkpoint

KEYS = ("model.weight", "model.bias", "optimizer.state.0.exp_avg", "step", "__metadata__")


def made(seed):
    mg.manual_seed(seed)
    model = mg.nn.Linear(3, 2)
    optimizer = mg.optim.Adam(model.parameters(), lr=0.1 + seed)
    model(mg.randn(4, 3)).square().mean().backward()
    optimizer.step()
    return Checkpoint(model, optimizer, mg.optim.lr_scheduler.StepLR(optimizer, 2), mg.Generator(seed), step=seed)


def seen(checkpoint):
    averages = [x["exp_avg"] for x in checkpoint.optimizer.state.values()]
    tensors = [*checkpoint.model.parameters(), *averages]
    numbers = checkpoint.optimizer.param_groups[0]["lr"], checkpoint.scheduler.state_dict(), checkpoint.step
    return [x.detach().numpy().tobytes() for x in tensors], numbers, checkpoint.generator.get_state()


@pytest.fixture(scope="module")
def file():
    with TemporaryDirectory() as folder:
        yield Path(folder, "x.safetensors")


@pytest.fixture(scope="module")
def whole(file):
    return made(0).save(file).read_bytes(), seen(made(0))


def loads(data, file):
    """What is there after the file has been loaded; nothing of it, if there was an error, which must name the file."""
    file.write_bytes(data)
    checkpoint = made(1)
    before = seen(checkpoint)
    try:
        checkpoint.load(file)
    except ValueError as error:
        assert str(file) in str(error) and len(str(error)) < 4000
        assert seen(checkpoint) == before
        return None
    return seen(checkpoint)


def test_a_checkpoint_cut_off_anywhere(whole, file):
    data, saved = whole
    for length in [*range(8, len(data), 7), *range(len(data) - 8, len(data))]:
        assert loads(data[:length], file) is None
    assert loads(data, file) == saved


@hypothesis.settings(max_examples=400)
@hypothesis.given(st.data())
def test_flipped_bits(whole, file, data):
    there, saved = bytearray(whole[0]), whole[1]
    for place in data.draw(st.lists(st.integers(0, 8 * len(there) - 1), min_size=1, max_size=3, unique=True)):
        there[place // 8] ^= 1 << place % 8
    assert loads(bytes(there), file) in (None, saved)


def test_a_flipped_bit_of_any_tensor_is_found(whole, file):
    data, _ = whole
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for place in range(start, len(data)):
        assert loads(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :], file) is None


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.data())
def test_blocks_cut_out_doubled_and_overwritten(whole, file, data):
    there, saved = whole
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(there))] * 2)))
    block = data.draw(st.sampled_from([b"", there[start:end] * 2, bytes(end - start), b"\xff" * (end - start)]))
    assert loads(there[:start] + block + there[end:], file) in (None, saved)


extents = st.one_of(st.integers(-2, 8), st.sampled_from([1 << 31, (1 << 62) + 1, 1 << 63, 1 << 64, -(1 << 63)]))
numbers = st.one_of(extents, st.floats(), st.booleans(), st.none(), st.text(max_size=3))
names = st.text(max_size=3)
anything = st.recursive(numbers, lambda x: st.lists(x, max_size=3) | st.dictionaries(names, x, max_size=3))
entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "F4", "I64", "U8", "C64", "BOOL", "", "f32"]) | anything,
        "shape": st.lists(extents, max_size=4) | st.just([1] * 70) | anything,
        "data_offsets": st.tuples(extents, extents) | st.tuples(st.just(0), st.integers(0, 24)) | anything,
    },
    optional={"more": anything},
)
headers = st.dictionaries(st.sampled_from(KEYS) | names, entry | anything, max_size=4)


@hypothesis.settings(max_examples=250)
@hypothesis.given(header=headers, data=st.binary(max_size=24), length=st.none() | st.integers(0, (1 << 64) - 1))
def test_hostile_headers(whole, file, header, data, length):
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text) if length is None else length) + text + data
    assert loads(data, file) is None
    try:
        found = mg.load(file)
    except (ValueError, TypeError) as error:
        assert str(file) in str(error)
    else:
        for key, x in found.items():  # what the format's own reader finds
            np.testing.assert_array_equal(x.numpy(), safetensors.numpy.load(data)[key])


@hypothesis.settings(max_examples=250)
@hypothesis.given(
    changed=st.dictionaries(st.integers(0, 30), anything, min_size=1, max_size=3),
    added=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=9), anything, max_size=2),
)
def test_hostile_numbers_under_a_right_checksum(whole, file, changed, added):
    file.write_bytes(whole[0])
    names = sorted(json.loads(safetensors.safe_open(file, "np").metadata()["minigrad.checkpoint"])["state"])
    forged(file, {names[i % len(names)]: x for i, x in changed.items()} | added)
    checkpoint = made(1)
    before = seen(checkpoint)
    try:
        checkpoint.load(file)
    except ValueError as error:
        assert str(file) in str(error) and len(str(error)) < 4000
        assert seen(checkpoint) == before
    else:  # it is a training still
        checkpoint.save(file)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"{}", b'{"format": 1, "sha256": 1, "state": {"step": 1}}', b'"' * 99])
def test_metadata_of_any_text(text, whole, file):
    header = json.dumps({"__metadata__": {"minigrad.checkpoint": text.decode("latin-1")}}).encode()
    assert loads(struct.pack("<Q", len(header)) + header, file) is None
