"""Which device a process trains on: one, whatever it can see.

What enters: the training arguments. What leaves: the same arguments for one device, and a line that says how to use the
others.

Without a launcher, transformers wraps a model in `nn.DataParallel` where several GPUs are visible, and TRL loads it
with `device_map="auto"`, which lays its layers over all of them: losses then end on another device than their groups.
Both leave most of each GPU idle. One process a GPU uses them all.
"""

from typing import Any

from accelerate.utils import DistributedType

from common.errors import UserError
from train.settings.arguments import world_size


def one_device(args: Any) -> str | None:
    """Make this process use its first device alone; return what to say, or None where it sees one at most."""
    seen = args.n_gpu  # transformers counts them once, before anything is placed
    if args.world_size > 1 or seen <= 1:
        return None
    args._n_gpu = 1
    return (
        f"{args.device} of {seen} GPUs; one process a GPU uses them all: --workers {seen}, or `torchrun "
        f"--nproc-per-node {seen} -m train.cli run …` (--global_batch_size keeps the step what it is)"
    )


def device_map(args: Any, asked: Any, is_quantized: bool) -> Any:
    """Return the `device_map` that a model is loaded with: none, so that the trainer places it.

    Quantized weights are made on the device where they stay, this process's own.

    Raises:
        UserError: the user asks for one that spreads the model, or leaves part of it elsewhere.
    """
    if asked is not None:
        raise UserError(
            f"--model_init_kwargs device_map {asked!r}: lays one model over several devices, where groups and losses "
            "would no longer be on the same one. Remove it; --workers or torchrun with --fsdp true share a model that "
            "one GPU cannot hold."
        )
    if not is_quantized or args.device.type == "cpu":
        return None
    return {"": args.device.index or 0}


def check_processes(args: Any, accelerator: Any) -> None:
    """Refuse processes that would train apart from each other, and a model that would stay whole.

    Raises:
        UserError: accelerate did not join the processes, or does not shard.
    """
    if accelerator.num_processes < world_size():
        raise UserError(
            f"{world_size()} processes were started, but accelerate joined {accelerator.num_processes}: each would "
            "train alone. Start them with torchrun, accelerate launch or --workers; on CPUs add --use_cpu true."
        )
    if args.fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise UserError(
            "--fsdp: accelerate shards only over several processes with an accelerator each, and would leave the "
            "model whole here; remove the flag."
        )
