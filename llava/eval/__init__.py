"""Commands that evaluate a model on benchmarks, and that measure what its answers cost."""
