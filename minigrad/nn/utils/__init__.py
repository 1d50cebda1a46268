"""Reparametrizations of modules."""

from minigrad.nn.utils.spectral_norm import remove_spectral_norm as remove_spectral_norm, spectral_norm as spectral_norm
