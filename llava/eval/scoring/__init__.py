"""Metrics of the benchmarks: text in, numbers out. They know no file and no model."""
