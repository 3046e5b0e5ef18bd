"""Measured cost beside the arithmetic: how much of the FLOP limit a machine realises."""
