"""`minigrad study`: train a spectrally normalized network on real data and check every gradient convention in it.

`command.py` is the way in. The rest, from the mathematics up: `oracles`, `statistics`, `data`, `models`, `residuals`,
`opening` (the node), `end_to_end` (the network), `verdict`, `convergence`, `training`, `comparison`, `graph`, `study`
(the stages in order); then `tables`, `figures`, `report`, `terminal`, `output`.
"""
