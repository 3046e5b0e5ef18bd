"""scripts/convert_sqa_to_llava.py: every format, worked out by hand from LLaVA's description of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llava.eval.benchmarks.sqa import science_questions

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS: dict[str, dict[str, Any]] = {
    "3": {
        "question": "Which is  red?",
        "choices": ["sky", "rose"],
        "answer": 1,
        "hint": " Look. ",
        "image": "image.png",
        "lecture": "Colours.\\nMany.",
        "solution": "Roses are.\nRead.",
    },
    "5": {
        "question": "Is {it} so?",
        "choices": ["yes", "no", "é"],
        "answer": 2,
        "hint": "",
        "image": None,
        "lecture": "",
        "solution": "",
    },
    "8": {
        "question": "Other?",
        "choices": ["a", "b"],
        "answer": 0,
        "hint": "",
        "image": None,
        "lecture": "",
        "solution": "",
    },
}
HEAD = "Which is red?\nContext: Look.\n"
OPTIONS = "Options: (A) sky (B) rose"
LECTURE, SOLUTION = "Colours.\nMany.", "Roses are.\nRead."


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("convert_sqa_to_llava")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["5", "3"], "train": ["8"]}))
    return tmp_path


def test_conversations_as_llava_writes_them(
    convert: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main(["convert_to_llava", "--base-dir", str(folder), "--split", "test"]) == 0
    assert capsys.readouterr().out == "Number of samples: 2\n"
    text = (folder / "llava_test_QCM-LEA.json").read_text()
    assert text.startswith('[\n  {\n    "id": "5",\n    "conversations": [\n') and "\\u00e9" in text
    first, second = json.loads(text)
    assert first == {
        "id": "5",
        "conversations": [
            {"from": "human", "value": "Is {it} so?\nContext: N/A\nOptions: (A) yes (B) no (C) é"},
            # "Answer:", three spaces, "The ...": two of them become one, the first goes with "Answer:".
            {"from": "gpt", "value": " The answer is C."},
        ],
    }
    assert second == {
        "id": "3",
        "image": "3/image.png",
        "conversations": [
            {"from": "human", "value": f"{HEAD}{OPTIONS}\n<image>"},
            {"from": "gpt", "value": f"{LECTURE} {SOLUTION} The answer is B."},
        ],
    }
    (_, question) = science_questions([first, second], folder / "images", "here", suffix=None)
    assert question.text == f"{HEAD}{OPTIONS}" and question.images == (folder / "images" / "3" / "image.png",)


def test_lines_for_another_trainer(convert: ModuleType, folder: Path) -> None:
    assert convert.main(["convert_to_jsonl", "--base_dir", str(folder), "--split", "test"]) == 0
    first, second = (folder / "scienceqa_test_QCM-LEPA.jsonl").read_text().splitlines()
    assert json.loads(first)["output"] == "###\nANSWER: C." and "image" not in json.loads(first)
    assert json.loads(second) == {
        "id": "3",
        "image": "3/image.png",
        "instruction": f"{HEAD}{OPTIONS}\n<image>",
        "output": f"LECTURE: {LECTURE}\nSOLUTION: {SOLUTION}\n###\nANSWER: B.",
    }


@pytest.mark.parametrize(
    ("name", "full", "empty"),
    [
        ("CQM-A", f"Context: Look.\nQuestion: Which is red?\n{OPTIONS}", None),
        ("QCM-A", f"{HEAD}{OPTIONS}", None),
        ("QCML-A", f"{HEAD}{OPTIONS}\nBECAUSE: {LECTURE}", "Options: (A) yes (B) no (C) é"),
        ("QCME-A", f"{HEAD}{OPTIONS}\nBECAUSE: {SOLUTION}", "Options: (A) yes (B) no (C) é"),
        ("QCMLE-A", f"{HEAD}{OPTIONS}\nBECAUSE: {LECTURE} {SOLUTION}", "Options: (A) yes (B) no (C) é"),
        ("QCLM-A", f"{HEAD}BECAUSE: {LECTURE}\n{OPTIONS}", "BECAUSE: \nOptions: (A) yes (B) no (C) é"),
        ("QCEM-A", f"{HEAD}BECAUSE: {SOLUTION}\n{OPTIONS}", "BECAUSE: \nOptions: (A) yes (B) no (C) é"),
        ("QCLEM-A", f"{HEAD}BECAUSE: {LECTURE} {SOLUTION}\n{OPTIONS}", "BECAUSE: \nOptions: (A) yes (B) no (C) é"),
    ],
)
def test_what_is_asked(convert: ModuleType, name: str, full: str, empty: str | None) -> None:
    assert convert.texts_of(PROBLEMS["3"], name, "") == (full, "The answer is B.")
    if empty is not None:
        assert convert.texts_of(PROBLEMS["5"], name, "")[0] == f"Is {{it}} so?\nContext: N/A\n{empty}"


@pytest.mark.parametrize(
    ("name", "full", "empty"),
    [
        ("QCM-AL", f"The answer is B. BECAUSE: {SOLUTION}", "The answer is C."),
        ("QCM-AE", f"The answer is B. BECAUSE: {LECTURE}", "The answer is C."),
        ("QCM-ALE", f"The answer is B. BECAUSE: {LECTURE} {SOLUTION}", "The answer is C."),
        ("QCM-AEL", f"The answer is B. BECAUSE: {SOLUTION} {LECTURE}", "The answer is C."),
        ("QCM-LA", f"{LECTURE} The answer is B.", "The answer is C."),
        ("QCM-EA", f"{SOLUTION} The answer is B.", "The answer is C."),
        ("QCM-ELA", f"{SOLUTION} {LECTURE} The answer is B.", " The answer is C."),
    ],
)
def test_what_is_answered(convert: ModuleType, name: str, full: str, empty: str) -> None:
    assert convert.texts_of(PROBLEMS["3"], name, "")[1] == full
    assert convert.texts_of(PROBLEMS["5"], name, "")[1] == empty


def test_a_file_with_other_content_is_kept(
    convert: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert_to_llava", "--base-dir", str(folder), "--split", "test", "--prompt-format", "CQM-A"]
    path = folder / "llava_test_CQM-A.json"
    path.write_text("[]")
    assert convert.main(words) == 2
    assert f"{path} is there with other content" in capsys.readouterr().err and path.read_text() == "[]"
    assert convert.main([*words, "--overwrite"]) == 0
    assert convert.main(words) == 0
    assert [record["id"] for record in json.loads(path.read_text())] == ["5", "3"]


@pytest.mark.parametrize(
    ("words", "change", "sentence"),
    [
        (["--split", "dev"], {}, "has no split 'dev'; it has test, train."),
        (["--split", "test", "--prompt-format", "QCM-X"], {}, "--prompt-format is 'QCM-X'; it is one of CQM, QCM,"),
        (["--split", "test"], {"hint": None}, "problems.json, 3 has no field 'hint'"),
        (["--split", "test"], {"choices": list("abcdef")}, "has 6 choices, at most 5 have letters"),
        (["--split", "test"], {"answer": 2}, "has the answer 2, but 2 choices"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    convert: ModuleType,
    folder: Path,
    words: list[str],
    change: dict[str, Any],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = {name: value for name, value in (PROBLEMS["3"] | change).items() if value is not None}
    (folder / "problems.json").write_text(json.dumps(PROBLEMS | {"3": changed}))
    assert convert.main(["convert_to_llava", "--base-dir", str(folder), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(folder.glob("llava_*"))
