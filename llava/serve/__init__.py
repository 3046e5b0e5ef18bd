"""Talking to a model: conversations, and a chat on the command line."""
