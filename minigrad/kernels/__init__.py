"""Compiled kernels: the only code that touches raw arrays. One folder per device, the same functions in each."""
