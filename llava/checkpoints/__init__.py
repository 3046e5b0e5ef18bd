"""Checkpoints: opening them by what they hold, checking that they fit, writing, converting and merging them."""
