"""`llava.verify`: the recorded cases pass, tampered ones fail, unreadable ones say why, deviations are listed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.verify import verify_folder
from llava.verify.__main__ import main
from llava.verify.case import find_cases
from llava.verify.case_settings import Deviation
from llava.verify.compare import compare

GOLDEN = Path(__file__).parent / "golden"
Tensors = dict[str, Tensor]


class Workshop:
    """Copies of recorded cases, to be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "models").symlink_to(GOLDEN / "models")

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, self.root / name))

    def make(
        self,
        name: str,
        settings: Callable[[dict[str, Any]], object] | None = None,
        inputs: Callable[[Tensors], object] | None = None,
        outputs: Callable[[Tensors], object] | None = None,
    ) -> Path:
        """A copy with settings and tensors changed in place; `case.json` lists the changed tensors."""
        folder = self.copy(name)
        case = json.loads((folder / "case.json").read_text())
        for part, change in (("inputs", inputs), ("outputs", outputs)):
            tensors = load_file(folder / f"{part}.safetensors")
            if change is not None:
                change(tensors)
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{part}.safetensors")
            case[part] = {
                key: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
                for key, value in tensors.items()
            }
        if settings is not None:
            settings(case)
        (folder / "case.json").write_text(json.dumps(case))
        return folder


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def status_and_reasons(folder: Path) -> tuple[str, str]:
    (outcome,) = verify_folder(folder)
    return outcome.status, "; ".join(outcome.reasons)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    file = tmp_path_factory.mktemp("verify") / "all.json"
    return main([str(GOLDEN), "--json", str(file)]), json.loads(file.read_text())


def test_all_recorded_cases_pass(whole_run: tuple[int, dict[str, Any]]) -> None:
    code, report = whole_run
    assert [(case["name"], case["reasons"]) for case in report["cases"] if case["status"] != "ok"] == []
    cases = len(list(GOLDEN.rglob("case.json")))
    assert cases > 50 and report["summary"] == {"ok": cases, "FAIL": 0, "by design": 0, "unreadable": 0}
    assert code == report["exit_status"] == 0


def test_json_holds_every_measurement(whole_run: tuple[int, dict[str, Any]]) -> None:
    _, report = whole_run
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["device"] == "cpu"
    assert report["tolerance"] == 1e-4
    case = next(case for case in report["cases"] if case["name"] == "full/a_train_v2v_t2v")
    entries = {entry["name"]: entry for entry in case["measurements"]}
    recorded = set(load_file(GOLDEN / "full/a_train_v2v_t2v/outputs.safetensors"))
    assert recorded <= set(entries) | set(case["not_needed"])
    assert set(case["not_needed"]) == {"stage1_scores_0", "stage1_scores_1"}
    assert entries["stage0_kept_global_1"]["exact"] and entries["stage1_count_0"]["agrees"]
    assert entries["logits"]["accepted"] == 1e-4 and entries["logits"]["error"] < 1e-4
    assert entries["grad_norm:lm_head.weight"]["accepted"] == 1e-4
    assert case["indices_equal"] and case["largest_error"]["agrees"]


def test_one_kind_or_one_case_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN / "v2v")]) == 0
    assert "7 cases: 7 ok" in capsys.readouterr().out
    assert main([str(GOLDEN / "t2v_stage" / "a_train_b1")]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("t2v_stage/a_train_b1 ") and "indices equal" in output[0]
    assert output[1].startswith("1 cases: 1 ok")


def _add(name: str, amount: float, at: tuple[int, ...] = ()) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name][at] += amount

    return change


@pytest.mark.parametrize(
    ("name", "tensor", "amount", "at"),
    [
        ("v2v/e_16_width_one", "projected", 3e-4, (1, 2, 3)),
        ("v2v/e_16_width_one", "cls_attention_sum", 1e-4, (0, 5)),
        ("v2v/a_64_even", "merge_assignment", 1, (2, 0)),
        ("t2v_stage/j_train_gqa", "scores_1", 2e-5, (4,)),
        ("t2v_stage/c_train_b3_pad_textonly", "hidden_states", 3e-4, (1, 25, 0)),
        ("t2v_stage/g_infer_salient_b1", "kept_0", 1, (7,)),
        ("full/i_train_gqa_t2v", "loss", 3e-5, (0,)),
        ("full/i_train_gqa_t2v", "grad:model.mm_projector.2.bias", 1e-4, (0,)),
        ("full/h_infer_v2v_t2v", "final_labels", 1, (0, 3)),
        ("generate/c_v2v_only", "new_tokens", 1, (0, 6)),
        ("generate/a_v2v_t2v_zero", "last_position_per_layer", 1, (3, 5)),
    ],
)
def test_tampered_outputs_fail(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], name: str, tensor: str, amount: float, at: tuple[int, ...]
) -> None:
    workshop.make(name, outputs=_add(tensor, amount, at))
    assert main([str(workshop.root)]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert " FAIL " in line and tensor in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grad_norms", {"lm_head.weight": 0.5}),
        ("visual_tokens_after_stage", [{"0": 4}, {"0": 3}]),
        ("visual_tokens_before", 9),
    ],
)
def test_tampered_numbers_of_case_json_fail(workshop: Workshop, key: str, value: object) -> None:
    folder = workshop.make("full/i_train_gqa_t2v", settings=lambda case: case.update({key: value}))
    assert status_and_reasons(folder)[0] == "FAIL"


def test_wrong_ratio_of_a_stage_fails(workshop: Workshop) -> None:
    folder = workshop.make("t2v_stage/a_train_b1", settings=lambda case: case.update(ratio_next=0.4))
    assert status_and_reasons(folder) == ("FAIL", "visual_tokens_next differs in 1 places")


def test_what_stands_on_padding_does_not_matter(workshop: Workshop) -> None:
    def scribble(tensors: Tensors) -> None:
        tensors["logits"][~tensors["final_mask"]] = 7.0
        tensors["inputs_embeds"][~tensors["prepared_mask"]] = math.nan

    assert status_and_reasons(workshop.make("full/c_train_v2v_only", outputs=scribble))[0] == "ok"


def test_tolerance_scales_every_quantity(workshop: Workshop) -> None:
    folder = workshop.make("v2v/e_16_width_one", outputs=_add("metric", 4e-4, (0, 0, 0)))
    assert main([str(folder)]) == 1
    assert main([str(folder), "--tolerance", "1e-3"]) == 0
    assert main([str(GOLDEN / "v2v" / "e_16_width_one"), "--tolerance", "1e-9"]) == 1


def _drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda work: (work.copy("v2v/d_16_contextual_one") / "case.json").unlink(), "case.json is missing"),
        (lambda work: (work.copy("v2v/d_16_contextual_one") / "inputs.safetensors").unlink(), "inputs.safetensors"),
        (lambda work: (work.copy("v2v/d_16_contextual_one") / "case.json").write_text("{"), "is not JSON"),
        (lambda work: (work.copy("v2v/d_16_contextual_one") / "outputs.safetensors").write_bytes(b"?"), "safetensors"),
        (lambda work: work.make("v2v/d_16_contextual_one", lambda case: case.update(kind="v3v")), "v3v"),
        (lambda work: work.make("v2v/d_16_contextual_one", lambda case: case.update(model="big")), "models/big"),
        (lambda work: work.make("v2v/d_16_contextual_one", lambda case: case["v2v"].pop("dominant")), "v2v.dominant"),
        (lambda work: work.make("v2v/d_16_contextual_one", outputs=_drop("projected")), "projected"),
        (
            lambda work: work.make("v2v/d_16_contextual_one", outputs=lambda t: t.update(extra=t["metric"].clone())),
            "extra",
        ),
        (lambda work: work.make("t2v_stage/a_train_b1", lambda case: case.update(mode="both")), "mode is 'both'"),
        (lambda work: work.make("t2v_stage/g_infer_salient_b1", inputs=_drop("idxs")), "idxs"),
        (lambda work: work.make("full/h_infer_v2v_t2v", inputs=_drop("pixels_u8")), "0 images"),
        (
            lambda work: work.make("full/h_infer_v2v_t2v", lambda case: case["outputs"]["logits"].update(shape=[1])),
            "case.json says",
        ),
    ],
)
def test_unreadable_cases_say_why(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], change: Callable[[Workshop], object], says: str
) -> None:
    change(workshop)
    assert main([str(workshop.root)]) == 2
    line = capsys.readouterr().out.splitlines()[0]
    assert " unreadable " in line and says in line


def test_links_that_lead_in_a_circle_end(workshop: Workshop) -> None:
    folder = workshop.copy("v2v/d_16_contextual_one")
    for name in ("again", "and_again"):
        (folder / name).symlink_to(folder.parent, target_is_directory=True)
    assert find_cases(folder.parent) == [folder]


def test_folders_without_cases_and_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(GOLDEN), "--tolerance", "-1"]) == 2
    assert main([str(GOLDEN), "--device", "abacus"]) == 2
    errors = capsys.readouterr().err
    assert all(part in errors for part in ("There is no case", "nowhere", "-1", "abacus"))


def _without_contextual_tokens(tensors: Tensors) -> None:
    """What the published V2V records for contextual 0: the best remaining patch comes out as it is."""
    anchor = tensors["pool_indices"][:, :1]
    rows = torch.arange(len(anchor))[:, None]
    weights = load_file(GOLDEN / "models/mqa16/model.safetensors")
    saved = tensors["hidden_states_save"].clone()
    saved[:, -1:] = tensors["hidden_states"][rows, anchor]
    hidden = saved @ weights["model.mm_projector.0.weight"].T + weights["model.mm_projector.0.bias"]
    hidden = torch.nn.functional.gelu(hidden)
    tensors |= {
        "pool_indices": anchor,
        "anchor_indices": anchor,
        "merge_indices": anchor[:, :0],
        "merge_assignment": anchor[:, :0],
        "hidden_states_save": saved,
        "projected": hidden @ weights["model.mm_projector.2.weight"].T + weights["model.mm_projector.2.bias"],
    }


@pytest.mark.parametrize("setting", [{"contextual": 0}, {"cluster_width": 0}])
def test_settings_with_an_honest_equivalent_are_listed_and_still_compared(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], setting: dict[str, int]
) -> None:
    name = "v2v/d_16_contextual_one"
    folder = workshop.make(name, lambda case: case["v2v"].update(setting), outputs=_without_contextual_tokens)
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert " by design " in output and "makes 1 contextual token" in output and "indices equal" in output
    changed = load_file(folder / "outputs.safetensors")
    changed["anchor_indices"][0, 0] += 1
    save_file(changed, folder / "outputs.safetensors")
    assert main([str(folder)]) == 1


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("full/i_train_gqa_t2v", lambda case: case["t2v"].update(layer_list=[4, 2]), "t2v.layers"),
        ("full/i_train_gqa_t2v", lambda case: case["t2v"].update(layer_list=[2, 6]), "6 layers"),
        ("full/i_train_gqa_t2v", lambda case: case["t2v"].update(ratio_list=[0.25, 0.5]), "t2v.keep"),
        ("v2v/d_16_contextual_one", lambda case: case["v2v"].update(dominant=18), "v2v.dominant"),
        ("t2v_stage/a_train_b1", lambda case: case.update(rank_layer=8), "rank_layer is 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_design(
    workshop: Workshop, name: str, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    status, reasons = status_and_reasons(workshop.make(name, change))
    assert status == "by design" and says in reasons


def _label_everything(tensors: Tensors) -> None:
    tensors["labels"][:, tensors["image_position"][0] + tensors["visual_tokens_now"][0] :] = 5


def test_a_ranking_without_voters_is_excused_and_nothing_else(workshop: Workshop) -> None:
    source = load_file(GOLDEN / "t2v_stage/a_train_b1/inputs.safetensors")
    behind = source["labels"].shape[1] - int(source["image_position"][0] + source["visual_tokens_now"][0])

    def outputs(tensors: Tensors) -> None:
        tensors["scores_0"].fill_(math.nan)
        tensors["kept_0"] = tensors["kept_0"].flip(0)
        tensors["labels"][:, -behind:] = 5

    folder = workshop.make("t2v_stage/a_train_b1", inputs=_label_everything, outputs=outputs)
    status, reasons = status_and_reasons(folder)
    assert status == "by design" and "nobody to vote" in reasons
    tensors = load_file(folder / "outputs.safetensors")
    tensors["position_ids"][0, 0] += 1
    save_file(tensors, folder / "outputs.safetensors")
    assert status_and_reasons(folder)[0] == "FAIL"


@pytest.mark.parametrize("filler", [-1.0, math.nan])
def test_fillers_among_salient_positions_are_no_voters(workshop: Workshop, filler: float) -> None:
    def widen(tensors: Tensors) -> None:
        tensors["idxs"] = torch.nn.functional.pad(tensors["idxs"].double(), (0, 2), value=filler)

    assert status_and_reasons(workshop.make("generate/d_salient", inputs=widen))[0] == "ok"


def test_excuses_cover_only_what_they_name() -> None:
    recorded = {"logits": torch.ones(2), "final_mask": torch.tensor([True, True])}
    measured: dict[str, Tensor | None] = {"logits": torch.zeros(2), "final_mask": torch.tensor([True, False])}
    entries, _ = compare(measured, recorded, deviations=[Deviation("why", "logits")])
    assert [(entry.name, entry.passes) for entry in entries] == [("logits", True), ("final_mask", False)]


def test_a_fraction_is_no_whole_number() -> None:
    (found,), _ = compare({"row_lengths": torch.tensor([3.0, 3.7])}, {"row_lengths": torch.tensor([3, 3])})
    assert found.exact and found.error == 1 and not found.agrees


def test_a_quantity_that_is_not_finite_or_missing_fails() -> None:
    recorded = {"loss": torch.tensor([math.nan]), "kept_0": torch.tensor([1]), "scores_0": torch.tensor([0.5])}
    entries, skipped = compare({"loss": torch.tensor([0.0]), "scores_0": None}, recorded)
    assert [(entry.name, entry.passes, entry.error) for entry in entries] == [
        ("loss", False, math.inf),
        ("kept_0", False, math.inf),
    ]
    assert skipped == ["scores_0"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_all_recorded_cases_pass_on_a_gpu() -> None:
    assert main([str(GOLDEN), "--device", "cuda"]) == 0
