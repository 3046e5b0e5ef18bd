"""Finders of the salient words of an instruction (rules or spaCy), and the tokens that overlap them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llava.compression.salience import QUESTION_WORDS, Span, salient_spans

SalientFinder = Callable[[str], list[Span]]


def salient_words(name: str) -> SalientFinder:
    """The finder of a name: `rules` (`salient_spans`), `spacy`, or `spacy:` and the name of a pipeline.

    Raises:
        ValueError: for any other name.
    """
    backend, _, pipeline = name.partition(":")
    if name == "rules":
        return salient_spans
    if backend == "spacy":
        return spacy_salient_spans(pipeline) if pipeline else spacy_salient_spans()
    raise ValueError(f"The finder of salient words is {name!r}; it must be rules, spacy or spacy:PIPELINE.")


def spacy_salient_spans(model: str = "en_core_web_sm") -> SalientFinder:
    """A drop-in for `salient_spans` that follows the released code: part of speech and stop words from spaCy.

    Args:
        model: name of an installed spaCy pipeline with a tagger.

    Raises:
        ImportError: if spaCy is not installed.
        OSError: if the pipeline is not installed.
    """
    import spacy

    pipeline = spacy.load(model)
    content = {"NOUN", "PROPN", "PRON", "VERB", "ADJ", "ADV"}
    questions = frozenset(QUESTION_WORDS.split())

    def spans(text: str) -> list[Span]:
        kept = []
        for token in pipeline(text):
            asks = token.lower_ in questions or token.text in "?!:"
            if asks or (token.pos_ in content and not token.is_stop):
                kept.append((token.idx, token.idx + len(token.text)))
        return kept

    return spans


def mark_overlap(offsets: Sequence[Span], spans: Iterable[Span]) -> list[bool]:
    """Which tokens touch a span, by character offsets (never by searching for sub-sequences of ids).

    Args:
        offsets: [start, end) of every token in the text, rising; empty spans (special tokens) touch nothing.
        spans: [start, end) to look for, rising and disjoint.
    """
    remaining = list(spans)
    marks, at = [], 0
    for start, end in offsets:
        while at < len(remaining) and remaining[at][1] <= start:
            at += 1
        marks.append(at < len(remaining) and start < end and remaining[at][0] < end)
    return marks
