"""From the flags of a command to what is evaluated, who answers, and how they are asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from llava.checkpoints.contents import vision_config
from llava.common.image_opening import opening_of
from llava.compression.config import CompressionConfig
from llava.cost.flops import visual_tokens_per_layer
from llava.cost.shapes import VisionShape
from llava.eval.answering import Manner, ModelSource
from llava.eval.runner.device_workers import DeviceWorkers, ThisProcess, WorkerProcesses
from llava.eval.runner.flags import (
    budget,
    compression_name,
)
from llava.eval.runner.jobs import EvaluatedModel, check_template
from llava.eval.runner.settings import open_checkpoint
from llava.inference.inputs import best_device, conv_mode_of
from llava.inference.template import choose_template
from llava.mm_utils import model_name_of


def evaluated_model(options: argparse.Namespace) -> EvaluatedModel:
    """What the flags say is to be evaluated.

    Raises:
        ValueError: if there is no such model, or no such budget.
    """
    config, files = open_checkpoint(options.model_path, options.model_base)
    name = model_name_of(options.model_path)
    usual = getattr(options, "usual_conv_mode", None) or template_of(name)
    chosen = budget(options, CompressionConfig.resolve(config.compression))
    _check_fit(chosen, config)
    if options.load_4bit and options.load_8bit:
        raise ValueError("--load-4bit and --load-8bit are both given; choose one.")
    on_cpu = best_device(options.device) == "cpu"
    return EvaluatedModel(
        model=options.model_path,
        model_base=options.model_base,
        name=name,
        files=files,
        compression=chosen,
        compression_name=compression_name(options, chosen),
        dtype=options.dtype or ("float32" if on_cpu else "float16"),
        bits=4 if options.load_4bit else 8 if options.load_8bit else None,
        image_opening=opening_of(config, options.image_opening),
        template=choose_template(config, name, options.conv_mode, usual),
    )


def _check_fit(chosen: CompressionConfig, config: Any) -> None:
    """Refuse a budget for another tower, depth or family before anything is loaded."""
    tower = vision_config(config)
    if tower is not None:
        select = config.mm_vision_select_layer
        visual_tokens_per_layer(chosen, config.num_hidden_layers, VisionShape.of(SimpleNamespace(**tower), select))
    chosen.check_made_for(config.model_type, config.num_hidden_layers)


def sources_of(options: argparse.Namespace, evaluated: EvaluatedModel, num_gpus: int = 1) -> list[ModelSource]:
    """The model on each device that answers.

    Args:
        options: of `add_loading_flags`.
        evaluated: to be loaded.
        num_gpus: processes, one for each GPU; without GPUs they share the CPU.

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
    names = [device] if num_gpus == 1 else [f"cuda:{i}" if device == "cuda" else device for i in range(num_gpus)]
    compression = evaluated.compression.to_dict()
    return [
        ModelSource(
            evaluated.model,
            evaluated.model_base,
            name,
            evaluated.dtype,
            evaluated.bits == 8,
            evaluated.bits == 4,
            compression,
        )
        for name in names
    ]


def workers_of(sources: Sequence[ModelSource]) -> DeviceWorkers:
    """Those who answer: this process for one device, a process for each of several."""
    return ThisProcess(sources[0]) if len(sources) == 1 else WorkerProcesses(sources)


def manner_of(options: argparse.Namespace, evaluated: EvaluatedModel, max_new_tokens: int) -> Manner:
    """How the flags say to ask a model.

    Raises:
        ValueError: if one is out of range.
    """
    check_template(evaluated.template)
    on_cpu = best_device(options.device) == "cpu"
    ahead = options.loader_workers if options.loader_workers is not None else 0 if on_cpu else 4
    manner = Manner(
        conv_mode=evaluated.template,
        max_new_tokens=max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        num_beams=options.num_beams,
        seed=options.seed,
        num_frames=getattr(options, "num_frames", 8),
        image_opening=evaluated.image_opening,
        loader_workers=ahead,
    )
    manner.generation()
    return manner


def template_of(model_name: str) -> str:
    """That of LLaVA's evaluation scripts, or another where the name of a model that records none asks for it."""
    by_name = conv_mode_of(model_name)
    return "vicuna_v1" if by_name in ("llava_v1", "v1") else by_name
