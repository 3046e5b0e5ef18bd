"""Which text tokens may vote on visual tokens (paper section 3.2: the salient-token estimator F_S).

The paper leaves F_S open and the released code runs spaCy and NLTK. Here a word votes unless it belongs to a closed
class (articles, pronouns, prepositions, auxiliaries ...): question words, content words, spatial words, numbers and
the marks `? ! :` stay. No download is needed; spaCy with an English model can be chosen instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import IntFlag

Span = tuple[int, int]
SalientFinder = Callable[[str], list[Span]]


class QueryRole(IntFlag):
    """What a text token may vote as; the flags of a `query_mask` made at tokenisation.

    INSTRUCTION: any token of an instruction behind the first image of its sample.
    SALIENT: an instruction token covered by a salient word.
    LAST: the last token before an answer; the image placeholder itself where a caption follows it directly.
    """

    INSTRUCTION = 1
    SALIENT = 2
    LAST = 4


ROLES_OF_QUERIES = {
    "last": QueryRole.LAST,
    "text": QueryRole.INSTRUCTION,
    "salient": QueryRole.SALIENT | QueryRole.LAST,
}

_QUESTION_WORDS = "what which who whom whose where when why how"
_SPATIAL_WORDS = (
    "above across along around behind below beneath beside between beyond inside outside left right over under "
    "front back top bottom up down near far next middle center centre corner first last not no none"
)
_CLOSED_CLASS = (
    "a an the this that these those some any each every either neither both all another such "
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "
    "herself it its itself they them their theirs themselves there here "
    "of in on at by for with about against into through during before after to from out off onto upon within without "
    "toward towards among as than like per via "
    "and or but nor so yet if because while although though unless until since whether then else "
    "be am is are was were been being do does did doing done have has had having can could may might must shall should "
    "will would ought 's 're 've 'll 'd 'm n't don't doesn't didn't isn't aren't wasn't weren't can't couldn't won't "
    "it's that's there's what's who's i'm you're "
    "very too also just only even still again ever now quite rather really already much "
    "please answer question following using single word words phrase phrases given directly choices option options "
    "letter user assistant human gpt image picture photo"
)
_KEPT = frozenset((_QUESTION_WORDS + " " + _SPATIAL_WORDS).split())
_DROPPED = frozenset(_CLOSED_CLASS.split()) - _KEPT
_WORD_OR_MARK = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[?!:]")


def salient_spans(text: str) -> list[Span]:
    """Character spans [start, end) of the salient words and marks of an instruction, in order.

    >>> [text[a:b] for text in ["What is the red digit?"] for a, b in salient_spans(text)]
    ['What', 'red', 'digit', '?']
    """
    found = (match for match in _WORD_OR_MARK.finditer(text))
    return [match.span() for match in found if match.group().lower().replace("’", "'") not in _DROPPED]


def salient_words(name: str) -> SalientFinder:
    """Who finds salient words: `rules` (`salient_spans`), `spacy`, or `spacy:` and the name of a pipeline.

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
    questions = frozenset(_QUESTION_WORDS.split())

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
