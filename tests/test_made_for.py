"""Presets meet the models that they were made for, and are refused by others in every program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from tiny_vlms import FAMILIES, vlm
from transformers import CLIPVisionConfig

from llava import compress
from llava.compression import schedule
from llava.compression.config import CompressionConfig, presets
from llava.compression.made_for import MadeFor
from llava.doctor import __main__ as doctor
from llava.train.arguments import ModelArguments, resolve_compression

# Models as deep as those that presets are made for, and how their `model_type` reads.
DEEP = {"llava": 32, "llava_next": 32, "video_llava": 32, "qwen2_5_vl": 28}
OWN = {"llava": "llava-1.5", "llava_next": "llava-next", "video_llava": "video-llava", "qwen2_5_vl": "qwen2.5-vl"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_of_another_family_is_refused_by_name(family: str):
    """next-640 has the numbers of duet-128; on LLaVA-1.5 it would run, and mean something else."""
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    model = vlm(family, torch.float32, layers=DEEP[family], tower=tower)
    compressed = compress(model, "none")
    refused = set()
    for preset in presets():
        made_for = CompressionConfig.from_preset(preset).made_for
        if made_for is None or OWN[family] in made_for.families:
            continue
        with pytest.raises(ValueError) as error:
            compressed.set_compression(preset)
        too_large, said = "v2v.dominant is" in str(error.value), str(error.value)
        assert too_large or said.startswith(f"The compression {preset} is made for {' or '.join(made_for.families)}")
        assert too_large or f"but this is a {OWN[family]}, and the decoder has {DEEP[family]} layers." in said
        refused |= set() if too_large else {preset}
    assert refused, "a tower with too few tokens is not the only reason"
    with pytest.raises(ValueError, match=rf"The compression {min(refused)} is made for"):
        compress(model, min(refused))


@pytest.mark.parametrize(
    ("family", "preset", "layers"),
    [
        ("llava", "pyramiddrop", 26),
        ("llava", "pyramiddrop", 40),
        ("qwen2_5_vl", "qwen-160", 36),
        ("llava_next", "pyramiddrop", 33),
    ],
)
def test_a_preset_of_another_depth_is_refused(family: str, preset: str, layers: int):
    model = vlm(family, torch.float32, layers=layers)
    with pytest.raises(
        ValueError,
        match=rf"with {DEEP[family]} decoder layers, but this is a .*, and the decoder has {layers} layers\.",
    ):
        compress(model, preset)
    own = CompressionConfig.from_preset(preset).to_dict()
    assert compress(model, own).compression.t2v.layers == tuple(own["t2v"]["layers"]), "explicit layers are the user's"
    fitting = vlm(family, torch.float32, layers=DEEP[family])
    assert compress(fitting, preset).compression.t2v.layers == tuple(own["t2v"]["layers"])


def test_this_projects_model_refuses_them_wherever_a_budget_is_given():
    model = tiny.tiny_llava(layers=32)
    row = tiny.chat(1)
    call = {**tiny.collate([row]), "images": tiny.pixels(1)}
    mine = CompressionConfig(made_for=MadeFor("mine", ("llava-next",), 32))
    with pytest.raises(
        ValueError, match=r"mine is made for llava-next with 32 decoder layers, but this is a llava-1.5"
    ):
        model.set_compression(mine)
    with pytest.raises(ValueError, match=r"mine is made for llava-next"):
        model(**call, compression=mine)
    model.set_compression("pyramiddrop")
    assert model.compression == CompressionConfig.from_preset("pyramiddrop")
    assert model.compression.made_for is None, "a checkpoint's own budget fits the checkpoint"


def test_values_of_ones_own_make_a_preset_ones_own():
    present = CompressionConfig()
    as_it_is = resolve_compression(ModelArguments(compression="duet-192"), present)
    changed = resolve_compression(ModelArguments(compression="duet-192", layer_list="[20,30]"), present)
    with pytest.raises(ValueError, match=r"duet-192 is made for llava-1.5 with 32 decoder layers"):
        as_it_is.check_made_for("llava_llama", 40)
    changed.check_made_for("llava_llama", 40)


def test_a_file_of_ones_own_may_say_what_it_is_for(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("v2v: {dominant: 9, contextual: 2}\n")
    CompressionConfig.from_yaml(path).check_made_for("anything", 3)
    path.write_text("v2v: {dominant: 9, contextual: 2}\nfor: {family: [llava-next, qwen2.5-vl]}\n")
    config = CompressionConfig.from_yaml(path)
    config.check_made_for("qwen2_5_vl", 3)
    with pytest.raises(ValueError, match=r"mine is made for llava-next or qwen2.5-vl, but this is a llava-1.5"):
        config.check_made_for("llava_llama", 32)
    for said, reason in (
        ("llava-1.5", "for is 'llava-1.5'; it must be a mapping"),
        ("{family: llava}", "for.family is 'llava'; it must be one of llava-1.5, "),
        ("{family: llava-1.5, layers: 0}", "for.layers is 0"),
        ("{layers: 32}", "it must be a mapping"),
    ):
        path.write_text(f"for: {said}\n")
        with pytest.raises(ValueError, match=r"mine.yaml: ") as error:
            CompressionConfig.from_yaml(path)
        assert reason in str(error.value)


def test_every_preset_says_what_it_is_for_in_the_line_that_the_recipes_read():
    for name in presets():
        line = CompressionConfig.from_preset(name).made_for
        assert (line is None) == (name == "none")
        assert line is None or line.preset == name


def test_the_schedule_and_the_doctor_refuse_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match=r"next-640 is made for llava-next"):
        schedule.main(["--preset", "duet-192", "next-640"])
    with pytest.raises(SystemExit, match=r"duet-192 is made for llava-1.5 with 32 decoder layers"):
        schedule.main(["--preset", "duet-192", "--model", "llava-1.5-13b"])
    assert capsys.readouterr().out == ""
    schedule.main(["--model", "llava-1.5-13b"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == ["fastv", "none", "visionzip-128", "visionzip-192", "visionzip-64"]
    config = {"model_type": "llava_next", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
    config |= {"intermediate_size": 11008, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    schedule.main(["--preset", "next-640", "--model", str(tmp_path)])
    assert doctor.main(["--compression", "video-136"]) == 2
    assert "video-136 is made for video-llava" in capsys.readouterr().err
