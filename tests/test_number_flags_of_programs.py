"""Numbers on the command lines beside training's: what no program can mean ends it with a sentence and status 2."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.common.number_flags import Numbers
from llava.eval.runner.flags import RANGES, check_options
from llava.eval.runner.vqa_command import vqa_parser
from llava.inference.generation import GenerationSettings

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("llava", "scripts", "playground") for path in sorted((ROOT / folder).rglob("*.py"))]
PROGRAMS = (
    "llava.doctor.__main__",
    "llava.serve.cli",
    "llava.serve.web.__main__",
    "llava.serve.embed",
    "llava.serve.api.__main__",
    "llava.cost.overview",
    "llava.eval.eval_gpt_review_bench",
    "llava.eval.run_llava",
    "llava.eval.cost",
    "llava.eval.eval_video_qa",
    "llava.verify.__main__",
    "llava.bench.__main__",
    "llava.bench.data_memory",
    "llava.bench.serving",
    "llava.bench.loader",
    "llava.bench.gpu_check.child",
    "llava.bench.gpu_check.__main__",
    "llava.data.check.command",
    "playground.world.__main__",
    "playground.clips.__main__",
    "playground.quickstart.evaluate",
    "playground.study.__main__",
    "playground.study.video.__main__",
    "playground.make_assets",
)
ANY_WHOLE_NUMBER = ("--ignore", "--passes")  # ids that are compared alone, and a choice of three
TRIED = ("nan", "inf", "-inf", "1e39", str(10**30), "-1", "")


class ParserMade(BaseException):
    """A program has come as far as to read its command line."""


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a program, which is stopped before it reads a word."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise ParserMade(parser)

    module = importlib.import_module(name)
    with monkeypatch.context() as patch, pytest.raises(ParserMade) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program"])
        module.main()
    parser: argparse.ArgumentParser = caught.value.args[0]
    return parser


def flags_of(call: ast.Call) -> list[str]:
    return [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]


def test_no_flag_of_a_program_takes_any_number_there_is() -> None:
    """`type=int` and `type=float` let -1, NaN and 10^30 in; such a flag is in llava/eval/runner/flags.py."""
    bare, ranged = [], set()
    for path in FILES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for word in call.keywords if isinstance(call, ast.Call) else ():
                if word.arg != "type" or not flags_of(call):
                    continue
                if isinstance(word.value, ast.Name) and word.value.id in ("int", "float"):
                    bare += [(str(path.relative_to(ROOT)), flag) for flag in flags_of(call)]
                elif "count" in ast.dump(word.value) or "share" in ast.dump(word.value):
                    ranged.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    asked = [flag for path, flag in bare if path.startswith("llava/eval/") and flag.startswith("--")]
    loose = [flag for flag in asked if flag[2:].replace("-", "_") not in RANGES]
    assert set(loose) <= {*ANY_WHOLE_NUMBER, "--dominant_num", "--context_num"}, "their other names are in the table"
    assert {flag for path, flag in bare if not path.startswith("llava/eval/")} <= {*ANY_WHOLE_NUMBER}
    shared = {"llava.inference.loading_flags", "llava.cost.medium_flags"}  # in programs that are named
    assert ranged <= {*PROGRAMS, *shared}


@pytest.mark.parametrize("name", PROGRAMS)
def test_numbers_out_of_range_end_a_program_with_a_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(name, monkeypatch)
    numeric = [action for action in parser._actions if isinstance(action.type, Numbers)]
    assert numeric, "a program without numbers need not be named here"
    for action in numeric:
        assert isinstance(action.type, Numbers)
        for value in TRIED:
            if value == "-1" and action.type.checked_later:
                continue  # the program's own sentence, with its own test
            with pytest.raises(SystemExit) as caught:
                parser.parse_args([f"{action.option_strings[0]}={value}"])
            said = capsys.readouterr().err
            assert caught.value.code == 2
            assert f"argument {'/'.join(action.option_strings)}: it is '{value}'; it must be {action.type}" in said
        usual = action.default if isinstance(action.default, list) else [action.default]
        assert all(value is None or value in action.type for value in usual)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_numbers_out_of_range_are_refused_before_a_model_is_asked(name: str) -> None:
    fitting = vars(vqa_parser("x", "y", "q", "v", 1).parse_args(["--model-path", "m"]))
    check_options(argparse.Namespace(**fitting))
    real = name in ("temperature", "top_p")
    for value in (float("nan"), float("inf"), -0.5, 1e39) if real else (-1, 10**30):
        with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} is .*; it must be .*\d"):
            check_options(argparse.Namespace(**(fitting | {name: value})))


def test_a_temperature_that_is_no_number_is_not_taken_for_the_likeliest_token() -> None:
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="temperature is "):
            GenerationSettings(value)


@pytest.mark.parametrize("value", [0, 1e-45, 1e-38])
def test_a_temperature_that_logits_cannot_be_divided_by_takes_the_likeliest_token(value: float) -> None:
    """Every question ended in `probability tensor contains either inf, nan or element < 0`."""
    assert GenerationSettings(value, top_p=0.5).options() == {"do_sample": False, "temperature": 1.0, "top_p": 1}
