"""How many weights a LLaVA has, part by part, from its dimensions alone.

The parameter names are those of Llama (no biases), of CLIP's vision model and of LLaVA's projector; the tests compare
every count with the modules themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common.json_files import need, read_object
from llava.compression.schedule import DecoderShape, VisionShape, model_shape


@dataclass(frozen=True)
class ModelShape:
    """A LLaVA's dimensions.

    Attributes:
        name: as given: a known model or a checkpoint folder.
        decoder: of the language model.
        vision: of the tower up to the layer that is used.
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
