"""Writes the quickstart's report: one HTML file that needs nothing else.

    python -m playground.quickstart.report --folder playground/output/quickstart

Reads what the quickstart left in the folder: results.json, the training summaries, the images and the times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common.atomic_write import write_whole
from llava.common.json_files import need, read_object
from llava.common.outside_files import read_text
from llava.common.path_flags import FOLDER_TO_READ
from llava.common.program import as_program
from llava.common.shown import printable, shown
from llava.data.images import image_path
from playground.quickstart import charts, pictures
from playground.quickstart.results import BLANK, Results, Row, Trace, plain, require_measured, rows
from playground.quickstart.svg import shown_html

COMMAND = "bash scripts/quickstart.sh"
PHASES = {"pretrain": "Phase 1: the projector learns to caption", "model": "Phase 2: instruction tuning"}


@dataclass(frozen=True)
class Run:
    """Everything that a report tells."""

    results: Results
    summaries: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    image_folder: Path

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a quickstart's output folder.

        Raises:
            ValueError: if a part of the run is missing.
        """
        needed = [folder / "results.json", *(folder / phase / "train_summary.json" for phase in PHASES)]
        for path in needed:
            if not path.is_file():
                raise ValueError(f"{str(path)!r} is missing; run `{COMMAND}` first.")
        results = Results.load(needed[0])
        summaries = {phase: _summary(folder / phase / "train_summary.json") for phase in PHASES}
        times = folder / "timings.tsv"
        seconds = _seconds(times) if times.is_file() else {}
        place = f"'{needed[0]}': about"
        for key in ("image_folder", "date", "system", "processor", "accelerator", "versions"):
            need(results.about, key, str, place)
        for key in ("decoder_layers", "text_tokens"):
            need(results.about, key, int, place)
        require_measured(results, needed[0])
        return cls(results, summaries, seconds, Path(results.about["image_folder"]))


def _summary(path: Path) -> dict[str, Any]:
    """A training's summary, with what the report takes from it held against what it may be."""
    summary, place = read_object(path, f"run `{COMMAND}` again", mark=False), repr(str(path))
    need(summary, "average_visual_tokens", float, place)
    need(need(summary, "counts", dict, place), "samples", int, f"{place}: counts")
    need(need(summary, "result", dict, place), "train_runtime", float, f"{place}: result", optional=True)
    for number, entry in enumerate(need(summary, "curve", list, place)):
        if not isinstance(entry, dict):
            raise ValueError(f"curve[{number}] in {place} is {shown(entry)}; it must be an object with step and loss.")
        for key in ("step", "loss"):
            need(entry, key, float, f"{place}: curve[{number}]")
    return summary


def _seconds(path: Path) -> dict[str, float]:
    """Seconds of each step: lines of a name, a tab and a number."""
    seconds = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, _, value = line.partition("\t")
        try:
            seconds[name] = float(value)
        except ValueError as error:
            raise ValueError(
                f"Line {number} of {str(path)!r} is {shown(line)}; it must be a name, a tab and seconds."
            ) from error
    return seconds


def tiles(table: Sequence[Row]) -> str:
    """The findings in four figures."""
    dense = table[0]
    blank = next((row for row in table if row.name == BLANK), None)
    duet = [row for row in table if row.name.startswith("duet")]
    shown = [(f"{dense.accuracy.value:.1%}", f"right without compression ({dense.tokens:.0f} visual tokens)")]
    shown += [(f"{row.accuracy.value:.1%}", f"right with {row.fewer_tokens:.0%} fewer, {row.name}") for row in duet]
    if blank is not None:
        shown.append((f"{blank.accuracy.value:.1%}", "right with blank images: what can be guessed"))
    cells = (f'<div class="tile"><b>{value}</b><span>{shown_html(text)}</span></div>' for value, text in shown)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table_section(table: Sequence[Row], questions: int, about: dict[str, Any]) -> str:
    """The table."""
    cost = ("visual tokens", "fewer", "GFLOPs", "of dense", "ms / question", "of dense")
    heads = "".join(f"<th>{head}</th>" for head in ("configuration", "right", "95 % interval", *cost))
    body = "".join(_table_row(row, table) for row in table)
    layers, text_tokens = (shown_html(about[key]) for key in ("decoder_layers", "text_tokens"))
    return f"""<section><h2>Accuracy and cost</h2>
<p class="note">{questions:,} held-out questions, greedy answers. Visual tokens: average over the decoder's
{layers} layers, counted while the model ran. FLOPs: one prefill, vision tower included, with
{text_tokens} text tokens, by formula. Time: from pixels in memory to text, median over batches that were
answered under all configurations in turn. Intervals: Wilson. Random: one draw of patches, the same for all images.</p>
<div class="scroll"><table><thead><tr>{heads}</tr></thead>
<tbody>{body}</tbody></table></div></section>"""


def _table_row(row: Row, table: Sequence[Row]) -> str:
    position = table.index(row)
    is_new_family = position > 0 and charts.family(row.name) != charts.family(table[position - 1].name)
    cells = (
        f'<i style="background:{charts.colour(row.name)}"></i>{shown_html(row.name)}',
        f"<b>{row.accuracy.value:.1%}</b>",
        f'<span class="muted">{row.accuracy.low:.1%} – {row.accuracy.high:.1%}</span>',
        *map(shown_html, row.costs),
    )
    mark = ' class="first"' if is_new_family else ""
    return f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def charts_section(results: Results, table: Sequence[Row]) -> str:
    """Accuracy over budget, and the staircase."""
    families = list(dict.fromkeys(charts.family(row.name) for row in table if row.name != BLANK))
    return f"""<div class="side-by-side gap"><section><h2>Accuracy over budget</h2>
{charts.legend(families)}{charts.accuracy_chart(table)}</section>
<section><h2>Visual tokens, layer by layer</h2>
<p class="note">V2V sets where a staircase begins, T2V makes the steps. Random and uniform selection have the same
steps as DUET.</p>
{charts.staircase_chart(results)}</section></div>"""


def loss_section(summaries: dict[str, dict[str, Any]]) -> str:
    """A loss curve for each phase."""
    panels = []
    for phase, title in PHASES.items():
        curve = [(entry["step"], entry["loss"]) for entry in summaries[phase]["curve"]]
        runtime = summaries[phase]["result"].get("train_runtime")
        spent = f", {float(runtime):.0f} s of training" if runtime else ""
        tokens = summaries[phase]["average_visual_tokens"]
        note = (
            f"{summaries[phase]['counts']['samples']:,} samples{spent}, {tokens:.4g} visual tokens per layer on average"
        )
        chart = charts.loss_chart(curve, title) if curve else "<p>The run was too short to log a loss.</p>"
        panels.append(f'<section><h2>{title}</h2><p class="note">{note}.</p>{chart}</section>')
    return f'<div class="side-by-side gap">{"".join(panels)}</div>'


def examples_section(run: Run) -> str:
    """Images with their patches marked, budget beside budget."""
    by_question: dict[int, list[Trace]] = {}
    for trace in run.results.traces:
        by_question.setdefault(trace.question, []).append(trace)
    if not by_question:
        return ""
    examples = "".join(_example(run, number, traces) for number, traces in by_question.items())
    return f"""<section><h2>Where the patches go</h2>
<p class="note">The first held-out questions of each kind; not chosen by outcome.</p>
{pictures.legend(run.results.traces[0])}{examples}</section>"""


def _example(run: Run, number: int, traces: Sequence[Trace]) -> str:
    question = run.results.questions[number]
    image = f"image-{number}"
    whole = pictures.plain_picture(image_path(run.image_folder, question.image), image)
    dense = run.results.settings[0]
    figures = [_figure(whole, dense.name, dense.answers[number], question.answer)]
    for trace in traces:
        answer = run.results.setting(trace.setting).answers[number]
        figures.append(_figure(pictures.marked_picture(image, trace), trace.setting, answer, question.answer))
    heading = f'{shown_html(question.text)} <span class="muted">{shown_html(question.answer)}</span>'
    return f"""<div class="example"><h3>{heading}</h3>
<div class="pictures">{"".join(figures)}</div></div>"""


def _figure(picture: str, name: str, answer: str, expected: str) -> str:
    verdict = "right" if plain(answer) == plain(expected) else "wrong"
    caption = f'{shown_html(name)}: <span class="{verdict}">{shown_html(answer) or "(nothing)"}</span>'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def run_section(run: Run) -> str:
    """Command, machine, versions and times."""
    about = run.results.about
    steps = ", ".join(f"{name.lower()} {value:.0f} s" for name, value in run.seconds.items() if name != "Report")
    facts = {
        "Command": f"<code>{COMMAND}</code>",
        "Date": shown_html(about["date"]),
        "Machine": shown_html(f"{about['system']}; {about['processor']}; accelerator: {about['accelerator']}"),
        "Versions": shown_html(about["versions"]),
        "Steps": shown_html(steps),
    }
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f"<section><h2>What was run</h2><dl>{items}</dl></section>"


def page(run: Run) -> str:
    """The whole document."""
    table = rows(run.results)
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    parts = [
        tiles(table),
        table_section(table, len(run.results.questions), run.results.about),
        charts_section(run.results, table),
        examples_section(run),
        loss_section(run.summaries),
        run_section(run),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>DUET-LLaVA quickstart</title><style>{style}</style></head><body>
<h1>DUET-LLaVA quickstart</h1>
<p class="lead">A tiny LLaVA, trained in two phases with two-stage visual-token compression, answering questions about
images it has never seen, at several token budgets.</p>
{pictures.STRIPES}{"".join(parts)}</body></html>
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Writes report.html into a quickstart's output folder.")
    parser.add_argument("--folder", type=FOLDER_TO_READ, required=True, help="output folder of the quickstart")
    folder = parser.parse_args(arguments).folder
    try:
        text = page(Run.read(folder))
    except (ValueError, OSError) as error:
        sys.exit(f"report: {printable(error, lines=True)}")
    write_whole(folder / "report.html", text)
    print(f"Wrote {folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(as_program(main))
