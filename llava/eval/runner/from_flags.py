"""Makes the evaluated model, the workers and the generation settings from the flags of a command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from llava.checkpoints.contents import vision_config
from llava.common.image_opening import opening_of
from llava.compression.config import CompressionConfig
from llava.cost.flops import visual_tokens_per_layer
from llava.cost.seen_media import seen_by
from llava.data.families import ModelInputs, family_of
from llava.eval.runner.device_workers import DeviceWorkers, ThisProcess, WorkerProcesses
from llava.eval.runner.fingerprint import open_checkpoint
from llava.eval.runner.flags import budget, compression_name
from llava.eval.runner.jobs import EvaluatedModel
from llava.inference.engine import ModelSpec
from llava.inference.generation import GenerationSettings
from llava.inference.loading_flags import best_device, bits_of, limits_of
from llava.mm_utils import model_name_of


def evaluated_model(options: argparse.Namespace) -> EvaluatedModel:
    """What the flags say is to be evaluated.

    Raises:
        ValueError: if there is no such model, or no such budget.
    """
    config, files = open_checkpoint(options.model_path, options.model_base)
    name = model_name_of(options.model_path)
    family = family_of(config)
    usual = getattr(options, "usual_conv_mode", None) or template_of(family, name)
    present = CompressionConfig.resolve(getattr(config, "compression", None))
    chosen = budget(options, present, config.get_text_config().num_hidden_layers)
    _check_fit(chosen, config)
    on_cpu = best_device(options.device) == "cpu"
    template = family.with_roles(family.template_for(config, name, options.conv_mode, usual))
    spec = ModelSpec(
        path=options.model_path,
        base=options.model_base,
        compression=chosen,
        dtype=options.dtype or ("float32" if on_cpu else "float16"),
        bits=bits_of(options.load_8bit, options.load_4bit),
        template=template,
        image_opening=opening_of(config, options.image_opening),
        num_frames=_frames_of(options, family, config),
        limits=limits_of(options),
    )
    return EvaluatedModel(spec, name, files, chosen, compression_name(options, chosen, config))


def _frames_of(options: argparse.Namespace, family: type[ModelInputs], config: Any) -> int | None:
    """Frames of a video: as asked for, else what the family takes of every video; None where that differs."""
    asked: int | None = getattr(options, "num_frames", None)
    return family.frames_of(config) if asked is None and family.counted_frames else asked


def _check_fit(chosen: CompressionConfig, config: Any) -> None:
    """Refuse a budget for another tower, depth or family before anything is loaded."""
    layers = config.get_text_config().num_hidden_layers
    if hasattr(config, "vision_config") or getattr(config, "sees_videos", False) or vision_config(config) is not None:
        visual_tokens_per_layer(chosen, layers, seen_by(config.to_dict()))
    chosen.check_made_for(config, layers)


def devices_of(options: argparse.Namespace, num_gpus: int = 1) -> list[str]:
    """The devices that answer, one process each; without GPUs several processes share the CPU.

    Args:
        options: options of `add_loading_flags`.
        num_gpus: how many.

    Raises:
        ValueError: if there are fewer GPUs.
    """
    device = best_device(options.device)
    if num_gpus > 1 and device == "cuda":
        there = torch.cuda.device_count()
        if num_gpus > there:
            raise ValueError(f"--num-gpus is {num_gpus}, but this machine shows {there}; give at most {there}.")
    elif num_gpus > 1 and device != "cpu":
        raise ValueError(f"--device is {device!r}, one device; give cuda for --num-gpus {num_gpus}.")
    return [device] if num_gpus == 1 else [f"cuda:{i}" if device == "cuda" else device for i in range(num_gpus)]


def workers_of(spec: ModelSpec, devices: Sequence[str]) -> DeviceWorkers:
    """What answers: this process for one device, a process for each of several."""
    return ThisProcess(spec, devices[0]) if len(devices) == 1 else WorkerProcesses(spec, devices)


def generation_of(options: argparse.Namespace, max_new_tokens: int) -> GenerationSettings:
    """How the flags say to generate answers.

    Raises:
        ValueError: if one is out of range.
    """
    return GenerationSettings(options.temperature, options.top_p, options.num_beams, max_new_tokens, options.seed)


def loader_workers_of(options: argparse.Namespace) -> int:
    """Processes that read images ahead: by default four where a GPU answers."""
    if options.loader_workers is not None:
        return int(options.loader_workers)
    return 0 if best_device(options.device) == "cpu" else 4


def template_of(family: type[ModelInputs], model_name: str) -> str | None:
    """That of LLaVA's evaluation scripts, or another where the name of a model that records none asks for it."""
    by_name = family.template_by_name(model_name)
    return "vicuna_v1" if by_name in ("llava_v1", "v1") else by_name
