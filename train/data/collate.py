"""From documents to batches that carry groups and document numbers beside TRL's own tensors.

What enters: rows of `data.py`'s data sets. What leaves: the tensors of TRL's collator (padded, padding-free or packed),
and for every position its document and its group or reference loss, and the batch's counts as plain integers, so that a
step's counts are known before its first forward pass. Next: the trainer takes the extra entries out of the batch, and
`with_groups` puts them beside the losses.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.thresholds import num_important
from train.data.held_out import TOKEN_NUMBER
from train.data.loading import IMPORTANT, REFERENCE_LOSS
from train.objectives.rho1 import select_top
from train.objectives.tokens import Counts, Tokens
from train.settings.flags import SelectOver

IGNORED_LABEL = -100  # what TRL and transformers leave out of the loss
DOCUMENT = "document"
NUM_DOCUMENTS = "num_documents"
NUM_SELECTED = "num_selected"
COUNTS = "counts"
EXTRA_KEYS = (IMPORTANT, REFERENCE_LOSS, TOKEN_NUMBER, DOCUMENT, NUM_DOCUMENTS, NUM_SELECTED, COUNTS)


class GroupCollator:
    """TRL's collator, and what an objective needs to know about each token."""

    def __init__(self, base: Any, eta: float, select_over: SelectOver):
        """Wrap `base`, a TRL `DataCollatorForLanguageModeling`."""
        self.base = base
        self.eta = eta
        self.select_over = select_over

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of R rows and C columns (padding-free: one row).

        Beside TRL's entries: `document` int64 [R, C] and `num_documents`; `important` bool [R, C], or `reference_loss`
        float32 [R, C] with `num_selected` int64 [num_documents]; `counts`, a tuple of three integers (see `Counts`)
        over the tokens that are predicted.
        """
        batch = self.base([_with_labels(example) for example in examples])
        labels = batch["labels"]
        document = self._documents(batch)
        num_documents = int(document.max()) + 1 if document.numel() else 0
        supervised = labels != IGNORED_LABEL
        supervised[:, 0] = False  # nothing predicts the first token of a row
        sizes = torch.bincount(document[supervised], minlength=num_documents)
        num_in_group = 0
        if IMPORTANT in examples[0]:
            batch[IMPORTANT] = self._spread(examples, IMPORTANT, labels) & supervised
            num_in_group = int(batch[IMPORTANT].sum())
        if REFERENCE_LOSS in examples[0]:
            batch[REFERENCE_LOSS] = self._spread(examples, REFERENCE_LOSS, labels)
            of = sizes if self.select_over == "document" else sizes.sum()[None]
            batch[NUM_SELECTED] = torch.tensor([num_important(self.eta, int(n)) for n in of])
            num_in_group = int(batch[NUM_SELECTED].sum())
        if TOKEN_NUMBER in examples[0]:
            batch[TOKEN_NUMBER] = self._spread(examples, TOKEN_NUMBER, labels)
        batch[DOCUMENT], batch[NUM_DOCUMENTS] = document, num_documents
        batch[COUNTS] = tuple(Counts(int(sizes.sum()), num_in_group, int((sizes > 0).sum())))
        return batch

    def _documents(self, batch: dict[str, Any]) -> Tensor:
        """Return each position's document, int64 [R, C]; padding belongs to its row or makes documents of its own."""
        labels = batch["labels"]
        if not self.base.padding_free:
            return torch.arange(len(labels))[:, None].expand(labels.shape).contiguous()
        return (batch["position_ids"] == 0).cumsum(dim=1) - 1

    def _spread(self, examples: list[dict[str, Any]], name: str, labels: Tensor) -> Tensor:
        """Lay a column of the examples out like the labels; 0 where there is padding."""
        rows = [torch.tensor(np.asarray(example[name])) for example in examples]
        if self.base.padding_free:
            rows = [torch.cat(rows)]
        out = torch.zeros(labels.shape, dtype=rows[0].dtype)
        for index, row in enumerate(rows):
            out[index, : len(row)] = row
        return out


def with_groups(loss: Tensor, supervised: Tensor, extra: dict[str, Any], select_over: SelectOver) -> Tokens:
    """Put losses and groups side by side: position j - 1 of a model's outputs predicts token j.

    Args:
        loss: float32 [R · (C - 1)], nats.
        supervised: bool, alike.
        extra: what the collator gave beside TRL's entries; without groups, no token is important.
        select_over: over what dynamic groups are ranked.
    """
    document = extra[DOCUMENT][:, 1:].flatten()
    assert loss.shape == document.shape, "the model must return one prediction for every token but the first"
    if extra.get(IMPORTANT) is not None:
        important = extra[IMPORTANT][:, 1:].flatten()
    elif extra.get(REFERENCE_LOSS) is not None:
        excess = loss.detach() - extra[REFERENCE_LOSS][:, 1:].flatten()
        over = document if select_over == "document" else torch.zeros_like(document)
        important = select_top(excess, supervised, over, extra[NUM_SELECTED])
    else:
        important = torch.zeros_like(supervised)
    return Tokens(loss, supervised, important, document, extra[NUM_DOCUMENTS])


def _with_labels(example: dict[str, Any]) -> dict[str, Any]:
    ids = np.asarray(example["input_ids"], dtype=np.int64)
    out = {"input_ids": ids, "labels": np.where(example["supervised"], ids, IGNORED_LABEL)}
    if "seq_lengths" in example:
        out["seq_lengths"] = [int(length) for length in example["seq_lengths"]]
    return out
