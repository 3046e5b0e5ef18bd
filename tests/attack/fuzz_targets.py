"""The files that are damaged, whole, and the readers that they are given to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import eval_files_choice
import eval_files_judged
import eval_files_vqa
import published
import saved_results
import tiny_llava
from eval_small import Squares, write_squares
from tiny_folder import write_model

from attack import fuzz_judged
from llava.common.json_files import write_json
from llava.compression import schedule
from llava.compression.config import CompressionConfig
from llava.cost.shapes import ModelShape
from llava.data.check.command import main as check_data
from llava.data.mixture import open_mix
from llava.data.records import read_records
from llava.eval import eval_pope, eval_science_qa, eval_textvqa, table
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.questions import Answer
from llava.eval.runner.result_files import BenchmarkFiles
from llava.eval.runner.scored import score_answers
from llava.model.builder import load_pretrained_model
from llava.train.arguments import parse_arguments
from llava.verify.__main__ import main as verify

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """A kind of file and who reads it.

    Attributes:
        name: of the target.
        build: fills a folder with whole files; returns those to damage, each with its kind for `mutate`.
        read: reads them as a program does; returns an exit status or None.
        names: what a message may name instead of the file or its folder, such as a flag.
    """

    name: str
    build: Callable[[Path], dict[str, str]]
    read: Callable[[Path], int | None]
    names: tuple[str, ...] = ()


def _compression(folder: Path) -> dict[str, str]:
    shutil.copy(ROOT / "configs/compression/duet-192-salient.yaml", folder / "mine.yaml")
    return {"mine.yaml": "yaml"}


def _read_compression(folder: Path) -> None:
    CompressionConfig.from_yaml(folder / "mine.yaml")


def _mixture(folder: Path) -> dict[str, str]:
    _records(folder)
    text = (
        "sources:\n- path: chats.json\n  weight: 1.5\n  name: chats\n- path: chats.jsonl\n  image_folder: b\nseed: 3\n"
    )
    (folder / "mix.yaml").write_text(text)
    return {"mix.yaml": "yaml"}


def _records(folder: Path) -> dict[str, str]:
    pictures = [
        {
            "id": f"p{number}",
            "image": "red.png",
            "conversations": [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "red"}],
        }
        for number in range(3)
    ]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    several = {
        "id": 7,
        "images": ["a.png", "b.png"],
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "<image><image> Which?"}, {"from": "gpt", "value": "a"}],
    }
    records = [*pictures, {"id": "t", "messages": turns}, several]
    (folder / "chats.json").write_text(json.dumps(records, indent=1))
    (folder / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"chats.json": "json", "chats.jsonl": "lines"}


def _read_records(folder: Path) -> None:
    for name in ("chats.json", "chats.jsonl"):
        read_records(folder / name)


def _check_data(folder: Path) -> int:
    statuses = [
        check_data(
            [
                "--data-path",
                str(folder / name),
                "--images",
                "skip",
                "--workers",
                "0",
                "--report",
                str(folder / "report.json"),
            ]
        )
        for name in ("chats.json", "chats.jsonl")
    ]
    return 0 if all(status in (0, 1) for status in statuses) else 2  # 1: faults were found and named


SETTINGS = {
    "config.json": "json",
    "generation_config.json": "json",
    "tokenizer_config.json": "json",
    "preprocessor_config.json": "json",
    "tokenizer.json": "json",
}

FIELDS = ("mm_vision_select_layer", "mm_vision_select_feature", "mm_hidden_size")  # fields of config.json, and flags


def _model(folder: Path) -> dict[str, str]:
    write_model(folder)
    return {name: kind for name, kind in SETTINGS.items() if (folder / name).is_file()}


def _hf_model(folder: Path) -> dict[str, str]:
    published.write_hf(folder)
    names = ("config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors.index.json")
    return {name: "json" for name in names if (folder / name).is_file()}


def _published_model(folder: Path) -> dict[str, str]:
    for name in ("tower", "model"):
        (folder / name).mkdir()
    published.write_tower(folder / "tower")
    published.write_llava(folder / "model", folder / "tower")
    found = [path for part in ("tower", "model") for path in (folder / part).glob("*.json")]
    return {str(path.relative_to(folder)): "json" for path in found if path.name != "tokenizer.json"}


def _adapters(folder: Path) -> dict[str, str]:
    for name in ("tower", "base", "lora"):
        (folder / name).mkdir()
    published.write_tower(folder / "tower")
    published.write_language_model(folder / "base")
    published.write_lora(folder / "lora", folder / "tower")
    return {"lora/adapter_config.json": "json", "lora/config.json": "json", "base/config.json": "json"}


def _open_model(folder: Path) -> None:
    load_pretrained_model(str(folder), device="cpu")


def _open_published(folder: Path) -> None:
    load_pretrained_model(str(folder / "model"), device="cpu")


def _open_adapters(folder: Path) -> None:
    load_pretrained_model(str(folder / "lora"), str(folder / "base"), device="cpu")


def _config_alone(folder: Path) -> dict[str, str]:
    write_model(folder / "model")
    shutil.copy(folder / "model/config.json", folder / "config.json")
    shutil.rmtree(folder / "model")
    return {"config.json": "json"}


def _schedule(folder: Path) -> None:
    schedule.main(["--model", str(folder), "--preset", "none"])
    ModelShape.of(str(folder))


def _results(folder: Path) -> dict[str, str]:
    saved_results.save(folder / "results", {"pope": 80.0, "gqa": 60.0})
    saved_results.save(folder / "results", {"pope": 79.0}, compression="duet-192", notes=("A note.",))
    saved_results.save_training(folder / "training", "duet-192", 2.0)
    found = [*folder.rglob("*.result.json"), *folder.rglob("train_summary.json")]
    return {str(path.relative_to(folder)): "json" for path in found}


def _table(folder: Path) -> int:
    return table.main([str(folder / "results"), str(folder / "training"), "--paper"])


def _settings(folder: Path) -> dict[str, str]:
    write_squares(folder / "data", 4)
    questions = Squares().questions(folder / "data")
    from llava.eval.runner.answer_settings import hash_of

    place = BenchmarkFiles(folder, "squares")
    lines = [
        {
            "question_id": q.question_id,
            "prompt": q.recorded_prompt,
            "text": "red",
            "answer_id": "a",
            "model_id": "m",
            "metadata": {"run": "r"},
        }
        for q in questions
    ]
    place.answers.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {
        "eval_folder": str(folder / "data"),
        "model": "m",
        "compression": "none",
        "versions": {"torch": "2"},
        "device": "CPU",
        "settings": {"batch_size": 1},
    }
    identity = {"questions": hash_of(questions), "compression": {}, "seed": 0}
    write_json(place.settings, {"identity": identity, "run": "r", "about": about}, indent=2)
    return {
        str(place.settings.relative_to(folder)): "json",
        str(place.answers.path.relative_to(folder)): "lines",
        "data/squares/questions.jsonl": "lines",
    }


def _score(folder: Path) -> None:
    score_answers(BenchmarkFiles(folder, "squares"), Squares(), folder / "data", None)


def _benchmark(name: str, writer: Callable[[Path], None]) -> Target:
    def build(folder: Path) -> dict[str, str]:
        writer(folder / "data")
        kinds = {".json": "json", ".jsonl": "lines", ".tsv": "text", ".txt": "text"}
        found = {}
        for path in sorted((folder / "data").rglob("*")):
            if path.suffix in kinds:
                lines = path.suffix == ".json" and not path.read_text().lstrip().startswith(("[", "{\n"))
                several = lines and path.read_text().strip().count("\n") > 0
                found[str(path.relative_to(folder))] = "lines" if several else kinds[path.suffix]
        return found

    def read(folder: Path) -> None:
        benchmark = get_benchmark(name)
        questions = benchmark.questions(folder / "data")
        answered = [Answer(question, "yes") for question in questions]
        if answered:
            benchmark.score(folder / "data", answered)
            benchmark.write_submission(folder / "data", answered, folder / "submission")

    return Target(f"benchmark {name}", build, read)


def _answers(writer: Callable[[Path], None], name: str) -> Callable[[Path], dict[str, str]]:
    def build(folder: Path) -> dict[str, str]:
        writer(folder / "data")
        questions = get_benchmark(name).questions(folder / "data")
        eval_files_vqa.write_answers(folder / "answers.jsonl", [Answer(question, "yes") for question in questions])
        return {"answers.jsonl": "lines"}

    return build


def _pope(folder: Path) -> int:
    data = folder / "data/pope"
    words = ["--annotation-dir", data / "coco", "--question-file", data / "llava_pope_test.jsonl"]
    return eval_pope.main([str(word) for word in (*words, "--result-file", folder / "answers.jsonl")])


def _textvqa(folder: Path) -> int:
    data = folder / "data/textvqa/TextVQA_0.5.1_val.json"
    return eval_textvqa.main(["--annotation-file", str(data), "--result-file", str(folder / "answers.jsonl")])


def _sqa(folder: Path) -> int:
    return eval_science_qa.main(
        [
            "--base-dir",
            str(folder / "data/scienceqa"),
            "--result-file",
            str(folder / "answers.jsonl"),
            "--output-file",
            str(folder / "out.json"),
            "--output-result",
            str(folder / "result.json"),
        ]
    )


def _deepspeed(folder: Path) -> dict[str, str]:
    tiny_llava.write_assets(folder)
    shutil.copy(ROOT / "scripts/zero2.json", folder / "zero.json")
    return {"zero.json": "json"}


def _train_flags(folder: Path) -> None:
    parse_arguments(tiny_llava.flags(folder, folder / "out", "finetune", deepspeed=folder / "zero.json"))


def _case(folder: Path) -> dict[str, str]:
    shutil.copytree(ROOT / "tests/golden/v2v", folder / "v2v")
    shutil.copytree(ROOT / "tests/golden/models", folder / "models")
    for extra in sorted((folder / "v2v").iterdir())[1:]:
        shutil.rmtree(extra)
    return {str(path.relative_to(folder)): "json" for path in folder.rglob("*.json")}


def _verify(folder: Path) -> int:
    status = verify([str(folder / "v2v")])
    return 0 if status in (0, 1) else 2  # 1: a case differs or cannot be read, which its line says


def all_targets() -> list[Target]:
    """Every target, in a fixed order."""
    writers = eval_files_choice.WRITERS | eval_files_vqa.WRITERS | eval_files_judged.WRITERS
    return [
        Target("compression", _compression, _read_compression),
        Target("mixture", _mixture, lambda folder: open_mix(folder / "mix.yaml", folder / "cache") and None),
        Target("records", _records, _read_records),
        Target("data check", _records, _check_data),
        Target("model", _model, _open_model, FIELDS),
        Target("hf model", _hf_model, _open_model, FIELDS),
        Target("published model", _published_model, _open_published, FIELDS),
        Target("adapters", _adapters, _open_adapters, FIELDS),
        Target("schedule", _config_alone, _schedule),
        Target("results", _results, _table),
        Target("settings", _settings, _score),
        *(_benchmark(name, writer) for name, writer in writers.items()),
        Target("answers pope", _answers(eval_files_vqa.write_pope, "pope"), _pope),
        Target("answers textvqa", _answers(eval_files_vqa.write_textvqa, "textvqa"), _textvqa),
        Target("answers sqa", _answers(eval_files_choice.write_sqa, "sqa"), _sqa),
        Target("judge's reviews", fuzz_judged.reviews, fuzz_judged.summarise),
        Target("judge's verdicts", fuzz_judged.verdicts, fuzz_judged.take_up),
        Target("judge's comparison", fuzz_judged.compared, fuzz_judged.compare, ("rule file", "Question ")),
        Target("judge's videos", fuzz_judged.predictions, fuzz_judged.grade_videos),
        Target("questions", fuzz_judged.questions, fuzz_judged.ask),
        Target("deepspeed", _deepspeed, _train_flags, ("--deepspeed",)),
        Target("case", _case, _verify),
    ]
