"""Serving a model: a chat in a terminal, OpenAI's API over HTTP, a web page, and embeddings for other servers."""
