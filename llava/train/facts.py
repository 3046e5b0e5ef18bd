"""What a run consists of, kept with each of its checkpoints: a run goes on only as the run that it was."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava.compression.config import CompressionConfig
from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)

FACTS_FILE = "run_facts.json"


@dataclass(frozen=True)
class RunFacts:
    """What must be the same when a run is resumed.

    Attributes:
        compression: as in `config.json`.
        data: fingerprint of the training data's content and order.
        samples: how many there are.
        world_size: processes.
        batch_size: samples of one optimizer step, over all processes and accumulation steps.
        trained: `model`, `adapter_only`, or `lora` with rank and bits.
        engine: `torch`, or `deepspeed-zeroN`.
        seed: of the order.
    """

    compression: dict[str, Any]
    data: str
    samples: int
    world_size: int
    batch_size: int
    trained: str
    engine: str
    seed: int

    def write(self, folder: str | Path) -> None:
        """Leave `run_facts.json` in a checkpoint."""
        (Path(folder) / FACTS_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> RunFacts | None:
        """Of a checkpoint; None in one that another program wrote."""
        path = Path(folder) / FACTS_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def describe_run(model: Any, dataset: Any, args: TrainingArguments, part: str) -> RunFacts:
    """The facts of a run that is about to start.

    Args:
        model: LLaVA, before adapters are put around it.
        dataset: with a `fingerprint` of its content.
        args: of the run.
        part: what is trained, as in `LlavaTrainer`.
    """
    engine = "torch"
    if args.deepspeed:
        engine = f"deepspeed-zero{args.hf_deepspeed_config.get_value('zero_optimization.stage', 0)}"
    return RunFacts(
        compression=model.compression.to_dict(),
        data=dataset.fingerprint,
        samples=len(dataset),
        world_size=args.world_size,
        batch_size=args.world_size * args.train_batch_size * args.gradient_accumulation_steps,
        trained=f"lora of rank {args.lora_r} over {args.bits} bits" if part == "lora" else part,
        engine=engine,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


def require_same_run(checkpoint: str | Path, now: RunFacts) -> None:
    """Refuse to go on as another run; say in the log what differs without harm.

    Raises:
        ValueError: if compression, data, batch, seed, what is trained, or the engine changed; says both values and
            what to do.
    """
    then = RunFacts.read(checkpoint)
    if then is None:
        logger.warning("%s has no %s; whether data and settings are the same cannot be told.", checkpoint, FACTS_FILE)
        return
    for sentence in _refusals(then, now):
        raise ValueError(f"{checkpoint} cannot be resumed: {sentence}")
    if then.world_size != now.world_size:
        logger.warning(
            "Resuming with %d processes what %d began: the samples of every step are the same, but sums are taken in "
            "another order and dropout draws other numbers, so the result will not be equal bit for bit.",
            now.world_size, then.world_size,
        )  # fmt: skip


def _refusals(then: RunFacts, now: RunFacts) -> list[str]:
    found = []
    if CompressionConfig.resolve(then.compression) != CompressionConfig.resolve(now.compression):
        found.append(
            f"it was trained with compression {then.compression}, but this run asks for {now.compression}; "
            "give the same --compression, or another --output_dir."
        )
    if (then.data, then.samples) != (now.data, now.samples):
        found.append(
            f"the data changed since ({then.samples} samples with fingerprint {then.data}, now {now.samples} with "
            f"{now.data}), so there is no telling which samples were seen; restore the old file, or begin a run with "
            "another --output_dir (--model_name_or_path can name the checkpoint)."
        )
    if then.trained != now.trained:
        found.append(f"it trained {then.trained}, this run {now.trained}; give the same flags or another --output_dir.")
    if then.batch_size != now.batch_size:
        found.append(
            f"one step had {then.batch_size} samples, now it has {now.batch_size}; keep devices x "
            "--per_device_train_batch_size x --gradient_accumulation_steps the same."
        )
    if then.seed != now.seed:
        found.append(f"the order of the data has seed {then.seed}, now {now.seed}; give the same --seed.")
    if then.engine != now.engine:
        found.append(f"{then.engine} wrote its optimizer state, this run uses {now.engine}; give the same --deepspeed.")
    if then.engine.startswith("deepspeed") and then.world_size != now.world_size:
        found.append(
            f"{then.engine} cut the optimizer state into {then.world_size} pieces, but there are {now.world_size} "
            "processes; start as many, or take the weights with the checkpoint's zero_to_fp32.py and begin anew."
        )
    return found
