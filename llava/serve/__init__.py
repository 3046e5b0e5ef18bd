"""A chat on the command line."""
