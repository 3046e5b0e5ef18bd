"""Asking a model questions from the command line, and what its answers cost."""
