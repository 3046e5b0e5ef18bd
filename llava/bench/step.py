"""Measured time of a prefill or a training step at several budgets, beside the limit that FLOPs set.

    python -m llava.bench.step --shape llava-1.5-7b --mode prefill train --dtype bfloat16 --device cuda

Weights and inputs are random; a training step is forward and backward of everything but the frozen tower.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from transformers import CLIPVisionConfig

from llava.common.json_files import write_json
from llava.common.number_flags import count
from llava.common.path_flags import FILE_TO_WRITE
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.cost.flops import (
    average_visual_tokens,
    prefill_flops,
    training_flops,
    training_passes,
    visual_tokens_per_layer,
)
from llava.cost.machine import measured_on
from llava.cost.shapes import DecoderShape, VisionShape
from llava.cost.timing import interleaved, spread
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.known_towers import CLIP_LARGE_336

VICUNA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
TINY_DECODER = {**VICUNA_7B, "hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "vocab_size": 512}
TINY_VISION = {**CLIP_LARGE_336, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
SHAPES = {"llava-1.5-7b": (VICUNA_7B, CLIP_LARGE_336), "tiny": (TINY_DECODER, TINY_VISION)}


def build_model(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A LLaVA of the given shape with random weights, made on the device."""
    decoder, vision = SHAPES[shape]
    vision_config = CLIPVisionConfig(**vision)
    config = LlavaConfig(
        **decoder,
        mm_vision_tower="random weights",
        mm_vision_config=vision_config.to_dict(),
        mm_hidden_size=vision_config.hidden_size,
        mm_projector_type="mlp2x_gelu",
        dtype=dtype,
    )
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlavaLlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(previous)


def make_batch(model: Any, batch_size: int, text_tokens: int) -> dict[str, torch.Tensor]:
    """One image and `text_tokens` random tokens a row, the last fifth of them the answer."""
    device, vocabulary = model.device, model.config.vocab_size
    input_ids = torch.randint(3, vocabulary, (batch_size, text_tokens + 1), device=device)
    input_ids[:, min(35, text_tokens // 2)] = IMAGE_TOKEN_INDEX
    labels = input_ids.clone()
    labels[:, : -max(1, text_tokens // 5)] = IGNORE_INDEX
    size = model.get_vision_tower().config.image_size
    images = torch.randn(batch_size, 3, size, size, device=device, dtype=model.dtype)
    return {"input_ids": input_ids, "labels": labels, "images": images}


def runner(model: Any, batch: dict[str, torch.Tensor], config: CompressionConfig, mode: str) -> Callable[[], None]:
    """A call that does one prefill or one training step."""

    def prefill() -> None:
        with torch.no_grad():
            model(batch["input_ids"], images=batch["images"], compression=config, use_cache=True, logits_to_keep=1)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch, compression=config, use_cache=False).loss.backward()

    return prefill if mode == "prefill" else train


def limit(model: Any, config: CompressionConfig, mode: str, text: int, passes: int) -> float:
    """FLOPs of one sample."""
    decoder = DecoderShape.of(model.config)
    vision = VisionShape.of(model.get_vision_tower().config)
    tokens = visual_tokens_per_layer(config, decoder.layers, vision)
    if mode == "prefill":
        return prefill_flops(tokens, text, decoder, vision)
    return training_flops(tokens, text, decoder, vision, passes=passes)


def measure(model: Any, options: argparse.Namespace, mode: str, report: Callable[[str], None]) -> list[dict]:
    """Time every configuration in one interleaved run and report a line for each."""
    model.train(mode == "train")
    batch = make_batch(model, options.batch_size, options.text_tokens)
    configs = {name: CompressionConfig.resolve(name) for name in options.compression}
    runs = {name: runner(model, batch, config, mode) for name, config in configs.items()}
    seconds = interleaved(runs, options.repeats, model.device)
    passes = training_passes(True, options.activation_checkpointing)
    first = next(iter(configs))
    rows = []
    for name, config in configs.items():
        flops = limit(model, config, mode, options.text_tokens, passes)
        possible = 1 - flops / limit(model, configs[first], mode, options.text_tokens, passes)
        saved = 1 - median(seconds[name]) / median(seconds[first])
        tokens = visual_tokens_per_layer(
            config, model.config.num_hidden_layers, VisionShape.of(model.get_vision_tower().config)
        )
        rate = flops * options.batch_size / median(seconds[name]) / 1e12
        rows.append({"mode": mode, "compression": name, "seconds": seconds[name], "flops_per_sample": flops})
        report(
            f"{mode:8} {name:12} {average_visual_tokens(tokens):7.2f} {spread(seconds[name])}  {rate:8.2f} TFLOP/s"
            f"  saved {saved:6.1%} of at most {possible:6.1%}"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Prefill and training time at several budgets, random weights.")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--mode", nargs="+", choices=["prefill", "train"], default=["prefill", "train"])
    parser.add_argument("--compression", nargs="+", default=["none", "duet-192", "duet-128", "duet-64"])
    parser.add_argument("--batch-size", type=count(), default=4)
    parser.add_argument("--text-tokens", type=count(), default=100)
    parser.add_argument("--repeats", type=count(), default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--json", type=FILE_TO_WRITE, help="write every timing to this file")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build_model(options.shape, device, getattr(torch, options.dtype))
    if options.activation_checkpointing:
        model.gradient_checkpointing_enable()
    print(measured_on(device))
    print(f"{options.shape}, batch {options.batch_size}, {options.text_tokens} text tokens, {options.dtype}")
    rows = [row for mode in options.mode for row in measure(model, options, mode, print)]
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    if options.json:
        write_json(options.json, {"machine": measured_on(device), "rows": rows}, indent=1)


if __name__ == "__main__":
    sys.exit(as_program(main))
