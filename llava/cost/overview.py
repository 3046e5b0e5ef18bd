"""A table of what compression configurations cost and save: tokens seen by each layer, FLOPs and KV-cache bytes.

python -m llava.compression.schedule --preset duet-192 --model llava-1.5-7b
python -m llava.compression.schedule --preset mine.yaml --model path/of/a/checkpoint
python -m llava.compression.schedule --model path/of/a/llava-next --image-size 1008x336
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from llava.common.number_flags import count
from llava.common.path_flags import MODEL
from llava.common.presets import presets
from llava.compression.config import CompressionConfig
from llava.cost.dimensions import DecoderShape, VisionShape
from llava.cost.flops import (
    average_visual_tokens,
    describe,
    kv_bytes,
    prefill_flops,
    training_flops,
    visual_tokens_per_layer,
)
from llava.cost.medium_flags import add_medium_flags, asked_medium
from llava.cost.scaling import add_scaling_flag, as_it_is, for_depth
from llava.cost.seen_media import Vision, usual_medium
from llava.cost.shapes import MODELS, config_of, model_kind, model_shape


def table(configs: dict[str, CompressionConfig], decoder: DecoderShape, vision: Vision, text_tokens: int) -> str:
    """A text table of tokens, FLOPs and KV bytes, one line for each named configuration."""
    dense = visual_tokens_per_layer(CompressionConfig(), decoder.layers, vision)
    dense_prefill = prefill_flops(dense, text_tokens, decoder, vision)
    dense_step = training_flops(dense, text_tokens, decoder, vision)
    name_width = max(len(name) for name in configs)
    lines = [
        f"{'':{name_width}}  average  prefill TFLOPs       train TFLOPs         KV MiB (16 bit)  visual tokens by layer"
    ]
    for name, config in configs.items():
        tokens = visual_tokens_per_layer(config, decoder.layers, vision)
        prefill = prefill_flops(tokens, text_tokens, decoder, vision)
        step = training_flops(tokens, text_tokens, decoder, vision)
        lines.append(
            f"{name:{name_width}}  {average_visual_tokens(tokens):7.2f}"
            f"  {prefill / 1e12:8.4g} ({prefill / dense_prefill - 1:+7.1%})"
            f"  {step / 1e12:8.4g} ({step / dense_step - 1:+7.1%})"
            f"  {kv_bytes(tokens, text_tokens, decoder) / 2**20:15.1f}  {describe(tokens)}"
        )
    return "\n".join(lines)


def fitting(
    kind: str, decoder: DecoderShape, vision: Vision, among: Sequence[str] | None = None, scale: bool = False
) -> list[str]:
    """Presets that fit a model: some are made for other families, towers and depths.

    Args:
        kind: its family or `model_type`.
        decoder, vision: its dimensions.
        among: the presets to choose from; all if None.
        scale: whether their layers are scaled to its depth.
    """
    names = []
    for name in presets() if among is None else among:
        try:
            config = CompressionConfig.from_preset(name)
            config = config.scaled_to(decoder.layers) if scale else config
            visual_tokens_per_layer(config, decoder.layers, vision)
            config.check_made_for(kind, decoder.layers)
        except ValueError:
            continue
        names.append(name)
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Tokens, FLOPs and KV cache of compression configurations.")
    parser.add_argument(
        "--preset", nargs="+", default=None, help=f"names ({', '.join(presets())}) or YAML files; all that fit"
    )
    parser.add_argument(
        "--model", type=MODEL, default="llava-1.5-7b", help=f"{', '.join(MODELS)}, or a checkpoint folder"
    )
    parser.add_argument("--text-tokens", type=count(0), default=200, help="prompt and answer tokens beside the image")
    add_scaling_flag(parser, "--preset")
    add_medium_flags(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="schedule: %(message)s")
    try:
        kind = model_kind(options.model)
        usual = usual_medium(config_of(options.model) or kind)
        medium = asked_medium(options, usual)
        decoder, vision = model_shape(options.model, medium)
        named = options.preset or fitting(kind, decoder, vision, scale=options.scale_to_depth)
        configs = {name: for_depth(name, decoder.layers, options.scale_to_depth) for name in named}
        text = table(configs, decoder, vision, options.text_tokens)
        for config in configs.values():
            _check_made_for(config, kind, decoder.layers)
        print(text if isinstance(vision, VisionShape) else f"For one {medium or usual}:\n{text}")
    except ValueError as error:
        sys.exit(f"schedule: {error}")


def _check_made_for(config: CompressionConfig, kind: str, num_layers: int) -> None:
    """Refuse a preset for other models; of one for another depth alone, say what it would do here."""
    try:
        config.check_made_for(kind, num_layers)
    except ValueError as error:
        unscaled = as_it_is(config, num_layers) if config.made_for and kind in config.made_for.families else ""
        raise ValueError(f"{error} {unscaled}".rstrip()) from error
