"""What a script finds in a folder that is not its own stays as it is: programs of several steps, and environments."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fake_machine import ROOT, Shell

PYTHON = """
after() { while [ "$1" != "$flag" ]; do shift; done; printf '%s' "$2"; }
if [ "$1" = - ]; then exit "${LACKING:-0}"; fi # what setup.sh asks
echo "$*" >>"$LOG"
case "$*" in
    *sys.executable*) echo "$0" ;;
    *playground.world*) flag=--out; mkdir -p "$(after "$@")"; echo made >"$(after "$@")/test.jsonl" ;;
    *train_mem.py*)
        flag=--output_dir; mkdir -p "$(after "$@")"
        echo made >"$(after "$@")/weights"
        exit "${STATUS:-0}"
        ;;
    *quickstart.report*) flag=--folder; echo made >"$(after "$@")/report.html" ;;
    *llava.data.check* | *quickstart.evaluate* | *llava.eval.run*) echo made >"${@: -1}" ;;
esac
"""
QUICKSTART, REPRODUCE = ("scripts/quickstart.sh",), ("scripts/reproduce.sh", "duet-64")
PLACE = {QUICKSTART: "QUICKSTART_OUTPUT", REPRODUCE: "OUTPUT"}
STEPS = {"playground.world": 1, "train_mem.py": 2, "quickstart.evaluate": 1, "quickstart.report": 1}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A machine on which every program of a step only writes what the step is for."""
    return Shell(tmp_path / "bin", {"python": PYTHON})


def variables(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"LOG": str(tmp_path / "log"), "PYTHON": "python", "DEVICE": "cpu", **more}


def ran(tmp_path: Path) -> dict[str, int]:
    """How often each step ran since the last time."""
    log = tmp_path / "log"
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return {name: count for name in STEPS if (count := sum(name in line for line in text.splitlines()))}


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


PLACES = {
    "full": ("holds model, results.json and was not made by", "own/full"),
    "hidden files": ("holds .config and was not made by", "own/hidden"),
    "a link to a folder": ("holds model, results.json and was not made by", "own/link"),
    "a link that leads nowhere": ("a link that leads nowhere", "own/dangling"),
    "a file": ("which is a file; name a folder", "own/file"),
    "the repository": ("CONTRIBUTING.md", "."),
    "above it": ("and was not made by", ".."),
    "everything": ("and was not made by", "/"),
    "a tilde": ("in which nothing replaced the ~", "~/out"),
    "a flag": ("looks like an option; write './-rf'", "-rf"),
    "two lines": ("has a line break", "own/a\nb"),
    "a pattern": ("holds model, results.json and was not made by", "own/[a]*"),
    "another program's": ("was not made by", "own/others"),
}


@pytest.mark.parametrize("script", PLACE, ids=lambda words: words[0])
def test_a_folder_of_the_users_is_refused_and_left_as_it_is(
    script: tuple[str, ...], shell: Shell, tmp_path: Path
) -> None:
    for folder in ("full", "[a]*"):
        (tmp_path / "own" / folder / "model").mkdir(parents=True)
        (tmp_path / "own" / folder / "model/weights").write_text("months of work")
        (tmp_path / "own" / folder / "results.json").write_text("{}")
    for name, text in (("hidden/.config", "mine"), ("file", "mine"), ("others/.made-by", "scripts/other.sh\n")):
        (tmp_path / "own" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    (tmp_path / "own/link").symlink_to(tmp_path / "own/full")
    (tmp_path / "own/dangling").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    for sentence, place in PLACES.values():
        given = str(tmp_path / place) if place.startswith("own/") else place
        own = variables(tmp_path, **{PLACE[script]: given, "QUICKSTART_FRESH": "1"})
        status, out, err = shell.run(*script, **own)
        assert (status, out) == (2, ""), (place, err)
        assert err.startswith(f"error: {PLACE[script]} is '{given.replace(chr(10), '?')}'") and err.count("\n") == 1
        assert sentence in err or place == "."
    assert contents(tmp_path) == before


def test_doing_everything_again_removes_what_the_steps_made_and_nothing_else(shell: Shell, tmp_path: Path) -> None:
    output = tmp_path / "new folder"
    own = variables(tmp_path, QUICKSTART_OUTPUT=str(output))
    output.mkdir()
    status, _, err = shell.run(*QUICKSTART, **own)
    assert status == 0 and ran(tmp_path) == STEPS, err
    notes = {output / "notes.txt": "mine", output / "model-hf/config.json": "{}"}
    for path, text in notes.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (output / "model/old").write_text("")
    assert shell.run(*QUICKSTART, **own)[0] == 0 and ran(tmp_path) == {}, "what is done is done"
    status, _, err = shell.run(*QUICKSTART, QUICKSTART_FRESH="1", **own)
    assert status == 0 and ran(tmp_path) == STEPS, err
    assert not (output / "model/old").exists()
    assert all(path.read_text() == text for path, text in notes.items())
    assert shell.run(*QUICKSTART, QUICKSTART_TRAIN="7", **own)[0] == 0
    assert ran(tmp_path) == STEPS and all(path.exists() for path in notes), "other settings begin anew"


def test_a_folder_in_the_way_of_a_step_is_not_removed(shell: Shell, tmp_path: Path) -> None:
    own = variables(tmp_path, QUICKSTART_OUTPUT=str(tmp_path / "out"))
    assert shell.run(*QUICKSTART, STATUS="75", **own)[0] == 75
    ran(tmp_path)
    (tmp_path / "out/model").mkdir()
    (tmp_path / "out/model/weights").write_text("months of work")
    status, _, err = shell.run(*QUICKSTART, **own)
    assert status == 2 and "model is there, but scripts/quickstart.sh did not make it" in err
    assert (tmp_path / "out/model/weights").read_text() == "months of work" and ran(tmp_path) == {"train_mem.py": 1}
    (tmp_path / "out/model").rename(tmp_path / "mine")
    assert shell.run(*QUICKSTART, **own)[0] == 0
    assert ran(tmp_path) == {"train_mem.py": 1, "quickstart.evaluate": 1, "quickstart.report": 1}


def test_output_of_an_earlier_version_goes_on(shell: Shell, tmp_path: Path) -> None:
    """Its folder has the markers of its steps alone."""
    output = tmp_path / "out"
    for script in PLACE:
        own = variables(tmp_path, **{PLACE[script]: str(output)})
        assert shell.run(*script, **own)[0] == 0
        ran(tmp_path)
        (output / ".made-by").unlink()
        status, out, err = shell.run(*script, **own)
        assert status == 0 and "done already" in out and not ran(tmp_path), err
        other = next(each for each in PLACE if each != script)
        status, _, err = shell.run(*other, **variables(tmp_path, **{PLACE[other]: str(output)}))
        assert status == 2 and f"was not made by {other[0]} but by {script[0]}" in err
        shutil.rmtree(output)
    output.mkdir()
    (output / ".done-with-this").write_text("a note of the user's")
    status, _, err = shell.run(*QUICKSTART, **variables(tmp_path, QUICKSTART_OUTPUT=str(output)))
    assert status == 2 and "holds .done-with-this" in err


def test_an_environment_of_the_users_gets_no_packages(shell: Shell, tmp_path: Path) -> None:
    """Installing into it would change versions that other work of theirs needs."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", project / "scripts", symlinks=True)
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    before = contents(project)
    own = {"LACKING": "1", **variables(tmp_path)}
    for place in ({}, {"VENV": str(project)}):
        status, out, err = Shell(tmp_path / "bin", {"python": PYTHON}, root=project).run(
            "scripts/test.sh", **own, **place
        )
        assert (status, out) == (2, "") and "was not made by this script, which leaves it as it is" in err
    assert contents(project) == before


def test_a_path_to_python_may_have_spaces(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "my env", {"python": PYTHON})
    own = variables(tmp_path, QUICKSTART_OUTPUT=str(tmp_path / "out")) | {"PYTHON": str(tmp_path / "my env/python")}
    status, out, err = shell.run(*QUICKSTART, **own)
    assert status == 0 and ran(tmp_path) == STEPS, err
    for script in (*PLACE, ("scripts/v1_5/pretrain.sh",), ("scripts/v1_5/eval/pope.sh",), ("scripts/gpu_check.sh",)):
        for wrong in ("python -u", "/nowhere/python", str(tmp_path), "-c", "$(touch x)"):
            own = {"PYTHON": wrong, "DEVICE": "cpu", "LAUNCHER": "python", "OUTPUT": str(tmp_path / "o")}
            status, out, err = shell.run(*script, **own)
            assert (status, out) == (2, "") and err.count("\n") <= 2, (script, wrong, err)
            assert f"error: PYTHON is '{wrong}', which is no program that can be run here." in err
