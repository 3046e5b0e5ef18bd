"""What this machine has, what a recipe needs, and which recipe fits: `python -m llava.doctor`.

Nothing here imports transformers or the models in the process that reports, so that a broken installation can still
be described.
"""
