"""Code that lies beside weights, or that a settings file names, is never run, not even where somebody would say yes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published import write_hf, write_language_model, write_llava, write_lora, write_projector, write_tower
from tiny_llava import flags, write_assets

from llava.checkpoints.tokenizer import read_tokenizer
from llava.model.builder import load_pretrained_model
from llava.model.random_weights import random_model
from llava.model.varlen_attention import VARLEN
from llava.train.train import train

CLASSES = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoImageProcessor": "evil.Evil",
    "AutoProcessor": "evil.Evil",
}
TEMPLATE = "{% for line in cycler.__init__.__globals__.os.popen('touch X') %}{{ ''.__class__.__mro__ }}{% endfor %}"


def merge(path: Path, **settings: object) -> None:
    """Write more settings into a JSON file."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | settings))


def code_in(folder: Path, marker: Path) -> None:
    """Modules that write the marker when they are imported, at every place where a library looks for some."""
    text = (
        f"open({str(marker)!r}, 'w').close()\n\n\nclass Evil:\n    pass\n\n\ndef generate(*args, **kwargs):\n    pass\n"
    )
    (folder / "custom_generate").mkdir(exist_ok=True)
    for name in ("evil.py", "custom_generate/generate.py", "tokenization_evil.py", "modeling_evil.py", "__init__.py"):
        (folder / name).write_text(text)


def classes_of_its_own(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        merge(folder / name, auto_map=CLASSES)


def a_tokenizer_of_its_own(folder: Path) -> None:
    """No class of transformers' has that name, so that only the code beside could make one."""
    (folder / "tokenizer.model").unlink(missing_ok=True)
    merge(folder / "tokenizer_config.json", auto_map=CLASSES, tokenizer_class="EvilTokenizer")


def a_tokenizer_of_a_class_in_a_list(folder: Path) -> None:
    (folder / "tokenizer.model").unlink(missing_ok=True)
    merge(folder / "tokenizer_config.json", auto_map=["evil.Evil", None], tokenizer_class="EvilTokenizer")


def a_kernel_from_elsewhere(folder: Path) -> None:
    """transformers fetches such an attention from the hub; it is native code."""
    named = dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), "evil/kernel"
    )
    for part in ("", "text_config", "vision_config", "mm_vision_config"):
        held = json.loads((folder / "config.json").read_text())
        if not part:
            merge(folder / "config.json", **named, use_kernels=True)
        elif isinstance(held.get(part), dict):
            merge(folder / "config.json", **{part: held[part] | named})


def a_model_of_its_own(folder: Path) -> None:
    merge(folder / "config.json", auto_map=CLASSES, model_type="evil", architectures=["Evil"])


def a_quantisation_of_its_own(folder: Path) -> None:
    merge(folder / "config.json", quantization_config={"quant_method": "evil.Evil", "auto_map": CLASSES})


def adapters_that_name_modules(folder: Path) -> None:
    merge(
        folder / "adapter_config.json",
        peft_type="LORA",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        r=4,
        target_modules=["q_proj"],
        megatron_config={"x": 1},
        megatron_core="evil",
        custom_modules={"evil": "Evil"},
        base_model_name_or_path="evil",
    )


def a_template_that_reaches_out(folder: Path) -> None:
    merge(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def generation_of_its_own(folder: Path) -> None:
    merge(folder / "generation_config.json", custom_generate="evil", auto_map=CLASSES)


TRAPS: dict[str, Callable[[Path], None]] = {
    trap.__name__: trap
    for trap in (
        classes_of_its_own,
        a_tokenizer_of_its_own,
        a_tokenizer_of_a_class_in_a_list,
        a_kernel_from_elsewhere,
        a_model_of_its_own,
        a_quantisation_of_its_own,
        adapters_that_name_modules,
        a_template_that_reaches_out,
        generation_of_its_own,
    )
}


CASES = [
    *(("llava", trap) for trap in TRAPS if trap != "adapters_that_name_modules"),
    *(("hf", trap) for trap in ("classes_of_its_own", "a_kernel_from_elsewhere", "a_model_of_its_own")),
    *(("language", trap) for trap in ("a_tokenizer_of_its_own", "a_kernel_from_elsewhere")),
    *(("projector", trap) for trap in ("classes_of_its_own", "a_kernel_from_elsewhere")),
    *(("lora", trap) for trap in ("classes_of_its_own", "a_kernel_from_elsewhere", "adapters_that_name_modules")),
    *(("clip", trap) for trap in ("classes_of_its_own", "a_kernel_from_elsewhere", "adapters_that_name_modules")),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_llava(folder / "llava", write_tower(folder / "clip"))
    write_hf(folder / "hf")
    write_projector(folder / "projector", "../clip")
    write_lora(folder / "lora", "../clip")
    write_language_model(folder / "language")
    return folder


@pytest.fixture(autouse=True)
def somebody_who_says_yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize(("kind", "trap"), CASES)
def test_code_beside_a_model_never_runs(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, trap: str
) -> None:
    """Either the model opens without it, or it is refused; Python could import the code, were it asked to."""
    shutil.copytree(models, tmp_path / "models")
    folder, marker = tmp_path / "models" / kind, tmp_path / "marker"
    code_in(folder, marker)
    TRAPS[trap](folder)
    monkeypatch.syspath_prepend(str(folder))
    opened = folder.parent / "projector" if kind == "clip" else folder
    merge(
        opened / "config.json",
        **({} if kind in ("hf", "language") else {"mm_vision_tower": str(folder.parent / "clip")}),
    )
    base = str(folder.parent / "language") if opened.name in ("projector", "lora") else None
    try:
        tokenizer, *_ = load_pretrained_model(str(opened), base, device="cpu", dtype=torch.float32)
    except ValueError as error:
        assert str(folder) in str(error), "the sentence names the folder"
    else:
        with pytest.raises(Exception):  # noqa: B017 - that a template cannot reach out is what counts, not how it fails
            tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert not marker.exists() and not Path("X").exists()
    assert "evil" not in sys.modules


def test_a_tokenizer_with_code_is_refused_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("asked whether to run the code")

    monkeypatch.setattr("builtins.input", asked)
    folder = write_language_model(tmp_path / "vicuna")
    code_in(folder, tmp_path / "marker")
    a_tokenizer_of_its_own(folder)
    with pytest.raises(ValueError, match="vicuna"):
        read_tokenizer(folder)
    assert not (tmp_path / "marker").exists()


def test_a_shape_that_is_timed_names_no_kernel(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "llava", tmp_path / "llava"))
    a_kernel_from_elsewhere(folder)
    model = random_model(str(folder), torch.device("meta"), torch.float32)
    assert model.config._attn_implementation in (VARLEN, "eager")


def test_training_does_not_run_code_beside_its_models(tmp_path: Path) -> None:
    assets = write_assets(tmp_path / "assets")
    for folder in (assets / "lm", assets / "tower"):
        code_in(folder, tmp_path / "marker")
        classes_of_its_own(folder)
    train(flags(assets, tmp_path / "out", "pretrain", max_steps=1))
    assert not (tmp_path / "marker").exists()
