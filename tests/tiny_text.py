"""Tiny tokenizers of every family that a LLaVA may be built on, trained in milliseconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava.data.families.llava import LlavaInputs

SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What digit is red? ASSISTANT: red three",
    "USER: Where is the seven? Answer with one word. ASSISTANT: top left seven",
    "USER: Is there a blue two in the picture? ASSISTANT: no",
    "a photograph of a green nine above a yellow four\n",
    "[INST] Which colour is it? [/INST] blue <|im_start|>user\nHow many?<|im_end|>",
] * 4


def _wrap(backend: Tokenizer, bos: bool = True) -> PreTrainedTokenizerFast:
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=4096
    )


def _sentencepiece_bpe(across_words: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if not across_words:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.normalizer = normalizers.Replace(" ", "▁") if across_words else None
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + byte_tokens, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def llama_legacy() -> PreTrainedTokenizerBase:
    """Llama's old behaviour: a space is put before the text and after every special token."""
    backend = _sentencepiece_bpe()
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _wrap(backend)


def llama() -> PreTrainedTokenizerBase:
    """Llama's present behaviour: a space before the very first word only."""
    backend = _sentencepiece_bpe()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrap(backend)


def across_words() -> PreTrainedTokenizerBase:
    """Pieces may join the end of one word with the next one, as in ":▁r"."""
    return _wrap(_sentencepiece_bpe(across_words=True))


def unigram() -> PreTrainedTokenizerBase:
    """SentencePiece Unigram (T5, Gemma)."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)


def byte_level(trim_offsets: bool = False) -> PreTrainedTokenizerBase:
    """GPT-2, Llama 3, Qwen: bytes, and no BOS."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend, bos=False)


def byte_level_trimmed() -> PreTrainedTokenizerBase:
    """Offsets leave out the space before a word."""
    return byte_level(trim_offsets=True)


def word_level() -> PreTrainedTokenizerBase:
    """Whole words and marks; spaces vanish."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)


TOKENIZERS = {
    maker.__name__: maker
    for maker in (llama_legacy, llama, across_words, unigram, byte_level, byte_level_trimmed, word_level)
}


def llava_inputs(tokenizer: Any, processor: Any = None, template: str = "v1", **settings: Any) -> LlavaInputs:
    """What makes inputs of a LLaVA whose configuration holds the settings."""
    return LlavaInputs(SimpleNamespace(**settings), tokenizer, processor, template)
