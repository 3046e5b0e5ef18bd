"""Presets meet the models that they were made for, and are refused by others in every program."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from tiny_folder import write_model
from tiny_vlms import FAMILIES, vlm
from transformers import CLIPVisionConfig

from llava import compress
from llava.common.presets import MadeFor
from llava.compression import schedule
from llava.compression.config import CompressionConfig, presets
from llava.data.check import command as data_check
from llava.doctor import __main__ as doctor
from llava.doctor import examination
from llava.eval import cost, run
from llava.eval.runner.flags import COMPRESSION_DEFAULTS, budget, compression_name
from llava.eval.runner.from_flags import evaluated_model
from llava.inference.chat import Chat
from llava.model.builder import load_pretrained_model
from llava.train import building
from llava.train.arguments import ModelArguments, parse_arguments, resolve_compression

ROOT = Path(__file__).resolve().parents[1]
# Models as deep as those that presets are made for, and how their `model_type` reads.
DEEP = {
    "llava": 32,
    "llava_next": 32,
    "video_llava": 32,
    "qwen2_5_vl": 28,
    "qwen3_vl": 36,
    "qwen3_vl_moe": 48,
    "llava_onevision": 28,
}
OWN = {
    "llava": "llava-1.5",
    "llava_next": "llava-next",
    "video_llava": "video-llava",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    "llava_onevision": "llava-onevision",
}


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
        depth = "" if made_for.layers in (None, DEEP[family]) else f", and the decoder has {DEEP[family]} layers"
        assert too_large or f", but this is a {OWN[family]}{depth}. Give" in said
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
        match=rf"with {DEEP[family]} decoder layers, but the decoder has {layers} layers\. Give",
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
        ("{family: []}", "for.family is []; it must be one of llava-1.5, "),
        ("{family: [[llava-1.5]]}", "for.family is ['llava-1.5']; it must be one of"),
        ("{family: llava-1.5, layers: 0}", "for.layers is 0"),
        ("{layers: 32}", "it must be a mapping"),
    ):
        path.write_text(f"for: {said}\n")
        with pytest.raises(ValueError, match=r"mine.yaml: ") as error:
            CompressionConfig.from_yaml(path)
        assert reason in str(error.value)


def test_a_preset_read_as_a_mapping_is_the_preset():
    """`resolve(yaml.safe_load(open(preset)))`, as other programs read it."""
    for name in presets():
        config = CompressionConfig.from_preset(name)
        mapping = yaml.safe_load((ROOT / f"configs/compression/{name}.yaml").read_text())
        read = CompressionConfig.resolve(mapping)
        assert read == config and (read.made_for is None) == (config.made_for is None)
        if config.made_for is not None:
            assert (read.made_for.families, read.made_for.layers) == (config.made_for.families, config.made_for.layers)
    mapping = {**CompressionConfig.from_preset("fastv").to_dict(), "for": {"family": "qwen2.5-vl", "layers": 6}}
    with pytest.raises(
        ValueError, match=r"^This compression is made for qwen2.5-vl with 6 decoder layers, but this is"
    ):
        tiny.tiny_llava(layers=6).set_compression(mapping)
    with pytest.raises(ValueError, match=r"^for\.layers is 'six'"):
        CompressionConfig.from_dict({"for": {"family": "llava-1.5", "layers": "six"}})


def test_what_no_budget_is_named_for_takes_those_that_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A model of the programs' own help, and a budget that they chose themselves."""
    record = {"id": "1", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    (tmp_path / "x.json").write_text(json.dumps([record]))
    words = ["--data-path", str(tmp_path / "x.json"), "--images", "skip", "--workers", "0", "--model", "llava-1.5-13b"]
    assert data_check.main(words) == 0
    assert data_check.main([*words, "--compression", "none", "duet-192"]) == 2
    assert "duet-192 is made for llava-1.5 with 32 decoder layers, but the decoder has 40" in capsys.readouterr().err
    monkeypatch.setattr(examination, "try_imports", lambda: examination.Imports({}, {}))  # takes seconds
    doctor.main(["--model", "llava-1.5-13b", "--devices", "8", "--device-memory", "80"])
    captured = capsys.readouterr()
    assert "COMPRESSION=none" in captured.out and not captured.err
    assert doctor.main(["--model", "llava-1.5-13b", "--compression", "duet-192"]) == 2
    measured = []
    monkeypatch.setattr(cost, "_model", lambda options: pytest.fail("the model was made"))
    thirteen = ["--model-path", "llava-1.5-13b", "--random-weights"]
    assert cost.main([*thirteen, "--compression", "none,duet-192"]) == 2
    assert "Budget 'duet-192' does not fit this model" in capsys.readouterr().err
    monkeypatch.setattr(cost, "_model", lambda options: None)
    monkeypatch.setattr(cost, "measure", lambda model, budgets, *rest: measured.append(list(budgets)) or 1 / 0)
    for name in ("llava-1.5-7b", "llava-1.5-13b"):
        with pytest.raises(ZeroDivisionError):
            cost.main(["--model-path", name, "--random-weights"])
    assert measured == [["none", "duet-192", "duet-128", "duet-64"], ["none"]]


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
    v2v_alone = [f"{method}-{tokens}" for method in ("duet-v2v", "visionzip") for tokens in (128, 192, 64)]
    assert listed == sorted(["fastv", "none", *v2v_alone])
    config = {"model_type": "llava_next", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
    config |= {"intermediate_size": 11008, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    schedule.main(["--preset", "next-640", "--model", str(tmp_path)])
    assert doctor.main(["--compression", "video-136"]) == 2
    assert "video-136 is made for video-llava" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-1.5 of 32 layers whose tower gives 65 tokens, so that all but its family fits video-136."""
    vision = tiny.tower_config().to_dict() | {"image_size": 112}
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny", layers=32, mm_vision_config=vision)


REFUSED = r"The compression video-136 is made for video-llava with 32 decoder layers, but this is a llava-1\.5"


def test_the_evaluation_refuses_them_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--model-path", str(folder), "--device", "cpu", "--compression"]
    with pytest.raises(ValueError, match=REFUSED):
        evaluated_model(run.parse([*words, "video-136"]))
    assert evaluated_model(run.parse([*words, "fastv"])).compression_name == "fastv"
    assert evaluated_model(run.parse([*words, "duet-192", "--dominant", "9"])).compression.v2v.dominant == 9
    shares = evaluated_model(run.parse([*words, "none", "--dominant", "0.65", "--context_num", "0.05"]))
    assert (shares.compression.v2v.dominant, shares.compression.v2v.contextual) == (0.65, 0.05)
    assert run.main([*words, "video-136", "--benchmarks", "pope"]) == 2
    assert "The compression video-136 is made for video-llava" in capsys.readouterr().err


def test_loading_chat_generation_and_cost_refuse_them(folder: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer, model, image_processor, _ = load_pretrained_model(str(folder), device="cpu")
    chat = Chat(model, tokenizer, image_processor, "v1")
    ids, image = torch.tensor([[1, -200, 5]]), torch.zeros(1, 3, 112, 112)
    for use in (
        chat.set_compression,
        lambda name: load_pretrained_model(str(folder), device="cpu", compression=name),
        lambda name: model.generate(ids, images=image, compression=name),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            use("video-136")
    assert cost.main(["--model-path", str(folder), "--device", "cpu", "--compression", "none,video-136"]) == 2
    assert "The compression video-136 is made for video-llava" in capsys.readouterr().err
    assert model.generate(ids, images=image, compression="pyramiddrop", max_new_tokens=1).shape == (1, 1)


def test_training_refuses_them_before_it_reads_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "_open", lambda *args: pytest.fail("the weights were read"))
    for words, reason in ((["--compression", "video-136"], REFUSED), (["--compression", "none"], None)):
        flags = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path), "--use_cpu", "True", *words]
        parsed = parse_arguments([*flags, "--data_path", "x.json", "--bf16", "False"])
        tokenizer = building.load_tokenizer(parsed[0], parsed[2])
        if reason is None:
            with pytest.raises(pytest.fail.Exception, match="the weights were read"):
                building.load_model(*parsed, tokenizer)
        else:
            with pytest.raises(ValueError, match=reason):
                building.load_model(*parsed, tokenizer)


def test_a_preset_is_scaled_to_another_depth_in_proportion():
    """In exact fractions: the drop stands at the same part of the way through the decoder, and the same shares stay."""
    for name, depth in [("duet-192", 40), ("pyramiddrop", 26), ("qwen-160", 36), ("duet-64", 3 * 32), ("next-320", 7)]:
        made = CompressionConfig.from_preset(name)
        scaled = made.scaled_to(depth)
        assert made.t2v and scaled.t2v and made.made_for and scaled.made_for
        exact = [Fraction(layer * depth, made.made_for.layers) for layer in made.t2v.layers]
        assert all(abs(layer - place) <= Fraction(1, 2) for layer, place in zip(scaled.t2v.layers, exact, strict=True))
        assert scaled.v2v == made.v2v and dataclasses.replace(scaled.t2v, layers=made.t2v.layers) == made.t2v
        assert scaled.made_for == dataclasses.replace(made.made_for, layers=depth)
        assert scaled.scaled_to(depth) is scaled
    fastv = CompressionConfig.from_preset("fastv")
    assert fastv.scaled_to(40) is fastv and CompressionConfig().scaled_to(40) == CompressionConfig()
    with pytest.raises(ValueError, match=r"\[16, 24\] of 32 become \[1, 2\] of 2: so few layers"):
        CompressionConfig.from_preset("duet-192").scaled_to(2)
    with pytest.raises(ValueError, match=r"Layers \[16, 24\] cannot be scaled .* nothing says for which depth"):
        CompressionConfig.from_dict(CompressionConfig.from_preset("duet-192").to_dict()).scaled_to(40)


def test_the_schedule_says_what_a_preset_does_at_another_depth(capsys: pytest.CaptureFixture[str]):
    words = ["--preset", "duet-192", "--model", "llava-1.5-13b"]
    with pytest.raises(SystemExit, match=r"the decoder has 40 layers") as error:
        schedule.main(words)
    layers = [307] * 16 + [153] * 8 + [0] * 16
    assert f"{sum(layers) / 40:.2f} of 307" in str(error.value), "what the unscaled preset would average"
    layers = [307] * 20 + [153] * 10 + [0] * 10
    assert f"--scale-to-depth [20, 30] and {sum(layers) / 40:.2f} of 307" in str(error.value)
    schedule.main([*words, "--scale-to-depth"])
    printed = capsys.readouterr().out
    assert f"{sum(layers) / 40:.2f}" in printed and "0-19: 307, 20-29: 153, 30-39: 0" in printed
    with pytest.raises(SystemExit, match=r"this is a llava-1.5, and the decoder has 40 layers") as error:
        schedule.main(["--preset", "next-640", "--model", "llava-1.5-13b"])
    assert "--scale-to-depth" not in str(error.value), "scaling layers does not make it fit another family"


def test_flags_scale_a_preset_and_say_what_comes_out(caplog: pytest.LogCaptureFixture):
    for words, reason in (
        ([], "no --compression is given"),
        (["--compression", "duet-192", "--layer_list", "[20,30]"], "--layer_list names them already"),
    ):
        options = run.parse(["--model-path", "x", "--scale-to-depth", *words])
        with pytest.raises(ValueError, match=reason):
            budget(options, CompressionConfig(), 40)
    flags = ["--compression", "duet-192", "--scale-to-depth", "--model_name_or_path", "x", "--output_dir", "y"]
    model_args, *_ = parse_arguments([*flags, "--data_path", "x.json", "--bf16", "False", "--use_cpu", "True"])
    scaled = resolve_compression(model_args, CompressionConfig(), 40)
    assert scaled.t2v and scaled.t2v.layers == (20, 30)
    assert "drops after [20, 30] of 40 instead of [16, 24]; a layer sees 191.75 of 307" in caplog.text
    scaled.check_made_for("llava_llama", 40)
    with pytest.raises(ValueError, match=r"is made for llava-1.5 with 40 decoder layers"):
        scaled.check_made_for("llava_llama", 32)
    options = run.parse(["--model-path", "x", "--scale-to-depth", "--compression", "duet-192"])
    assert compression_name(options, budget(options, CompressionConfig(), 40)) == "duet-192-40-layers"


def test_the_native_tree_tells_its_three_families_apart():
    """next-640 has duet-128's numbers, and all three have the `model_type` of LLaVA's own format."""
    duet, zoomed, film = (CompressionConfig.from_preset(name) for name in ("duet-128", "next-640", "video-960"))
    assert dataclasses.replace(zoomed, v2v=dataclasses.replace(zoomed.v2v, crop_order="crops")) == duet
    own = SimpleNamespace(model_type="llava_llama", image_aspect_ratio="pad")
    crops = SimpleNamespace(model_type="llava_llama", image_aspect_ratio="anyres_max_9")
    frames = {"model_type": "llava_llama", "image_aspect_ratio": "pad", "mm_video_tower": "x"}
    for model, fitting, others in ((own, duet, (zoomed, film)), (crops, zoomed, (duet, film)), (frames, film, (duet,))):
        fitting.check_made_for(model, 32)
        for other in others:
            with pytest.raises(ValueError, match=r"is made for"):
                other.check_made_for(model, 32)
    options = SimpleNamespace(**COMPRESSION_DEFAULTS)
    assert compression_name(options, zoomed, crops) == "next-640", "not duet-128, which has the same numbers"
    assert compression_name(options, duet, own) == "duet-128"
