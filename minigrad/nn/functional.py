"""The functions behind the layers, under one roof; each is stated beside its op or its layer."""

from minigrad.nn.dropout import dropout as dropout
from minigrad.nn.embedding import embedding as embedding
from minigrad.nn.loss import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    cross_entropy as cross_entropy,
    gan_discriminator_loss as gan_discriminator_loss,
    gan_generator_loss as gan_generator_loss,
    hinge_discriminator_loss as hinge_discriminator_loss,
    hinge_generator_loss as hinge_generator_loss,
    hinge_loss as hinge_loss,
    l1_loss as l1_loss,
    mse_loss as mse_loss,
)
from minigrad.nn.norm import batch_norm as batch_norm
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
from minigrad.ops.conv import (
    conv1d as conv1d,
    conv2d as conv2d,
    conv3d as conv3d,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
    conv_transpose3d as conv_transpose3d,
)
from minigrad.ops.matmul import linear as linear
from minigrad.ops.pool import (
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
    upsample as upsample,
)
from minigrad.ops.shape import pad as pad
from minigrad.ops.softmax import log_softmax as log_softmax, logsumexp as logsumexp, softmax as softmax
from minigrad.ops.spectral import spectral_normalize as spectral_normalize, spectral_sigma as spectral_sigma
