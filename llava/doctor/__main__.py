"""`python -m llava.doctor`: what this machine has, what a recipe needs, and which recipe fits.

python -m llava.doctor
python -m llava.doctor --recipe finetune_lora --devices 4 --device-memory 40 --compression duet-128
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.json_files import write_json
from llava.common.number_flags import checked_later, count, positive
from llava.common.outputs import require_apart, require_folder
from llava.common.path_flags import FILE_TO_WRITE, FOLDER_TO_WRITE, MODEL, as_text
from llava.common.presets import presets
from llava.common.program import as_program
from llava.cost.memory import GIB
from llava.cost.overview import fitting
from llava.cost.recipes import RECIPES, recipes_of
from llava.cost.scaling import add_scaling_flag, for_depth
from llava.cost.shapes import MODELS, ModelShape
from llava.doctor.diagnosis import Diagnosis, to_json, to_text
from llava.doctor.examination import Machine, examine
from llava.doctor.faults import find_faults
from llava.doctor.fitting_recipes import (
    DEFAULT_COMPRESSION,
    DEFAULT_MODEL,
    FitRequest,
    Room,
    best_plan,
    table,
    with_rows,
)

# Where nothing is known or asked: the machine that the paper's recipes are written for.
ASSUMED_DEVICES, ASSUMED_MEMORY, DEVICES_OF_A_MACHINE = 8, 80.0, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 if something needed is broken, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    problem = _problem(options)
    if problem:
        print(f"doctor: {problem}", file=sys.stderr)
        return 2
    try:
        shape = ModelShape.of(options.model)
        kind, usual, depth = shape.family, (DEFAULT_COMPRESSION, "none"), shape.decoder.layers
        name = options.compression or fitting(kind, shape.decoder, shape.vision, usual, options.scale_to_depth)[0]
        compression = for_depth(name, depth, options.scale_to_depth)
        compression.check_made_for(kind, depth)
        request = FitRequest(shape, compression, name)
        diagnosis = diagnose(examine(options.output_dir, options.comm_test), request, options)
    except ValueError as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    print(to_text(diagnosis))
    if options.json:
        write_json(options.json, to_json(diagnosis), indent=1)
    return int(diagnosis.broken)


def diagnose(machine: Machine, request: FitRequest, options: argparse.Namespace) -> Diagnosis:
    """Work everything out for a machine.

    Raises:
        ValueError: if the compression does not fit the model.
    """
    own = recipes_of(request.shape.family)
    if options.recipe not in own:
        raise ValueError(f"--recipe is {options.recipe}, but this model's family has {', '.join(own)}.")
    recipe = with_rows(own[options.recipe], options.batch_size, options.text_tokens, options.longest_text)
    room = find_room(machine, options.devices, options.device_memory, options.host_memory)
    recipes = {**own, recipe.name: recipe}
    return Diagnosis(
        machine,
        request,
        recipe,
        room,
        table(request, room, recipes),
        best_plan(request, recipe, room),
        find_faults(machine, request, recipe, room),
    )


def find_room(machine: Machine, devices: int | None, device_memory: float | None, host_memory: float | None) -> Room:
    """What there is to fit into: what is asked about, else this machine, else eight devices of 80 GiB.

    More devices than this machine has stand in several machines like it. RAM counts where the devices are this
    machine's, or where it is given.

    Args:
        machine: this one.
        devices: number of devices of the run.
        device_memory, host_memory: GiB.
    """
    own = machine.devices
    count = devices or len(own) or ASSUMED_DEVICES
    smallest = min((device.memory for device in own), default=ASSUMED_MEMORY * GIB)
    memory = smallest if device_memory is None else device_memory * GIB
    host = machine.system.memory if own and device_memory is None else None
    return Room(
        devices=count,
        per_host=min(count, len(own) or DEVICES_OF_A_MACHINE),
        device=memory,
        host=host if host_memory is None else host_memory * GIB,
        local=len(own),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.doctor",
        description="What this machine has, what a recipe needs on each device under each ZeRO stage, what fits.",
        epilog="Exit status: 0, 1 if something that training needs is broken, 2 for arguments that cannot be used.",
    )
    known = ", ".join(presets())
    add = parser.add_argument
    add("--recipe", choices=list(RECIPES), default="finetune", help="of the model's family (default: %(default)s)")
    add("--model", type=MODEL, default=DEFAULT_MODEL, help=f"{', '.join(MODELS)} or a checkpoint folder")
    usual = f"{DEFAULT_COMPRESSION} where it fits the model, else none"
    add("--compression", help=f"preset ({known}) or YAML file (default: {usual})")
    add_scaling_flag(parser)
    add(
        "--devices",
        type=checked_later(count(1, 10**6)),
        help="of the whole run; by default those of this machine, else 8",
    )
    add(
        "--device-memory",
        type=checked_later(positive(1e6)),
        metavar="GIB",
        help="of each device, instead of what torch says",
    )
    add(
        "--host-memory",
        type=checked_later(positive(1e6)),
        metavar="GIB",
        help="RAM of one machine, instead of this one's",
    )
    add(
        "--batch-size",
        type=checked_later(count()),
        help="rows of one device in one forward pass, instead of the recipe's",
    )
    add("--text-tokens", type=count(0), help="text of a typical row beside its image, instead of the recipe's")
    add("--longest-text", type=count(0), help="text of the longest row, which decides what fits")
    add(
        "--output-dir",
        type=as_text(FOLDER_TO_WRITE),
        default="./checkpoints",
        help="whose free disk is looked at (default: %(default)s)",
    )
    add("--comm-test", action="store_true", help="try an all-reduce with two processes where there is no second device")
    add("--json", type=FILE_TO_WRITE, metavar="FILE", help="write everything, in bytes")
    return parser


def _problem(options: argparse.Namespace) -> str:
    """What is wrong with the arguments, in a sentence; empty if nothing is."""
    for name in ("devices", "device_memory", "host_memory", "batch_size", "text_tokens", "longest_text"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            return f"--{name.replace('_', '-')} is {value}; it must be a positive number."
    try:
        require_folder("--json", options.json)
        require_apart({"--json": options.json}, [options.model, options.compression])
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(as_program(main))
