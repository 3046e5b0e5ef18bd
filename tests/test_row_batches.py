"""Prompts answered together, against each alone: text, sampled text by its seed, ends, and what leaves meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch
from test_chat import PROCESSOR, TOKENIZER, make_model, pictures
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from llava.compression.config import CompressionConfig
from llava.inference.batches import Prompt
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.inference.growing_text import GrowingText
from llava.inference.row_batches import LEFT, LENGTH, STOPPED, RowAnswer, RowSettings, answer_rows
from llava.inference.row_sampling import RowSampling, drawn, drawn_from_nucleus

QUESTIONS = (
    ("What digit is red?", 1),
    ("Hello", 0),
    ("Where is the seven, and is there a blue two in one of the pictures?", 2),
    ("Is it green?", 1),
)


class Heard:
    """Hears a batch; leaves rows after so many steps."""

    def __init__(self, leaves: dict[int, int] | None = None) -> None:
        self.pieces: dict[int, list[str]] = {}
        self.answers: dict[int, RowAnswer] = {}
        self.steps = 0
        self._leaves = leaves or {}

    def left(self, row: int) -> bool:
        return row in self._leaves and self.steps + 1 >= self._leaves[row]

    def shown(self, row: int, piece: str) -> None:
        assert row not in self.answers, "nothing comes behind the end"
        self.pieces.setdefault(row, []).append(piece)

    def answered(self, row: int, answer: RowAnswer) -> None:
        assert row not in self.answers, "an answer ends once"
        self.answers[row] = answer

    def stepped(self) -> None:
        self.steps += 1


def engine_of(compression=tiny.DUET, **settings) -> Engine:
    return Engine(make_model(compression, **settings), TOKENIZER, PROCESSOR, "v1")


def samples_of(engine: Engine) -> list:
    shown = pictures(sum(count for _, count in QUESTIONS))
    samples = []
    for text, count in QUESTIONS:
        samples.append(engine.sample(Prompt(text, tuple(shown[:count]))))
        shown = shown[count:]
    return samples


def run(engine: Engine, samples: Sequence, rows: Sequence[RowSettings], **leaves) -> Heard:
    heard = Heard(**leaves)
    assert answer_rows(engine, samples, rows, engine.model.compression, heard) == []
    assert {row: "".join(pieces) for row, pieces in heard.pieces.items()} == {
        row: answer.text for row, answer in heard.answers.items() if answer.text
    }, "what was streamed is what was answered"
    return heard


@pytest.mark.parametrize("compression", [tiny.DUET, None], ids=["duet", "none"])
def test_answers_of_a_batch_are_those_of_each_question_alone(compression) -> None:
    """Greedy and sampled rows, short and long ones, with and without images, in one batch."""
    engine = engine_of(compression)
    samples = samples_of(engine)
    rows = [
        RowSettings(0.0, max_new_tokens=6),
        RowSettings(1.0, max_new_tokens=12, seed=5),
        RowSettings(0.8, 0.9, max_new_tokens=9, seed=5),
        RowSettings(1.3, 0.5, max_new_tokens=3, seed=-7),
    ]
    together = run(engine, samples, rows).answers
    assert sorted(together) == [0, 1, 2, 3]
    for number, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        (alone,) = run(engine, [sample], [row]).answers.values()
        assert together[number] == alone
    shown = pictures(4)
    assert (
        together[0].text
        == engine.answer([Prompt(QUESTIONS[0][0], (shown[0],))], GenerationSettings(0, max_new_tokens=6))[0]
    )


@pytest.mark.parametrize("template", ["v0", "mpt", "llama_3"])
def test_words_of_a_template_that_end_an_answer_end_a_row(template: str) -> None:
    """The model is steered to say words and the mark, in each row after another number of them."""
    engine = Engine(make_model(tiny.DUET, seed=4), TOKENIZER, PROCESSOR, template)
    mark = engine.inputs.stop
    assert mark is not None
    spelled = TOKENIZER(mark, add_special_tokens=False).input_ids
    samples = samples_of(engine)
    said = {number: [*range(300, 300 + number + 1), *spelled, 301, 302] for number in range(len(samples))}
    steps = steer(engine, said)
    heard = Heard()
    assert answer_rows(engine, samples, [RowSettings(max_new_tokens=30)] * 4, engine.model.compression, heard) == []
    for number, answer in heard.answers.items():
        assert answer.text == TOKENIZER.decode(said[number][: number + 1]).strip() and answer.ended == STOPPED
        assert answer.tokens <= number + 1 + len(spelled)
    prompts = [Prompt(text, tuple(pictures(count))) for text, count in QUESTIONS]
    steps["taken"] = 0
    assert engine.answer(prompts, GenerationSettings(0, max_new_tokens=30)) == [heard.answers[n].text for n in range(4)]


def steer(engine: Engine, said: dict[int, list[int]]) -> dict[str, int]:
    """Let the model say in each row what it is told; returns the number of steps that it has taken, to be set back."""
    steps = {"taken": 0}

    def told(module: torch.nn.Module, given: tuple, logits: torch.Tensor) -> torch.Tensor:
        for number, tokens in said.items():
            logits[number, -1, tokens[min(steps["taken"], len(tokens) - 1)]] = 1e4
        steps["taken"] += 1
        return logits

    engine.model.lm_head.register_forward_hook(told)
    return steps


def test_a_seed_decides_and_other_seeds_differ() -> None:
    engine = engine_of()
    samples = samples_of(engine)[:1] * 4
    answers = run(engine, samples, [RowSettings(1.0, max_new_tokens=8, seed=seed) for seed in (1, 2, 1, 3)]).answers
    assert answers[0] == answers[2]
    assert len({answers[row].text for row in (0, 1, 3)}) == 3


def test_visual_tokens_are_told_before_behind_v2v_and_on_average() -> None:
    engine = engine_of()
    heard = run(engine, samples_of(engine), [RowSettings(max_new_tokens=2)] * 4)
    for number, (_, images) in enumerate(QUESTIONS):
        visual = heard.answers[number].visual
        v2v, t2v = engine.model.compression.v2v, engine.model.compression.t2v
        entered = v2v.token_count(engine.model.tower_tokens()) * images
        layers = len(engine.model.decoder.layers)
        ends = [*t2v.layers, layers]
        tokens = [entered, *(t2v.kept(stage, entered) for stage in range(len(t2v.layers)))]
        starts = [0, *t2v.layers]
        average = sum(n * (end - start) for n, start, end in zip(tokens, starts, ends, strict=True)) / layers
        assert (visual.before, visual.entered) == (16 * images, entered)
        assert visual.average == pytest.approx(average)


def test_a_row_ends_at_its_own_words_and_the_words_are_not_shown() -> None:
    engine = engine_of()
    samples = samples_of(engine)[:2]
    whole = run(engine, samples, [RowSettings(max_new_tokens=20)] * 2).answers
    text = whole[0].text
    assert len(text) > 12 and whole[0].ended == LENGTH
    stop = text[6:9]
    rows = [RowSettings(max_new_tokens=20, stop=("never said", stop)), RowSettings(max_new_tokens=20)]
    heard = run(engine, samples, rows).answers
    assert heard[0].text == text[: text.index(stop)].strip() and heard[0].ended == STOPPED
    assert heard[0].tokens < whole[0].tokens and heard[1] == whole[1]


def test_a_row_that_is_left_ends_and_the_batch_waits_for_it_no_longer() -> None:
    engine = engine_of()
    samples = samples_of(engine)[:2]
    rows = [RowSettings(max_new_tokens=40), RowSettings(max_new_tokens=5)]
    whole = run(engine, samples, rows)
    heard = run(engine, samples, rows, leaves={0: 3})
    assert heard.answers[0].ended == LEFT and heard.answers[0].tokens == 3
    assert heard.answers[1] == whole.answers[1] and heard.steps == 5 < whole.steps


def test_numbers_that_are_not_finite_fail_one_row_alone() -> None:
    """Text alone does not pass the projector."""
    engine = engine_of()
    samples = samples_of(engine)[:2]
    rows = [RowSettings(1.0, max_new_tokens=4), RowSettings(1.0, max_new_tokens=4)]
    whole = run(engine, samples, rows).answers
    with torch.no_grad():
        for weight in engine.model.model.mm_projector.parameters():
            weight.fill_(float("nan"))
    heard = Heard()
    assert answer_rows(engine, samples, rows, engine.model.compression, heard) == [0]
    assert heard.answers == {1: whole[1]} and 0 not in heard.pieces


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 0.01])
def test_tokens_are_drawn_as_often_as_transformers_says_they_should_be(temperature: float, top_p: float) -> None:
    """Against the probabilities of transformers' own warpers, for evenly spaced random numbers."""
    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)) * 3
    scores[0, 7] = -torch.inf
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    expected = warpers(torch.zeros(1, 1), scores.clone()).softmax(-1)[0]
    count = 20000
    numbers = ((torch.arange(count) + 0.5) / count)[:, None]
    draw = drawn if top_p == 1 else drawn_from_nucleus
    column = torch.full((count, 1), temperature), torch.full((count, 1), top_p)
    tokens = draw(scores.expand(count, -1), *column, numbers)[:, 0]
    found = torch.bincount(tokens, minlength=50) / count
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("draw", [drawn, drawn_from_nucleus])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_a_token_that_may_not_come_is_never_drawn(draw, number: float) -> None:
    scores = torch.full((1, 9), -torch.inf)
    scores[0, 4] = 80.0
    asked = (torch.full((1, 1), value) for value in (1e-5, 0.5, number))
    assert draw(scores, *asked).tolist() == [[4]]


def test_a_draw_does_not_depend_on_what_neighbours_ask() -> None:
    scores = torch.randn(3, 100, generator=torch.Generator().manual_seed(2))
    rows = [RowSettings(1.0, seed=4), RowSettings(0.7, 0.6, seed=9), RowSettings(0.0)]
    ids = torch.zeros(3, 1, dtype=torch.long)
    together = RowSampling(rows)
    alone = [RowSampling([row]) for row in rows]
    for _ in range(5):
        joint = together(ids, scores).argmax(-1).tolist()
        assert joint == [one(ids[:1], scores[n : n + 1]).argmax(-1).item() for n, one in enumerate(alone)]
    assert joint[2] == scores[2].argmax().item()


@pytest.mark.parametrize("text", ["Zwei Äpfel, 二つの林檎 🍎🍏!\n\n  indented\nend", "a  b   c", "no", " lead"])
def test_streamed_text_is_the_whole_text_whatever_the_tokens_cut(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    growing = GrowingText(TOKENIZER, ())
    pieces = [growing.add(token) for token in ids] + [growing.end()]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True).strip() == growing.text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stops", "shown"),
    [(("of",), "one two and"), (("d o",), "one two an"), (("xyz", "two"), "one"), ((" three",), None)],
)
def test_words_that_end_an_answer_are_never_shown_not_even_in_part(stops: tuple[str, ...], shown: str | None) -> None:
    text = "one two and of it"
    growing = GrowingText(TOKENIZER, stops)
    pieces = []
    for token in TOKENIZER(text, add_special_tokens=False).input_ids:
        pieces.append(growing.add(token))
        if growing.ended:
            break
    pieces.append(growing.end())
    assert "".join(pieces) == (text if shown is None else shown)
    assert growing.ended == (shown is not None)


def test_a_budget_of_the_call_is_used_instead_of_the_models_own() -> None:
    engine = engine_of()
    heard = Heard()
    answer_rows(engine, samples_of(engine)[:1], [RowSettings(max_new_tokens=2)], CompressionConfig(), heard)
    assert heard.answers[0].visual.entered == 16 == heard.answers[0].visual.average
