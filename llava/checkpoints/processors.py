"""The processor in a folder of transformers' format: whole, or without its processor of videos.

transformers makes no processor of a model that takes videos unless torchvision is installed. Images and text need none
of it: their parts are opened one by one then.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from llava.checkpoints import llava_onevision_format
from llava.checkpoints.settings_files import read_by_library, read_config
from llava.checkpoints.tokenizer import has_tokenizer, read_tokenizer
from llava.checkpoints.transformers_format import PROCESSOR_FILES
from llava.common.json_files import write_json
from llava.common.outside_files import in_short
from llava.common.presets import is_onevision_layout
from llava.data.families import family_of
from llava.data.families.processor import ProcessorInputs

logger = logging.getLogger(__name__)

_OF_THE_REST = ("video_preprocessor_config.json", "chat_template.json", "chat_template.jinja")


@dataclass(frozen=True)
class ProcessorParts:
    """What a processor of transformers is made of, where it cannot be made as a whole.

    Attributes:
        image_processor: transformers' own, in its form for Pillow.
        tokenizer: tokenizer of the same folder.
        chat_template: chat template of the processor; None for the tokenizer's.
        folder: where its files lie.
        settings: what is written into further files, by their names, where the folder does not hold them.
        video_processor: always None.
    """

    image_processor: Any
    tokenizer: PreTrainedTokenizerBase
    chat_template: Any
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    video_processor: None = None

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the files of a whole processor: those of its parts, and as they are those that it has not read."""
        target = Path(save_directory)
        self.tokenizer.save_pretrained(target)
        self.image_processor.save_pretrained(target)
        self._write_settings_of_all(target)
        for name, settings in self.settings.items():
            write_json(target / name, settings, indent=2)
        for path in (self.folder / name for name in _OF_THE_REST):
            if path.is_file() and not (target / path.name).is_file():
                shutil.copyfile(path, target / path.name)

    def _write_settings_of_all(self, target: Path) -> None:
        """`processor_config.json`, where transformers 5 keeps the settings of all parts, if there is one."""
        path = self.folder / "processor_config.json"
        if path.is_file():
            settings = json.loads(path.read_text("utf-8"))
            if "image_processor" in settings:
                settings["image_processor"] |= json.loads(self.image_processor.to_json_string())
            write_json(target / path.name, settings, indent=2)


def parts_of(folder: Path, config: Any) -> ProcessorParts | None:
    """The parts of the processor in a folder that take no further package; None where nothing can be done with them.

    Args:
        folder: folder of a model of transformers.
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
    return ProcessorParts(images, tokenizer, settings.get("chat_template"), folder)


def processor_of(config: Any, *folders: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Transformers' processor in the first of some folders that has one, and its tokenizer.

    peft leaves a tokenizer beside adapters and no processor; that of the base is taken then. Without the packages that
    the processor needs, what can be made of it without them: its parts for text and images, or None; a warning says so.

    Args:
        config: configuration of the model.
        folders: folder of its checkpoint, and of what that goes on top of.

    Raises:
        ValueError: if it cannot be read, or a folder before its own has a tokenizer with other tokens or another chat
            template.
    """
    folder = next(filter(_has_processor, folders), next(filter(has_tokenizer, folders), folders[0]))
    processor, tokenizer = _processor_in(folder, config)
    first = next(filter(has_tokenizer, folders), folder)
    if first != folder:
        own = read_tokenizer(first)
        templates = (None, tokenizer.chat_template, getattr(processor, "chat_template", None))
        if own.get_vocab() != tokenizer.get_vocab() or own.chat_template not in templates:
            raise ValueError(
                f"{str(first)!r} has a tokenizer without a processor, and the processor in {str(folder)!r} has one "
                "with other tokens or another chat template; put the processor's files beside the tokenizer that the "
                "model was trained with."
            )
    return processor, tokenizer


def _processor_in(folder: Path, config: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """As `processor_of`, of one folder."""
    if _is_onevision_layout(folder):
        return _onevision_processor(config, folder)
    with read_by_library(folder):
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            return processor, processor.tokenizer
        except ImportError as error:
            missing = in_short(error)
        parts = parts_of(folder, config)
        if parts is not None:
            logger.warning("Videos cannot be shown to the model in %s, images can: %s", folder, missing)
            return parts, parts.tokenizer
        logger.warning("The processor of %s cannot be made, so images cannot be shown: %s", folder, missing)
        return None, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def config_of(folder: Path) -> Any:
    """Transformers' configuration of a model in a folder, without code that may lie beside it.

    Raises:
        ValueError, OSError: if there is none, or transformers knows no such model.
    """
    if _is_onevision_layout(folder):
        return llava_onevision_format.config_here(read_config(folder / "config.json"), folder)
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR_FILES) or _is_onevision_layout(folder)


def _is_onevision_layout(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and is_onevision_layout(read_config(path))


def _onevision_processor(config: Any, folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """As `processor_of`, of a LLaVA-OneVision whose folder has a tokenizer alone."""
    tokenizer = llava_onevision_format.tokenizer_here(folder)
    of_images, of_videos, whole = llava_onevision_format.processor_settings(config)
    tokenizer.chat_template = template = llava_onevision_format.CHAT_TEMPLATE
    try:
        from transformers import LlavaOnevisionVideoProcessor

        videos = LlavaOnevisionVideoProcessor(**of_videos)
        from transformers import LlavaOnevisionImageProcessor  # behind that, as without torchvision it warns

        pixels = LlavaOnevisionImageProcessor(**of_images)
        return LlavaOnevisionProcessor(pixels, tokenizer, videos, chat_template=template, **whole), tokenizer
    except ImportError as error:
        logger.warning("Videos cannot be shown to the model in %s, images can: %s", folder, in_short(error))
    named = {"processor_class": "LlavaOnevisionProcessor"}
    settings = {
        "video_preprocessor_config.json": of_videos | named | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config.json": whole | named,
    }
    return ProcessorParts(
        LlavaOnevisionImageProcessorPil(**of_images), tokenizer, template, folder, settings
    ), tokenizer
