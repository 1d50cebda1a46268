"""Modules: layers, losses and what they are made of. Names, arguments, defaults and state dicts are torch's."""

from minigrad.nn import functional as functional, init as init, utils as utils
from minigrad.nn.activation import (
    ELU as ELU,
    GELU as GELU,
    LeakyReLU as LeakyReLU,
    ReLU as ReLU,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Tanh as Tanh,
)
from minigrad.nn.container import ModuleList as ModuleList, Sequential as Sequential
from minigrad.nn.conv import (
    Conv1d as Conv1d,
    Conv2d as Conv2d,
    Conv3d as Conv3d,
    ConvTranspose1d as ConvTranspose1d,
    ConvTranspose2d as ConvTranspose2d,
    ConvTranspose3d as ConvTranspose3d,
)
from minigrad.nn.dropout import Dropout as Dropout
from minigrad.nn.embedding import Embedding as Embedding
from minigrad.nn.flatten import Flatten as Flatten, Unflatten as Unflatten
from minigrad.nn.lazy import (
    LazyConv1d as LazyConv1d,
    LazyConv2d as LazyConv2d,
    LazyConv3d as LazyConv3d,
    LazyLinear as LazyLinear,
)
from minigrad.nn.linear import Linear as Linear
from minigrad.nn.loss import (
    BCEWithLogitsLoss as BCEWithLogitsLoss,
    CrossEntropyLoss as CrossEntropyLoss,
    L1Loss as L1Loss,
    MSELoss as MSELoss,
)
from minigrad.nn.module import Module as Module, Parametrization as Parametrization
from minigrad.nn.norm import BatchNorm1d as BatchNorm1d, BatchNorm2d as BatchNorm2d
from minigrad.nn.parameter import Parameter as Parameter, UninitializedParameter as UninitializedParameter
from minigrad.nn.pooling import AvgPool2d as AvgPool2d, MaxPool2d as MaxPool2d, Upsample as Upsample
from minigrad.nn.recurrent import GRUCell as GRUCell, LSTMCell as LSTMCell, RNNCell as RNNCell
from minigrad.nn.spectral import SpectralNorm as SpectralNorm
