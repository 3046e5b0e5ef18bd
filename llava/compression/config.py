"""Configuration of both stages, V2V and T2V: one frozen object, saved in the checkpoint's `config.json`.

Both readings of the method are options wherever the paper (arXiv 2602.18846) and its released code differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.common.own_scores import own_score, require_choice, require_score
from llava.common.presets import FromFiles, MadeFor, stage_of
from llava.common.presets import presets as presets
from llava.common.shown import shown

V2V_SCORES = ("cls", "received", "random", "uniform")
V2V_CLUSTERS = ("anchored", "neighbours", "uniform")
T2V_SCORES = ("attention", "random", "uniform")
T2V_QUERIES = ("last", "text", "salient")
T2V_POSITIONS = ("renumber", "original")
T2V_SCORED_BY = ("after", "before")
_LARGEST = 2**63 - 1  # of counts and seeds; torch takes no larger ones


def _require_count(field: str, value: object, minimum: int, or_share: bool = False) -> None:
    if or_share and isinstance(value, float) and 0 < value < 1:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        also = " A share of an image's tokens lies between 0 and 1, such as 0.65." if or_share else ""
        raise ValueError(f"{field} is {shown(value)}; it must be a whole number of at least {minimum}.{also}")
    if value > _LARGEST:
        raise ValueError(f"{field} is {shown(value)}; it must be at most {_LARGEST:,}.")


@dataclass(frozen=True)
class V2VConfig:
    """Vision-to-vision merging, after the vision tower (paper section 3.1).

    Attributes:
        dominant: tokens kept as they are. Counts the CLS token where the tower has one (300 = CLS + 299 patches). Below
            1, a share of the tokens that the tower gives for the image: 0.65 of n is int(0.65 n), and at least 1.
        contextual: tokens made by merging what is left, or a share (0.05 of n is int(0.05 n), and at least 1). 0 merges
            nothing; where fewer patches are left than asked for, as many tokens as are left come out.
        cluster_width: pool of `cluster_width * contextual` patches that may be merged (`anchored`), or members
            of each cluster (`neighbours`).
        score: importance of a patch. `cls`: attention that the CLS token pays it, summed over heads (released
            code). `received`: attention that all tokens pay it (Algorithm 1). `random` (one draw a seed, the same
            for every image) and `uniform`: controls. Or one of another package, see `llava.common.own_scores`.
        clusters: `anchored`: every pool patch joins the most similar of evenly ranked anchors (released code).
            `neighbours`: mean of the patches a centroid attends to most (Algorithm 1). `uniform`: anchors evenly
            spaced over all remaining patches, which all join one (VisionZip).
        seed: whole number from which the `random` score draws.
        crop_order: of an image cut into crops (LLaVA-NeXT), where its tokens stand. `crops`: crop by crop. `raster`:
            the whole, the patches of all crops row by row, their CLS, their contextual tokens (released code).
    """

    dominant: int | float
    contextual: int | float
    cluster_width: int = 4
    score: str = "cls"
    clusters: str = "anchored"
    seed: int = 0
    crop_order: str = "crops"

    def __post_init__(self) -> None:
        _require_count("v2v.dominant", self.dominant, 1, or_share=True)
        _require_count("v2v.contextual", self.contextual, 0, or_share=True)
        if self.dominant < 1 and self.contextual < 1 and self.dominant + self.contextual > 1:
            raise ValueError(f"v2v.dominant {self.dominant} and contextual {self.contextual} add up to more than 1.")
        _require_count("v2v.cluster_width", self.cluster_width, 1)
        require_score("v2v", self.score, V2V_SCORES)
        require_choice("v2v.clusters", self.clusters, V2V_CLUSTERS)
        _require_count("v2v.seed", self.seed, 0)
        require_choice("v2v.crop_order", self.crop_order, ("crops", "raster"))

    @property
    def needs_attention_map(self) -> bool:
        """Whether the tower must give the whole attention map of the scored layer, not only its CLS row."""
        if self.score == "received" or (self.clusters == "neighbours" and self.contextual > 0):
            return True
        own = None if self.score in V2V_SCORES else own_score("v2v", self.score, V2V_SCORES)
        return bool(getattr(own, "needs_attention_map", False))

    def counts(self, num_tokens: int) -> tuple[int, int]:
        """Dominant and contextual tokens asked for where `num_tokens` (patches, plus CLS where there is one) enter V2V.

        Shares are floored, with at least one token each (released code), and contextual ones end with the patches.
        """
        dominant = int(self.dominant) or max(int(self.dominant * num_tokens), 1)
        if isinstance(self.contextual, int):
            return dominant, self.contextual
        return dominant, min(max(int(self.contextual * num_tokens), 1), max(num_tokens - dominant, 0))

    def token_count(self, num_tokens: int) -> int:
        """Tokens that leave V2V when `num_tokens` enter it.

        Raises:
            ValueError: if more dominant tokens are asked for than there are.
        """
        dominant, contextual = self.counts(num_tokens)
        if dominant > num_tokens:
            raise ValueError(
                f"v2v.dominant is {self.dominant}, but the vision tower gives {num_tokens} tokens (CLS included); "
                f"choose at most {num_tokens}."
            )
        return min(dominant + contextual, num_tokens)


@dataclass(frozen=True)
class T2VConfig:
    """Text-to-vision dropping, between decoder layers (paper section 3.2).

    Attributes:
        layers: after how many decoder layers each drop happens, rising: (16, 24) drops before the 17th and the
            25th layer.
        keep: share of the visual tokens that entered the decoder (not of what is left) alive after each drop.
        queries: the text tokens that vote. `last`: the last instruction token before each answer (variant C).
            `text`: every instruction token after the first image (C+all). `salient`: the salient ones of
            these and the last (C+S).
        score: `attention`, the controls `random` (one draw a seed, the same for every sample) and `uniform`, or one of
            another package, see `llava.common.own_scores`.
        positions: `renumber` closes the gaps after a drop (published behaviour); `original` leaves survivors
            where they were.
        seed: whole number from which the `random` score draws.
        scored_by: the layer whose attention ranks, by its queries and keys. `after`: the first layer behind the drop,
            on the hidden states that it would get (PyramidDrop and DUET as released). `before`: the last layer in
            front of the drop, on the hidden states that it got, so its own attention weights (FastV as released).
            The controls look at no layer.
    """

    layers: tuple[int, ...]
    keep: tuple[float, ...]
    queries: str = "last"
    score: str = "attention"
    positions: str = "renumber"
    seed: int = 0
    scored_by: str = "after"

    def __post_init__(self) -> None:
        for field in ("layers", "keep"):
            value = getattr(self, field)
            if isinstance(value, str) or not hasattr(value, "__iter__"):
                raise ValueError(f"t2v.{field} is {shown(value)}; it must be a list, such as [16, 24] or [0.5, 0.0].")
            object.__setattr__(self, field, tuple(value))
        self._check_layers()
        self._check_keep()
        require_choice("t2v.queries", self.queries, T2V_QUERIES)
        require_score("t2v", self.score, T2V_SCORES)
        require_choice("t2v.positions", self.positions, T2V_POSITIONS)
        _require_count("t2v.seed", self.seed, 0)
        require_choice("t2v.scored_by", self.scored_by, T2V_SCORED_BY)

    def _check_layers(self) -> None:
        for layer in self.layers:
            _require_count("an entry of t2v.layers", layer, 1)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"t2v.layers is {shown(list(self.layers))}; it must hold rising layer numbers, each once.")

    def _check_keep(self) -> None:
        if len(self.keep) != len(self.layers):
            raise ValueError(
                f"t2v.keep has {len(self.keep)} entries and t2v.layers {len(self.layers)}; give one share a layer."
            )
        for share in self.keep:
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"t2v.keep holds {shown(share)}; each share must be a number from 0 to 1.")
        if list(self.keep) != sorted(self.keep, reverse=True):
            shares = shown(list(self.keep))
            raise ValueError(f"t2v.keep is {shares}; shares must not grow: dropped tokens do not return.")
        object.__setattr__(self, "keep", tuple(float(share) for share in self.keep))

    def check_depth(self, num_layers: int) -> None:
        """Raise ValueError unless every drop is followed by at least one of `num_layers` decoder layers."""
        if self.layers[-1] >= num_layers:
            raise ValueError(
                f"t2v.layers is {shown(list(self.layers))}, but the decoder has {num_layers} layers; a drop must come "
                f"before the last layer, so the largest accepted entry is {num_layers - 1}."
            )

    def kept(self, stage: int, entered: int) -> int:
        """Visual tokens alive after drop `stage` (0-based) when `entered` came into the decoder, floored."""
        return int(entered * self.keep[stage])


@dataclass(frozen=True)
class CompressionConfig(FromFiles):
    """The two stages together; `None` switches a stage off, and without both the model is plain LLaVA.

    Attributes:
        v2v, t2v: the stages.
        made_for: the models that the file was made for, if it says so. It decides nothing, makes no configurations
            differ and is not saved.
    """

    v2v: V2VConfig | None = None
    t2v: T2VConfig | None = None
    made_for: MadeFor | None = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None, preset: str | None = None) -> CompressionConfig:
        """Build from a mapping with the keys `v2v` and `t2v` (either may be missing or None).

        It may say under `for` which models it is made for, as the files of presets do; `preset` names such a file.

        Raises:
            ValueError: for unknown keys, missing ones, or values out of range.
        """
        if data is not None and not isinstance(data, Mapping):
            raise ValueError(f"compression is {shown(data)}; it must be a mapping with the keys v2v and t2v, or null.")
        data = dict(data or {})
        unknown = sorted(set(data) - {"v2v", "t2v", "for"}, key=str)
        if unknown:
            raise ValueError(
                f"Unknown compression key {shown(unknown[0])}; accepted keys are v2v and t2v, and for, which names "
                "models."
            )
        made_for = MadeFor.of(preset, data["for"]) if "for" in data else None
        v2v, t2v = stage_of(V2VConfig, "v2v", data.get("v2v")), stage_of(T2VConfig, "t2v", data.get("t2v"))
        return cls(v2v=v2v, t2v=t2v, made_for=made_for)

    def to_dict(self) -> dict[str, Any]:
        """A mapping of plain JSON values that `from_dict` reads back to an equal object."""

        def plain(stage: V2VConfig | T2VConfig) -> dict[str, Any]:
            return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(stage).items()}

        return {"v2v": self.v2v and plain(self.v2v), "t2v": self.t2v and plain(self.t2v)}
