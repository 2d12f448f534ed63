"""From documents to batches that carry groups and document numbers beside TRL's own tensors.

What enters: rows of `loading.py`'s data sets. What leaves: the tensors of TRL's collator (padded, padding-free or
packed), and for every position its document and what the plan made of its score, and the batch's counts as plain
numbers, so that a step's counts are known before its first forward pass. Next: the trainer takes the extra entries out
of the batch, and `train.objectives.tokens` puts them beside the losses.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.thresholds import num_important
from train.data.counts import Counts
from train.data.held_out import TOKEN_NUMBER
from train.data.plan import GroupPlan
from train.data.rows import GROUP, REFERENCE_LOSS, SHARE, TOKEN_COLUMNS

IGNORED_LABEL = -100  # what TRL and transformers leave out of the loss
DOCUMENT = "document"
NUM_DOCUMENTS = "num_documents"
NUM_SELECTED = "num_selected"
COUNTS = "counts"
EXTRA_KEYS = (*TOKEN_COLUMNS, TOKEN_NUMBER, DOCUMENT, NUM_DOCUMENTS, NUM_SELECTED, COUNTS)

SelectOver = Literal["document", "batch"]
Amounts = Callable[[Tensor, dict[str, Any]], tuple[float, ...]]  # of bool [R, C] supervised and the batch


class GroupCollator:
    """TRL's collator, and what an objective needs to know about each token."""

    def __init__(
        self, base: Any, plan: GroupPlan, select_over: SelectOver = "document", amounts: Amounts | None = None
    ):
        """Wrap `base`, a TRL `DataCollatorForLanguageModeling`; `amounts` gives an objective's own counts."""
        self.base = base
        self.plan = plan
        self.select_over = select_over
        self.amounts = amounts

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of R rows and C columns (padding-free: one row).

        Beside TRL's entries: `document` int64 [R, C] and `num_documents`; what the rows hold of `group` int64,
        `share`, `score` and `reference_loss` float32 [R, C], the last one with `num_selected` int64 [num_documents];
        `counts`, the fields of a `Counts` over the tokens that are predicted.
        """
        batch = self.base([_with_labels(example) for example in examples])
        labels = batch["labels"]
        document = self._documents(batch)
        num_documents = int(document.max()) + 1 if document.numel() else 0
        supervised = labels != IGNORED_LABEL
        supervised[:, 0] = False  # nothing predicts the first token of a row
        sizes = torch.bincount(document[supervised], minlength=num_documents)
        total = int(sizes.sum())
        for name in (*TOKEN_COLUMNS, TOKEN_NUMBER):
            if name in examples[0]:
                batch[name] = self._spread(examples, name, labels)
        groups: tuple[float, ...] = (total,)
        if GROUP in batch:
            batch[GROUP] = batch[GROUP].long() * supervised
            groups = tuple(torch.bincount(batch[GROUP][supervised], minlength=self.plan.num_groups).tolist())
        elif SHARE in batch:
            batch[SHARE] = batch[SHARE] * supervised
            important = float(batch[SHARE].double().sum())
            groups = (total - important, important)
        elif REFERENCE_LOSS in batch:
            of = sizes if self.select_over == "document" else sizes.sum()[None]
            batch[NUM_SELECTED] = torch.tensor([num_important(self.plan.eta, int(n)) for n in of])
            selected = int(batch[NUM_SELECTED].sum())
            groups = (total - selected, selected)
        batch[DOCUMENT], batch[NUM_DOCUMENTS] = document, num_documents
        own = self.amounts(supervised, batch) if self.amounts else ()
        batch[COUNTS] = tuple(Counts(total, int((sizes > 0).sum()), groups, own))
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


def _with_labels(example: dict[str, Any]) -> dict[str, Any]:
    ids = np.asarray(example["input_ids"], dtype=np.int64)
    out: dict[str, Any] = {"input_ids": ids, "labels": np.where(example["supervised"], ids, IGNORED_LABEL)}
    if "seq_lengths" in example:
        out["seq_lengths"] = [int(length) for length in example["seq_lengths"]]
    return out
