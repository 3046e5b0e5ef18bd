"""The processor in a folder of transformers' format: whole, or without its processor of videos.

transformers makes no processor of a model that takes videos unless torchvision is installed. Images and text need none
of it: their parts are opened one by one then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from llava.data.families import family_of
from llava.data.families.processor import ProcessorInputs


@dataclass(frozen=True)
class ProcessorParts:
    """What a processor of transformers is made of, where it cannot be made as a whole.

    Attributes:
        image_processor: transformers' own, in its form for Pillow.
        tokenizer: of the same folder.
        chat_template: of the processor; None for the tokenizer's.
        video_processor: always None.
    """

    image_processor: Any
    tokenizer: PreTrainedTokenizerBase
    chat_template: Any = None
    video_processor: None = None


def parts_of(folder: Path, config: Any) -> ProcessorParts | None:
    """The parts of the processor in a folder that take no further package; None where nothing can be done with them.

    Args:
        folder: of a model of transformers.
        config: its configuration.
    """
    try:
        if not issubclass(family_of(config), ProcessorInputs):
            return None
    except ValueError:  # no family makes inputs of such a model
        return None
    try:
        images = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, backend="pil")
    except (ImportError, OSError):
        return None
    settings, _ = ProcessorMixin.get_processor_dict(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return ProcessorParts(images, tokenizer, settings.get("chat_template"))
