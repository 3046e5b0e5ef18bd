"""MMBench in English and Chinese: questions with up to four options, each asked again with its options rotated.

The files are tables that carry their images: `mmbench/mmbench_dev_20230712.tsv` and
`mmbench_cn/mmbench_dev_cn_20231003.tsv`. A row whose index is 1 000 000 or more is a rotation of the row at the
remainder. The circular evaluation counts a question as right if it was answered rightly under every rotation.
"""

from __future__ import annotations

import base64
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from llava.common.atomic_write import whole_file
from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question, texts_by_id
from llava.eval.benchmarks.reading import require, require_characters, require_some
from llava.eval.benchmarks.sqa import LETTER_PROMPT
from llava.eval.scoring.scores import Scores, per_cent

if TYPE_CHECKING:
    from pandas import DataFrame

CHINESE_LETTER_PROMPT = "请直接回答选项字母。"
SUFFIXES = {"en": LETTER_PROMPT, "cn": CHINESE_LETTER_PROMPT}
"""What LLaVA's `--single-pred-prompt` puts behind a question, by `--lang`."""

LETTERS = ("A", "B", "C", "D")
ROUND = 1_000_000
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns that the server does not take."""

_PLACE_OF_PREDICTION = 6
_REFERENCE_LENGTH = 64  # an image is longer in base64; a shorter field is the index of the row that holds it
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}" + "。（），、：；！", " "))
_ARTICLE = re.compile(r"(?<!\S)A(?= +[^\W\d_])")
_FEW_WORDS = 3
_NOT_IN_XLSX = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class MMBench(Benchmark):
    """The English dev set: circular accuracy, plain accuracy, and circular accuracy by ability."""

    name = "mmbench"
    title = "MMB"
    max_new_tokens = 1024
    place: ClassVar[str] = "mmbench/mmbench_dev_20230712.tsv"
    language: ClassVar[str] = "en"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; every row as it stands in the table."""
        return table_questions(root / self.place, SUFFIXES[self.language], self.name)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`; headline is the circular accuracy, where the table tells the right answers."""
        if any(answer.question.facts.get("answer") is None for answer in answers):
            return Scores(None, {}, (f"{root / self.place} holds no answers; send the submission to the server.",))
        right = {answer.question.question_id: is_right(answer) for answer in answers}
        values = {}
        plain = [verdict for index, verdict in right.items() if int(index) < ROUND]
        if plain:
            values["plain_accuracy"] = per_cent(plain)
        complete, left_out = _rotations(answers)
        notes = []
        if left_out:
            notes.append(
                f"{left_out} questions were not asked under every rotation; circular accuracy is about the other "
                f"{len(complete)}."
            )
        if not complete:
            return Scores(None, values, (*notes, "There is no circular accuracy without complete questions."))
        if all(len(group) == 1 for group in complete.values()):
            notes.append("The table holds no rotations, so the circular accuracy is the plain one.")
        circular, abilities = [], defaultdict(list)
        for group in complete.values():
            verdict = all(right[answer.question.question_id] for answer in group)
            circular.append(verdict)
            abilities[group[0].question.facts.get("l2-category")].append(verdict)
        values["circular_accuracy"] = per_cent(circular)
        values |= {str(name): per_cent(abilities[name]) for name in sorted(filter(None, abilities))}
        return Scores(values["circular_accuracy"], values, tuple(notes))

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`."""
        return read_option(answer.text, answer.question.fields["options"]) is not None

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: the table that the server takes, as xlsx."""
        path = stem.with_name(f"{stem.name}.xlsx")
        write_table(root / self.place, texts_by_id(answers), path)
        return path


class MMBenchChinese(MMBench):
    """The Chinese dev set; see `MMBench`."""

    name = "mmbench_cn"
    title = "MMB-CN"
    place = "mmbench_cn/mmbench_dev_cn_20231003.tsv"
    language = "cn"


def table_questions(path: Path, suffix: str | None, benchmark: str = MMBench.name) -> list[Question]:
    """The rows of an MMBench table as questions.

    Args:
        path: tab-separated table.
        suffix: put behind each question on a line of its own, and not recorded; None for nothing.
        benchmark: name, for errors.

    Raises:
        ValueError: if the table is missing or holds no row, or a row cannot be asked.
    """
    rows = _read_table(path, benchmark).to_dict("records")
    images = {row["index"]: row["image"] for row in rows}
    rotations = Counter(row["index"] % ROUND for row in rows)
    questions = []
    for row in rows:
        place = f"{path}, index {row['index']}"
        options = _options(row, place)
        if not options or row["question"] is None:
            raise ValueError(f"{place} has no question or no option A; download the file again.")
        letters, right = LETTERS[: len(options)], row.get("answer")
        if right is not None and right not in letters:
            raise ValueError(f"{place} has the answer {shown(right)}; it must be one of {', '.join(letters)}.")
        for name in ("hint", "question", *LETTERS):
            require_characters(row.get(name) or "", name, place)
        question = Question(
            question_id=row["index"],
            text="",
            images=(_image(row["image"], images, place),),
            facts={
                "question": row["question"],
                "hint": row.get("hint"),
                "answer": right,
                "l2-category": row.get("l2-category"),
                "rotations": rotations[row["index"] % ROUND],
            },
        )
        questions.append(_asked(question, options, letters, 0, suffix))
    return require_some(questions, path)


def rotated(question: Question, suffix: str | None) -> list[Question]:
    """A question under every rotation of its options, as LLaVA's `--all-rounds` asks it; the first is as given.

    Letters stay in order in the text: round 1 offers as A what round 0 offered as B. `option_char` says which letter of
    round 0 each option had.

    Args:
        question: question of `table_questions`.
        suffix: one of `SUFFIXES`.
    """
    options, letters = list(question.fields["options"]), list(question.fields["option_char"])
    return [
        _asked(question, options[turn:] + options[:turn], letters[turn:] + letters[:turn], turn, suffix)
        for turn in range(len(options))
    ]


def read_option(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer chooses; None where it chooses none or several.

    An answer chooses the only option letter among its words, with punctuation taken for spaces, as in MMBench's own
    evaluation (VLMEvalKit); an `A` before another word is an article where there are more than three words. Else it
    chooses the option whose text it is, else the only one whose text it holds, upper and lower case alike. That
    evaluation asks a language model about answers that its rules cannot read; here they are wrong.

    Args:
        text: what the model said.
        options: texts, in the order of their letters.
    """
    text = text.strip()
    letters = LETTERS[: len(options)]
    words = text.translate(_PUNCTUATION).split()
    named = [letter for letter in letters if letter in words]
    if named == ["A"] and len(words) > _FEW_WORDS:
        words = _ARTICLE.sub("", text).translate(_PUNCTUATION).split()
    if len(named) == 1 and named[0] in words:
        return named[0]
    said = text.lower()
    texts = [option.strip().lower() for option in options]
    same = [letter for letter, option in zip(letters, texts, strict=True) if option == said.rstrip(".")]
    held = [letter for letter, option in zip(letters, texts, strict=True) if option in said]
    return next((chosen[0] for chosen in (same, held) if len(chosen) == 1), None)


def is_right(answer: Answer) -> bool:
    """Whether an answer chooses the right option, in any round."""
    letter = read_option(answer.text, answer.question.fields["options"])
    if letter is None:
        return False
    return bool(answer.question.fields["option_char"][LETTERS.index(letter)] == answer.question.facts["answer"])


def write_table(annotation: Path, predictions: Mapping[str, str], path: Path) -> None:
    """Write what MMBench's server takes: the table without images and hints, with a column `prediction`.

    Args:
        annotation: the table that was asked.
        predictions: answers by index as text.
        path: xlsx file to write, in one step.

    Raises:
        ValueError: if the table is missing or lacks a question that was answered, or openpyxl is not installed.
    """
    table = _read_table(annotation, MMBench.name)
    unlisted = list(predictions.keys() - {str(index) for index in table["index"]})
    if unlisted:
        raise ValueError(
            f"{annotation} lacks {len(unlisted)} of {len(predictions)} questions that were answered, such as "
            f"{shown(unlisted[0])[1:-1]}; the two files do not belong together, give the table that was asked."
        )
    table = table.drop(columns=[name for name in DROPPED if name in table.columns])
    said = [predictions.get(str(index)) for index in table["index"]]
    said = [None if text is None else _NOT_IN_XLSX.sub("", text) for text in said]
    table = table.map(lambda value: _NOT_IN_XLSX.sub("", value) if isinstance(value, str) else value)
    table.columns = [_NOT_IN_XLSX.sub("", name) for name in table.columns]
    table.insert(min(_PLACE_OF_PREDICTION, len(table.columns)), "prediction", said)
    try:
        with whole_file(path, "wb") as file:
            _write_text(table, file)
    except ImportError as error:
        raise ValueError("Writing xlsx needs openpyxl; install it with `pip install openpyxl`.") from error


def _write_text(table: DataFrame, file: IO[bytes]) -> None:
    """Write a table as xlsx in which text is text, also where it looks like a formula or an error of a spreadsheet."""
    import pandas

    with pandas.ExcelWriter(file, engine="openpyxl") as writer:
        table.to_excel(writer, index=False)
        for row in writer.book.active.iter_rows():
            for cell in row:
                if cell.data_type in ("f", "e"):  # openpyxl takes "=5" for a formula and "#N/A" for an error
                    cell.data_type = "s"


def _read_table(path: Path, benchmark: str) -> DataFrame:
    """The table with `index` as number, everything else as text, and None for empty fields.

    Only an empty field is nothing: "None", "nan" or "N/A" may be an option. LLaVA, which leaves that to pandas, drops
    such an option and all behind it.
    """
    import pandas

    require(path, benchmark)
    try:
        table = pandas.read_table(path, dtype=str, keep_default_na=False)
        table["index"] = table["index"].astype(int)
        missing = [name for name in ("question", "image", "A") if name not in table.columns]
        again = table["index"].duplicated() | (table["index"] < 0)
        if again.any():
            raise ValueError(f"the index {table['index'][again].iloc[0]} is negative or comes twice")
        twice = [name for name in table.columns if re.sub(r"\.[0-9]+$", "", name) in set(table.columns) - {name}]
        if twice:  # pandas numbers the second of two equal names
            raise ValueError(f"the column {twice[0].rpartition('.')[0]!r} comes twice")
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is not a table of MMBench ({error}); download it again.") from error
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}, only {', '.join(table.columns)}; download it again.")
    texts = table.astype(object)
    empty = table.isna() | texts.map(lambda value: isinstance(value, str) and not value.strip())
    return texts.where(~empty, None)


def _options(row: Mapping[str, Any], place: str) -> list[str]:
    """Texts of the options, which stand side by side from A on."""
    given = {letter: row[letter] for letter in LETTERS if row.get(letter) is not None}
    behind = [letter for letter in given if letter not in LETTERS[: len(given)]]
    if behind:
        raise ValueError(f"{place} has an option {behind[0]}, but not all before it; download the file again.")
    return list(given.values())


def _asked(
    question: Question, options: Sequence[str], letters: Sequence[str], round_id: int, suffix: str | None
) -> Question:
    lines = [question.facts["hint"], question.facts["question"]]
    lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    prompt = "\n".join(line for line in lines if line is not None)
    fields = {"round_id": round_id, "options": list(options), "option_char": list(letters)}
    return replace(question, text=f"{prompt}\n{suffix}" if suffix else prompt, prompt=prompt, fields=fields)


def _image(field: str | None, images: Mapping[int, str | None], place: str) -> bytes:
    if field is not None and len(field) <= _REFERENCE_LENGTH and field.isdigit():
        field = images.get(int(field))
    try:
        content = base64.b64decode(field or "")
    except ValueError as error:  # of letters that are not ASCII, and of binascii
        raise ValueError(f"{place} has an image that is not base64 ({error}); download the file again.") from error
    if not content:
        raise ValueError(f"{place} has no image; download the file again.")
    return content


def _rotations(answers: Sequence[Answer]) -> tuple[dict[int, list[Answer]], int]:
    """The questions whose rotations were all answered, by index, and how many were not."""
    groups: dict[int, list[Answer]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: int(answer.question.question_id)):
        groups[int(answer.question.question_id) % ROUND].append(answer)
    complete = {index: group for index, group in groups.items() if len(group) == group[0].question.facts["rotations"]}
    return complete, len(groups) - len(complete)
