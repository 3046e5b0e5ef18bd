"""How conversations with their media become what a model takes: one class for each family of models.

A family is a class of `ModelInputs` that names the `model_types` it is for, as `config.json` has them. Defining it, in
any package, registers it; every program that asks or trains such a model then does it as the family says.
"""

from llava.data.families.base import ModelInputs
from llava.data.families.llava import LlavaInputs
from llava.data.families.llava_onevision import LlavaOnevisionInputs
from llava.data.families.qwen2_5_vl import Qwen2_5_VLInputs
from llava.data.families.qwen3_vl import Qwen3VLInputs
from llava.data.families.registry import family_of, register_inputs
from llava.data.families.video_llava import VideoLlavaInputs

__all__ = [
    "LlavaInputs",
    "LlavaOnevisionInputs",
    "ModelInputs",
    "Qwen2_5_VLInputs",
    "Qwen3VLInputs",
    "VideoLlavaInputs",
    "family_of",
    "register_inputs",
]
