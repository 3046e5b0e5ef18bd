"""A build of an extension that was killed leaves a lock, and every later start would wait for it without a word."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

from llava.train.build_locks import warn_of_build_locks


@pytest.mark.parametrize("named", [True, False])
def test_an_old_lock_is_named_and_a_young_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, named: bool
) -> None:
    """Where PyTorch itself would build, with a folder of extensions that is named and with its own."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    if named:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    assert warn_of_build_locks() == []
    lock = Path(_get_build_directory("deepspeed_shm_comm", verbose=False)) / "lock"
    assert lock.is_relative_to(tmp_path)
    lock.touch()
    assert warn_of_build_locks() == [] and not caplog.text
    hour_ago = time.time() - 3600
    os.utime(lock, (hour_ago, hour_ago))
    assert warn_of_build_locks() == [lock] and lock.exists()
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(hour_ago))
    assert f"{lock} is there since {since}" in caplog.text and "remove that file" in caplog.text
