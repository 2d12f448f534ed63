"""What groupers over a frozen reference model share: its checkpoint, settings, and the documents that it cannot score.

What enters: settings that name a causal language model with the documents' own tokenizer. What leaves: a grouper that
loads it once a worker, and hands its subclass numbers of every token. Next: `rho1`, `entropy`, `sifd`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from annotate.groupers.base import Grouper, GrouperOptions, ModelFlags
from annotate.groupers.rho1.reference_loss import BATCH_TOKENS, ReferenceModel
from annotate.models.checkpoints import (
    absolute_name,
    checkpoint_revision,
    is_local,
    load_config,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from annotate.tokens.batch import TokenBatch
from common.errors import UserError, raise_together
from common.tokenizers import tokenizer_fingerprint

FLAGS = {"reference": "--reference-model", "base": "--base-model"}


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint of one role, "reference" or "base"."""

    role: str
    name: str  # as the user wrote it
    location: str  # what is loaded: an absolute directory, since a worker may stand elsewhere, or the hub id
    revision: str

    @classmethod
    def find(cls, role: str, name: str, fingerprint: str | None) -> "Checkpoint":
        """Check config, weight files and tokenizer, and identify the content. Loads no weights.

        Raises:
            UserError: something is missing, or the tokenizer is not the one with this `fingerprint`.
        """
        flag = FLAGS[role]
        revision = checkpoint_revision(name, flag)
        config = load_config(name, flag, revision).get_text_config()
        if config.is_encoder_decoder:
            raise UserError(f"{flag} {name}: expected a causal language model, found an encoder-decoder.")
        tokenizer = load_tokenizer(name, flag, revision)
        found = tokenizer_fingerprint(tokenizer)
        if fingerprint is not None and found != fingerprint:
            raise UserError(
                f"{flag} {name}: its tokenizer (fingerprint {found[:12]}) is not the one that the documents are "
                f"tokenized with ({fingerprint[:12]}), so its losses would be about other tokens. Take a model with "
                f"the same tokenizer, or tokenize with --tokenizer {name}."
            )
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{flag} {name}: its tokenizer has {tokenizer.vocab_size} tokens, its model {config.vocab_size}. "
                "They do not belong together."
            )
        return cls(role, name, absolute_name(name, flag), revision)


@dataclass(frozen=True)
class ReferenceFlags(ModelFlags):
    """What every grouper over a reference model takes."""

    reference_model: str | None = field(
        default=None, metadata={"help": "The frozen reference model: a directory or a hub id."}
    )


class ReferenceGrouper(Grouper):
    """A grouper whose scores are measured under one frozen model, or under one of each role."""

    Flags: ClassVar[type[ReferenceFlags]] = ReferenceFlags
    roles: ClassVar[tuple[str, ...]] = ("reference",)  # the first is required; the flag is `FLAGS[role]`
    uses_model = True

    def __init__(self, checkpoints: list[Checkpoint], dtype: str, device: str, batch_tokens: int):
        self.checkpoints = checkpoints  # the reference, and the base model if there is one
        self.dtype = dtype
        self.device = device
        self.batch_tokens = batch_tokens
        self._models: dict[str, ReferenceModel] = {}  # by role; filled by the first `score`

    @classmethod
    def from_options(cls, options: GrouperOptions) -> Self:
        flags = options.read(cls.Flags)
        names = {role: getattr(flags, f"{role}_model") for role in cls.roles}
        if not names["reference"]:
            raise UserError(f"--grouper {cls.name}: expected --reference-model with a directory or hub id, found none.")
        checkpoints, problems = [], []
        for role, name in names.items():
            try:
                if name:
                    checkpoints.append(Checkpoint.find(role, name, options.tokenizer_fingerprint))
            except UserError as error:
                problems.append(str(error))
        raise_together(problems)
        return cls._build(checkpoints, flags.dtype, flags)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> Self:
        checkpoints = []
        for role in cls.roles:
            flag = FLAGS[role]
            name, revision = parameters.get(f"{role}_model"), parameters.get(f"{role}_revision")
            if name is None:
                continue
            if not is_local(name, flag):
                # A commit: the hub gives the same content.
                checkpoints.append(Checkpoint(role, name, name, str(revision)))
                continue
            found = Checkpoint.find(role, name, options.tokenizer_fingerprint)
            if found.revision != revision:
                raise UserError(
                    f"{flag} {name}: the checkpoint has changed: expected {revision}, found {found.revision}. "
                    "Put the old one back, or annotate again into another directory."
                )
            checkpoints.append(found)
        return cls._build(checkpoints, parameters["dtype"], options.read(cls.Flags))

    @classmethod
    def _build(cls, checkpoints: list[Checkpoint], dtype: str | None, flags: ReferenceFlags) -> Self:
        device = resolve_device(flags.device)
        batch_tokens = flags.batch_tokens or BATCH_TOKENS[device.split(":")[0]]
        if batch_tokens < 1:
            raise UserError(f"--batch-tokens {batch_tokens}: expected a positive number of tokens.")
        return cls(checkpoints, resolve_dtype(dtype, device), device, batch_tokens)

    @property
    def parameters(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for checkpoint in self.checkpoints:
            values[f"{checkpoint.role}_model"] = checkpoint.name
            values[f"{checkpoint.role}_revision"] = checkpoint.revision
        return {**values, "dtype": self.dtype}

    def __getstate__(self) -> dict[str, Any]:
        """Travel without loaded models."""
        return {**self.__dict__, "_models": {}}

    def measure(self, batch: TokenBatch, checkpoint: Checkpoint, rejects: dict[int, str], entropy: bool = False) -> Any:
        """Return each token's loss, or the entropy at its place, float64 [num_tokens], nats; 0 for a first token.

        Documents that the model cannot score are added to `rejects`, index -> why; those in it are left out.
        """
        model = self._load(checkpoint)
        reject_unfit(batch, model, rejects)
        fit = np.setdiff1d(np.arange(len(batch)), list(rejects))
        values = (model.entropies if entropy else model.losses)(batch.input_ids, batch.offsets, fit, self.batch_tokens)
        where = f"the {checkpoint.role} model {checkpoint.name}"
        reject_non_finite(batch, values, where, rejects, "an entropy" if entropy else "a loss")
        return values

    def _load(self, checkpoint: Checkpoint) -> ReferenceModel:
        """Return the model of one checkpoint, loaded the first time it is asked for."""
        if checkpoint.role not in self._models:
            self._models[checkpoint.role] = ReferenceModel(
                checkpoint.location, FLAGS[checkpoint.role], checkpoint.revision, self.dtype, self.device
            )
        return self._models[checkpoint.role]


def reject_unfit(batch: TokenBatch, model: ReferenceModel, rejects: dict[int, str]) -> None:
    """Add the documents that the model has no positions or no embeddings for."""
    if model.max_tokens is not None:
        for document in np.flatnonzero(batch.lengths > model.max_tokens):
            rejects.setdefault(
                int(document),
                f"Document {batch.document_ids[document]} has {batch.lengths[document]} tokens, {model.where} takes "
                f"{model.max_tokens}: annotate with --max-length {model.max_tokens}.",
            )
    for document in np.unique(batch.document_index[batch.input_ids >= model.vocab_size]):
        rejects.setdefault(
            int(document),
            f"Document {batch.document_ids[document]} has a token id that {model.where} has no embedding for "
            f"(its vocabulary ends at {model.vocab_size - 1}).",
        )


def reject_non_finite(
    batch: TokenBatch, values: np.ndarray, model: str, rejects: dict[int, str], quantity: str = "a loss"
) -> None:
    """Add the documents that have a value, float64 [num_tokens], which is NaN or infinite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    documents, first = np.unique(batch.document_index[wrong], return_index=True)
    for document, place in zip(documents, wrong[first], strict=True):
        rejects.setdefault(
            int(document),
            f"Document {batch.document_ids[document]}: {model} gives token {place - batch.offsets[document]} "
            f"{quantity} that is not finite ({values[place]}).",
        )
