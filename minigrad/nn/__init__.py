"""Modules: layers, losses and what they are made of. Names, arguments, defaults and state dicts are torch's."""

from minigrad.nn.module import Module as Module
from minigrad.nn.module import Parametrization as Parametrization
from minigrad.nn.parameter import Parameter as Parameter
from minigrad.nn.parameter import UninitializedParameter as UninitializedParameter
