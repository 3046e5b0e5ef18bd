"""The command `python -m llava.compression.schedule` and the names of this module: both stand in `llava.cost`."""

import sys

from llava.common.program import as_program
from llava.cost.flops import average_visual_tokens, describe, kv_bytes, prefill_flops, tokens_per_layer
from llava.cost.flops import training_flops, training_passes, visual_tokens_per_layer
from llava.cost.overview import fitting, main, table
from llava.cost.shapes import CLIP_L_336, MODELS, DecoderShape, VisionShape, model_kind, model_shape

if __name__ == "__main__":
    sys.exit(as_program(main))
