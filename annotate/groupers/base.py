"""What a grouper is: the method that gives every token a score (paper section 3.2, the function g before thresholding).

A new grouper is one file in this folder with one subclass, and one line in the registry (`annotate.groupers`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from annotate.tokens.batch import Scores, TokenBatch
from common.manifest import Kind


@dataclass(frozen=True)
class GrouperOptions:
    """Every setting that some grouper reads; the command line's flags of the same names. None means "the default"."""

    seed: int | None = None
    tokenizer: str | None = None  # the target tokenizer: name or path, as the pipeline resolved it
    tokenizer_fingerprint: str | None = None
    max_length: int | None = None
    compressor_model: str | None = None
    reference_model: str | None = None
    base_model: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_tokens: int | None = None
    package_parity: bool | None = None
    device: str | None = None  # "cpu", "cuda", "cuda:1"; by default CUDA where there is a GPU


class Grouper(ABC):
    """Scores the tokens of documents.

    The life of a grouper in a run: `from_options` once in the driver (loads no model; checks that files are there);
    the instance is pickled to each worker; with `needs_fit`, `count` on every shard in the workers, the sums to `fit`
    and `save` in the driver; then `load` (with needs_fit) and `score` in the workers, where a model is loaded by the
    first `score`, once; at the end `report` in the driver.
    """

    name: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()  # names of the `GrouperOptions` it reads, those that are flags
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
        """Return what one shard adds to the fit: arrays that are summed element by element over shards."""
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
