"""ChatML, Qwen and Llama 3: the prompts of the tokenizers' own chat templates, and labels on the answers alone."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from tiny_text import CORPUS, byte_level
from tokenizers import AddedToken

from llava.conversation import conv_templates, fill_template, get_template
from llava.data.end_marks import end_mark_warning, fitting_templates, split_end_mark
from llava.data.tokenization import encode_conversation, encode_prompt

# The published chat templates, as `tokenizer_config.json` of each has them.
_WITH_SYSTEM = (
    "{{% for message in messages %}}{{% if loop.first and messages[0]['role'] != 'system' %}}"
    "{{{{ '<|im_start|>system\n{system}<|im_end|>\n' }}}}{{% endif %}}"
    "{{{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)
_PLAIN_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_QWEN = _WITH_SYSTEM.format(system="You are a helpful assistant.")
PUBLISHED = {
    "chatml": _PLAIN_CHATML,
    "qwen_1_5": _QWEN,
    "qwen_2": _QWEN,
    "qwen_2_5": _WITH_SYSTEM.format(system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "smollm2": _WITH_SYSTEM.format(system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "llama_3": _LLAMA_3,
    "llava_llama_3": _LLAMA_3,
}
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
]
TALKS = (
    ["<image>\nWhat is it?", "red three"],
    ["<image>\nWhat?", "red", "Sure?", "Yes.\nA  cat:\n    no", "a", "b"],
    ["Hi", "it ends in a break\n"],
    ["Hi", "<b> "],
)


def modern(eos: str) -> Any:
    """Bytes with the marks of both families as tokens, one of them EOS."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True)
    tokenizer.add_special_tokens({"eos_token": eos})
    return tokenizer


def rendered(name: str, turns: list[str], ask: bool = False) -> str:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    if name == "llava_llama_3":
        system = get_template(name).system.partition("<|end_header_id|>\n\n")[2]
        messages.insert(0, {"role": "system", "content": system})
    environment = jinja2.Environment()
    return environment.from_string(PUBLISHED[name]).render(messages=messages, add_generation_prompt=ask, bos_token="")


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_are_those_of_the_published_chat_templates(name: str) -> None:
    for turns in TALKS:
        if "llama_3" in name:  # which trims what is said
            turns = [turn.strip() for turn in turns]
        assert fill_template(name, turns).get_prompt() == rendered(name, turns)
        asked = fill_template(name, [*turns[:-1], None]).get_prompt()
        assert asked == rendered(name, turns[:-1], ask=True)
        assert fill_template(name, turns).get_prompt().startswith(asked + turns[-1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_labels_are_the_answers_and_their_end_marks_and_nothing_else(name: str) -> None:
    tokenizer = modern("<|im_end|>")
    mark = tokenizer.convert_tokens_to_ids(get_template(name).end_mark)
    for turns in TALKS:
        encoded = encode_conversation(turns, tokenizer, name, True)
        expected: list[int] = []
        for answer in turns[1::2]:
            expected += [*tokenizer(answer, add_special_tokens=False).input_ids, mark]
        assert [label for label in encoded.labels if label != -100] == expected
        assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_asked_is_the_beginning_of_what_was_learnt(name: str) -> None:
    tokenizer = modern("<|eot_id|>")
    for turns in TALKS:
        learnt = encode_conversation(turns, tokenizer, name, True)
        asked = encode_prompt(turns[:-1], tokenizer, name)
        assert learnt.input_ids[: len(asked.input_ids)] == asked.input_ids
        first = next(i for i, label in enumerate(learnt.labels) if label != -100)
        if len(turns) == 2:
            assert first == len(asked.input_ids)
            assert learnt.query_mask[:first] == asked.query_mask
            assert not any(learnt.query_mask[first:]), "an answer and what the template writes behind it do not vote"


def test_a_system_prompt_of_ones_own_gets_its_head() -> None:
    conversation = fill_template("chatml", ["Hi", None])
    conversation.system = "Be brief."
    assert conversation.get_prompt().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    conversation = fill_template("llama_3", ["Hi", None])
    conversation.system = "Be brief."
    assert conversation.get_prompt().startswith("<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")


def test_a_template_that_ends_in_no_token_is_named_with_what_to_use_instead() -> None:
    tokenizer = byte_level()
    assert split_end_mark("v1", tokenizer) == []  # its </s> is a token here
    modern_one = modern("<|im_end|>")
    bare = byte_level()
    assert "".join(split_end_mark("chatml", bare)) == "<|im_end|>" and len(split_end_mark("chatml", bare)) > 1
    warning = end_mark_warning("chatml", bare)
    assert warning is not None and "'<|im_end|>'" in warning and "--version v1" in warning
    assert end_mark_warning("chatml", modern_one) is None
    assert end_mark_warning("plain", bare) is None


@pytest.mark.parametrize(("eos", "first"), [("<|im_end|>", "<|im_end|>"), ("<|eot_id|>", "<|eot_id|>")])
def test_what_is_recommended_ends_as_the_tokenizer_does(eos: str, first: str) -> None:
    tokenizer = modern(eos)
    names = fitting_templates(tokenizer)
    assert conv_templates[names[0]].end_mark == first
    assert all(not split_end_mark(name, tokenizer) for name in names)
    assert len({repr(conv_templates[name]) for name in names}) == len(names)


def test_v1_on_a_tokenizer_without_its_mark_is_spelt_out() -> None:
    """As SmolLM2 splits </s>: the model is taught three tokens, and none that ends an answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<|endoftext|>")
    warning = end_mark_warning("v1", tokenizer)
    assert warning is not None and warning.startswith("Template 'v1' ends an answer with '</s>'")
    assert "'s', '>'" in warning and "--version " in warning
    recommended = warning.split("--version ")[1].split()[0].rstrip(".")
    assert get_template(recommended).end_mark == "<|im_end|>"
