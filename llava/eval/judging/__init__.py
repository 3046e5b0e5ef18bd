"""Grading of answers by a language model, the judge."""
