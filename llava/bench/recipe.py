"""The mode `recipe`: a whole run of the training program on made-up data, from its flags to the saved model."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from llava.bench.cases import Case, Setting
from llava.bench.data_memory import make_tokenizer
from llava.bench.loader import make_pictures, open_data
from llava.common.json_files import write_json
from llava.common.presets import family_of
from llava.cost.flops import average_visual_tokens, training_passes, visual_tokens_per_layer
from llava.model.measured_work import row_flops, shapes_of_model
from llava.train.train import train

STEPS = 4
_PICTURES = 8


def recipe_cases(setting: Setting) -> list[Case]:
    """Fine-tuning of everything but the tower: checkpoint and data are read, images decoded, an AdamW updates, the
    model is saved. The work is that of the steps alone; reading and saving are in the time.

    Raises:
        ValueError: for a model of another family than LLaVA-1.5's.
    """
    model = setting.model
    family = family_of(model.config.to_dict())
    if family != "llava-1.5":
        raise ValueError(f"--mode recipe makes data for a LLaVA-1.5; this model is a {family}.")
    temporary = tempfile.TemporaryDirectory(prefix="llava-bench-")  # removed with the cases, whose settings hold it
    folder = Path(temporary.name)
    texts = _write(setting, folder)
    decoder, vision = shapes_of_model(model.config)
    cases: list[Case] = []
    for name, config, packing in setting.variants():
        (folder / f"{len(cases)}.yaml").write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
        flags = _flags(setting, folder, folder / f"{len(cases)}.yaml", packing)
        flops = [row_flops(model, config, length, passes=training_passes(True, False)) for length in texts]
        rows = len(setting.lengths)
        longest = [max(flops[at : at + rows]) * rows for at in range(0, len(flops), rows)]
        tokens = average_visual_tokens(visual_tokens_per_layer(config, decoder.layers, vision))
        about = {"rows": rows, "visual_tokens": round(tokens, 2), "steps": STEPS}
        cases.append(
            Case(
                name,
                packing,
                partial(_run, flags),
                partial(_folder, temporary),
                sum(flops),
                sum(longest),
                len(texts),
                about=about,
            )
        )
    return cases


def _write(setting: Setting, folder: Path) -> list[int]:
    """Checkpoint, tokenizer, pictures, conversations; returns the text tokens of each with its system prompt."""
    tokenizer = make_tokenizer(vocabulary=setting.model.config.vocab_size)
    setting.model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    names = make_pictures(folder, _PICTURES)
    answer = "a picture of two dogs on the grass beside a lake "
    records = []
    for number in range(STEPS * len(setting.lengths)):
        length = setting.lengths[number % len(setting.lengths)]
        turns = [
            {"from": "human", "value": "<image>\nDescribe it."},
            {"from": "gpt", "value": _of_length(tokenizer, answer, max(2, length // 5))},
        ]
        records.append({"id": f"{number}", "image": names[number % len(names)], "conversations": turns})
    write_json(folder / "data.json", records)
    dataset, _ = open_data(folder / "data.json", folder, tokenizer, 1, folder / "cache")
    return [len(dataset.encode(number).tensors()["input_ids"]) - 1 for number in range(len(dataset))]


def _of_length(tokenizer: Any, text: str, tokens: int) -> str:
    """The beginning of a text, repeated as needed, that is so many tokens."""
    ids = tokenizer(text * (1 + tokens // 4))["input_ids"][:tokens]
    return str(tokenizer.decode(ids)).strip()


def _flags(setting: Setting, folder: Path, compression: Path, packing: str) -> list[str]:
    model = setting.model
    given: dict[str, object] = {
        "model_name_or_path": folder / "model",
        "vision_tower": model.config.mm_vision_tower,
        "mm_projector_type": model.config.mm_projector_type,
        "data_path": folder / "data.json",
        "image_folder": folder,
        "version": "v1",
        "image_aspect_ratio": model.config.image_aspect_ratio,
        "compression": compression,
        "packing": packing,
        "per_device_train_batch_size": len(setting.lengths),
        "max_steps": STEPS,
        "learning_rate": 2e-5,
        "save_strategy": "no",
        "logging_steps": STEPS,
        "disable_tqdm": True,
        "model_max_length": 2048,
        "report_to": "none",
        "early_save_check": False,
    }
    given |= {"use_cpu": True, "bf16": False} if model.device.type == "cpu" else {"bf16": True}
    own = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [*own, *shlex.split(setting.train_flags)]


def _folder(temporary: Any) -> str:
    return tempfile.mkdtemp(prefix="run-", dir=temporary.name)


def _run(flags: Sequence[str], output: Any) -> None:
    with _quietly():
        train([*flags, "--output_dir", str(Path(output) / "out")])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what a training run says of itself from between the tables."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
