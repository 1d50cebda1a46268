"""The same memory here and in NumPy, torch or JAX: what one side writes the other sees, and neither frees it early."""

import gc
import re
import weakref

import numpy as np
import pytest

import minigrad as mg

DTYPES = ["float16", "float32", "float64", "int64", "bool"]
LAYOUTS = {  # from a contiguous 4×6 array or tensor
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T,
    "strided": lambda x: x[1:, ::2],
    "0-d": lambda x: x[2, 3],
    "column": lambda x: x[:, 4:5],
    "empty": lambda x: x[4:],
}


@pytest.fixture(params=["numpy", "torch"])
def other(request):
    if request.param == "torch":
        pytest.importorskip("torch", reason="exchange with torch needs torch")
    return {"numpy": NumPy, "torch": Torch}[request.param]


class NumPy:
    make = staticmethod(np.array)
    take = staticmethod(np.from_dlpack)
    fill = staticmethod(lambda x, value: x.__setitem__(..., value))
    dtype = staticmethod(lambda x: str(x.dtype))
    address = staticmethod(lambda x: x.ctypes.data)


class Torch:
    make = staticmethod(lambda a: __import__("torch").tensor(a))
    take = staticmethod(lambda x: __import__("torch").from_dlpack(x))
    fill = staticmethod(lambda x, value: x.fill_(bool(value) if "bool" in str(x.dtype) else float(value)))
    dtype = staticmethod(lambda x: str(x.dtype).removeprefix("torch."))
    address = staticmethod(lambda x: x.data_ptr())


def values(dtype):
    return (np.arange(24).reshape(4, 6) % 2 if dtype == "bool" else np.arange(24).reshape(4, 6)).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_from_them(dtype, layout, other):
    base = other.make(values(dtype))
    theirs, wanted = LAYOUTS[layout](base), LAYOUTS[layout](values(dtype))
    if layout == "0-d" and other is NumPy:
        theirs = base[2:3, 3:4].reshape(())
    x = mg.from_dlpack(theirs)
    assert (x.shape, x.dtype, x.device, x.requires_grad) == (wanted.shape, np.dtype(dtype), "cpu", False)
    np.testing.assert_array_equal(x.numpy(), wanted)
    if layout != "empty":
        assert x.numpy().ctypes.data == other.address(theirs)
        other.fill(theirs, 0)
        assert not x.numpy().any()
        version = x.version[0]
        x.copy_(mg.ones(*x.shape).to(x.dtype))
        assert x.version[0] == version + 1
        expected = values(dtype)
        expected.flat[LAYOUTS[layout](np.arange(24).reshape(4, 6))] = 1
        np.testing.assert_array_equal(np.asarray(base), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_them(dtype, layout, other):
    wanted = LAYOUTS[layout](values(dtype))
    x = LAYOUTS[layout](mg.tensor(values(dtype)))
    theirs = other.take(x)
    assert (tuple(theirs.shape), other.dtype(theirs)) == (wanted.shape, dtype)
    np.testing.assert_array_equal(np.asarray(theirs), wanted)
    if layout != "empty":
        assert other.address(theirs) == x.numpy().ctypes.data
        x.zero_()
        assert not np.asarray(theirs).any()
        if other is Torch:  # NumPy takes whatever it is given as read-only
            other.fill(theirs, 1)
            assert x.numpy().all()


@pytest.mark.parametrize("to", [True, False], ids=["to", "from"])
def test_the_memory_outlives_its_maker(to, other):
    """The maker goes first; the memory stays until the taker has gone, and then goes as well."""
    memory = np.arange(1000.0)
    watched = weakref.ref(memory)
    maker = mg.from_numpy(memory) if to else memory if other is NumPy else None
    if maker is None:
        import torch

        maker = torch.from_numpy(memory)
    taken = other.take(maker) if to else mg.from_dlpack(maker)
    del memory, maker
    gc.collect()
    noise = [np.full(1000, 7.0) for _ in range(50)]
    assert watched() is not None and np.array_equal(np.asarray(taken), np.arange(1000.0))
    del taken, noise
    gc.collect()
    assert watched() is None


def test_torch_takes_a_tensor_as_it_is():
    torch = pytest.importorskip("torch", reason="exchange with torch needs torch")
    x = mg.ones(2, 3)
    for take in (torch.as_tensor, torch.asarray, torch.from_dlpack, lambda x: torch.from_numpy(x.numpy())):
        assert take(x).data_ptr() == x.numpy().ctypes.data


def test_numpy_takes_a_tensor_as_it_is():
    x = mg.ones(2, 3)
    assert all(np.shares_memory(take(x), x.numpy()) for take in (np.asarray, np.from_dlpack))
    assert not np.shares_memory(np.from_dlpack(x, copy=True), x.numpy())
    assert np.shares_memory(mg.from_dlpack(x).numpy(), x.numpy())
    assert mg.from_numpy(np.asarray(x)).numpy().ctypes.data == x.numpy().ctypes.data


def test_memory_that_takes_no_part_in_gradients_comes_in_as_a_leaf():
    memory = np.array([1.0, 2.0])
    x = mg.from_dlpack(memory).requires_grad_()
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4] and not np.shares_memory(x.grad.numpy(), memory)


# Read-only, backwards, refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [mg.from_numpy, mg.from_dlpack])
def test_read_only_memory_stays_so(take):
    memory = np.arange(3.0)
    memory.setflags(write=False)
    x = take(memory)
    for write in (x.zero_, lambda: x.copy_(mg.ones(3, dtype=mg.float64)), lambda: x.__setitem__(0, 5.0)):
        with pytest.raises(RuntimeError, match=r"read-only: .* Write to a clone\(\)"):
            write()
    assert memory.tolist() == [0, 1, 2] and not np.from_dlpack(x).flags.writeable
    assert x.clone().zero_().tolist() == [0, 0, 0]


def test_what_others_have_expanded_is_read_only():
    """A change of one element would be one of others, and a sum in place would be made several times."""
    torch = pytest.importorskip("torch", reason="exchange with torch needs torch")
    memory = torch.ones(2, 1, 1)
    x = mg.from_dlpack(memory.expand(2, 3, 1))
    with pytest.raises(RuntimeError, match="read-only: an expanded view"):
        x[0, 0] = 5.0
    assert memory.flatten().tolist() == [1, 1] and x.sum().item() == 6
    mg.from_dlpack(memory[:1].expand(1, 1, 1)).zero_()
    assert memory.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("backwards", [lambda x: x.flip(0), lambda x: x[::-1], lambda x: x.flip(1).T])
def test_what_runs_backwards_is_refused(backwards):
    """torch ends the process over a negative stride, with no exception to catch."""
    x = backwards(mg.ones(2, 3))
    with pytest.raises(BufferError, match=r"runs backwards through its memory .* Use x\.clone\(\)"):
        x.__dlpack__()
    assert np.from_dlpack(x.clone()).tolist() == x.tolist()
    assert mg.from_dlpack(np.arange(3.0)[::-1]).tolist() == [2, 1, 0]  # as NumPy gives it, it can be taken


def test_what_is_refused_on_the_way_out():
    x = mg.ones(2, requires_grad=True)
    for give in (np.from_dlpack, lambda x: x.__dlpack__()):
        with pytest.raises(RuntimeError, match=r"requires grad, which others would not see\. Use x\.detach\(\)"):
            give(x)
    assert np.shares_memory(np.from_dlpack(x.detach()), x.detach().numpy())
    with pytest.raises(BufferError):
        mg.ones(2).__dlpack__(dl_device=(2, 0))


class Foreign:
    """Memory of a device that is none of ours."""

    def __dlpack_device__(self):
        return 12, 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: [1.0], TypeError, "from_dlpack: list does not speak DLPack. Use mg.tensor()."),
        (lambda: Foreign(), ValueError, "got DLPack's device type 12"),
        (lambda: np.ones(2, np.int32), TypeError, "dtype out of float16, float32, float64, int64, bool; got int32"),
        (lambda: np.ones(2, np.complex64), TypeError, "got complex64"),
    ],
)
def test_what_is_refused_on_the_way_in(make, error, words):
    with pytest.raises(error, match=re.escape(words)):
        mg.from_dlpack(make())


def test_torch_tensors_that_are_refused():
    torch = pytest.importorskip("torch", reason="exchange with torch needs torch")
    with pytest.raises(TypeError, match=r"from_dlpack: expected a dtype that NumPy has; got torch\.bfloat16"):
        mg.from_dlpack(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(BufferError, match="require gradient"):
        mg.from_dlpack(torch.ones(2, requires_grad=True))


# JAX -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jnp():
    jax = pytest.importorskip("jax", reason="exchange with JAX needs jax")
    with jax.enable_x64(True):
        yield jax.numpy


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_jax(dtype, jnp):
    """The same memory, which is read-only: JAX's arrays do not change."""
    theirs = jnp.asarray(values(dtype))
    for x in (mg.from_dlpack(theirs), mg.from_numpy(np.asarray(theirs))):
        assert (x.shape, x.dtype) == ((4, 6), np.dtype(dtype))
        assert x.numpy().ctypes.data == theirs.unsafe_buffer_pointer()
        with pytest.raises(RuntimeError, match="read-only"):
            x.zero_()
    del theirs
    gc.collect()
    np.testing.assert_array_equal(x.numpy(), values(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "0-d", "empty"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_jax(dtype, layout, jnp):
    wanted = LAYOUTS[layout](values(dtype))
    x = LAYOUTS[layout](mg.tensor(values(dtype)))
    theirs = jnp.from_dlpack(x)
    assert (theirs.shape, str(theirs.dtype)) == (wanted.shape, dtype)
    del x
    gc.collect()
    np.testing.assert_array_equal(np.asarray(theirs), wanted)


def test_jax_copies_only_what_is_not_aligned(jnp):
    room = np.zeros(64 + 16, np.float32)
    at = -room.ctypes.data % 64 // 4
    x = mg.from_numpy(room[at : at + 16])
    assert x.numpy().ctypes.data % 64 == 0
    assert jnp.from_dlpack(x).unsafe_buffer_pointer() == x.numpy().ctypes.data
