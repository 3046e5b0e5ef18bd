"""One run at a time in a folder: a second start is refused in words and changes nothing; a kill opens the lock."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import ROOT
from tiny_llava import flags, write_assets

from llava.common.folder_lock import FolderInUseError, alone_in
from llava.eval import score
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.result_files import BenchmarkFiles
from llava.train.checkpoint import starting_point
from llava.train.launch import run_and_exit
from llava.train.train import train

HOLDER = """
import os, sys, time
from llava.common.folder_lock import alone_in
with alone_in(sys.argv[1], "busy", "wait"):
    child = os.fork()
    if child == 0:
        time.sleep(1000)  # as a data worker that does not see that its parent is gone
        os._exit(0)
    print(child, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder, with a child of its own."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        yield holder
        os.kill(child, 0)  # it lived all the while
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
        holder.communicate()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_start_into_the_folder_of_a_run_is_refused_and_changes_nothing(
    assets: Path, tmp_path: Path, overwrite: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    (output / "checkpoint-2").mkdir(parents=True)
    (output / ".unfinished").mkdir()
    (output / ".unfinished/optimizer.pt").write_bytes(b"half")
    (output / "preempted.json").write_text("{}")
    with held(output) as holder:
        before = content(output)
        with pytest.raises(SystemExit) as ended:
            run_and_exit(lambda: train(flags(assets, output, "pretrain", overwrite_output_dir=overwrite)))
        assert ended.value.code == 1 and content(output) == before
        said = capsys.readouterr().err
        assert f"error: --output_dir {str(output)!r} is in use by another run (process {holder.pid} on " in said
        assert "choose another --output_dir." in said and "Traceback" not in said


def test_a_run_that_was_killed_leaves_its_folder_free_while_its_workers_live(assets: Path, tmp_path: Path) -> None:
    with held(tmp_path / "out") as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / "out/.run.lock").exists()
        with alone_in(tmp_path / "out", "busy", "wait"):
            pass


def test_what_a_killed_run_leaves_of_its_lock_is_no_model_and_no_checkpoint(assets: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / ".run.lock").touch()
    (output / ".run.lock-holder").write_text('{"host": 3, "pid": 1e400, "since": [] ')
    assert starting_point(str(output), False, None) is None
    train(flags(assets, output, "pretrain", max_steps=1))
    assert not list(output.glob(".run.lock*"))


@pytest.mark.parametrize("note", ["[" * 100_000, '{"pid": 1, "host": "\\u001b[31m", "since": ""}', '{"pid": "1"}'])
def test_a_note_of_the_holder_that_is_none_is_not_shown(tmp_path: Path, note: str) -> None:
    with alone_in(tmp_path, "busy", "wait"):
        (tmp_path / ".run.lock-holder").write_text(note)
        with pytest.raises(FolderInUseError, match=r"^busy; wait\.$"), alone_in(tmp_path, "busy", "wait"):
            pass


def test_a_lock_whose_note_cannot_be_written_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".run.lock-holder").mkdir()
    with alone_in(tmp_path, "busy", "wait"), pytest.raises(FolderInUseError), alone_in(tmp_path, "busy", "wait"):
        pass
    assert not caplog.text


def test_a_folder_that_was_made_for_the_lock_alone_goes_with_it(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json"):
        train(flags(assets, tmp_path / "out", "pretrain", data_path=tmp_path / "none.json"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EROFS, errno.EACCES])
def test_a_file_system_without_locks_is_warned_of_and_used(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import filelock

    def acquire(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with alone_in(tmp_path, "busy", "wait"):
        pass
    assert "cannot be locked" in caplog.text and "nothing keeps another run out" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"file/out' cannot be made .* choose another place"),
        alone_in(tmp_path / "file/out", "busy", "wait"),
    ):
        pass


def test_the_lock_of_answers_says_who_holds_it(tmp_path: Path) -> None:
    answers = AnswerFile(tmp_path / "gqa.answers.jsonl")
    said = rf"writing .*gqa\S+ \(process {os.getpid()} on"
    with answers.locked(), pytest.raises(FolderInUseError, match=said), answers.locked():
        pass
    assert not list(tmp_path.iterdir())


def test_answers_are_not_scored_while_another_run_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two would ask a judge, and pay it, for the same grades."""
    place = BenchmarkFiles(tmp_path, "gqa")
    place.settings.write_text("{}")
    with place.answers.locked():
        assert score.main([str(tmp_path), "--eval-folder", str(tmp_path)]) == 1
    assert f"could not be scored: Another run is writing {place.answers.path} (process" in capsys.readouterr().err


def test_a_script_of_several_steps_refuses_a_second_start_while_the_first_or_its_step_lives(tmp_path: Path) -> None:
    program = tmp_path / "program.sh"
    program.write_text(
        f"set -euo pipefail\ncd {ROOT}\nsource scripts/lib/setup.sh\nsource scripts/lib/steps.sh\n"
        f'begin_steps {tmp_path}/out identity\nstep Wait {tmp_path}/out/done "$@"\n'
    )
    waiting = ["bash", str(program), "bash", "-c", f"touch {tmp_path}/waits; exec sleep 1000"]
    first = subprocess.Popen(waiting, start_new_session=True)
    second = ["bash", str(program), "touch", str(tmp_path / "out/done")]
    try:
        while not (tmp_path / "waits").exists():
            assert first.poll() is None
            time.sleep(0.02)
        for _ in range(2):
            ended = subprocess.run(second, capture_output=True, text=True)
            assert ended.returncode != 0 and not (tmp_path / "out/done").exists()
            assert f"{tmp_path}/out is in use by another run (process {first.pid} on " in ended.stderr
            first.kill()  # its step lives on
            first.wait()
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    deadline = time.monotonic() + 300  # what was killed takes a moment to go
    while subprocess.run(second, timeout=300).returncode != 0:
        assert time.monotonic() < deadline
