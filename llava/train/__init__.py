"""Training: LLaVA's two phases on transformers' Trainer."""
