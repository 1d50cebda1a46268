"""`minigrad sweep`: studies or trainings over seeds × conventions × widths × learning rates, on as many processes.

`command` is the way in. The rest, from below: `plan` (the file, and its cells), `cell` (one of them), `engine` (joblib
and Dask), `store` (what is finished, on disk), `results`, `report`.
"""
