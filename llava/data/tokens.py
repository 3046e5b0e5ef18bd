"""Records to token ids, labels and query masks: one at a time, or all of a file once, into a memory-mapped table."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llava.common.child_processes import forks_end_with_parent
from llava.compression import salience
from llava.compression.salience import salient_spans
from llava.cost.machine import usable_cores, version_of
from llava.data import salient
from llava.data.cache import cached_table, digest_text
from llava.data.families.base import ModelInputs
from llava.data.records import FAULTS_TO_SHOW, Record
from llava.data.salient import SalientFinder
from llava.data.store import RecordTable, record_of, source_of
from llava.data.tokenization import EncodedText

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ROWS_PER_PROCESS = 10_000  # below this a further process costs more than it saves
MAX_PROCESSES = 32


@dataclass(frozen=True)
class RecordEncoder:
    """Encodes records, not yet cut to a length: that depends on the compression.

    Attributes:
        inputs: the `ModelInputs` of the model that is trained.
        find_salient: says which words of a question are salient.
        salient_name: what that finder is called, so that its work can be cached; None where it has no name that
            stands for everything it does. `salient_spans` needs none.
    """

    inputs: ModelInputs
    find_salient: SalientFinder = salient_spans
    salient_name: str | None = None

    def encode(self, record: Record) -> EncodedText:
        """Encode one record.

        Raises:
            ValueError: if it does not go with the template or the tokenizer; names the record.
        """
        turns: Sequence[str] = record.turns
        kinds = record.kinds
        try:
            if kinds:
                turns = [turn if number % 2 else self.inputs.taught(turn, kinds) for number, turn in enumerate(turns)]
            return self.inputs.encode(turns, bool(kinds), self.find_salient, record.system)
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error

    def row(self, record_row: dict[str, Any]) -> dict[str, Any]:
        """A row of the token table for a row of the record table; `fault` says why a record cannot be encoded."""
        try:
            text = self.encode(record_of(record_row))
        except ValueError as error:
            return {"input_ids": [], "labels": [], "query_mask": [], "fault": str(error)}
        return {"input_ids": text.input_ids, "labels": text.labels, "query_mask": text.query_mask, "fault": None}

    @property
    def key(self) -> str | None:
        """Cache key of everything that the encoding of a record depends on; None where that has no name."""
        finder, inputs = self._finder_key(), self.inputs.key
        if finder is None or inputs is None:
            return None
        code = source_of(salience, salient)
        return digest_text([tokenizer_key(self.inputs.tokenizer), inputs, finder, code])

    def _finder_key(self) -> str | None:
        if self.find_salient is salient_spans:
            return "rules"
        if self.salient_name is None:
            return None
        backend, _, pipeline = self.salient_name.partition(":")
        versions = (version_of(name) or "unknown version" for name in (backend, pipeline or "en_core_web_sm"))
        return " ".join([self.salient_name, *versions])


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Cache key of how a fast tokenizer splits text, and of its special tokens.

    Padding and truncation are left out: a tokenizer changes them whenever it is called.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; load the fast version of this tokenizer."
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["padding"], backend["truncation"]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    facts = [type(tokenizer).__name__, special, getattr(tokenizer, "split_special_tokens", False), backend]
    return digest_text([json.dumps(facts, sort_keys=True)])


def token_table(
    table: RecordTable, encoder: RecordEncoder, cache_dir: str | Path | None = None, num_proc: int | None = None
) -> Dataset | None:
    """Ids, labels and query masks of all records of a file, each encoded once and for all.

    Args:
        table: the records.
        encoder: how to encode them.
        cache_dir: where tables lie; None for the default of `cached_table`.
        num_proc: processes that encode; None for as many as the size is worth.

    Returns:
        Columns `input_ids`, `labels` and `query_mask`, row for row beside `table`; None if the encoder has no key.

    Raises:
        ValueError: if records cannot be encoded; names the first of them.
    """
    encoder_key = encoder.key
    if encoder_key is None:
        return None
    key = "tokens-" + digest_text([table.key, encoder_key])
    processes = _processes(len(table)) if num_proc is None else num_proc

    def build(folder: Path) -> None:
        logger.info("Tokenising %s with %d process(es); this is done once.", table.path, processes)
        _require_no_faults(_encode_all(table.rows, encoder, folder, key, processes), table.path)

    return cached_table(cache_dir, key, build).remove_columns("fault")


def _encode_all(rows: Dataset, encoder: RecordEncoder, folder: Path, key: str, processes: int) -> Dataset:
    from datasets import Features, List, Value

    ids, bits = List(Value("int32")), List(Value("uint8"))
    kinds = Features({"input_ids": ids, "labels": ids, "query_mask": bits, "fault": Value("string")})
    with forks_end_with_parent(), _interrupted_as_such():
        return rows.map(
            encoder.row,
            remove_columns=rows.column_names,
            features=kinds,
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(folder / "tokens.arrow"),
            load_from_cache_file=False,
            new_fingerprint=key.removeprefix("tokens-"),
            desc="Tokenising",
        )


@contextlib.contextmanager
def _interrupted_as_such() -> Iterator[None]:
    """Ctrl-C stays what it is: `datasets` raises instead that its processes have no result yet."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            cause = cause.__context__
        raise


def _require_no_faults(tokens: Dataset, path: Path) -> None:
    faults = tokens.data.column("fault").drop_null().to_pylist()
    if faults:
        listed = "\n  ".join(faults[:FAULTS_TO_SHOW])
        raise ValueError(f"{path}: {len(faults)} of {len(tokens)} records cannot be encoded:\n  {listed}")


def _processes(rows: int) -> int:
    return max(1, min(usable_cores(), MAX_PROCESSES, rows // ROWS_PER_PROCESS))
