"""Configuration, presets and the arithmetic of cost, against numbers counted or published elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from tiny import chat, collate, pixels, tiny_llava
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava.compression import CompressionConfig, T2VConfig, V2VConfig, presets
from llava.cost import overview
from llava.cost.flops import (
    average_visual_tokens,
    describe,
    kv_bytes,
    prefill_flops,
    tokens_per_layer,
    training_flops,
    visual_tokens_per_layer,
)
from llava.cost.shapes import CLIP_L_336, MODELS, DecoderShape, VisionShape
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.staged_cache import key_value_bytes

# ----------------------------------------------------------------------------------------------------- validation

GOOD = {"v2v": {"dominant": 3, "contextual": 1}, "t2v": {"layers": [1], "keep": [0.5]}}


@pytest.mark.parametrize(
    ("stage", "change", "sentence"),
    [
        ("v2v", {"dominant": 0}, "v2v.dominant is 0; it must be a whole number of at least 1."),
        ("v2v", {"dominant": 2.0}, "v2v.dominant is 2.0; it must be a whole number of at least 1."),
        ("v2v", {"dominant": True}, "v2v.dominant is True; it must be a whole number of at least 1."),
        ("v2v", {"contextual": -1}, "v2v.contextual is -1; it must be a whole number of at least 0."),
        ("v2v", {"contextual": 0.0}, "v2v.contextual is 0.0; it must be a whole number of at least 0. A share of an"),
        ("v2v", {"dominant": 1.0}, "A share of an image's tokens lies between 0 and 1, such as 0.65."),
        ("v2v", {"dominant": -0.5}, "A share of an image's tokens lies between 0 and 1, such as 0.65."),
        ("v2v", {"dominant": float("nan")}, "A share of an image's tokens lies between 0 and 1, such as 0.65."),
        ("v2v", {"dominant": "0.65"}, "v2v.dominant is '0.65'; it must be a whole number of at least 1. A share"),
        ("v2v", {"dominant": 0.9, "contextual": 0.2}, "v2v.dominant 0.9 and contextual 0.2 add up to more than 1."),
        ("v2v", {"cluster_width": 0.5}, "v2v.cluster_width is 0.5; it must be a whole number of at least 1."),
        ("v2v", {"cluster_width": 0}, "v2v.cluster_width is 0; it must be a whole number of at least 1."),
        ("v2v", {"score": "best"}, "v2v.score is 'best'; it must be one of cls, received, random, uniform."),
        ("v2v", {"clusters": "k"}, "v2v.clusters is 'k'; it must be one of anchored, neighbours, uniform."),
        ("v2v", {"seed": -1}, "v2v.seed is -1; it must be a whole number of at least 0."),
        ("v2v", {"dominat": 1}, "Unknown key v2v.dominat; accepted keys are dominant, contextual, cluster_width,"),
        ("t2v", {"layers": 16}, "t2v.layers is 16; it must be a list, such as [16, 24] or [0.5, 0.0]."),
        ("t2v", {"layers": "[1]"}, "t2v.layers is '[1]'; it must be a list, such as [16, 24] or [0.5, 0.0]."),
        ("t2v", {"keep": None}, "t2v.keep is None; it must be a list, such as [16, 24] or [0.5, 0.0]."),
        ("t2v", {"layers": [0]}, "an entry of t2v.layers is 0; it must be a whole number of at least 1."),
        ("t2v", {"layers": []}, "t2v.layers is []; it must hold rising layer numbers, each once."),
        ("t2v", {"layers": [5, 3], "keep": [0.5, 0.5]}, "t2v.layers is [5, 3]; it must hold rising layer numbers"),
        ("t2v", {"layers": [3, 3], "keep": [0.5, 0.5]}, "t2v.layers is [3, 3]; it must hold rising layer numbers"),
        ("t2v", {"keep": [0.5, 0.5]}, "t2v.keep has 2 entries and t2v.layers 1; give one share a layer."),
        ("t2v", {"keep": [1.5]}, "t2v.keep holds 1.5; each share must be a number from 0 to 1."),
        ("t2v", {"keep": [-0.1]}, "t2v.keep holds -0.1; each share must be a number from 0 to 1."),
        ("t2v", {"keep": [float("nan")]}, "t2v.keep holds nan; each share must be a number from 0 to 1."),
        ("t2v", {"keep": ["0.5"]}, "t2v.keep holds '0.5'; each share must be a number from 0 to 1."),
        ("t2v", {"layers": [1, 2], "keep": [0.3, 0.5]}, "shares must not grow: dropped tokens do not return."),
        ("t2v", {"queries": "all"}, "t2v.queries is 'all'; it must be one of last, text, salient."),
        ("t2v", {"score": "cls"}, "t2v.score is 'cls'; it must be one of attention, random, uniform."),
        ("t2v", {"positions": "kept"}, "t2v.positions is 'kept'; it must be one of renumber, original."),
        ("t2v", {"scored_by": "both"}, "t2v.scored_by is 'both'; it must be one of after, before."),
        ("t2v", {"scored_by": None}, "t2v.scored_by is None; it must be one of after, before."),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(stage: str, change: dict, sentence: str):
    with pytest.raises(ValueError) as error:
        CompressionConfig.from_dict(GOOD | {stage: GOOD[stage] | change})
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"v3v": {}}, "Unknown compression key 'v3v'; accepted keys are v2v and t2v, and for, which names models."),
        ({"v2v": {"contextual": 1}}, "v2v.dominant is missing; v2v needs it."),
        ({"t2v": {"layers": [1]}}, "t2v.keep is missing; t2v needs it."),
        ("duet-192", "compression is 'duet-192'; it must be a mapping with the keys v2v and t2v, or null."),
        ({"v2v": 5}, "v2v must be a mapping or null, not 5."),
    ],
)
def test_a_wrong_mapping_is_an_error_that_says_so(data: dict, sentence: str):
    with pytest.raises(ValueError) as error:
        CompressionConfig.from_dict(data)
    assert sentence in str(error.value)


def test_wrong_names_and_files_are_errors_that_say_so(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"no compression preset 'duet-191'; accepted names are duet-128, duet-128-all, "
    ):
        CompressionConfig.resolve("duet-191")
    with pytest.raises(ValueError, match="There is no compression file"):
        CompressionConfig.resolve(tmp_path / "none.yaml")
    for text, sentence in (("- 1", "must hold a mapping"), ("v2v: {", "is not valid YAML"), ("v2v: {a: 1}", "v2v.a")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=sentence) as error:
            CompressionConfig.from_yaml(tmp_path / "bad.yaml")
        assert "bad.yaml" in str(error.value), "the file is named"


def test_a_drop_must_come_before_the_last_layer():
    config = T2VConfig(layers=[2, 6], keep=[0.5, 0.1])
    config.check_depth(7)
    with pytest.raises(ValueError, match=r"the decoder has 6 layers.*the largest accepted entry is 5"):
        config.check_depth(6)


def test_configurations_cannot_be_changed():
    with pytest.raises(AttributeError):
        CompressionConfig().v2v = V2VConfig(1, 1)
    assert isinstance(T2VConfig(layers=[1], keep=[1]).keep, tuple)
    assert len({CompressionConfig.from_dict(GOOD), CompressionConfig.from_dict(GOOD)}) == 1


# ----------------------------------------------------------------------------------------------------- round trips

EVERYTHING = CompressionConfig(
    V2VConfig(5, 3, 2, score="received", clusters="neighbours", seed=4),
    T2VConfig((1, 4), (0.5, 0.0), queries="salient", score="random", positions="original", seed=9, scored_by="before"),
)


def test_round_trips_through_dict_json_yaml_and_resolve(tmp_path: Path):
    for config in (EVERYTHING, CompressionConfig(), *map(CompressionConfig.from_preset, presets())):
        plain = json.loads(json.dumps(config.to_dict()))
        assert CompressionConfig.from_dict(plain) == config
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(plain))
        assert CompressionConfig.from_yaml(path) == config
        for source in (config, plain, path, str(path)):
            assert CompressionConfig.resolve(source) == config
    assert CompressionConfig.resolve(None) == CompressionConfig.from_dict({}) == CompressionConfig()


def test_a_configuration_from_before_scored_by_existed_means_what_it_meant():
    old = {name: value for name, value in T2VConfig((2,), (0.5,)).__dict__.items() if name != "scored_by"}
    assert CompressionConfig.from_dict({"t2v": old}).t2v == T2VConfig((2,), (0.5,), scored_by="after")
    assert T2VConfig((2,), (0.5,)) != T2VConfig((2,), (0.5,), scored_by="before")


def test_round_trip_through_a_checkpoint(tmp_path: Path):
    model = tiny_llava(compression=EVERYTHING.to_dict(), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["compression"] == EVERYTHING.to_dict()
    assert LlavaLlamaForCausalLM.from_pretrained(tmp_path).compression == EVERYTHING
    assert LlavaConfig.from_pretrained(tmp_path).compression == EVERYTHING.to_dict()


# --------------------------------------------------------------------------------------------------------- presets

STAIRS = {  # tokens of the first layer, last layer, and average, from the papers' tables
    "none": (576, 576, 576),
    "duet-192": (307, 0, 191.75),
    "duet-128": (205, 0, 128.00),
    "duet-64": (102, 0, 63.75),
    "random-192": (307, 0, 191.75),
    "random-128": (205, 0, 128.00),
    "random-64": (102, 0, 63.75),
    "uniform-192": (307, 0, 191.75),
    "uniform-128": (205, 0, 128.00),
    "uniform-64": (102, 0, 63.75),
    "visionzip-192": (192, 192, 192),
    "duet-v2v-192": (192, 192, 192),
    "duet-v2v-128": (128, 128, 128),
    "duet-v2v-64": (64, 64, 64),
    "visionzip-128": (128, 128, 128),
    "visionzip-64": (64, 64, 64),
    "pyramiddrop": (576, 72, 270),
    "fastv": (576, 288, 306),
    "next-640": (205, 0, 640 / 5),  # of one of five crops (Table 13: 640.5, 318.75 and 159.25 over all of them)
    "next-320": (102, 0, 318.75 / 5),
    "next-160": (51, 0, (51 * 16 + 25 * 8) / 32),
    "video-960": (192, 0, 960 / 8),  # of one of eight frames
    "video-136": (27, 0, (27 * 16 + 13 * 8) / 32),
    "visionzip-next-640": (640 / 5, 640 / 5, 640 / 5),  # of one of five crops
    "visionzip-next-320": (320 / 5, 320 / 5, 320 / 5),
    "visionzip-next-160": (160 / 5, 160 / 5, 160 / 5),
}
VOTED = [
    *(f"duet-{budget}" for budget in (192, 128, 64)),
    *(f"next-{budget}" for budget in (640, 320, 160)),
    "pyramiddrop",
]
"""Presets that there are three of: for the last token, all instruction tokens, and the salient ones."""
STAIRS |= {f"{name}-{voters}": STAIRS[name] for name in VOTED for voters in ("all", "salient")}
QWEN_SHARES = ("qwen-share-70", "visionzip-qwen-share-70")
OTHER_SHARES = [f"{family}-share-{share}" for family in ("onevision", "qwen3") for share in (35, 70)]
QWEN = {"qwen-640": (1023, 255), "qwen-320": (608, 152), "qwen-160": (243, 60)}  # first and last layer, large image


@pytest.mark.parametrize("name", STAIRS)
def test_presets_meet_their_budgets(name: str):
    tokens = visual_tokens_per_layer(CompressionConfig.from_preset(name), 32)
    assert (tokens[0], tokens[-1], average_visual_tokens(tokens)) == STAIRS[name]


def test_every_preset_is_tested():
    assert sorted([*STAIRS, *QWEN, "visionzip-qwen-640", *QWEN_SHARES, *OTHER_SHARES]) == presets()


@pytest.mark.parametrize("name", OTHER_SHARES)
def test_presets_of_shares_are_what_their_names_say(name: str):
    config = CompressionConfig.from_preset(name)
    share, layers = int(name[-2:]), config.made_for.layers
    assert sum(config.v2v.counts(1000)) == 10 * share
    assert config.t2v.layers == (layers // 2, layers * 3 // 4) and config.t2v.keep == (0.5, 0.25)


@pytest.mark.parametrize("name", QWEN_SHARES)
def test_presets_of_shares_keep_the_released_part_of_an_image_of_any_size(name: str):
    config = CompressionConfig.from_preset(name)
    assert {n: config.v2v.counts(n) for n in (1, 4, 100, 1296, 16384)} == {
        1: (1, 0),
        4: (2, 1),
        100: (65, 5),
        1296: (842, 64),
        16384: (10649, 819),
    }


@pytest.mark.parametrize("name", QWEN)
def test_presets_of_qwen_meet_their_caps(name: str):
    config = CompressionConfig.from_preset(name)
    tokens = tokens_per_layer(config.t2v, config.v2v.token_count(10_000), 28)
    assert (tokens[0], tokens[-1]) == QWEN[name] and tokens.count(tokens[0]) == 14


def test_visionzip_on_qwen_has_the_split_of_the_released_scripts():
    config = CompressionConfig.from_preset("visionzip-qwen-640")
    assert config == CompressionConfig(V2VConfig(540, 100, score="received", clusters="uniform"))
    assert tokens_per_layer(config.t2v, config.v2v.token_count(10_000), 28) == (640,) * 28


@pytest.mark.parametrize("name", VOTED)
def test_presets_of_other_voters_differ_in_nothing_else(name: str):
    last = CompressionConfig.from_preset(name)
    for voters, queries in (("all", "text"), ("salient", "salient")):
        other = CompressionConfig.from_preset(f"{name}-{voters}")
        assert other == replace(last, t2v=replace(last.t2v, queries=queries)) != last


def test_presets_of_other_backbones_are_left_out_where_they_do_not_fit():
    listed = [line.split()[0] for line in schedule().stdout.splitlines()[1:]]
    others = ("next-", "visionzip-next-", "visionzip-qwen-", "video-", "qwen-", "qwen3-", "onevision-")
    assert set(listed) == {name for name in presets() if not name.startswith(others)}
    assert "duet-192" in listed and "pyramiddrop" in listed and "fastv" in listed and "visionzip-64" in listed


def test_presets_hold_the_published_settings():
    duet = CompressionConfig.from_preset("duet-192")
    assert duet == CompressionConfig(V2VConfig(300, 7, 4), T2VConfig((16, 24), (0.5, 0.0), queries="last"))
    assert CompressionConfig.from_preset("duet-128").v2v == V2VConfig(170, 35, 4)
    assert CompressionConfig.from_preset("duet-64").v2v == V2VConfig(72, 30, 4)
    assert CompressionConfig.from_preset("visionzip-64").v2v == V2VConfig(54, 10, clusters="uniform")
    assert CompressionConfig.from_preset("pyramiddrop").t2v == T2VConfig((8, 16, 24), (0.5, 0.25, 0.125))


# ------------------------------------------------------------------------------------------------------------ cost


def test_training_flops_equal_the_published_arithmetic():
    """Llama-2-7B, 200 text tokens, full checkpointing: 41.9 TF dense, 21.1 / 17.7 / 14.3 TF at 192 / 128 / 64."""
    shape = MODELS["llava-1.5-7b"]
    for name, expected in (("none", 41.9), ("duet-192", 21.1), ("duet-128", 17.7), ("duet-64", 14.3)):
        tokens = visual_tokens_per_layer(CompressionConfig.from_preset(name), 32)
        assert training_flops(tokens, 200, shape) / 1e12 == pytest.approx(expected, abs=0.1)
    dense = training_flops((576,) * 32, 25, shape, passes=3)
    assert dense / 1e12 == pytest.approx(24.4, abs=0.2), "pre-training with a frozen language model"
    assert training_flops((576,) * 32, 200, shape, passes=3) / 1e12 == pytest.approx(31.7, abs=0.1)
    assert round(CLIP_L_336.flops() / 1e12, 3) == 0.366


def counted(call) -> int:
    """Operations of the products that run; the plain attention kernel, because the counter does not know the CPU's."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8)], ids=["mha", "gqa"])
def test_layer_flops_equal_a_count_of_the_real_modules(heads: int, kv_heads: int):
    """PyTorch counts the whole square of attention, the schedule its causal half."""
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2752,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=500,
        attn_implementation="eager",
    )
    shape, length = DecoderShape.of(config), 300
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        ids = torch.zeros(1, length, dtype=torch.long)
    total = counted(lambda: model(ids, logits_to_keep=1))
    half_square = 2 * 2 * shape.heads * shape.head_dim * length**2
    expected = 2 * shape.layer_flops(length) + half_square + 2 * 1024 * 500
    assert total == expected


def test_tower_flops_equal_a_count_of_the_real_module():
    config = tiny.tower_config(5)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        tower = CLIPVisionModel(config)
        image = torch.zeros(1, 3, 56, 56)
    per_layer = counted(lambda: tower.encoder.layers[0](torch.zeros(1, 17, 16, device="meta"), attention_mask=None))
    total = counted(lambda: tower(image))
    shape = VisionShape.of(config, select_layer=-2)
    assert shape.layers == 4 and shape.patches == 16
    assert shape.flops() == total - per_layer


@pytest.mark.parametrize("name", [None, "DUET", "T2V_ONLY", "TO_ZERO"])
def test_prefill_flops_equal_a_count_of_the_running_model(name: str | None):
    """Apart from what the schedule leaves out and says so: scoring, and the other half of the attention square."""
    settings = getattr(tiny, name) if name else None
    controls = {"score": "uniform"}
    settings = {stage: values | controls if stage == "t2v" else values for stage, values in (settings or {}).items()}
    model = tiny_llava(compression=settings, attention="eager", dtype=torch.float32)
    row, config = chat(1), model.compression
    shape, vision = DecoderShape.of(model.config), VisionShape.of(model.get_vision_tower().config)
    tokens = visual_tokens_per_layer(config, shape.layers, vision)
    text = len(row.ids) - 1
    batch, images = collate([row]), pixels(1).float()
    total = counted(lambda: model(**batch, images=images, logits_to_keep=1))
    half_squares = sum(2 * shape.heads * shape.head_dim * (text + count) ** 2 for count in tokens)
    counted_as = prefill_flops(tokens, text, shape, vision) + half_squares
    assert counted_as <= total <= 1.02 * counted_as


@pytest.mark.parametrize("name", ["DUET", "T2V_ONLY", "TO_ZERO", "V2V_ONLY"])
def test_kv_bytes_equal_the_bytes_of_a_real_cache(name: str):
    for kv_heads in (4, 1):
        model = tiny_llava(compression=getattr(tiny, name), kv_heads=kv_heads, dtype=torch.bfloat16)
        row = chat(3, (2,))
        output = model(**collate([row]), images=pixels(2).bfloat16(), use_cache=True)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        shape, vision = DecoderShape.of(model.config), VisionShape.of(model.get_vision_tower().config)
        tokens = visual_tokens_per_layer(model.compression, shape.layers, vision, images=2)
        assert kv_bytes(tokens, len(row.ids) - 2, shape) == held == key_value_bytes(output.past_key_values)


def test_full_kv_cache_of_llava():
    """16-bit visual KV of LLaVA-1.5-7B: 288 MiB for 576 tokens, 96 at 192 on average (PAPER arithmetic)."""
    shape = MODELS["llava-1.5-7b"]
    assert kv_bytes((576,) * 32, 0, shape) == 288 * 2**20
    assert (
        round(kv_bytes(visual_tokens_per_layer(CompressionConfig.from_preset("duet-192"), 32), 0, shape) / 2**20) == 96
    )


def test_staircase_in_words():
    assert describe((5, 5, 2, 0)) == "0-1: 5, 2-2: 2, 3-3: 0"


def schedule(*arguments: str) -> subprocess.CompletedProcess:
    """What the command says and ends with, without an interpreter's start; test_atomic_write.py has it start as one."""
    said, status = io.StringIO(), 0
    problem: str | None = None
    with contextlib.redirect_stdout(said):
        try:
            overview.main(arguments)
        except SystemExit as stop:
            assert isinstance(stop.code, str)
            problem, status = stop.code, 1  # as Python ends a program that stops with a sentence
    return subprocess.CompletedProcess(arguments, status, said.getvalue(), problem or "")


def test_command_line_prints_the_table():
    result = schedule("--preset", "duet-192", "duet-128", "duet-64", "--model", "llava-1.5-7b")
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(line[0], line[1]) for line in lines] == [
        ("duet-192", "191.75"),
        ("duet-128", "128.00"),
        ("duet-64", "63.75"),
    ]
    assert "0-15: 307, 16-23: 153, 24-31: 0" in result.stdout


def test_command_line_says_what_is_wrong():
    result = schedule("--preset", "duet-1")
    assert result.returncode == 1 and "There is no compression preset 'duet-1'" in result.stderr
    assert "Traceback" not in result.stderr


def test_command_line_reads_the_dimensions_of_a_checkpoint(tmp_path):
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "image_size": 96, "patch_size": 8}
    decoder = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps({**decoder, "mm_vision_config": vision}))
    (tmp_path / "mine.yaml").write_text("v2v: {dominant: 74, contextual: 2}\nt2v: {layers: [4, 6], keep: [0.5, 0.0]}\n")
    result = schedule("--preset", str(tmp_path / "mine.yaml"), "--model", str(tmp_path), "--text-tokens", "1")
    assert "47.50" in result.stdout and "0-3: 76, 4-5: 38, 6-7: 0" in result.stdout
    values = 2 * 8 * (8 + 4 * 76 + 2 * 38)  # keys and values of 8 layers, one text token in each
    assert f"{values * 2 / 2**20:15.1f}" in result.stdout
    assert "There is no model 'nix'" in schedule("--model", "nix").stderr
