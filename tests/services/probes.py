"""A grouper for tests that can be slow, fail and die on demand: what it does stands in the text that it scores.

Importing this registers it under the name `probe`; only the tests' own server does.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from annotate.groupers import REGISTRY
from annotate.groupers.base import Grouper, GrouperOptions
from annotate.tokens.batch import Scores, TokenBatch

SLEEP, REFUSE, FAIL, DIE, BREAK = "please sleep", "please refuse", "please fail", "please die", "please break"


class Probe(Grouper):
    """Scores each token by its id modulo 7."""

    name = "probe"

    def __init__(self) -> None:
        self.calls: list[int] = []  # documents of each call
        self.texts: list[str] = []
        self.broken = False

    @classmethod
    def from_options(cls, options: GrouperOptions) -> "Probe":
        return cls()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Probe":
        return cls()

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def score(self, batch: TokenBatch) -> Scores:
        self.calls.append(len(batch))
        self.texts += batch.texts
        for text in batch.texts:
            if SLEEP in text:
                time.sleep(1.5 * text.count(SLEEP))
            if FAIL in text:
                raise ValueError("this document fails, whatever its company")
            if DIE in text:
                raise SystemExit("the thread was told to die")
            if BREAK in text:
                self.broken = True
        if self.broken:
            raise RuntimeError("the device is lost")
        rejects = {number: "refused on demand" for number, text in enumerate(batch.texts) if REFUSE in text}
        return Scores({"probe": (batch.input_ids % 7).astype(np.float32)}, rejects)


REGISTRY["probe"] = "tests.services.probes:Probe"
