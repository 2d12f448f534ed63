"""One optimizer step's bookkeeping: its counts, its sums, and the guess of what it will decide.

What enters: the micro-batches of one step, before any forward pass, and the sums of each as it is run. What leaves: the
counts over all micro-batches and ranks, a guess of the step's decision (such as its worst group) while it is under way,
and, at its end, the decision and which micro-batches were run under another one. Next: the trainer corrects exactly
those.

Gradients are linear in the loss, so a micro-batch that was run under the wrong decision is put right by adding the
gradient of the difference of its two losses: nothing has to be thrown away, and the result is that of a step without a
split.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.data.counts import Counts
from train.objectives.base import Moment, Objective
from train.objectives.tokens import Sums

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

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up the counts."""
        vars(self).update(state)


@dataclass
class Step:
    """One optimizer step on one rank."""

    objective: Objective
    batches: list[Any]  # as they came from the data loader
    counts: Counts  # of the whole step, all ranks
    moment: Moment
    # Where the decision is to be guessed: what the sums are expected to be, of this rank's micro-batches and of all.
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
        return functools.reduce(Sums.plus, self.sums)

    def guess(self) -> Tensor:
        """Guess the step's decision, without waiting for the device.

        From what this rank has seen of the step, and for the rest, its own and the other ranks', what was expected.
        """
        assert self.expected_total is not None
        sums = self.expected_total
        for seen, expected in zip(self.sums, self.expected, strict=False):
            sums = sums.plus(seen).minus(expected)
        return self.objective.decide(sums, self.counts, self.moment)

    def finish(self, reduce: Reduce) -> tuple[Sums, Tensor]:
        """Return the whole step's sums, and what the ranks guessed for each micro-batch but the last.

        One reduction over the ranks.

        Returns:
            The sums, and float64 [2, micro-batches - 1, numbers of a decision]: sums over ranks of the guesses and of
            their squares.
        """
        local = self.local_sums()
        flat = local.stack()
        if not self.guesses:
            return Sums.unstack(reduce(flat), len(local.groups)), flat.new_zeros(2, 0, 1)
        guesses = torch.stack([guess.flatten() for guess in self.guesses]).to(flat)
        both = reduce(torch.cat([flat, guesses.flatten(), (guesses**2).flatten()]))
        return Sums.unstack(both[: len(flat)], len(local.groups)), both[len(flat) :].view(2, *guesses.shape)


def begin_step(
    objective: Objective,
    batches: list[Any],
    local_counts: list[Counts],
    moment: Moment,
    expected: list[Sums],
    num_ranks: int,
    reduce: Reduce,
    device: torch.device,
) -> Step:
    """Return a step whose counts and expected sums are known over all ranks: one reduction.

    Args:
        objective: what is minimised.
        batches: this rank's micro-batches.
        local_counts: of each of them.
        moment: where in the run the step is.
        expected: sums of each, where the decision is to be guessed; else empty.
        num_ranks: data-parallel ranks.
        reduce: the sum over them.
        device: where it works.
    """
    counts = functools.reduce(Counts.plus, local_counts) if local_counts else Counts()
    total = functools.reduce(Sums.plus, expected) if expected else None
    if num_ranks > 1:
        numbers = torch.tensor([*counts.flatten(), len(batches)], dtype=torch.float64, device=device)
        over_ranks = reduce(numbers if total is None else torch.cat([numbers, total.stack()]))
        *values, num_batches = over_ranks[: len(numbers)].tolist()
        assert num_batches == len(batches) * num_ranks, "every rank must run as many micro-batches"
        counts = Counts.unflatten(values, counts)
        if total is not None:
            total = Sums.unstack(over_ranks[len(numbers) :], len(total.groups))
    return Step(objective, batches, counts, moment, expected, total)


def wrong_batches(guessed: Tensor, decision: Tensor, num_ranks: int) -> list[int]:
    """Return the micro-batches that some rank ran under another decision than the step's.

    With t the decision and g_r the guess of rank r, sum_r (g_r - t)² is 0 only where all ranks guessed right; it comes
    from the sums of `Step.finish`, so every rank gets the same list, as it must: forward passes of sharded models are
    collective.
    """
    first, second = guessed
    right = decision.flatten().to(guessed)
    apart = second - 2 * right * first + num_ranks * right**2
    return [index for index, distance in enumerate(apart.abs().amax(dim=-1).tolist()) if distance > 0]
