"""Faults of a machine, found from its probes: sentences about what is broken or slow, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llava.cost.memory import GIB, checkpoint_bytes
from llava.cost.recipes import Recipe
from llava.doctor.examination import Machine
from llava.doctor.fitting_recipes import FitRequest, Room
from llava.doctor.kernels import FUSED

INSTALL = "pip install -c constraints.txt -e"
SMALLEST_SHARED_MEMORY = GIB


@dataclass(frozen=True)
class Fault:
    """A sentence with its remedy; `broken` means that training fails, otherwise it is slow or at risk."""

    broken: bool
    text: str


def find_faults(machine: Machine, request: FitRequest, recipe: Recipe, room: Room) -> tuple[Fault, ...]:
    """Everything that is wrong with this machine for this recipe, the broken first."""
    found = [
        *_torch_faults(machine),
        *_package_faults(machine, recipe),
        *_import_faults(machine),
        *_kernel_faults(machine),
        *_communication_faults(machine),
        *_space_faults(machine, request, recipe, room),
    ]
    return tuple(sorted(found, key=lambda fault: not fault.broken))


def _torch_faults(machine: Machine) -> Iterator[Fault]:
    build = machine.torch
    if machine.devices:
        return
    for driver in build.drivers:
        if driver == build.backend:
            yield Fault(
                True,
                f"There is a {driver} driver and torch {build.version} is built for it, but it sees no device: check "
                "CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES, the rights on the device files, and that the driver "
                f"supports {driver} {build.backend_version}.",
            )
        else:
            yield Fault(
                True,
                f"There is a {driver} driver, but torch {build.version} is built for {build.backend}: install the "
                f"{driver} build from the wheel index that https://pytorch.org/get-started/locally names.",
            )


def _package_faults(machine: Machine, recipe: Recipe) -> Iterator[Fault]:
    for package in machine.packages:
        needed = package.extra == "" or package.name in recipe.packages
        target = f'"{f".[{package.extra}]" if package.extra else "."}"'
        if package.installed is None and needed:
            yield Fault(True, f"{package.name} is not installed, but {recipe.name} needs it: {INSTALL} {target}")
        elif package.outside:
            tested = f" ({package.tested} is tested)" if package.tested else ""
            yield Fault(
                needed,
                f"{package.name} is {package.installed}, but the project works with {package.accepted}{tested}: "
                f"{INSTALL} {target}",
            )


def _import_faults(machine: Machine) -> Iterator[Fault]:
    imports = machine.imports
    if imports.problem:
        yield Fault(True, f"{imports.problem} Try: python -c 'import llava.train.train'")
    vision = imports.errors.get("torchvision")
    if vision is not None:
        yield Fault(
            True,
            f"torchvision does not match torch and breaks transformers ({vision}): pip uninstall torchvision; nothing "
            "here needs it.",
        )
    for name, error in imports.errors.items():
        if name == "flash_attn":
            yield Fault(
                True,
                f"flash-attn is installed but cannot be imported ({error}): build it for this torch with "
                "pip install --no-build-isolation --force-reinstall flash-attn, or uninstall it.",
            )
        elif name != "torchvision" and not (vision and name.startswith(("transformers", "llava"))):
            yield Fault(True, f"{name} is installed but cannot be imported ({error}): reinstall it, {INSTALL} .")


def _kernel_faults(machine: Machine) -> Iterator[Fault]:
    states = {check.name: check for check in (*machine.precision, *machine.attention)}
    for check in states.values():
        if check.state in ("failed", "wrong"):
            verb = "fails" if check.state == "failed" else "computes wrong numbers"
            yield Fault(check.name != "fp16", f"{check.name} {verb} here ({check.detail}): {_instead_of(check.name)}")
    if machine.devices and all(states[name].state == "absent" for name in FUSED if name in states):
        yield Fault(
            False,
            "No fused attention kernel runs on this device, so attention maps are stored: expect more memory than the "
            "table says, and use a torch build for this architecture.",
        )
    if not machine.devices and not all(machine.tools.get(tool) for tool in ("g++", "ninja")):
        missing = " and ".join(tool for tool in ("g++", "ninja") if not machine.tools.get(tool))
        yield Fault(
            False,
            f"{missing} cannot be found on PATH: DeepSpeed compiles its shared-memory operation when several "
            "processes train on a CPU, and fails without; install it, or use LAUNCHER=torchrun.",
        )


def _instead_of(name: str) -> str:
    if name == "bf16":
        return "train with --bf16 False --fp16 True."
    if name == "fp16":
        return "keep to --bf16 True."
    if name == "flash_attention_2":
        return "add --attn_implementation sdpa, or reinstall flash-attn for this torch."
    return "install a torch build for this device, or choose another kernel with --attn_implementation."


def _communication_faults(machine: Machine) -> Iterator[Fault]:
    test = machine.communication
    if test is not None and not test.works:
        yield Fault(
            True,
            f"An all-reduce of {test.processes} processes through {test.backend} does not work ({test.detail}): run "
            "again with NCCL_DEBUG=INFO; NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1 show whether a link is at fault.",
        )


def _space_faults(machine: Machine, request: FitRequest, recipe: Recipe, room: Room) -> Iterator[Fault]:
    system = machine.system
    needed = checkpoint_bytes(request.setting(recipe, room))
    if system.disk_free is not None and system.disk_free < needed:
        yield Fault(
            False,
            f"{system.output_dir} has {system.disk_free / GIB:.0f} GiB free, but two checkpoints and the final weights "
            f"of {recipe.name} take {needed / GIB:.0f} GiB: choose another --output-dir (OUTPUT_DIR of the script).",
        )
    if machine.devices and system.shared_memory is not None and system.shared_memory < SMALLEST_SHARED_MEMORY:
        yield Fault(
            False,
            f"/dev/shm is {system.shared_memory / 2**20:.0f} MiB: data workers hand batches over through it and die "
            "with a bus error when it is full; start the container with --shm-size 8g, or set WORKERS=0.",
        )
