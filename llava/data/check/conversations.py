"""Checking the text of records: format, length at every budget, and whether anything is left to learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava.checkpoints.tokenizer import read_tokenizer
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import is_for_captions
from llava.data.check.check_settings import VIDEO, CheckSettings
from llava.data.check.estimate import TokenEstimator
from llava.data.check.findings import Finding, Fit, TextOutcome
from llava.data.check.sources import Unreadable
from llava.data.families import family_of
from llava.data.families.base import ModelInputs
from llava.data.families.llava import LlavaInputs
from llava.data.families.processor import OWN_TEMPLATE
from llava.data.families.video_llava import VideoLlavaInputs
from llava.data.frames import FrameSampling
from llava.data.json_stream import Ambiguous
from llava.data.records import Record, parse_record
from llava.data.tokenization import EncodedText, kept_tokens, truncate
from llava.data.tokens import RecordEncoder


def check_conversations(chunk: Iterable[tuple[int, Any]], settings: CheckSettings) -> list[TextOutcome]:
    """Check (index, record) pairs, as they stand in the file; nothing that a record holds makes this raise."""
    tokenizer = load_tokenizer(settings.tokenizer)
    return [_check(data, index, tokenizer, settings) for index, data in chunk]


@lru_cache(maxsize=1)
def load_tokenizer(name: str | None) -> Any:
    """The tokenizer of a folder or hub name; without a name the estimator.

    Raises:
        ValueError: if there is no such tokenizer, or it is not a fast one.
    """
    if name is None:
        return TokenEstimator()
    try:
        tokenizer = read_tokenizer(name)
    except Exception as error:  # depending on what is wrong, OSError, ValueError, KeyError or one of the hub's own
        raise ValueError(f"--tokenizer is {name!r}, which cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"--tokenizer is {name!r}, which has no fast version; training needs one.")
    return tokenizer


def identity(data: Any) -> str | None:
    """The id that a record gives itself, if it does."""
    data = data.value if isinstance(data, Ambiguous) else data
    return str(data["id"]) if isinstance(data, Mapping) and data.get("id") not in (None, "") else None


def first_line(error: BaseException) -> str:
    """Kind and first line of an error, for a report."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check(data: Any, index: int, tokenizer: Any, settings: CheckSettings) -> TextOutcome:
    name = None
    try:
        if isinstance(data, Unreadable):
            return TextOutcome(findings=(Finding("not_json", data.reason),))
        name = identity(data)
        if isinstance(data, Ambiguous):
            return TextOutcome(name, findings=(Finding("ambiguous", data.reason),))
        record = parse_record(data, index)
    except ValueError as error:
        return TextOutcome(name, findings=(Finding("schema", str(error)),))
    except Exception as error:
        return TextOutcome(name, findings=(Finding("unexpected", first_line(error)),))
    fits, findings = _encode(record, tokenizer, settings)
    findings += _look_at_words(record, settings.template)
    return TextOutcome(name, record.images, record.num_words, fits, tuple(findings), record.videos)


def _encode(record: Record, tokenizer: Any, settings: CheckSettings) -> tuple[tuple[Fit, ...], list[Finding]]:
    """Encode as the training data set does, cut at every budget, and judge what is left."""
    if record.videos and not settings.frames:
        return (), [Finding("video_unshown", ", ".join(record.videos))]
    encoder = RecordEncoder(_inputs(tokenizer, settings), _nothing_salient)
    counts = [[settings.counts(kind, n) for kind, _ in record.media] for n in range(len(settings.budgets))]
    try:
        encoded = encoder.encode(record)
        deciding = counts
        if settings.uncut:
            deciding = [[[settings.uncut[kind == "video"]] for kind, _ in record.media]] * len(counts)
        cuts = [_cut(encoded, of_budget, record, settings) for of_budget in deciding]
    except ValueError as error:
        return (), [Finding("not_encodable", str(error))]
    except Exception as error:
        return (), [Finding("unexpected", first_line(error))]
    text = len(encoded.input_ids) - encoded.num_images
    lengths = [text + sum(map(sum, of_budget)) for of_budget in deciding]
    fits = tuple(_fit(cut, of_budget, record) for cut, of_budget in zip(cuts, counts, strict=True))
    return fits, _judge(record, encoded.is_supervised, fits, lengths, settings)


@lru_cache(maxsize=1)
def load_inputs(folder: str) -> ModelInputs:
    """What makes the inputs of a model of transformers, by its own processor and chat template.

    Raises:
        ValueError: if there is none, or it cannot be made.
    """
    from llava.checkpoints.processors import config_of, processor_of

    try:
        config = config_of(Path(folder))
        processor, tokenizer = processor_of(config, Path(folder))
    except Exception as error:  # depending on what is wrong, OSError, ValueError, KeyError or one of the hub's own
        raise ValueError(f"The processor in {folder!r} cannot be loaded: {first_line(error)}") from error
    return family_of(config)(config, tokenizer, processor, OWN_TEMPLATE)


def _inputs(tokenizer: Any, settings: CheckSettings) -> ModelInputs:
    """What encodes conversations as the model's own does; no medium is prepared with it."""
    if settings.template == OWN_TEMPLATE and settings.tokenizer is not None:
        return load_inputs(settings.tokenizer)
    if settings.family == VIDEO:
        return VideoLlavaInputs(None, tokenizer, None, settings.template, sampling=FrameSampling(settings.frames))
    return LlavaInputs(None, tokenizer, None, settings.template)


def _cut(encoded: EncodedText, counts: Sequence[Sequence[int]], record: Record, settings: CheckSettings) -> EncodedText:
    """As the training data set cuts, given what each medium becomes."""
    if not record.videos and not settings.uncut:
        return truncate(encoded, settings.max_length, counts[0][0] if counts else 0)
    kept, _ = kept_tokens(encoded.input_ids, counts, settings.max_length)
    rows = encoded.input_ids[:kept], encoded.labels[:kept], encoded.query_mask[:kept]
    return EncodedText(*rows, truncated=kept < len(encoded.input_ids))


def _fit(cut: EncodedText, counts: Sequence[Sequence[int]], record: Record) -> Fit:
    """What a cut leaves of a record."""
    left, visual, shown = cut.num_images, 0, {"image": 0, "video": 0}
    for (kind, _), each in zip(record.media, counts, strict=True):
        if left < len(each):
            break
        left, visual = left - len(each), visual + sum(each)
        shown[kind] += 1
    text = len(cut.input_ids) - cut.num_images
    return Fit(text, shown["image"], cut.truncated, cut.is_supervised, shown["video"], visual)


def _judge(
    record: Record, supervised: bool, fits: tuple[Fit, ...], lengths: list[int], settings: CheckSettings
) -> list[Finding]:
    plain = is_for_captions(settings.template)
    answers = record.turns[1:2] if plain else record.turns[1::2]
    if not supervised or not any(answer.strip() for answer in answers):
        why = "every answer is blank" if answers else "there is no answer"
        return [Finding("no_labels", why)]
    empty = [name for name, fit in zip(settings.budgets, fits, strict=True) if not fit.supervised]
    cut = [name for name, fit in zip(settings.budgets, fits, strict=True) if fit.truncated]
    if not cut:
        return []
    where = f"{max(lengths)} tokens, of which {settings.max_length} are taken"
    if empty:
        return [Finding("no_labels", f"{where}: every answer is cut off at {', '.join(empty)}")]
    return [Finding("truncated", f"{where}; cut at {', '.join(cut)}")]


def _look_at_words(record: Record, template: str) -> list[Finding]:
    """Find faults of the text itself that do not keep it from being encoded."""
    findings = []
    blank = [number for number, turn in enumerate(record.turns) if number % 2 and not turn.strip()]
    if blank and len(blank) < len(record.turns[1::2]):
        findings.append(Finding("blank_answer", f"turn {', '.join(map(str, blank))}"))
    if record.left_out:
        findings.append(Finding("leading_answer", "the first turn is the assistant's"))
    if len(record.turns) > 2 and is_for_captions(template):
        findings.append(Finding("turns_unread", f"{len(record.turns)} turns"))
    marked = [number for number, turn in enumerate(record.turns) if number % 2 and DEFAULT_IMAGE_TOKEN in turn]
    if marked:
        findings.append(Finding("mark_in_answer", f"turn {', '.join(map(str, marked))}"))
    if record.marks_as_text:
        findings.append(Finding("mark_in_prose", ", ".join(dict.fromkeys(record.marks_as_text))))
    return findings


def _nothing_salient(text: str) -> list[tuple[int, int]]:
    """Who votes does not matter here, and finding out takes time."""
    return []
