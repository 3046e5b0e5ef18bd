"""Runs a model on the questions of benchmarks: which are left, on which devices, and into which files."""
