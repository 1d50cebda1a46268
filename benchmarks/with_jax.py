"""How JAX does the work: pure functions under `jit`, their buffers donated, images with channels last as XLA has them.

The networks are minigrad's: `apply` walks through their layers, and parameters go by the names of the state dict.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.eager import Minigrad, factors, one_by_one, state, upstream
from benchmarks.work import (
    Adam,
    Array,
    Build,
    Derivative,
    Function,
    LeftOut,
    Matmul,
    Running,
    Several,
    Training,
    random,
)  # fmt: skip

jax: Any = importlib.import_module("jax")
jax.config.update("jax_enable_x64", True)  # arrays of float32 stay what they are
jax.config.update("jax_platforms", "cpu")
jnp, lax = jax.numpy, jax.lax

Arrays = dict[str, Any]
FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # images as they are elsewhere (N, C, H, W), and here (N, H, W, C)


class JAX:
    """JAX, jit."""

    name = "JAX jit"
    version = str(jax.__version__)

    def start(self, case: Case) -> Running:
        """Begin a piece of work. LeftOut: not here."""
        kinds: dict[Any, Any] = {
            Derivative: derivative, Training: training, Adam: adam, Matmul: matmul, Function: function,
            Several: several,
        }  # fmt: skip
        if type(case.work) not in kinds:
            raise LeftOut("writes into no array")
        running: Running = kinds[type(case.work)](case.work)
        return running

    def synchronize(self) -> None:
        """All steps return when they are done."""


def to_last(x: Array) -> Any:
    return jnp.array(x.transpose(LAST) if x.ndim == 4 else x)  # a copy: what is donated must be JAX's own


def to_first(x: Any) -> Array:
    return np.asarray(x).transpose(FIRST) if x.ndim == 4 else np.asarray(x)


# Layers ---------------------------------------------------------------------------------------------------------------


def unit(x: Any) -> Any:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def weight(name: str, p: Arrays, b: Arrays) -> Any:
    """The weight of a layer: as it is, or W/(uᵀWv) after one sweep, with u and v constants, which go back into `b`."""
    if name + "weight" in p:
        return p[name + "weight"]
    name += "parametrizations.weight."
    w = p[name + "original"]
    m = w.reshape(len(w), -1)
    fixed = lax.stop_gradient(m)
    u = unit(fixed @ b[name + "0._v"])
    v = unit(fixed.T @ u)
    b[name + "0._u"], b[name + "0._v"] = u, v
    return w / (u @ (m @ v))


def conv(layer: Any, x: Any, w: Any) -> Any:
    (s, _), (q, _) = layer.stride, layer.padding
    return lax.conv_general_dilated(
        x, w.transpose(2, 3, 1, 0), (s, s), ((q, q), (q, q)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=layer.groups,
    )  # fmt: skip


def conv_transpose(layer: Any, x: Any, w: Any) -> Any:
    (s, _), (q, _), k = layer.stride, layer.padding, w.shape[2] - 1
    return lax.conv_general_dilated(
        x, w.transpose(2, 3, 0, 1)[::-1, ::-1], (1, 1), ((k - q, k - q), (k - q, k - q)), lhs_dilation=(s, s),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def batch_norm(layer: Any, name: str, p: Arrays, b: Arrays, x: Any) -> Any:
    mean, var, n = x.mean((0, 1, 2)), x.var((0, 1, 2)), x.size // x.shape[-1]
    for key, new in (("running_mean", mean), ("running_var", var * (n / (n - 1)))):
        b[name + key] = (1 - layer.momentum) * b[name + key] + layer.momentum * lax.stop_gradient(new)
    return (x - mean) * lax.rsqrt(var + layer.eps) * p[name + "weight"] + p[name + "bias"]


def windows(layer: Any, x: Any, start: float, reduce: Any) -> Any:
    shape = (1, layer.kernel_size, layer.kernel_size, 1)
    return lax.reduce_window(x, np.array(start, x.dtype), reduce, shape, (1, layer.stride, layer.stride, 1), "VALID")


def apply(layer: Any, name: str, p: Arrays, b: Arrays, *inputs: Any) -> Any:
    """The output of a layer called `name`; what it changes in the buffers `b`, it changes in place."""
    kind = type(layer).__name__
    if kind == "Weight":
        return weight(name, p, b)
    (x,) = inputs
    if kind == "Sequential":
        for child, part in layer.named_children():
            x = apply(part, f"{name}{child}.", p, b, x)
        return x
    if kind in ("Linear", "Conv2d", "ConvTranspose2d"):
        w = weight(name, p, b)
        y = x @ w.T if kind == "Linear" else (conv if kind == "Conv2d" else conv_transpose)(layer, x, w)
        return y + p[name + "bias"] if name + "bias" in p else y
    if kind == "BatchNorm2d":
        return batch_norm(layer, name, p, b, x)
    if kind == "Embedding":
        return p[name + "weight"][x]
    if kind == "Flatten":
        return (x.transpose(FIRST) if x.ndim == 4 else x).reshape(len(x), -1)
    if kind == "Unflatten":
        return x.reshape(len(x), *layer.unflattened_size).transpose(LAST)
    plain = {
        "LeakyReLU": lambda: jax.nn.leaky_relu(x, layer.negative_slope),
        "ReLU": lambda: jax.nn.relu(x),
        "Tanh": lambda: jnp.tanh(x),
        "Softmax": lambda: jax.nn.softmax(x, -1),
        "MaxPool2d": lambda: windows(layer, x, -np.inf, lax.max),
        "AvgPool2d": lambda: windows(layer, x, 0, lax.add) / layer.kernel_size**2,
        "Upsample": lambda: x.repeat(layer.scale_factor, 1).repeat(layer.scale_factor, 2),
    }
    return plain[kind]()


def parts(build: Build, dtype: str) -> tuple[Any, Arrays, Arrays]:
    """The layers, the parameters and the buffers."""
    module = build(Minigrad())
    trained = {name for name, _ in module.named_parameters()}
    arrays = {name: jnp.array(x) for name, x in state(build, dtype).items()}
    return (
        module,
        {name: x for name, x in arrays.items() if name in trained},
        {name: x for name, x in arrays.items() if name not in trained},
    )


def _floats(arrays: Arrays) -> dict[str, Array]:
    return {name: np.asarray(x) for name, x in arrays.items() if x.dtype.kind == "f"}


# Work -----------------------------------------------------------------------------------------------------------------


def derivative(work: Derivative) -> Running:
    module, p, b = parts(work.build, work.dtype)
    inputs = [to_last(x) for x in work.draw(random())]
    there, back = (to_last, to_first) if inputs else (jnp.asarray, np.asarray)  # else y is a weight, and no images
    g = there(upstream(work))
    differentiable = all(x.dtype.kind == "f" for x in inputs)

    def pulled(p: Arrays, b: Arrays, inputs: Any, g: Any) -> Any:
        def forward(p: Arrays, *inputs: Any) -> Any:
            changed = dict(b)
            return apply(module, "", p, changed, *inputs), changed

        if differentiable:
            y, pull, changed = jax.vjp(forward, p, *inputs, has_aux=True)
        else:
            y, pull, changed = jax.vjp(lambda p: forward(p, *inputs), p, has_aux=True)
        return y, pull(g), changed

    compiled = jax.jit(pulled)

    def step() -> Any:
        nonlocal b
        y, gradients, b = jax.block_until_ready(compiled(p, b, inputs, g))
        return y, gradients

    def results(made: Any) -> dict[str, Array]:
        y, (by_name, *others) = made
        found = {"output": back(y)} | {f"∂input {i}": to_first(x) for i, x in enumerate(others)}
        return found | {f"∂{name}": np.asarray(x) for name, x in by_name.items()} | _floats(b)

    return Running(step, results)


#: What the losses of the cases ask of `nn.functional`.
functional = SimpleNamespace(
    mse_loss=lambda x, y: jnp.square(x - y).mean(),
    softplus=jax.nn.softplus,
    cross_entropy=lambda x, y: -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean(),
)


def update(p: Any, g: Any, m: Any, v: Any, t: Any, lr: float, betas: tuple[float, float]) -> Any:
    """Adam for one parameter: the new p, m, v."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    size, scale = lr / (1 - betas[0] ** t), 1 / jnp.sqrt(1 - betas[1] ** t)
    return p - size.astype(p.dtype) * m / (jnp.sqrt(v) * scale.astype(p.dtype) + 1e-8), m, v


def updated(p: Arrays, g: Arrays, m: Arrays, v: Arrays, t: Any, lr: float, betas: tuple[float, float]) -> Any:
    new = {name: update(p[name], g[name], m[name], v[name], t, lr, betas) for name in p}
    return [{name: triple[i] for name, triple in new.items()} for i in range(3)]


def training(work: Training) -> Running:
    module, p, b = parts(work.build, work.dtype)
    other, q, c = parts(work.other, work.dtype) if work.other else (None, {}, {})
    batch = [to_last(x) for x in work.draw(random())]
    m, v = ({name: jnp.zeros_like(x) for name, x in p.items()} for _ in "mv")
    t = jnp.asarray(0)

    def stepped(p: Arrays, b: Arrays, c: Arrays, m: Arrays, v: Arrays, t: Any, q: Arrays, batch: Any) -> Any:
        def loss(p: Arrays) -> Any:
            mine, its = dict(b), dict(c)  # a second forward call goes on from the vectors of the first
            value = work.loss(
                functional, lambda x: apply(module, "", p, mine, x), lambda x: apply(other, "", q, its, x), *batch
            )
            return value, (mine, its)

        (value, (mine, its)), gradients = jax.value_and_grad(loss, has_aux=True)(p)
        new = updated(p, gradients, m, v, t + 1, work.lr, work.betas)
        return value, gradients, (new[0], mine, its, new[1], new[2], t + 1)

    compiled = jax.jit(stepped, donate_argnums=range(6))

    def step() -> Any:
        nonlocal p, b, c, m, v, t
        value, gradients, (p, b, c, m, v, t) = jax.block_until_ready(compiled(p, b, c, m, v, t, q, batch))
        return value, gradients

    def results(made: Any) -> dict[str, Array]:
        value, gradients = made
        by_name = {f"∂{name}": np.asarray(x) for name, x in gradients.items()}
        return {"loss": np.asarray(value)} | by_name | _floats({**p, **b})

    return Running(step, results)


def adam(work: Adam) -> Running:
    rng = random()
    p = {str(i): jnp.asarray(rng.standard_normal(s, "float32")) for i, s in enumerate(work.shapes)}
    g = {name: jnp.asarray(rng.standard_normal(x.shape, "float32")) for name, x in p.items()}
    m, v = ({name: jnp.zeros_like(x) for name, x in p.items()} for _ in "mv")
    t = jnp.asarray(0)

    def stepped(p: Arrays, m: Arrays, v: Arrays, t: Any, g: Arrays) -> Any:
        return *updated(p, g, m, v, t + 1, 1e-3, (0.9, 0.999)), t + 1

    compiled = jax.jit(stepped, donate_argnums=range(4))

    def step() -> None:
        nonlocal p, m, v, t
        p, m, v, t = jax.block_until_ready(compiled(p, m, v, t, g))

    return Running(step, lambda _: {f"parameter {name}": np.asarray(x) for name, x in p.items()})


def matmul(work: Matmul) -> Running:
    a, b = map(jnp.asarray, factors(work))
    product = jax.jit(jnp.matmul)
    return Running(lambda: product(a, b).block_until_ready(), lambda y: {"product": np.asarray(y)})


FUNCTIONS: dict[str, Any] = {
    "x + its first row": lambda x: x + x[0],
    "exp": jnp.exp,
    "x ** 3": lambda x: x**3,
    "GELU": lambda x: jax.nn.gelu(x, approximate=False),
    "where(x > 0, x, 0)": lambda x: jnp.where(x > 0, x, 0),
    "norm": jnp.linalg.norm,
    "sum along rows": lambda x: x.sum(1),
    "maximum along rows": lambda x: x.max(1),
    "product along rows": lambda x: x.prod(1),
    "running sum": lambda x: x.cumsum(1),
    "x @ its first row": lambda x: x @ x[0],
    "softmax along columns": lambda x: jax.nn.softmax(x, 0),
    "transposed copy": lambda x: x.T,
}


def function(work: Function) -> Running:
    x, call = jnp.asarray(random().standard_normal(work.shape, "float32")), jax.jit(FUNCTIONS[work.name])
    return Running(lambda: call(x).block_until_ready(), lambda y: {"output": np.asarray(y)})


def several(work: Several) -> Running:
    return one_by_one(work, [derivative(part) for part in work.parts])
