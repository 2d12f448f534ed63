"""Running a forward pass again as it was run before: with the same dropout and the same noise.

What enters: the random generators' states before the first run. What leaves: a context for the second one, after which
the generators stand where they stood.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


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
