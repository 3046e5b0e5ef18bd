"""Nothing waits for ever: not for a lock whose owner was killed, not for the writer of a pipe."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from attack import programs
from eval_small import Squares, write_squares
from tiny_folder import write_model
from tqdm import tqdm

from llava.common import atomic_write
from llava.common.folder_lock import FolderInUseError, alone_in
from llava.eval import run, score
from llava.eval.benchmarks.reading import read_json, read_questions
from llava.eval.judging.judge import VerdictFile


def test_a_trial_that_was_killed_while_it_drew_a_bar_holds_up_no_other(tmp_path: Path) -> None:
    """The lock of progress bars is a semaphore that forked processes share, and a kill leaves it as it is."""
    for _ in tqdm(range(1), disable=False):
        pass
    held = tmp_path / "held"

    def holding() -> None:
        with tqdm.get_lock():
            held.touch()
            time.sleep(600)

    first = programs.Running(holding, tmp_path / "first.log")
    while not held.exists():
        time.sleep(0.005)
    first.kill()
    first.wait()
    second = programs.Running(lambda: sum(tqdm(range(3))), tmp_path / "second.log")
    assert second.wait(patience=3000).status == 3


def pipe(path: Path) -> Path:
    """A pipe in the place of a file; whoever opens it to read it waits for a writer."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_no_reader_of_an_evaluation_waits_for_the_writer_of_a_pipe(tmp_path: Path) -> None:
    path = pipe(tmp_path / "odd.json")
    readers = lambda: read_questions(path, tmp_path, "gqa"), lambda: read_json(path, "sqa"), lambda: VerdictFile(path)
    for read in readers:
        with pytest.raises(ValueError, match=r"odd.json'? is a pipe, socket or device; give a regular file"):
            read()


def test_a_note_of_a_lock_that_is_a_pipe_is_taken_away(tmp_path: Path) -> None:
    pipe(tmp_path / ".run.lock-holder")
    with alone_in(tmp_path, "Another run", "wait"):
        pipe(tmp_path / ".run.lock-holder")
        with pytest.raises(FolderInUseError, match="Another run; wait"), alone_in(tmp_path, "Another run", "wait"):
            pass
    assert not list(tmp_path.iterdir())


def said_to_the_log(program: Callable[[], int]) -> int:
    """In a forked trial: pytest's own streams stay out of it."""
    with os.fdopen(2, "w", closefd=False) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return program()


@pytest.mark.parametrize("suffix", ["answers.jsonl", "settings.json", "result.json"])
def test_an_evaluation_with_a_pipe_among_its_files_ends(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "llava-v1.5-tiny", max_position_embeddings=2048)
    write_squares(tmp_path / "eval", 2)
    words = ["--model-path", str(model), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    words += ["--device", "cpu", "--max-new-tokens", "2"]
    monkeypatch.setattr(atomic_write, "PATIENCE", 0.1)
    monkeypatch.setattr(score, "get_benchmark", lambda name: Squares())
    assert run.main(words, [Squares()]) == 0
    pipe(next((tmp_path / "out").rglob(f"*.{suffix}")))
    for program in (lambda: run.main(words, [Squares()]), lambda: score.main([str(tmp_path / "out")])):
        ended = programs.Running(partial(said_to_the_log, program), tmp_path / "run.log").wait(patience=300)
        assert ended.status in (1, 2) and suffix in ended.said and not ended.traceback


def test_a_pipe_with_a_reader_is_written_as_a_file_is(tmp_path: Path) -> None:
    path = pipe(tmp_path / "out")
    reader = programs.Running(lambda: int(path.read_text() == "whole\n"), tmp_path / "run.log")
    atomic_write.write_whole(path, "whole\n")
    assert reader.wait(patience=3000).status == 1
