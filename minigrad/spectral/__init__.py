"""What the project is for: power iteration, spectra, diagnosis of any model, and `minigrad.spectral.study`."""

from minigrad.ops.spectral import power_iteration as power_iteration
from minigrad.spectral.diagnosis import diagnose as diagnose
from minigrad.spectral.emulation import emulate as emulate
from minigrad.spectral.gradients import compare_gradients as compare_gradients
from minigrad.spectral.graph import Drawing as Drawing, draw_graph as draw_graph
from minigrad.spectral.interchange import convert_state as convert_state, from_torch_state_dict as from_torch_state_dict
from minigrad.spectral.linalg import operator_norm as operator_norm, singular_values as singular_values
from minigrad.spectral.lipschitz import lipschitz_bounds as lipschitz_bounds
from minigrad.spectral.second_order import model_hvp as model_hvp, true_hvp as true_hvp
