"""Metrics of the benchmarks, computed from texts; no module here reads a file or a model."""
