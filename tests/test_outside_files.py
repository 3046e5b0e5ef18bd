"""Configuration files from outside: a file means what it looks like, or is refused in a sentence that names it."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava.checkpoints.settings_files import check_fields, check_processor
from llava.common.json_files import NotJsonError, parse_json, read_object
from llava.common.outside_files import files_below
from llava.common.program import as_program
from llava.common.shown import LONGEST, shown
from llava.common.yaml_files import parse_yaml, read_yaml
from llava.compression.config import CompressionConfig
from llava.data.mixture_files import read_mixture
from llava.eval.runner.exit_status import exit_status
from llava.eval.scoring.benchmark_result import find_results
from llava.eval.tables.training import find_training
from llava.model.budget_flags import parse_list
from llava.model.weights import read_header
from llava.train.launch import run_and_exit

ROOT = Path(__file__).resolve().parents[1]
READERS: dict[str, Callable[[Path], Any]] = {"compression": CompressionConfig.from_yaml, "mixture": read_mixture}
ENDINGS = ("compression", "mixture")


def bomb(levels: int = 30) -> str:
    """A text of some kilobytes that stands for 9 ** levels values."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def shared_bomb(levels: int = 60) -> Any:
    value: Any = ["lol"]
    for _ in range(levels):
        value = [value] * 9
    return value


def refused(reader: Callable[[Path], Any], path: Path) -> str:
    begun = time.monotonic()
    with pytest.raises(ValueError) as error:
        reader(path)
    assert time.monotonic() - begun < 60 and len(str(error.value)) < 1500
    assert path.name in str(error.value), "the file is named"
    return str(error.value)


HOSTILE = {
    "alias bomb": (bomb().encode(), "more than 100,000 values"),
    "an alias of itself": (b"v2v: &a [*a]", "names nothing that ended before it"),
    "deep list": (b"[" * 50_000, "nested more than 20 deep"),
    "deep mapping": (b"{a: " * 50_000, "nested more than 20 deep"),
    "deep block": (b"".join(b" " * n + b"a:\n" for n in range(1, 900)), "nested more than 20 deep"),
    "keys of several types": (b"1: 2\nv2v: null\nnull: 3\n[a]: b", "line 1: the key 1 is no text"),
    "a list as key": (b"? [a, b]\n: c", "a key must be text"),
    "a key twice": (b"v2v:\n  dominant: 4\n  contextual: 1\n  dominant: 9\n", "line 4: the key 'dominant' came"),
    "a key twice, once quoted": (b"seed: 1\n'seed': 2\n", "line 2: the key 'seed' came in line 1"),
    "octal": (b"v2v: {dominant: 0300, contextual: 1}", "line 1: '0300' is ambiguous"),
    "octal of 1.2": (b"seed: 0o17", "'0o17' is ambiguous"),
    "no octal, but read so": (b"seed: 089", "'089' is ambiguous"),
    "underscores": (b"seed: 1_000", "'1_000' is ambiguous"),
    "hexadecimal": (b"seed: 0x10", "'0x10' is ambiguous"),
    "to the base 60": (b"seed: 12:30", "'12:30' is ambiguous"),
    "an exponent without a sign": (b"seed: 1.5e3", "'1.5e3' is ambiguous"),
    "an exponent without a point": (b"seed: 1e3", "'1e3' is ambiguous"),
    "a date": (b"seed: 2026-01-31", "'2026-01-31' is ambiguous"),
    "a huge number": (b"seed: " + b"9" * 5000, "more than 100 digits"),
    "a number beyond floats": (b"seed: 1.0e+999", "too large a number"),
    "a merge": (b"v2v: {<<: {dominant: 4}, contextual: 1}", "'<<' is ambiguous"),
    "a Python object": (b"!!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply"),
    "a type": (b"seed: !!float 3", "the tag"),
    "latin-1": ("v2v: null\n# Grüße\n".encode("latin-1"), "is not UTF-8 text (byte 0xfc in line 2)"),
    "UTF-16": ("v2v: null".encode("utf-16"), "is UTF-16 text"),
    "a tab": (b"v2v:\n\tdominant: 4", "indent with spaces"),
    "a NUL": (b"v2v: \0", "is not valid YAML"),
    "nothing": (b"", "is empty"),
    "nothing but a comment": (b"# v2v: null\n", "is empty"),
    "two documents": (b"v2v: null\n---\nv2v: null\n", "a second YAML document"),
    "a megabyte": (b"# " + b"x" * (1 << 20), "more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("reader", ENDINGS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_in_a_sentence_at_once(name: str, reader: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert words in refused(READERS[reader], path)


@pytest.mark.parametrize("reader", ENDINGS)
def test_what_is_no_regular_file_is_refused_without_waiting(reader: str, tmp_path: Path) -> None:
    folder, pipe, locked = tmp_path / "folder.yaml", tmp_path / "pipe.yaml", tmp_path / "loop.yaml"
    folder.mkdir()
    os.mkfifo(pipe)
    locked.symlink_to(locked)
    assert "is a folder" in refused(READERS[reader], folder)
    assert "is a pipe" in refused(READERS[reader], pipe)
    assert "cannot be read" in refused(READERS[reader], locked)


def test_what_is_written_plainly_is_read_as_pyyaml_reads_it() -> None:
    for path in [*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("playground/*/*.yaml")]:
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8")), path
    text = (
        "a: &x [1, -2, +3, 0, .5, 5., 0.25, 1.0e-3, -1.5E+2, ~, null, true, FALSE, yes, Off, .inf, 'no', \"0300\"]\n"
        "b: *x\nc: |\n  0300\nd: >-\n  yes\n  no\ne: 1.2.3\nf: a:b\ng: a-\nh: 12:ab\ni: e3\nj: {}\nk: []\nl:\n"
        "m: 2026-1\nn: y\n'1': one\n"
    )
    assert parse_yaml(text, "text") == yaml.safe_load(text)
    assert parse_yaml("\ufeffa: 1".removeprefix("\ufeff"), "text") == {"a": 1}


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfv2v: {dominant: 4, contextual: 1}\r\n")
    assert CompressionConfig.from_yaml(path).v2v.dominant == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["[016, 24]", "[1_6, 24]", "[0x10]", "[16, 24", "&a [*a]", "[1:30]", "[16]\n---\n[1]"])
def test_a_list_on_the_command_line_is_not_read_otherwise_than_it_looks(text: str) -> None:
    with pytest.raises(ValueError, match=r"--layer_list is .*; it must be a list of numbers such as '\[16,24\]'"):
        parse_list("--layer_list", text)


def test_a_message_shows_the_beginning_of_a_value_however_large_it_is() -> None:
    endless: list[Any] = []
    endless.append(endless)
    mapping: dict[str, Any] = {}
    mapping["self"] = mapping
    for value in (shared_bomb(), endless, mapping, "x" * 10**7, b"x" * 10**7, 10**100_000, [[]] * 10**6, range(3)):
        begun = time.monotonic()
        text = shown(value)
        assert len(text) <= LONGEST and "\n" not in text and time.monotonic() - begun < 60
    for value in ([1, "a\n", None, 2.5], {"a": (1,), 2: True}, (), (1, 2), "\ud800", {"k": []}, Path("a"), {3}):
        assert shown(value) == repr(value)


@pytest.mark.parametrize("place", ["v2v", "t2v", "for"])
def test_a_bomb_in_a_mapping_is_refused_at_once_whoever_read_it(place: str) -> None:
    begun = time.monotonic()
    for value in (shared_bomb(), {"dominant": shared_bomb(), "contextual": 1}, {"layers": shared_bomb(), "keep": [0]}):
        with pytest.raises(ValueError) as error:
            CompressionConfig.resolve({place: value})
        assert len(str(error.value)) < 1000
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it is empty"),
        (b"{", "line 1 column 2"),
        (b"[" * 10**5, "nested more than 100 deep"),
        (b"[" * 500 + b"]" * 500, "nested more than 100 deep"),
        (b'{"a": NaN}', "NaN, which is no number of JSON"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "'1e999', which is too large"),
        (b"9" * 5000, "too many digits"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' comes twice"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
    ],
)
def test_hostile_json_is_refused_in_a_sentence(text: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(NotJsonError, match=words):
        parse_json(text, strict=True)
    (tmp_path / "settings.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"settings.json.*write it again|settings.json is (not UTF-8|UTF-16) text"):
        read_object(tmp_path / "settings.json", "write it again")


@pytest.mark.parametrize(
    "kind", ["compression", "mixture", "records", "results", "settings", "answers", "sqa", "gqa", "judge", "questions"]
)
def test_damaged_files_are_read_or_refused_in_a_sentence(kind: str) -> None:
    from attack.fuzz_files import run

    figures = run(40, seed=1, only=kind)
    assert figures["failures"] == [] and figures["tried"] == figures["read"] + figures["sentence"] == 40


# === What may not be opened; said by the system, for tests may run as who may open everything ===

DENIED = PermissionError(errno.EACCES, "Permission denied", "/data/model/config.json")
SAID = (
    "'/data/model/config.json' cannot be opened: you may not read it; change its permissions or those of its folders "
    "(Permission denied)."
)


@pytest.mark.parametrize("program", [as_program, exit_status, run_and_exit])
def test_a_file_that_may_not_be_opened_ends_a_program_in_a_sentence(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        return int(os.fspath(_denied()))

    try:
        status = program(main)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert SAID in said and "Traceback" not in said and status == (1 if program is run_and_exit else 2)


def _denied() -> str:
    raise DENIED


def test_an_error_that_names_no_file_keeps_its_traceback() -> None:
    def main() -> int:
        raise OSError("a library gave up")

    with pytest.raises(OSError, match="gave up"):
        as_program(main)


def test_weights_that_may_not_be_read_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    monkeypatch.setattr(Path, "open", lambda *_: _denied())
    with pytest.raises(ValueError, match="cannot be opened: you may not read it"):
        read_header(path)


def test_no_part_of_the_results_is_taken_for_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/x.json", "a/y.json", "a/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in files_below(tmp_path, ".json")] == ["y.json", "x.json"]
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: _denied() if str(place).endswith("b") else scan(place))
    for find in (find_results, find_training):
        with pytest.raises(PermissionError):
            find(tmp_path)


@pytest.mark.parametrize("key", ["image_size", "hidden_size", "num_attention_heads"])
def test_a_size_of_a_model_that_is_null_is_refused_by_the_name_of_its_field(key: str) -> None:
    check_fields({"hidden_size": 16, "num_key_value_heads": None}, "config.json")
    with pytest.raises(ValueError, match=f"{key} in config.json is None"):
        check_fields({key: None}, "config.json")


def test_a_filter_that_pillow_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    for value in (-1, 6, 10**30):
        path.write_text(json.dumps({"resample": value}))
        with pytest.raises(ValueError, match=f"resample in .*preprocessor_config.json.* is {value}; accepted are 0"):
            check_processor(path)
