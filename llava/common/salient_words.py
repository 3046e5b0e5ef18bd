"""The salient words of an instruction, told by closed classes of words: nothing is downloaded.

A word is salient unless it belongs to a closed class (articles, pronouns, prepositions, auxiliaries ...): question
words, content words, spatial words, numbers and the marks `? ! :` stay. `llava.data.salient` has spaCy's choice.
"""

from __future__ import annotations

import re

Span = tuple[int, int]

QUESTION_WORDS = "what which who whom whose where when why how"
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
_KEPT = frozenset((QUESTION_WORDS + " " + _SPATIAL_WORDS).split())
_DROPPED = frozenset(_CLOSED_CLASS.split()) - _KEPT
_WORD_OR_MARK = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[?!:]")


def salient_spans(text: str) -> list[Span]:
    """Character spans [start, end) of the salient words and marks of an instruction, in order.

    >>> [text[a:b] for text in ["What is the red digit?"] for a, b in salient_spans(text)]
    ['What', 'red', 'digit', '?']
    """
    found = (match for match in _WORD_OR_MARK.finditer(text))
    return [match.span() for match in found if match.group().lower().replace("’", "'") not in _DROPPED]
