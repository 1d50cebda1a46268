"""What the project is for: power iteration, spectra, diagnosis of any model, and `minigrad.spectral.study`."""

from minigrad.ops.spectral import power_iteration as power_iteration
from minigrad.spectral.diagnosis import diagnose as diagnose
from minigrad.spectral.emulation import emulate as emulate
from minigrad.spectral.gradients import compare_gradients as compare_gradients
from minigrad.spectral.linalg import singular_values as singular_values
from minigrad.spectral.lipschitz import lipschitz_bounds as lipschitz_bounds
