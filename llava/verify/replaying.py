"""Replays recorded cases one by one and returns the outcome of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llava.model import LlavaLlamaForCausalLM
from llava.verify import deviations, llava_next, stage, video_llava, whole
from llava.verify import generation_stage as generation
from llava.verify import v2v_stage as v2v
from llava.verify.case import Case, UnreadableCaseError, case_name, find_cases, read_case, read_json
from llava.verify.case_settings import Deviation, RefusedError, Settings, or_refuse, read_settings
from llava.verify.case_values import Replayed
from llava.verify.compare import DEFAULT_TOLERANCE, Measurement, compare
from llava.verify.models import ModelStore
from llava.verify.voters import read_prompt

OK, FAIL, BY_DESIGN, UNREADABLE = "ok", "FAIL", "by design", "unreadable"
STATUSES = (OK, FAIL, BY_DESIGN, UNREADABLE)


@dataclass(frozen=True)
class CaseOutcome:
    """The outcome of a case.

    Attributes:
        name: `<kind>/<case>`.
        status: one of `STATUSES`.
        reasons: why it failed, differs by design or cannot be read.
        measurements: everything compared.
        skipped: recorded quantities that are not computed because nothing needs them.
    """

    name: str
    status: str
    reasons: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def indices_equal(self) -> bool:
        """Whether every whole number and truth value is as recorded."""
        return all(entry.agrees for entry in self.measurements if entry.exact)


def verify_folder(
    root: Path, tolerance: float = DEFAULT_TOLERANCE, device: torch.device | None = None
) -> Iterator[CaseOutcome]:
    """Replay every case under a folder (a set of cases, one kind's folder or a single case).

    Args:
        root: where to look; models are in `models/` there or in a folder above.
        tolerance: accepted error of hidden states and logits; that of other quantities is in proportion.
        device: device to run on; the CPU if None.
    """
    models = ModelStore(device or torch.device("cpu"))
    for folder in find_cases(root):
        try:
            yield verify_case(read_case(folder), models, tolerance)
        except UnreadableCaseError as error:
            yield CaseOutcome(case_name(folder), UNREADABLE, (str(error),))


def verify_case(case: Case, models: ModelStore, tolerance: float = DEFAULT_TOLERANCE) -> CaseOutcome:
    """Replay one case and compare it with what was recorded.

    Raises:
        UnreadableCaseError: if the case or its model turns out to be incomplete.
    """
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            measured, recorded, known = _REPLAYS[case.kind](case, models)
    except UnreadableCaseError:
        raise
    except RefusedError as refusal:
        return CaseOutcome(case.name, BY_DESIGN, (str(refusal),))
    except Exception as error:
        # Whatever a broken installation raises is its result, not the end of the run.
        return CaseOutcome(case.name, FAIL, (f"{type(error).__name__}: {error}",))
    measurements, skipped = compare(measured, recorded, tolerance, known)
    return _judge(case, measurements, skipped, known)


def _judge(case: Case, measurements: list[Measurement], skipped: list[str], known: list[Deviation]) -> CaseOutcome:
    """A case fails by any difference that is not excused; it is by design if one was, or a setting was replaced."""
    failed = [entry for entry in measurements if not entry.passes]
    if failed:
        status = FAIL
        reasons = [f"{entry.name} {entry.detail or _how_far(entry)}" for entry in failed]
    else:
        replaced = [found.reason for found in known if not found.excuses]
        used = {entry.excused for entry in measurements if not entry.agrees}
        reasons = replaced + [found.reason for found in known if found.reason in used]
        status = BY_DESIGN if reasons else OK
    return CaseOutcome(case.name, status, tuple(reasons), tuple(measurements), tuple(skipped))


def _how_far(entry: Measurement) -> str:
    if entry.exact:
        return f"differs in {entry.error:.0f} places"
    return f"is off by {entry.error:.1e}, accepted is {entry.accepted:.1e}"


def _replay_v2v(case: Case, models: ModelStore) -> Replayed:
    model, settings = _open(case, models)
    return v2v.replay(case, model, settings.compression.v2v), dict(case.outputs), list(settings.deviations)


def _replay_stage(case: Case, models: ModelStore) -> Replayed:
    given = stage.read_stage(case)
    known = deviations.of_stage(case, given.pruned, given.voters, given.is_visual)
    return stage.replay(case, models.open(case.model_folder), given), stage.recorded(case, given), known


def _replay_prompt(case: Case, models: ModelStore) -> Replayed:
    model, settings = _open(case, models)
    compression = settings.compression
    prompt = read_prompt(case, compression.t2v is not None and compression.t2v.queries == "salient")
    per_image = model.visual_tokens_per_image(compression)
    known = [*settings.deviations, *deviations.of_prompt(case, prompt, compression, per_image)]
    kind = whole if case.kind == "full" else generation
    return kind.replay(case, model, prompt, compression), kind.recorded(case), known


_REPLAYS: dict[str, Callable[[Case, ModelStore], Replayed]] = {
    "v2v": _replay_v2v,
    "t2v_stage": _replay_stage,
    "full": _replay_prompt,
    "generate": _replay_prompt,
    **video_llava.REPLAYS,
    **llava_next.REPLAYS,
}
"""How each of `llava.verify.kinds.KINDS` is replayed: what was measured, what was recorded, and what may differ."""


def _open(case: Case, models: ModelStore) -> tuple[LlavaLlamaForCausalLM, Settings]:
    """The model of a case and its settings, which must fit each other."""
    settings = read_settings(case, read_json(case.model_folder / "config.json"))
    model = models.open(case.model_folder, settings.select_layer)
    if model.get_vision_tower() is None:
        raise UnreadableCaseError(f"{case.model_folder / 'config.json'} names no vision tower (mm_vision_tower).")
    or_refuse(model.visual_tokens_per_image, settings.compression)
    return model, settings
