"""`scripts/gpu_check.sh` on a CPU at the tiny shape: its first run on a GPU is not its debugging."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from warm_python import warm_python

from llava.bench import clock, modes
from llava.bench.cases import Case, Setting
from llava.bench.gpu_check import measure
from llava.bench.gpu_check.__main__ import BUDGET, PARTS, main
from llava.bench.gpu_check.record import ResultLog, place_of, read
from llava.bench.gpu_check.supervise import FAILED, NOT_RUN, OVER, PASSED, run_part

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/gpu_check.sh"
DEVICE_TESTS = """
import pytest
@pytest.mark.cuda
def test_that_passes(): assert True
@pytest.mark.cuda
def test_that_fails(): assert 1 + 1 == 3
def test_without_a_mark(): raise AssertionError("not asked for")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, lines and output of one run of everything, into a folder, with two cases and two tests."""
    out, tests = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("tests")
    (tests / "test_made_up.py").write_text(DEVICE_TESTS)
    limits = [f"{part.name}=240" for part in PARTS]
    done = subprocess.run(
        [
            "bash",
            str(SCRIPT),
            str(out),
            "--shape",
            "tiny",
            "--device",
            "cpu",
            "--cases",
            str(ROOT / "tests/golden/v2v"),
            "--tests",
            str(tests),
            "--budget",
            "1200",
            "--limit",
            *limits,
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=tests,
        env=os.environ | {"PYTHON": warm_python()},
    )
    return done.returncode, read(out / "gpu_check.jsonl"), done.stdout + done.stderr


def rows(lines: list[dict[str, Any]], part: str, *keys: str) -> list[dict[str, Any]]:
    """Results of a part that have these keys."""
    return [
        line for line in lines if line["part"] == part and line["kind"] == "row" and all(key in line for key in keys)
    ]


@pytest.mark.slow
def test_every_part_runs_in_its_order_and_says_how_it_ended(whole) -> None:
    status, lines, output = whole
    ends = {line["part"]: line["state"] for line in lines if line["kind"] == "end"}
    assert list(ends) == [part.name for part in PARTS], output
    failed = [line for line in lines if line["kind"] == "end" and line["state"] != PASSED]
    assert [line["part"] for line in failed] == ["tests"], failed
    assert status == 1, "a test failed"
    assert len({line["run"] for line in lines}) == 1
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    (environment,) = rows(lines, "environment")
    assert environment["works"] and environment["packages"]["torch"] == torch.__version__ and environment["date"]


def test_every_case_and_every_test_is_a_line(whole) -> None:
    _, lines, _ = whole
    cases = rows(lines, "golden", "case")
    assert {row["case"] for row in cases} == {f"v2v/{path.name}" for path in (ROOT / "tests/golden/v2v").iterdir()}
    assert all(row["status"] == "ok" and row["largest_error_of_accepted"] < 1 for row in cases)
    assert rows(lines, "golden", "cases")[0]["ok"] == len(cases)
    tests = {row["test"].split("::")[1]: row["outcome"] for row in rows(lines, "tests", "test")}
    assert tests == {"test_that_passes": "passed", "test_that_fails": "failed"}


@pytest.mark.parametrize("part", ["prefill", "train", "decode"])
def test_budgets_are_measured_in_turn_beside_their_limits(whole, part: str) -> None:
    _, lines, _ = whole
    timed = rows(lines, part, "compression")
    sizes = measure.SIZES["tiny"]
    batches = {"prefill": sizes.batches, "train": sizes.steps[-1:], "decode": sizes.decoded}[part]
    first = [(row["batch"], row["compression"]) for row in timed[: len(batches) * len(sizes.budgets)]]
    assert first == [(size, name) for size in batches for name in sizes.budgets]
    rounds = [line for line in lines if line["part"] == part and line["kind"] == "round" and not line["warm_up"]]
    assert sum(len(line["seconds"]) for line in rounds) == len(timed) * sizes.rounds
    for row in timed:
        assert len(row["rounds"]["wall"]) == sizes.rounds and row["seconds"] > 0 and row["peak_mib"] is None
        assert row["quotient"] == pytest.approx(row["speedup"] / row["limit"])
        if part == "decode":
            rate = row["batch"] * sizes.new_tokens / row["seconds"]
            assert (
                row["units_per_second"] == pytest.approx(rate) and row["bytes_of_weights"] > row["bytes_of_cache"] / 99
            )
        elif row["compression"] != "none":
            saved, possible = 1 - 1 / row["speedup"], 1 - 1 / row["limit"]
            assert possible > 0.15 and row["share_of_flop_limit"] == pytest.approx(saved / possible)
    if part == "train":
        assert {row["gradients_of"] for row in timed} == {"all but the vision tower"}


def test_a_step_is_measured_padded_and_packed_with_every_kind_of_checkpointing_and_beside_peers(whole) -> None:
    _, lines, _ = whole
    timed = rows(lines, "train", "compression")
    found = {(row["text"], row["packing"], row["checkpointing"], row["peer"]) for row in timed}
    assert {("ragged", form, "on", "") for form in ("off", "on")} <= found
    assert {("equal", "on", kind, "") for kind in ("on", "off", "auto")} <= found
    for part in ("prefill", "train"):
        beside = {(row["compression"], row["peer"]) for row in rows(lines, part, "compression")}
        assert {("none", "transformers"), ("duet-64", "published")} <= beside
    assert {row["text"] for row in rows(lines, "prefill", "compression")} == {"equal", "ragged"}
    parts = rows(lines, "attribution", "parts_ms")
    assert [(row["mode"], row["compression"]) for row in parts] == [
        (mode, name) for mode in ("prefill", "train") for name in measure.SIZES["tiny"].budgets
    ]
    assert all({"tower", "loss" if row["mode"] == "train" else "splice"} <= row["parts_ms"].keys() for row in parts)


# ---------------------------------------------------------------------------------------------------- cut short


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, patience: float = 200) -> bool:
    end = time.monotonic() + patience
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_a_part_over_its_limit_is_killed_with_all_it_started(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']).pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    for limit in (2, 20, 200):  # on a busy machine it does not come to its point sooner
        record = ResultLog(tmp_path / f"{limit}.jsonl", "r", time.time())
        assert run_part("slow", python(code), limit, record) == OVER
        start, end = read(record.path)
        assert end["state"] == OVER and limit <= end["seconds"] < 900
        if end["output"]:
            break
    assert gone(start["pid"]) and gone(int(end["output"].split()[0]))


def test_how_a_part_ends_is_told_apart(tmp_path: Path) -> None:
    record = ResultLog(tmp_path / "out.jsonl", "r", time.time())
    assert run_part("good", python("pass"), 300, record) == PASSED
    assert run_part("bad", python("raise ValueError('why')"), 300, record) == FAILED
    assert run_part("crash", python("import os; os.abort()"), 300, record) == FAILED
    assert run_part("absent", python("raise SystemExit(3)"), 300, record) == NOT_RUN
    ends = [line for line in read(record.path) if line["kind"] == "end"]
    assert "ValueError: why" in ends[1]["output"] and ends[2]["status"] == -signal.SIGABRT


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_leaves_what_it_had_and_no_process(tmp_path: Path, kind: int) -> None:
    out = tmp_path / "out.jsonl"
    command = ["bash", str(SCRIPT), str(out), "--parts", "golden", "--device", "cpu"]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    try:
        wanted = "row" if kind == signal.SIGKILL else "start"  # importing torch takes seconds: once is enough
        while not (out.exists() and any(line["kind"] == wanted for line in read(out))):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(kind)
        assert run.wait(300) == {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[kind]
    finally:
        run.kill()
    lines = read(out)
    assert lines[0]["kind"] == "start" and gone(lines[0]["pid"])
    if kind == signal.SIGKILL:
        assert lines[1]["status"] == "ok"
    else:
        assert lines[-1]["kind"] == "end" and lines[-1]["state"] == "interrupted"


def test_a_file_that_was_cut_within_a_line_is_continued_on_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "gpu_check.jsonl").write_text('{"kept": 1}\n{"run": "x", "at"')
    path = place_of(tmp_path)
    ResultLog(path, "later", time.time()).add("part", "row", share=float("nan"), peaks=(float("inf"), 1.0))
    first, last = read(path)
    assert first == {"kept": 1} and (last["run"], last["share"], last["peaks"]) == ("later", "nan", ["inf", 1.0])


def test_out_of_memory_is_a_rows_result_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    task = task_of(tmp_path)
    calls: list[str] = []

    def run(name: str, fails_from: int) -> None:
        calls.append(name)
        if calls.count(name) >= fails_from:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    limits = {"none": 1, "duet-192": 99, "duet-128": 2, "duet-64": 99}
    cases = [Case(name, "off", partial(called, run, name, limit), work=2.0) for name, limit in limits.items()]
    monkeypatch.setitem(modes.MODES, "train", lambda setting: cases)
    measure._compare(task, "train", Setting(None, {}, (5, 5)))
    results = {line["compression"]: line for line in read(task.record.path) if line["kind"] == "row"}
    for name in ("none", "duet-128"):
        assert results[name]["error"] == "out of memory: CUDA out of memory. Tried to allocate 2 GiB."
    for name in ("duet-192", "duet-64"):
        assert len(results[name]["rounds"]["wall"]) == measure.SIZES["tiny"].rounds and results[name]["speedup"] is None


def called(run: Any, name: str, limit: int, _: object) -> None:
    run(name, limit)


def test_where_all_gradients_do_not_fit_a_few_layers_are_trained_and_it_says_so(tmp_path: Path, monkeypatch) -> None:
    task, given = task_of(tmp_path), []

    def attempt(case: Any, device: Any) -> tuple[Any, str | None]:
        given.append(case)
        return (None, "out of memory: all of it") if len(given) == 1 else clock.attempt(case, device)

    monkeypatch.setattr(measure, "attempt", attempt)
    small = dataclasses.replace(measure.SIZES["tiny"], steps=(1,), rounds=1, text=10)
    monkeypatch.setitem(measure.SIZES, "tiny", small)
    assert measure.train(task)
    found = read(task.record.path)
    assert [line["error"] for line in found if line["kind"] == "search"] == ["out of memory: all of it", None]
    timed = [line for line in found if "compression" in line]
    assert len(timed) == 2 and {line["gradients_of"] for line in timed} == {"the last 4 layers"}
    assert not any("utilisation" in line or "limit" in line for line in timed), (
        "its FLOPs are not those of a whole step"
    )


def task_of(folder: Path) -> measure.PartTask:
    record = ResultLog(folder / "out.jsonl", "r", time.time())
    return measure.PartTask("train", record, "cpu", "tiny", folder, folder, ends=time.monotonic() + 600)


# --------------------------------------------------------------------------------------------------- command line


def test_help_and_dry_run_start_nothing(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llava.bench.gpu_check.__main__.run_part", lambda *call: pytest.fail("a part was started"))
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and all(part.name in told and part.about[:30] in told for part in PARTS)
    monkeypatch.setenv("DRY_RUN", "1")
    assert main(["somewhere/out.jsonl", "--limit", "train=7"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in plan] == [
        *(part.name for part in PARTS),
        "in",
    ] and "train           7 s" in plan[4]
    assert list(tmp_path.iterdir()) == []


def test_all_limits_together_are_within_eight_minutes() -> None:
    assert sum(part.limit for part in PARTS) <= BUDGET == 8 * 60


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--parts", "golden", "speed"], "There is no part 'speed'; the parts are environment, golden"),
        (["--limit", "train"], "--limit is 'train'; it must be PART=SECONDS, such as train=60, at most 999999."),
        (["--limit", f"train={10**30}"], "it must be PART=SECONDS, such as train=60, at most 999999."),
        (["--limit", "train=0"], "--limit is 'train=0'; it must be PART=SECONDS"),
        (["--limit", "environment=²"], "--limit is 'environment=²'; it must be PART=SECONDS"),
    ],
)
def test_a_wrong_flag_is_a_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_budget_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--budget", "0"])
    assert stop.value.code == 2 and "argument --budget: it is '0'" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "out.jsonl")]) == 2
    assert "where nothing can be written" in capsys.readouterr().err


def test_results_go_to_a_file_or_a_folder_alone(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder" / "gpu_check.jsonl").mkdir(parents=True)
    for name in ("/dev/null", str(tmp_path / "pipe"), str(tmp_path / "folder")):
        assert main([name]) == 2
        assert f"OUT is {name!r}, but" in (said := capsys.readouterr().err) and "is no regular file" in said


def test_a_disk_that_fills_up_does_not_end_the_run(tmp_path: Path, monkeypatch, capsys) -> None:
    path, kept = tmp_path / "out.jsonl", os.write
    given = iter([None, 9, 0])

    def write(handle: int, data: bytes) -> int:
        taken = next(given, None)
        if taken == 0:
            raise OSError(28, "No space left on device")
        return kept(handle, data[:taken])

    monkeypatch.setattr("llava.bench.gpu_check.record.os.write", write)
    record = ResultLog(path, "r", time.time())
    for number in range(5):
        record.add("train", "end" if number == 4 else "row", value=number)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("did not take a result" in line and "No space left" in line for line in said)
    assert '"value": 1' in said[0] and '"value": 2' in said[1]
    assert [line["value"] for line in read(path)] == [0, 3, 4], "a line that was cut short spoils no other"
    assert record.holds(["train"]) and not record.holds(["train", "decode"])
    monkeypatch.setattr("llava.bench.gpu_check.record.os.write", lambda *call: 0)
    monkeypatch.setattr(
        "llava.bench.gpu_check.__main__.run_part", lambda name, *rest: rest[2].add(name, "end") or PASSED
    )
    assert main([str(path), "--parts", "golden"]) == 1
    assert "not all results could be written" in capsys.readouterr().out


def test_what_is_left_of_the_eight_minutes_limits_the_last_parts(tmp_path: Path, monkeypatch, capsys) -> None:
    given: list[tuple[str, float]] = []
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr("llava.bench.gpu_check.__main__.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(
        "llava.bench.gpu_check.__main__.run_part",
        lambda name, command, limit, record, *more: (
            given.append((name, limit)) or record.add(name, "end", state=PASSED) or PASSED
        ),
    )
    assert main([str(tmp_path), "--budget", "200"]) == 0
    assert given == [
        ("environment", 25),
        ("golden", 50),
    ]
    states = [line["state"] for line in map(json.loads, (tmp_path / "gpu_check.jsonl").read_text().splitlines())]
    assert states == [PASSED] * 2 + [NOT_RUN] * 5


def test_without_a_gpu_the_big_model_is_not_run_and_says_why(tmp_path: Path) -> None:
    task = measure.PartTask(
        "prefill", ResultLog(tmp_path / "o.jsonl", "r", 0.0), "cpu", "llava-1.5-7b", tmp_path, tmp_path, ends=1e9
    )
    with pytest.raises(measure.NotHereError, match="no GPU here"):
        measure.prefill(task)
