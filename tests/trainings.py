"""Small trainings with all that remembers something, what they depend on, and files of them with other contents."""

import copy
import hashlib
import json

import numpy as np
import safetensors
import safetensors.numpy

import minigrad as mg
from minigrad import _random
from minigrad.checkpoint import Checkpoint
from minigrad.nn.utils import spectral_norm
from minigrad.optim import lr_scheduler

ALGORITHMS = {
    "SGD": {"lr": 0.1},
    "SGD, momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-3},
    "Adam": {"lr": 0.01, "betas": (0.5, 0.9)},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
}
SCHEDULES = {
    None: lambda o: None,
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 4, 4]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9, eta_min=0.01),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=7),
}


def parts(seed, algorithm="Adam", schedule="StepLR", hidden=8, gradient="fixed_uv"):
    """A small training with all that remembers something: everything random in it from the seed."""
    mg.manual_seed(seed)
    model = mg.nn.Sequential(
        spectral_norm(mg.nn.Linear(6, hidden), n_init_iterations=1, gradient=gradient),
        mg.nn.BatchNorm1d(hidden),
        mg.nn.LeakyReLU(0.1),
        mg.nn.Dropout(0.3),
        spectral_norm(mg.nn.Linear(hidden, 3), n_init_iterations=1, learnable_scale=True),
    )
    rest = [*model[1].parameters(), *model[4].parameters()]
    groups = [{"params": model[0].parameters()}, {"params": rest, "lr": 0.03}]
    optimizer = getattr(mg.optim, algorithm.split(",")[0])(groups, **ALGORITHMS[algorithm])
    generators = {"inputs": mg.Generator(seed), "targets": np.random.default_rng(seed)}
    return Checkpoint(model, optimizer, SCHEDULES[schedule](optimizer), generators)


def train(checkpoint, steps):
    """Returns the losses, as bits."""
    losses = []
    for _ in range(steps):
        x = mg.randn(5, 6, generator=checkpoint.generator["inputs"])
        y = mg.tensor(checkpoint.generator["targets"].integers(3, size=5))
        loss = mg.nn.functional.cross_entropy(checkpoint.model(x), y)
        checkpoint.optimizer.zero_grad()
        loss.backward()
        checkpoint.optimizer.step()
        if checkpoint.scheduler is not None:
            checkpoint.scheduler.step()
        checkpoint.step += 1
        losses.append(loss.item().hex())
    return losses


def seen(checkpoint):
    """All of it that a training depends on, without the code under test."""
    models, optimizers, schedulers = (
        x if isinstance(x, dict) else {} if x is None else {"": x}
        for x in (checkpoint.model, checkpoint.optimizer, checkpoint.scheduler)
    )
    tensors = [x for m in models.values() for x in (*m.parameters(), *m.buffers())]
    generators = (checkpoint.generator or {}).values()
    return (
        [x.detach().numpy().tobytes() for x in tensors],
        [
            {name: x.numpy().tobytes() if isinstance(x, mg.Tensor) else x for name, x in o.state.get(p, {}).items()}
            for o in optimizers.values() for g in o.param_groups for p in g["params"]
        ],
        [{k: v for k, v in g.items() if k != "params"} for o in optimizers.values() for g in o.param_groups],
        [copy.deepcopy(s.state_dict()) for s in schedulers.values()],
        [g.get_state() if isinstance(g, mg.Generator) else g.bit_generator.state for g in generators],
        _random.default.get_state(),
        checkpoint.step,
    )  # fmt: skip


def small(value=0.0, step=0):
    model = mg.nn.Linear(2, 1)
    with mg.no_grad():
        model.weight.copy_(mg.full((1, 2), float(value)))
    return Checkpoint(model, step=step)


def forged(file, numbers=(), remove=(), arrays=(), text=None, **head):
    """The file with other contents under a right checksum: whoever means harm can compute it."""
    with safetensors.safe_open(file, "np") as opened:
        there = {key: opened.get_tensor(key) for key in opened.keys()} | dict(arrays)  # noqa: SIM118
        (key,), (stated,) = zip(*opened.metadata().items(), strict=True)
    stated = json.loads(stated)
    stated["state"] |= dict(numbers)
    for name in remove:
        del (there if name in there else stated["state"])[name]
    digest = hashlib.sha256(json.dumps(stated["state"], sort_keys=True).encode())
    for name, x in sorted(there.items()):
        digest.update(f"\n{json.dumps(name)} {x.dtype} {x.shape}\n".encode() + x.tobytes())
    stated["sha256"] = digest.hexdigest()
    safetensors.numpy.save_file(there, file, {key: json.dumps(stated | head) if text is None else text})
