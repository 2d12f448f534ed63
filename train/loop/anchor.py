"""How far the model has moved from the base model that it began as: KL(base || model) at each predicted token.

What enters: a model before its first step; then, at each forward pass, the pass's own hidden states. What leaves: nats
a token, differentiable, for an objective that asks for `divergence`. Full logits never exist: both models' are made for
a few tokens at a time, and made again in the backward pass.

The base model is the model with its adapters off where it has any, else a frozen copy, which takes as much memory as
the weights again and, as with adapters, one more forward pass a step.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.errors import UserError

LOGITS_PER_CHUNK = 2**24  # of one model, float32: 64 MiB


class Anchor:
    """The base model, and the divergence from it."""

    def __init__(self, model: Any, accelerator: Any):
        """Remember what `model` is now.

        Raises:
            UserError: the weights are sharded over processes, where a copy would have to be too.
        """
        if accelerator.distributed_type not in (
            DistributedType.NO,
            DistributedType.MULTI_GPU,
            DistributedType.MULTI_CPU,
        ):
            raise UserError(
                f"--objective: an anchor to the base model is not possible with {accelerator.distributed_type.value}, "
                "since the base model's copy would have to be sharded too. Use DDP, or another objective."
            )
        head = _causal(model).get_output_embeddings()
        if hasattr(head, "modules_to_save"):
            raise UserError(
                "--lora_modules_to_save lm_head: an objective with an anchor to the base model needs one LM head for "
                "both; remove lm_head."
            )
        self.model = model
        self.has_adapter = hasattr(model, "disable_adapter")
        self.base = model if self.has_adapter else _frozen(model)
        self.hidden: Tensor | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the hidden states of the forward passes inside: those that the LM head gets."""
        with _recorded(_causal(self.model)) as seen:
            yield
        self.hidden = seen[-1]

    def divergence(self, inputs: dict[str, Any], mask: Tensor) -> Tensor:
        """Return KL(base || model), float32 [R, C - 1], nats, of the predictions where `mask`, alike; 0 elsewhere.

        With p_0 the base model's and p the model's next-token distribution: sum over the vocabulary of
        p_0 (log p_0 - log p). Belongs to the last recorded forward pass, on the same `inputs`.
        """
        assert self.hidden is not None
        hidden, self.hidden = self.hidden[:, :-1][mask], None
        before = self._base_hidden(inputs)[:, :-1][mask]
        rows = max(1, LOGITS_PER_CHUNK // _causal(self.model).get_output_embeddings().weight.shape[0])
        parts = [
            checkpoint(self._chunk, hidden[start : start + rows], before[start : start + rows], use_reentrant=False)
            for start in range(0, len(hidden), rows)
        ]
        values = torch.cat(parts) if parts else hidden.float().sum(dim=-1)
        return torch.zeros(mask.shape, dtype=torch.float32, device=values.device).masked_scatter(mask, values)

    def _chunk(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Return float32 [tokens] from both models' hidden states [tokens, hidden size]."""
        own = _logits(_causal(self.model), hidden).log_softmax(dim=-1)
        with torch.no_grad():
            base = _logits(_causal(self.base), before).log_softmax(dim=-1)
        return (base.exp() * (base - own)).sum(dim=-1)

    def _base_hidden(self, inputs: dict[str, Any]) -> Tensor:
        was_training = self.base.training
        self.base.eval()
        try:
            with torch.no_grad(), self._as_base(), _recorded(_causal(self.base)) as seen:
                given = {name: value for name, value in inputs.items() if name not in ("labels", "fused_lm_head")}
                _causal(self.base).base_model(**{**given, "use_cache": False})
            return seen[-1]
        finally:
            self.base.train(was_training)

    def _as_base(self) -> Any:
        return self.model.disable_adapter() if self.has_adapter else contextlib.nullcontext()


def _frozen(model: Any) -> Any:
    """Return a copy of a model that is never trained."""
    forward = model.__dict__.pop("forward", None)  # the fused head's, bound to the original
    try:
        base = copy.deepcopy(model)
    finally:
        if forward is not None:
            model.forward = forward
    return base.requires_grad_(False).eval()


def _causal(model: Any) -> Any:
    """Return the causal language model within an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def _recorded(model: Any) -> Iterator[list[Tensor]]:
    """Yield a list that gets the last hidden states [R, C, hidden size] of every pass through the backbone."""
    seen: list[Tensor] = []

    def keep(module: Any, arguments: Any, outputs: Any) -> None:
        seen.append(outputs.last_hidden_state if hasattr(outputs, "last_hidden_state") else outputs[0])

    handle = model.base_model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _logits(model: Any, hidden: Tensor) -> Tensor:
    """Return float32 logits [tokens, vocabulary] of hidden states: a linear head, a scale and a soft cap."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden).float() * _scale(config)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _scale(config: Any) -> float:
    """Return what the head's output is multiplied by, as in TRL's fused head."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)
