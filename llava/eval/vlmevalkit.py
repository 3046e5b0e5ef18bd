"""The model of this project in VLMEvalKit.

In VLMEvalKit's `vlmeval/config.py`, beside the other models:

    from functools import partial
    from llava.eval.vlmevalkit import DuetLlava
    supported_VLM["duet-llava-192"] = partial(DuetLlava, model_path="CHECKPOINT", compression="duet-192")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.frames import Frames
from llava.eval.benchmarks.mmbench import CHINESE_LETTER_PROMPT
from llava.eval.benchmarks.sqa import LETTER_PROMPT
from llava.eval.harnesses.harness import class_or_object, open_engine, prompt_of, without_marks
from llava.inference.engine import ModelSpec
from llava.inference.generation import GenerationSettings
from llava.inference.loading_flags import bits_of
from llava.inference.typed_images import read_image
from llava.inference.typed_videos import read_video

DEFAULT_NEW_TOKENS = 512

_Base: Any = class_or_object("vlmeval", "vlmeval.vlm.base", "BaseModel")


class DuetLlava(_Base):
    """A model of any family with or without compression, for VLMEvalKit's datasets; without VLMEvalKit it stands alone.

    Args:
        model_path, model_base: as in `load_pretrained_model`.
        compression: preset, YAML file or "none"; by default what the checkpoint was trained with.
        conv_mode: key of `conv_templates`; by default that of training, or by the model's name.
        device: device of the model; by default a GPU where there is one.
        dtype: data type of the weights; by default float16 on a GPU, float32 on a CPU.
        load_8bit, load_4bit: quantise the language model.
        temperature, top_p, num_beams, max_new_tokens: settings of answering.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; by default as the model was trained.

    Raises:
        ValueError: if the model cannot be opened or a value is out of range.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        model_path: str,
        model_base: str | None = None,
        compression: str | None = None,
        conv_mode: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_8bit: bool = False,
        load_4bit: bool = False,
        temperature: float = 0,
        top_p: float | None = None,
        num_beams: int = 1,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        image_opening: str | None = None,
    ) -> None:
        super().__init__()
        self._settings = GenerationSettings(temperature, top_p, num_beams, max_new_tokens)
        bits = bits_of(load_8bit, load_4bit)
        spec = ModelSpec(model_path, model_base, compression, dtype, bits, conv_mode, image_opening=image_opening)
        self._engine = open_engine(spec, device)
        try:
            self.VIDEO_LLM = self._engine.inputs.trains_on_videos  # else VLMEvalKit shows frames as images
        except ValueError:  # what prepares videos is not installed; a question about one says so
            self.VIDEO_LLM = True

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to one message.

        Images stand where they are in the message; beside a video all that is shown stands in front.

        Args:
            message: parts in order, each with `type` ("image", "video" or "text") and `value` (a path, or text).
            dataset: name; all are answered alike.

        Raises:
            ValueError: if a part is of another type or has no text as its value, or an image or video cannot be read
                or shown.
        """
        inputs, spoken = self._engine.inputs, [""]
        images: list[Any] = []
        for part in message:
            kind, value = _kind_and_value(part)
            if kind == "image":
                spoken.append("")
                images.append(read_image(value, inputs.image_opening))
            elif kind == "video":
                images.append(read_video(value, inputs))
            else:
                spoken[-1] += value  # parts in a row are one text, which may spell a mark over their edge
        mark = "" if any(isinstance(one, Frames) for one in images) else f"{DEFAULT_IMAGE_TOKEN}\n"
        text = mark.join(map(without_marks, spoken))
        return self._engine.answer([prompt_of(text, images)], self._settings)[0]

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether `build_prompt` is asked for a dataset's prompts: for those of multiple choice."""
        from vlmeval.dataset import DATASET_TYPE

        return bool(DATASET_TYPE(dataset) == "MCQ")

    def build_prompt(self, line: Mapping[str, Any], dataset: str) -> list[dict[str, str]]:
        """The message of a multiple-choice question, in the words that LLaVA was trained with.

        Args:
            line: row of VLMEvalKit's table.
            dataset: its name.
        """
        images = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
        return [*images, {"type": "text", "value": choice_prompt(line)}]


def _kind_and_value(part: Any) -> tuple[str, str]:
    """What a part of a message is, image, video or text, and its path or text.

    Raises:
        ValueError: if it is something else.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "video", "text"):
        what = f"a part of type {kind!r}" if isinstance(part, Mapping) else f"the part {shown(part, 60)}"
        raise ValueError(f"A message holds {what}; this model takes image, video and text.")
    value = part.get("value")
    if not isinstance(value, str):
        what, accepted = ("the text", "text") if kind == "text" else (f"the {kind}", "a path")
        raise ValueError(f"A message holds {what} {shown(value, 60)}; it must be {accepted}.")
    return kind, value


def choice_prompt(line: Mapping[str, Any]) -> str:
    """Hint, question, options and the request for a letter, a line each; in Chinese where the question is.

    Args:
        line: row with `question` and, where there are, `hint` and options under their letters; NaN stands for nothing.

    Raises:
        ValueError: if there is no question.
    """
    if not _is_given(line.get("question")):
        raise ValueError(f"The row {line.get('index')!r} has no question; leave it out of the table.")
    options = [f"{letter}. {line[letter]}" for letter in ascii_uppercase if _is_given(line.get(letter))]
    hint = [str(line["hint"])] if _is_given(line.get("hint")) else []
    lines = [*hint, str(line["question"]), *options]
    is_chinese = any("\u4e00" <= character <= "\u9fff" for character in "".join(lines))
    if options:
        request = CHINESE_LETTER_PROMPT if is_chinese else LETTER_PROMPT
    else:
        request = "请直接回答问题。" if is_chinese else "Answer the question directly."
    return "\n".join([*lines, request])


def _is_given(value: Any) -> bool:
    return value is not None and value == value  # NaN is not equal to itself
