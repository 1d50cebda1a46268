"""How fast minigrad is, beside torch, torch.compile and JAX: `python -m benchmarks`, `python -m benchmarks.cuda`.

A case is one piece of work, stated once (`work`, `networks`, `cases`). Each library does it in its own way (`eager` for
minigrad and torch, `with_jax`, `with_numpy`), all get the same numbers, and what they make of them is compared before
anything is timed (`suite`). The sides take turns within one run (`timer`), so that a noisy machine is noisy for all.
"""
