"""Imports what training imports, one package after the other, and prints what came of it as one line of JSON.

Run by `llava.doctor.packages` in a process of its own, because a failed import leaves half-initialised modules behind.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import sys

# torchvision first: where it does not match torch it breaks everything in transformers that handles images.
MODULES = ("torchvision", "transformers", "flash_attn", "deepspeed", "peft", "bitsandbytes", "llava.train.train")
OPERATIONS = ("deepspeed_shm_comm", "cpu_adam", "fused_adam")


def main() -> None:
    """Print `{"errors": {module: message}, "operations": {name: whether DeepSpeed can use or build it}}`."""
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        errors = import_errors(MODULES)
        operations = {} if "deepspeed" in errors else usable_operations()
    print(json.dumps({"errors": errors, "operations": operations}))


def import_errors(modules: tuple[str, ...]) -> dict[str, str]:
    """Why installed modules cannot be imported; nothing for those that can be, or are not installed."""
    errors = {}
    for name in modules:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            errors[name] = f"{type(error).__name__}: {lines[-1].strip()}"
    return errors


def usable_operations() -> dict[str, bool]:
    """DeepSpeed's compiled operations that matter here, and whether each is built or can be."""
    if importlib.util.find_spec("deepspeed") is None:
        return {}
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    return {name: _usable(builder) for name, builder in ALL_OPS.items() if name in OPERATIONS}


def _usable(builder: object) -> bool:
    try:
        return bool(builder.is_compatible(verbose=False))  # type: ignore[attr-defined]
    except Exception:
        return False


if __name__ == "__main__":
    main()
    sys.stdout.flush()
