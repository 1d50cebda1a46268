"""The module tree: what it holds, how it is saved and copied, and the values that stand in for parameters in a call."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 4)
        self.scale = nn.Parameter(mg.ones(4))
        self.register_buffer("count", mg.tensor(0))
        self.register_buffer("scratch", mg.zeros(2), persistent=False)
        self.note = "plain"

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


class Doubled(nn.Parametrization):
    """Twice the original; counts the forward calls that succeeded, and reads as the negative outside of them."""

    def __init__(self, original):
        super().__init__(original)
        self.register_buffer("calls", mg.tensor(0))

    def read(self):
        return -self.original

    def begin(self, training):
        def commit():
            self.calls.copy_(self.calls + 1)

        return 2 * self.original if training else 1 * self.original, commit


def values(module):
    return {key: tensor.tolist() for key, tensor in module.state_dict().items()}


# The tree


def test_attributes_are_registered_by_what_they_are():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "second.weight", "second.bias",
    ]  # fmt: skip
    assert [name for name, _ in net.named_buffers()] == ["count", "scratch"]
    assert [name for name, _ in net.named_children()] == ["first", "second"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "second"]
    assert list(net.parameters(recurse=False)) == [net.scale]
    assert [type(module) for module in net.modules()] == [Net, nn.Linear, nn.Linear]
    assert net.note == "plain" and "note" in vars(net) and "scale" not in vars(net)
    assert {"first", "scale", "count", "forward"} <= set(dir(net))


def test_an_attribute_changes_its_kind_with_what_is_assigned():
    net = Net()
    net.note = nn.Parameter(mg.zeros(1))
    assert "note" in dict(net.named_parameters()) and "note" not in vars(net)
    net.note = nn.ReLU()
    assert "note" in dict(net.named_children()) and "note" not in dict(net.named_parameters())
    net.note = 3
    assert net.note == 3 and "note" not in dict(net.named_children())
    net.count = mg.tensor(7)
    assert net.state_dict()["count"].item() == 7
    net.scale = None
    assert net.scale is None and "scale" not in net.state_dict()
    net.scale = nn.Parameter(mg.zeros(4))
    assert "scale" in net.state_dict()
    del net.scale, net.first, net.count, net.note
    assert list(net.state_dict()) == ["second.weight", "second.bias"]
    with pytest.raises(AttributeError):
        del net.scale


def test_a_parameters_name_takes_parameters_only():
    with pytest.raises(TypeError, match=r"Net.scale is a Parameter; got Tensor"):
        Net().scale = mg.ones(4)


def test_registration_refuses_bad_names_and_values():
    net = Net()
    for name in ("", "a.b"):
        with pytest.raises(ValueError, match="without dots"):
            net.register_buffer(name, mg.zeros(1))
    with pytest.raises(TypeError, match="expected a Parameter; got Tensor"):
        net.register_parameter("w", mg.zeros(1))
    with pytest.raises(TypeError, match="expected a Module; got int"):
        net.add_module("m", 3)


def test_a_name_that_the_class_has_is_refused():
    net = Net()
    for add in (
        lambda: net.register_buffer("forward", mg.zeros(1)),
        lambda: setattr(net, "forward", nn.Parameter(mg.zeros(1))),
        lambda: net.register_module("forward", nn.ReLU()),
    ):
        with pytest.raises(ValueError, match="Net has 'forward' in its class, which would hide"):
            add()
    assert "forward" not in net.state_dict() and net(mg.ones(1, 3)).shape == (1, 4)


def test_a_typo_names_what_there_is():
    with pytest.raises(AttributeError, match=r"Linear has no attribute 'wieght'; in its tree there is weight, bias"):
        _ = nn.Linear(2, 2).wieght
    assert not hasattr(nn.ReLU(), "weight")


def test_a_module_must_be_initialized_first():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.ReLU()

    with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\)"):
        Forgetful()


def test_no_forward():
    with pytest.raises(NotImplementedError, match="ModuleList defines no forward"):
        nn.ModuleList([nn.ReLU()])(mg.ones(1))


def test_shared_modules_and_parameters_count_once():
    net = Net()
    net.second = net.first
    net.other = nn.Linear(3, 4)
    net.other.weight = net.first.weight
    assert [name for name, _ in net.named_parameters()] == ["scale", "first.weight", "first.bias", "other.bias"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "other"]
    assert len(list(net.children())) == 2
    assert {"first.weight", "second.weight", "other.weight"} <= set(net.state_dict())
    assert len(list(net.named_parameters(remove_duplicate=False))) == 7
    again = copy.deepcopy(net)
    assert again.second is again.first and again.other.weight is again.first.weight is not net.first.weight


def test_train_eval_apply_requires_grad_zero_grad():
    net = Net()
    assert not net.eval().first.training and net.train().first.training
    seen = []
    assert net.apply(seen.append) is net
    assert seen == [net.first, net.second, net]
    net(mg.ones(2, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad(set_to_none=False)
    assert all(p.grad.abs().sum().item() == 0 for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert not net.requires_grad_(False)(mg.ones(2, 3)).requires_grad


def test_forward_hooks_see_and_replace_the_output():
    net = nn.Linear(2, 2)
    seen = []
    first = net.register_forward_hook(lambda module, args, out: seen.append((module, args, out)))
    second = net.register_forward_hook(lambda module, args, out: out * 0)
    x = mg.ones(1, 2)
    assert net(x).tolist() == [[0.0, 0.0]]
    assert seen[0][0] is net and seen[0][1] == (x,) and seen[0][2].shape == (1, 2)
    first.remove(), second.remove()
    assert net(x).abs().sum().item() > 0 and len(seen) == 1


def test_repr_nests():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.LeakyReLU(0.1)))
    assert repr(net) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): LeakyReLU(negative_slope=0.1)\n"
        "  )\n"
        ")"
    )


def test_to_converts_in_place_and_keeps_the_parameters():
    net = Net()
    before = list(net.parameters())
    net(mg.ones(1, 3)).sum().backward()
    held = net.first.weight
    loss = (held * held).sum()
    assert net.to(mg.float64) is net
    assert all(p is q for p, q in zip(before, net.parameters(), strict=True))
    assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters()} == {mg.float64}
    assert net.count.dtype == mg.int64 and net.scratch.dtype == mg.float64
    assert net(mg.ones(1, 3, dtype=mg.float64)).dtype == mg.float64
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    with pytest.raises(TypeError, match="floating"):
        net.to(mg.int64)
    net.to("cpu", dtype=mg.float32)
    assert net.scale.dtype == mg.float32


# State


def test_state_dict_shares_memory_and_loads_in_place():
    net, other = Net(), Net()
    with mg.no_grad():
        other.count.copy_(mg.tensor(5))
    state = net.state_dict()
    assert list(state) == ["scale", "count", "first.weight", "first.bias", "second.weight", "second.bias"]
    assert state["scale"].data is net.scale.data and not state["scale"].requires_grad
    weight = other.first.weight
    before = weight.version[0]
    assert other.load_state_dict(state) == ([], [])
    assert other.first.weight is weight and weight.version[0] > before
    assert values(other) == values(net)
    assert weight.data is not net.first.weight.data


def test_loading_names_every_difference_and_changes_nothing():
    net = Net()
    before = values(net)
    state = dict(Net().state_dict())
    del state["first.bias"]
    state["frist.bias"] = mg.zeros(4)
    state["scale"] = mg.zeros(5)
    state["count"] = mg.tensor(1.0)
    state["second.bias"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    assert str(error.value) == (
        "Net.load_state_dict: nothing was loaded:\n"
        "  first.bias: missing\n"
        "  frist.bias: unexpected\n"
        "  scale: expected (4,), float32; got (5,), float32\n"
        "  count: expected (), int64; got (), float32\n"
        "  second.bias: expected a tensor; got ndarray"
    )
    assert values(net) == before


@pytest.mark.parametrize("state", [None, "model.safetensors", [mg.ones(1)], nn.ReLU()])
def test_loading_what_is_no_state(state):
    with pytest.raises(TypeError, match=r"Net.load_state_dict: expected a dict of tensors; got .*mg.load\(path\)"):
        Net().load_state_dict(state)


def test_loading_finds_read_only_memory_before_it_writes():
    net = Net()
    net.register_buffer("table", mg.ones(1).expand(3))
    before = values(net)
    with pytest.raises(ValueError, match=r"nothing was loaded:\n  table: is read-only here: .* clone\(\)"):
        net.load_state_dict({**Net().state_dict(), "table": mg.zeros(3)})
    assert values(net) == before


def test_a_models_own_state_under_other_names():
    """Each value is read before it is written over."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = (layer.weight.tolist() for layer in net)
    state = net.state_dict()
    net.load_state_dict({"0.weight": state["1.weight"], "1.weight": state["0.weight"].T})
    assert net[0].weight.tolist() == second and net[1].weight.T.tolist() == first


def test_loading_what_fits():
    net = Net()
    state = {"scale": mg.full((4,), 2.0), "other": mg.zeros(1)}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == ["other"] and "first.weight" in missing and "scale" not in missing
    assert net.scale.tolist() == [2.0] * 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_independent_and_whole(duplicate):
    net = Net()
    net.first.parametrize("weight", Doubled(net.first.weight))
    net(mg.ones(2, 3)).sum().backward()
    again = duplicate(net)
    assert values(again) == values(net) and repr(again) == repr(net)
    assert [name for name, _ in again.named_buffers()] == [name for name, _ in net.named_buffers()]
    assert all(type(p) is nn.Parameter and p.requires_grad for p in again.parameters())
    assert again.scale.grad.tolist() == net.scale.grad.tolist()
    x = mg.ones(2, 3)
    assert again(x).tolist() == net(x).tolist()
    with mg.no_grad():
        again.scale.zero_()
    assert net.scale.tolist() == [1.0] * 4


# Containers


def test_module_list():
    layers = nn.ModuleList([nn.ReLU(), nn.Tanh()])
    layers.append(nn.Sigmoid()).extend([nn.GELU()]).insert(1, nn.SiLU())
    assert [type(m).__name__ for m in layers] == ["ReLU", "SiLU", "Tanh", "Sigmoid", "GELU"]
    assert list(dict(layers.named_children())) == ["0", "1", "2", "3", "4"]
    assert type(layers[-1]) is nn.GELU and len(layers[1:3]) == 2 and type(layers[1:3]) is nn.ModuleList
    layers[0] = nn.ELU()
    del layers[1]
    assert [type(m).__name__ for m in layers] == ["ELU", "Tanh", "Sigmoid", "GELU"]
    assert list(dict(layers.named_children())) == ["0", "1", "2", "3"]
    with pytest.raises(IndexError, match="ModuleList of 4 modules: no index 4"):
        layers[4]


@pytest.mark.parametrize("bad", [None, 3])
def test_what_is_no_module_is_refused_and_the_list_keeps_what_it_had(bad):
    layers = nn.ModuleList([nn.ReLU(), nn.Tanh()])
    for refused in (layers.append, lambda m: layers.insert(0, m), lambda m: layers.__setitem__(0, m)):
        with pytest.raises(TypeError, match=r"ModuleList\.\d: expected a Module; got"):
            refused(bad)
    assert [type(m) for m in layers] == [nn.ReLU, nn.Tanh] and not layers.state_dict()


def test_sequential_slices_and_names():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x = mg.randn(4, 2)
    assert net[1:](net[:1](x)).tolist() == net(x).tolist()
    named = nn.Sequential({"a": nn.Linear(2, 2), "b": nn.ReLU()})
    assert list(named.state_dict()) == ["a.weight", "a.bias"] and type(named.b) is nn.ReLU
    assert list(named[1:]._modules) == ["b"]


def test_what_is_added_to_a_sequential_takes_no_others_name():
    part = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.SiLU())[1:].append(nn.GELU())  # the names "1" and "2" are taken
    assert [type(m) for m in part] == [nn.Tanh, nn.SiLU, nn.GELU]
    assert [type(m) for m in nn.Sequential({"1": nn.ReLU()}, nn.Tanh())] == [nn.ReLU, nn.Tanh]


# Parametrizations


def parametrized():
    layer = nn.Linear(2, 2, bias=False)
    layer.parametrize("weight", Doubled(layer.weight))
    return layer, layer.parametrizations.weight


def test_a_call_computes_with_its_value_and_a_read_changes_nothing():
    layer, rule = parametrized()
    x = mg.ones(1, 2)
    w = rule.original
    assert layer.weight.tolist() == (-w).tolist() and rule.calls.item() == 0
    assert layer(x).tolist() == (x @ (2 * w).T).tolist() and rule.calls.item() == 1
    assert layer.eval()(x).tolist() == (x @ w.T).tolist() and rule.calls.item() == 2
    assert layer.weight.tolist() == (-w).tolist() and rule.calls.item() == 2
    layer(x).sum().backward()
    assert w.grad is not None


def test_paths_of_a_parametrization():
    layer, rule = parametrized()
    assert list(layer.state_dict()) == ["parametrizations.weight.original", "parametrizations.weight.calls"]
    assert list(layer.named_parameters()) == [("parametrizations.weight.original", rule.original)]
    assert "weight" in dir(layer)


def test_an_exception_leaves_the_state_as_before():
    layer, rule = parametrized()
    with pytest.raises(ValueError):
        layer(mg.ones(1, 3))
    assert rule.calls.item() == 0 and layer.weight.tolist() == (-rule.original).tolist()


def test_a_call_within_a_call():
    class Twice(nn.Linear):
        def forward(self, x, again=True):
            inner = self(x, again=False) if again else 0.0
            return super().forward(x) + inner

    layer = Twice(2, 2, bias=False)
    layer.parametrize("weight", Doubled(layer.weight))
    x, w = mg.ones(1, 2), layer.parametrizations.weight.original
    assert layer(x).tolist() == (2 * (x @ (2 * w).T)).tolist()
    assert layer.parametrizations.weight.calls.item() == 2
    assert layer.weight.tolist() == (-w).tolist()


def test_calls_of_other_threads_are_not_seen():
    inside, leave = threading.Event(), threading.Event()

    class Slow(nn.Linear):
        def forward(self, x):
            inside.set()
            assert leave.wait(10)
            return self.weight * 1

    layer = Slow(2, 2, bias=False)
    layer.parametrize("weight", Doubled(layer.weight))
    results = []
    thread = threading.Thread(target=lambda: results.append(layer(mg.ones(1, 2))))
    thread.start()
    assert inside.wait(10)
    here = layer.weight.tolist()  # while the other thread computes with twice the original
    leave.set()
    thread.join()
    w = layer.parametrizations.weight.original
    assert here == (-w).tolist() and results[0].tolist() == (2 * w).tolist()


def test_registering_and_removing():
    layer = nn.Linear(2, 2)
    w = layer.weight
    with pytest.raises(ValueError, match=r"no Parameter 'wieght'; there is weight, bias"):
        layer.parametrize("wieght", Doubled(w))
    with pytest.raises(ValueError, match="not the module's Parameter"):
        layer.parametrize("weight", Doubled(nn.Parameter(mg.ones(2, 2))))
    layer.parametrize("weight", Doubled(w))
    with pytest.raises(RuntimeError, match="parametrized already"):
        layer.parametrize("weight", Doubled(w))
    for value in (mg.ones(2, 2), nn.Parameter(mg.ones(2, 2)), nn.ReLU(), None):
        with pytest.raises(RuntimeError, match=r"parametrizations.weight.original"):
            layer.weight = value
    with pytest.raises(RuntimeError, match="remove the parametrization"):
        layer.register_parameter("weight", w)
    with pytest.raises(ValueError, match="'bias' is not parametrized; weight is"):
        layer.unparametrize("bias")
    layer.weight = layer.unparametrize("weight").original
    assert layer.weight is w and sorted(layer.state_dict()) == ["bias", "weight"]
    assert not hasattr(layer, "parametrizations")


def test_parameters_live_in_the_memory_they_are_given():
    x = mg.ones(3)
    p = nn.Parameter(x)
    assert p.data is x.data and p.version is x.version and p.requires_grad and p.is_leaf
    assert not nn.Parameter(x, requires_grad=False).requires_grad
    assert np.array_equal(copy.deepcopy(p).detach().numpy(), np.ones(3))
