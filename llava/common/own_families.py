"""Families of models of other packages, imported when a model of theirs is opened.

    [project.entry-points."llava.families"]
    made_up_vlm = "my_package.made_up_vlm"

The name is the `model_type` of the models' `config.json`, the value a module that defines the family's classes, which
registers them (docs/plug-in.md). A module that a program's own code has imported needs no entry point.
"""

from __future__ import annotations

from importlib.metadata import entry_points

GROUP = "llava.families"


def is_named(model_type: object) -> bool:
    """Whether another package has a family for models of this type."""
    return isinstance(model_type, str) and bool(entry_points(group=GROUP, name=model_type))


def import_family(model_type: object) -> None:
    """Import what another package has for models of this type; nothing happens where no package has.

    Raises:
        ValueError: if it cannot be imported.
    """
    if not isinstance(model_type, str):
        return
    for entry in entry_points(group=GROUP, name=model_type):
        try:
            entry.load()
        except (ImportError, AttributeError, TypeError) as error:
            raise ValueError(
                f"Models of type {model_type!r} are of {entry.value} (entry point of {GROUP}), which cannot be "
                f"imported: {error}. Mend or uninstall that package."
            ) from error
