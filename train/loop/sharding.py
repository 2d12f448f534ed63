"""How processes share gradients: what FSDP2 rounds, where DDP keeps them and when it exchanges them.

What enters: an accelerator that was set up with DDP, or with FSDP2 and a half-precision dtype. What leaves: the same
with DDP's buckets in the gradients' place, or with a policy that rounds parameters while they compute and nothing that
the objective is made of: they are gathered and multiplied in that dtype, gradients add up over the ranks in float32,
and the root's outputs stay what they are, float32 log-probabilities.

accelerate's own policy takes one dtype for all three. Log-probabilities then arrive as bfloat16, which keeps 8 bits: a
loss of 5.65 is known to 0.016, and the groups whose means decide about the worst one differ by less. Gradients summed
in bfloat16 over eight ranks lose what is below 1/256 of the largest.
"""

from typing import Any

import torch

HALF = (torch.bfloat16, torch.float16)


def keep_sums_exact(accelerator: Any) -> None:
    """Replace accelerate's default policy of FSDP2; one that the user gave otherwise stays.

    A layer's outputs keep the dtype that it computed them in (`output_dtype` None, as each wrapped layer has the policy
    too): accelerate's autocast makes the root's float32.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or getattr(plugin, "fsdp_version", 1) != 2:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = plugin.mixed_precision_policy
    dtype = getattr(policy, "param_dtype", None)
    if dtype in HALF and (policy.reduce_dtype, policy.output_dtype) == (dtype, dtype):
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def share_buckets(accelerator: Any) -> None:
    """Let DDP's buckets be the gradients' own memory; each process would hold the gradients twice otherwise."""
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.gradient_as_bucket_view = True


def arm_gradient_exchange(model: Any, loss: torch.Tensor) -> None:
    """Make the coming backward pass exchange gradients although its forward pass ran without (DDP only).

    What DDP's own forward pass does at its end; accelerate's `trigger_sync_in_backward` does the same. FSDP reads its
    switch in the backward pass, where `no_sync` is over.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the wrapper
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model.reducer.prepare_for_backward([loss] if model.find_unused_parameters else [])
