"""The doctor's findings as one screen of text, and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llava.cost.flops import describe
from llava.cost.memory import GIB, STAGES, MemoryEstimate, peak_memory
from llava.cost.recipes import Recipe, recipes_of
from llava.doctor.examination import Machine
from llava.doctor.faults import Fault
from llava.doctor.fitting_recipes import FitCell, FitRequest, Plan, Room, batch_sizes
from llava.doctor.kernels import Check

WIDTH = 110
NAME = 26
COLUMN = 12


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor found out.

    Attributes:
        machine: this one.
        request, recipe: what was asked about.
        room: what there is to fit into.
        table: every recipe under every stage.
        plan: the recipe's, None where nothing fits.
        faults: sentences.
    """

    machine: Machine
    request: FitRequest
    recipe: Recipe
    room: Room
    table: dict[str, tuple[FitCell, ...]]
    plan: Plan | None
    faults: tuple[Fault, ...]

    @property
    def broken(self) -> bool:
        """Whether something that training needs does not work."""
        return any(fault.broken for fault in self.faults)


def to_text(diagnosis: Diagnosis) -> str:
    """The findings as text of at most `WIDTH` columns; one screen where little is wrong."""
    parts = [
        *_machine_lines(diagnosis.machine),
        "",
        *_need_lines(diagnosis),
        "",
        *_fit_lines(diagnosis),
        "",
        *_advice_lines(diagnosis),
    ]
    return "\n".join(line.rstrip() for line in parts)


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything, in bytes, as plain JSON values."""
    request = diagnosis.request
    return {
        "machine": asdict(diagnosis.machine),
        "request": {
            "recipe": asdict(diagnosis.recipe),
            "model": asdict(request.shape),
            "compression": request.compression.to_dict(),
            "room": asdict(diagnosis.room),
        },
        "table": {name: [_cell_json(cell) for cell in row] for name, row in diagnosis.table.items()},
        "plan": None if diagnosis.plan is None else asdict(diagnosis.plan),
        "faults": [asdict(fault) for fault in diagnosis.faults],
        "broken": diagnosis.broken,
    }


def _cell_json(cell: FitCell) -> dict[str, Any]:
    totals = cell.need and {"checkpointing": cell.need.total(True), "full": cell.need.total(False)}
    return {**asdict(cell), "total": totals}


def _machine_lines(machine: Machine) -> list[str]:
    system, build = machine.system, machine.torch
    place = f"{build.backend} {build.backend_version}" if build.backend_version else f"the {build.backend}"
    versions = [f"{package.name} {package.installed}" for package in machine.packages if package.installed]
    pinned = [package for package in machine.packages if package.installed and package.tested]
    other = [f"{one.name} {one.tested}" for one in pinned if _release(one.installed) != one.tested]
    tested = f" Tested: {', '.join(other)}." if other else ""
    return [
        "This machine",
        *_entry(
            "computer",
            f"{system.name}, Python {system.python}, {system.processors} CPU cores, RAM {_gib(system.memory_free)} "
            f"free of {_gib(system.memory)}, disk {_gib(system.disk_free)} free at {system.output_dir}",
        ),
        *_entry("devices", _devices(machine)),
        *_entry("torch", f"{build.version}, built for {place}; {_checks(machine.precision)}"),
        *_entry("attention", _checks(machine.attention)),
        *_entry("deepspeed", _deepspeed(machine)),
        *_entry("all-reduce", _communication(machine)),
        *_entry("packages", f"{', '.join(versions)}.{tested}"),
    ]


def _devices(machine: Machine) -> str:
    kinds = Counter(f"{one.name}, {one.memory / GIB:.1f} GiB, {one.architecture}" for one in machine.devices)
    return "; ".join(f"{count} x {name}" for name, count in kinds.items()) or "none that torch can use, only the CPU"


def _checks(checks: tuple[Check, ...]) -> str:
    """Names by state: what runs first, then what does not."""
    words = {"ok": "runs", "wrong": "wrong", "failed": "fails", "absent": "not here"}
    parts = []
    for state, word in words.items():
        names = [check.name for check in checks if check.state == state]
        if names:
            parts.append(f"{word}: {', '.join(names)}")
    return "; ".join(parts)


def _deepspeed(machine: Machine) -> str:
    version = next((package.installed for package in machine.packages if package.name == "deepspeed"), None)
    if version is None:
        return "not installed"
    states = [f"{name} {'usable' if usable else 'not usable'}" for name, usable in machine.imports.operations.items()]
    tools = [tool for tool, path in machine.tools.items() if path]
    return f"{version}; operations: {', '.join(states) or 'unknown'}; compilers: {', '.join(tools) or 'none'}"


def _communication(machine: Machine) -> str:
    test = machine.communication
    if test is None:
        return "not tried: there are not several devices (--comm-test tries two processes on the CPU)"
    if not test.works:
        return f"{test.backend}, {test.processes} processes: {test.detail}"
    return (
        f"{test.backend}, {test.processes} processes: right sums, {test.gigabytes_per_second:.1f} GB/s of bus bandwidth"
    )


def _need_lines(diagnosis: Diagnosis) -> list[str]:
    """What the recipe needs, component by component, one column a stage."""
    request, recipe, room = diagnosis.request, diagnosis.recipe, diagnosis.room
    setting = request.setting(recipe, room)
    cells = diagnosis.table[recipe.name]
    needs = [cell.need for cell in cells]
    typical = setting.typical_batch()
    staged = zip(needs, STAGES, strict=True)
    usual = [None if one is None else peak_memory(setting, stage, typical) for one, stage in staged]
    rows: list[tuple[str, list[float | None]]] = [
        (label, [None if one is None else getattr(one, name) for one in needs])
        for label, name in (
            ("weights", "weights"),
            ("vision tower", "tower"),
            ("gradients", "gradients"),
            ("optimizer", "optimizer"),
            ("buffers and gathering", "buffers"),
            ("reserve (assumed)", "reserve"),
            ("activations, ckpt", "activations"),
            ("  one layer again", "layer"),
            ("activations, no ckpt", "activations_full"),
            ("  gradients of a layer's", "moving"),
            ("logits and final norm", "logits"),
        )
    ]
    rows += [(f"total, {word}", _totals(needs, again)) for word, again in (("ckpt", True), ("no ckpt", False))]
    rows.append(("typical rows, ckpt", _totals(usual, True)))
    rows.append(("RAM of one machine", [None if one is None else one.host for one in needs]))
    images = "with an image" if recipe.longest_has_image else "without image"
    title = (
        f"What {recipe.name} needs: {request.shape.name}, {request.compression_name} (visual tokens by layer "
        f"{describe(typical.visual)}), {setting.devices} devices, {setting.batch_size} rows each. GiB of one device "
        f"at the longest rows ({recipe.longest_text} text tokens {images}; typical: {recipe.text_tokens} with one); "
        "ckpt = activation checkpointing."
    )
    return [
        *textwrap.wrap(title, WIDTH),
        f"  {'ZeRO stage':{NAME}}" + "".join(f"{stage.name:>{COLUMN}}" for stage in STAGES),
        *(f"  {label:{NAME}}" + "".join(f"{_number(size):>{COLUMN}}" for size in sizes) for label, sizes in rows),
    ]


def _totals(needs: list[MemoryEstimate | None], checkpointing: bool) -> list[float | None]:
    return [None if one is None else one.total(checkpointing) for one in needs]


def _fit_lines(diagnosis: Diagnosis) -> list[str]:
    room = diagnosis.room
    where = "of this machine" if room.devices == room.local else "as assumed or asked"
    device = "unknown memory" if room.device is None else f"{room.device / GIB:.1f} GiB"
    host = "RAM not judged" if room.host is None else f"{room.host / GIB:.0f} GiB of RAM for offloading"
    title = (
        f"What fits: {room.devices} devices {where}, {device} each, {host}; GiB with checkpointing, "
        "+ fits, ++ fits without checkpointing too, - does not"
    )
    lines = textwrap.wrap(title, WIDTH)
    for name, row in diagnosis.table.items():
        recipe = diagnosis.recipe if name == diagnosis.recipe.name else recipes_of(diagnosis.request.shape.family)[name]
        label = f"{name} (x{batch_sizes(recipe, room.devices)[0]})"
        lines.append(f"  {label:{NAME}}" + "".join(f"{_verdict(cell):>{COLUMN}}" for cell in row))
    return lines


def _verdict(cell: FitCell) -> str:
    if cell.need is None:
        return "no"
    mark = "++" if cell.fits_without_checkpointing else "+" if cell.fits else "-"
    return f"{_number(cell.need.total(True))} {mark:2}"


def _advice_lines(diagnosis: Diagnosis) -> list[str]:
    plan, recipe = diagnosis.plan, diagnosis.recipe
    if plan is None:
        advice = (
            f"Advice: {recipe.name} fits in no way here, not even one row a device; take more or larger devices, "
            "or finetune_lora or finetune_qlora instead."
        )
        lines = textwrap.wrap(advice, WIDTH)
    else:
        again = "with" if plan.checkpointing else "without"
        count = -(-diagnosis.room.devices // diagnosis.room.per_host)
        machines = f", on each of {count} machines (the script's top says how)" if count > 1 else ""
        advice = (
            f"Advice: {recipe.name} under ZeRO {plan.stage}, {plan.batch_size} rows a device {again} checkpointing "
            f"({plan.bytes / GIB:.1f} GiB), forward passes a step: {plan.accumulation}{machines}."
        )
        command = textwrap.wrap(plan.command, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
        lines = [*textwrap.wrap(advice, WIDTH), "  " + " \\\n    ".join(command)]
    if not diagnosis.machine.devices:
        lines.append("This machine has no such device; what runs here is the small task: bash scripts/quickstart.sh")
    for fault in diagnosis.faults:
        text = f"{'BROKEN' if fault.broken else 'Note'}: {fault.text}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if not diagnosis.broken:
        lines.append("Nothing that training needs is broken.")
    return lines


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"  {name:11} {text}", WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)


def _number(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.1f}"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def _release(version: str | None) -> str | None:
    """A version without the label of its build, as pins are written."""
    return version and version.partition("+")[0]
