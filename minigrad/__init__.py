"""minigrad: a tiny tensor and autograd framework on compiled kernels, for exact gradients of spectral normalization.

>>> import minigrad as mg
>>> x = mg.tensor([1.0, 2.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
tensor([2., 4.])
"""

from minigrad._dtypes import bool_ as bool
from minigrad._dtypes import float16, float32, float64, int64, result_type
from minigrad._random import Generator, manual_seed
from minigrad._tensor import Tensor
from minigrad.autograd import detect_anomaly, enable_grad, grad, hvp, is_grad_enabled, no_grad
from minigrad.device import cuda, set_num_threads
from minigrad.ops.activation import elu, gelu, leaky_relu, relu, sigmoid, silu, softplus, tanh
from minigrad.ops.creation import (
    arange,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    ones,
    ones_like,
    rand,
    rand_like,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from minigrad.ops.elementwise import (
    abs,
    add,
    clip,
    cos,
    div,
    eq,
    exp,
    expm1,
    ge,
    gt,
    isfinite,
    isnan,
    le,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    pow,
    reciprocal,
    rsqrt,
    sign,
    sin,
    sqrt,
    square,
    sub,
    where,
)
from minigrad.ops.index import embedding, gather, index_select
from minigrad.ops.inplace import copy_, zero_
from minigrad.ops.matmul import dot, einsum, linear, matmul, outer
from minigrad.ops.reduce import (
    all,
    amax,
    amin,
    any,
    argmax,
    argmin,
    cumsum,
    max,
    mean,
    min,
    norm,
    prod,
    std,
    sum,
    var,
)
from minigrad.ops.shape import (
    cat,
    chunk,
    clone,
    expand,
    flatten,
    flip,
    pad,
    permute,
    reshape,
    split,
    squeeze,
    stack,
    transpose,
    unsqueeze,
)
from minigrad.ops.softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0"
