"""Which text tokens may vote on visual tokens: the salient-token estimator F_S of the paper's section 3.2.

The paper leaves F_S open and the released code runs spaCy and NLTK; the words that vote here are told apart by
`llava.common.salient_words`.
"""

from __future__ import annotations

from enum import IntFlag

from llava.common.salient_words import QUESTION_WORDS as QUESTION_WORDS
from llava.common.salient_words import Span as Span
from llava.common.salient_words import salient_spans as salient_spans


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
