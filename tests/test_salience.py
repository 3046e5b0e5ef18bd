"""Which words of a question are salient, and which tokens cover them."""

from __future__ import annotations

import sys

import pytest
from tiny_text import TOKENIZERS

from llava.compression.salience import salient_spans
from llava.data.salient import mark_overlap, spacy_salient_spans

QUESTIONS = {  # the paper's two examples first
    "What number is on the player's jersey?": "What number player's jersey ?",
    "What brand is this camera?": "What brand camera ?",
    "What is the color of the car?": "What color car ?",
    "How many dogs are sitting on the bench?": "How many dogs sitting bench ?",
    "Is there a red umbrella to the left of the woman?": "red umbrella left woman ?",
    "Where is the cat?": "Where cat ?",
    "Which object is above the table, and who owns it?": "Which object above table who owns ?",
    "Who wrote this book?\nAnswer the question using a single word or phrase.": "Who wrote book ?",
    "Why isn't the light on?": "Why light ?",
    "Describe the image in detail!": "Describe detail !",
    "Is it true that no person wears a hat?": "true no person wears hat ?",
    "Are there 3 zebras behind two trees?": "3 zebras behind two trees ?",
    "Reference OCR token: STOP, 42nd, Ave": "Reference OCR token : STOP 42nd Ave",
    "What does the T-shirt say?": "What T-shirt say ?",
    "Que dit le panneau à côté ?": "Que dit le panneau à côté ?",
    "Is the man's shirt blue or green?": "man's shirt blue green ?",
    "": "",
    "the of and": "",
}


def words(text: str, spans: list[tuple[int, int]]) -> str:
    return " ".join(text[start:end] for start, end in spans)


@pytest.mark.parametrize("question", QUESTIONS)
def test_salient_words(question: str):
    spans = salient_spans(question)
    assert words(question, spans) == QUESTIONS[question]
    assert all(start < end for start, end in spans)
    assert all(left[1] <= right[0] for left, right in zip(spans, spans[1:], strict=False)), "rising and disjoint"


def test_case_and_typographic_apostrophes_do_not_matter():
    assert salient_spans("WHAT IS THE DOG") == salient_spans("what is the dog") == [(0, 4), (12, 15)]
    assert salient_spans("It’s don’t the") == []


@pytest.mark.parametrize(
    ("offsets", "spans", "marks"),
    [
        ([(0, 4), (4, 5), (5, 9)], [(0, 4)], [1, 0, 0]),
        ([(0, 2), (2, 4), (4, 9)], [(0, 4)], [1, 1, 0]),
        ([(0, 0), (0, 5), (5, 5)], [(2, 3)], [0, 1, 0]),
        ([(0, 3), (3, 9)], [(2, 3), (4, 5), (7, 9)], [1, 1]),
        ([(0, 2), (2, 4)], [], [0, 0]),
        ([], [(0, 3)], []),
        ([(0, 4), (4, 8)], [(3, 5)], [1, 1]),
        ([(0, 4), (8, 9)], [(4, 8)], [0, 0]),
        ([(0, 1), (0, 1), (0, 1), (1, 2)], [(0, 1)], [1, 1, 1, 0]),
    ],
)
def test_tokens_that_touch_a_span(offsets, spans, marks):
    assert mark_overlap(offsets, spans) == [bool(mark) for mark in marks]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_marked_tokens_cover_the_salient_words_and_no_other_word(kind: str):
    text = "What digit is left of the red seven in the picture?"
    tokenizer = TOKENIZERS[kind]()
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    spans = salient_spans(text)
    marks = mark_overlap(offsets, spans)
    covered = {place for (start, end), mark in zip(offsets, marks, strict=True) if mark for place in range(start, end)}
    assert covered >= {place for start, end in spans for place in range(start, end)}
    tight = [  # pieces that lie within one word
        (offset, mark) for offset, mark in zip(offsets, marks, strict=True) if " " not in text[slice(*offset)].strip()
    ]
    for (start, end), mark in tight:
        inside = any(begin < end and start < finish for begin, finish in spans)
        assert mark == (inside and start < end)


def test_spacy_gives_the_released_codes_words():
    pytest.importorskip("spacy")
    try:
        spans = spacy_salient_spans()
    except OSError:
        pytest.skip("spaCy is installed, but not its English model")
    question = "What number is on the player's jersey?"
    assert words(question, spans(question)) == "What number player jersey ?"


def test_spacy_without_its_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError):
        spacy_salient_spans()
