"""A run that is over is gone: whatever ended it, no process stays behind, and the status says how it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import IO

import psutil
import pytest
from distributed import ROOT, end, environment, leaves_ctrl_c_to_its_parent, start, tail, wait
from tiny_llava import flags, write_assets
from transformers import TrainerControl, TrainerState, TrainingArguments
from warm_python import warm_python

from llava.train.launch import run_and_exit
from llava.train.preemption import StopOnSignal
from llava.train.train import train

SECONDS = 300  # of a program that needs a few; one that waits for its workers waits for ever


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world, and beside it `faulty.json`, in which one image is missing."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    records = json.loads((folder / "chats.json").read_text())
    records[6]["image"] = "missing.png"
    (folder / "faulty.json").write_text(json.dumps(records))
    return folder


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_until_gone(processes: list[psutil.Process], patience: float = 200) -> None:
    """Of workers that do not end by themselves; a zombie has ended."""
    deadline = time.monotonic() + patience
    while left := [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def script(folder: Path, text: str, said: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a program that hears Ctrl-C, whoever started the tests."""
    path = folder / "program.py"
    path.write_text("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + textwrap.dedent(text))
    known = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    return subprocess.Popen([sys.executable, str(path)], env=known, cwd=folder, start_new_session=True, stderr=said)


# === Data workers ===

LOADER = """
import os, sys, time
from torch.utils.data import DataLoader
from llava.common.child_processes import leave_signals_to_parent

class Numbers:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return index

if __name__ == "__main__":
    options = dict(num_workers={workers}, persistent_workers={persistent}, multiprocessing_context="{start}")
    loader = leave_signals_to_parent(DataLoader(Numbers(), **options))
    batches = iter(loader)
    for _ in range({workers}):  # each worker has given one, so each has begun
        next(batches)
    {then}
"""


@pytest.mark.parametrize(
    ("workers", "persistent", "start", "then", "status"),
    [
        (1, False, "fork", "raise FileNotFoundError('no such image')", 1),
        (4, True, "fork", "raise FloatingPointError('nan')", 1),
        (2, True, "fork", "", 0),
        (2, True, "fork", "os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        (1, False, "forkserver", "raise FileNotFoundError('no such image')", 1),
        (1, False, "spawn", "raise FileNotFoundError('no such image')", 1),
    ],
)
def test_a_program_with_data_workers_ends(
    tmp_path: Path, workers: int, persistent: bool, start: str, then: str, status: int
) -> None:
    process = script(tmp_path, LOADER.format(workers=workers, persistent=persistent, start=start, then=then))
    try:
        assert process.wait(SECONDS) == status
    finally:
        end(process)


def test_workers_outlive_a_signal_to_the_whole_job_and_not_their_parent(tmp_path: Path) -> None:
    """The batch that is under way must arrive, or nothing could be saved; a parent that was killed needs none."""
    then = """
for told in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(told, lambda *_: None)
for name in ("ready", "told", "done"):
    open(name, "w").close()
    while name == "ready" and not os.path.exists("go"):
        time.sleep(0.01)
    for _ in range(20):
        next(batches)
time.sleep(1000)
"""
    then = then.replace("\n", "\n    ")
    process = script(tmp_path, LOADER.format(workers=2, persistent=False, start="fork", then=then))
    try:
        wait_for_file(tmp_path / "ready", process)
        workers = descendants(process)
        assert len(workers) == 2
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGUSR1)
        (tmp_path / "go").touch()
        wait_for_file(tmp_path / "done", process)
        assert [worker.is_running() for worker in workers] == [True, True]
        process.kill()
        wait_until_gone(workers)
    finally:
        end(process)


def wait_for_file(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_that_prepares_data_outlives_the_run(tmp_path: Path, by: signal.Signals) -> None:
    """Pool and manager, as the library that prepares tables starts them."""
    text = """
        import multiprocessing, os, time
        from llava.common.child_processes import forks_end_with_parent
        context = multiprocessing.get_context("fork")
        with forks_end_with_parent():
            pool, manager = context.Pool(2), context.Manager()
            working = pool.map_async(time.sleep, [1000, 1000])
            open("ready", "w").close()
            time.sleep(1000)
    """
    process = script(tmp_path, text)
    try:
        wait_for_file(tmp_path / "ready", process)
        workers = descendants(process)
        assert len(workers) == 3
        process.send_signal(by)
        assert process.wait(SECONDS) == -by
        wait_until_gone(workers)
    finally:
        end(process)


def test_a_process_whose_parent_was_killed_before_it_looked_ends_too(tmp_path: Path) -> None:
    text = """
        import os, time
        from llava.common.child_processes import forks_end_with_parent
        parent = os.getpid()
        def late():
            while os.getppid() == parent:
                time.sleep(0.01)
            with open("late", "w") as file:
                file.write(str(os.getpid()))
            os.rename("late", "child")
        os.register_at_fork(after_in_child=late)
        with forks_end_with_parent():
            if os.fork() == 0:
                time.sleep(1000)
            os.kill(parent, 9)
    """
    process = script(tmp_path, text)
    try:
        assert process.wait(SECONDS) == -signal.SIGKILL
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "child").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with contextlib.suppress(psutil.NoSuchProcess):
            wait_until_gone([psutil.Process(int((tmp_path / "child").read_text()))])
    finally:
        end(process)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_of_a_data_check_outlives_it(tmp_path: Path, by: signal.Signals) -> None:
    text = """
        from dying_worker import slow
        from llava.data.check.worker_pool import WorkerPool
        if __name__ == "__main__":
            for results in WorkerPool(slow, None, 2).run([[0.0], *([[1000.0]] * 20)]):
                open("ready", "w").close()
    """
    process = script(tmp_path, text)
    try:
        wait_for_file(tmp_path / "ready", process)
        workers = descendants(process)
        process.send_signal(by)
        assert process.wait(SECONDS) == -by
        wait_until_gone(workers)
    finally:
        end(process)


def test_a_worker_that_loads_its_modules_leaves_ctrl_c_to_its_parent(tmp_path: Path) -> None:
    text = """
        import time
        if __name__ != "__main__":
            open("loading", "w").close()
            time.sleep(1)
        from dying_worker import slow
        from llava.data.check.worker_pool import WorkerPool
        if __name__ == "__main__":
            list(WorkerPool(slow, None, 2).run([[0.0]]))
    """
    with (tmp_path / "said").open("wb") as said:
        process = script(tmp_path, text, said)
    try:
        wait_for_file(tmp_path / "loading", process)
        workers = descendants(process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(SECONDS) == -signal.SIGINT
        assert "time.sleep" not in (tmp_path / "said").read_text(), "a worker's traceback"
        wait_until_gone(workers)
    finally:
        end(process)


# === Whole runs ===


def test_ctrl_c_while_tokens_are_counted_ends_the_run_with_a_word(tmp_path: Path) -> None:
    """By two processes, which hear it as well; the library that starts them would raise something else."""
    text = """
        import datasets
        from pathlib import Path
        from llava.data.tokens import _encode_all
        from llava.train.launch import run_and_exit
        class Slow:
            def row(self, row):
                import time
                open("ready", "w").close()
                time.sleep(0.5)
                return {"input_ids": [1], "labels": [1], "query_mask": [0], "fault": None}
        rows = datasets.Dataset.from_dict({"id": list(range(100))})
        run_and_exit(lambda: _encode_all(rows, Slow(), Path("."), "tokens-1", 2))
    """
    with (tmp_path / "said").open("wb") as said:
        process = script(tmp_path, text, said)
    try:
        wait_for_file(tmp_path / "ready", process)
        workers = descendants(process)
        while not all(map(leaves_ctrl_c_to_its_parent, workers)):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        status = process.wait(SECONDS)
        told = (tmp_path / "said").read_text()
        assert status == 130 and "Traceback" not in told and told.endswith("Stopped.\n"), told
        wait_until_gone(workers)
    finally:
        end(process)


def test_ctrl_c_that_python_could_not_raise_ends_the_run_after_the_step() -> None:
    """It comes in a callback of `fork`, where Python drops exceptions, whenever new workers are started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop, control = StopOnSignal(), TrainerControl()
    try:
        with stop.listening():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                stop.on_step_end(TrainingArguments(use_cpu=True), TrainerState(), control)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not control.should_save


def test_a_second_signal_does_not_end_a_stopped_process_otherwise(tmp_path: Path) -> None:
    """Clusters repeat themselves; the status that says to start again must be the one that arrives."""
    text = """
        import atexit, os, time
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from llava.train.launch import run_and_exit
        from llava.train.preemption import StopOnSignal
        def again():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
        class Late:
            def __del__(self):
                again()
        late = Late()  # goes when the interpreter is taken down
        def program():
            stop = StopOnSignal()
            with stop.listening():
                signal.raise_signal(signal.SIGTERM)
                stop.on_step_end(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())
            again()
            stop.leave(".", 1, True)
        atexit.register(again)
        run_and_exit(program)
    """
    process = script(tmp_path, text)
    try:
        assert process.wait(SECONDS) == 75 and (tmp_path / "preempted.json").is_file()
    finally:
        end(process)


def test_a_recipe_whose_data_lacks_an_image_ends_with_an_error(assets: Path, tmp_path: Path) -> None:
    variables = {
        "LAUNCHER": "python",
        "DEVICE": "cpu",
        "PYTHON": warm_python(),
        "MODEL": str(assets / "lm"),
        "WORKERS": "2",
        "VISION_TOWER": str(assets / "tower"),
        "COMPRESSION": str(assets / "tiny.yaml"),
        "GLOBAL_BATCH_SIZE": "4",
        "IMAGE_FOLDER": str(assets / "images"),
        "DATA_PATH": str(assets / "faulty.json"),
        "MAX_LENGTH": "256",
        "OUTPUT_DIR": str(tmp_path / "out"),
        "BATCH_SIZE": "4",
    }
    done = subprocess.run(
        ["bash", "scripts/v1_5/finetune_task.sh"],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1 and "missing.png" in done.stderr
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.slow
def test_two_ranks_with_workers_end_when_one_finds_no_image(assets: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"data_path": assets / "faulty.json", "per_device_train_batch_size": 2}
    options |= {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    process = start("forked", flags(assets, tmp_path / "out", "finetune", **options), tmp_path / "log")
    assert wait(process, tmp_path / "log") == 1
    assert "missing.png" in tail(tmp_path / "log", 100_000)


def test_wrong_flags_end_in_a_sentence_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_and_exit(lambda: train(["--model_name_or_path", str(tmp_path / "none"), "--output_dir", str(tmp_path)]))
    assert stop.value.code == 1
    assert capsys.readouterr().err.strip() == "error: --data_path is missing; give a JSON file of LLaVA conversations."


def test_an_error_inside_a_library_keeps_its_traceback() -> None:
    with pytest.raises(json.JSONDecodeError):
        run_and_exit(lambda: json.loads("{"))
