"""From the inputs of a request to tokenized documents, exactly as the annotation run makes them.

What enters: a target (tokenizer, template, maximum length) and checked inputs. What leaves: one `Document` an input.
Next: `services.batching` scores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from annotate.records.conversations import DocumentError, to_conversation
from annotate.records.sources import document_id, record_hash
from annotate.tokens.batch import TokenBatch
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import Segment, make_template
from common.viewer.spans import special_tokens
from services.errors import ApiError
from services.schemas import Input


@dataclass(frozen=True)
class Document:
    """One tokenized input: a `TokenBatch` of one document, with its spans, and whether it was cut."""

    batch: TokenBatch
    truncated: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of the document."""
        return self.batch.num_tokens


class Target:
    """What turns inputs into the tokens of one model: its tokenizer, the template, the maximum length."""

    def __init__(self, name: str, tokenizer: TargetTokenizer, template: str, max_length: int):
        self.name = name
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self._messages = make_template(template, tokenizer.tokenizer)
        # Records of the format `text` look the same under every template but `chat`, which refuses them.
        self._text = make_template("plain", tokenizer.tokenizer) if tokenizer.tokenizer.eos_token else None

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """The special tokens' own texts, by id."""
        return special_tokens(self.tokenizer)

    def documents(self, inputs: Sequence[Input]) -> list[Document]:
        """Tokenize inputs.

        Raises:
            ApiError: `invalid_input`, saying which input is wrong and how.
        """
        segments, ids = [], []
        for number, item in enumerate(inputs):
            try:
                rendered, record = self._render(item)
            except DocumentError as error:
                raise ApiError("invalid_input", f"input {number}: {error}") from error
            segments.append(rendered)
            # The id that the annotation run gives this record: the scores of `random` depend on it.
            ids.append(document_id(record_hash(record), 0))
        rows = range(len(inputs))
        result = self.tokenizer.tokenize(segments, ids, rows, self.max_length, with_spans=True)
        if result.unsupervised:
            raise ApiError(
                "invalid_input",
                f"input {result.unsupervised[0]}: no supervised token is left after truncation to {self.max_length} "
                "tokens.",
            )
        if result.num_truncated in (0, len(inputs)):
            truncated = [result.num_truncated > 0] * len(inputs)
        else:
            truncated = [self._is_truncated(document) for document in segments]
        return [Document(_one(result.batch, number), truncated[number]) for number in rows]

    def probe(self, text: str) -> Document:
        """Return a document of plain text that needs neither a template nor an end-of-turn token."""
        result = self.tokenizer.tokenize([[Segment(text, True)]], ["probe"], [0], self.max_length, with_spans=True)
        return Document(result.batch, result.num_truncated > 0)

    def _render(self, item: Input) -> tuple[list[Segment], dict[str, Any]]:
        """Return an input's segments, and the record that it stands for."""
        if not isinstance(item, str):
            record: dict[str, Any] = {"messages": [message.model_dump() for message in item]}
            return self._messages(to_conversation(record, "messages")), record
        record = {"text": item}
        conversation = to_conversation(record, "text")
        if self._text is None:
            raise DocumentError("wrong_type", f"the tokenizer {self.name} has no end-of-turn token; send messages.")
        return self._text(conversation), record

    def _is_truncated(self, segments: list[Segment]) -> bool:
        return self.tokenizer.tokenize([segments], [""], [0], self.max_length, with_spans=False).num_truncated > 0


def _one(batch: TokenBatch, number: int) -> TokenBatch:
    """Return one document of a batch, without copying its arrays."""
    here = batch.tokens_of(number)
    assert batch.spans is not None
    return TokenBatch(
        document_ids=[batch.document_ids[number]],
        source_rows=batch.source_rows[number : number + 1],
        texts=[batch.texts[number]],
        input_ids=batch.input_ids[here],
        supervised=batch.supervised[here],
        offsets=np.array([0, here.stop - here.start], dtype=np.int64),
        spans=batch.spans[here],
    )


def join(documents: Sequence[Document]) -> TokenBatch:
    """Return one batch of several documents, which may come from several requests."""
    batches = [document.batch for document in documents]
    lengths = [batch.num_tokens for batch in batches]
    return TokenBatch(
        document_ids=[batch.document_ids[0] for batch in batches],
        # No source: rows far from the first ones, which the run samples for its report on precision.
        source_rows=np.arange(len(batches), dtype=np.int64) + (1 << 40),
        texts=[batch.texts[0] for batch in batches],
        input_ids=np.concatenate([batch.input_ids for batch in batches]),
        supervised=np.concatenate([batch.supervised for batch in batches]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        spans=np.concatenate([batch.spans for batch in batches]),
    )
