"""Every module imports without the optional packages, and none of them brings torchvision along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = (
    "av",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "flash_attn",
    "gradio",
    "liger_kernel",
    "lmms_eval",
    "matplotlib",
    "openpyxl",
    "pandas",
    "peft",
    "playwright",
    "sentencepiece",
    "skimage",
    "sklearn",
    "spacy",
    "torchvision",
    "vlmeval",
    "wandb",
)

PROGRAM = """
import importlib, pathlib, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # importing it now fails, and looking for it finds nothing
for folder in ("llava", "playground"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        if "output" not in path.parts:
            importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
print(len([name for name in sys.modules if name.startswith("llava.")]))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_module_imports_without_optional_packages() -> None:
    done = run(PROGRAM, ",".join(OPTIONAL))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 20


def test_answers_are_scored_and_judged_without_waiting_for_torch() -> None:
    commands = "score, data, eval_pope, eval_textvqa, eval_science_qa, eval_video_qa, eval_gpt_review_bench"
    done = run(f"import sys\nfrom llava.eval import {commands}\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"torch", "transformers"}


def test_the_method_imports_torch_and_nothing_above_it() -> None:
    done = run("import sys, llava.compression, llava.compression.schedule\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert not imported & {"transformers", "yaml", "PIL", "tokenizers", "llava.model", "llava.data", "llava.train"}
