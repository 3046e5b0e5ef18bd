"""docs/inference.md: its script runs, its commands parse, and its figures follow from the schedule."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tiny_folder import write_model, write_pictures
from warm_python import run_program

from llava.compression.config import CompressionConfig
from llava.cost.flops import prefill_flops, visual_tokens_per_layer
from llava.cost.shapes import CLIP_L_336, MODELS
from llava.eval import cost, run_llava
from llava.serve import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/inference.md").read_text(encoding="utf-8")
PARSERS = {"llava.serve.cli": cli._parser, "llava.eval.run_llava": run_llava._parser, "llava.eval.cost": cost._parser}
SHAPE = MODELS["llava-1.5-7b"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_script_runs(tmp_path: Path) -> None:
    write_model(tmp_path / "CHECKPOINT")
    for old, new in zip(write_pictures(tmp_path, 3), ("one", "two", "three"), strict=True):
        Path(old).rename(tmp_path / f"{new}.png")
    done = run_program(["-c", "\n".join(blocks("python"))], cwd=tmp_path, env={"OMP_NUM_THREADS": "1", "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "visual tokens by layer 0-1: 10, 2-3: 5, 4-5: 2" in done.stdout
    assert "tensor([[" in done.stdout


def test_every_command_parses() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        words = shlex.split(line.split("| ")[-1])
        assert words[:2] == ["python", "-m"]
        PARSERS[words[2]]().parse_args(words[3:])


def prefill(budget: str, text: int) -> int:
    tokens = visual_tokens_per_layer(CompressionConfig.resolve(budget), SHAPE.layers)
    return prefill_flops(tokens, text, SHAPE)


def test_the_figures_follow_from_the_schedule() -> None:
    shares = [f"{CLIP_L_336.flops() / prefill(name, 100):.0%}".replace("%", " %") for name in ("none", "duet-192")]
    assert shares == ["4 %", "9 %"] and all(share in TEXT for share in shares)
    assert f"{CLIP_L_336.flops() / prefill('duet-64', 100):.0%}" == "15%" and "15 %" in TEXT
    assert f"| {prefill('duet-192', 160) / 1e12:.1f} T |" in TEXT
    tokens = visual_tokens_per_layer(CompressionConfig.resolve("duet-192"), SHAPE.layers)
    alone = sum(SHAPE.layer_flops(160 + count) - SHAPE.layer_flops(120 + count) for count in tokens)
    assert f"| {(alone + 2 * SHAPE.width * SHAPE.vocab) / 1e12:.1f} T |" in TEXT
