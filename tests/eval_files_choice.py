"""Small data of the multiple-choice benchmarks, in the formats and places that LLaVA's evaluation has."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
)


def png(shade: int) -> bytes:
    """A small image of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 255 - shade, 90)).save(content, "PNG")
    return content.getvalue()


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(shade))


# === ScienceQA: eight problems of the test split, five with an image; one of another split ===

SQA_ANSWERS = {"4": 1, "5": 0, "11": 2, "14": 0, "15": 1, "26": 3, "27": 0, "31": 1}
SQA_WITH_IMAGE = ("5", "11", "15", "27", "31")


def write_sqa(root: Path) -> None:
    """ScienceQA."""
    folder = root / "scienceqa"
    choices = ["red", "green", "blue", "white"]
    records, problems = [], {"1": {"question": "Seen in training?", "choices": ["yes", "no"], "answer": 0}}
    for number, (key, answer) in enumerate(SQA_ANSWERS.items()):
        offered = choices[: max(2, answer + 1)]
        problems[key] = {"question": f"Which colour is it ({key})?", "choices": offered, "answer": answer}
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", offered, strict=False)]
        text = "\n".join([f"Context: N/A\nWhich colour is it ({key})?", *lines])
        record = {"id": key}
        if key in SQA_WITH_IMAGE:
            record["image"] = f"{key}/image.png"
            write_image(folder / "images" / "test" / key / "image.png", 20 * number)
            text = f"<image>\n{text}"
        answer_turn = {"from": "gpt", "value": f"The answer is {'ABCD'[answer]}."}
        records.append(record | {"conversations": [{"from": "human", "value": text}, answer_turn]})
    write_json(folder / "llava_test_CQM-A.json", records)
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": ["1"], "test": list(SQA_ANSWERS)})


# === MMBench: three questions with 3, 2 and 4 options, asked under every rotation: nine rows ===

MMBENCH = (
    (7, "What is shown?", "", ("cat", "dog", "bird"), "B", "object", "perception"),
    (8, "Is it day?", "The picture is bright.", ("yes", "no"), "A", "scene", "perception"),
    (12, "How many legs?", "", ("two", "four", "six", "eight"), "D", "count", "reasoning"),
)
MMBENCH_CN = (
    (7, "图中是什么？", "", ("猫", "狗", "鸟"), "B", "object", "perception"),
    (8, "是白天吗？", "图很亮。", ("是", "否"), "A", "scene", "perception"),
    (12, "有几条腿？", "", ("两条", "四条", "六条", "八条"), "D", "count", "reasoning"),
)


def mmbench_rows(questions: tuple[Any, ...], with_answers: bool = True) -> list[dict[str, Any]]:
    """Rows of a table; a rotation moves the right answer one letter on and its index by a million."""
    rows = []
    for index, question, hint, options, answer, category, ability in questions:
        count = len(options)
        for turn in range(count):
            texts = options[count - turn :] + options[: count - turn]
            row = dict(zip("ABCD", texts, strict=False)) | {"index": index + turn * 1_000_000}
            row |= {"question": question, "hint": hint, "category": category, "l2-category": ability}
            row |= {"image": base64.b64encode(png(10 * index)).decode(), "source": "made", "comment": ""}
            if with_answers:
                row["answer"] = "ABCD"[("ABCD".index(answer) + turn) % count]
            rows.append(row)
    return sorted(rows, key=lambda row: row["index"])


def write_rows(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> None:
    """A tab-separated table; what a row lacks is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_mmbench(root: Path) -> None:
    """MMBench in English."""
    write_rows(root / "mmbench" / "mmbench_dev_20230712.tsv", mmbench_rows(MMBENCH))


def write_mmbench_cn(root: Path) -> None:
    """MMBench in Chinese."""
    write_rows(root / "mmbench_cn" / "mmbench_dev_cn_20231003.tsv", mmbench_rows(MMBENCH_CN))


# === SEED-Bench: five questions about images, three about frames of videos ===

SEED = (
    (101, "image", 1, "A"),
    (102, "image", 1, "B"),
    (103, "image", 1, "C"),
    (104, "image", 5, "D"),
    (105, "image", 5, "A"),
    ("v0", "video", 10, "B"),
    ("v1", "video", 10, "C"),
    ("v2", "video", 12, "A"),
)
SEED_TYPES = {
    "Scene Understanding": 1,
    "Instances Counting": 5,
    "Action Recognition": 10,
    "Procedure Understanding": 12,
}


def write_seed(root: Path) -> None:
    """SEED-Bench; its file spells ids as text, LLaVA's questions as numbers where they are numbers."""
    folder = root / "seed_bench"
    lines, questions = [], []
    for number, (key, kind, type_id, answer) in enumerate(SEED):
        image = f"SEED-Bench-image/{key}_{number}" if kind == "image" else f"SEED-Bench-video-image/{key}.png"
        write_image(folder / image, 25 * number)
        text = f"What is it ({key})?\nA. one\nB. two\nC. three\nD. four\n"
        text += "Answer with the option's letter from the given choices directly."
        lines.append({"image": image, "question_id": key, "text": text, "category": type_id})
        questions.append({"question_id": str(key), "answer": answer, "question_type_id": type_id, "data_type": kind})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "llava-seed-bench.jsonl").write_text(text, encoding="utf-8")
    write_json(folder / "SEED-Bench.json", {"questions": questions, "question_type": SEED_TYPES})


WRITERS: dict[str, Callable[[Path], None]] = {
    "sqa": write_sqa,
    "mmbench": write_mmbench,
    "mmbench_cn": write_mmbench_cn,
    "seed": write_seed,
}
