"""Text from outside in reports, tables and drawings: it is shown, and acts on nothing."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.runner.exit_status import exit_status
from llava.eval.tables.assemble import Line, Table
from llava.eval.tables.plots import accuracy_over_budget
from llava.eval.tables.render import comma_separated, latex, markdown
from playground.quickstart import charts, pictures
from playground.quickstart.report import main
from playground.quickstart.results import Question, Results, Setting, Trace
from playground.study.report import _conditions
from playground.study.summary import Row, Summary

HOSTILE = [
    "<script>alert(1)</script>\"'&<img src=x onerror=y>",
    "]]>",
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "$x_{",
    "=cmd|' /C calc'!A0",
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    " =1+1",
    "two\nlines",
    "a`b",
    "half \ud800 pair",
    "turned \u202e text",
    "--><style>*{display:none}</style>",
    "\\|",
    "&lt;b&gt;",
    "\\input{x}",
    "_hidden",
    "\x1b[2J",
]


class Outline(HTMLParser):
    """Counts elements with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag, tuple(name for name, _ in attrs)] += 1


def run(folder: Path, text: str) -> dict[str, Any]:
    """What a quickstart leaves, with a text in every place; returns the object of its results."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images" / "0.png")
    about = dict.fromkeys(("date", "system", "processor", "accelerator", "versions"), text)
    about |= {"image_folder": str(folder / "images"), "decoder_layers": 2, "text_tokens": 3}
    name = text.replace("-", "")  # what stands before a hyphen is a family, which has a line of its own
    settings = [Setting(label, {}, [4.0, 0.0], 10, [text], [(0.1, 1)]) for label in (f"none{name}", f"duet-{name}")]
    traces = [Trace(f"duet-{name}", 0, [1, 2, 3, 0], [0, 1, 1, -1], [1, None])]
    results = Results({}, about, [Question(text, "0.png", text, text, text)], settings, traces)
    results.save(folder / "results.json")
    curve = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    summary = {"curve": curve, "result": {"train_runtime": 1.0}, "average_visual_tokens": 3, "counts": {"samples": 1}}
    for phase in ("pretrain", "model"):
        (folder / phase).mkdir()
        (folder / phase / "train_summary.json").write_text(json.dumps(summary))
    step = text.translate(dict.fromkeys(map(ord, "\t\n\ud800\x1b")))
    (folder / "timings.tsv").write_text(f"{step}\t1.5\n", encoding="utf-8")
    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return loaded


def written(folder: Path, text: str) -> str:
    run(folder, text)
    main(["--folder", str(folder)])
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_the_report_has_no_element_or_attribute_from_outside(tmp_path: Path, text: str) -> None:
    clean, hostile = written(tmp_path / "clean", "plain"), written(tmp_path / "hostile", text)
    assert Outline(hostile).found == Outline(clean).found
    assert not set(hostile) & set("\u202e\ud800\x1b")


def test_each_piece_of_the_report_escapes_what_it_is_given(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    for text in HOSTILE:
        for piece in (charts.legend([text]), pictures.plain_picture(tmp_path / "0.png", text)):
            assert len(Outline(piece).found) <= 3 and "<script" not in piece and "<img" not in piece


WRONG: list[tuple[tuple[str | int, ...], Any]] = [
    (("settings", 0, "tokens_per_layer", 0), "<b>"),
    (("settings", 0, "flops"), None),
    (("settings",), []),
    (("settings", 0, "batch_seconds"), [["x", 1]]),
    (("settings", 0, "answers"), [3]),
    (("settings", 0), 7),
    (("traces", 0, "dropped_after", 0), "<b>"),
    (("traces", 0, "target", 0), 9),
    (("traces", 0, "question"), 5),
    (("traces", 0, "fate"), []),
    (("about",), []),
    (("about", "decoder_layers"), "<b>"),
    (("about", "date"), 3),
    (("questions", 0, "image"), "../secret.png"),
    (("questions", 0, "image"), "/etc/passwd"),
    (("questions", 0, "image"), "missing.png"),
    (("questions", 0, "text"), None),
    (("questions", 0, "extra"), 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_results_of_another_type_end_the_report_in_a_sentence(
    tmp_path: Path, path: tuple[str | int, ...], value: Any
) -> None:
    data = run(tmp_path, "plain")
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(SystemExit, match=r"^report: .*(results\.json|image folder|missing\.png)"):
        main(["--folder", str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def table(text: str) -> Table:
    lines = (Line(text, text, {text: 40.0}, {}, {}, None, 8.0, text, text),)
    return Table(text, text, (text,), (), False, lines, (text,))


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_keep_their_shape_and_hold_no_formula(text: str) -> None:
    clean, hostile = markdown(table("plain")), markdown(table(text))
    assert len(hostile.splitlines()) == len(clean.splitlines())
    assert not Outline(hostile).found and "](" not in hostile.replace("\\](", "")
    ours = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in hostile.splitlines()[2:5]]
    assert ours == [line.count("|") for line in clean.splitlines()[2:5]]
    assert len(latex(table(text)).splitlines()) == len(latex(table("plain")).splitlines())
    records = list(csv.reader(io.StringIO(comma_separated([table(text)]))))
    assert len(records) == 2 and len(records[0]) == len(records[1])
    assert not [cell for cell in records[1] if cell.lstrip()[:1] in tuple("=+-@\t\r") and not cell.isdigit()]
    assert records[1][4] == "8.00"
    for form in (hostile, latex(table(text)), comma_separated([table(text)])):
        form.encode("utf-8")


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_drawings_take_any_name_and_show_it_in_the_legend(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    series = {text: [(8.0, 1.0, 1.0, 1.0)] for text in HOSTILE}
    for title in ("$x_{", "$\\frac{", "half \ud800 pair"):
        assert accuracy_over_budget(series, tmp_path / f"plot{ending}", title=title, ylabel=title).is_file()


@pytest.mark.parametrize("text", HOSTILE)
def test_the_studys_conditions_stay_one_line_of_text(text: str) -> None:
    names = ("date", "processor", "system", "versions", "seeds", "pretrain_steps", "finetune_steps")
    row = Row("trained", "DUET C", 67, 1.0, (1,), 2, 0.5, (0.1, 0.9), None, None)
    line = _conditions(Summary(dict.fromkeys(names, text), [row]))
    assert len(line.splitlines()) == 1 and not Outline(line).found
    line.encode("utf-8")


def test_a_damaged_summary_of_the_study_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for text in ("[]", "{", '{"about": {}}', '{"about": {}, "rows": [{"half": 3}]}', '{"about": 3, "rows": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"summary\.json"):
            Summary.load(path)


PATH = "/nowhere/\x1b[2J\u202e.json"
COMMANDS = {
    "eval_textvqa": ["--annotation-file", PATH, "--result-file", PATH],
    "eval_pope": ["--annotation-dir", PATH, "--question-file", PATH, "--result-file", PATH],
    "eval_science_qa": ["--base-dir", PATH, "--result-file", PATH],
    "summarize_gpt_review": ["--files", PATH],
    "table": [PATH],
    "score": [PATH],
    "cost": ["--model-path", PATH, "--device", "cpu"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_on_the_command_line_does_not_act_on_the_terminal(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = import_module(f"llava.eval.{command}").main
    assert program(COMMANDS[command]) == 2
    said = capsys.readouterr().err
    assert r"\x1b[2J\u202e" in said and not {"\x1b", "\u202e"} & set(said)


@pytest.mark.parametrize(
    ("error", "status"),
    [(MemoryError(), 1), (RuntimeError("CUDA out of memory. Tried 2 GiB.\nMore."), 1), (RuntimeError("a bug"), None)],
)
def test_memory_that_runs_out_is_a_sentence_and_a_fault_keeps_its_traceback(
    error: Exception, status: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def program() -> int:
        raise error

    if status is None:
        with pytest.raises(RuntimeError, match="a bug"):
            exit_status(program)
    else:
        assert exit_status(program, kept="") == status
        assert capsys.readouterr().err.startswith("That takes more memory than there is (")
