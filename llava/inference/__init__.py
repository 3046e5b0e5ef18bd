"""The engine: turns and media in, text out. Batches, streams and conversations, for every program that asks a model."""
