"""Checks this machine, computes the memory of recipes, and proposes one that fits: `python -m llava.doctor`.

Nothing here imports transformers or the models in the process that reports, so that a broken installation can still
be described.
"""
