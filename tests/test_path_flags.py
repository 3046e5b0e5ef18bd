"""Paths and names of models on command lines: what can be none ends a program with a sentence that names the flag."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_number_flags_of_programs import FILES, ROOT, ParserMade, flags_of

from llava.common.path_flags import FOLDER_TO_WRITE, MODEL, Paths, require_model
from llava.model.builder import load_pretrained_model
from llava.train.arguments import parse_arguments
from llava.train.ranges import PATHS

THROUGH_OTHERS = ("llava/eval/run_llava.py", "llava/eval/model_vqa.py", "llava/eval/model_vqa_loader.py")
"""Programs whose flags of paths all stand in modules that they share."""
PROGRAMS = sorted(
    {
        str(path.relative_to(ROOT))
        for path in FILES
        if all(
            word in path.read_text(encoding="utf-8") for word in ("path_flags import", "ArgumentParser(", "def main")
        )
    }
    | set(THROUGH_OTHERS)
)
NEVER = {
    " ": "blank",
    "\t": "blank",
    "a\0b": "NUL",
    "\ud800": "UTF-8",
    "a/\udcff/b": "UTF-8",
    "x" * 5000: "bytes",
    "x/" * 2500: "bytes",
    "d/" + "y" * 256: "255",
    "~nobody-here/x": "nobody here",
    "~nobody-here": "nobody here",
}
NO_MODEL = ("my model!", "a/b/c", "a--b", "a..b", "x" * 97, "owner/", "/nowhere", "./x", "ä", *NEVER)


def module_of(place: str) -> ModuleType:
    if not place.startswith("scripts/"):
        return importlib.import_module(place.removesuffix(".py").replace("/", "."))
    spec = importlib.util.spec_from_file_location(Path(place).stem, ROOT / place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser_of(place: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a program, which is stopped before it reads a word."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise ParserMade(parser)

    module = module_of(place)
    with monkeypatch.context() as patch, pytest.raises(ParserMade) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program"])
        module.main()
    parser: argparse.ArgumentParser = caught.value.args[0]
    return parser


def test_no_flag_takes_any_text_for_a_path() -> None:
    bare, untyped = [], []
    for path in FILES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func).split(".")[-1] not in ("add", "add_argument"):
                continue
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if words.get("type") in ("Path", "pathlib.Path", "str"):
                bare += flags_of(call)
            names = ("path", "folder", "file", "dir", "out", "output", "model", "base", "tokenizer", "json", "target")
            if not {"type", "action", "choices"} & words.keys():
                untyped += [flag for flag in flags_of(call) if flag.strip("-").split("-")[-1] in names]
    assert bare == []
    assert set(untyped) == {"--answers-file", "--api-base"}, "they have checks of their own"


@pytest.mark.parametrize("place", PROGRAMS)
def test_what_can_be_no_path_ends_a_program_with_a_sentence(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parser = parser_of(place, monkeypatch)
    actions = [action for action in parser._actions if isinstance(action.type, Paths)]
    assert actions
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for action in actions:
        kind = action.type.kind
        wrong = {"file": {str(tmp_path / "folder"): "a folder"}, "folder": {str(tmp_path / "file"): "a file"}}
        for value, why in (NEVER | wrong.get(kind, {})).items():
            words = [f"{action.option_strings[0]}={value}"] if action.option_strings else [value]
            if not action.option_strings:  # positional ones before it
                before = [one for one in parser._actions if not one.option_strings and one is not action]
                words = ["x"] * (len(before) if action is not parser._get_positional_actions()[0] else 0) + words
            with pytest.raises(SystemExit) as caught:
                parser.parse_args(words)
            said = capsys.readouterr().err.splitlines()[-1]
            assert caught.value.code == 2 and len(said) < 500
            assert "argument " in said and "; it must name " in said and why in said, (words, said)


def test_a_tilde_is_a_home_folder_and_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert FOLDER_TO_WRITE("~/results") == tmp_path / "results" and MODEL("~/m") == str(tmp_path / "m")
    (tmp_path / "~x").mkdir()
    assert FOLDER_TO_WRITE("~x") == Path("~x"), "what exists under a name is meant by it"
    assert MODEL("liuhaotian/llava-v1.5-7b") == "liuhaotian/llava-v1.5-7b"


@pytest.mark.parametrize("flag", sorted(PATHS))
def test_training_names_the_flag_of_what_can_be_no_path(flag: str, tmp_path: Path) -> None:
    for value in NEVER:
        with pytest.raises(ValueError, match=rf"^--{flag}: it is .*; it must name .*, but "):
            parse_arguments([f"--data_path={tmp_path}", f"--output_dir={tmp_path}", f"--{flag}={value}"])


@pytest.mark.parametrize(
    "name", ["my model!", "a/b/c", "a--b", "a..b", "x" * 97, "owner/", "/nowhere", "./x", "ä", *NEVER]
)
def test_a_name_that_no_model_can_have_is_said_before_the_hub_is_asked(name: str) -> None:
    with pytest.raises(ValueError, match=r"give the folder of a model|named wrongly") as caught:
        load_pretrained_model(name)
    assert "alphanumeric" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=r"give the folder of a model|named wrongly"):
        require_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ValueError, match=r"it must name the folder of a model, .*, but this is a file"):
        load_pretrained_model(str(path))
    with pytest.raises(ValueError, match="this is a pipe, socket or device"):
        load_pretrained_model(os.devnull)
