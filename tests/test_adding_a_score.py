"""Scores from outside this package: registered by name, asked in both stages, saved with a model, refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import PATCHES, chat, collate, images_of, pixels, tiny_llava

from llava.common.own_scores import own_score
from llava.compression import CompressionConfig, V2VConfig, merge_visual_tokens
from llava.model.trace import trace_compression

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
MODULE = next(code for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "def unlike" in code)
"""The example of the document."""
OTHERS = """
def short(patches, cls_attention, received, config): return patches.norm(dim=-1)[:, 1:]
def attended(patches, cls_attention, received, config): return received
attended.needs_attention_map = True
number = 3
"""
OWN = {
    "v2v": {"dominant": 6, "contextual": 2, "cluster_width": 2, "score": "unlike"},
    "t2v": {"layers": [2], "keep": [0.5], "score": "late"},
}


@pytest.fixture(autouse=True)
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A package beside this one, as pip installs it, with the document's scores; adds further entry points."""
    site = tmp_path / "site"
    facts = site / "made_up_scores-1.0.dist-info"
    facts.mkdir(parents=True)
    (site / "made_up_scores.py").write_text(MODULE + OTHERS)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-scores\nVersion: 1.0\n")

    def write(*lines: str) -> None:
        own = (
            "[llava.t2v_scores]",
            "late = made_up_scores:late",
            "[llava.v2v_scores]",
            "unlike = made_up_scores:unlike",
        )
        (facts / "entry_points.txt").write_text("\n".join((*own, *lines, "")))
        own_score.cache_clear()

    write()
    monkeypatch.syspath_prepend(site)
    return write


def test_both_stages_keep_what_scores_of_another_package_rank_first() -> None:
    model, rows = tiny_llava(dtype=torch.float64), [chat(0), chat(1)]
    batch, images = collate(rows), images_of(rows, pixels(2))
    own = CompressionConfig.from_dict(OWN)
    trace = trace_compression(model, batch["input_ids"], images, batch["attention_mask"], compression=own)
    patches = model.get_vision_tower()(torch.cat([image.reshape(1, 3, *image.shape[-2:]) for image in images]))
    for image, kept in zip(patches, trace.merged.plan.dominant, strict=True):
        away = [float((patch - image.mean(dim=0)).norm()) for patch in image]
        assert kept.tolist() == sorted(range(PATCHES), key=lambda n: -away[n])[:5], "CLS is the sixth"
    assert trace.alive[2].tolist() == [[False] * 4 + [True] * 4] * 2, "the latest half of the eight that entered"


def test_a_score_that_looks_at_the_attention_map_gets_it(register: Callable[..., None]) -> None:
    register("attended = made_up_scores:attended")
    model = tiny_llava(dtype=torch.float64)
    own, built_in = (V2VConfig(6, 2, 2, score=score) for score in ("attended", "received"))
    assert own.needs_attention_map and not V2VConfig(6, 2, score="unlike").needs_attention_map
    merged, expected = (model.get_vision_tower().merge(pixels(2), config) for config in (own, built_in))
    assert torch.equal(merged.tokens, expected.tokens)


def test_a_model_carries_the_name_of_the_score(tmp_path: Path) -> None:
    model = tiny_llava(dtype=torch.float32)
    model.set_compression(CompressionConfig.from_dict(OWN))
    model.config.save_pretrained(tmp_path)
    again = type(model.config).from_pretrained(tmp_path)
    assert CompressionConfig.resolve(again.compression) == CompressionConfig.from_dict(OWN)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hue = made_up_scores:hue", "v2v.score 'hue' is made_up_scores:hue, which cannot be imported"),
        ("hue = made_away_scores:hue", "No module named 'made_away_scores'"),
        ("hue = made_up_scores:number", "which must be a function"),
        ("hue = made_up_scores:short\n[llava.t2v_scores]\nhue = made_up_scores:late", "must give [2, 16]"),
        ("other = made_up_scores:short", "v2v.score is 'hue'; it must be one of cls, received, random, uniform, other"),
    ],
)
def test_a_score_that_cannot_be_used_is_refused_by_name(register: Callable[..., None], line: str, said: str) -> None:
    """Never taken for another one."""
    register(line)
    features, cls_attention = torch.randn(2, 17, 4), torch.rand(2, 16)
    with pytest.raises(ValueError, match=re.escape(said)):
        merge_visual_tokens(features, cls_attention, torch.randn(2, 17, 3), V2VConfig(6, 2, score="hue"))
