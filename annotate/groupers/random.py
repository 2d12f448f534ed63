"""random: uniform scores, the matched-ratio control that shows whether a grouper beats chance (DESIGN: section 4)."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate.groupers.base import Flags, Grouper, GrouperOptions
from annotate.tokens.batch import Scores, TokenBatch


@dataclass(frozen=True)
class RandomFlags(Flags):
    """The flag of `random`."""

    seed: int | None = field(default=None, metadata={"help": "Seed. Default: 0."})


class Random(Grouper):
    """Uniform in [0, 1), from the seed, the document's id and the token's position; nothing else.

    Counter-based: token k of a document gets SplitMix64 (Steele et al., 2014) of `hash(seed, document_id) + k · gamma`,
    its upper 24 bits over 2^24, which float32 holds exactly. So the scores depend on no batch, worker or order.
    """

    name = "random"
    Flags = RandomFlags

    def __init__(self, seed: int):
        self.seed = seed

    @classmethod
    def from_options(cls, options: GrouperOptions) -> "Random":
        return cls(options.read(RandomFlags).seed or 0)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Random":
        return cls(parameters["seed"])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def score(self, batch: TokenBatch) -> Scores:
        keys = b"".join(
            hashlib.blake2b(f"{self.seed}:{document_id}".encode(), digest_size=8).digest()
            for document_id in batch.document_ids
        )
        starts = np.frombuffer(keys, dtype="<u8")
        positions = np.arange(batch.num_tokens) - np.repeat(batch.offsets[:-1], batch.lengths)
        state = np.repeat(starts, batch.lengths) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
        return Scores({self.name: (state >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)})
