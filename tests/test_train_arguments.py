"""LLaVA's flags, old spellings and the compression's flags."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.compression.config import CompressionConfig, T2VConfig, V2VConfig
from llava.model.budget_flags import parse_list
from llava.train.arguments import ModelArguments, modern_spelling, parse_arguments, resolve_compression

NONE = CompressionConfig()
BASE = ["--data_path", "d.json", "--output_dir", "out", "--use_cpu", "True"]


def test_old_spellings_reach_their_new_names() -> None:
    old = [*BASE, "--evaluation_strategy", "no", "--gradient_checkpointing", "True", "--warmup_ratio", "0.03"]
    _, _, args = parse_arguments([*old, "--lazy_preprocess", "True", "--group_by_length=True", "--tf32", "False"])
    assert args.eval_strategy == "no" and args.activation_checkpointing is True
    assert args.get_warmup_steps(1000) == 30
    assert args.train_sampling_strategy == "group_by_length"


def test_flags_with_minus_equals_and_without_value_keep_their_values() -> None:
    assert modern_spelling(["--save-safetensors", "--no_cuda", "--seed=3"]) == ["--use_cpu", "--seed", "3"]
    assert modern_spelling(["--group_by_length", "False", "--max_steps", "-1"]) == ["--max_steps", "-1"]


@pytest.mark.parametrize("word", ["Yes", "t", "Y", "1"])
def test_length_groups_are_asked_for_in_every_word_for_yes(word: str) -> None:
    assert modern_spelling(["--group_by_length", word]) == ["--train_sampling_strategy", "group_by_length"]
    assert modern_spelling(["--group_by_length", "n"]) == []
    with pytest.raises(ValueError, match=r"--group_by_length: .*got maybe"):
        modern_spelling(["--group_by_length", "maybe"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora_target_modules", "q_proj", "k_proj"], "Write them as one: --lora_target_modules q_proj,k_proj."),
        (["--lora_target_modules", "q,", "k,", "v"], "Write them as one: --lora_target_modules q,k,v."),
        (["--mm-tunable-parts", "mm_mlp_adapter", "mm_language_model"], "mm_mlp_adapter,mm_language_model."),
        (["--layer_list", "16", "24"], "--layer_list takes one word, but 2 stand behind it: 16 24. Write them as one"),
        (["--layer_list=[16,", "24]"], "Write them as one: --layer_list '[16,24]'."),
        (["--image_token_ratio_list", "0.5", "0.0"], "Write them as one: --image_token_ratio_list '[0.5,0.0]'."),
        (["--image_grid_pinpoints", "[[672,", "336]]"], "Put quotes around them if they are one ('[[672, 336]]')"),
        (["--image_folder", "my", "pictures"], "quotes around them if they are one ('my pictures'), or leave out"),
        (["--bf16", "False", "more"], "or leave out 'more'."),
    ],
)
def test_several_words_behind_a_flag_of_one_are_refused_with_how_to_write_them(words: list[str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_arguments([*BASE, *words])
    assert said in str(caught.value)


def test_defaults_are_llavas() -> None:
    model_args, data_args, args = parse_arguments(BASE)
    assert (model_args.mm_projector_type, model_args.mm_vision_select_layer) == ("linear", -2)
    assert data_args.image_aspect_ratio == "square"
    assert (args.model_max_length, args.remove_unused_columns, args.report_to) == (512, False, [])


def test_several_data_files_and_the_frames_of_videos_are_asked_for_as_in_other_programs() -> None:
    videos = ["--video-folder", "films", "--video_fps=2.5", "--frames_upbound", "0"]
    _, data_args, _ = parse_arguments(["--data_path", "a.json", "~/b.json", "c.json%50", *BASE[2:], *videos])
    assert data_args.data_path == ["a.json", str(Path("~/b.json").expanduser()), "c.json%50"]
    assert (data_args.video_folder, data_args.video_fps, data_args.frames_upbound) == ("films", 2.5, 0)
    _, data_args, _ = parse_arguments(BASE)
    assert data_args.data_path == ["d.json"] and data_args.video_folder is None and data_args.video_fps is None
    with pytest.raises(ValueError, match="--data_path: it is ''; it must name a file or folder"):
        parse_arguments(["--data_path", "a.json", "", *BASE[2:]])


def test_unknown_and_contradicting_flags_are_refused() -> None:
    with pytest.raises(ValueError, match="--no_such_flag"):
        parse_arguments([*BASE, "--no_such_flag", "1"])
    with pytest.raises(ValueError, match="--data_path is missing"):
        parse_arguments(["--output_dir", "out", "--use_cpu", "True"])
    with pytest.raises(ValueError, match="choose one"):
        parse_arguments([*BASE, "--tune_mm_mlp_adapter", "True", "--freeze_mm_mlp_adapter", "True"])


def test_published_flags_alone_make_the_published_configuration() -> None:
    args = ModelArguments(layer_list="[16,24]", image_token_ratio_list="[0.5,0.0]", dominant_num=300, context_num=7)
    assert resolve_compression(args, NONE) == CompressionConfig(V2VConfig(300, 7), T2VConfig((16, 24), (0.5, 0.0)))
    args.use_salient_tokens = True
    found = resolve_compression(args, NONE).t2v
    assert found is not None and found.queries == "salient"


def test_published_flags_below_one_are_shares_and_whole_numbers_stay_counts() -> None:
    args = parse_arguments([*BASE, "--dominant_num", "0.65", "--context_num", "0.05"])[0]
    found = resolve_compression(args, NONE)
    assert found == CompressionConfig(V2VConfig(0.65, 0.05))
    assert CompressionConfig.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    args = parse_arguments([*BASE, "--dominant_num", "300", "--context_num", "0"])[0]
    found = resolve_compression(args, NONE)
    assert found.to_dict()["v2v"]["dominant"] == 300 and type(found.to_dict()["v2v"]["dominant"]) is int
    with pytest.raises(ValueError, match=r"v2v.dominant is 300.5; it must be a whole number .* A share of an image"):
        resolve_compression(ModelArguments(dominant_num=300.5, context_num=1), NONE)


def test_published_flags_override_the_named_compression_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llava")
    args = ModelArguments(compression="duet-192", dominant_num=100, use_salient_tokens=True)
    found = resolve_compression(args, NONE)
    expected = CompressionConfig.from_preset("duet-192")
    assert found.v2v == V2VConfig(100, 7) and found.t2v is not None and expected.t2v is not None
    assert found.t2v.queries == "salient" and found.t2v.layers == expected.t2v.layers
    assert "dominant: 100 overrides 300." in caplog.text


def test_without_flags_the_models_own_compression_stays() -> None:
    own = CompressionConfig.from_preset("duet-64")
    assert resolve_compression(ModelArguments(), own) == own
    assert resolve_compression(ModelArguments(compression="none"), own) == NONE


def test_half_a_stage_and_broken_lists_are_told_in_words() -> None:
    with pytest.raises(ValueError, match="give --dominant_num and --context_num"):
        resolve_compression(ModelArguments(dominant_num=300), NONE)
    for text in ("16,24", "[16,", "__import__('os')", "[a]", "[true]", "{}"):
        with pytest.raises(ValueError, match=r"--layer_list is .* must be a list of numbers"):
            parse_list("--layer_list", text)
    assert parse_list("--layer_list", "[16, 24]") == [16, 24]


def test_a_run_without_deepspeed_is_not_opened_by_the_one_before(tmp_path: Path) -> None:
    """transformers' own memory of DeepSpeed's settings outlives the run that gave them."""
    config = Path(__file__).parents[1] / "configs/deepspeed/zero3.json"
    kept = parse_arguments([*BASE, "--deepspeed", str(config)])
    assert is_deepspeed_zero3_enabled() and kept
    parse_arguments(BASE)
    assert not is_deepspeed_zero3_enabled()
