"""Records and files that nobody should train on unseen: said by training and by the data check, with what to change."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_data import checked, kinds
from PIL import Image, ImageFile
from tiny_text import byte_level, llava_inputs
from transformers import CLIPImageProcessorPil

from llava.common.shown import printable
from llava.data.check.check_settings import CheckSettings
from llava.data.check.command import main
from llava.data.check.image_files import check_images
from llava.data.check.sources import read_objects, write_clean
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.images import BadImageError, open_rgb
from llava.data.json_stream import iterate_json
from llava.data.records import parse_record, read_records
from llava.data.store import open_records
from llava.inference.typed_images import open_image

TALK = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]'
GOOD = f'{{"id": "good", "conversations": {TALK}}}'
AMBIGUOUS = {
    "an id twice": (f'{{"id": "a", "id": "b", "conversations": {TALK}}}', "the key 'id' comes twice in one object"),
    "an escaped key twice": (f'{{"id": "a", "\\u0069d": "b", "conversations": {TALK}}}', "the key 'id' comes twice"),
    "conversations twice": (f'{{"id": "a", "conversations": [], "conversations": {TALK}}}', "the key 'conversations'"),
    "an answer twice": (
        f'{{"id": "a", "conversations": {TALK.replace("}]", """, "value": "Bye"}]""")}}}',
        "the key 'value' comes twice in one object, {'from': 'gpt', 'value': 'Bye'}; leave one of them",
    ),
    "a key twice in what is not read": (
        f'{{"id": "a", "meta": [{{"my key": {{"x": 1, "x": 1}}}}], "conversations": {TALK}}}',
        "the key 'x' comes twice in one object, {'x': 1}",
    ),
    "an id that is no number": (f'{{"id": NaN, "conversations": {TALK}}}', "it holds NaN, which is no number of JSON"),
    "a score without end": (f'{{"id": 1, "a": {{"b": -Infinity}}, "conversations": {TALK}}}', "at 'a.b'"),
    "a number beyond floats": (f'{{"id": 1, "box": [0.5, 1e999], "conversations": {TALK}}}', "at 'box[1]'"),
    "two faults": (f'{{"id": 1, "id": 1, "score": NaN, "conversations": {TALK}}}', "it holds NaN"),
    "many faults": (
        f'{{"id": 1, "scores": {json.dumps([float("nan")] * 10_000)}, "conversations": {TALK}}}',
        "at 'scores[0]'",
    ),
}


def write(path: Path, record: str, lines: bool) -> Path:
    path.write_text(f"{GOOD}\n{record}\n{GOOD.replace('good', 'last')}\n" if lines else f"[{GOOD},\n{record}]\n")
    return path


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_records_that_can_be_read_in_two_ways_are_refused_and_named(
    name: str, lines: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, words = AMBIGUOUS[name]
    path = write(tmp_path / "data.json", record, lines)
    with pytest.raises(ValueError, match=r"1 of . records are unusable") as refused:
        read_records(path)
    assert (
        f"record 1 ({'line 2' if lines else 'entry 1 of the list'}): " in str(refused.value)
        and words in str(refused.value)
        and len(str(refused.value)) < 1000
    )
    report, clean = tmp_path / "report.json", tmp_path / "clean.json"
    outputs = ["--report", str(report), "--write-clean", str(clean)]
    assert main(["--data-path", str(path), "--images", "skip", "--workers", "0", *outputs]) == 1
    found = json.loads(report.read_text())["findings"]["ambiguous"]
    assert found["records"] == 1 and found["examples"][0]["record"] == 1 and words in found["examples"][0]["detail"]
    assert "record 1: " in capsys.readouterr().out
    assert [record.id for record in read_records(clean)] == ["good", "last"][: 1 + lines]


@pytest.mark.parametrize("chunk", [1, 7, 50, 4096])
def test_pieces_of_a_list_are_found_ambiguous_or_not_wherever_they_are_cut(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "data.json"
    path.write_text(f'[{{"a": 1.25, "b": [1e5]}}, {{"a": 1, "a": 2}}, {{"a": 2}}, {{"c": NaN}}, {GOOD}]')
    items = list(iterate_json(path, chunk))
    assert items[0] == {"a": 1.25, "b": [1e5]} and items[2] == {"a": 2} and items[4] == json.loads(GOOD)
    assert [type(item).__name__ for item in items] == ["dict", "Ambiguous", "dict", "Ambiguous", "dict"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "\ud800"}, "in 'id'"),
        ({"image": "a\udfff.png", "mark": "<image>"}, r"in the image name 'a\\udfff.png'"),
        ({"system": "\udc80"}, "in the system prompt"),
        ({"question": "\ud83d"}, "in question 1"),
        ({"answer": "x\ude00"}, "in answer 1"),
    ],
)
def test_half_of_a_character_is_told_with_its_field(change: dict[str, str], words: str) -> None:
    question = change.pop("mark", "") + change.pop("question", "Hi")
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": change.pop("answer", "Hello")}]
    data = {"id": "a", "conversations": turns} | change
    with pytest.raises(ValueError, match=f"half of a surrogate pair, {words}; write the whole character"):
        parse_record(data, 0)
    assert kinds(checked([data])) == [(0, "schema")]


@pytest.mark.parametrize(
    "data",
    [
        {"id": ["x"] * 10**5, "conversations": []},
        {"id": "x" * 10**6, "conversations": []},
        {"id": "a", "conversations": [{"from": "q" * 10**6, "value": "x"}]},
        {"id": "a", "conversations": [{"from": "human", "value": float(10**300)}]},
        {"id": "a", "system": ["x"] * 10**5, "conversations": [{"from": "human", "value": "x"}]},
        {"id": "a", "image": [["x"] * 10**5], "conversations": [{"from": "human", "value": "x"}]},
        {"id": "a", "image": 5, "conversations": [{"from": "human", "value": "x"}]},
        {"id": "a", "image": {"\x1b[2J" * 99: "x"}, "conversations": [{"from": "human", "value": "x"}]},
        {"id": "a", "image": {"k" * 10**6: "x"}, "conversations": [{"from": "human", "value": "x"}]},
        {"id": float("inf"), "conversations": []},
    ],
)
def test_what_a_message_shows_of_a_record_is_short_and_acts_on_nothing(data: Any) -> None:
    with pytest.raises(ValueError, match="record") as refused:
        parse_record(data, 0)
    assert len(str(refused.value)) < 600 and str(refused.value).isprintable()


def test_tables_with_a_name_twice_are_refused_and_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    twice, inner = tmp_path / "twice.parquet", tmp_path / "inner.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["id", "id"]), twice)
    turn = pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["value", "value"])
    pq.write_table(pa.table({"conversations": pa.ListArray.from_arrays([0, 1], turn)}), inner)
    for path, name in ((twice, "id"), (inner, "value")):
        with pytest.raises(ValueError, match=f"has two columns or fields of the name '{name}'; keep one of them"):
            read_records(path)
    scored, clean = tmp_path / "scored.parquet", tmp_path / "clean.jsonl"
    row = json.loads(GOOD) | {"score": float("nan"), "box": [0.5, float("inf")]}
    pq.write_table(pa.Table.from_pylist([row]), scored)
    assert len(read_records(scored)) == 1
    write_clean(clean, read_objects(scored))
    assert json.loads(clean.read_text()) == row | {"score": None, "box": [0.5, None]}
    assert len(read_records(clean)) == 1


# === What a disk, a name or a kind of file does ===

_ERRORS = [errno.EIO, errno.ESTALE, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ETIMEDOUT]


def tell_of(number: int, monkeypatch: pytest.MonkeyPatch, path: Path, call: str = "open") -> None:
    """Let a system call fail as on a bad disk, for one path."""
    former = getattr(os, call)

    def fail(place: Any, *arguments: Any, **options: Any) -> Any:
        if str(place) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return former(place, *arguments, **options)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("call", ["stat", "open"])
@pytest.mark.parametrize("number", _ERRORS)
def test_an_image_that_the_disk_does_not_give_is_one_bad_sample(
    number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)
    tell_of(number, monkeypatch, path, call)
    for read in (open_rgb, lambda path: open_image(str(path))):
        with pytest.raises(ValueError) as refused:
            read(path)
        told = str(refused.value)
        assert "photo.png'" in told and "Errno" not in told and told.endswith(".")
        if number != errno.ENAMETOOLONG:
            assert os.strerror(number) in told
    data = {"id": "a", "image": "photo.png", "conversations": json.loads(TALK)}
    data["conversations"][0]["value"] = "<image>\nHi"
    records = [parse_record(data, 0)]
    small = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    config = DataConfig(100, 4, tmp_path, on_bad_sample="skip")
    sample = LazySupervisedDataset(records, llava_inputs(byte_level(), small), config)[0]
    assert "record 'a': Image file" in sample["problem"] and (sample["labels"] == -100).all()


def test_links_in_a_circle_long_names_and_closed_files_are_findings_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
    expected = {
        "loop.png": ("image_unreadable", "its links lead in a circle"),
        "x" * 300: ("image_unreadable", "its name is too long"),
        "y/" * 3000 + "y.png": ("image_unreadable", "its name is too long"),
        "socket.png": ("not_an_image", "socket.png: a socket, not a file"),
    }
    for name, (kind, words) in expected.items():
        (finding,) = check_images([(str(tmp_path), name)], CheckSettings())[0]
        assert (finding.kind, words in finding.detail) == (kind, True), finding
        with pytest.raises(BadImageError, match="cannot be read: it") as refused:
            open_rgb(tmp_path / name)
        assert len(str(refused.value)) < 700
    Image.new("RGB", (20, 20)).save(tmp_path / "bad.png")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    (finding,) = check_images([(str(tmp_path), "bad.png")], CheckSettings())[0]
    assert finding.kind == "image_unreadable" and "the disk reports an error; check the disk" in finding.detail


@pytest.mark.parametrize("number", _ERRORS)
def test_a_data_file_that_the_disk_does_not_give_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.json"
    path.write_text(f"[{GOOD}]")
    tell_of(number, monkeypatch, path, "stat")
    words = rf"data\.json' cannot be read: .*\({os.strerror(number)}\)\."
    for read in (read_records, lambda path: open_records(path, tmp_path / "cache")):
        with pytest.raises(ValueError, match=words):
            read(path)
    assert main(["--data-path", str(path), "--images", "skip", "--workers", "0"]) == 2
    assert f"({os.strerror(number)})." in capsys.readouterr().err


@pytest.mark.parametrize("lines", [False, True])
def test_a_disk_that_fails_in_the_middle_of_a_data_file_is_told(
    lines: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.json", GOOD.replace("Hello", "x" * 10**5), lines)

    class Broken:
        """A file whose second piece is lost."""

        def __init__(self, file: Any) -> None:
            self.file, self.pieces = file, 0

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, count: int = -1) -> str:
            self.pieces += 1
            if self.pieces > 2:
                raise OSError(errno.EIO, "Input/output error")
            return self.file.read(min(count, 100))

        def seek(self, place: int) -> int:
            return self.file.seek(place)

        def __iter__(self) -> Any:
            yield self.file.readline()
            raise OSError(errno.EIO, "Input/output error")

    former = Path.open

    def opened(self: Path, mode: str = "r", **options: Any) -> Any:
        file = former(self, mode, **options)
        return Broken(file) if self == path and "b" not in mode else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ValueError, match=r"data\.json' cannot be read: the disk reports an error"):
        list(iterate_json(path, 50))


def test_folders_pipes_and_long_names_are_no_data_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name, words in (
        ("pipe.json", "is a pipe; name a file of records, check --data_path"),
        (".", "is a folder"),
        ("loop.json", "cannot be read: its links lead in a circle"),
        ("x" * 300, "cannot be read: its name is too long"),
        ("x\0y", "cannot be read: its name holds a zero byte"),
        ("none.json", "There is no data file"),
    ):
        for read in (read_records, open_records):
            with pytest.raises(ValueError, match=words):
                read(tmp_path / name)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "raw", "packbits"])
def test_a_broken_tiff_gets_a_sentence_whatever_its_library_says(compression: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "whole.tif"
    Image.fromarray(noise).save(path, "TIFF", compression=compression)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "zeroed.tif").write_bytes(content)
    with pytest.raises(BadImageError, match=r"cut\.tif' cannot be read: .*damaged or cut off"):
        open_rgb(tmp_path / "cut.tif")
    (finding,) = check_images([(str(tmp_path), "cut.tif")], CheckSettings())[0]
    assert finding.is_error
    try:
        open_rgb(tmp_path / "zeroed.tif")
    except BadImageError as error:
        assert "damaged or cut off" in str(error)


# === The report ===

ACTING = "\x1b[2J\x1b]0;title\x07\r\u202e\ud800\n"


def test_nothing_from_outside_acts_on_the_terminal_that_shows_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "da\x1b[2Jta.json"
    turns = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello"}]
    records = [{"id": ACTING, "image": "a" + ACTING.replace("\ud800", "") + ".png", "conversations": turns}]
    records += [{"id": f"{ACTING}{number}", "conversations": number} for number in range(3)]
    path.write_text(json.dumps(records))
    outputs = ["--text", str(tmp_path / "report.txt"), "--report", str(tmp_path / "report.json")]
    arguments = ["--data-path", str(path), "--image-folder", str(tmp_path), "--workers", "0"]
    assert main([*arguments, *outputs, "--list-all", str(tmp_path / "all.jsonl")]) == 1
    told = capsys.readouterr()
    assert all(line.isprintable() for line in told.out.split("\n")) and "\x1b" not in told.err
    assert "da\\x1b[2Jta.json" in told.out and "\\x1b" in told.out.split("Errors")[1]
    for name in ("report.txt", "report.json", "all.jsonl"):
        written = (tmp_path / name).read_text()
        assert all(line.isprintable() for line in written.split("\n")), name
    assert main(["--data-path", str(tmp_path / f"no{ACTING.replace(chr(0xD800), '')}.json"), "--images", "skip"]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().err.split("\n"))


def test_one_function_makes_texts_printable() -> None:
    assert printable("a\tb\n\x1b[2J\u200d\u3000é\ud800") == r"a\tb\n\x1b[2J\u200d\u3000é\ud800"
    assert (
        printable("a\tb\n\x1b[2J\u200d\u3000é\ud800\u202e", lines=True) == "a\tb\n\\x1b[2J\u200d\u3000é\\ud800\\u202e"
    )
    assert (
        printable("x" * 50, 10) == "xxxxxxx..."
        and printable("\x1b" * 3, 10) == r"\x1b\x1..."
        and printable("", 10) == ""
    )
