"""The processor in a folder of transformers' format: whole, or without its processor of videos.

transformers makes no processor of a model that takes videos unless torchvision is installed. Images and text need none
of it: their parts are opened one by one then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from llava.checkpoints.settings_files import in_short, read_by_library

logger = logging.getLogger(__name__)


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


def open_processor(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The processor in a folder and its tokenizer; None after a warning where not even images can be prepared."""
    with read_by_library(folder):
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            return processor, processor.tokenizer
        except ImportError as error:
            missing = in_short(error)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        try:
            images = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, backend="pil")
        except ImportError:
            logger.warning("The processor of %s cannot be made, so images cannot be shown: %s", folder, missing)
            return None, tokenizer
        settings, _ = ProcessorMixin.get_processor_dict(folder)
    logger.warning("The processor of %s is made for images alone, videos cannot be shown: %s", folder, missing)
    return ProcessorParts(images, tokenizer, settings.get("chat_template")), tokenizer
