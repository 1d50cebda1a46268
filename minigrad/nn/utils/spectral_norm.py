"""Spectral normalization of a module's weight: who owns u and v, when they step, and what the weight reads as."""

from __future__ import annotations

from collections.abc import Callable

from minigrad import _dtypes
from minigrad._mode import no_grad
from minigrad._tensor import Tensor
from minigrad.nn.conv import _ConvNd
from minigrad.nn.module import Module, Parametrization
from minigrad.nn.parameter import Parameter, UninitializedParameter
from minigrad.ops.conv import IntOrTuple
from minigrad.ops.conventions import convention, normalize
from minigrad.ops.creation import ones, randn
from minigrad.ops.inplace import copy_
from minigrad.ops.linear_map import LinearMap, MatrixMap
from minigrad.ops.reduce import norm
from minigrad.ops.shape import clone
from minigrad.ops.singular import sigma_max
from minigrad.ops.spectral import ORDERS, matrix_shape, vector_dtype


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
        map: LinearMap,
        gradient: str,
        n_init_iterations: int,
        order: str,
        learnable_scale: bool,
        factor: float | None,
    ):
        super().__init__(original)
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.map = map
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

    @property
    def vectors(self) -> tuple[str, str]:
        """The names of u and v among the buffers of `state`."""
        return ("_u", "_v") if isinstance(self.map, MatrixMap) else ("_u_op", "_v_op")

    def extra_repr(self) -> str:
        of = f"dim={self.map.dim}" if isinstance(self.map, MatrixMap) else "norm='operator'"
        return f"gradient={self.gradient!r}, {of}, n_power_iterations={self.n_power_iterations}"

    def materialized(self) -> None:
        """Draw u and v as unit vectors of random direction, and warm them up; γ starts at σ₁."""
        weight = self.original.detach()
        if isinstance(self.map, MatrixMap):
            self.map = MatrixMap(matrix_shape("spectral_norm", weight, self.map.dim)[2])
        if weight.ndim > 1:
            like = {"dtype": vector_dtype(weight), "device": weight.device}
            u, v = (x / norm(x) for x in (randn(shape, **like) for shape in self.map.shapes(weight)))
            if self.n_init_iterations:
                u, v, _ = self.map.sweep(weight, u, v, self.n_init_iterations, self.eps, self.order)
            for name, x in zip(self.vectors, (u, v), strict=True):
                self.state.register_buffer(name, x)
        if "gamma" in self.state._parameters:
            with no_grad():
                self.state.gamma.materialize(())
                self.state.gamma.copy_(
                    sigma_max(weight, self.map.dim) if isinstance(self.map, MatrixMap) else self.map.sigma(weight, u, v)
                )

    def stored(self) -> tuple[Tensor, Tensor]:
        """The stored u and v themselves."""
        buffers, (u, v) = self.state._buffers, self.vectors
        return buffers[u], buffers[v]

    def _scaled(self, w_bar: Tensor) -> Tensor:
        if self.factor is not None:
            w_bar = w_bar * self.factor
        gamma = self.state._parameters.get("gamma")
        return w_bar if gamma is None else w_bar * gamma

    def _normalized_vector(self) -> Tensor:
        """W/‖W‖ of a 1-d weight: u is known exactly, and its dependence on W part of the derivative."""
        weight = self.original
        start = ones(weight.shape[0], dtype=vector_dtype(weight), device=weight.device)
        row = MatrixMap(0)
        u, v, sigma = row.sweep(weight, start, start[:1], 1, self.eps, "uv")
        gradient = "exact" if convention(self.gradient).oracle else self.gradient
        return normalize(gradient, weight, u, v, row, sigma=sigma)

    def read(self) -> Tensor:
        """W̃ at the stored vectors (with gradient="exact" at the true pair); no sweep, no change of state.

        The graph gets copies of the vectors: a later forward may step the stored ones.
        """
        if self.original.ndim == 1:
            return self._scaled(self._normalized_vector())
        u, v = map(clone, self.stored())
        return self._scaled(normalize(self.gradient, self.original, u, v, self.map))

    def begin(self, training: bool) -> tuple[Tensor, Callable[[], None]]:
        """W̃ for one forward call: in training mode after a step, whose outcome the graph keeps and `commit` stores."""
        if not training:
            return self.read(), lambda: None
        weight = self._parameters["original"]
        stepped: tuple[tuple[Tensor, Tensor], ...] = ()
        if weight.ndim == 1:
            w_bar = self._normalized_vector()
        else:
            start_u, start_v = self.stored()
            u, v, sigma = self.map.sweep(weight, start_u, start_v, self.n_power_iterations, self.eps, self.order)
            stepped = (start_u, u), (start_v, v)
            if self.gradient == "unrolled":
                u, v = clone(start_u), clone(start_v)
            w_bar = normalize(
                self.gradient, weight, u, v, self.map, sigma=sigma,
                n_power_iterations=self.n_power_iterations, eps=self.eps, order=self.order,
            )  # fmt: skip

        def commit() -> None:
            for stored, x in stepped:
                copy_(stored, x)
            if self.gradient == "projected":
                with no_grad():
                    weight.copy_(w_bar.detach())

        return self._scaled(w_bar), commit

    def _adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Read also the names `weight_orig`, `weight_u`, `weight_v` of PyTorch's older hook and of PaddlePaddle's.

        Its oldest files have no v, and the computed `weight` instead, which is passed over: v = Mᵀu/‖Mᵀu‖. That is the
        v that the next step in the order "vu" begins with, whatever it was; until then σ is ‖Mᵀu‖ in evaluation. A 1-d
        weight needs neither u nor v.
        """
        owner, _, name = prefix.removesuffix(".").rpartition("parametrizations.")
        old = owner + name
        if old + "_orig" not in state or prefix + "original" in state:  # of two layouts, the older one is unexpected
            return
        state[prefix + "original"] = state.pop(old + "_orig")
        state.pop(old, None)
        found = {letter: state.pop(f"{old}_{letter}") for letter in "uv" if f"{old}_{letter}" in state}
        if self.original.ndim == 1:
            return
        if found.keys() == {"u"}:
            found |= _right_vector(self, state[prefix + "original"], found["u"])
        state.update({f"{prefix}0._{letter}": x for letter, x in found.items()})


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    gradient: str = "fixed_uv",
    norm: str = "matrix",
    input_shape: IntOrTuple | None = None,
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

    `norm="operator"`: σ is the norm of a convolution as a map of whole images with the extents `input_shape` in space,
    by power iteration through it and its transpose, u and v being images; W̄ is then a map of norm 1. (σ of the reshaped
    matrix is too small for that, by a factor of up to √(kernel's area).) The gradient is as exact, with the gradient of
    the filters at (v, u) in the place of u vᵀ.

    `gradient`: the convention for ∂L/∂W, by default the paper's (12), (G − ⟨G, W̄⟩ u vᵀ)/σ with G = ∂L/∂W̄; see
    `minigrad.ops.conventions.CONVENTIONS`. "projected" also overwrites W by W̄ at every training forward.
    `learnable_scale`: W̃ = γ W̄ (32) with a Parameter γ that starts at σ₁, or for norm="operator" at the σ of the
    warmed-up vectors. `factor`: W̄ times a number.
    `where(path, module)`: apply to every module below (and including) `module` that has the parameter and is chosen.

    The Parameter stays the same object, as `parametrizations.{name}.original` in the state dict, u and v being
    `parametrizations.{name}.0._u` and `.0._v` and γ `.0.gamma`: PyTorch's names. (norm="operator" has `.0._u_op` and
    `.0._v_op`, so that neither is taken for the other.) float16, float32, float64; u, v and σ of a float16 weight are
    float32. A zero weight has W̄ = 0 and a zero gradient.

    ValueError: no such parameter, n_power_iterations below 1, eps below 0, an unknown `gradient` or `order`, an axis of
    extent 0, a `factor` that is not positive, nothing chosen by `where`; norm="operator" for another module than a
    convolution, without `input_shape`, or with gradient="exact". IndexError: dim. RuntimeError: registered twice.

    Source: Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.

    >>> import minigrad as mg
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(20, 40), n_init_iterations=500)
    >>> layer(mg.ones(3, 20)).shape, [key for key in layer.state_dict() if "0" in key]
    ((3, 40), ['parametrizations.weight.0._u', 'parametrizations.weight.0._v'])
    >>> print(f"{mg.spectral.singular_values(mg.nn.utils.remove_spectral_norm(layer), 1).item():.3f}")
    1.000
    """
    counts = ("n_power_iterations", n_power_iterations, 1), ("n_init_iterations", n_init_iterations, 0)
    for what, given, least in counts:
        if not isinstance(given, int):
            raise TypeError(f"spectral_norm: expected {what} to be an int; got {given!r}")
        if given < least:
            raise ValueError(f"spectral_norm: expected {what} of at least {least}; got {given}")
    if not eps >= 0:
        raise ValueError(f"spectral_norm: expected eps of at least 0; got {eps}")
    if order not in ORDERS:
        raise ValueError(f"spectral_norm: expected order 'uv' or 'vu'; got {order!r}")
    if factor is not None and not factor > 0:
        raise ValueError(f"spectral_norm: expected a positive factor; got {factor}")
    convention(gradient)
    if norm not in ("matrix", "operator"):
        raise ValueError(f"spectral_norm: expected norm 'matrix' or 'operator'; got {norm!r}")
    if norm == "operator" and gradient == "exact":
        raise ValueError(
            "spectral_norm: gradient='exact' takes the pair of a singular value decomposition, which norm='operator' "
            "has none of. Use gradient='fixed_uv', whose gradient is the same at convergence."
        )
    if (dim if norm == "operator" else input_shape) is not None:
        foreign, other = ("dim", "matrix") if norm == "operator" else ("input_shape", "operator")
        raise ValueError(f"spectral_norm: {foreign} belongs to norm={other!r}; norm={norm!r} has no use for it")
    chosen = [("", module)] if where is None else _chosen(module, name, where)
    maps: list[LinearMap] = []
    for path, owner in chosen:
        original = _parameter("spectral_norm", owner, path, name)
        if not isinstance(original, UninitializedParameter):
            matrix_shape("spectral_norm", original, _axis(owner, dim))
        maps.append(MatrixMap(_axis(owner, dim)) if norm == "matrix" else _convolution(owner, path, name, input_shape))
    for (_, owner), map in zip(chosen, maps, strict=True):
        parametrization = SpectralParametrization(
            owner._parameters[name],
            n_power_iterations=n_power_iterations,
            eps=eps,
            map=map,
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
    return 1 if isinstance(owner, _ConvNd) and owner.transposed else 0


def _convolution(owner: Module, path: str, name: str, input_shape: IntOrTuple | None) -> LinearMap:
    if not isinstance(owner, _ConvNd) or name != "weight":
        raise ValueError(
            f"spectral_norm: norm='operator' is that of a convolution; {name!r} of {_who(owner, path)} makes none. "
            f"Use norm='matrix'."
        )
    if input_shape is None:
        raise ValueError(
            "spectral_norm: norm='operator' depends on the images: expected input_shape, their extents in space; "
            "got None"
        )
    return owner.linear_map(input_shape)


def _who(owner: Module, path: str) -> str:
    return f"{type(owner).__name__} {path!r}" if path else type(owner).__name__


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
    who = _who(owner, path)
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
        return there.original, there.map.dim if isinstance(there.map, MatrixMap) else _axis(module, None)
    return _parameter(op, module, "", name), _axis(module, None)


def _right_vector(into: SpectralParametrization, weight: Tensor, u: Tensor) -> dict[str, Tensor]:
    """Mᵀu/‖Mᵀu‖ of a state for `into`, as its "v"; nothing if weight and u do not fit: others will say so."""
    v = into.state._buffers.get("_v")
    if v is None or not all(isinstance(x, Tensor) and x.dtype.kind == "f" for x in (weight, u)):
        return {}
    if (weight.shape, (u.shape, v.shape)) != (into.original.shape, into.map.shapes(into.original)):
        return {}
    u, v = (x.detach().to(device=weight.device, dtype=vector_dtype(weight)) for x in (u, v))
    return {"v": into.map.sweep(weight, u, v, 1, into.eps, "vu")[1]}
