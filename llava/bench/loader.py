"""Measures how many samples a second the data loader gives, alone, beside the rate at which a GPU would train on them.

python -m llava.bench.loader --workers 0 1 2
python -m llava.bench.loader --data-path mix.json --image-folder data --workers 4 --tokenizer checkpoints/llava

Without `--data-path` the data is made: conversations as long as LLaVA's and photo-like JPEG pictures of 640 x 480. The
loader is that of training: records and tokens from mapped tables, decoding, padding and scaling in workers, batches
with their plans. The rate of training is computed, from the FLOPs of `llava.cost` at the peak of a device and the share
of it that is reached (`--peak-tflops`, `--hfu`), or is the one that was measured (`--rate`). What a sample takes of a
core is measured in CPU seconds, the loader by the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from transformers import AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.bench.data_memory import make_tokenizer, write_conversations
from llava.common.child_processes import leave_signals_to_parent
from llava.common.json_files import write_json
from llava.common.number_flags import MOST_PROCESSES, count, positive, share
from llava.common.outside_files import in_words
from llava.common.path_flags import FILE_TO_WRITE, FOLDER_TO_READ, MODEL, TO_READ
from llava.common.presets import presets
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.cost.dimensions import CLIP_L_336
from llava.cost.flops import training_flops, training_passes, visual_tokens_per_layer
from llava.cost.machine import measured_on, usable_cores
from llava.cost.recipes import CAPTION_TOKENS, CONVERSATION_TOKENS
from llava.cost.shapes import MODELS
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.llava import LlavaInputs
from llava.data.images import image_path, open_rgb
from llava.model.llava_config import LlavaConfig
from llava.model.splice import PlanSettings

BUDGETS = ("none", "duet-192", "duet-128", "duet-64")
_SIDE, _PICTURE = 336, (640, 480)
_NEEDED = 2.0
"""The loader alone should give so many times what training takes."""


def make_pictures(folder: Path, number: int) -> list[str]:
    """Photo-like pictures, about 95 kB each, upright and lying in turn; returns their names."""
    draw = np.random.default_rng(0)
    names = []
    for index in range(number):
        width, height = _PICTURE if index % 4 else _PICTURE[::-1]
        coarse = draw.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + draw.normal(0, 6, smooth.shape).astype(np.int16)
        names.append(f"{index}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / names[-1], quality=90)
    return names


def make_data(folder: Path, records: int, pictures: int = 64) -> Path:
    """A file of conversations, nine in ten with a picture beside it in the folder; returns its path."""
    path = folder / "conversations.json"
    write_conversations(path, records)
    names = make_pictures(folder, min(pictures, records))
    held = json.loads(path.read_text(encoding="utf-8"))
    for index, record in enumerate(held):
        if "image" in record:
            record["image"] = names[index % len(names)]
    write_json(path, held)
    return path


def open_data(path: Path, images: Path, tokenizer: Any, tokens_per_image: int, cache: Path | None) -> Any:
    """The training data set and collator of a LLaVA-1.5, without a model."""
    config = LlavaConfig()
    config.image_aspect_ratio = "pad"
    side = {"height": _SIDE, "width": _SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=side)
    inputs = LlavaInputs(config, tokenizer, processor, "v1")
    settings = PlanSettings(tokens_per_image, "last", 2048)
    options = DataConfig(2048, tokens_per_image, image_folder=images, cache_dir=cache, settings=settings)
    return LazySupervisedDataset(str(path), inputs, options), inputs.collator(_SIDE, settings)


def loader_rate(dataset: Any, collator: Any, batch_size: int, workers: int, batches: int) -> dict[str, float]:
    """Samples a second of the loader alone, by the clock, from the second batch on.

    Args:
        dataset, collator: as in training.
        batch_size: samples of a batch.
        workers: processes; 0 loads in this one.
        batches: to take.
    """
    indices = [number % len(dataset) for number in range((batches + max(1, workers)) * batch_size)]
    loader = DataLoader(
        Subset(dataset, indices),
        batch_size,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    given = iter(leave_signals_to_parent(loader))
    for _ in range(max(1, workers)):  # what was loaded before the clock starts
        next(given)
    started = time.perf_counter()
    for _ in range(batches):
        next(given)
    rate = batches * batch_size / (time.perf_counter() - started)
    return {"workers": workers, "samples_per_second": rate, "per_worker": rate / max(1, workers)}


def parts(dataset: Any, collator: Any, batch_size: int, samples: int) -> dict[str, float]:
    """Milliseconds of one core for each sample: text, opening of pictures, their pixels, and making batches."""
    numbers = range(min(samples, len(dataset)))
    records = [dataset.records[number] for number in numbers]
    opening, config = dataset.inputs.image_opening, dataset.config
    named = [
        image_path(record.image_folder or config.image_folder, name) for record in records for name in record.images
    ]
    pictures = [open_rgb(path, opening) for path in named]
    made = [dataset[number] for number in numbers]
    work: dict[str, Callable[[], object]] = {
        "text": lambda: [dataset.encode(number).tensors() for number in numbers],
        "opening": lambda: [open_rgb(path, opening) for path in named],
        "pixels": lambda: [dataset.inputs.image(picture, "An image") for picture in pictures],
        "batch": lambda: [collator(made[at : at + batch_size]) for at in range(0, len(made), batch_size)],
    }
    return {name: _core_seconds(run) / len(numbers) * 1e3 for name, run in work.items()}


def training_rates(peak_tflops: float, hfu: float) -> dict[str, dict[str, float]]:
    """Samples a second of one device for each budget: fine-tuning without checkpointing, and pre-training with it."""
    decoder, found = MODELS["llava-1.5-7b"], {}
    phases = {
        "finetune": (CONVERSATION_TOKENS, training_passes(True, False)),
        "pretrain": (CAPTION_TOKENS, training_passes(False, True)),
    }
    for name in BUDGETS:
        tokens = visual_tokens_per_layer(CompressionConfig.from_preset(name), decoder.layers, CLIP_L_336)
        found[name] = {
            phase: peak_tflops * 1e12 * hfu / training_flops(tokens, text, decoder, passes=passes)
            for phase, (text, passes) in phases.items()
        }
    return found


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, as they go into `--json`."""
    path, images, tokenizer = options.data_path, options.image_folder or folder, make_tokenizer()
    if options.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(str(options.tokenizer))
    if path is None:
        path = make_data(folder, options.batch_size * 8)
    budget = CompressionConfig.from_preset(options.compression)
    tokens, *_ = visual_tokens_per_layer(budget, MODELS["llava-1.5-7b"].layers, CLIP_L_336)
    cache = folder if options.data_path is None else None
    dataset, collator = open_data(Path(path), Path(images), tokenizer, tokens, cache)
    core = parts(dataset, collator, options.batch_size, options.batch_size * 4)
    loaders = [
        loader_rate(dataset, collator, options.batch_size, workers, options.batches) for workers in options.workers
    ]
    rates = {"measured": {"given": options.rate}} if options.rate else training_rates(options.peak_tflops, options.hfu)
    fastest = max(rate for phases in rates.values() for rate in phases.values())
    per_core = 1e3 / sum(core.values())
    return {
        "machine": measured_on(torch.device("cpu")),
        "cores": usable_cores(),
        "milliseconds_of_a_core": core,
        "samples_per_second_of_a_core": per_core,
        "loaders": loaders,
        "training_samples_per_second": rates,
        "fastest": fastest,
        "cores_for_twice_the_fastest": _NEEDED * fastest / per_core,
    }


def report(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    core, of_core = found["milliseconds_of_a_core"], found["samples_per_second_of_a_core"]
    taken = ", ".join(f"{name} {value:.2f} ms" for name, value in core.items())
    lines = [
        f"{found['machine']}, {found['cores']} cores usable",
        f"a sample takes of one core: {taken}; {sum(core.values()):.2f} ms in all, {of_core:.0f} samples/s",
    ]
    for one in found["loaders"]:
        rate = one["samples_per_second"]
        times = rate / found["fastest"]
        lines.append(f"loader, {one['workers']} workers: {rate:.0f} samples/s, {times:.2f} x the fastest training")
    for name, phases in found["training_samples_per_second"].items():
        needs = [
            f"{phase} {rate:.1f} samples/s, twice that takes {_NEEDED * rate / of_core:.2f} cores"
            for phase, rate in phases.items()
        ]
        lines.append(f"{name:10}{'; '.join(needs)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Samples a second of the data loader alone.")
    parser.add_argument("--data-path", type=TO_READ, help="conversations; by default some are made")
    parser.add_argument("--image-folder", type=FOLDER_TO_READ, help="where the names of their images start")
    parser.add_argument("--tokenizer", type=MODEL, help="folder or name of a tokenizer; by default one is made")
    parser.add_argument("--compression", default="duet-64", choices=presets(), help="budget of the plans")
    parser.add_argument("--workers", type=count(0, MOST_PROCESSES), nargs="+", default=[0, min(4, usable_cores())])
    parser.add_argument("--batch-size", type=count(1, 4096), default=16, help="samples of a batch")
    parser.add_argument("--batches", type=count(), default=16, help="batches that are timed")
    parser.add_argument("--rate", type=positive(1e9), help="measured samples/s of training, instead of computed ones")
    parser.add_argument("--peak-tflops", type=positive(1e9), default=989.4, help="of one device; by default an H200's")
    parser.add_argument("--hfu", type=share(above=True), default=0.45, help="share of the peak that training reaches")
    parser.add_argument("--json", type=FILE_TO_WRITE, help="write all figures to this file")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            found = measured(options, Path(temporary))
    except (ValueError, OSError) as error:
        parser.error(in_words(error))
    print(report(found))
    if options.json:
        write_json(options.json, found, indent=1)


def _core_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one core, the lesser of two runs; torch computes with one thread meanwhile."""
    threads, taken = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            started = time.process_time()
            run()
            taken.append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    return min(taken)


if __name__ == "__main__":
    sys.exit(as_program(main))
