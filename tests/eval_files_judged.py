"""Small data of the benchmarks that a judge grades, in the exact formats, below a `playground/data/eval`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

QUESTIONS = (
    ("What animal is shown?", "cat"),
    ("What is the man doing?", "playing a guitar"),
    ("Where are they?", "beach"),
    ("How many dogs are there?", "two"),
    ("What colour is the car?", "red"),
    ("Is it raining?", "no"),
)
CAPABILITIES = (["rec"], ["rec", "gen"], ["ocr"], ["math", "ocr"], ["rec"], ["know", "rec"])
CATEGORIES = ("conv", "detail", "complex", "conv", "detail", "complex")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_image(path: Path, shade: int) -> None:
    """Write a small picture of one colour and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade % 256, 100, 200)).save(path)


def write_gif(path: Path, shades: Iterable[int]) -> None:
    """Write an animation with a frame of each shade of grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.new("L", (20, 16), shade) for shade in shades)
    first.save(path, save_all=True, append_images=others)


def write_frames(folder: Path, shades: Iterable[int]) -> None:
    """Write a folder with a picture of each shade of grey, `frame1.png` first."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shade in enumerate(shades, start=1):
        Image.new("L", (20, 16), shade).save(folder / f"frame{number}.png")


def write_mmvet(root: Path) -> None:
    """MM-Vet: LLaVA's question file, pictures and the ground truth of the release."""
    folder = root / "mm-vet"
    write_lines(
        folder / "llava-mm-vet.jsonl",
        (
            {"question_id": number, "image": f"v1_{number}.png", "text": text, "category": "default"}
            for number, (text, _) in enumerate(QUESTIONS)
        ),
    )
    truths = {}
    for number, (text, answer) in enumerate(QUESTIONS):
        write_image(folder / "images" / f"v1_{number}.png", 30 * number)
        truths[f"v1_{number}"] = {
            "imagename": f"v1_{number}.png",
            "question": text,
            "answer": answer,
            "imagesource": "made",
            "capability": CAPABILITIES[number],
        }
    write_json(folder / "mm-vet.json", truths)


def write_llava_bench(root: Path) -> None:
    """LLaVA-Bench: questions, captions as one text or several, GPT-4's answers, pictures."""
    folder = root / "llava-bench-in-the-wild"
    names = [f"{number + 1:03d}.jpg" for number in range(len(QUESTIONS))]
    write_lines(
        folder / "questions.jsonl",
        (
            {"question_id": number, "image": names[number], "category": CATEGORIES[number], "text": text}
            for number, (text, _) in enumerate(QUESTIONS)
        ),
    )
    write_lines(
        folder / "context.jsonl",
        (
            {"id": name[:3], "image": name, "caption": f"Scene {name}." if even else [f"Scene {name}.", "In colour."]}
            for even, name in zip((True, False) * 3, names, strict=True)
        ),
    )
    write_lines(
        folder / "answers_gpt4.jsonl",
        (
            {
                "question_id": number,
                "prompt": text,
                "answer_id": f"gpt4-{number}",
                "model_id": "gpt-4-0314",
                "metadata": {},
                "text": f"It is {answer}.",
            }
            for number, (text, answer) in enumerate(QUESTIONS)
        ),
    )
    for number, name in enumerate(names):
        write_image(folder / "images" / name, 30 * number)


def write_videos(root: Path, folder: str, videos: str, prefix: str = "") -> None:
    """One of Video-LLaVA's data sets: question and answer file, and animations or folders of frames."""
    place = root / "GPT_Zero_Shot_QA" / folder
    questions, answers = [], []
    for number, (text, answer) in enumerate(QUESTIONS):
        name = f"video{number // 2}"
        questions.append({"video_name": name, "question_id": f"{number}", "question": text})
        answers.append({"answer": answer, "type": number % 2, "question_id": f"{number}"})
    write_json(place / "test_q.json", questions)
    write_json(place / "test_a.json", list(reversed(answers)))
    write_gif(place / videos / f"{prefix}video0.gif", range(0, 250, 25))
    write_frames(place / videos / f"{prefix}video1", range(0, 240, 20))
    write_gif(place / videos / f"{prefix}video2.gif", (10, 200))


def write_msvd(root: Path) -> None:
    """MSVD-QA."""
    write_videos(root, "MSVD_Zero_Shot_QA", "videos")


def write_msrvtt(root: Path) -> None:
    """MSRVTT-QA."""
    write_videos(root, "MSRVTT_Zero_Shot_QA", "videos/all")


def write_tgif(root: Path) -> None:
    """TGIF-QA."""
    write_videos(root, "TGIF_Zero_Shot_QA", "mp4")


def write_activitynet(root: Path) -> None:
    """ActivityNet-QA, whose files begin with `v_`."""
    write_videos(root, "Activitynet_Zero_Shot_QA", "all_test", prefix="v_")


def write_generation(root: Path, file: str, records: list[dict[str, str]]) -> None:
    """A question file of Video-ChatGPT, with three videos as folders of frames."""
    write_json(root / "Video_ChatGPT" / "Benchmarking_QA" / file, records)
    for number in range(3):
        write_frames(root / "Video_ChatGPT" / "Test_Videos" / f"video{number}", range(0, 240, 20))


def _of_one_question() -> list[dict[str, str]]:
    return [{"Q": text, "A": answer, "video_name": f"video{n // 2}"} for n, (text, answer) in enumerate(QUESTIONS)]


def write_vcg_generic(root: Path) -> None:
    """Video-ChatGPT's generic questions."""
    write_generation(root, "generic_qa.json", _of_one_question())


def write_vcg_temporal(root: Path) -> None:
    """Video-ChatGPT's questions about the order of events."""
    write_generation(root, "temporal_qa.json", _of_one_question())


def write_vcg_consistency(root: Path) -> None:
    """Video-ChatGPT's pairs of questions."""
    pairs = zip(QUESTIONS[::2], QUESTIONS[1::2], strict=True)
    records = [
        {"Q1": first, "Q2": second, "A": answer, "video_name": f"video{n}"}
        for n, ((first, answer), (second, _)) in enumerate(pairs)
    ]
    write_generation(root, "consistency_qa.json", records)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mmvet": write_mmvet,
    "llava_bench": write_llava_bench,
    "msvd": write_msvd,
    "msrvtt": write_msrvtt,
    "tgif": write_tgif,
    "activitynet": write_activitynet,
    "vcg_generic": write_vcg_generic,
    "vcg_temporal": write_vcg_temporal,
    "vcg_consistency": write_vcg_consistency,
}
