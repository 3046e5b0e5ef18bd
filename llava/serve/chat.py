"""`Chat` under the name that it had before; it stands in `llava.inference.chat`."""

from llava.inference.chat import Chat

__all__ = ["Chat"]
