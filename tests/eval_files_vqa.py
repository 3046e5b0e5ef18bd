"""Small data of the benchmarks with short answers, in the formats and places that LLaVA's evaluation expects.

Each writer fills a folder like `playground/data/eval`. The right answers are arranged so that tests can work scores out
by hand; see `test_scoring_vqa.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.answer_lines import answer_line
from llava.eval.benchmarks.questions import Answer
from llava.eval.scoring.scores import Scores

SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def write_image(path: Path, seed: int = 0) -> None:
    """Coloured noise in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    Image.fromarray(torch.randint(0, 255, (40, 56, 3), generator=draw, dtype=torch.uint8).numpy()).save(path)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def people(**counts: int) -> list[str]:
    """Ten people's answers: each as often as said."""
    return [answer.replace("_", " ") for answer, count in counts.items() for _ in range(count)]


TEXTVQA = [
    ("003a8ae2ef43b901", "What is the brand of this camera?", people(dakota=8, clos_culombu=1, unanswerable=1)),
    ("003a8ae2ef43b901", "What year is on it?", people(two=10)),
    ("0054c91397f2fe05", "Who wrote the book?", people(JONES=2, smith=8)),
    ("0054c91397f2fe05", "Is it open?", people(yes=10)),
    ("0985f1b6a7c2c0e7", "What does the sign say?", people(stop=10)),
    ("0985f1b6a7c2c0e7", "what colour is the sign?", people(red=10)),
]


def write_textvqa(root: Path) -> None:
    """Six questions: OCR tokens behind the question, in front of it, and none."""
    folder = root / "textvqa"
    lines = []
    for number, (image, question, _) in enumerate(TEXTVQA):
        tokens = "Reference OCR token: DAKOTA, DIGITAL, Single-Use"
        form = (f"{question}\n{tokens}\n{SHORT}", f"{tokens}\n{question}\n{SHORT}", f"{question}\n{SHORT}")[number % 3]
        lines.append({"question_id": image, "image": f"{image}.jpg", "text": form, "category": "default"})
        write_image(folder / "train_images" / f"{image}.jpg", number)
    write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    records = [
        {"question": question, "image_id": image, "question_id": 34602 + number, "answers": answers, "set_name": "val"}
        for number, (image, question, answers) in enumerate(TEXTVQA)
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": records})


GQA = [
    ("201307251", "n161313", "Is it overcast?", "no", "verify", "global"),
    ("201640614", "n235859", "Who is wearing the dress?", "woman", "query", "rel"),
    ("202225914", "n336443", "Does the utensil on top of the table look clean or dirty?", "clean", "choose", "attr"),
    ("201079951", "n161313", "What is the surfer wearing?", "wetsuit", "query", "rel"),
    ("20602949", "n235859", "How tall is the chair in the bottom of the photo?", "short", "query", "attr"),
    ("202080277", "n336443", "Is the bottle to the left or to the right of the plate?", "left", "choose", "rel"),
]


def write_gqa(root: Path) -> None:
    """Six questions: three open ones, three binary ones."""
    folder = root / "gqa"
    lines, records = [], {}
    for number, (question_id, image, question, answer, structural, semantic) in enumerate(GQA):
        text = f"{question}\n{SHORT}"
        lines.append({"question_id": question_id, "image": f"{image}.jpg", "text": text, "category": "default"})
        types = {"detailed": f"{semantic}Detail", "semantic": semantic, "structural": structural}
        records[question_id] = {
            "question": question,
            "imageId": image,
            "answer": answer,
            "isBalanced": True,
            "types": types,
        }
        write_image(folder / "data" / "images" / f"{image}.jpg", number)
    write_lines(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    write_json(folder / "data" / "testdev_balanced_questions.json", records)


POPE_LABELS = ("yes", "no", "yes", "no")


def write_pope(root: Path) -> None:
    """Four questions of each split, to be answered yes, no, yes, no."""
    folder = root / "pope"
    lines = []
    for split_number, split in enumerate(("adversarial", "popular", "random")):
        labels = []
        for number, label in enumerate(POPE_LABELS):
            image = f"COCO_val2014_{310196 + number // 2:012d}.jpg"
            question = f"Is there a {('snowboard', 'car', 'person', 'backpack')[number]} in the image?"
            question_id = 1000 * split_number + number + 1
            text = f"{question}\n{SHORT}"
            lines.append({"question_id": question_id, "image": image, "text": text, "category": split})
            labels.append({"question_id": number + 1, "image": image, "text": question, "label": label})
            write_image(folder / "val2014" / image, number // 2)
        write_lines(folder / "coco" / f"coco_pope_{split}.json", labels)
    write_lines(folder / "llava_pope_test.jsonl", lines)


MME = [
    ("existence/000000006040.jpg", "Is there a train in this picture?", "Yes"),
    ("existence/000000006040.jpg", "Is there a dog in this picture?", "No"),
    ("existence/000000007816.jpg", "Is there a motorcycle in this image?", "Yes"),
    ("existence/000000007816.jpg", "Is there a bus in this image?", "No"),
    ("code_reasoning/0020.png", "Is a python code shown in the picture?", "Yes"),
    ("code_reasoning/0020.png", "Is a c++ code shown in the picture?", "No"),
]


def write_mme(root: Path) -> None:
    """Six questions in two subtasks, one of each layout of MME's release."""
    folder = root / "MME"
    release = folder / "MME_Benchmark_release_version"
    lines = []
    for number, (name, question, answer) in enumerate(MME):
        category, file = name.split("/")
        nested = category == "code_reasoning"
        image = f"{category}/images/{file}" if nested else name
        text = f"{question}\n{SHORT}"
        lines.append({"question_id": name, "image": image, "text": text, "category": category})
        write_image(release / image, number // 2)
        truths = release / category / ("questions_answers_YN" if nested else ".") / f"{file.split('.')[0]}.txt"
        truths.parent.mkdir(parents=True, exist_ok=True)
        spaces = "  " if number == 0 else " "
        with truths.open("a", encoding="utf-8") as stream:
            stream.write(f"{question}{spaces}Please answer yes or no.\t{answer}\n")
    write_lines(folder / "llava_mme.jsonl", lines)


VQAV2 = [
    ("Where is the cat?", people(floor=9, ground=1), "other"),
    ("Is it raining?", people(no=10), "yes/no"),
    ("How many birds?", people(two=3, three=7), "number"),
    ("What is he holding?", people(bat=10), "other"),
    ("Is the man old?", people(yes=5, no=5), "yes/no"),
    ("What time is it?", people(noon=6, night=4), "other"),
]


def write_vqav2(root: Path) -> None:
    """Six questions of test-dev; the whole test split has two more."""
    folder = root / "vqav2"
    lines = []
    for number in range(8):
        image = f"COCO_test2015_{262144 + number // 2:012d}.jpg"
        text = f"{VQAV2[number % 6][0]}\n{SHORT}"
        lines.append({"question_id": 262144000 + number, "image": image, "text": text, "category": "default"})
        write_image(folder / "test2015" / image, number // 2)
    write_lines(folder / "llava_vqav2_mscoco_test2015.jsonl", lines)
    write_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", lines[:6])


def write_vqav2_validation(root: Path) -> None:
    """Six questions of the validation split with ten people's answers each."""
    folder = root / "vqav2"
    asked, labels = [], []
    for number, (question, answers, kind) in enumerate(VQAV2):
        ids = {"image_id": 262148 + number // 2, "question_id": 262148000 + number}
        asked.append({**ids, "question": question})
        given = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n, answer in enumerate(answers)]
        labels.append({**ids, "question_type": "none of the above", "answer_type": kind, "answers": given})
        write_image(folder / "val2014" / f"COCO_val2014_{ids['image_id']:012d}.jpg", number // 2)
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": labels})


VIZWIZ = [
    ("What is this?", people(unanswerable=10), "unanswerable"),
    ("What colour is it?", people(red=10), "other"),
    ("Is it on?", people(yes=4, unsuitable=6), "yes/no"),
    ("How much is it?", people(unanswerable=8, five=2), "number"),
    ("What is in the can?", people(beans=10), "other"),
    ("Can you read this?", people(no=10), "yes/no"),
]


def write_vizwiz(root: Path) -> None:
    """Six questions of the test split."""
    folder = root / "vizwiz"
    lines = []
    for number, (question, _, _) in enumerate(VIZWIZ):
        image = f"VizWiz_test_{number:08d}.jpg"
        text = f"{question}\n{UNANSWERABLE}\n{SHORT}"
        lines.append({"question_id": number, "image": image, "text": text, "category": "default"})
        write_image(folder / "test" / image, number)
    write_lines(folder / "llava_test.jsonl", lines)


def write_vizwiz_validation(root: Path) -> None:
    """Six questions of the validation split with ten people's answers each."""
    folder = root / "vizwiz"
    records = []
    for number, (question, answers, kind) in enumerate(VIZWIZ):
        image = f"VizWiz_val_{number:08d}.jpg"
        given = [{"answer_confidence": "yes", "answer": answer} for answer in answers]
        record = {"image": image, "question": question, "answers": given, "answer_type": kind}
        records.append({**record, "answerable": int(kind != "unanswerable")})
        write_image(folder / "val" / image, number)
    write_json(folder / "val.json", records)


WRITERS: dict[str, Callable[[Path], None]] = {
    "textvqa": write_textvqa,
    "gqa": write_gqa,
    "pope": write_pope,
    "mme": write_mme,
    "vqav2": write_vqav2,
    "vizwiz": write_vizwiz,
}
"""Writers by name of the benchmark."""


def answer(root: Path, name: str, texts: Sequence[str | None]) -> list[Answer]:
    """The benchmark's questions with these answers; None leaves one out."""
    questions = get_benchmark(name).questions(root)
    return [Answer(question, text) for question, text in zip(questions, texts, strict=True) if text is not None]


def score(root: Path, name: str, texts: Sequence[str | None]) -> Scores:
    """What these answers are worth."""
    return get_benchmark(name).score(root, answer(root, name, texts))


def write_answers(path: Path, answered: Sequence[Answer]) -> Path:
    """An answer file."""
    write_lines(path, [answer_line(item.question, item.text, "id", "model") for item in answered])
    return path
