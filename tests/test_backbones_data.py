"""The training data of every family: order of marks, media that cannot be read, samples that are too long, lengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbones import BUDGET, WRITERS, write_media
from tiny_onevision import write_onevision
from tiny_qwen3 import write_qwen3

from llava.checkpoints.opening import open_model
from llava.constants import IGNORE_INDEX
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families import family_of
from llava.data.images import BadImageError
from llava.data.records import parse_record

FAMILIES: dict[str, Callable[[Path], Path]] = {**WRITERS, "qwen3-vl": write_qwen3, "llava-onevision": write_onevision}
V2V = {**BUDGET, "v2v": {**BUDGET["v2v"], "score": "received"}}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_media(folder)
    (folder / "broken.png").write_bytes(b"nothing")
    (folder / "hollow").mkdir()
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with a budget and its family's inputs, and whether it is trained on videos here."""
    folder = FAMILIES[request.param](tmp_path_factory.mktemp("model") / "model")
    model, processor, tokenizer, _ = open_model(str(folder), device="cpu", compression=V2V)
    family = family_of(model.config)
    inputs = family(model.config, tokenizer, processor, family.template_for(model.config, "llava-v1.5"))
    model.train()
    through_processor = getattr(processor, "video_processor", None) is not None
    return model, inputs, request.param == "video-llava" or through_processor


def record(*turns: str, **files: Any) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]
    return {"id": "r", **files, "conversations": said}


def data_of(opened: Any, media: Path, *records: dict[str, Any], length: int = 4000, policy: str = "skip") -> Any:
    model, inputs, _ = opened
    settings = model.plan_settings()
    config = DataConfig(
        length, None if settings is None else settings.fixed, media, on_bad_sample=policy, settings=settings
    )
    return LazySupervisedDataset([parse_record(one, place) for place, one in enumerate(records)], inputs, config)


def loss_of(opened: Any, *samples: Any) -> Any:
    """Loss of a batch, on its plan."""
    model, inputs, _ = opened
    side = getattr(model.vision_towers()[0].config, "image_size", 0)
    batch = inputs.collator(side, model.plan_settings())(samples)
    given = {name: batch[name] for name in (*inputs.arguments, "plan") if name in batch}
    return model(**given).loss


def test_media_stand_where_they_are_marked_and_a_batch_is_its_samples(opened: Any, media: Path) -> None:
    two = record("A <image> and <image>?", "red three", "Why?", "one seven", image=["0.png", "1.png"])
    same = record("A <image> and <image>?", "red three", "Why?", "one seven", image=["1.png", "0.png"])
    records = [two, same, record("What?", "a blue two")]
    if opened[2]:
        records.append(record("Once <image>, then <video>?", "no", image="0.png", video="clip"))
    data = data_of(opened, media, *records, policy="fail")
    samples = list(data)
    assert [len(sample["images"]) for sample in samples] == [2, 2, 0, 2][: len(records)]
    with torch.no_grad():
        alone = [float(loss_of(opened, sample)) for sample in samples]
        answers = [int((sample["labels"][1:] != IGNORE_INDEX).sum()) for sample in samples]
        together = float(loss_of(opened, *samples))
    assert together == pytest.approx(sum(map(float.__mul__, alone, map(float, answers))) / sum(answers), abs=2e-4)
    assert alone[0] != alone[1], "the order of the pictures matters"
    assert data.has_image.tolist() == [True, True, False, True][: len(records)]
    assert data.lengths[0] > data.lengths[2] + 10 and len(set(data.lengths[:2].tolist())) == 1


def test_videos_that_the_model_is_not_shown_stop_the_run_before_it_starts(opened: Any, media: Path) -> None:
    videos = record("<video>?", "no", video="clip")
    if opened[2]:
        assert len(data_of(opened, media, videos)) == 1
        return
    with pytest.raises(ValueError, match=r"trained on images and text alone|needs torchvision, which is not installed"):
        data_of(opened, media, videos)


def test_a_medium_that_cannot_be_read_leaves_a_sample_that_teaches_nothing(opened: Any, media: Path) -> None:
    bad = [record("<image> or <image>?", "red", image=["0.png", "broken.png"])]
    if opened[2]:
        bad += [record("<video> and <image>?", "no", video=name, image="1.png") for name in ("hollow", "gone.mp4")]
    good = data_of(opened, media, record("<image>?", "red", image="1.png"))[0]
    with torch.no_grad():
        expected = float(loss_of(opened, good))
        for sample in data_of(opened, media, *bad):
            assert sample["problem"] and (sample["labels"] == IGNORE_INDEX).all() and len(sample["images"]) == 2
            assert float(loss_of(opened, good, sample)) == pytest.approx(expected, abs=2e-4)
    for one in range(len(bad)):
        with pytest.raises(BadImageError, match="record 'r'"):
            data_of(opened, media, *bad, policy="fail")[one]


def test_a_sample_is_cut_at_any_length_and_its_media_are_whole_or_gone(opened: Any, media: Path) -> None:
    model, inputs, videos = opened
    shown: dict[str, Any] = {"image": ["0.png", "1.png"]} | ({"video": "clip"} if videos else {})
    long = record(f"<image> one {'<video>' * videos}", "red three", "<image> two", "a blue two", **shown)
    whole = data_of(opened, media, long)[0]
    settings = model.plan_settings()
    full, counts = inputs.length(whole, settings), set()
    for length in range(16, full + 2, max(full // 9, 1)):
        sample = data_of(opened, media, long, length=length)[0]
        columns = {len(sample[name]) for name in ("input_ids", "labels", "query_mask")}
        assert len(columns) == 1 and sample["truncated"] == (len(sample["input_ids"]) < len(whole["input_ids"]))
        assert inputs.length(sample, settings) <= length or settings is None
        counts.add(len(sample["images"]))
        if len(sample["input_ids"]) > 1 and (sample["labels"][1:] != IGNORE_INDEX).any():
            with torch.no_grad():
                assert torch.isfinite(loss_of(opened, sample))
    assert {0, len(whole["images"])} <= counts | {len(whole["images"])}
