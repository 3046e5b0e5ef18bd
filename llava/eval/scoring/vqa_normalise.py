"""Answer normalisation of visual question answering: two spellings of one short answer become equal.

`normalise_answer` is what the official VQA evaluation does to an answer. `evalai_answer` is what the code of M4C does,
and with it LLaVA, to TextVQA's answers and to what goes to the servers of VQAv2 and VizWiz: the same after a first step
that parts words. Tables, their oddities among them, are those of that code; results are equal character by character.
"""

from __future__ import annotations

import re

_WITH_APOSTROPHE = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't
havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've
I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am
mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've
neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at
shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't
shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd someoned've=someone'd've
someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd
somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's thered=there'd
thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've
we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's
whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's
whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've
y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're
youve=you've
"""
CONTRACTIONS = dict(pair.split("=") for pair in _WITH_APOSTROPHE.split())
"""Words without their apostrophe, and with it."""

NUMBERS = {"none": "0"} | {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
ARTICLES = frozenset({"a", "an", "the"})
MARKS = (*';/[]"{}()=+', "\\", *"_-><@`,?!")
"""Punctuation that goes, each mark in turn; full stops have a rule of their own."""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # The official code passes a flag of this value where the count stands.


def normalise_answer(text: str) -> str:
    """An answer as the official VQA evaluation compares it.

    Marks are taken out of a text that has a space beside one of their kind, or a comma inside a number; elsewhere each
    becomes a space. Full stops go unless a digit follows. Then: lower case, number words as digits, no articles,
    contractions with apostrophe, single spaces.
    """
    return _unify_words(_strip_marks(strip_spaces(text)))


def evalai_answer(text: str) -> str:
    """An answer as M4C's code compares TextVQA's and as LLaVA submits VQAv2's and VizWiz's.

    As `normalise_answer`, but commas and question marks go first, and "'s" becomes a word of its own.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise_answer(text.strip())


def strip_spaces(text: str) -> str:
    """The text with line breaks and tabs as spaces, and none at its ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_marks(text: str) -> str:
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or comma_in_number else " ")
    return _FULL_STOP.sub("", stripped, count=_MOST_FULL_STOPS)


def _unify_words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
