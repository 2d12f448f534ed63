"""Counting what would make the host wait for a device, on a machine that has none.

What enters: a trainer. What leaves: how often each kind of wait happened in its steps, between log lines. A collator's
tensors are taken to lie on the host, everything else on a device. Two hooks see it all: `TorchDispatchMode` the
operations whose result's value or size the host must know, backward passes included; `TorchFunctionMode` the calls that
on a CPU are no operation, such as `tolist`.
"""

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

# Their result's value, or its size, follows from values: the device must have got there.
SCALARS = {"_local_scalar_dense", "equal", "is_nonzero"}
SIZES = {"nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique2", "bincount", "histc"}
READS = {"tolist", "numpy", "cpu", "__array__"}  # of `torch.Tensor`
MADE = {torch.tensor, torch.as_tensor}  # with a device: a copy from pageable memory, and the host waits for it


class Waits:
    """How often a host would have waited, by kind."""

    def __init__(self):
        """Count nothing yet."""
        self.kinds: collections.Counter[str] = collections.Counter()
        self.is_counting = False

    def note(self, kind: str) -> None:
        """Count one."""
        if self.is_counting:
            self.kinds[kind] += 1

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Count nothing: the host works on its own tensors."""
        before, self.is_counting = self.is_counting, False
        try:
            yield
        finally:
            self.is_counting = before

    def collated(self, collate: Any) -> Any:
        """Return a collator whose work is the host's, and whose tensors lie there."""

        def wrapped(examples: Any) -> Any:
            with self.resting():
                batch = collate(examples)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.lies_on_host = True  # operations do not carry it over
            return batch

        return wrapped

    def moved(self, tensor: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        """Return what `to` would give: of a host's tensor another one, after a wait unless none was asked for."""
        if not getattr(tensor, "lies_on_host", False):
            return tensor
        if not non_blocking:
            self.note("copy to the device")
        return tensor.clone()


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in SCALARS | SIZES:
            self.waits.note(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.waits.note(f"{name} by a mask")
        elif name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.waits.note(name)  # the one by a number is no operation of its own: it expands and copies
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in MADE and kwargs.get("device") is not None and not isinstance(args[0], torch.Tensor):
            self.waits.note(f"torch.{name} with a device")
        elif name in READS and isinstance(args[0], torch.Tensor):
            self.waits.note(name)
        out = func(*args, **kwargs)
        to_device = [*args[1:2], kwargs.get("device")]
        if name == "to" and any(isinstance(value, (str, int, torch.device)) for value in to_device):
            return self.waits.moved(out, kwargs.get("non_blocking", False))
        return out


class _BetweenSteps(TrainerCallback):
    """Count from the end of step `first` to the end of the last step: what is logged after it is not counted."""

    def __init__(self, waits: Waits, first: int):
        self.waits, self.first = waits, first

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.waits.is_counting = self.first <= state.global_step < state.max_steps


@contextlib.contextmanager
def watched(waits: Waits) -> Iterator[None]:
    """Let `waits` see what runs; it counts where `is_counting`."""
    with _Operations(waits), _Calls(waits):
        yield


def waits_of(trainer: Any, warm_up: int = 1) -> collections.Counter:
    """Train, and return the waits of all steps after the first `warm_up`, by kind; it must not log in between."""
    waits = Waits()
    trainer.data_collator = waits.collated(trainer.data_collator)
    trainer.add_callback(_BetweenSteps(waits, warm_up))
    with watched(waits):
        trainer.train()
    return waits.kinds
