"""What a caller indexes by a column of the input is that column's, whatever was merged or dropped in between.

Every check runs on LLaVA's own model and on the four classes of transformers, unpadded and padded on either side.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_vlms import FAMILIES, IMAGE, OWN, VIDEO, batch, prompt, vlm
from torch import Tensor
from torch.nn import functional as F

from llava import compress
from llava.compression import CompressionConfig, QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

V2V = {"v2v": {"dominant": 5, "contextual": 3, "cluster_width": 2}}
BOTH = {**V2V, "t2v": {"layers": [2, 4], "keep": [0.5, 0.0]}}
TEXT = {"t2v": {"layers": [1, 3], "keep": [0.6, 0.3], "queries": "text"}}
SETTINGS = {"none": None, "v2v": V2V, "both": BOTH, "text": TEXT}
CASES = [(OWN, name) for name in SETTINGS] + [(family, name) for family in FAMILIES for name in ("both", "text")]
EXACT = {"atol": 1e-9, "rtol": 0}
CLOSE = {"atol": 3e-5, "rtol": 0}  # a prefill and a decode step take other kernels, and scores are float32

Sample = tuple[list[int], Any]
"""Ids of a prompt, and what it shows, a list of `Seen`."""


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], Any]:
    stock = {family: vlm(family) for family in (OWN, *FAMILIES)}
    return {(family, name): compress(stock[family], SETTINGS[name]) for family, name in CASES}


def seen_text(family: str, seed: int) -> Sample:
    """A prompt that shows an image."""
    return prompt(family, seed)


def plain_text(family: str, seed: int, length: int) -> Sample:
    draw = random.Random(seed)
    return [1, *(draw.randrange(3, 46) for _ in range(length - 1))], []


def words(seed: int, count: int) -> list[int]:
    draw = random.Random(100 + seed)
    return [draw.randrange(3, 46) for _ in range(count)]


def inputs_of(
    family: str, samples: list[Sample], ids: list[list[int]] | None = None, side: str = "left"
) -> dict[str, Any]:
    """A batch; with `ids` (all of one length) those instead of the padded prompts, and no mask."""
    made = batch(samples, side)
    if ids is not None:
        made["input_ids"], made["attention_mask"] = (
            torch.tensor(ids),
            torch.ones(len(ids), len(ids[0]), dtype=torch.long),
        )
        if "mm_token_type_ids" in made:
            kinds = made["input_ids"]
            made["mm_token_type_ids"] = (kinds == IMAGE).long() + 2 * (kinds == VIDEO).long()
    return made


@torch.no_grad()
def run(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    return model(**inputs, use_cache=False, **options)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_last_column_of_unpadded_rows_is_each_rows_own_last_token(models: Any, family: str, name: str) -> None:
    model, seen = models[family, name], seen_text(family, 3)
    samples = [seen, plain_text(family, 4, len(seen[0]))]
    inputs = inputs_of(family, samples)
    del inputs["attention_mask"]
    output, short = run(model, inputs, output_hidden_states=True), run(model, inputs, logits_to_keep=1)
    for row, sample in enumerate(samples):
        alone = run(model, inputs_of(family, [sample]), output_hidden_states=True)
        torch.testing.assert_close(output.logits[row, -1], alone.logits[0, -1], **EXACT)
        torch.testing.assert_close(short.logits[row, -1], alone.logits[0, -1], **EXACT)
        for ours, theirs in zip(output.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(ours[row, -1], theirs[0, -1], **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_each_text_column_is_that_of_the_row_alone(models: Any, family: str, name: str, side: str) -> None:
    model, samples = models[family, name], [seen_text(family, 1), seen_text(family, 2), plain_text(family, 3, 5)]
    inputs = inputs_of(family, samples, side=side)
    output = run(model, inputs, output_hidden_states=True)
    assert output.logits.shape[:2] == inputs["input_ids"].shape
    for row, sample in enumerate(samples):
        alone = run(model, inputs_of(family, [sample]), output_hidden_states=True)
        valid = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(output.logits[row][valid], alone.logits[0], **EXACT)
        for ours, theirs in zip(output.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(ours[row][valid], theirs[0], **EXACT)
        if not valid[-1]:
            torch.testing.assert_close(output.logits[row, -1], alone.logits[0, -1], **EXACT)


@pytest.mark.parametrize("family", [OWN, *FAMILIES])
def test_a_column_whose_token_was_dropped_repeats_the_survivor_before_it(models: Any, family: str) -> None:
    """To zero: each visual column predicts what the text before it predicts, in the last hidden state too."""
    model, (ids, seen) = models[family, "both"], seen_text(family, 5)
    output = run(model, inputs_of(family, [(ids, seen)]), output_hidden_states=True)
    visual = [place for place, token in enumerate(ids) if token in (IMAGE, VIDEO, IMAGE_TOKEN_INDEX)]
    for values in (output.logits[0], output.hidden_states[-1][0]):
        assert torch.equal(values[visual], values[visual[0] - 1].expand(len(visual), -1))
        assert not torch.equal(values[visual[-1]], values[visual[-1] + 1])


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] == "both"])
def test_every_form_of_logits_to_keep_takes_columns_of_the_input(models: Any, family: str, name: str) -> None:
    model, samples = models[family, name], [seen_text(family, 1), plain_text(family, 3, 6)]
    inputs = inputs_of(family, samples)
    votes = torch.zeros_like(inputs["input_ids"])
    votes[:, -1] = int(QueryRole.LAST | QueryRole.INSTRUCTION)  # else a kept tail is taken for an answer
    inputs["query_mask"] = votes
    whole = run(model, inputs).logits
    width = whole.shape[1]
    torch.testing.assert_close(run(model, inputs, logits_to_keep=3).logits, whole[:, -3:], **EXACT)
    some = torch.tensor([0, 2, width - 1])
    torch.testing.assert_close(run(model, inputs, logits_to_keep=some).logits, whole[:, some], **EXACT)
    torch.testing.assert_close(run(model, inputs, logits_to_keep=some.tolist()).logits, whole[:, some], **EXACT)
    each = torch.tensor([[1, width - 2], [width - 1, width - 3]])
    expected = torch.stack([whole[0, each[0]], whole[1, each[1]]])
    torch.testing.assert_close(run(model, inputs, logits_to_keep=each).logits, expected, **EXACT)
    mask = torch.zeros(2, width, dtype=torch.bool)
    mask[0, -1] = mask[1, -2:] = True
    torch.testing.assert_close(run(model, inputs, logits_to_keep=mask).logits, whole[mask], **EXACT)
    for unclear in (torch.tensor(3), torch.tensor([0.5]), 2.5):
        with pytest.raises(ValueError, match="logits_to_keep is"):
            run(model, inputs, logits_to_keep=unclear)


# ------------------------------------------------------------------------------------------- scoring = generating


def said(model: Any, family: str, sample: Sample, count: int, **options: Any) -> tuple[list[int], Tensor]:
    """What a model answers greedily, and the log-probability that it gave each of its tokens."""
    inputs = inputs_of(family, [sample])
    found = model.generate(
        **inputs,
        max_new_tokens=count,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO] if family != OWN else [0],
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
        **options,
    )
    answer = found.sequences[0, -count:].tolist()
    steps = torch.stack(found.logits)[:, 0].double()
    return answer, steps.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def log_probabilities(logits: Tensor, targets: list[int]) -> Tensor:
    """Of targets [K] under logits [K, V]."""
    return logits.double().log_softmax(dim=-1).gather(1, torch.tensor(targets)[:, None])[:, 0]


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.parametrize(
    "way",
    ["kept tail", "kept columns", "labels", "query mask", "other flags", "other flags and kept tail", "shift labels"],
)
def test_scoring_an_answer_gives_what_generating_it_gave(models: Any, family: str, name: str, way: str) -> None:
    model, sample, count = models[family, name], seen_text(family, 7), 4
    flags = [0] * (len(sample[0]) - 2) + [int(QueryRole.INSTRUCTION)] * 2  # never what `queries: last` asks for
    asked = {"query_mask": torch.tensor([flags])} if way.startswith("other flags") else {}
    answer, expected = said(model, family, sample, count, **asked)
    ids = sample[0] + answer
    inputs, options = inputs_of(family, [(ids, sample[1])]), {}
    labels = torch.tensor([[IGNORE_INDEX] * len(sample[0]) + answer])
    if way.startswith("other flags"):
        options["query_mask"] = torch.tensor([flags + [0] * count])
    if way.endswith("kept tail"):
        options["logits_to_keep"] = count + 1
    if way == "kept columns":
        options["logits_to_keep"] = torch.arange(len(ids) - count - 1, len(ids))
    if way == "labels":
        options["labels"] = labels
    if way == "shift labels":
        options["shift_labels"] = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    if way == "query mask":
        shown = (IMAGE, VIDEO, IMAGE_TOKEN_INDEX)
        roles = [0 if token in shown else int(QueryRole.INSTRUCTION) for token in sample[0]] + [0] * count
        roles[len(sample[0]) - 1] |= int(QueryRole.LAST)
        options["query_mask"] = torch.tensor([roles])
    output = run(model, inputs, **options)
    got = log_probabilities(output.logits[0, -count - 1 : -1], answer)
    torch.testing.assert_close(got, expected, **CLOSE)
    if way in ("labels", "shift labels"):
        torch.testing.assert_close(output.loss.double(), -expected.mean(), **CLOSE)


@pytest.mark.parametrize("padding", ["prompts left, answers right", "both right"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_rewards_of_a_batch_score_each_row_as_alone(models: Any, family: str, name: str, padding: str) -> None:
    """GRPO and DPO put padded answers behind padded prompts and keep the logits of the answers."""
    model, longest = models[family, name], 4
    samples = [seen_text(family, 1), seen_text(family, 2), plain_text(family, 5, 6)]
    answers = [words(0, 4), words(1, 2), words(2, 3)]
    inputs = inputs_of(family, samples, side="left" if padding.startswith("prompts left") else "right")
    behind = [answer + [0] * (longest - len(answer)) for answer in answers]
    masks = [[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor(behind)], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.tensor(masks)], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, longest))
    logits = run(model, inputs, logits_to_keep=longest + 1).logits[:, :-1]
    for row, (ids, seen) in enumerate(samples):
        count = len(answers[row])
        alone = run(model, inputs_of(family, [(ids + answers[row], seen)]), logits_to_keep=count + 1).logits[0, :-1]
        torch.testing.assert_close(logits[row, :count], alone, **EXACT)


def test_a_kept_tail_that_shows_an_image_is_not_an_answer() -> None:
    """Who keeps more than the answer, or everything, changes nobody's vote."""
    model, (ids, images) = compress(vlm(OWN), TEXT), seen_text(OWN, 1)
    inputs = inputs_of(OWN, [(ids, images)])
    whole = run(model, inputs).logits
    for count in (len(ids), len(ids) - ids.index(IMAGE_TOKEN_INDEX) + 1):
        torch.testing.assert_close(run(model, inputs, logits_to_keep=count).logits, whole[:, -count:], **EXACT)


# ------------------------------------------------------------------------------------------------- shift_labels


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_shift_labels_are_what_each_column_predicts(models: Any, family: str, name: str, training: bool) -> None:
    """Against the logits of every column; the last column and the end of a shorter row have a target as well."""
    model = models[family, name].train(training)
    samples = [seen_text(family, 1), plain_text(family, 3, 6)]
    answers = [words(0, 3), words(1, 3)]
    inputs = inputs_of(
        family, [(ids + answer, seen) for (ids, seen), answer in zip(samples, answers, strict=True)], side="right"
    )
    labels = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    for row, ((ids, _), answer) in enumerate(zip(samples, answers, strict=True)):
        labels[row, len(ids) : len(ids) + len(answer)] = torch.tensor(answer)
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    plain = run(model, inputs, labels=labels)
    both = run(model, inputs, labels=labels, shift_labels=shifted, return_logits=True)
    torch.testing.assert_close(both.loss, plain.loss)
    shifted[0, len(samples[0][0]) + 2] = 9
    shifted[1, len(samples[1][0]) + 2] = 11
    output = run(model, inputs, shift_labels=shifted, return_logits=True)
    expected = F.cross_entropy(output.logits.flatten(0, 1).double(), shifted.flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(output.loss.double(), expected, atol=1e-6, rtol=0)
    summed = run(model, inputs, shift_labels=shifted, num_items_in_batch=10)
    torch.testing.assert_close(summed.loss, output.loss * 8 / 10)
    assert (summed.logits is None) == training
    model.eval()


def test_shift_labels_on_the_column_before_an_image_do_not_count() -> None:
    model, (ids, images) = compress(vlm(OWN), BOTH), seen_text(OWN, 1)
    inputs = inputs_of(OWN, [(ids, images)])
    shifted = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    shifted[0, -1] = 7
    expected = run(model, inputs, shift_labels=shifted).loss
    shifted[0, ids.index(IMAGE_TOKEN_INDEX) - 1] = 5
    torch.testing.assert_close(run(model, inputs, shift_labels=shifted).loss, expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_rows_of_text_alone_are_padded_as_rows_with_images_are(models: Any, family: str, name: str, side: str) -> None:
    model, samples = models[family, name], [plain_text(family, 1, 4), plain_text(family, 2, 7)]
    inputs = inputs_of(family, samples, side=side)
    output = run(model, inputs, output_hidden_states=True)
    alone = run(model, inputs_of(family, samples[:1]), output_hidden_states=True)
    torch.testing.assert_close(output.logits[0, -1], alone.logits[0, -1], **EXACT)
    torch.testing.assert_close(run(model, inputs, logits_to_keep=1).logits[0, -1], alone.logits[0, -1], **EXACT)
    torch.testing.assert_close(output.hidden_states[2][0, -1], alone.hidden_states[2][0, -1], **EXACT)
    if side == "left":
        assert not output.hidden_states[2][0, :3].any()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_row_of_padding_alone_disturbs_nobody(models: Any, family: str, name: str) -> None:
    """Data-parallel training fills a last batch with such rows."""
    model, sample = models[family, name], seen_text(family, 1)
    inputs, alone = inputs_of(family, [sample]), run(models[family, name], inputs_of(family, [sample]))
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in inputs:
            inputs[key] = torch.cat([inputs[key], torch.zeros_like(inputs[key])])
    torch.testing.assert_close(run(model, inputs).logits[0], alone.logits[0], **EXACT)
    answered = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert (
        answered[0, -3:].tolist()
        == model.generate(**inputs_of(family, [sample]), max_new_tokens=3, do_sample=False, eos_token_id=None)[
            0, -3:
        ].tolist()
    )


@pytest.mark.parametrize("family", [OWN, *FAMILIES])
@pytest.mark.parametrize("name", ["query_mask", "labels", "attention_mask"])
def test_a_mask_or_labels_of_the_prompt_alone_are_refused(models: Any, family: str, name: str) -> None:
    inputs = inputs_of(family, [seen_text(family, 1)])
    inputs[name] = torch.ones_like(inputs["input_ids"])[:, :-1]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        run(models[family, "both"], inputs)


@pytest.mark.parametrize("family", [OWN, *FAMILIES])
@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_labels_of_another_length_than_plain_text_are_refused(models: Any, family: str, name: str) -> None:
    inputs = inputs_of(family, [plain_text(family, 1, 6)])
    for labels in (inputs["input_ids"][:, :-1], inputs["input_ids"][0]):
        with pytest.raises(ValueError, match=r"(shift_)?labels has shape"):
            run(models[family, "both"], inputs, **{name: labels})


def test_the_budget_of_a_call_decides_the_columns(models: Any) -> None:
    model, inputs = models[OWN, "none"], inputs_of(OWN, [seen_text(OWN, 1)])
    expected = run(models[OWN, "both"], inputs).logits
    got = run(model, inputs, compression=CompressionConfig.resolve(BOTH))
    torch.testing.assert_close(got.logits, expected, **EXACT)
