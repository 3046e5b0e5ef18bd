"""The kinds of recorded cases: which files and tensors a case of each kind has.

How a kind is replayed stands in `llava.verify.replaying`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.common.yaml_files import table_beside


@dataclass(frozen=True)
class Contents:
    """What a case of a kind holds beside `case.json`.

    Attributes:
        outputs: regular expressions of the tensors that `outputs.safetensors` may record.
        needed: regular expression of the one (or those) without which there is nothing to compare with.
        inputs: tensors that `inputs.safetensors` must hold.
        has_inputs, has_outputs: whether there is such a file.
        has_model: whether `case.json` names a model.
        has_mode: whether `case.json` says if training's or inference's rule decides who votes; without, inference's.
        pixel_axes: axes of `pixels_u8`: 4 of images [M, 3, height, width], 5 of clips [B, 3, T, height, width].
    """

    outputs: tuple[str, ...]
    needed: str
    inputs: tuple[str, ...] = ()
    has_inputs: bool = True
    has_outputs: bool = True
    has_model: bool = True
    has_mode: bool = False
    pixel_axes: int = 4


KINDS = {
    kind: Contents(**fields | {name: tuple(fields.get(name, ())) for name in ("outputs", "inputs")})
    for kind, fields in table_beside(__file__).items()
}
"""What a case holds, by the `kind` of its `case.json`; from kinds.yaml."""
