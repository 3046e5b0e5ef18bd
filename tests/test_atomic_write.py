"""Full and read-only disks and readers who leave: a sentence or silence, and what was there before stays."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from saved_results import save, save_training

from llava.checkpoints.conversion import appearing_at_once
from llava.common.atomic_write import (
    UNFINISHED,
    UnwritableError,
    library_write_errors,
    whole_file,
    write_errors,
    write_whole,
)
from llava.common.program import READER_GONE
from llava.data.check.command import main as check_data
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.scoring.benchmark_result import Result
from llava.eval.tables.plots import accuracy_over_budget

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = [sys.executable, "-m", "llava.compression.schedule"]
# A process may write files of 4 KiB and no more; Python ignores SIGXFSZ, so writing fails with EFBIG.
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "


def failing(monkeypatch: pytest.MonkeyPatch, number: int, where: str = "replace") -> None:
    """From now on a file cannot be brought to the disk."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, fail)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"the disk is full, No space left on device; make room there, or name another place"),
        (errno.EDQUOT, "your quota on that disk is used up"),
        (errno.EFBIG, "it is larger than the file system or this process may write"),
        (errno.EROFS, r"the file system is read-only, .*; name another place"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_takes_no_more_leaves_what_was_there(
    number: int, words: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_whole(path, "before\n")
    with monkeypatch.context() as patch:
        failing(patch, number, where)
        told = rf"results.json cannot be written: .*{words}"
        with pytest.raises(UnwritableError, match=told) as error, whole_file(path, sync=True) as file:
            file.write("after\n")
    assert error.value.errno == number
    assert path.read_text() == "before\n" and list(tmp_path.iterdir()) == [path], "no part is left beside it"


def save_result(path: Path) -> None:
    Result("pope", "POPE", "m", "none", {}, None, 1, 1, 80.0).save(path)


def draw(path: Path) -> None:
    accuracy_over_budget({"duet": [(192.0, 1.0, 1.0, 1.0)]}, path, title="t", ylabel="y")


def answer(path: Path) -> None:
    AnswerFile(path, "run").append(0, [{"question_id": 1, "prompt": "p", "text": "x" * 9000}])


WRITERS: dict[str, Callable[[Path], Any]] = {
    "pope.result.json": save_result,
    "a.png": draw,
    "a.svg": draw,
    "b.txt": lambda path: write_whole(path, "x" * 9000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written_to_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match=rf"file/{name} cannot be written: .*; name another place"):
        WRITERS[name](tmp_path / "file" / name)


@pytest.mark.parametrize("name", WRITERS)
def test_outputs_are_whole_or_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name](tmp_path / name)
    before = (tmp_path / name).read_bytes()
    failing(monkeypatch, errno.ENOSPC)
    with pytest.raises(UnwritableError, match="the disk is full"):
        WRITERS[name](tmp_path / name)
    assert (tmp_path / name).read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [name]


def test_answers_say_which_file_the_disk_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errno.ENOSPC, "fsync")
    with pytest.raises(OSError, match=r"No space left on device; make room .*rank0.jsonl"):
        answer(tmp_path / "answers.jsonl")


def test_a_real_limit_on_file_size_ends_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text("before")
    program = (
        f"{LIMITED}from llava.common.atomic_write import write_whole; from llava.common.program import as_program; "
        f"from pathlib import Path; raise SystemExit(as_program("
        f"lambda: (write_whole(Path({str(path)!r}), 'x' * 10**5), 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "big.json cannot be written: it is larger than the file system or this process may write" in done.stderr
    )
    assert "Traceback" not in done.stderr and path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_is_read_meanwhile_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), whole_file(tmp_path / "out") as file:
        file.write((tmp_path / "missing").read_text())
    with pytest.raises(FileNotFoundError), write_errors(tmp_path / "out"):
        (tmp_path / "elsewhere" / "x").read_text()
    assert not list(tmp_path.iterdir())


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there.txt")
    write_whole(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there.txt").read_text() == "new"
    write_whole(Path("/dev/null"), "nothing")
    with pytest.raises(UnwritableError, match="/dev/full cannot be written: the disk is full"):
        write_whole(Path("/dev/full"), "nothing")
    assert Path("/dev/full").is_char_device() and not Path(f"/dev/full{UNFINISHED}").exists()


def test_a_converted_model_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with (
        pytest.raises(UnwritableError, match=r"model cannot be written: the disk is full"),
        appearing_at_once(tmp_path / "model") as folder,
    ):
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_reader_who_leaves_ends_a_program_silently(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(SCHEDULE, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (READER_GONE, "")


def test_an_output_on_a_full_disk_ends_in_a_sentence(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(SCHEDULE, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert (
        done.stderr == "The output cannot be written: No space left on device; make room there, or send it elsewhere.\n"
    )


def test_every_program_minds_its_output() -> None:
    """`train_mem` and the parts that another program starts and reads have ways of their own."""
    own = {"train_mem.py", "communication.py", "imports.py"}
    for folder in ("llava", "scripts", "playground"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if '__name__ == "__main__"' in text and path.name not in own:
                assert "as_program(main)" in text, path


@pytest.mark.parametrize("flag", ["--report", "--text", "--list-all", "--write-clean"])
def test_the_data_check_tells_which_output_the_disk_did_not_take(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    data, out = tmp_path / "data.json", tmp_path / "out.json"
    data.write_text(json.dumps([{"id": "a", "conversations": turns}]))
    out.write_text("before")
    failing(monkeypatch, errno.ENOSPC)
    with pytest.raises(UnwritableError, match=r"out.json cannot be written: the disk is full"):
        check_data(["--data-path", str(data), "--images", "skip", "--workers", "0", flag, str(out)])
    assert out.read_text() == "before"


def test_tables_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from llava.eval.table import main

    save(tmp_path / "results", {"pope": 80.0})
    save_training(tmp_path / "training", "duet-192", 1.0)
    failing(monkeypatch, errno.EROFS)
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 2
    assert "cannot be written: the file system is read-only" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), errno.EFBIG),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 465344 vs 465236"), errno.ENOSPC),
        (RuntimeError("basic_ios::clear: iostream error"), errno.ENOSPC),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
    ],
    ids=str,
)
def test_what_a_library_cannot_write_is_told_with_its_place(raised: Exception, code: int, tmp_path: Path) -> None:
    said = f"{tmp_path} cannot be written: .*name another place"
    with pytest.raises(UnwritableError, match=said) as told, library_write_errors(tmp_path):
        raise raised
    assert told.value.errno == code
    with pytest.raises(RuntimeError, match="shapes differ"), library_write_errors(tmp_path):
        raise RuntimeError("shapes differ")
