"""Spectral normalization of a module's weight: who owns u and v, when they step, and what the weight reads as."""

from __future__ import annotations

from collections.abc import Callable

from minigrad import _dtypes
from minigrad._mode import no_grad
from minigrad._tensor import Tensor
from minigrad.nn.conv import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from minigrad.nn.module import Module, Parametrization
from minigrad.nn.parameter import Parameter, UninitializedParameter
from minigrad.ops._operands import to_dtype
from minigrad.ops.conventions import Point, apply, convention
from minigrad.ops.creation import ones, randn
from minigrad.ops.reduce import norm
from minigrad.ops.shape import clone
from minigrad.ops.singular import sigma_max
from minigrad.ops.spectral import ORDERS, matrix_shape, power_iteration, sweep, vector_dtype


class _State(Module):
    """Buffers `_u` and `_v`, and the Parameter `gamma` if the scale is learned."""

    _narrowest = _dtypes.float32


class SpectralParametrization(Parametrization):
    """What `spectral_norm` puts in the place of a weight: W̃ = γ · factor · W/σ(W)."""

    def __init__(
        self,
        original: Parameter,
        *,
        n_power_iterations: int,
        eps: float,
        dim: int,
        gradient: str,
        n_init_iterations: int,
        order: str,
        learnable_scale: bool,
        factor: float | None,
    ):
        super().__init__(original)
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.dim = dim
        self.gradient = gradient
        self.n_init_iterations = n_init_iterations
        self.order = order
        self.factor = factor
        self.register_module("0", _State())
        if learnable_scale:
            self.state.gamma = UninitializedParameter(vector_dtype(original), original.device)
        if not isinstance(original, UninitializedParameter):
            self.materialized()

    @property
    def state(self) -> Module:
        """What changes from forward to forward: the module "0", so that the state dict has PyTorch's names."""
        return self._modules["0"]

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}, dim={self.dim}, n_power_iterations={self.n_power_iterations}"

    def materialized(self) -> None:
        """Draw u and v as unit vectors of random direction, and warm them up."""
        weight = self.original.detach()
        m, n, self.dim = matrix_shape("spectral_norm", weight, self.dim)
        if "gamma" in self.state._parameters:
            with no_grad():
                self.state.gamma.materialize(())
                self.state.gamma.copy_(sigma_max(weight, self.dim))
        if weight.ndim == 1:
            return
        for name, extent in (("_u", m), ("_v", n)):
            x = randn(extent, dtype=vector_dtype(weight), device=weight.device)
            self.state.register_buffer(name, x / norm(x))
        if self.n_init_iterations:
            power_iteration(
                weight, self.state._u, self.state._v, self.n_init_iterations, self.eps, self.dim, self.order
            )

    def _vectors(self) -> tuple[Tensor, Tensor]:
        """The stored u and v, in the dtype that the weight asks for."""
        stored, dtype = self.state._buffers, vector_dtype(self.original)
        return to_dtype(stored["_u"], dtype), to_dtype(stored["_v"], dtype)

    def _scaled(self, w_bar: Tensor) -> Tensor:
        if self.factor is not None:
            w_bar = w_bar * self.factor
        gamma = self.state._parameters.get("gamma")
        return w_bar if gamma is None else w_bar * gamma

    def _normalized_vector(self) -> Tensor:
        """W/‖W‖ of a 1-d weight: u is known exactly, and its dependence on W part of the derivative."""
        weight = self.original
        start = ones(weight.shape[0], dtype=vector_dtype(weight), device=weight.device)
        u, v, sigma = sweep(weight, start, start[:1], 1, self.eps, 0, "uv")
        gradient = "exact" if convention(self.gradient).oracle else self.gradient
        return apply(gradient, weight, u, v, sigma=sigma)

    def read(self) -> Tensor:
        """W̃ at the stored vectors (with gradient="exact" at the true pair); no sweep, no change of state.

        The graph gets copies of the vectors: a later forward may step the stored ones.
        """
        if self.original.ndim == 1:
            return self._scaled(self._normalized_vector())
        u, v = map(clone, self._vectors())
        return self._scaled(apply(self.gradient, self.original, u, v, n_power_iterations=0, dim=self.dim))

    def begin(self, training: bool) -> tuple[Tensor, Callable[[], None]]:
        """W̃ for one forward call: in training mode after a step, whose outcome the graph keeps and `commit` stores."""
        if not training:
            return self.read(), lambda: None
        weight = self.original
        stepped: dict[str, Tensor] = {}
        if weight.ndim == 1:
            w_bar = self._normalized_vector()
        else:
            options = self.n_power_iterations, self.eps, self.dim, self.order
            start_u, start_v = self._vectors()
            u, v, sigma = sweep(weight, start_u, start_v, *options)
            stepped = {"_u": u, "_v": v}
            if self.gradient == "unrolled":
                u, v = clone(start_u), clone(start_v)
            w_bar = convention(self.gradient).normalize(weight, Point(u, v, sigma, *options))

        def commit() -> None:
            with no_grad():
                for name, x in stepped.items():
                    self._store(name, x)
                if self.gradient == "projected":
                    weight.copy_(w_bar.detach())

        return self._scaled(w_bar), commit

    def _store(self, name: str, x: Tensor) -> None:
        buffer = self.state._buffers[name]
        if buffer.dtype == x.dtype:
            buffer.copy_(x)
        else:  # the module was moved to float16, whose vectors are float32
            self.state.register_buffer(name, clone(x))

    def _adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Read also the names `weight_orig`, `weight_u`, `weight_v` of PyTorch's older hook and of PaddlePaddle's."""
        owner, _, name = prefix.removesuffix(".").rpartition("parametrizations.")
        for old, new in (("_orig", "original"), ("_u", "0._u"), ("_v", "0._v")):
            if owner + name + old in state:
                state[prefix + new] = state.pop(owner + name + old)


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    gradient: str = "fixed_uv",
    n_init_iterations: int = 15,
    order: str = "uv",
    learnable_scale: bool = False,
    factor: float | None = None,
    where: Callable[[str, Module], bool] | None = None,
) -> Module:
    """Let the module use W̄ = W/σ(W) (8) in the place of its parameter W, and train W; returns the module.

    σ = uᵀMv (6) for the weight's matrix M: its axis `dim` as rows, all others as columns (default: 0, for transposed
    convolutions 1). u and v come from power iteration (Algorithm 1): N(0, 1), normalized, warmed up by
    `n_init_iterations` sweeps. A forward call in training mode makes `n_power_iterations` more of them, in the `order`
    "uv" or "vu" (the paper's) with norms clamped at `eps` relative to σ, and keeps them once it has succeeded; one in
    evaluation mode, and reading the attribute, none. A 1-d weight has no vectors: it is W/‖W‖, exactly.

    `gradient`: the convention for ∂L/∂W, by default the paper's (12), (G − ⟨G, W̄⟩ u vᵀ)/σ with G = ∂L/∂W̄; see
    `minigrad.ops.conventions.CONVENTIONS`. "projected" also overwrites W by W̄ at every training forward.
    `learnable_scale`: W̃ = γ W̄ (32) with a Parameter γ that starts at σ₁. `factor`: W̄ times a number.
    `where(path, module)`: apply to every module below (and including) `module` that has the parameter and is chosen.

    The Parameter stays the same object, as `parametrizations.{name}.original` in the state dict, u and v being
    `parametrizations.{name}.0._u` and `.0._v` and γ `.0.gamma`: PyTorch's names. float16, float32, float64; u, v and σ
    of a float16 weight are float32. A zero weight has W̄ = 0 and a zero gradient.

    ValueError: no such parameter, n_power_iterations below 1, an unknown `gradient` or `order`, an axis of extent 0, a
    `factor` that is not positive, nothing chosen by `where`. IndexError: dim. RuntimeError: registered twice.

    Source: Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.

    >>> import minigrad as mg
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(20, 40), n_init_iterations=100)
    >>> layer(mg.ones(3, 20)).shape, [key for key in layer.state_dict() if "0" in key]
    ((3, 40), ['parametrizations.weight.0._u', 'parametrizations.weight.0._v'])
    >>> print(f"{mg.spectral.singular_values(mg.nn.utils.remove_spectral_norm(layer), 1).item():.3f}")
    1.000
    """
    if n_power_iterations < 1:
        raise ValueError(f"spectral_norm: expected n_power_iterations of at least 1; got {n_power_iterations}")
    if n_init_iterations < 0:
        raise ValueError(f"spectral_norm: expected n_init_iterations of at least 0; got {n_init_iterations}")
    if order not in ORDERS:
        raise ValueError(f"spectral_norm: expected order 'uv' or 'vu'; got {order!r}")
    if factor is not None and not factor > 0:
        raise ValueError(f"spectral_norm: expected a positive factor; got {factor}")
    convention(gradient)
    chosen = [("", module)] if where is None else _chosen(module, name, where)
    for path, owner in chosen:
        original = _parameter("spectral_norm", owner, path, name)
        if not isinstance(original, UninitializedParameter):
            matrix_shape("spectral_norm", original, _axis(owner, dim))
    for _, owner in chosen:
        parametrization = SpectralParametrization(
            owner._parameters[name],
            n_power_iterations=n_power_iterations,
            eps=eps,
            dim=_axis(owner, dim),
            gradient=gradient,
            n_init_iterations=n_init_iterations,
            order=order,
            learnable_scale=learnable_scale,
            factor=factor,
        )
        owner.parametrize(name, parametrization)
    return module


def _axis(owner: Module, dim: int | None) -> int:
    """The axis of the output channels, unless another is asked for."""
    if dim is not None:
        return dim
    return 1 if isinstance(owner, ConvTranspose1d | ConvTranspose2d | ConvTranspose3d) else 0


def _chosen(model: Module, name: str, where: Callable[[str, Module], bool]) -> list[tuple[str, Module]]:
    def has(m: Module) -> bool:
        return m._parameters.get(name) is not None or name in m._parametrized()

    having = [(path, m) for path, m in model.named_modules() if has(m)]
    chosen = [(path, m) for path, m in having if where(path, m)]
    if not chosen:
        raise ValueError(
            f"spectral_norm: `where` chose none of the modules with a parameter {name!r}: "
            f"{', '.join(path or '(the model itself)' for path, _ in having) or 'there are none'}"
        )
    return chosen


def _parameter(op: str, owner: Module, path: str, name: str) -> Parameter:
    """A parameter that is not computed from another one, or an error that names what there is."""
    who = f"{type(owner).__name__} {path!r}" if path else type(owner).__name__
    if name in owner._parametrized():
        raise RuntimeError(
            f"{op}: {name!r} of {who} is parametrized already. Call remove_spectral_norm(module, {name!r}) first."
        )
    parameter: Parameter | None = owner._parameters.get(name)
    if parameter is None:
        there = [key for key, value in owner._parameters.items() if value is not None]
        raise ValueError(f"{op}: {who} has no parameter {name!r}; it has {', '.join(there) or 'none'}")
    return parameter


def remove_spectral_norm(module: Module, name: str = "weight", restore_original: bool = False) -> Module:
    """Undo `spectral_norm`: the Parameter takes its place again, as what `module.weight` reads now; returns the module.

    No further step of u and v is made, so that the outputs of evaluation mode stay the same. `restore_original`: leave
    the raw W in it. It is the same Parameter object as before, so an optimizer goes on with it.

    ValueError: `name` is not spectrally normalized.

    >>> import minigrad as mg
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(3, 2)).eval()
    >>> before = layer(mg.ones(3)).tolist()
    >>> mg.nn.utils.remove_spectral_norm(layer)(mg.ones(3)).tolist() == before, sorted(layer.state_dict())
    (True, ['bias', 'weight'])
    """
    there = {key: p for key, p in module._parametrized().items() if isinstance(p, SpectralParametrization)}
    if name not in there:
        raise ValueError(
            f"remove_spectral_norm: {name!r} of {type(module).__name__} is not spectrally normalized; "
            f"{', '.join(there) or 'nothing'} is"
        )
    parametrization = there[name]
    original = parametrization.original
    if not restore_original and not isinstance(original, UninitializedParameter):
        with no_grad():
            original.copy_(parametrization.read())
    module.unparametrize(name)
    module.register_parameter(name, original)
    return module


def raw_weight(op: str, module: Module, name: str) -> tuple[Parameter, int]:
    """The parameter that is trained, normalized or not, and the axis along which its matrix has its rows."""
    there = module._parametrized().get(name)
    if isinstance(there, SpectralParametrization):
        return there.original, there.dim
    return _parameter(op, module, "", name), _axis(module, None)
