"""Conversation to token ids, labels and query mask, in one pass over one tokenisation.

The prompt is built from segments of known kind and tokenised as a whole between images, exactly as at
inference; every token then looks up, through its character offsets, which segment it came from. No prefix is
tokenised a second time, so labels cannot slip against ids, whatever the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.compression.salience import QueryRole, salient_spans
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    LITERAL_IMAGE_TOKEN,
    LITERAL_VIDEO_TOKEN,
)
from llava.conversation import Segment, SegmentKind, SeparatorStyle, fill_template, get_template
from llava.data.plain_text import Span, tokenize_plain_text
from llava.data.salient import SalientFinder, mark_overlap
from llava.mm_utils import leading_bos

_FRAMED_IMAGE = re.compile(
    rf"(?:<Image>)?(?:{DEFAULT_IM_START_TOKEN})?{DEFAULT_IMAGE_TOKEN}(?:{DEFAULT_IM_END_TOKEN})?(?:</Image>)?"
)
"""An image with what `wrap_image_marks` puts around it."""
_MARKS_OF_IMAGES = (DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN, "<Image>", "</Image>")


@dataclass(frozen=True)
class EncodedText:
    """One conversation as parallel lists of the same length T.

    Attributes:
        input_ids: token ids; IMAGE_TOKEN_INDEX stands for an image.
        labels: ids of answer tokens, IGNORE_INDEX elsewhere.
        query_mask: bits of QueryRole: which tokens may vote on visual tokens.
        truncated: whether the end was cut off to fit the model.
    """

    input_ids: list[int]
    labels: list[int]
    query_mask: list[int]
    truncated: bool = False

    @property
    def num_images(self) -> int:
        """Images that the text refers to."""
        return self.input_ids.count(IMAGE_TOKEN_INDEX)

    @property
    def is_supervised(self) -> bool:
        """Whether any token teaches something; the first is never predicted."""
        return any(label != IGNORE_INDEX for label in self.labels[1:])

    def expanded_length(self, visual_tokens: int) -> int:
        """Length once every image has become `visual_tokens` tokens."""
        return len(self.input_ids) + self.num_images * (visual_tokens - 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The three lists as int64 tensors [T]."""
        names = ("input_ids", "labels", "query_mask")
        return {name: torch.tensor(getattr(self, name), dtype=torch.long) for name in names}


def encode_conversation(
    turns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    with_images: bool,
    find_salient: SalientFinder = salient_spans,
    system: str | None = None,
) -> EncodedText:
    """Encode a conversation for training: every answer and the separator that ends it carries labels.

    Args:
        turns: texts, human and assistant alternating, the human first; images are `<image>` in human turns.
        tokenizer: a fast tokenizer.
        template: key of `conv_templates`. A `plain` template keeps nothing of the first turn but its images
            and teaches the second, a caption.
        with_images: without images, `<image>` is text like any other.
        find_salient: says which words of a question are salient.
        system: system prompt used instead of the template's.

    Raises:
        ValueError: if the template is unknown or has no system prompt to replace, the tokenizer is not a fast one, or
            a caption has no image.
    """
    return encode_segments(_segments(turns, template, system), tokenizer, with_images, find_salient)


def encode_prompt(
    turns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    find_salient: SalientFinder = salient_spans,
    system: str | None = None,
) -> EncodedText:
    """Encode a conversation that ends in a question, for generation.

    The ids and the query mask are those that training saw up to the answer, so the same tokens vote. All
    labels are ignored.

    Args:
        turns: texts, human and assistant alternating, ending with a question.
        tokenizer: a fast tokenizer.
        template: key of `conv_templates`.
        find_salient: as in training.
        system: as in training.

    Raises:
        ValueError: as `encode_conversation`, or if the last turn is not a question.
    """
    if len(turns) % 2 == 0:
        raise ValueError(f"The conversation has {len(turns)} turns; it must end with a human turn to be answered.")
    with_images = any(DEFAULT_IMAGE_TOKEN in turn for turn in turns[::2])
    return encode_segments(_segments([*turns, None], template, system), tokenizer, with_images, find_salient, ask=True)


def encode_segments(
    segments: Sequence[Segment],
    tokenizer: PreTrainedTokenizerBase,
    with_images: bool,
    find_salient: SalientFinder = salient_spans,
    ask: bool = False,
    with_bos: bool = True,
    keeps_breaks: bool = False,
) -> EncodedText:
    """Encode a conversation that a template has cut into pieces.

    Args:
        segments: the pieces, in order; images are `<image>` in questions.
        tokenizer: a fast tokenizer.
        with_images, find_salient: as in `encode_conversation`.
        ask: whether an answer is to follow: the last token votes then, and nothing is labelled.
        with_bos: whether the tokenizer's BOS comes first, if it writes one; not where the template has written it.
        keeps_breaks: whether a token that joins the template's line break with one that an answer begins with belongs
            to the template, as in Qwen's training code; else to the answer.

    Raises:
        ValueError: if the tokenizer is not a fast one.
    """
    ids, offsets = _tokenize(segments, tokenizer, with_images, with_bos)
    kinds = _kinds_of_tokens(segments, offsets, keeps_breaks)
    labels = [token if kind is SegmentKind.ANSWER else IGNORE_INDEX for token, kind in zip(ids, kinds, strict=True)]
    salient = mark_overlap(offsets, _salient_characters(segments, find_salient))
    roles = _query_mask(ids, kinds, salient)
    if ask and roles:
        roles[-1] |= QueryRole.LAST
    return EncodedText(ids, [IGNORE_INDEX] * len(ids) if ask else labels, roles)


def one_question(encoded: EncodedText, turn: int = -1) -> EncodedText:
    """A prompt in which the tokens of one question alone may vote on visual tokens.

    Tokenising marks the last token of *every* question, as training needs it: there each answer is supervised. When a
    question is answered, the others have no say.

    Args:
        encoded: result of `encode_prompt`.
        turn: number of the question, from 0; -1 is the last.
    """
    ends = [index for index, roles in enumerate(encoded.query_mask) if roles & QueryRole.LAST]
    if not ends:
        return encoded
    turn %= len(ends)
    start, end = (ends[turn - 1] if turn else -1), ends[turn]
    votes = [roles if start < index <= end else 0 for index, roles in enumerate(encoded.query_mask)]
    return replace(encoded, query_mask=votes)


def truncate(encoded: EncodedText, max_length: int, visual_tokens: int) -> EncodedText:
    """Cut the end off so that the text fits `max_length` after its images are expanded.

    An image is kept whole or not at all. A question whose answer is cut off loses its vote as the last token.

    Args:
        encoded: the text.
        max_length: what the model takes.
        visual_tokens: tokens that one image becomes.
    """
    if encoded.expanded_length(visual_tokens) <= max_length:
        return encoded
    kept, _ = kept_tokens(encoded.input_ids, [[visual_tokens]] * encoded.num_images, max_length)
    query_mask = encoded.query_mask[:kept]
    if query_mask:
        query_mask[-1] &= ~QueryRole.LAST
    return EncodedText(encoded.input_ids[:kept], encoded.labels[:kept], query_mask, truncated=True)


def kept_tokens(ids: Sequence[int], counts: Sequence[Sequence[int]], max_length: int) -> tuple[int, int]:
    """How many of the first ids fit `max_length` tokens, and how many media are among them; each whole or not at all.

    Args:
        ids: ids of the text, `IMAGE_TOKEN_INDEX` where media go.
        counts: for each medium what each of its `IMAGE_TOKEN_INDEX` becomes.
        max_length: what the model takes.
    """
    marks = ((tokens, mark == len(each)) for each in counts for mark, tokens in enumerate(each, start=1))
    length = shown = 0
    begun: int | None = None  # where the medium starts whose marks are being counted
    for index, token in enumerate(ids):
        tokens, ends = next(marks) if token == IMAGE_TOKEN_INDEX else (1, False)
        if token == IMAGE_TOKEN_INDEX and begun is None:
            begun = index
        length += tokens
        if length > max_length:
            return index if begun is None else begun, shown
        if ends:
            begun, shown = None, shown + 1
    return len(ids), shown


def shortened(sample: Mapping[str, Any], kept: int, shown: int) -> dict[str, Any]:
    """A training sample of its first `kept` ids and `shown` media; a question that loses its answer does not vote."""
    rows = {name: sample[name][:kept].clone() for name in ("input_ids", "labels", "query_mask")}
    rows["query_mask"][-1:] &= ~int(QueryRole.LAST)
    return {**sample, **rows, "images": list(sample["images"][:shown]), "truncated": True}


def _segments(turns: Sequence[str | None], template: str, system: str | None) -> list[Segment]:
    conversation = get_template(template)
    if conversation.sep_style is not SeparatorStyle.PLAIN:
        return fill_template(template, turns, system).segments()
    if system is not None:
        raise ValueError(f"Template {template!r} has no system prompt; take the system turn out, or choose another.")
    images = (turns[0] or "").count(DEFAULT_IMAGE_TOKEN)
    if images == 0:
        raise ValueError(f"Template {template!r} describes images, but the first turn holds no {DEFAULT_IMAGE_TOKEN}.")
    segments = [Segment(DEFAULT_IMAGE_TOKEN * images, SegmentKind.QUESTION)]
    captions = [turn for turn in turns[1:2] if turn is not None]
    return segments + [
        Segment(caption + conversation.sep, SegmentKind.ANSWER, (0, len(caption))) for caption in captions
    ]


def _tokenize(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, with_images: bool, with_bos: bool
) -> tuple[list[int], list[Span]]:
    """Ids of the text and the characters [start, end) that each came from."""
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise ValueError(f"{name} gives no character offsets; load the fast version of this tokenizer.")
    text = "".join(segment.text for segment in segments)
    framed = list(_framed_images(segments)) if with_images else []
    said = list(_without(_said(segments), [frame for frame, _ in framed]))
    ids = leading_bos(tokenizer) if with_bos else []
    offsets: list[Span] = [(0, 0)] * len(ids)
    position = 0
    for mark in [*(mark for _, mark in framed), None]:
        end = len(text) if mark is None else mark[0]
        words = text[position:end].replace(LITERAL_IMAGE_TOKEN, DEFAULT_IMAGE_TOKEN)
        words = words.replace(LITERAL_VIDEO_TOKEN, DEFAULT_VIDEO_TOKEN)
        here = [(first - position, last - position) for first, last in said if first < end and last > position]
        pieces, places = tokenize_plain_text(words, here, tokenizer)
        ids += pieces
        offsets += [(first + position, last + position) for first, last in places]
        if mark is not None:
            ids.append(IMAGE_TOKEN_INDEX)
            offsets.append(mark)
            position = mark[1]
    return ids, offsets


def _said(segments: Sequence[Segment]) -> Iterator[Span]:
    """The characters of the whole text that people and models wrote."""
    position = 0
    for segment in segments:
        start, end = segment.said
        if start < end:
            yield start + position, end + position
        position += len(segment.text)


def _framed_images(segments: Sequence[Segment]) -> Iterator[tuple[Span, Span]]:
    """Each `<image>` of a question in the whole text: with what surrounds it, and alone. Elsewhere it is a word."""
    position = 0
    for segment in segments:
        if segment.kind is SegmentKind.QUESTION:
            for match in _FRAMED_IMAGE.finditer(segment.text):
                start = position + match.start() + match[0].index(DEFAULT_IMAGE_TOKEN)
                frame = (position + match.start(), position + match.end())
                yield frame, (start, start + len(DEFAULT_IMAGE_TOKEN))
        position += len(segment.text)


def _without(spans: Iterator[Span], taken: Sequence[Span]) -> Iterator[Span]:
    """Spans without the parts that others take from within them; both in order."""
    for start, end in spans:
        for first, last in taken:
            if start <= first and last <= end:
                if start < first:
                    yield start, first
                start = last
        if start < end:
            yield start, end


def _kinds_of_tokens(
    segments: Sequence[Segment], offsets: Sequence[Span], keeps_breaks: bool = False
) -> list[SegmentKind]:
    """The segment that holds the last character of each token.

    A piece such as `▁three` brings the space before the word along: the space after "ASSISTANT:" is the
    answer's.
    """
    ends: list[int] = []
    for segment in segments:
        ends.append((ends[-1] if ends else 0) + len(segment.text))
    kinds, at = [], 0
    for start, end in offsets:
        while at + 1 < len(ends) and ends[at] <= max(start, end - 1):
            at += 1
        of_break = keeps_breaks and at > 0 and start < ends[at - 1] and segments[at - 1].text.endswith("\n")
        kinds.append(segments[at - of_break].kind)
    return kinds


def _query_mask(ids: Sequence[int], kinds: Sequence[SegmentKind], salient: Sequence[bool]) -> list[int]:
    """Who may vote (paper section 3.2): instructions after the first image, the last token before answers."""
    first_image = ids.index(IMAGE_TOKEN_INDEX) if IMAGE_TOKEN_INDEX in ids else len(ids)
    mask = []
    for index, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
        roles = QueryRole(0)
        asks = kind in (SegmentKind.ROLE, SegmentKind.QUESTION)
        if asks and index > first_image and token != IMAGE_TOKEN_INDEX:
            roles |= QueryRole.INSTRUCTION
            if salient[index] and kind is SegmentKind.QUESTION:
                roles |= QueryRole.SALIENT
        if asks and index + 1 < len(ids) and kinds[index + 1] is SegmentKind.ANSWER:
            roles |= QueryRole.LAST
        mask.append(int(roles))
    return mask


def _salient_characters(segments: Sequence[Segment], find_salient: SalientFinder) -> list[Span]:
    spans, position = [], 0
    for segment in segments:
        if segment.kind is SegmentKind.QUESTION:
            words = segment.text
            for mark in _MARKS_OF_IMAGES:
                words = words.replace(mark, " " * len(mark))
            spans += [(start + position, end + position) for start, end in find_salient(words)]
        position += len(segment.text)
    return spans
