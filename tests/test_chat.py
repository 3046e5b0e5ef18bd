"""Conversations: what each question sees, against recomputing it without a cache."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Sequence

import pytest
import reference
import tiny
import torch
from PIL import Image
from test_generation import greedy_by_hand
from tiny import Row
from tiny_text import TOKENIZERS, llama
from transformers import CLIPImageProcessorPil

from llava.compression.salience import QueryRole
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.cost.flops import kv_bytes, visual_tokens_per_layer
from llava.cost.shapes import DecoderShape, VisionShape
from llava.data.tokenization import encode_prompt, one_question
from llava.inference.chat import Chat
from llava.inference.generation import GenerationSettings
from llava.inference.streaming import Answering, before
from llava.mm_utils import process_images

TOKENIZER = llama()
PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
COLOURS = ("red", "green", "blue")
NEW = 6


def pictures(count: int) -> list[Image.Image]:
    """Coloured noise: every patch of every image differs."""
    draw = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 255, (count, 56, 56, 3), generator=draw, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in noise]


def make_model(compression=None, **settings):
    return tiny.tiny_llava(compression=compression, vocab_size=len(TOKENIZER), **settings)


def make_chat(model, **options) -> Chat:
    return Chat(model, TOKENIZER, PROCESSOR, "v1", **{"max_new_tokens": NEW, "do_sample": False} | options)


def by_hand(model, turns: Sequence[str], images: Sequence[Image.Image], voting_turn: int) -> str:
    """The greedy answer to a conversation, with the last token of one question as the only voter."""
    encoded = encode_prompt(turns, TOKENIZER, "v1")
    ends = [index for index, roles in enumerate(encoded.query_mask) if roles & 4]
    roles = [4 * (index == ends[voting_turn]) for index in range(len(encoded.input_ids))]
    row = Row(encoded.input_ids, roles, encoded.labels)
    pixels = process_images(images, PROCESSOR, model.config).double() if images else torch.empty(0)
    ids = greedy_by_hand(model, row, pixels, NEW)
    ids = ids[: ids.index(2)] if 2 in ids else ids
    return TOKENIZER.decode(ids, skip_special_tokens=True).strip()


TALK = ("What digit is red?", "Where is the seven?", "Is there a blue two in the picture?")


@pytest.mark.parametrize("reencode", [True, False])
@pytest.mark.parametrize("settings", [tiny.DUET, tiny.TO_ZERO | {"v2v": None}, None], ids=["duet", "zero", "none"])
def test_each_question_sees_the_tokens_that_its_voter_chose(settings, reencode: bool):
    """Computing it again, the last question votes alone; going on, the first one."""
    settings = settings and {name: dict(stage) for name, stage in settings.items() if stage}
    if settings and "t2v" in settings:
        settings["t2v"]["queries"] = "last"
    model, (image,) = make_model(settings, seed=2), pictures(1)
    chat = make_chat(model, reencode=reencode)
    turns: list[str] = []
    for number, question in enumerate(TALK):
        turns.append(f"<image>\n{question}" if number == 0 else question)
        got = chat.answer(question, [image] if number == 0 else [])
        assert got == by_hand(model, turns, [image], number if reencode else 0)
        turns.append(got)
    assert chat.turns == list(zip(turns[::2], turns[1::2], strict=True))


def test_the_two_ways_of_going_on_differ_where_tokens_are_dropped():
    model, (image,) = make_model(tiny.DUET), pictures(1)
    answers = {}
    for reencode in (True, False):
        chat = make_chat(model, reencode=reencode)
        answers[reencode] = [chat.answer(question, [image] if n == 0 else []) for n, question in enumerate(TALK)]
    assert answers[True][0] == answers[False][0]
    assert answers[True] != answers[False], "the case can tell them apart"


def test_cached_turns_compute_only_what_is_new():
    model, (image,) = make_model(tiny.DUET), pictures(1)
    chat = make_chat(model, reencode=False)
    chat.answer(TALK[0], [image])
    seen: list[int] = []
    towers: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, given, output: seen.append(given[0].shape[1]))
    model.get_vision_tower().register_forward_hook(lambda *call: towers.append(1))
    whole = len(encode_prompt([*chat._turns, TALK[1]], TOKENIZER, "v1").input_ids)
    chat.answer(TALK[1])
    assert not towers
    assert seen[0] < whole / 2 and all(count == 1 for count in seen[1:])


def test_several_images_in_one_turn_and_more_in_later_ones():
    model, shown = make_model(tiny.DUET), pictures(4)
    chat = make_chat(model)
    first = chat.answer(TALK[0], shown[:2])
    turns = [f"<image>\n<image>\n{TALK[0]}"]
    assert first == by_hand(model, turns, shown[:2], 0)
    question = "Compare <image> with <image>"
    second = chat.answer(question, shown[2:])
    assert second == by_hand(model, [*turns, first, question], shown, 1)
    assert chat.images == shown and chat.usage.patches == 4 * 16


def test_a_conversation_without_images():
    model = make_model(tiny.DUET)
    chat = make_chat(model)
    first = chat.answer(TALK[0])
    assert first == by_hand(model, [TALK[0]], [], 0)
    assert chat.usage.patches == 0 and "no visual tokens" in str(chat.usage)
    (image,) = pictures(1)
    assert chat.answer(TALK[1], [image]) == by_hand(model, [TALK[0], first, f"<image>\n{TALK[1]}"], [image], 1)


def test_an_answer_comes_in_pieces_and_counts_when_it_was_read():
    model, (image,) = make_model(tiny.DUET), pictures(1)
    chat = make_chat(model)
    expected = make_chat(model).answer(TALK[0], [image])
    pieces = chat.ask(TALK[0], [image])
    assert chat.turns == []
    text = "".join(pieces)
    assert text.strip() == expected and chat.turns[0][1] == expected
    chat.reset()
    assert chat.turns == [] and chat.images == [] and chat.usage is None
    assert chat.answer(TALK[0], [image]) == expected


@pytest.mark.parametrize("reencode", [True, False])
def test_an_answer_that_is_left_early_ends_there(reencode: bool):
    model, (image,) = make_model(tiny.DUET), pictures(1)
    chat, before = make_chat(model, reencode=reencode, max_new_tokens=400), threading.active_count()
    pieces = chat.ask(TALK[0], [image])
    next(pieces)
    with pytest.raises(ValueError, match="still being read"):
        chat.ask(TALK[1])
    pieces.close()
    ((_, begun),) = chat.turns
    assert len(TOKENIZER(begun).input_ids) < 400 and threading.active_count() <= before
    chat.settings = GenerationSettings(more=chat.settings.more | {"max_new_tokens": NEW})
    assert chat.answer(TALK[1]) == by_hand(model, [*chat._turns[:2], TALK[1]], [image], 1 if reencode else 0)


@pytest.mark.parametrize("reencode", [True, False])
def test_an_error_while_answering_is_raised_and_loses_nothing(reencode: bool):
    model, (image,) = make_model(tiny.DUET, seed=2), pictures(1)
    chat = make_chat(model, reencode=reencode)
    chat.answer(TALK[0], [image])
    before_it = chat.turns

    def fail(*call):
        raise RuntimeError("out of memory")

    hook = model.model.layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        chat.answer(TALK[1])
    hook.remove()
    assert chat.turns == before_it
    told = [*chat._turns, TALK[1]]
    expected = [by_hand(model, told, [image], voting) for voting in (0, 1)]
    assert expected[0] != expected[1], "the case can tell voters apart"
    assert chat.answer(TALK[1]) == expected[reencode]


def test_what_a_conversation_refuses():
    model, shown = make_model(tiny.DUET), pictures(2)
    chat = make_chat(model, reencode=False)
    with pytest.raises(ValueError, match="holds 1 <image>, but 2 images"):
        chat.ask("What is <image>?", shown)
    chat.answer(TALK[0], shown[:1])
    with pytest.raises(ValueError, match="Images cannot be added to a conversation with reencode=False"):
        chat.ask(TALK[1], shown[1:])
    for reason, options in (
        ("num_return_sequences", {"num_return_sequences": 2}),
        ("Beam search does not keep the cache", {"num_beams": 2, "reencode": False}),
        ("the decoder has 6 layers", {"compression": "pyramiddrop"}),
    ):
        with pytest.raises(ValueError, match=reason):
            make_chat(model, **options)
    for name in ("plain", "nothing"):
        with pytest.raises(ValueError, match=name):
            Chat(model, TOKENIZER, PROCESSOR, name)
    with pytest.raises(ValueError, match="No question with an image"):
        make_chat(model).trace()
    unread = make_chat(model)
    late = unread.ask(TALK[0])
    unread.answer(TALK[1])
    with pytest.raises(ValueError, match="has gone on since"):
        next(late)


def test_a_conversation_that_is_too_long_says_so():
    model = make_model(tiny.DUET, max_position_embeddings=120)
    chat = make_chat(model)
    with pytest.raises(ValueError, match=r"takes \d+ tokens, but the model can number 120"):
        chat.ask("red " * 120)
    assert chat.turns == []


def test_a_budget_can_be_changed_between_questions():
    model, (image,) = make_model(), pictures(1)
    chat = make_chat(model)
    first = chat.answer(TALK[0], [image])
    assert set(chat.usage.visual_tokens) == {16}
    chat.set_compression(tiny.DUET)
    budget = copy.deepcopy(model)
    budget.set_compression(tiny.DUET)
    expected = by_hand(budget, [f"<image>\n{TALK[0]}", first, TALK[1]], [image], 1)
    assert chat.answer(TALK[1]) == expected
    with pytest.raises(ValueError, match="no-such-budget"):
        chat.set_compression("no-such-budget")
    assert chat.compression.t2v is not None
    assert model.compression.t2v is None, "the model keeps its own"


@pytest.mark.parametrize("reencode", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_usage_is_what_the_schedule_says_to_the_byte(kv_heads: int, reencode: bool):
    model, shown = make_model(tiny.DUET, kv_heads=kv_heads, dtype=torch.float32), pictures(2)
    chat = make_chat(model, reencode=reencode)
    shape, vision = DecoderShape.of(model.config), VisionShape.of(model.get_vision_tower().config)
    expected = visual_tokens_per_layer(model.compression, 6, vision, images=2)
    for number, question in enumerate(TALK[:2]):
        chat.answer(question, shown if number == 0 else [])
        assert chat.usage.visual_tokens == expected
        assert chat.usage.kv_bytes == kv_bytes(expected, chat.usage.text_tokens, shape, bytes_per_value=4)
    assert "average 11.33 of 32 (64.6% fewer)" in str(chat.usage)


def test_the_trace_is_of_the_prefill_that_chose_the_tokens():
    model, (image,) = make_model(tiny.DUET), pictures(1)
    for reencode, voting in ((True, 1), (False, 0)):
        chat = make_chat(model, reencode=reencode)
        chat.answer(TALK[0], [image])
        chat.answer(TALK[1])
        turns = chat._turns[: 3 if reencode else 1]
        encoded = encode_prompt(turns, TOKENIZER, "v1")
        ends = [index for index, roles in enumerate(encoded.query_mask) if roles & 4]
        row = Row(encoded.input_ids, [4 * (n == ends[voting]) for n in range(len(encoded.input_ids))], encoded.labels)
        pixels = process_images([image], PROCESSOR, model.config).double()
        seen = [reference.visual_tokens(model, pixels[0], model.compression.v2v)]
        kept = reference.answer_from(model, row, seen, model.compression.t2v).kept
        alive = [flags[0].nonzero().flatten().tolist() for flags in chat.trace()[0].alive.values()]
        assert alive == kept


def test_beams_answer_in_one_piece():
    model, (image,) = make_model(tiny.DUET), pictures(1)
    chat = make_chat(model, num_beams=2)
    pieces = list(chat.ask(TALK[0], [image]))
    assert len(pieces) == 1 and chat.turns[0][1] == pieces[0] and chat.usage is None


def test_chats_that_share_a_model_in_threads_do_not_mix():
    model, shown = make_model(tiny.DUET), pictures(3)
    expected = [make_chat(model).answer(TALK[n], [shown[n]]) for n in range(3)]
    chats = [make_chat(model) for _ in range(3)]
    streams = [chat.ask(TALK[n], [shown[n]]) for n, chat in enumerate(chats)]
    texts = ["", "", ""]
    for _ in range(2 * NEW):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
    assert [text.strip() for text in texts] == expected


# === Voters ===


@pytest.mark.parametrize("template", [name for name in conv_templates if "plain" not in name])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_only_one_question_votes(tokenizer, template: str):
    """Its voters are those of the conversation up to it, less those of the conversation before it."""
    tokenizer = tokenizer()
    turns = ["<image>\nWhat digit is red?", "three", "Where is it?", "top left", "Is there a blue two?"]
    whole = encode_prompt(turns, tokenizer, template)
    for turn in range(3):
        upto = encode_prompt(turns[: 2 * turn + 1], tokenizer, template)
        votes = one_question(whole, turn).query_mask
        assert sum(roles & QueryRole.LAST > 0 for roles in votes) == 1
        assert sum(roles & QueryRole.LAST > 0 for roles in upto.query_mask) == turn + 1
        voters = [token for token, roles in zip(whole.input_ids, votes, strict=True) if roles]
        text = tokenizer.decode([token for token in voters if token != IMAGE_TOKEN_INDEX])
        said = re.sub(r"[▁\s]", "", text)
        assert [word in said for word in ("What", "Where", "Is")] == [number == turn for number in range(3)]
        assert "three" not in said and "top" not in said


# === Streaming ===


@pytest.mark.parametrize("cut", [1, 2, 3, 50])
def test_text_ends_at_the_stop_string_wherever_pieces_are_cut(cut: int):
    text = "  one # two ## three### Human: four"
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    assert "".join(before(pieces, "###")) == "one # two ## three"
    assert "".join(before(pieces, None)) == text.lstrip()
    assert "".join(before(["a ##"], "###")) == "a ##"


def test_pieces_come_before_the_end():
    fed: list[str] = []

    def feed():
        for piece in ("one ", "two ", "three "):
            fed.append(piece)
            yield piece

    stream = before(feed(), "###")
    assert next(stream) == "one " and fed == ["one "]


def counting(upto: int):
    """Stands for a `generate` that makes so many tokens."""

    def generate(streamer, stop_when):
        for token in range(upto):
            streamer.on_finalized_text(f"{token} ")
            if stop_when(torch.zeros(1, 1), None).all():
                return "stopped"
        return "ran to the end"

    return generate


def test_a_generation_runs_only_while_it_is_read():
    answering = Answering(counting(1_000_000), TOKENIZER, None)
    stream = iter(answering)
    assert next(stream) == "0 "
    stream.close()
    assert answering.output == "stopped"
    whole = Answering(counting(100), TOKENIZER, None)
    assert "".join(whole).startswith("0 1 2 ") and whole.output == "ran to the end"
