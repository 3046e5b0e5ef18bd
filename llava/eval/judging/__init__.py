"""A language model that grades answers."""
