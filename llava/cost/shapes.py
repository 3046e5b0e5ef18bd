"""Dimensions of language models and vision towers, and how many weights a LLaVA of such dimensions has, part by part.

The parameter names are those of Llama (no biases), of CLIP's vision model and of LLaVA's projector; the tests compare
every count with the modules themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.common.json_files import need, read_object
from llava.common.known_towers import KNOWN_TOWERS, known_tower
from llava.common.outside_files import DAMAGED, in_short
from llava.common.presets import family_of, is_onevision_layout, require_known
from llava.common.shown import shown
from llava.cost.dimensions import CLIP_L_336 as CLIP_L_336
from llava.cost.dimensions import DecoderShape, linear_maps
from llava.cost.dimensions import VisionShape as VisionShape
from llava.cost.seen_media import PIXEL_LIMITS, Medium, SeenMedium, Vision, of_video_llava, seen_by, tower_of
from llava.cost.weight_counts import weight_counts

_OF_A_DECODER = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
_OF_A_TOWER = ("num_hidden_layers", "hidden_size", "intermediate_size", "image_size", "patch_size")
_FIXED_SIZE = ("clip_vision_model", "siglip_vision_model")
"""`model_type` of the towers of LLaVA and LLaVA-NeXT that bring all images to one size."""
_MOST = 1 << 24  # of any dimension
_MOST_LAYERS = 1_000


MODELS = {
    "llava-1.5-7b": DecoderShape(32, 4096, 32, 32, 128, 11008, 32000),
    "llava-1.5-13b": DecoderShape(40, 5120, 40, 40, 128, 13824, 32000),
}


def model_shape(name: str, medium: Medium | None = None) -> tuple[DecoderShape, Vision]:
    """Dimensions of a model in `MODELS`, or of a checkpoint folder of any family.

    Args:
        name: the model or the folder.
        medium: what it is shown; None for an image of the size that all are brought to, or the family's usual one.

    Raises:
        ValueError: for any other name, or if it cannot be shown that.
    """
    return _shapes(name, config_of(name), medium)


def _shapes(name: str, config: dict[str, Any] | None, medium: Medium | None) -> tuple[DecoderShape, Vision]:
    """`model_shape` of what `config_of` gives."""
    if config is None:
        decoder, shape = MODELS[name], SeenMedium.of(CLIP_L_336)
        return decoder, CLIP_L_336 if medium is None else shape.several(medium.frames)
    decoder = DecoderShape.of(SimpleNamespace(**(config.get("text_config") or config)))
    seen = seen_by(config, medium)
    return decoder, seen.tower if seen == SeenMedium.of(seen.tower) else seen


def config_of(name: str) -> dict[str, Any] | None:
    """What the `config.json` of a folder holds, with what transformers adds where it is transformers' own; None of a
    model in `MODELS`.

    Raises:
        ValueError: for any other name, or if the file does not describe a model.
    """
    if name in MODELS:
        return None
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no model {name!r}; give {', '.join(MODELS)} or a folder with a config.json.")
    config = read_object(path, "fetch or copy it anew")
    require_known(config, str(path))
    of_next = is_onevision_layout(config)
    if not of_next and "vision_config" not in config:
        return _own_config(config, path)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from llava.common.onevision_layout import onevision_config

    described = onevision_config(config, path.parent) if of_next else None
    try:
        if described is not None:
            found = AutoConfig.for_model(**described).to_dict()
        else:
            found = AutoConfig.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True).to_dict()
        _need_counts(found.get("text_config") or found, _OF_A_DECODER, f"{path}: text_config")
    except (*DAMAGED, StrictDataclassError) as error:  # of transformers, for a setting that it does not expect
        raise ValueError(f"{str(path)!r} describes no model that is known: {in_short(error)}") from error
    tower = str(found["vision_config"].get("model_type")) if "vision_config" in found else ""
    if family_of(found) in ("llava-1.5", "llava-next") and tower not in _FIXED_SIZE:
        raise ValueError(
            f"vision_config in {str(path)!r} is of model_type {shown(tower)}; costs are known with "
            f"{' or '.join(_FIXED_SIZE)}."
        )
    return found | _limits_beside(path)


def _limits_beside(path: Path) -> dict[str, Any]:
    """Fewest and most pixels of an image by the image processor's file beside a `config.json`, if it says them."""
    beside = path.with_name("preprocessor_config.json")
    settings = read_object(beside, "fetch or copy it anew") if beside.is_file() else {}
    size = settings.get("size")
    size = size if isinstance(size, dict) else {}
    limits = settings.get("min_pixels", size.get("shortest_edge")), settings.get("max_pixels", size.get("longest_edge"))
    return {PIXEL_LIMITS: limits} if all(isinstance(limit, int) and limit > 0 for limit in limits) else {}


def _own_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A `config.json` in LLaVA's format with all that a shape is made of, each a whole number from 1."""
    _need_counts(config, _OF_A_DECODER, str(path))
    _need_counts(config, ("num_key_value_heads", "head_dim"), str(path), optional=True)
    _projector_layers(config, str(path))
    config = {**config, "mm_vision_config": config.get("mm_vision_config") or _named_tower(config, path)}
    for key in ("mm_vision_config", "mm_image_config", "mm_video_config"):
        vision = need(config, key, dict, str(path), optional=True)
        if not vision:
            continue
        _need_counts(vision, _OF_A_TOWER, f"{path}: {key}")
        _need_counts(vision, ("num_frames",), f"{path}: {key}", optional=True)
        need({"model_type": "", **vision}, "model_type", str, f"{path}: {key}")
        if vision["image_size"] < vision["patch_size"]:
            raise ValueError(
                f"patch_size in {path}: {key} is {vision['patch_size']}; it must be at most the image_size "
                f"{vision['image_size']}."
            )
        if "mm_vision_select_layer" in config:
            select, depth = need(config, "mm_vision_select_layer", int, str(path)), vision["num_hidden_layers"]
            if not -depth - 1 <= select <= depth:
                raise ValueError(f"mm_vision_select_layer in {path} is {shown(select)}; the tower has {depth} layers.")
    return config


def _named_tower(config: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Dimensions of the tower for images that a `config.json` in LLaVA's format names; None where it names none.

    Raises:
        ValueError: if that is neither a known one nor a folder, or it is there that of no tower.
    """
    name = need(config, "mm_vision_tower", str, str(path), optional=True)
    if not name:
        return None
    found = known_tower(name)
    held = next((place for place in (Path(name), path.parent / name) if (place / "config.json").is_file()), None)
    if held is not None:
        found = read_object(held / "config.json", "fetch or copy it anew")
        inside = need(found, "vision_config", dict, str(held / "config.json"), optional=True)
        if inside is not None:  # of a model for images and texts
            found = {"model_type": f"{found.get('model_type', 'clip')}_vision_model", **inside}
    if found is None:
        raise ValueError(
            f"mm_vision_tower in {path} is {shown(name)}, whose dimensions are not known; write them into the file "
            f"under mm_vision_config, or name the folder of the tower. Known are {', '.join(KNOWN_TOWERS)}."
        )
    return found


def _need_counts(values: dict[str, Any], keys: Sequence[str], place: str, optional: bool = False) -> None:
    for key in keys:
        value, most = need(values, key, int, place, optional), _MOST_LAYERS if key == "num_hidden_layers" else _MOST
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{key} in {place} is {shown(value)}; it must be a whole number from 1 to {most:,}.")


def model_kind(name: str) -> str:
    """The family of a model in `MODELS`, or of a checkpoint folder, as `llava.common.presets.family_of` has it."""
    return _family_of(config_of(name))


def _family_of(config: dict[str, Any] | None) -> str:
    return family_of({"model_type": "llava_llama", **(config or {})})


@dataclass(frozen=True)
class ModelShape:
    """A model's dimensions.

    Attributes:
        name: a known model or a checkpoint folder, as given.
        decoder: dimensions of the language model.
        vision: dimensions of the tower up to the layer that is used, or what an image or video is to it.
        tower_layers: layers that the tower holds in memory, used or not.
        projector_layers: linear maps of the projector: 1 for `linear`, N for `mlpNx_gelu`, 0 for `identity`.
        tied: whether head and embedding are one matrix.
        counted: numbers of weights of language model, projector and towers, where they were counted; None where they
            are those of a Llama, LLaVA's projector and a CLIP.
        family: of the model, as `llava.common.presets.family_of` has it.
    """

    name: str
    decoder: DecoderShape
    vision: Vision
    tower_layers: int
    projector_layers: int = 2
    tied: bool = False
    counted: tuple[int, int, int] | None = None
    family: str = "llava-1.5"

    @classmethod
    def of(cls, name: str, medium: Medium | None = None) -> ModelShape:
        """Dimensions of a known model (LLaVA-1.5's tower and projector), or of a folder with a `config.json`.

        Args:
            name: the model or the folder.
            medium: as in `model_shape`.

        Raises:
            ValueError: for any other name, or if it cannot be shown that.
        """
        held = config_of(name)
        decoder, vision = _shapes(name, held, medium)
        config = held or {}
        tower = config.get("mm_vision_config") or {}
        shape = cls(
            name,
            decoder,
            vision,
            tower_layers=tower.get("num_hidden_layers", tower_of(vision).layers + 1),
            projector_layers=_projector_layers(config),
            tied=bool(config.get("tie_word_embeddings", False)),
            family=_family_of(held),
        )
        if "vision_config" in config:
            return replace(shape, counted=weight_counts(config))
        if family_of(config) == "video-llava":
            towers = sum(
                replace(shape, vision=tower_of(seen_by(config, part)), tower_layers=depth).tower
                for part, depth in of_video_llava(config)
            )
            return replace(shape, counted=(shape.language, shape.projector, towers))
        return shape

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
        """Weights of all linear maps of all layers: what QLoRA quantises. Experts are none."""
        return self.decoder.layers * sum(inputs * outputs for inputs, outputs in linear_maps(self.decoder))

    @property
    def language(self) -> int:
        """Weights of the language model with its head."""
        if self.counted is not None:
            return self.counted[0]
        norms = (2 * self.decoder.layers + 1) * self.decoder.width
        return self.embedding + self.head + self.decoder.layers * self.decoder.layer_parameters + norms

    @property
    def projector(self) -> int:
        """Weights and biases of the projector."""
        if self.counted is not None:
            return self.counted[1]
        inputs, total = tower_of(self.vision).width, 0
        for _ in range(self.projector_layers):
            total += (inputs + 1) * self.decoder.width
            inputs = self.decoder.width
        return total

    @property
    def tower(self) -> int:
        """Weights of the whole CLIP vision model: patch and position embeddings, layers, norms before and after.

        LanguageBind's for videos has more in each layer: attention over time, its norm, and an embedding of time.
        """
        if self.counted is not None:
            return self.counted[2]
        tower = tower_of(self.vision)
        width, mlp = tower.width, tower.mlp
        attention = 4 * (width * width + width)
        layer = attention + 2 * width * mlp + mlp + width + 4 * width
        over_time = attention + 2 * width + tower.clip * width if tower.clip else 0
        embeddings = width + tower.patch_values * width + tower.tokens * width
        return embeddings + self.tower_layers * (layer + over_time) + 4 * width

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


def _projector_layers(config: dict[str, Any], place: str = "config.json") -> int:
    """Linear maps of the projector that a `config.json` names; LLaVA-1.5's two where it names none.

    Raises:
        ValueError: if it names none that LLaVA has.
    """
    kind = need(config, "mm_projector_type", str, place, optional=True) or "mlp2x_gelu"
    deep = re.fullmatch(r"mlp([1-9]\d?)x_gelu", kind)
    if deep is None and kind not in ("linear", "identity"):
        raise ValueError(
            f"mm_projector_type in {place} is {shown(kind)}; it must be linear, identity or mlpNx_gelu such as "
            "mlp2x_gelu."
        )
    return int(deep.group(1)) if deep else int(kind == "linear")
