"""One optimizer step's bookkeeping: its counts, its sums, and the guess of its worst group.

What enters: the micro-batches of one step, before any forward pass, and the sums of each as it is run. What leaves: the
counts over all micro-batches and ranks, a guess of the worst group while the step is under way, and, at its end, which
micro-batches were run under a wrong guess. Next: the trainer corrects exactly those.

Gradients are linear in the loss, so a micro-batch that was run under the wrong group is put right by adding the
gradient of the difference of its two losses: nothing has to be thrown away, and the result is that of a step without a
split.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.objectives.base import worst_group
from train.objectives.tokens import Counts, Sums

Reduce = Callable[[Tensor], Tensor]  # the sum over data-parallel ranks


@dataclass
class Redone:
    """How often a guess was wrong; carried from step to step, and through checkpoints."""

    num_redone_steps: int = 0
    num_redone_batches: int = 0

    def note(self, num_batches: int) -> None:
        """Count a finished step of which so many micro-batches were run under a wrong guess."""
        self.num_redone_steps += num_batches > 0
        self.num_redone_batches += num_batches


@dataclass
class Step:
    """One optimizer step on one rank."""

    batches: list[Any]  # as they came from the data loader
    counts: Counts  # of the whole step, all ranks
    weight: float  # lambda
    # Where the worst group is to be guessed: what the sums are expected to be, of this rank's micro-batches and of all.
    expected: list[Sums] = field(default_factory=list)
    expected_total: Sums | None = None
    sums: list[Sums] = field(default_factory=list)  # of this rank's micro-batches that were run
    guesses: list[Tensor] = field(default_factory=list)
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

    def guess(self) -> Tensor:
        """Guess the step's worst group, without waiting for the device.

        From what this rank has seen of the step, and for the rest, its own and the other ranks', what was expected.
        """
        sums = self.expected_total
        for seen, expected in zip(self.sums, self.expected, strict=False):
            sums = sums.plus(seen).minus(expected)
        return worst_group(sums, self.counts)

    def finish(self, reduce: Reduce) -> tuple[Sums, Tensor]:
        """Return the whole step's sums, and for each micro-batch but the last how many ranks guessed group 1.

        One reduction over the ranks.
        """
        local = self.local_sums().stack()
        both = reduce(torch.cat([local, torch.stack(self.guesses).to(local)]) if self.guesses else local)
        return Sums.unstack(both[: len(local)]), both[len(local) :]


def begin_step(
    batches: list[Any],
    local_counts: list[Counts],
    weight: float,
    expected: list[Sums],
    num_ranks: int,
    reduce: Reduce,
    device: torch.device,
) -> Step:
    """Return a step whose counts and expected sums are known over all ranks: one reduction.

    Args:
        batches: this rank's micro-batches.
        local_counts: of each of them.
        weight: lambda.
        expected: sums of each, where the worst group is to be guessed; else empty.
        num_ranks: data-parallel ranks.
        reduce: the sum over them.
        device: where it works.
    """
    counts = functools.reduce(Counts.plus, local_counts, Counts())
    total = functools.reduce(Sums.plus, expected) if expected else None
    if num_ranks > 1:
        numbers = torch.tensor([*counts, len(batches)], dtype=torch.float64, device=device)
        over_ranks = reduce(torch.cat([numbers, total.stack()]) if expected else numbers)
        *values, num_batches = (int(value) for value in over_ranks[: len(numbers)].tolist())
        assert num_batches == len(batches) * num_ranks, "every rank must run as many micro-batches"
        counts, total = Counts(*values), Sums.unstack(over_ranks[len(numbers) :]) if expected else None
    return Step(batches, counts, weight, expected, total)


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
    """Run a forward pass again as it was run before, with the same dropout; what is drawn afterwards stays the same."""
    now = random_state(device)
    _set_random_state(states)
    try:
        yield
    finally:
        _set_random_state(now)


def _set_random_state(states: dict[str, Tensor]) -> None:
    for kind, state in states.items():
        (torch if kind == "cpu" else torch.get_device_module(kind)).set_rng_state(state)
