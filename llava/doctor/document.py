"""The parts of the documents on training that follow from the code: flags, resuming, memory, the recipes' variables.

python -m llava.doctor.document           # writes them anew
python -m llava.doctor.document --check   # says whether they are fresh; status 1 if not

A generated part stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import transformers

from llava.common.atomic_write import write_whole
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.cost.memory import GIB, STAGES, RecipeSetting, peak_memory, why_not
from llava.cost.recipes import RECIPES
from llava.cost.shapes import ModelShape
from llava.train.arguments import RENAMED, WITHOUT_EFFECT, DataArguments, ModelArguments, TrainingArguments
from llava.train.foreign_flags import FOREIGN
from llava.train.resuming import GROUPS, Change
from llava.train.supported import REFUSED, SOME_VALUES, WITHOUT_EFFECT_HERE, support_of

ROOT = Path(__file__).resolve().parents[2]
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Differences that are no argument's, or more than one's.
_COMPARED = (
    ("samples of a step (devices x batch size x accumulation), order or content of the data", Change.REFUSED.value),
    ("number of processes, batch size of a device at the same samples of a step, without ZeRO", Change.WARNED.value),
    ("number of processes, with ZeRO, which cuts its optimizer state by rank", "error: start as many"),
    ("whether projector or tower have a learning rate of their own", Change.REFUSED.value),
    ("a learning rate under `--lr_scheduler_type reduce_lr_on_plateau` or `greedy`", Change.REFUSED.value),
    ("content of the language model, tower, image processor, projector, adapters or tokenizer", Change.REFUSED.value),
)


def arguments() -> str:
    """A table of the flags of `llava/train/train_mem.py` that are not transformers' own."""
    lines = ["| flag | default | |", "|---|---|---|"]
    own = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for kind in (ModelArguments, DataArguments, TrainingArguments):
        for field in dataclasses.fields(kind):
            changed = kind is TrainingArguments and field.name in own
            if not changed or field.name in kind.__annotations__:
                text = field.metadata.get("help", "").replace("|", "\\|")
                default = "" if field.default in (None, "") else f"`{field.default}`"
                lines.append(f"| `--{field.name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def spellings() -> str:
    """Old names of flags, and what became of them."""
    renamed = [f"| `--{old}` | `--{new}` |" for old, new in RENAMED.items()]
    gone = [f"| `--{name}` | accepted, without effect |" for name in sorted(WITHOUT_EFFECT)]
    return "\n".join(["| as in LLaVA's scripts | now |", "|---|---|", *renamed, *gone]) + "\n"


def transformers_arguments() -> str:
    """What becomes of each of transformers' `TrainingArguments`."""
    lines = ["| transformers' flag | | |", "|---|---|---|"]
    for field in dataclasses.fields(transformers.TrainingArguments):
        kind = support_of(field.name)
        if kind == "some values":
            accepted, why = SOME_VALUES[field.name]
            text = f"{', '.join(f'`{value}`' for value in accepted)}: {why}"
        else:
            text = {**REFUSED, **WITHOUT_EFFECT_HERE}.get(field.name, "")
        lines.append(f"| `--{field.name}` | {kind} | {text} |")
    return "\n".join(lines) + "\n"


def foreign() -> str:
    """Flags of other programs that are refused."""
    lines = [f"| `{name}` | {why} |" for name, why in FOREIGN.items()]
    return "\n".join(["| flag of another program, or of an older transformers | |", "|---|---|", *lines]) + "\n"


def memory() -> str:
    """GiB of each of 8 devices for every recipe of the 7B model, for its longest rows, with checkpointing."""
    shape, compression = ModelShape.of("llava-1.5-7b"), CompressionConfig.from_preset("duet-192")
    header = "| recipe | rows a device | " + " | ".join(f"ZeRO-{stage.name}" for stage in STAGES) + " |"
    lines = [header, "|---|---|" + "---|" * len(STAGES)]
    for recipe in RECIPES.values():
        setting = RecipeSetting(recipe, shape, compression, batch_size=recipe.batch_size)
        cells = [
            "no" if why_not(recipe, stage) else f"{peak_memory(setting, stage).total(checkpointing=True) / GIB:.1f}"
            for stage in STAGES
        ]
        lines.append(f"| `{recipe.name}` | {recipe.batch_size} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def variables() -> str:
    """Environment variables of the recipes and the launcher, as their files document them."""
    files = ("scripts/v1_5/finetune_qlora.sh", "scripts/lib/recipe.sh", "scripts/lib/launch.sh")
    parts = []
    for name in files:
        comment = re.findall(r"^#   ?(.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        parts.append(f"{name}\n" + "\n".join(f"  {line}".rstrip() for line in comment))
    return "```text\n" + "\n\n".join(parts) + "\n```\n"


def resuming() -> str:
    """What becomes of a difference between two starts of a run, of every argument of the command line."""
    known = [field.name for kind in (ModelArguments, DataArguments, TrainingArguments) for field in fields(kind)]
    lines = ["| changed | |", "|---|---|"]
    for facts, consequence in _COMPARED:
        lines.append(f"| {facts} | {consequence} |")
    for change, names in GROUPS.items():
        flags = ", ".join(f"`--{name}`" for name in known if name in names)
        lines.append(f"| {flags} | {change.value} |")
    lines.append(f"| every other argument | {Change.REFUSED.value} |")
    return "\n".join(lines) + "\n"


# Document: its generated parts.
DOCUMENTS: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "docs" / "training.md": {"memory": memory, "resuming": resuming},
    ROOT / "docs" / "training-flags.md": {
        "arguments": arguments,
        "spellings": spellings,
        "transformers": transformers_arguments,
        "foreign": foreign,
        "variables": variables,
    },
}


def renewed(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """A document with its generated parts written anew.

    Raises:
        ValueError: if it lacks one of `parts`, or has another.
    """
    found = [name for _, name, _ in _PART.findall(text)]
    if sorted(found) != sorted(parts):
        raise ValueError(f"The document has the generated parts {sorted(found)}; it must have {sorted(parts)}.")
    return _PART.sub(lambda match: f"{match[1]}\n{parts[match[2]]()}\n{match[3]}", text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documents on training anew.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a part is stale")
    options = parser.parse_args(arguments)
    for document, parts in DOCUMENTS.items():
        before = document.read_text(encoding="utf-8")
        after = renewed(before, parts)
        if not options.check:
            write_whole(document, after)
            print(f"Wrote {document}.")
        elif before != after:
            sys.exit(f"document: {document} is stale; run python -m llava.doctor.document.")


if __name__ == "__main__":
    sys.exit(as_program(main))
