"""The CPU's kernels under one roof: what `minigrad.device.kernels("cpu")` hands to an op."""

from minigrad.kernels.cpu._jit import set_num_threads as set_num_threads
from minigrad.kernels.cpu.array import *
from minigrad.kernels.cpu.batch_norm import *
from minigrad.kernels.cpu.conv import *
from minigrad.kernels.cpu.elementwise import *
from minigrad.kernels.cpu.graph import new_recording as new_recording, recorded_update as recorded_update
from minigrad.kernels.cpu.index import *
from minigrad.kernels.cpu.matmul import *
from minigrad.kernels.cpu.optim import *
from minigrad.kernels.cpu.pool import *
from minigrad.kernels.cpu.random import *
from minigrad.kernels.cpu.reduce import *
from minigrad.kernels.cpu.shape import *
from minigrad.kernels.cpu.softmax import *
from minigrad.kernels.cpu.spectral import *
from minigrad.kernels.cpu.spectrum import *
