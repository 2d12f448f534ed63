"""sifd: how much the prompt says about each token of a response, T-SHIRT's token-level part of S-IFD.

What enters: tokenized documents. What leaves: the columns `sifd`, by which T-SHIRT chooses tokens, and `sifd_gain`, the
same with its sign. Next: groups; or `annotate select`, which makes a document's S-IFD of `sifd_gain`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from annotate.groupers.base import DocumentFilter
from annotate.groupers.reference import FLAGS, ReferenceGrouper, reject_non_finite
from annotate.models.checkpoints import load_tokenizer
from annotate.tokens.batch import Scores, TokenBatch
from annotate.tokens.target import find_prefix
from common.manifest import Kind


class SelectiveIfd(ReferenceGrouper):
    """|Δ_t| and −Δ_t of T-SHIRT (Fu et al., 2025, arXiv:2506.01317), in nats, float32.

    With x the prompt, y the response and φ the reference model (GPT-2 in the paper), a difference of losses:

        Δ_t = −log p_φ(y_t | x, y_<t) + log p_φ(y_t | y_<t)

    IFD = exp(mean_t Δ_t), a ratio of perplexities; S-IFD is the same over the tokens whose |Δ_t| is among the largest k
    percent of the data set. So `sifd` = |Δ_t| is the importance (the larger, the more the prompt matters to the token,
    either way), and `sifd_gain` = −Δ_t says how much the prompt lowers the token's loss; below 0 it raises it.

    Departures, where the paper has one prompt, one response, and a format of its own:
    - The documents' own template stands, and the response's end-of-turn token is a token of it.
    - A response is a run of supervised tokens, and x is everything before it: in a conversation each response is
      compared with itself alone. Tokens outside responses score 0.
    - "Alone" still begins with the special tokens that the tokenizer puts first (BOS for Llama 3) where the document
      does. Without them nothing predicts a response's first token, which scores 0 (the authors' code leaves it out).
    - No noise is added to embeddings: the paper averages Δ_t's S-IFD over 30 such neighbours of a document.
    """

    name = "sifd"
    # S-IFD = exp(mean of Δ over the top tokens), for documents whose IFD = exp(mean of Δ over all) is below 1. The
    # paper's second stage, which keeps the half with the least variance over noisy neighbours, has no counterpart. A
    # document without a top token has no S-IFD and is out; the authors' code gives it 1, which is near the best.
    document_filter = DocumentFilter(
        chooses="sifd", averages="sifd_gain", score=lambda gain: np.exp(-gain), accepts=lambda gain: gain > 0
    )

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self._prefix: list[int] | None = None  # read by the first `score`

    @property
    def columns(self) -> dict[str, Kind]:
        return {"sifd": "importance", "sifd_gain": "importance"}

    def score(self, batch: TokenBatch) -> Scores:
        """Score every token; a document that the model cannot score is rejected, and the run goes on."""
        rejects: dict[int, str] = {}
        checkpoint = self.checkpoints[0]
        given = self.measure(batch, checkpoint, rejects)
        responses = _lay_apart(batch, self._find_prefix())
        fit = np.flatnonzero(~np.isin(responses.documents, list(rejects)))
        alone = np.zeros(batch.num_tokens)
        alone[responses.places] = self._load(checkpoint).losses(
            responses.input_ids, responses.offsets, fit, self.batch_tokens
        )[responses.own]
        reject_non_finite(batch, alone, f"the {checkpoint.role} model {checkpoint.name}, without the prompt,", rejects)
        predicted = np.zeros(batch.num_tokens, dtype=bool)
        predicted[responses.places] = ~np.isin(responses.own, responses.offsets[:-1])
        predicted &= ~np.isin(batch.document_index, list(rejects))
        gain = np.where(predicted, alone - given, 0.0).astype(np.float32)
        counters = {
            "scored_tokens": float(predicted.sum()),
            "loss_sum": float(given[predicted].sum()),
            "loss_without_prompt_sum": float(alone[predicted].sum()),
            "rejected_documents": float(len(rejects)),
        }
        return Scores({"sifd": np.abs(gain), "sifd_gain": gain}, rejects, counters)

    def report(self, counters: Mapping[str, float]) -> dict[str, Any]:
        """State the mean losses over the scored tokens with the prompt and without it, nats; None without tokens."""
        tokens = counters.get("scored_tokens", 0.0)
        return {
            **self.parameters,
            "device": self.device,
            "batch_tokens": self.batch_tokens,
            "mean_loss": counters.get("loss_sum", 0.0) / tokens if tokens else None,
            "mean_loss_without_prompt": counters.get("loss_without_prompt_sum", 0.0) / tokens if tokens else None,
            "rejected_documents": int(counters.get("rejected_documents", 0)),
        }

    def _find_prefix(self) -> list[int]:
        """Return the ids that the tokenizer puts first; it is the documents' own, as `Checkpoint.find` checked."""
        if self._prefix is None:
            found = self.checkpoints[0]
            tokenizer = load_tokenizer(found.location, FLAGS[found.role], found.revision)
            self._prefix = find_prefix(tokenizer.backend_tokenizer)
        return self._prefix


class _Responses(NamedTuple):
    """Every response as a document of its own.

    Attributes:
        input_ids: int32 [any], flat: the prefix where the document begins with it, then the response.
        offsets: int64 [num_responses + 1].
        documents: int64 [num_responses]: where each is from.
        places: int64 [num_supervised]: the supervised tokens, in the batch.
        own: int64 [num_supervised]: the same tokens, in `input_ids`.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray
    places: np.ndarray
    own: np.ndarray


def _lay_apart(batch: TokenBatch, prefix: list[int]) -> _Responses:
    """Cut the responses, runs of supervised tokens, out of their documents."""
    index, size = batch.document_index, len(prefix)
    follows = np.zeros(batch.num_tokens, dtype=bool)  # the token before it is of the same response
    follows[1:] = batch.supervised[:-1] & (index[1:] == index[:-1])
    starts = np.flatnonzero(batch.supervised & ~follows)
    documents = index[starts]
    places = np.flatnonzero(batch.supervised)
    response = np.cumsum(~follows[places]) - 1
    within = starts - batch.offsets[documents]  # tokens before the response
    prefixed = within >= size
    for place, token in enumerate(prefix):
        prefixed[prefixed] &= batch.input_ids[batch.offsets[documents[prefixed]] + place] == token
    before = prefixed * size
    lengths = before + np.bincount(response, minlength=len(starts))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    own = offsets[:-1][response] + before[response] + places - starts[response]
    input_ids = np.zeros(offsets[-1], dtype=np.int32)
    input_ids[own] = batch.input_ids[places]
    input_ids[offsets[:-1][prefixed, None] + np.arange(size)] = prefix
    return _Responses(input_ids, offsets, documents, places, own)
