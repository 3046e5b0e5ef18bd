"""`python -m llava.bench.loader`: what the loader gives alone, beside what training takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.bench.__main__ import main as bench
from llava.bench.loader import main, training_rates
from llava.cost.dimensions import CLIP_L_336
from llava.cost.flops import training_flops
from llava.cost.shapes import MODELS


def test_figures_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--workers", "0", "1", "--batch-size", "2", "--batches", "2", "--rate", "10", "--json", str(tmp_path / "f")])
    found = json.loads((tmp_path / "f").read_text())
    assert found["fastest"] == 10
    core = found["milliseconds_of_a_core"]
    assert set(core) == {"text", "opening", "pixels", "batch"} and min(core.values()) > 0
    of_core = 1000 / sum(core.values())
    assert found["samples_per_second_of_a_core"] == pytest.approx(of_core)
    assert found["cores_for_twice_the_fastest"] == pytest.approx(20 / of_core)
    assert [one["workers"] for one in found["loaders"]] == [0, 1]
    said = capsys.readouterr().out
    for one in found["loaders"]:
        assert f"loader, {one['workers']} workers: {one['samples_per_second']:.0f} samples/s" in said


def test_own_data_is_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a word"}]
    (tmp_path / "own.json").write_text(json.dumps([{"id": "one", "conversations": turns}] * 3))
    data = ["--data-path", str(tmp_path / "own.json"), "--image-folder", str(tmp_path)]
    main([*data, "--workers", "0", "--batch-size", "2", "--batches", "1", "--json", str(tmp_path / "f")])
    assert json.loads((tmp_path / "f").read_text())["milliseconds_of_a_core"]["opening"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-path", "nowhere.json", "--image-folder", "."], "nowhere.json"),
        (["--hfu", "0"], "argument --hfu: it is '0'; it must be a number above 0 to 1"),
    ],
)
def test_what_cannot_be_measured_is_said_in_words(words: list[str], said: str, capsys, monkeypatch, tmp_path) -> None:
    """They ended in a traceback, the second after everything was measured."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_a_device_that_torch_does_not_know_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["--shape", "tiny", "--device", "foo"]) == 2
    assert "bench: --device is 'foo', which this torch cannot use" in capsys.readouterr().err


def test_rates_of_training_are_those_of_the_cost() -> None:
    """A dense sample with 200 words and no checkpointing, by the formula of a decoder layer."""
    rates = training_rates(989.4, 0.45)
    work = training_flops((576,) * 32, 200, MODELS["llava-1.5-7b"], CLIP_L_336, passes=3)
    assert rates["none"]["finetune"] == pytest.approx(989.4e12 * 0.45 / work)
    for phase in ("finetune", "pretrain"):
        assert [rates[name][phase] for name in rates] == sorted(rates[name][phase] for name in rates)
