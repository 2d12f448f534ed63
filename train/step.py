"""One optimizer step's bookkeeping: its counts, its sums, and the guess of its worst group.

What enters: the micro-batches of one step, before any forward pass, and the sums of each as it is run. What leaves: the
counts over all micro-batches and ranks, a guess of the worst group while the step is under way, and, at its end, which
micro-batches were run under a wrong guess. Next: the trainer corrects exactly those.

Gradients are linear in the loss, so a micro-batch that was run under the wrong group is put right by adding the
gradient of the difference of its two losses: nothing has to be thrown away, and the result is that of a step without a
split.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.objectives.tokens import Counts, Sums

# How slowly the gap that guesses start from follows the steps. One step's gap says little of the next one's sign when
# the groups are about as bad as each other, which is where the objective drives them; a mean over about five does
# better (on Alpaca with 8 documents a step, a third fewer micro-batches run under a wrong guess).
GAP_MEMORY = 0.8

Reduce = Callable[[Tensor], Tensor]  # the sum over data-parallel ranks


@dataclass
class GuessRecord:
    """What is carried from step to step, and through checkpoints."""

    # Mean loss of the important group minus that of the unimportant one: exponential moving average over the steps.
    gap: float | None = None
    num_redone_steps: int = 0
    num_redone_batches: int = 0

    def note(self, sums: Sums, counts: Counts, num_redone: int) -> None:
        """Take in a finished step's gap, where both groups had tokens, and count what was redone."""
        if counts.important and counts.unimportant:
            gap = float(sums.important / counts.important - sums.unimportant / counts.unimportant)
            self.gap = gap if self.gap is None else GAP_MEMORY * self.gap + (1 - GAP_MEMORY) * gap
        self.num_redone_steps += num_redone > 0
        self.num_redone_batches += num_redone


@dataclass
class Step:
    """One optimizer step on one rank."""

    batches: list[Any]  # as they came from the data loader
    local_counts: list[Counts]  # of this rank's micro-batches
    counts: Counts  # of the whole step, all ranks
    weight: float  # lambda
    sums: list[Sums] = field(default_factory=list)  # of this rank's micro-batches that were run
    guesses: list[int] = field(default_factory=list)
    random_states: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def num_batches(self) -> int:
        """Number of micro-batches of this rank."""
        return len(self.batches)

    @property
    def is_last(self) -> bool:
        """Whether the micro-batch that is about to run is the step's last one."""
        return len(self.sums) == self.num_batches - 1

    def local_sums(self) -> Sums:
        """Return the sums over this rank's micro-batches so far."""
        total = self.sums[0]
        for sums in self.sums[1:]:
            total = total.plus(sums)
        return total

    def guess(self, gap: float | None) -> int:
        """Guess the step's worst group from what this rank has seen of it and from the previous steps' `gap`.

        The unseen share of the step is taken to be like the previous steps.
        """
        if not self.counts.important or not self.counts.unimportant:
            return int(self.counts.important > 0)  # known: an empty group cannot be the worst
        seen = Counts()
        for counts in self.local_counts[: len(self.sums)]:
            seen = seen.plus(counts)
        if not seen.important or not seen.unimportant:
            return int((gap or 0.0) >= 0)
        sums = self.local_sums()
        here = float(sums.important / seen.important - sums.unimportant / seen.unimportant)
        share = len(self.sums) / self.num_batches if gap is not None else 1.0
        return int(share * here + (1 - share) * (gap or 0.0) >= 0)

    def finish(self, reduce: Reduce) -> tuple[Sums, Tensor]:
        """Return the whole step's sums, and for each micro-batch but the last how many ranks guessed group 1.

        One reduction over the ranks.
        """
        local = self.local_sums().stack()
        both = torch.cat([local, local.new_tensor([float(guess) for guess in self.guesses])])
        both = reduce(both)
        return Sums.unstack(both[: len(local)]), both[len(local) :]


def wrong_batches(guessed_important: Tensor, worst: int, num_ranks: int) -> list[int]:
    """Return the micro-batches that some rank ran under another group than `worst`.

    Every rank gets the same list, since forward passes of sharded models are collective.
    """
    right = num_ranks if worst == 1 else 0
    return [index for index, guessed in enumerate(guessed_important.tolist()) if round(guessed) != right]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators that a forward pass may draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


@contextlib.contextmanager
def replayed(states: dict[str, Tensor], device: torch.device) -> Iterator[None]:
    """Run a forward pass again as it was run before: with the same dropout."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])
    yield
