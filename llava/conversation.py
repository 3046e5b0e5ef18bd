"""Prompt templates: how a conversation becomes text.

Formats, names and system prompts are LLaVA's (Apache-2.0). A template cuts the text into segments that say
what each piece is, so that answers are known by construction and never searched for in the finished prompt.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from llava.common.shown import shown

TEMPLATE_FIELD = "conversation_template"
"""Key of `config.json` that names the template that a model was trained with."""

_SYSTEM_MARK = re.compile(r"<\|im_start\|>system\n|<\|start_header_id\|>system<\|end_header_id\|>\n\n")


class SeparatorStyle(Enum):
    """How turns are joined."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    CHATML = auto()
    LLAMA_3 = auto()


class SegmentKind(Enum):
    """What a piece of the prompt is."""

    SYSTEM = auto()
    ROLE = auto()
    QUESTION = auto()
    ANSWER = auto()
    AFTER = auto()


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt. An answer includes the space before it and the separator that ends it.

    `AFTER` is what stands between that and the next turn: the template writes it, so it is neither learnt nor asked.
    """

    text: str
    kind: SegmentKind
    said: tuple[int, int] = (0, 0)
    """The characters [start, end) that a person or a model wrote; the rest is the template's."""


@dataclass
class Conversation:
    """A template together with the turns so far.

    Attributes:
        system: text before the first turn.
        roles: names of the two speakers, the human first.
        messages: [role, text] pairs; a text of None leaves the answer open, for generation.
        offset: how many leading messages belong to the template itself.
        sep, sep2: after a human's and after an assistant's turn (`sep2` of None: the same). In the styles CHATML and
            LLAMA_3 `sep` ends every turn, and `sep2` is what stands between turns.
        version: name that the trainer tells formats apart by.
    """

    system: str
    roles: tuple[str, str]
    messages: list[list[str | None]] = field(default_factory=list)
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; `message=None` asks the model for it."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent copy: the templates in `conv_templates` are shared and must stay as they are."""
        return dataclasses.replace(self, messages=[list(message) for message in self.messages])

    def set_system(self, text: str) -> None:
        """Replace the system prompt; the mark of the role that the template's own begins with stays in front."""
        mark = _SYSTEM_MARK.match(self.system)
        head = _SYSTEM_HEADS.get(self.sep_style, "") if text else ""
        self.system = (mark[0] if mark else head) + text

    def get_prompt(self) -> str:
        """The whole prompt as one string."""
        return "".join(segment.text for segment in self.segments())

    def segments(self) -> list[Segment]:
        """The prompt in pieces, in order; joined, they are `get_prompt()`."""
        builders = {
            SeparatorStyle.SINGLE: self._colon_segments,
            SeparatorStyle.TWO: self._colon_segments,
            SeparatorStyle.MPT: self._mpt_segments,
            SeparatorStyle.PLAIN: self._plain_segments,
            SeparatorStyle.LLAMA_2: self._llama_2_segments,
            SeparatorStyle.CHATML: self._headed_segments,
            SeparatorStyle.LLAMA_3: self._headed_segments,
        }
        return [segment for segment in builders[self.sep_style]() if segment.text]

    @property
    def end_mark(self) -> str:
        """What ends an answer."""
        ends = self.sep2 if self.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2) else self.sep
        return ends or self.sep

    @property
    def _seps(self) -> tuple[str, str]:
        return self.sep, self.sep if self.sep2 is None else self.sep2

    def _colon_segments(self) -> Iterator[Segment]:
        """`system SEP Human: question SEP Assistant: answer SEP2`."""
        yield self._system_segment("", self.system, self.sep)
        for turn, (role, message) in enumerate(self.messages):
            yield Segment(f"{role}:", SegmentKind.ROLE)
            if message is not None:
                yield from _spoken(turn, " ", message, self._seps[turn % 2])

    def _mpt_segments(self) -> Iterator[Segment]:
        """ChatML: the role string brings its own marks, and one separator ends every turn."""
        yield self._system_segment("", self.system, self.sep)
        for turn, (role, message) in enumerate(self.messages):
            yield Segment(role or "", SegmentKind.ROLE)
            if message is not None:
                yield from _spoken(turn, "", message, self.sep)

    def _plain_segments(self) -> Iterator[Segment]:
        """Messages and separators only."""
        yield self._system_segment("", self.system, "")
        for turn, (_, message) in enumerate(self.messages):
            if message is not None:
                yield from _spoken(turn, "", message, self._seps[turn % 2])

    def _llama_2_segments(self) -> Iterator[Segment]:
        """`<s>[INST] question [/INST] answer </s>`; the first `<s>` is left to the tokenizer."""
        for turn, (_, message) in enumerate(self.messages):
            if message is None:
                continue
            if turn % 2:
                yield from _spoken(turn, " ", message, f" {self._seps[1]}")
                continue
            yield Segment(f"{self.sep if turn else ''}[INST] ", SegmentKind.ROLE)
            if turn == 0 and self.system:
                yield self._system_segment("<<SYS>>\n", self.system, "\n<</SYS>>\n\n")
            yield _segment("", message, "", SegmentKind.QUESTION)
            yield Segment(" [/INST]", SegmentKind.ROLE)

    def _headed_segments(self) -> Iterator[Segment]:
        """ChatML with newlines, and Llama 3: every turn has a head and an end mark, the system prompt as well."""
        head, between = _SYSTEM_HEADS[self.sep_style], self.sep2 or ""
        if self.system:
            system = self.system if self.system.startswith(head) else head + self.system
            yield self._system_segment("", system, self.sep + between)
        for turn, (role, message) in enumerate(self.messages):
            yield Segment(role or "", SegmentKind.ROLE)
            if message is None:
                continue
            if turn % 2:
                yield _segment("", message, self.sep, SegmentKind.ANSWER)
                yield Segment(between, SegmentKind.AFTER)
            else:
                yield _segment("", message, "", SegmentKind.QUESTION)
                yield Segment(self.sep + between, SegmentKind.ROLE)

    def _system_segment(self, before: str, system: str, after: str) -> Segment:
        """The system prompt, in which the mark of the role is the template's."""
        mark = _SYSTEM_MARK.match(system) if self.sep_style in _MARKED_SYSTEMS else None
        head = mark[0] if mark else ""
        return _segment(before + head, system[len(head) :], after, SegmentKind.SYSTEM)


def _segment(before: str, said: str, after: str, kind: SegmentKind) -> Segment:
    return Segment(before + said + after, kind, (len(before), len(before) + len(said)))


def _spoken(turn: int, before: str, message: str, after: str) -> Iterator[Segment]:
    """One turn's text: an answer with all that surrounds it, or a question apart from its surroundings."""
    if turn % 2:
        yield _segment(before, message, after, SegmentKind.ANSWER)
        return
    yield Segment(before, SegmentKind.ROLE)
    yield _segment("", message, "", SegmentKind.QUESTION)
    yield Segment(after, SegmentKind.ROLE)


_ASSISTANT = "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
_CURIOUS_HUMAN = "A chat between a curious human and an artificial intelligence assistant. " + _ASSISTANT.format(
    "human"
)
_CURIOUS_USER = "A chat between a curious user and an artificial intelligence assistant. " + _ASSISTANT.format("user")
_TAGGED_IMAGES = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2_SAFETY = (
    "You are a helpful, respectful and honest assistant. "
    "Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)
_CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_LLAMA_3_ROLES = tuple(f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
_SYSTEM_HEADS = {
    SeparatorStyle.CHATML: "<|im_start|>system\n",
    SeparatorStyle.LLAMA_3: "<|start_header_id|>system<|end_header_id|>\n\n",
}

_MARKED_SYSTEMS = (*_SYSTEM_HEADS, SeparatorStyle.MPT)


def _v0(system: str, version: str = "Unknown") -> Conversation:
    return Conversation(system, ("Human", "Assistant"), version=version)


def _v1(system: str, version: str = "v1") -> Conversation:
    roles = ("USER", "ASSISTANT")
    return Conversation(system, roles, sep_style=SeparatorStyle.TWO, sep=" ", sep2="</s>", version=version)


def _llama_2(system: str, sep: str = "<s>") -> Conversation:
    style = SeparatorStyle.LLAMA_2
    return Conversation(system, ("USER", "ASSISTANT"), sep_style=style, sep=sep, sep2="</s>", version="llama_v2")


def _chatml(system: str) -> Conversation:
    return Conversation(system, _CHATML_ROLES, sep_style=SeparatorStyle.MPT, sep="<|im_end|>", version="mpt")


def _chatml_lines(system: str = "") -> Conversation:
    """ChatML as tokenizers publish it: with a line break behind every end mark."""
    style = SeparatorStyle.CHATML
    head = _SYSTEM_HEADS[style] if system else ""
    return Conversation(head + system, _CHATML_ROLES, sep_style=style, sep="<|im_end|>", sep2="\n", version="chatml")


def _llama_3(system: str = "") -> Conversation:
    style = SeparatorStyle.LLAMA_3
    head = _SYSTEM_HEADS[style] if system else ""
    user, assistant = _LLAMA_3_ROLES
    return Conversation(
        head + system, (user, assistant), sep_style=style, sep="<|eot_id|>", sep2="", version="llama_v3"
    )


def _plain() -> Conversation:
    return Conversation("", ("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n", version="plain")


conv_templates: dict[str, Conversation] = {
    "default": _v0(_CURIOUS_HUMAN),
    "v0": _v0(_CURIOUS_HUMAN),
    "v1": _v1(_CURIOUS_USER),
    "vicuna_v1": _v1(_CURIOUS_USER),
    "llama_2": _llama_2(_LLAMA_2_SAFETY),
    "mistral_instruct": _llama_2("", sep=""),
    "chatml_direct": _chatml("<|im_start|>system\nAnswer the questions."),
    "mistral_direct": _chatml("<|im_start|>system\nAnswer the questions."),
    "plain": _plain(),
    "v0_plain": _plain(),
    "llava_v0": _v0(_CURIOUS_HUMAN),
    "v0_mmtag": _v0(_TAGGED_IMAGES, version="v0_mmtag"),
    "llava_v1": _v1(_CURIOUS_HUMAN),
    "v1_mmtag": _v1(_TAGGED_IMAGES, version="v1_mmtag"),
    "llava_llama_2": _llama_2(_LANGUAGE_AND_VISION),
    "mpt": _chatml(_MPT_SYSTEM),
    "chatml": _chatml_lines(),
    "smollm2": _chatml_lines("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen_1_5": _chatml_lines("You are a helpful assistant."),
    "qwen_2": _chatml_lines("You are a helpful assistant."),
    "qwen_2_5": _chatml_lines("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "llama_3": _llama_3(),
    "llava_llama_3": _llama_3(_LANGUAGE_AND_VISION),
}
default_conversation = conv_templates["vicuna_v1"]


def get_template(name: str) -> Conversation:
    """A fresh conversation of the named template.

    Raises:
        ValueError: if there is no such template.
    """
    if name not in conv_templates:
        raise ValueError(f"There is no conversation template {name!r}; accepted are {', '.join(conv_templates)}.")
    return conv_templates[name].copy()


def is_for_captions(name: str) -> bool:
    """Whether a template has no roles; False for the chat template of a model's own, which has no name here."""
    return name in conv_templates and conv_templates[name].sep_style is SeparatorStyle.PLAIN


def recorded_template(config: Any) -> str | None:
    """The template that a model was trained with, as its `config.json` says in `conversation_template`.

    None where it says none, as published checkpoints do, and for `plain`, in which nobody can be asked.

    Args:
        config: configuration of the model, as an object or as the content of its `config.json`.

    Raises:
        ValueError: if there is no such template.
    """
    name = config.get(TEMPLATE_FIELD) if isinstance(config, Mapping) else getattr(config, TEMPLATE_FIELD, None)
    if name is None:
        return None
    if not isinstance(name, str) or name not in conv_templates:
        raise ValueError(
            f"{TEMPLATE_FIELD} in config.json is {shown(name)}, which this version does not know; accepted are "
            f"{', '.join(conv_templates)}."
        )
    return None if is_for_captions(name) else name


def fill_template(name: str, turns: Sequence[str | None], system: str | None = None) -> Conversation:
    """The named template filled with alternating turns, the human first; a last None asks for an answer.

    Args:
        name: key of `conv_templates`.
        turns: texts.
        system: system prompt used instead of the template's.
    """
    conversation = get_template(name)
    if system is not None:
        conversation.set_system(system)
    for turn, text in enumerate(turns):
        conversation.append_message(conversation.roles[turn % 2], text)
    return conversation
