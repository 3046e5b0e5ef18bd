"""Dimensions of language models and vision towers, and how many weights a LLaVA of such dimensions has, part by part.

The parameter names are those of Llama (no biases), of CLIP's vision model and of LLaVA's projector; the tests compare
every count with the modules themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.common.json_files import need, read_object
from llava.common.presets import family_of
from llava.common.shown import shown

_OF_A_DECODER = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
_OF_A_TOWER = ("num_hidden_layers", "hidden_size", "intermediate_size", "image_size", "patch_size")
_MOST = 1 << 24  # of any dimension
_MOST_LAYERS = 1_000


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
    """Dimensions of a vision tower run to its selected layer.

    Attributes:
        layers: that are run.
        width, mlp: width of the tokens and inside the MLP of two maps (or what makes as many weights).
        patches: number of patches of one image, without the CLS token; 0 where images differ in size.
        patch_values: numbers of a patch.
        has_cls: whether a CLS token joins the patches.
        windowed: number of those layers that attend within windows only.
        window: tokens of a window.
    """

    layers: int
    width: int
    mlp: int
    patches: int
    patch_values: int
    has_cls: bool = True
    windowed: int = 0
    window: int = 0

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

    def flops(self, tokens: int | None = None) -> int:
        """Forward FLOPs for one image (or crop, or frame).

        Args:
            tokens: that the tower computes for it, CLS included; None where all images have as many.
        """
        tokens = self.tokens if tokens is None else tokens
        weights = 4 * self.width**2 + 2 * self.width * self.mlp
        seen = (self.layers - self.windowed) * tokens + self.windowed * min(tokens, self.window)
        attention = 4 * self.width * tokens * seen
        patches = tokens - self.has_cls
        return self.layers * 2 * weights * tokens + attention + 2 * self.patch_values * self.width * patches


CLIP_L_336 = VisionShape(layers=23, width=1024, mlp=4096, patches=576, patch_values=588)
MODELS = {
    "llava-1.5-7b": DecoderShape(32, 4096, 32, 32, 128, 11008, 32000),
    "llava-1.5-13b": DecoderShape(40, 5120, 40, 40, 128, 13824, 32000),
}


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
    """The family of a model in `MODELS`, or of a checkpoint folder, as `llava.common.presets.family_of` has it."""
    path = Path(name) / "config.json"
    config = read_object(path, "fetch or copy it anew") if path.is_file() else {}
    return family_of({"model_type": "llava_llama", **config})


@dataclass(frozen=True)
class ModelShape:
    """A LLaVA's dimensions.

    Attributes:
        name: a known model or a checkpoint folder, as given.
        decoder: dimensions of the language model.
        vision: dimensions of the tower up to the layer that is used.
        tower_layers: layers that the tower holds in memory, used or not.
        projector_layers: linear maps of the projector: 1 for `linear`, N for `mlpNx_gelu`, 0 for `identity`.
        tied: whether head and embedding are one matrix.
    """

    name: str
    decoder: DecoderShape
    vision: VisionShape
    tower_layers: int
    projector_layers: int = 2
    tied: bool = False

    @classmethod
    def of(cls, name: str) -> ModelShape:
        """Dimensions of a known model (LLaVA-1.5's tower and projector), or of a folder with a `config.json`.

        Raises:
            ValueError: for any other name.
        """
        decoder, vision = model_shape(name)
        path = Path(name) / "config.json"
        config = read_object(path, "fetch or copy it anew") if path.is_file() else {}
        tower = config.get("mm_vision_config") or {}
        return cls(
            name,
            decoder,
            vision,
            tower_layers=tower.get("num_hidden_layers", vision.layers + 1),
            projector_layers=_projector_layers(config),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def embedding(self) -> int:
        """Weights of the token embedding."""
        return self.decoder.vocab * self.decoder.width

    @property
    def head(self) -> int:
        """Weights of the head that are not the embedding's."""
        return 0 if self.tied else self.embedding

    @property
    def layer_linears(self) -> int:
        """Weights of all linear maps of all layers: what QLoRA quantises."""
        return self.decoder.layers * self.decoder.layer_parameters

    @property
    def language(self) -> int:
        """Weights of the language model with its head."""
        norms = (2 * self.decoder.layers + 1) * self.decoder.width
        return self.embedding + self.head + self.layer_linears + norms

    @property
    def projector(self) -> int:
        """Weights and biases of the projector."""
        inputs, total = self.vision.width, 0
        for _ in range(self.projector_layers):
            total += (inputs + 1) * self.decoder.width
            inputs = self.decoder.width
        return total

    @property
    def tower(self) -> int:
        """Weights of the whole CLIP vision model: patch and position embeddings, layers, norms before and after."""
        width, mlp = self.vision.width, self.vision.mlp
        attention = 4 * (width * width + width)
        layer = attention + 2 * width * mlp + mlp + width + 4 * width
        embeddings = width + self.vision.patch_values * width + self.vision.tokens * width
        return embeddings + self.tower_layers * layer + 4 * width

    @property
    def total(self) -> int:
        """All weights."""
        return self.language + self.projector + self.tower

    def adapter(self, rank: int) -> int:
        """LoRA weights of `rank` on every linear map of the layers: rank x (inputs + outputs) each (Hu et al. 2021)."""
        return rank * self.decoder.layers * sum(inputs + outputs for inputs, outputs in linear_maps(self.decoder))

    def quantised_layers(self, bits: int, double_quant: bool) -> float:
        """Bytes of the layers' linear maps in bitsandbytes' 4 or 8 bits, scales included.

        4 bits: one scale for 64 weights, float32, or with double quantisation 8 bits and a float32 for 256 of them:
        0.5 or 0.127 bits a weight (QLoRA, Dettmers et al. 2023, section 3). 8 bits: one float32 for each output.
        """
        if bits == 8:
            return self.layer_linears + 4 * self.decoder.layers * sum(out for _, out in linear_maps(self.decoder))
        scale = (8 / 64 + 32 / (64 * 256)) / 8 if double_quant else 4 / 64
        return self.layer_linears * (0.5 + scale)


def linear_maps(decoder: DecoderShape) -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of one layer's maps, in the order q, k, v, o, gate, up, down."""
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    width, mlp = decoder.width, decoder.mlp
    return (width, queries), (width, keys), (width, keys), (queries, width), (width, mlp), (width, mlp), (mlp, width)


def _projector_layers(config: dict[str, Any]) -> int:
    """Linear maps of the projector that a `config.json` names; LLaVA-1.5's two where it names none."""
    kind = need(config, "mm_projector_type", str, "config.json", optional=True) or "mlp2x_gelu"
    deep = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind)
    return int(deep.group(1)) if deep else int(kind != "identity")
