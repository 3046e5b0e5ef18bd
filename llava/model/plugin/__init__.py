"""Where docs/plug-in.md has its names: `compress`, and what a family of one's own is made of."""

from llava.model.compressed_model import CompressedModel, compress, register_family
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like

__all__ = ["CompressedModel", "VisualSpan", "compress", "forward_like", "register_family"]
