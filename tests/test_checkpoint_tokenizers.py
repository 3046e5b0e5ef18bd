"""Tokenizers of published checkpoints give the ids that the models were trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_text import CORPUS, llama
from transformers import AutoTokenizer

from llava.checkpoints.tokenizer import read_tokenizer

TEXTS = ("USER: red", "A chat between a curious user. ASSISTANT: red three", "Where is the seven?")
# As in liuhaotian/llava-v1.5-7b and lmsys/vicuna-7b-v1.5.
SETTINGS = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": False,
    "model_max_length": 2048,
    "pad_token": None,
    "padding_side": "right",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with `tokenizer.model`, and the library's own encoder of it."""
    library = pytest.importorskip("sentencepiece")
    try:
        import sentencepiece.sentencepiece_model_pb2  # noqa: F401
    except Exception as error:  # protobuf raises errors of its own
        pytest.skip(f"sentencepiece and protobuf do not fit each other: {error}")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    library.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=5,
    )
    return folder, library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llama", "llava_mistral", "mistral", None])
def test_a_sentencepiece_model_alone_gives_its_own_ids(sentencepiece: tuple[Path, Any], model_type: str | None) -> None:
    """Also where `model_type` is LLaVA's "llava", which transformers takes for its own."""
    folder, encoder = sentencepiece
    (folder / "config.json").write_text(json.dumps({} if model_type is None else {"model_type": model_type}))
    for settings in (SETTINGS, {name: value for name, value in SETTINGS.items() if name != "tokenizer_class"}):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = read_tokenizer(folder)
        for text in TEXTS:
            assert tokenizer(text).input_ids == [1, *encoder.encode(text)], (model_type, text)


def test_it_still_does_after_saving(sentencepiece: tuple[Path, Any], tmp_path: Path) -> None:
    folder, encoder = sentencepiece
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    read_tokenizer(folder).save_pretrained(tmp_path)
    for config in ({"model_type": "llava"}, {"model_type": "llava", "text_config": {}}, {"model_type": "llava_llama"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        for text in TEXTS:
            assert read_tokenizer(tmp_path)(text).input_ids == [1, *encoder.encode(text)]


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llama"])
def test_a_tokenizer_json_is_read_as_it_stands(tmp_path: Path, model_type: str) -> None:
    llama().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    stock = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert read_tokenizer(tmp_path)(text).input_ids == stock(text).input_ids == llama()(text).input_ids


def test_a_tokenizer_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ValueError, match=r"cannot be read. A tokenizer.model needs the packages sentencepiece"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("held", [None, "tokenizer_config.json"])
def test_a_folder_without_a_tokenizer_is_called_that(tmp_path: Path, held: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    if held is not None:
        (tmp_path / held).write_text(json.dumps(SETTINGS))
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer\.json, tokenizer\.model, vocab.json\); copy"):
        read_tokenizer(tmp_path)
