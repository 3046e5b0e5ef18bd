"""Adapters of the model to evaluation harnesses of other projects."""
