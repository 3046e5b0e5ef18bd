"""LLaVA's module for opening a checkpoint; `llava.checkpoints.opening` does it."""

from llava.checkpoints.opening import load_pretrained_model

__all__ = ["load_pretrained_model"]
