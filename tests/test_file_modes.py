"""What is written may be read by whom the user's umask says; safetensors alone would write weights for their owner."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_folder import write_model
from tiny_llava import flags, write_assets

from llava.checkpoints.conversion import convert
from llava.common.file_modes import follow_umask, umask
from llava.data.check.sources import write_clean
from llava.train.train import train


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def other_modes(folder: Path, mask: int) -> dict[str, str]:
    """Files and folders whose permissions are not those that `open` and `mkdir` give."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    return {
        path.name: oct(mode)
        for path, mode in modes.items()
        if mode != ((0o777 if path.is_dir() else 0o666) & ~mask) and not path.name.endswith(".lock")
    }


def test_a_training_writes_models_and_checkpoints_for_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    assets = write_assets(tmp_path)
    options: dict[str, object] = {"lora_enable": True, "lora_r": 4} if mask == 0o027 else {}
    out = train(flags(assets, tmp_path / "out", "finetune", max_steps=1, save_strategy="steps", **options))
    assert (out / "checkpoint-1").is_dir() and other_modes(out, mask) == {}


def test_conversion_and_clean_data_follow_the_umask(mask: int, tmp_path: Path) -> None:
    written = write_model(tmp_path / "model")
    convert(str(written), tmp_path / "out/hf", "hf")
    write_clean(tmp_path / "out/clean.json", [{"id": "1"}])
    assert other_modes(tmp_path / "out", mask) == {}


def test_permissions_are_only_ever_widened(tmp_path: Path) -> None:
    mask = umask()
    (tmp_path / "program").write_text("")
    (tmp_path / "program").chmod(0o700)
    (tmp_path / "secret").write_text("")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    follow_umask(tmp_path / "program")
    follow_umask(tmp_path / "link")
    assert stat.S_IMODE((tmp_path / "program").stat().st_mode) == 0o700 | (0o666 & ~mask)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert umask() == mask
