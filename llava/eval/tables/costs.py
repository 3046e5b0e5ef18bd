"""What budgets cost, computed and measured, and the tables of it that `llava.eval.cost` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from llava.common.number_flags import require_at_least
from llava.cost.flops import average_visual_tokens, describe
from llava.cost.seen_media import Medium
from llava.cost.timing import spread


@dataclass
class Cost:
    """Computed and measured cost of one budget.

    Attributes:
        budget: its name.
        visual_tokens: number of visual tokens of one row, by layer.
        flops: FLOPs of one row's prefill, from pixels to the first logits.
        kv_bytes: bytes of the whole batch's cache after the prefill, computed and found to be so.
        prefill_seconds: seconds of a batch's prefill, one for each round.
        decode_seconds: seconds for all tokens of a batch but the first, one for each round.
        peak_bytes: most memory allocated at once on the GPU, weights included; None on a CPU, where it is not measured.
        train_flops: FLOPs of one row's training step; None if it was not asked for.
        train_seconds: seconds of a batch's training step, one for each round; empty if it was not asked for.
        tower_seconds: seconds of the vision tower on the images of a batch, likewise.
    """

    budget: str
    visual_tokens: tuple[int, ...]
    flops: int
    kv_bytes: int
    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    train_flops: int | None = None
    train_seconds: list[float] = field(default_factory=list)
    tower_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class BatchShape:
    """What is asked of the model: `rows` prompts of `text_tokens` and `images` each, answers of `new_tokens`.

    Each image is a `medium`; None is what is usual of the model's family.
    """

    rows: int
    text_tokens: int
    images: int
    new_tokens: int
    medium: Medium | None = None

    def __post_init__(self) -> None:
        require_at_least("batch-size", self.rows, 1)
        require_at_least("text-tokens", self.text_tokens, 1)
        require_at_least("images", self.images, 0)
        require_at_least("new-tokens", self.new_tokens, 2)

    def sentence(self) -> str:
        """The batch in words."""
        shown = "image(s)" if self.medium is None else f"x {self.medium}"
        return (
            f"batch of {self.rows}: {self.text_tokens} text tokens and {self.images} {shown} a row, answers of "
            f"{self.new_tokens} tokens"
        )


def further_lines(costs: Sequence[Cost]) -> list[str]:
    """A line for each budget and each of the further measurements; against the first budget."""
    lines, dense = [], costs[0]
    for cost in costs:
        if cost.train_seconds and dense.train_flops and cost.train_flops:
            faster = median(dense.train_seconds) / median(cost.train_seconds)
            of_limit = f"{faster:.2f}x faster, FLOP limit {dense.train_flops / cost.train_flops:.2f}x"
            lines.append(f"training step  {cost.budget:12} {spread(cost.train_seconds)}  {of_limit}")
    for cost in costs:
        if cost.tower_seconds:
            more = median(cost.tower_seconds) / median(dense.tower_seconds) - 1
            lines.append(f"vision tower   {cost.budget:12} {spread(cost.tower_seconds)}  {more:+.1%}")
    return lines


def table(costs: Sequence[Cost], load: BatchShape) -> str:
    """A line for each budget; speed-ups are against the first one."""
    width = max(len(cost.budget) for cost in costs)
    dense = costs[0]
    lines = [
        f"{'':{width}}  average  prefill   KV cache  prefill, median (range)        faster  FLOP limit"
        "    decode  peak memory  visual tokens by layer",
        f"{'':{width}}   tokens   TFLOPs        MiB                       ms                        "
        "  tokens/s          GiB",
    ]
    for cost in costs:
        seconds = cost.prefill_seconds
        measured = f"{median(seconds) * 1e3:.1f} ({min(seconds) * 1e3:.1f}-{max(seconds) * 1e3:.1f})"
        peak = "not measured" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**30:.2f}"
        lines.append(
            f"{cost.budget:{width}}  {average_visual_tokens(cost.visual_tokens):7.2f} "
            f"{cost.flops * load.rows / 1e12:8.3g}"
            f"  {cost.kv_bytes / 2**20:9.2f}  {measured:>28}"
            f"  {median(dense.prefill_seconds) / median(seconds):6.2f}x {dense.flops / cost.flops:10.2f}x"
            f"  {decode_rate(cost, load):8.1f} {peak:>12}  {describe(cost.visual_tokens)}"
        )
    return "\n".join(lines)


def decode_rate(cost: Cost, load: BatchShape) -> float:
    """Tokens a second of the whole batch."""
    return load.rows * (load.new_tokens - 1) / median(cost.decode_seconds)
