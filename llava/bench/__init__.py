"""Measurements of speed and memory, beside the limits computed from FLOPs."""
