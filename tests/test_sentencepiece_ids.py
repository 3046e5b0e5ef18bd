"""A checkpoint that brings only `tokenizer.model` is tokenised as SentencePiece, and so LLaVA, tokenises."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from slow_llama import published_vocabulary, slow_ids
from tiny_llava import flags, write_assets
from tiny_text import CORPUS, byte_level
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from llava.checkpoints.tokenizer import read_tokenizer
from llava.data.tokenization import encode_conversation
from llava.data.tokens import tokenizer_key
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.train.train import train

ROOT = Path(__file__).parents[1]
# As in liuhaotian/llava-v1.5-7b and lmsys/vicuna-7b-v1.5.
SETTINGS: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": False},
    "clean_up_tokenization_spaces": False,
    "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": False},
    "legacy": False,
    "model_max_length": 2048,
    "pad_token": None,
    "padding_side": "right",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": {"__type": "AddedToken", "content": "<unk>", "normalized": False},
}
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}


def write_folder(folder: Path, settings: dict[str, Any] | None = SETTINGS, model: Path | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(model or published_vocabulary(), folder / "tokenizer.model")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def pieces() -> Any:
    return SentencePieceProcessor(model_file=str(published_vocabulary()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return read_tokenizer(folder)


def written_texts() -> Iterator[str]:
    """Lines and stretches of the repository's own documents and programs."""
    for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("llava/model/*.py"), *ROOT.glob("scripts/**/*.sh")]):
        text = path.read_text(encoding="utf-8")
        yield from text.splitlines()[::3]
        yield from (text[start : start + 700] for start in range(0, min(len(text), 7000), 1400))


def made_texts(model: Any, count: int, seed: int = 0) -> Iterator[str]:
    """Runs of spaces, pieces in any order, scripts, symbols, bytes and what looks like a piece."""
    chance = random.Random(seed)
    vocabulary = [model.id_to_piece(i).replace("▁", " ") for i in range(3, model.get_piece_size())]
    characters = "   \t\n\rab{}();=_.,éß中日本한🙂\u200d👩\u200b▁<0x>/s\x00\x1f"
    words = [
        "def ",
        "return",
        "  ",
        "    ",
        "\n",
        "\t",
        "0x1F",
        "don't",
        "naïve",
        "𝔘𝔫𝔦",
        "ﬁ①",
        "<0x0A>",
        "مرحبا",
        "the",
    ]
    for _ in range(count):
        yield "".join(chance.choices(vocabulary, k=chance.randint(1, 8)))
        yield "".join(chance.choices(characters, k=chance.randint(0, 30)))
        yield "".join(chance.choices(words, k=chance.randint(1, 12)))
    for run in range(70):
        yield from (before + " " * run + after for before in ("", "a", "\n", "a ") for after in ("", "b", "the", "\n"))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def test_two_spaces_stay_two_and_join_the_word_that_scores_higher(tokenizer: Any) -> None:
    assert tokenizer("a  b").tokens() == ["<s>", "▁a", "▁", "▁b"]
    assert tokenizer(" a").tokens() == ["<s>", "▁", "▁a"]


def test_every_text_has_sentencepieces_ids(tokenizer: Any, pieces: Any) -> None:
    texts = [*written_texts(), *made_texts(pieces, 800)]
    assert len(texts) > 3000
    texts = [text for text in texts if not any(token in text for token in SPECIAL)]
    different = [text for text in texts if ids_of(tokenizer, text) != pieces.encode(text)]
    assert different == []


def test_the_comparison_would_notice_transformers_own_conversion(folder: Path, pieces: Any) -> None:
    stock = LlamaTokenizer.from_pretrained(folder)
    assert ids_of(stock, "a  b") != pieces.encode("a  b")


@pytest.mark.parametrize("settings", [{}, {"legacy": False}, {"legacy": True}, {"legacy": None}, None], ids=str)
def test_special_tokens_in_a_text_are_cut_out_as_the_slow_tokenizer_does(
    tmp_path: Path, pieces: Any, settings: dict[str, Any] | None
) -> None:
    """A configuration that does not say `legacy` means true: vicuna v1.3 and LLaVA's first models."""
    bare = {name: value for name, value in SETTINGS.items() if name != "legacy"}
    tokenizer = read_tokenizer(write_folder(tmp_path, None if settings is None else {**bare, **settings}))
    legacy = settings is None or settings.get("legacy") is not False
    chance = random.Random(1)
    parts = ["</s>", "<s>", "<unk>", "USER: ", " USER:", "hi", "  two", "\n", "</s>", "ASSISTANT:", " ", "中", "the"]
    texts = ["".join(chance.choices(parts, k=chance.randint(1, 9))) for _ in range(800)]
    for text in [*texts, "Hi.</s>USER: a", "</s> x", " </s>x", "</s></s>", ""]:
        assert ids_of(tokenizer, text) == slow_ids(pieces, text, SPECIAL, legacy), text
        assert tokenizer(text).input_ids[:1] == [1]


def test_a_configuration_that_wants_no_space_in_front_gets_none(tmp_path: Path, pieces: Any) -> None:
    tokenizer = read_tokenizer(write_folder(tmp_path, {**SETTINGS, "add_prefix_space": False}))
    for text in ("a  b", " a", "def f():\n    x", "USER: hi</s>USER"):
        inside = slow_ids(pieces, "</s>" + text, SPECIAL, legacy=False)
        assert ids_of(tokenizer, text) == inside[1:]


def test_a_chunk_behind_an_image_keeps_the_space_it_begins_with(tokenizer: Any, pieces: Any) -> None:
    """LLaVA tokenises each chunk as a text of its own."""
    for prompt in (
        "USER: <image> What is it? ASSISTANT:",
        "<image>  two spaces<image>\n    x",
        "<image><image> ",
        "<image>",
        "USER: <image>\nWhat?</s>USER: <image> again",
    ):
        expected: list[int] = [1]
        for number, chunk in enumerate(prompt.split("<image>")):
            expected += ([-200] if number else []) + slow_ids(pieces, chunk, SPECIAL, legacy=False)
        assert tokenizer_image_token(prompt, tokenizer) == expected, prompt


def test_an_answer_with_code_is_learnt_in_the_pieces_of_the_language_model(tokenizer: Any, pieces: Any) -> None:
    answer = "def f(x):\n    if  x:\n\treturn  [x,  2]\n    return 0  # 🙂 中"
    encoded = encode_conversation(["<image> Write it.", answer], tokenizer, "vicuna_v1", True)
    labels = [label for label in encoded.labels if label != -100]
    assert labels == [*pieces.encode(answer), 2]  # the answer's leading space is the one that SentencePiece adds


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "llava"}, {"model_type": "llava_llama"}, {"model_type": "llama"}]
)
def test_what_we_save_reloads_to_the_same_ids_here_and_in_transformers(
    tmp_path: Path, tokenizer: Any, pieces: Any, config: dict[str, Any]
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    texts = [" a", "a  b", "x</s> y</s>z", *list(made_texts(pieces, 30, seed=2))[::3]]
    for again in (read_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert [again(text).input_ids for text in texts] == [tokenizer(text).input_ids for text in texts]
        assert again.decode(ids_of(again, " a  b\n")) == " a  b\n"


def test_a_tokenizer_json_of_an_earlier_version_is_named_and_the_model_beside_it_used(
    tmp_path: Path, pieces: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path)
    LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    with caplog.at_level(logging.WARNING):
        tokenizer = read_tokenizer(tmp_path)
    assert ids_of(tokenizer, "a  b") == pieces.encode("a  b")
    assert str(tmp_path) in caplog.text and "is not its tokenizer.model" in caplog.text


def test_a_tokenizer_json_of_an_earlier_version_alone_is_warned_about(
    tmp_path: Path, pieces: Any, caplog: pytest.LogCaptureFixture
) -> None:
    LlamaTokenizer.from_pretrained(write_folder(tmp_path / "base")).save_pretrained(tmp_path / "saved")
    with caplog.at_level(logging.WARNING):
        tokenizer = read_tokenizer(tmp_path / "saved")
    assert "orders its merges by the ids" in caplog.text and "saved" in caplog.text
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in (" a", "a  b", "x</s> y"):  # what a model was trained with stays
        assert ids_of(tokenizer, text) == ids_of(stock, text)


def test_a_llamas_tokenizer_json_alone_keeps_the_spaces_of_a_chunk(tmp_path: Path, tokenizer: Any, pieces: Any) -> None:
    """transformers builds the treatment of spaces of a `LlamaTokenizer` anew, whatever the file says."""
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizer"}))
    again = read_tokenizer(tmp_path)
    for text in (" a", "  a", "a  b", "\n x", " a</s> b</s>c"):
        assert ids_of(again, text) == slow_ids(pieces, text, SPECIAL, legacy=False)
        assert again(text).input_ids[0] == 1


def test_a_tokenizer_json_that_contradicts_the_model_beside_it_is_refused(tmp_path: Path) -> None:
    LlamaTokenizer.from_pretrained(write_folder(tmp_path)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**SETTINGS, "tokenizer_class": "TokenizersBackend"}))
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*is not its tokenizer.model.*Delete the one"):
        read_tokenizer(tmp_path)


def test_a_file_of_another_kind_beside_a_tokenizer_json_is_left_alone(tmp_path: Path) -> None:
    """Llama 3 calls its byte pairs tokenizer.model too, and its class LlamaTokenizer in some folders."""
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    for kind in ("LlamaTokenizer", "PreTrainedTokenizerFast"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "eos_token": "</s>"}))
        assert ids_of(read_tokenizer(tmp_path), "a  b") == ids_of(byte_level(), "a  b")


def test_added_tokens_keep_their_ids_and_are_found_in_any_text(tmp_path: Path, pieces: Any) -> None:
    write_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_end>": 32001, "<im_start>": 32000}))
    tokenizer = read_tokenizer(tmp_path)
    special = {**SPECIAL, "<im_start>": 32000, "<im_end>": 32001}
    for text in ("<im_start>a<im_end> b", "x <im_start>  y", "<im_end></s>USER"):
        assert ids_of(tokenizer, text) == slow_ids(pieces, text, special, legacy=False)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_end>": 32005}))
    with pytest.raises(ValueError, match="the added token '<im_end>' has the id 32005, but the next free one is 32000"):
        read_tokenizer(tmp_path)


def test_cached_ids_are_not_those_of_another_conversion(folder: Path, tokenizer: Any) -> None:
    assert tokenizer_key(tokenizer) != tokenizer_key(LlamaTokenizer.from_pretrained(folder))


def test_a_model_that_was_trained_from_such_a_folder_keeps_the_ids(tmp_path: Path, pieces: Any) -> None:
    write_assets(tmp_path)
    base = write_folder(tmp_path / "base")
    language = LlamaConfig(
        vocab_size=32000, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
    )
    LlamaForCausalLM(language).save_pretrained(base)
    trained = tmp_path / "trained"
    train(flags(tmp_path, trained, "finetune", model_name_or_path=base, max_steps=1))
    own, _, _, _ = load_pretrained_model(str(trained), device="cpu")
    for text in (" a", "a  b", "x\n    y", "Hi.</s>USER:  x", "🙂 中"):
        wanted = [1, *slow_ids(pieces, text, SPECIAL, legacy=False)]
        for tokenizer in (own, read_tokenizer(trained), AutoTokenizer.from_pretrained(trained)):
            assert tokenizer(text).input_ids == wanted


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with sentencepiece's own defaults: NFKC, and runs of spaces made one."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "corpus.txt").write_text("\n".join(written_texts()))
    SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "trained"),
        vocab_size=900,
        model_type=request.param,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=5,
    )
    return folder / "trained.model"


def test_symbols_of_ones_own_are_refused_where_they_cannot_be_found_as_sentencepiece_finds_them(tmp_path: Path) -> None:
    """It looks for them between spaces that it has changed; a tokenizer looks for added tokens before anything else."""
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    common = {
        "input": str(tmp_path / "corpus.txt"),
        "vocab_size": 360,
        "model_type": "bpe",
        "byte_fallback": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "minloglevel": 5,
        "user_defined_symbols": ["<|im_end|>"],
    }
    SentencePieceTrainer.train(model_prefix=str(tmp_path / "default"), **common)
    plain = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    SentencePieceTrainer.train(model_prefix=str(tmp_path / "plain"), **common, **plain)
    with pytest.raises(ValueError, match=r"folder.*has the user-defined symbol '<\|im_end\|>'.*added_tokens_decoder"):
        read_tokenizer(write_folder(tmp_path / "folder", SETTINGS, tmp_path / "default.model"))
    model = SentencePieceProcessor(model_file=str(tmp_path / "plain.model"))
    tokenizer = read_tokenizer(write_folder(tmp_path / "folder", SETTINGS, tmp_path / "plain.model"))
    for text in ("<|im_end|>", "a  <|im_end|> b", "red<|im_end|>\n  three ", " a"):
        assert ids_of(tokenizer, text) == model.encode(text)


@pytest.mark.parametrize("settings", [None, SETTINGS], ids=["alone", "with-settings"])
def test_mistrals_model_with_symbols_of_its_own_opens_with_sentencepieces_ids(
    tmp_path: Path, settings: dict[str, Any] | None
) -> None:
    file = published_vocabulary().parent / "mistral_instruct_tokenizer_241114.model.v7"
    tokenizer, model = read_tokenizer(write_folder(tmp_path, settings, file)), SentencePieceProcessor(str(file))
    chance = random.Random(3)
    parts = [
        "[REF]",
        "[REFERENCE_DOC_19]",
        "[REFERENCE_DOC_1]",
        "[REFERENCE_DOC_",
        "[INST]",
        "<0x0A>",
        " ",
        "hi",
        " the",
    ]
    texts = ["".join(chance.choices(parts, k=chance.randint(1, 5))) for _ in range(1500)]
    texts += [text for text in made_texts(model, 60) if not any(token in text for token in SPECIAL)]
    assert [text for text in texts if ids_of(tokenizer, text) != model.encode(text)] == []
    for text in ("[REF]</s>[REF] a", "a</s>[INST]", "[REF]</s><0x0A>"):
        assert ids_of(tokenizer, text) == slow_ids(model, text, SPECIAL, settings is None)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = read_tokenizer(tmp_path / "saved")
    assert [ids_of(again, text) for text in texts[:300]] == [model.encode(text) for text in texts[:300]]


def test_combined_characters_that_a_normalisation_map_changes_are_named(
    tmp_path: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = read_tokenizer(write_folder(tmp_path / "nfkc", SETTINGS, trained))
    model = SentencePieceProcessor(model_file=str(trained))
    assert ids_of(tokenizer, "Ⅷ\u0301") != model.encode("Ⅷ\u0301"), "if the library mends it, drop the warning"
    assert "nfkc changes characters by a normalisation map" in caplog.text
    for kind in ("combining marks", "joiners and variation selectors"):
        assert kind in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tokenizer, model = read_tokenizer(write_folder(tmp_path / "identity")), published_vocabulary()
    assert "normalisation map" not in caplog.text
    for text in ("\xa0\u200d", "Ⅷ\u0301", "X\u200d", "▁\u0301Z", "か\u3099", "\u1112\u1161\u11ab", "a\r\nb"):
        assert ids_of(tokenizer, text) == SentencePieceProcessor(str(model)).encode(text), text


@pytest.mark.parametrize("legacy", [False, True])
def test_other_models_with_their_normalisation_have_their_own_ids_but_for_combined_characters(
    tmp_path: Path, trained: Path, legacy: bool
) -> None:
    model = SentencePieceProcessor(model_file=str(trained))
    tokenizer = read_tokenizer(write_folder(tmp_path, {**SETTINGS, "legacy": legacy}, trained))
    texts = [text for text in [*written_texts(), *made_texts(model, 100)] if not any(t in text for t in SPECIAL)]
    different = [text for text in texts if ids_of(tokenizer, text) != model.encode(text)]
    # SentencePiece adds the scores of a unigram model in single precision: where two ways to cut score alike, either.
    assert len(different) <= (len(texts) // 1000 if trained.parent.name.startswith("unigram") else 0), different


def test_a_model_whose_equal_scores_no_merge_list_can_express_is_refused(tmp_path: Path, pieces: Any) -> None:
    """All scores alike: SentencePiece goes from left to right, whatever the piece."""
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    proto = SentencePieceExtractor(str(published_vocabulary())).proto
    for piece in proto.pieces:
        piece.score = 0.0
    flat = tmp_path / "flat.model"
    flat.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=r"folder.*cannot be rebuilt: .* where SentencePiece gives"):
        read_tokenizer(write_folder(tmp_path / "folder", SETTINGS, flat))
