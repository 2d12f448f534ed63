"""What a grouper is: the method that gives every token a score (paper section 3.2, the function g before thresholding).

A new grouper is one file in this folder with one subclass, its flags included, and one line in the registry
(`annotate.groupers`).
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from annotate.tokens.batch import Scores, TokenBatch
from common.errors import raise_together
from common.manifest import Kind


@dataclass(frozen=True)
class Flags:
    """The flags of one grouper: a subclass's fields, each with a default and its help in the field's metadata.

    A field `own_power` is `--own-power`; its type is str, int, float, or bool (given or not), each `| None` where None
    means the grouper's default. Groupers that share a flag inherit it, so that it has one type and one help.
    """

    def problems(self) -> list[str]:
        """Return a sentence for every value that is wrong, naming its flag."""
        return []


@dataclass(frozen=True)
class ModelFlags(Flags):
    """What every grouper that runs a model takes."""

    dtype: str | None = field(
        default=None,
        metadata={"help": "float32, bfloat16 or float16 for models. Default: float32 on CPU, bfloat16 on GPU."},
    )
    batch_tokens: int | None = field(
        default=None, metadata={"help": "Tokens, padding included, in one batch of a model."}
    )
    device: str | None = field(
        default=None,
        metadata={"help": "cpu or cuda (cuda:1 with --engine local) for models. Default: cuda where there is a GPU."},
    )


AnyFlags = TypeVar("AnyFlags", bound=Flags)


@dataclass(frozen=True, init=False)
class GrouperOptions:
    """What a grouper is set up from: what only the run knows, and the flags that were given, of whatever groupers."""

    tokenizer: str | None  # the target tokenizer: name or path, as the pipeline resolved it
    tokenizer_fingerprint: str | None
    max_length: int | None
    flags: Mapping[str, Any]  # by field name; a flag that is not given is not in it

    def __init__(
        self,
        tokenizer: str | None = None,
        tokenizer_fingerprint: str | None = None,
        max_length: int | None = None,
        flags: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Take flags as a mapping, or by name; None is a flag that was not given."""
        object.__setattr__(self, "tokenizer", tokenizer)
        object.__setattr__(self, "tokenizer_fingerprint", tokenizer_fingerprint)
        object.__setattr__(self, "max_length", max_length)
        given = {**(flags or {}), **more}
        object.__setattr__(self, "flags", {name: value for name, value in given.items() if value is not None})

    def read(self, kind: type[AnyFlags]) -> AnyFlags:
        """Return a grouper's own flags; those of other groupers are left out.

        Raises:
            UserError: values are wrong; names them all.
        """
        own = {item.name for item in dataclasses.fields(kind)}
        found = kind(**{name: value for name, value in self.flags.items() if name in own})
        raise_together(found.problems())
        return found


@dataclass(frozen=True)
class DocumentFilter:
    """How `annotate select` judges documents by a grouper's columns.

    Attributes:
        chooses: the column whose largest values, over the supervised tokens of the whole directory, are the top tokens.
        averages: the column whose mean over a document's top tokens is what its score is made of.
        score: of means, float64 [num_documents]; the highest are kept.
        accepts: of the means over all supervised tokens of each document, bool [num_documents]; the others are out.
    """

    chooses: str
    averages: str
    score: Callable[[np.ndarray], np.ndarray]
    accepts: Callable[[np.ndarray], np.ndarray]


class Grouper(ABC):
    """Scores the tokens of documents.

    The life of a grouper in a run: `from_options` once in the driver (loads no model; checks that files are there);
    the instance is pickled to each worker; with `needs_fit`, `count` on every shard in the workers, the sums to `fit`
    and `save` in one of them; then `load` (with needs_fit) and `score` in the workers, where a model is loaded by the
    first `score`, once; at the end `report` in the driver.
    """

    name: ClassVar[str]
    Flags: ClassVar[type[Flags]] = Flags  # its flags, of `annotate run` and elsewhere
    document_filter: ClassVar[DocumentFilter | None] = None  # with one, `annotate select` takes it
    needs_fit: ClassVar[bool] = False
    needs_spans: ClassVar[bool] = False  # reads TokenBatch.spans
    uses_model: ClassVar[bool] = False  # runs a neural network: gets a GPU where there is one

    @classmethod
    @abstractmethod
    def from_options(cls, options: GrouperOptions) -> "Grouper":
        """Resolve defaults and check settings. Raises `UserError` for wrong ones. Must not load models."""

    @classmethod
    @abstractmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Grouper":
        """Rebuild the grouper that has these `parameters` (from a manifest, as JSON values).

        From `options` only what does not change scores is taken, such as the device and `batch_tokens`.
        """

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """JSON values that determine the scores; they enter the manifest. Equal parameters mean equal scores."""

    @property
    def columns(self) -> dict[str, Kind]:
        """The score columns that `score` returns, with their kinds: by default one importance of the grouper's name."""
        return {self.name: "importance"}

    @abstractmethod
    def score(self, batch: TokenBatch) -> Scores:
        """Score every token. Independent of which documents share a batch, up to 1e-5 for models in float32."""

    def report(self, counters: Mapping[str, float]) -> dict[str, Any]:
        """Turn the counters summed over all shards into what the summary and the manifest state."""
        return dict(counters)

    # Only with needs_fit:

    def count(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """Return what one shard adds to the fit: arrays that are summed element by element over shards.

        Args:
            batch: token ids, supervision and offsets; its ids, texts and spans may be left out.
        """
        raise NotImplementedError

    def fit(self, counts: dict[str, np.ndarray]) -> None:
        """Take the counts of the whole corpus."""
        raise NotImplementedError

    def save(self, state: Path) -> None:
        """Write what was fitted to `state / "<name>.parquet"`, atomically: the file's presence means fitted."""
        raise NotImplementedError

    def is_fitted(self, state: Path) -> bool:
        """Tell whether `state` holds what `save` wrote."""
        return (state / f"{self.name}.parquet").is_file()

    def load(self, state: Path) -> None:
        """Read what `save` wrote."""
        raise NotImplementedError
