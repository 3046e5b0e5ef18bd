"""The facts of a run (arguments, data, start weights) saved in its checkpoints; a resumed run must have the same."""

from __future__ import annotations

import json
import logging
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llava.common.json_files import write_json
from llava.compression.config import CompressionConfig
from llava.train.arguments import TOWER_KINDS, DataArguments, ModelArguments, TrainingArguments
from llava.train.digests import digest_adapters, digest_image_processor, digest_model, digest_tokenizer, digest_weights
from llava.train.resuming import Change, depends_on_held_out_data, differences, plain

logger = logging.getLogger(__name__)

FACTS_FILE = "run_facts.json"
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "global_step*", "optimizer_*", "rank*-of-*-optimizer.pt")
_FLAGS = {  # of the entries of `RunFacts.start`
    "base model": "--model_name_or_path",
    **{f"{kind} tower": f"--{kind}_tower" for kind in TOWER_KINDS},
    "image processor": "preprocessor_config.json of the model or of --vision_tower, --max_pixels and the like",
    "held-out data": "--eval_data_path",
    "projector": "--pretrain_mm_mlp_adapter",
    "adapters": "--lora_weight_path",
    "tokenizer": "the tokenizer's files beside --model_name_or_path",
    "DeepSpeed's optimizer and schedule": "--deepspeed",
}
_OF_WEIGHTS = ("base model", *(f"{kind} tower" for kind in TOWER_KINDS))
_KINDS: dict[tuple[type, str], tuple[str, ...]] = {
    (dict, "object"): ("compression", "arguments", "start"),
    (str, "text"): ("data", "trained", "engine"),
    (int, "whole number"): ("samples", "world_size", "batch_size", "seed", "tower_layers"),
}
_DAMAGED = (
    "Whether data and settings are the same cannot be told, so the run does not go on from it: name an earlier "
    "checkpoint with --resume_from_checkpoint, or begin a run with another --output_dir."
)


@dataclass(frozen=True)
class RunFacts:
    """What must be the same when a run is resumed.

    Attributes:
        compression: entry `compression` of `config.json`.
        data: fingerprint of the training data's content and order.
        samples: how many there are.
        world_size: processes.
        batch_size: samples of one optimizer step, over all processes and accumulation steps.
        trained: `model`, `adapter_only`, or `lora` with rank and bits.
        engine: `torch`, or `deepspeed-zeroN`.
        seed: seed of the order.
        arguments: values of all arguments by name; what becomes of a difference stands in `llava.train.resuming`.
        start: fingerprints of what the weights started from; None for what was not there.
        tower_layers: number of layers of the vision tower; None without one.
    """

    compression: dict[str, Any]
    data: str
    samples: int
    world_size: int
    batch_size: int
    trained: str
    engine: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)
    start: dict[str, str | None] = field(default_factory=dict)
    tower_layers: int | None = None

    def write(self, folder: str | Path) -> None:
        """Leave `run_facts.json` in a checkpoint."""
        write_json(Path(folder) / FACTS_FILE, asdict(self), indent=1)

    @classmethod
    def read(cls, folder: str | Path) -> RunFacts | None:
        """Read the facts of a checkpoint; None in one that another program wrote.

        Facts that later versions added are empty in the checkpoints of earlier ones.

        Raises:
            ValueError: if the file is there and no facts are in it; names what is missing.
        """
        path = Path(folder) / FACTS_FILE
        held, fault = _read(path)
        if fault is not None:
            raise ValueError(f"{str(path)!r} {fault}. {_DAMAGED}")
        return None if held is None else cls.from_dict(held)

    @classmethod
    def from_dict(cls, held: Any) -> RunFacts | None:
        """Build from what `dataclasses.asdict` made; None if the mapping holds something else."""
        if _fault_of(held) is not None:
            return None
        return cls(**{entry.name: held[entry.name] for entry in fields(cls) if entry.name in held})


def facts_fault(folder: str | Path) -> str | None:
    """What is wrong with the facts of a checkpoint, in a few words; None if nothing is, or if it holds none."""
    _, fault = _read(Path(folder) / FACTS_FILE)
    return None if fault is None else f"{FACTS_FILE} {fault}"


def describe_run(
    model: Any,
    dataset: Any,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    part: str,
    held_out: Any = None,
) -> RunFacts:
    """The facts of a run that is about to start.

    Args:
        model: LLaVA, before adapters are put around it.
        dataset: data set with a `fingerprint` of its content.
        model_args, data_args, args: arguments of the run, with what a checkpoint settled.
        part: what is trained, as in `LlavaTrainer`.
        held_out: held-out data set, with a `fingerprint`, too; None without any.
    """
    engine = "torch"
    if args.deepspeed:
        engine = f"deepspeed-zero{args.hf_deepspeed_config.get_value('zero_optimization.stage', 0)}"
    arguments = plain(model_args, data_args, args)
    arguments["image_opening"] = dataset.inputs.image_opening
    return RunFacts(
        compression=model.compression.to_dict(),
        data=dataset.fingerprint,
        samples=len(dataset),
        world_size=args.world_size,
        batch_size=args.world_size * args.train_batch_size * args.gradient_accumulation_steps,
        trained=f"lora of rank {args.lora_r} over {args.bits} bits" if part == "lora" else part,
        engine=engine,
        seed=args.seed if args.data_seed is None else args.data_seed,
        arguments=arguments,
        start=_start(dataset.inputs.tokenizer, model_args, args)
        | {
            "image processor": digest_image_processor(dataset.inputs.processor),
            "held-out data": None if held_out is None else str(held_out.fingerprint),
        },
        tower_layers=_tower_layers(model),
    )


def require_same_run(checkpoint: str | Path, now: RunFacts) -> None:
    """Refuse to resume a checkpoint of a different run.

    Raises:
        ValueError: if something changed that makes it another run; says both values and what to do.
    """
    then = RunFacts.read(checkpoint)
    for sentence in () if then is None else _refusals(then, now):
        raise ValueError(f"{checkpoint} cannot be resumed: {sentence}")


def what_differs(then: RunFacts, now: RunFacts) -> list[str]:
    """Differences between a run and a finished one, as sentences; empty where both would end with the same weights."""
    found = differences(then.arguments, now.arguments, now.tower_layers)
    return _refusals(then, now) + [f"{one}." for one in found if one.change is Change.APPLIED]


def say_what_changed(checkpoint: str | Path, now: RunFacts) -> None:
    """Log the differences that do not keep the run from being resumed; call it after all checks that may refuse it."""
    then = RunFacts.read(checkpoint)
    if then is None:
        logger.warning("%s has no %s; whether data and settings are the same cannot be told.", checkpoint, FACTS_FILE)
        return
    _say_what_cannot_be_told(checkpoint, then, now)
    for difference in differences(then.arguments, now.arguments, now.tower_layers):
        if difference.change is Change.APPLIED:
            logger.warning("%s, from here on.", difference)
        elif difference.change is Change.WARNED:
            logger.warning("%s: the result will not be equal bit for bit.", difference)
        elif difference.change is Change.UNSEEN:
            logger.warning("%s: whether the same images lie there is not looked at.", difference)
    same_share = _share(then) == _share(now) or None in (_share(then), _share(now))
    if then.world_size != now.world_size or not same_share:
        logger.warning(
            "Resuming with %d processes what %d began%s: the samples of every step are the same, but sums are taken in "
            "another order and dropout draws other numbers, so the result will not be equal bit for bit.",
            now.world_size,
            then.world_size,
            "" if same_share else ", in other batches",
        )


def has_optimizer(checkpoint: str | Path) -> bool:
    """Whether a checkpoint holds the state of an optimizer, in any of the engines' files."""
    return any(any(Path(checkpoint).glob(pattern)) for pattern in _OPTIMIZERS)


def require_optimizer(checkpoint: str | Path) -> None:
    """Refuse a checkpoint of weights alone, with which optimizer and schedule would begin anew.

    Raises:
        ValueError: if it holds no state of an optimizer.
    """
    if not has_optimizer(checkpoint):
        raise ValueError(
            f"{checkpoint} cannot be resumed: it holds weights but no optimizer and no schedule (--save_only_model), "
            "so both would begin anew. Begin a run with another --output_dir; --model_name_or_path can name the "
            "checkpoint."
        )


def require_steps(checkpoint: str | Path, done: int, asked: int) -> None:
    """Refuse a checkpoint that is beyond the end of the run.

    Raises:
        ValueError: if it took more steps than are asked for.
    """
    if done > asked:
        raise ValueError(
            f"{checkpoint} cannot be resumed: it took {done} steps, but this run is to have {asked} (--max_steps, "
            "--num_train_epochs); give no fewer than it took, or name an earlier one with --resume_from_checkpoint."
        )


def _read(path: Path) -> tuple[Any, str | None]:
    """What a file of facts holds, None without the file, and what is wrong with it."""
    if not path.is_file():
        return None, None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON ({error})"
    return held, _fault_of(held)


def _fault_of(held: Any) -> str | None:
    """What is wrong with the content of `run_facts.json`; fields that later versions add are not looked at."""
    if not isinstance(held, dict):
        return f"holds a {type(held).__name__}, not an object of facts"
    needed = (one for one in fields(RunFacts) if one.default is MISSING and one.default_factory is MISSING)
    missing = [repr(one.name) for one in needed if one.name not in held]
    if missing:
        return f"lacks {', '.join(missing)}"
    for (kind, words), names in _KINDS.items():
        for name in names:
            value = held.get(name, kind())
            if type(value) is not kind and (name, value) != ("tower_layers", None):
                return f"holds {name!r} that is no {words} ({value!r:.40})"
    odd = [name for name, value in held.get("start", {}).items() if not isinstance(value, str | None)]
    if odd:
        return f"holds {odd[0]!r} of 'start' that is no text"
    try:
        CompressionConfig.resolve(held["compression"])
    except (ValueError, TypeError) as error:
        return f"holds 'compression' that is none ({error})"
    return None


def _tower_layers(model: Any) -> int | None:
    """Layers of a tower whose selected one is counted from either end; None where nothing selects one."""
    towers = model.vision_towers()
    layers = getattr(towers[0].config, "num_hidden_layers", None) if towers else None
    return None if layers is None else int(layers)


def _share(facts: RunFacts) -> Any:
    """Samples of one process in one forward pass (per-device batch size); None in facts without it."""
    return facts.arguments.get("per_device_train_batch_size")


def _start(tokenizer: Any, model_args: ModelArguments, args: TrainingArguments) -> dict[str, str | None]:
    """Digests of the files that the weights start from."""
    found: dict[str, str | None] = {
        "base model": digest_model(model_args.model_name_or_path, args.cache_dir),
        "tokenizer": digest_tokenizer(tokenizer),
        "vision tower": None,
        "projector": None,
        "adapters": None,
        "DeepSpeed's optimizer and schedule": None,
    }
    for kind, name in model_args.towers.items():
        found[f"{kind} tower"] = digest_model(name, args.cache_dir)
    if model_args.pretrain_mm_mlp_adapter:
        found["projector"] = digest_weights(model_args.pretrain_mm_mlp_adapter)
    if args.lora_weight_path:
        found["adapters"] = digest_adapters(args.lora_weight_path)
    if args.deepspeed:
        own = {name: args.hf_deepspeed_config.config.get(name) for name in ("optimizer", "scheduler")}
        found["DeepSpeed's optimizer and schedule"] = json.dumps(own, sort_keys=True)
    return found


def _say_what_cannot_be_told(checkpoint: str | Path, then: RunFacts, now: RunFacts) -> None:
    unknown = [f"--{name}" for name in sorted(now.arguments.keys() - then.arguments.keys())]
    unknown = ["the arguments"] if now.arguments and not then.arguments else unknown
    if now.start and not then.start:
        unknown.append("what the weights started from")
    else:
        unknown += [_with_article(name) for name in sorted(now.start.keys() - then.start.keys())]
    if unknown:
        logger.warning(
            "%s says nothing of %s, as an earlier version wrote it; whether they are the same cannot be told.",
            checkpoint,
            " and ".join((", ".join(unknown[:-1]), unknown[-1]) if len(unknown) > 1 else unknown),
        )


def _with_article(name: str) -> str:
    return name if name.startswith("DeepSpeed") else f"the {name}"


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
            "processes; start as many, or take the weights with python -m llava.model.consolidate CHECKPOINT TARGET "
            "and begin anew from them."
        )
    return found + _other_start(then, now) + _other_arguments(then, now)


def _other_start(then: RunFacts, now: RunFacts) -> list[str]:
    """What the weights started from and is another now. What one of the two could not read is not compared."""
    found = []
    for name, before in then.start.items():
        after = now.start.get(name, before)
        if name == "held-out data" and not depends_on_held_out_data(then.arguments, now.arguments):
            continue
        if before != after and (name not in _OF_WEIGHTS or None not in (before, after)):
            found.append(
                f"{_with_article(name)} is another than at its beginning ({_FLAGS.get(name, name)}); give the old one "
                "again, or begin a run with another --output_dir."
            )
    return found


def _other_arguments(then: RunFacts, now: RunFacts) -> list[str]:
    refused = [
        one for one in differences(then.arguments, now.arguments, now.tower_layers) if one.change is Change.REFUSED
    ]
    if not refused:
        return []
    return [
        f"{'; '.join(map(str, refused))}. Give the old value{'s' if len(refused) > 1 else ''} again, or begin a run "
        "with another --output_dir (--model_name_or_path can name the checkpoint)."
    ]
