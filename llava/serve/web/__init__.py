"""A page to look at a compressed model: `python -m llava.serve.web`."""
