"""Video-LLaVA's recipes: the command on record, the released settings, and a few real steps of each.

`python tests/test_video_recipes.py --record` writes the record anew.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

import pytest
from distributed import losses, weights
from fake_machine import MACHINES, ROOT, Shell
from test_recipes_run import planned
from tiny_llava import COMPRESSION
from tiny_video import FRAMES, write_training

from llava.checkpoints.opening import open_model
from llava.train.train import train

RECORD = ROOT / "tests/recipes/videollava-gpu8.txt"
RECIPES = ("pretrain", "finetune", "finetune_lora")
RELEASED = {"pretrain": (256, "1e-3"), "finetune": (128, "2e-5"), "finetune_lora": (128, "2e-4")}


def script(name: str) -> str:
    return f"scripts/videollava/v1_5/{name}.sh"


def commands(folder: Path) -> dict[str, list[str]]:
    shell = Shell(folder, MACHINES["gpu8"].tools)
    return {name: shell.command(script(name)) for name in RECIPES}


def as_record(found: dict[str, list[str]]) -> str:
    return "".join(f"# {name}\n{shlex.join(words)}\n" for name, words in found.items())


def values_of(words: list[str]) -> dict[str, str]:
    """Flags of the trainer; several values of one are joined by a comma."""
    found: dict[str, list[str]] = {}
    for word in words[words.index("llava/train/train_mem.py") + 1 :]:
        if word.startswith("--"):
            found[word] = []
            last = word
        else:
            found[last].append(word)
    return {flag: ",".join(values) for flag, values in found.items()}


def test_commands_are_those_on_record_with_the_released_settings(tmp_path: Path) -> None:
    found = commands(tmp_path / "bin")
    assert as_record(found) == RECORD.read_text(encoding="utf-8")
    for name, words in found.items():
        batch, rate = RELEASED[name]
        flags = values_of(words)
        expected = {
            "--image_tower": "LanguageBind/LanguageBind_Image",
            "--video_tower": "LanguageBind/LanguageBind_Video_merge",
            "--compression": "video-960",
            "--version": "v1",
            "--deepspeed": "./scripts/zero2.json",
            "--per_device_train_batch_size": str(batch // 8),
            "--gradient_accumulation_steps": "1",
            "--learning_rate": rate,
            "--model_max_length": "2048",
            "--tokenizer_model_max_length": "3072",
            "--image_aspect_ratio": "square" if name == "pretrain" else "pad",
            "--tf32": "False",
            "--warmup_steps": "0.03",
            "--lr_scheduler_type": "cosine",
            "--mm_vision_select_layer": "-2",
        }
        assert {flag: flags.get(flag) for flag in expected} == expected
        assert "--vision_tower" not in flags and "--video_flip" not in flags
        assert flags["--data_path"].count(",") == (1 if name == "pretrain" else 2)
    second = values_of(found["finetune"])
    assert second["--pretrain_mm_mlp_adapter"] == f"{values_of(found['pretrain'])['--output_dir']}/mm_projector.bin"


def test_settings_are_variables_and_a_preset_of_another_family_is_refused(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", MACHINES["gpu8"].tools)
    own = {"IMAGE_TOWER": "/towers/my image", "VIDEO_TOWER": "/towers/video", "VIDEO_FLIP": "0.5", "DATA_ROOT": "/data"}
    flags = values_of(shell.command(script("finetune"), DATA_PATH="/my/mix.yaml", MAX_EXPANDED_LENGTH="4000", **own))
    assert flags["--image_tower"] == "/towers/my image" and flags["--video_flip"] == "0.5"
    assert flags["--data_path"] == "/my/mix.yaml" and flags["--video_folder"] == "/data"
    assert flags["--tokenizer_model_max_length"] == "4000"
    status, _, said = shell.run(script("pretrain"), DRY_RUN="1", COMPRESSION="duet-192")
    assert status == 2 and "but this trains a Video-LLaVA; give one of its presets, such as video-960" in said
    status, said, _ = shell.run(script("pretrain"), "--help")
    assert status == 0 and "LanguageBind/LanguageBind_Video_merge" in said and "MAX_EXPANDED_LENGTH" in said


@pytest.mark.slow
def test_each_recipe_trains_from_what_the_one_before_left(tmp_path: Path) -> None:
    folder = write_training(tmp_path)
    (folder / "video.yaml").write_text(COMPRESSION)
    variables = {
        "LAUNCHER": "python",
        "DEVICE": "cpu",
        "PYTHON": sys.executable,
        "MODEL": str(folder / "lm"),
        "IMAGE_TOWER": str(folder / "image-tower"),
        "VIDEO_TOWER": str(folder / "video-tower"),
        "COMPRESSION": str(folder / "video.yaml"),
        "MAX_STEPS": "2",
        "DATA_PATH": str(folder / "mixed.json"),
        "IMAGE_FOLDER": str(folder / "images"),
        "VIDEO_FOLDER": str(folder / "videos"),
        "GLOBAL_BATCH_SIZE": "6",
        "BATCH_SIZE": "3",
        "WORKERS": "0",
        "LORA_R": "4",
        "ADAPTER": str(folder / "pretrain/mm_projector.bin"),
    }
    for name in RECIPES:
        train(planned(script(name), OUTPUT_DIR=str(folder / name), **variables))
        assert len(losses(folder / name)) == 2 and weights(folder / name)
    opened = open_model(str(folder / "finetune_lora"), device="cpu").model
    assert opened.get_video_tower().num_frames == FRAMES and opened.compression.t2v is not None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        RECORD.write_text(as_record(commands(Path(folder) / "bin")), encoding="utf-8")
