"""Tables, settings and cached files that ask for code when they are read: nothing is run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hostile import Writes

from llava.common.yaml_files import read_yaml
from llava.compression.config import CompressionConfig
from llava.data.mixture import open_mix
from llava.data.store import open_records


def table_of_a_pickled_type(marker: Path) -> pyarrow.Table:
    """Older versions of Arrow unpickled the type of such a column (CVE-2023-47248)."""
    payload = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled(marker)}
    answers = pyarrow.field("conversations", pyarrow.string(), metadata=payload)
    schema = pyarrow.schema([pyarrow.field("id", pyarrow.string()), answers])
    return pyarrow.table({"id": ["a"], "conversations": ["b"]}, schema=schema)


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Writes(marker))


def parquet(path: Path, marker: Path) -> None:
    pyarrow.parquet.write_table(table_of_a_pickled_type(marker), path)


def bare_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickled(marker))


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".yaml"])
@pytest.mark.parametrize("write", [parquet, bare_pickle])
def test_data_cannot_run_code(tmp_path: Path, suffix: str, write: Callable[[Path, Path], None]) -> None:
    write(tmp_path / f"data{suffix}", tmp_path / "marker")
    with pytest.raises(ValueError, match="data"):
        open_mix(tmp_path / f"data{suffix}", tmp_path / "cache")
    assert not (tmp_path / "marker").exists()


def test_a_cached_table_cannot_run_code(tmp_path: Path) -> None:
    """One that somebody exchanged is built again; should its digest fit, Arrow still unpickles nothing."""
    data = tmp_path / "data.json"
    data.write_text('[{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]')
    open_records(data, tmp_path / "cache")
    (held,) = (tmp_path / "cache").rglob("*.arrow")
    hostile = table_of_a_pickled_type(tmp_path / "marker")
    with pyarrow.OSFile(str(held), "wb") as file, pyarrow.ipc.new_stream(file, hostile.schema) as writer:
        writer.write_table(hostile)
    assert datasets.Dataset.from_file(str(held))[0]["id"] == "a"
    assert len(open_records(data, tmp_path / "cache")) == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("read", [CompressionConfig.resolve, open_mix, read_yaml])
@pytest.mark.parametrize(
    "text",
    [
        "v2v: !!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:os.system ['touch {marker}']",
        "datasets: !!python/name:os.system ''",
        "? !!python/module:antigravity x\n: 1",
    ],
)
def test_settings_cannot_run_code(tmp_path: Path, read: Callable[[str], object], text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text.format(marker=tmp_path / "marker"))
    with pytest.raises(ValueError, match=r"settings\.yaml"):
        read(str(path))
    assert not (tmp_path / "marker").exists()
