"""Configuration of both stages, V2V and T2V: one frozen object, saved in the checkpoint's `config.json`.

Both readings of the method are options wherever the paper (arXiv 2602.18846) and its released code differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.common.own_scores import own_score, unknown_choice
from llava.common.presets import FromFiles, MadeFor
from llava.common.presets import presets as presets
from llava.common.shown import shown

V2V_SCORES = ("cls", "received", "random", "uniform")
V2V_CLUSTERS = ("anchored", "neighbours", "uniform")
T2V_SCORES = ("attention", "random", "uniform")
T2V_QUERIES = ("last", "text", "salient")
T2V_POSITIONS = ("renumber", "original")
T2V_SCORED_BY = ("after", "before")
_LARGEST = 2**63 - 1  # of counts and seeds; torch takes no larger ones


def _require_choice(field: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise unknown_choice(field, value, accepted)


def _require_score(stage: str, score: object, built_in: tuple[str, ...]) -> None:
    if not isinstance(score, str):
        raise unknown_choice(f"{stage}.score", score, built_in)
    if score not in built_in:
        own_score(stage, score, built_in)


def _require_count(field: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{field} is {shown(value)}; it must be a whole number of at least {minimum}.")
    if value > _LARGEST:
        raise ValueError(f"{field} is {shown(value)}; it must be at most {_LARGEST:,}.")


@dataclass(frozen=True)
class V2VConfig:
    """Vision-to-vision merging, after the vision tower (paper section 3.1).

    Attributes:
        dominant: tokens kept as they are. Counts the CLS token where the tower has one (300 = CLS + 299 patches).
        contextual: tokens made by merging what is left. 0 merges nothing; where fewer patches are left than
            asked for, as many tokens as are left come out.
        cluster_width: pool of `cluster_width * contextual` patches that may be merged (`anchored`), or members
            of each cluster (`neighbours`).
        score: importance of a patch. `cls`: attention that the CLS token pays it, summed over heads (released
            code). `received`: attention that all tokens pay it (Algorithm 1). `random` (one draw a seed, the same
            for every image) and `uniform`: controls. Or one of another package, see `llava.common.own_scores`.
        clusters: `anchored`: every pool patch joins the most similar of evenly ranked anchors (released code).
            `neighbours`: mean of the patches a centroid attends to most (Algorithm 1). `uniform`: anchors evenly
            spaced over all remaining patches, which all join one (VisionZip).
        seed: whole number from which the `random` score draws.
    """

    dominant: int
    contextual: int
    cluster_width: int = 4
    score: str = "cls"
    clusters: str = "anchored"
    seed: int = 0

    def __post_init__(self) -> None:
        _require_count("v2v.dominant", self.dominant, 1)
        _require_count("v2v.contextual", self.contextual, 0)
        _require_count("v2v.cluster_width", self.cluster_width, 1)
        _require_score("v2v", self.score, V2V_SCORES)
        _require_choice("v2v.clusters", self.clusters, V2V_CLUSTERS)
        _require_count("v2v.seed", self.seed, 0)

    @property
    def needs_attention_map(self) -> bool:
        """Whether the tower must give the whole attention map of the scored layer, not only its CLS row."""
        if self.score == "received" or (self.clusters == "neighbours" and self.contextual > 0):
            return True
        own = None if self.score in V2V_SCORES else own_score("v2v", self.score, V2V_SCORES)
        return bool(getattr(own, "needs_attention_map", False))

    def token_count(self, num_tokens: int) -> int:
        """Tokens that leave V2V when `num_tokens` (patches, plus CLS where there is one) enter it.

        Raises:
            ValueError: if more dominant tokens are asked for than there are.
        """
        if self.dominant > num_tokens:
            raise ValueError(
                f"v2v.dominant is {self.dominant}, but the vision tower gives {num_tokens} tokens (CLS included); "
                f"choose at most {num_tokens}."
            )
        return min(self.dominant + self.contextual, num_tokens)


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
        _require_choice("t2v.queries", self.queries, T2V_QUERIES)
        _require_score("t2v", self.score, T2V_SCORES)
        _require_choice("t2v.positions", self.positions, T2V_POSITIONS)
        _require_count("t2v.seed", self.seed, 0)
        _require_choice("t2v.scored_by", self.scored_by, T2V_SCORED_BY)

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
        if any(later > earlier for earlier, later in zip(self.keep, self.keep[1:], strict=False)):
            raise ValueError(
                f"t2v.keep is {shown(list(self.keep))}; shares must not grow: dropped tokens do not return."
            )
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
        v2v, t2v = _build(V2VConfig, "v2v", data.get("v2v")), _build(T2VConfig, "t2v", data.get("t2v"))
        return cls(v2v=v2v, t2v=t2v, made_for=made_for)

    def to_dict(self) -> dict[str, Any]:
        """A mapping of plain JSON values that `from_dict` reads back to an equal object."""

        def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}

        stages = {"v2v": self.v2v, "t2v": self.t2v}
        return {name: stage and dataclasses.asdict(stage, dict_factory=plain) for name, stage in stages.items()}


def _build(kind: Any, name: str, data: Any) -> Any:
    if data is None or isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} must be a mapping or null, not {shown(data)}.")
    fields = dataclasses.fields(kind)
    accepted = [field.name for field in fields]
    unknown = sorted(set(data) - set(accepted), key=str)
    if unknown:
        key = shown(unknown[0])[1:-1] if isinstance(unknown[0], str) else shown(unknown[0])
        raise ValueError(f"Unknown key {name}.{key}; accepted keys are {', '.join(accepted)}.")
    missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in data]
    if missing:
        raise ValueError(f"{name}.{missing[0]} is missing; {name} needs it.")
    return kind(**data)
