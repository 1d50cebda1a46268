"""Optimizers on fused kernels, and schedules of their learning rates; formulas, arguments and defaults are torch's."""

from minigrad.optim import lr_scheduler as lr_scheduler
from minigrad.optim.algorithms import SGD as SGD, Adam as Adam, AdamW as AdamW, RMSprop as RMSprop
from minigrad.optim.optimizer import Optimizer as Optimizer
