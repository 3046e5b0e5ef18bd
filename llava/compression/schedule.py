"""What a compression costs and saves: tokens seen by each layer, FLOPs and KV-cache bytes, by arithmetic alone.

    python -m llava.compression.schedule --preset duet-192 --model llava-1.5-7b
    python -m llava.compression.schedule --preset mine.yaml --model path/of/a/checkpoint

FLOPs count a multiply-add as two and causal attention once (half of the full square). Scoring is not counted: one
key projection and a few query rows at each drop, under 1 % of a prefill. Whichever layer scores (`t2v.scored_by`), it
computes them once more: the layer in front of the drop, too, gives no attention weights unless its kernel is eager.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.common.json_files import need, read_object
from llava.common.number_flags import count
from llava.common.program import as_program
from llava.common.shown import shown
from llava.compression.config import CompressionConfig, T2VConfig, presets


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions of a Llama-like language model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read the dimensions from a transformers configuration of a Llama-like model."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            mlp=config.intermediate_size,
            vocab=config.vocab_size,
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's linear maps."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.mlp

    def layer_flops(self, tokens: int) -> int:
        """Forward FLOPs of one layer over a sequence."""
        return 2 * self.layer_parameters * tokens + 2 * self.heads * self.head_dim * tokens**2


@dataclass(frozen=True)
class VisionShape:
    """Dimensions of a vision tower run to its selected layer; `patches` excludes the CLS token."""

    layers: int
    width: int
    mlp: int
    patches: int
    patch_values: int
    has_cls: bool = True

    @classmethod
    def of(cls, config: Any, select_layer: int = -2) -> VisionShape:
        """Read the dimensions from a CLIP vision configuration; `select_layer` indexes its hidden states."""
        return cls(
            layers=select_layer % (config.num_hidden_layers + 1),
            width=config.hidden_size,
            mlp=config.intermediate_size,
            patches=(config.image_size // config.patch_size) ** 2,
            patch_values=3 * config.patch_size**2,
        )

    @property
    def tokens(self) -> int:
        """Tokens the tower computes, CLS included."""
        return self.patches + self.has_cls

    def flops(self) -> int:
        """Forward FLOPs for one image."""
        weights = 4 * self.width**2 + 2 * self.width * self.mlp
        layer = 2 * weights * self.tokens + 4 * self.width * self.tokens**2
        return self.layers * layer + 2 * self.patch_values * self.width * self.patches


CLIP_L_336 = VisionShape(layers=23, width=1024, mlp=4096, patches=576, patch_values=588)
MODELS = {
    "llava-1.5-7b": DecoderShape(32, 4096, 32, 32, 128, 11008, 32000),
    "llava-1.5-13b": DecoderShape(40, 5120, 40, 40, 128, 13824, 32000),
}


def visual_tokens_per_layer(
    config: CompressionConfig, num_layers: int, vision: VisionShape = CLIP_L_336, images: int = 1
) -> tuple[int, ...]:
    """Visual tokens of one sample that each decoder layer sees.

    Raises:
        ValueError: if the configuration does not fit the tower or the number of layers.
    """
    per_image = config.v2v.token_count(vision.tokens) if config.v2v else vision.patches
    return tokens_per_layer(config.t2v, images * per_image, num_layers)


def tokens_per_layer(t2v: T2VConfig | None, entered: int, num_layers: int) -> tuple[int, ...]:
    """Visual tokens that each decoder layer sees of a row into which `entered` came, whatever they are of.

    Raises:
        ValueError: if a drop would come behind the last layer.
    """
    if t2v is None:
        return (entered,) * num_layers
    t2v.check_depth(num_layers)
    alive, tokens = entered, []
    for layer in range(num_layers):
        if layer in t2v.layers:
            alive = t2v.kept(t2v.layers.index(layer), entered)
        tokens.append(alive)
    return tuple(tokens)


def average_visual_tokens(tokens: Sequence[int]) -> float:
    """Mean over layers of the visual tokens a layer sees: the budget that papers compare at."""
    return sum(tokens) / len(tokens)


def prefill_flops(
    tokens: Sequence[int], text_tokens: int, decoder: DecoderShape, vision: VisionShape = CLIP_L_336, images: int = 1
) -> int:
    """FLOPs from pixels to the logits of the first answer token.

    Args:
        tokens: visual tokens per layer, as `visual_tokens_per_layer` gives them.
        text_tokens: length of the prompt without its images.
        decoder, vision: dimensions; the projector is LLaVA's two-layer MLP.
        images: images of the sample.
    """
    layers = sum(decoder.layer_flops(text_tokens + count) for count in tokens)
    return layers + 2 * decoder.width * decoder.vocab + _projector(tokens[0], decoder, vision) + images * vision.flops()


def training_passes(trains_language_model: bool, activation_checkpointing: bool) -> int:
    """Forward-sized passes through a decoder layer in one training step.

    Forward and the gradient of the layer's input always; the gradient of its weights if they are trained; a second
    forward if activations were not kept. So 4 for full fine-tuning with checkpointing; 3 without it, or with it and a
    frozen language model (LoRA, projector alone); 2 for a frozen one without it.
    """
    return 2 + trains_language_model + activation_checkpointing


def training_flops(
    tokens: Sequence[int],
    text_tokens: int,
    decoder: DecoderShape,
    vision: VisionShape = CLIP_L_336,
    images: int = 1,
    passes: int = 4,
) -> int:
    """FLOPs of one training step on one sample, the tower frozen.

    Args:
        tokens, text_tokens, decoder, vision, images: as in `prefill_flops`.
        passes: forward-sized passes through a layer, of `training_passes`.
    """
    layers = passes * sum(decoder.layer_flops(text_tokens + count) for count in tokens)
    head = 3 * 2 * decoder.width * decoder.vocab * (text_tokens + tokens[-1])
    return layers + head + 3 * _projector(tokens[0], decoder, vision) + images * vision.flops()


def kv_bytes(tokens: Sequence[int], text_tokens: int, decoder: DecoderShape, bytes_per_value: int = 2) -> int:
    """Bytes of the KV cache after a prompt of `text_tokens` and the visual tokens that each layer sees."""
    per_token = 2 * decoder.kv_heads * decoder.head_dim * bytes_per_value
    return per_token * sum(text_tokens + count for count in tokens)


def _projector(visual_tokens: int, decoder: DecoderShape, vision: VisionShape) -> int:
    return 2 * (vision.width * decoder.width + decoder.width**2) * visual_tokens


def describe(tokens: Sequence[int]) -> str:
    """The staircase in words, such as `0-15: 307, 16-23: 153, 24-31: 0`."""
    parts, start = [], 0
    for kept, run in groupby(tokens):
        length = len(list(run))
        parts.append(f"{start}-{start + length - 1}: {kept}")
        start += length
    return ", ".join(parts)


def table(configs: dict[str, CompressionConfig], decoder: DecoderShape, vision: VisionShape, text_tokens: int) -> str:
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


def model_shape(name: str) -> tuple[DecoderShape, VisionShape]:
    """Dimensions of a model in `MODELS`, or of a checkpoint folder, whose `config.json` may hold `mm_vision_config`.

    Raises:
        ValueError: for any other name.
    """
    if name in MODELS:
        return MODELS[name], CLIP_L_336
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no model {name!r}; give {', '.join(MODELS)} or a folder with a config.json.")
    config = _read_config(path)
    vision = config.get("mm_vision_config")
    select = config.get("mm_vision_select_layer", -2)
    return (
        DecoderShape.of(SimpleNamespace(**config)),
        VisionShape.of(SimpleNamespace(**vision), select) if vision else CLIP_L_336,
    )


_OF_A_DECODER = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
_OF_A_TOWER = ("num_hidden_layers", "hidden_size", "intermediate_size", "image_size", "patch_size")
_MOST = 1 << 24  # of any dimension
_MOST_LAYERS = 1_000


def _read_config(path: Path) -> dict[str, Any]:
    """A `config.json` with all that a shape is made of, each a whole number from 1."""
    config = read_object(path, "fetch or copy it anew")
    _need_counts(config, _OF_A_DECODER, str(path))
    _need_counts(config, ("num_key_value_heads", "head_dim"), str(path), optional=True)
    vision = need(config, "mm_vision_config", dict, str(path), optional=True)
    if vision:
        _need_counts(vision, _OF_A_TOWER, f"{path}: mm_vision_config")
        if "mm_vision_select_layer" in config:
            select, depth = need(config, "mm_vision_select_layer", int, str(path)), vision["num_hidden_layers"]
            if not -depth - 1 <= select <= depth:
                raise ValueError(f"mm_vision_select_layer in {path} is {shown(select)}; the tower has {depth} layers.")
    return config


def _need_counts(values: dict[str, Any], keys: Sequence[str], place: str, optional: bool = False) -> None:
    for key in keys:
        value, most = need(values, key, int, place, optional), _MOST_LAYERS if key == "num_hidden_layers" else _MOST
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{key} in {place} is {shown(value)}; it must be a whole number from 1 to {most:,}.")


def model_kind(name: str) -> str:
    """The `model_type` of a model in `MODELS`, or of a checkpoint folder."""
    path = Path(name) / "config.json"
    config = read_object(path, "fetch or copy it anew") if path.is_file() else {}
    return str(config.get("model_type", "llava_llama"))


def fitting(kind: str, decoder: DecoderShape, vision: VisionShape, among: Sequence[str] | None = None) -> list[str]:
    """Presets that fit a model: some are made for other families, towers and depths.

    Args:
        kind: its `model_type`.
        decoder, vision: its dimensions.
        among: the presets to choose from; all if None.
    """
    names = []
    for name in presets() if among is None else among:
        try:
            config = CompressionConfig.from_preset(name)
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
    parser.add_argument("--model", default="llava-1.5-7b", help=f"{', '.join(MODELS)}, or a checkpoint folder")
    parser.add_argument("--text-tokens", type=count(0), default=200, help="prompt and answer tokens beside the image")
    options = parser.parse_args(arguments)
    try:
        decoder, vision = model_shape(options.model)
        kind = model_kind(options.model)
        configs = {name: CompressionConfig.resolve(name) for name in options.preset or fitting(kind, decoder, vision)}
        text = table(configs, decoder, vision, options.text_tokens)
        for config in configs.values():
            config.check_made_for(kind, decoder.layers)
        print(text)
    except ValueError as error:
        sys.exit(f"schedule: {error}")


if __name__ == "__main__":
    sys.exit(as_program(main))
