"""Asking a model the questions of benchmarks: what is left, who answers, where answers go."""
