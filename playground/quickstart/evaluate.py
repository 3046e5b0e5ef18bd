"""Answers held-out questions under several token budgets and measures accuracy, tokens, FLOPs and time.

    python -m playground.quickstart.evaluate --model-path DIR --questions test.jsonl --image-folder DIR \
        --compression none.yaml duet-67.yaml random-67.yaml --out results.json

The model is loaded once. Every batch is answered under all configurations in turn before the next batch comes, so
that a change in the machine's load touches all of them alike. Answers are stored after every batch; the same command
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llava.common.json_lines import placed_objects
from llava.common.number_flags import count
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, FILE_TO_WRITE, FOLDER_TO_READ, as_text
from llava.common.program import as_program
from llava.compression import CompressionConfig
from llava.cost.flops import prefill_flops, visual_tokens_per_layer
from llava.cost.machine import describe_machine
from llava.cost.shapes import DecoderShape, VisionShape
from llava.cost.timing import wait_for
from llava.data.images import image_path
from llava.inference.batches import Prompt
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.inference.loading_flags import best_device
from llava.model.trace import CompressionTrace, trace_compression
from playground.quickstart.fields import record_of
from playground.quickstart.results import BLANK, Question, Results, Setting, Trace, text_table

GREEDY = GenerationSettings(max_new_tokens=12, more={"do_sample": False})
TRACED_FOR_COSTS = 16  # questions whose visual tokens are counted layer by layer


@dataclass(frozen=True)
class Batch:
    """Prompts and pixels on the model's device, with the number of the first question."""

    start: int
    inputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def blank(self) -> Batch:
        """The same questions about empty images: the mean colour everywhere."""
        return Batch(self.start, self.inputs | {"images": torch.zeros_like(self.inputs["images"])})

    def head(self, count: int) -> Batch:
        """The first `count` questions."""
        return Batch(self.start, {name: tensor[:count] for name, tensor in self.inputs.items()})


def engine_for(options: argparse.Namespace) -> Engine:
    """Open the model directory in float32, on a GPU where there is one."""
    device = best_device(None)
    return Engine.open(ModelSpec(options.model_path, dtype="float32", template=options.template), device, device)


def prepare(engine: Engine, questions: Sequence[Question], image_folder: str, batch_size: int) -> list[Batch]:
    """Tokens and pixels of all questions, once for all configurations."""
    batches = []
    for start in tqdm(range(0, len(questions), batch_size), desc="Reading images", unit="batch"):
        chosen = questions[start : start + batch_size]
        prompts = [Prompt(question.text, (image_path(image_folder, question.image),)) for question in chosen]
        inputs = engine.batch([engine.sample(prompt) for prompt in prompts])
        del inputs["labels"]
        batches.append(Batch(start, inputs))
    return batches


def answer(engine: Engine, batch: Batch, compression: CompressionConfig) -> list[str]:
    """Greedy answers."""
    generated = engine.generate(batch.inputs, GREEDY, compression=compression)
    generated.require_finite()
    return generated.texts


def trace(engine: Engine, batch: Batch, compression: CompressionConfig) -> CompressionTrace:
    """Where the patches of a batch go."""
    return trace_compression(engine.model, **batch.inputs, compression=compression)


def read_questions(path: Path, limit: int | None) -> list[Question]:
    """Read a question file: a JSON object a line with question_id, image, text, answer and perhaps category.

    Raises:
        ValueError: if a line holds anything else; says which.
    """
    advice = "write the questions anew"
    return [record_of(Question, line, place, advice) for place, line in placed_objects(path, advice)[:limit]]


def new_settings(files: Sequence[Path], blank: bool = True) -> list[Setting]:
    """A setting for each compression file, and with `blank` the uncompressed model that sees nothing.

    Raises:
        ValueError: if two files are called alike, by which nobody could tell their results apart, or one holds none.
    """
    names = [path.stem for path in files]
    for name in names:
        if names.count(name) > 1 or name == BLANK:
            raise ValueError(f"--compression names more than one {name!r}; results are called so, so rename the file.")
    settings = [Setting(path.stem, CompressionConfig.from_yaml(path).to_dict()) for path in files]
    return [*settings, Setting(BLANK, CompressionConfig().to_dict())] if blank else settings


def fingerprint(model_path: Path, questions: Sequence[Question], settings: Sequence[Setting]) -> dict[str, Any]:
    """What stored answers belong to: other weights, questions or budgets need new answers."""
    weights = sorted(model_path.glob("*.safetensors"))
    budgets = json.dumps([(setting.name, setting.compression) for setting in settings])
    return {
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "questions": hashlib.sha256(repr(list(questions)).encode()).hexdigest(),
        "budgets": hashlib.sha256(budgets.encode()).hexdigest(),
    }


def open_results(options: argparse.Namespace) -> Results:
    """Earlier results of the same model, questions and budgets, or new ones without answers."""
    questions = read_questions(Path(options.questions), options.limit)
    settings = new_settings([Path(name) for name in options.compression], options.blank)
    identity = fingerprint(Path(options.model_path), questions, settings)
    identity |= {} if options.template is None else {"template": options.template}
    if Path(options.out).is_file():
        require_apart({"--out": options.out}, [options.model_path, options.questions, *options.compression])
        try:
            earlier = Results.load(Path(options.out))
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"--out is {options.out!r}, which is there and holds no results; name another.") from error
        if earlier.fingerprint == identity:
            return earlier
    about = describe_machine() | {"model_path": options.model_path, "image_folder": options.image_folder}
    return Results(identity, about, questions, settings)


def measure_costs(engine: Engine, results: Results, batches: Sequence[Batch]) -> None:
    """Fill in tokens per layer, as seen for the first questions, and FLOPs at the mean prompt length."""
    config = engine.model.config
    tower = engine.model.get_vision_tower()
    decoder, vision = DecoderShape.of(config), VisionShape.of(tower.config, tower.select_layer)
    text_tokens = round(mean(int(batch.inputs["attention_mask"].sum()) / len(batch) for batch in batches)) - 1
    first = batches[0].head(TRACED_FOR_COSTS)
    results.about |= {"decoder_layers": decoder.layers, "patches": vision.patches, "text_tokens": text_tokens}
    for setting in results.settings:
        compression = CompressionConfig.from_dict(setting.compression)
        setting.tokens_per_layer = seen_tokens(trace(engine, first, compression), decoder.layers)
        planned = visual_tokens_per_layer(compression, decoder.layers, vision)
        setting.flops = prefill_flops(planned, text_tokens, decoder, vision)


def seen_tokens(trace: CompressionTrace, num_layers: int) -> list[float]:
    """Visual tokens that each layer worked on, mean over the rows of a traced batch."""
    present = mean(trace.entered)
    tokens = []
    for layer in range(num_layers):
        if layer in trace.alive:
            present = trace.alive[layer].sum(dim=1).float().mean().item()
        tokens.append(present)
    return tokens


def answer_all(engine: Engine, results: Results, batches: Sequence[Batch], path: Path) -> None:
    """Answer what is not answered yet, batch by batch under every setting in turn, saving after each batch."""
    for setting in results.settings:  # not measured: memory is claimed and kernels are chosen on first use
        answer(engine, batches[0].head(8), CompressionConfig.from_dict(setting.compression))
    with tqdm(total=len(results.questions) * len(results.settings), desc="Answering", unit="question") as bar:
        bar.update(sum(len(setting.answers) for setting in results.settings))
        for batch in batches:
            for setting in results.settings:
                if len(setting.answers) > batch.start:
                    continue
                shown = batch.blank() if setting.name == BLANK else batch
                answers, seconds = timed_answers(engine, shown, CompressionConfig.from_dict(setting.compression))
                setting.answers += answers
                setting.batch_seconds.append((seconds, len(batch)))
                bar.update(len(batch))
            results.save(path)


def timed_answers(engine: Engine, batch: Batch, compression: CompressionConfig) -> tuple[list[str], float]:
    """Answers, and seconds from pixels on the device to text."""
    wait_for(engine.model.device)
    started = time.perf_counter()
    answers = answer(engine, batch, compression)
    wait_for(engine.model.device)
    return answers, time.perf_counter() - started


def varied_questions(questions: Sequence[Question], count: int) -> list[int]:
    """Numbers of the first questions of each category in turn: chosen by position, not by outcome."""
    by_category: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        by_category.setdefault(question.category, []).append(number)
    ranked = sorted((rank, number) for numbers in by_category.values() for rank, number in enumerate(numbers))
    return [number for _, number in ranked[:count]]


def traces(engine: Engine, results: Results, numbers: Sequence[int], image_folder: str) -> Iterator[Trace]:
    """Where patches went, for the settings that choose them by attention."""
    if not numbers:
        return
    questions = [results.questions[number] for number in numbers]
    (batch,) = prepare(engine, questions, image_folder, len(numbers))
    for setting in results.settings:
        compression = CompressionConfig.from_dict(setting.compression)
        if compression.v2v is None or compression.v2v.score in ("random", "uniform"):
            continue
        followed = trace(engine, batch, compression)
        if followed.merged is None:
            continue
        for row, number in enumerate(numbers):
            fate, target = followed.merged.roles[row].tolist(), followed.merged.target[row].tolist()
            yield Trace(setting.name, number, fate, target, drop_layers(followed, row))


def drop_layers(trace: CompressionTrace, row: int) -> list[int | None]:
    """Number of layers after which each visual token of a row was dropped, None if never."""
    dropped: list[int | None] = [None] * trace.entered[row]
    for layer, alive in sorted(trace.alive.items(), reverse=True):
        for token in (~alive[row, : trace.entered[row]]).nonzero().flatten().tolist():
            dropped[token] = layer
    return dropped


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Accuracy, tokens, FLOPs and time at several token budgets.")
    parser.add_argument(
        "--model-path", type=as_text(FOLDER_TO_READ), required=True, help="directory that training wrote"
    )
    parser.add_argument(
        "--questions", type=as_text(FILE_TO_READ), required=True, help="question file, one JSON object a line"
    )
    parser.add_argument("--image-folder", type=as_text(FOLDER_TO_READ), required=True)
    parser.add_argument("--compression", nargs="+", required=True, help="YAML files; the first is compared with")
    parser.add_argument(
        "--out", type=as_text(FILE_TO_WRITE), required=True, help="JSON file to write, or to go on with"
    )
    parser.add_argument("--batch-size", type=count(), default=100)
    parser.add_argument("--template", help="conversation template; by default that of training")
    parser.add_argument("--limit", type=count(), default=None, help="answer only so many questions")
    parser.add_argument(
        "--blank", action=argparse.BooleanOptionalAction, default=True, help="also ask about empty images"
    )
    parser.add_argument(
        "--traces", type=count(0), default=6, help="questions whose patches are followed, for the report"
    )
    return parser.parse_args(arguments)


def evaluate(options: argparse.Namespace) -> Results:
    """Answer, measure and store; goes on with what `options.out` holds of the same evaluation.

    Args:
        options: what `parse` gives.

    Raises:
        ValueError: if a file is missing or does not fit.
    """
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    results = open_results(options)
    engine = engine_for(options)
    batches = prepare(engine, results.questions, options.image_folder, options.batch_size)
    measure_costs(engine, results, batches)
    answer_all(engine, results, batches, out)
    shown = varied_questions(results.questions, options.traces)
    results.traces = list(traces(engine, results, shown, options.image_folder))
    results.save(out)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    options = parse(arguments)
    try:
        results = evaluate(options)
    except ValueError as error:
        sys.exit(f"evaluate: {error}")
    print(f"\n{text_table(results)}\n\nWrote {options.out}")


if __name__ == "__main__":
    sys.exit(as_program(main))
