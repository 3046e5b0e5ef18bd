"""The method: merge visual tokens after the vision tower (V2V), drop them inside the language model (T2V).

Knows no model, no tokenizer and no trainer; any vision-language model can use it as it stands.
"""

from llava.compression.config import CompressionConfig, T2VConfig, V2VConfig, presets
from llava.compression.layout import TokenLayout
from llava.compression.salience import QueryRole, salient_spans
from llava.compression.v2v import PatchRole, V2VResult, merge_visual_tokens

__all__ = ["CompressionConfig", "PatchRole", "QueryRole", "T2VConfig", "TokenLayout", "V2VConfig", "V2VResult"]
__all__ += ["merge_visual_tokens", "presets", "salient_spans"]
