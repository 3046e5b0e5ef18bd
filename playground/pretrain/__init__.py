"""Pretrains each modality of the playground alone: the tower on labelled images, the language model on text."""
