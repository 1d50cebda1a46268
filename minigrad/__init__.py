"""minigrad: a tiny tensor and autograd framework on compiled kernels, for exact gradients of spectral normalization.

>>> import minigrad as mg
>>> x = mg.tensor([1.0, 2.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
tensor([2., 4.])
"""

from minigrad import (
    _sharing as _sharing,
    checkpoint as checkpoint,
    export as export,
    nn as nn,
    optim as optim,
    spectral as spectral,
)
from minigrad._capture import capture as capture
from minigrad._dtypes import (
    bool_,
    float16 as float16,
    float32 as float32,
    float64 as float64,
    int64 as int64,
    result_type as result_type,
)
from minigrad._gradcheck import (
    GradcheckError as GradcheckError,
    gradcheck as gradcheck,
    gradgradcheck as gradgradcheck,
)
from minigrad._mode import (
    detect_anomaly as detect_anomaly,
    enable_grad as enable_grad,
    is_grad_enabled as is_grad_enabled,
    no_grad as no_grad,
)
from minigrad._random import Generator as Generator, manual_seed as manual_seed
from minigrad._tensor import Tensor as Tensor
from minigrad.autograd import grad as grad, hvp as hvp
from minigrad.checkpoint import load as load, save as save
from minigrad.device import cuda as cuda, set_num_threads as set_num_threads
from minigrad.ops.activation import (
    elu as elu,
    gelu as gelu,
    leaky_relu as leaky_relu,
    relu as relu,
    sigmoid as sigmoid,
    silu as silu,
    softplus as softplus,
    tanh as tanh,
)
from minigrad.ops.arithmetic import add as add, div as div, mul as mul, pow as pow, sub as sub
from minigrad.ops.comparison import (
    clip as clip,
    eq as eq,
    ge as ge,
    gt as gt,
    isfinite as isfinite,
    isnan as isnan,
    le as le,
    logical_and as logical_and,
    logical_not as logical_not,
    logical_or as logical_or,
    lt as lt,
    maximum as maximum,
    minimum as minimum,
    ne as ne,
    where as where,
)
from minigrad.ops.conv import (
    conv1d as conv1d,
    conv2d as conv2d,
    conv3d as conv3d,
    conv_input_grad as conv_input_grad,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
    conv_transpose3d as conv_transpose3d,
    conv_weight_grad as conv_weight_grad,
)
from minigrad.ops.creation import (
    arange as arange,
    empty as empty,
    empty_like as empty_like,
    eye as eye,
    from_dlpack as from_dlpack,
    from_numpy as from_numpy,
    full as full,
    full_like as full_like,
    ones as ones,
    ones_like as ones_like,
    rand as rand,
    rand_like as rand_like,
    randn as randn,
    randn_like as randn_like,
    randperm as randperm,
    tensor as tensor,
    zeros as zeros,
    zeros_like as zeros_like,
)
from minigrad.ops.index import embedding as embedding, gather as gather, index_select as index_select
from minigrad.ops.inplace import copy_ as copy_, zero_ as zero_
from minigrad.ops.matmul import dot as dot, einsum as einsum, linear as linear, matmul as matmul, outer as outer
from minigrad.ops.pool import (
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
    upsample as upsample,
)
from minigrad.ops.reduce import (
    all as all,
    amax as amax,
    amin as amin,
    any as any,
    argmax as argmax,
    argmin as argmin,
    cumsum as cumsum,
    max as max,
    mean as mean,
    min as min,
    norm as norm,
    prod as prod,
    std as std,
    sum as sum,
    var as var,
)
from minigrad.ops.shape import (
    cat as cat,
    chunk as chunk,
    clone as clone,
    expand as expand,
    flatten as flatten,
    flip as flip,
    pad as pad,
    permute as permute,
    reshape as reshape,
    split as split,
    squeeze as squeeze,
    stack as stack,
    transpose as transpose,
    unsqueeze as unsqueeze,
)
from minigrad.ops.softmax import log_softmax as log_softmax, logsumexp as logsumexp, softmax as softmax
from minigrad.ops.unary import (
    abs as abs,
    cos as cos,
    exp as exp,
    expm1 as expm1,
    log as log,
    log1p as log1p,
    neg as neg,
    reciprocal as reciprocal,
    rsqrt as rsqrt,
    sign as sign,
    sin as sin,
    sqrt as sqrt,
    square as square,
)
from minigrad.spectral.interchange import from_torch_state_dict as from_torch_state_dict

bool = bool_
__version__ = "0.1.0"
