"""One rank of a distributed test run: many short trainings in one process group, since starting one takes seconds.

    python -m torch.distributed.run --nproc-per-node 2 --standalone -m tests.train.ranks job.json

What enters: a JSON file with the runs, settings by name. What leaves, from rank 0: one file a run with the parameters,
the log history and the counters, and from every rank what it was fed.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

RANKS = 2
TIMEOUT_S = 240  # below pytest's own
# What FSDP2 calls, by torch's names before and since 2.13.
COLLECTIVES = {
    "reduced": ("reduce_scatter_tensor", "reduce_scatter_single"),
    "gathered": ("all_gather_into_tensor", "all_gather_single"),
}


def launch(
    folder: Path,
    runs: dict[str, dict[str, Any]],
    fsdp: bool = False,
    num_ranks: int = RANKS,
    modules: Sequence[str] = (),
) -> None:
    """Run this module on `num_ranks` CPU processes and wait; the results are for `load`.

    Beside `make_trainer`'s, a run may have the settings `model` (of `small_model`), `guess` (a worst group that every
    micro-batch is run under), `resume_at` (a step to stop at and go on from) and `evaluate`.
    """
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"runs": runs, "fsdp": fsdp, "modules": list(modules)}, default=str))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks), "--standalone"]
    process = subprocess.Popen(
        [*command, "-m", "tests.train.ranks", str(folder / "job.json")],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks, which killing it would leave behind
        _, stderr = process.communicate()
        stderr += f"\nthe ranks waited for each other for {TIMEOUT_S} s"
    assert process.returncode == 0, stderr[-6000:]


def load(folder: Path, name: str) -> dict[str, Any]:
    """Return what rank 0 left of a run."""
    return torch.load(folder / f"{name}.pt", weights_only=False)


def fed_documents(batches: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    """Return the supervised token ids of each document of a step, without its padding, in any order."""
    documents = []
    for batch in batches:
        labels = batch["labels"].clone()
        labels[:, 0] = -100
        for document in range(batch["num_documents"]):
            tokens = labels[(batch["document"] == document) & (labels != -100)].tolist()
            documents += [tuple(tokens)] if tokens else []
    return sorted(documents)


def main(job_file: str) -> None:
    """Run every run of the job."""
    job = json.loads(Path(job_file).read_text())
    for name in job["modules"]:
        importlib.import_module(name).register()
    if job["fsdp"]:
        _let_accelerate_shard_on_cpu()
    import torch.distributed as dist

    from tests.train.conftest import build_tokenizer
    from train.loop.step import Step

    tokenizer = build_tokenizer()
    folder = Path(job_file).parent
    guess = Step.guess
    for name, settings in job["runs"].items():
        forced = settings.pop("guess", None)
        Step.guess = guess if forced is None else lambda self, forced=forced: torch.tensor(forced)
        result = _run(folder / name, tokenizer, **settings)
        if dist.get_rank() == 0:
            torch.save(result, folder / f"{name}.pt")
        dist.barrier()


def _run(folder: Path, tokenizer: Any, resume_at: int = 0, evaluate: bool = False, **settings: Any) -> dict[str, Any]:
    import torch.distributed as dist

    from tests.train.runs import make_trainer, small_model
    from train.data.collate import COUNTS
    from train.data.counts import Counts

    model_settings = settings.pop("model", {})
    output = folder / ("shared" if resume_at else os.environ["RANK"])

    def trainer_of(**changes: Any) -> Any:
        return make_trainer(
            output=output,
            tokenizer=tokenizer,
            model=small_model(tokenizer, **model_settings),
            **{**settings, **changes},
        )

    if resume_at:

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == resume_at

        first = trainer_of(save_strategy="steps", save_steps=resume_at)
        first.add_callback(Stop())
        first.train()
    trainer = trainer_of()
    fed, counts = [], []
    fetch = trainer.get_batch_samples

    def recorded(*arguments):
        fetched = fetch(*arguments)
        fed.append(fed_documents(fetched[0]))
        counts.append([Counts(*batch[COUNTS]) for batch in fetched[0]])
        return fetched

    trainer.get_batch_samples = recorded
    dtypes: dict[str, set[str]] = {}
    tokens = trainer._observed

    def tokens_of(outputs, *arguments):
        dtypes.setdefault("log_probs", set()).add(str(outputs.log_probs.dtype))
        return tokens(outputs, *arguments)

    trainer._observed = tokens_of
    collectives = {name: getattr(dist, name) for names in COLLECTIVES.values() for name in names if hasattr(dist, name)}
    for kind, names in COLLECTIVES.items():
        for name in set(names) & set(collectives):
            setattr(dist, name, _noted(collectives[name], dtypes.setdefault(kind, set())))
    try:
        trainer.train(resume_from_checkpoint=str(output / f"checkpoint-{resume_at}") if resume_at else None)
    finally:
        for name, function in collectives.items():
            setattr(dist, name, function)
    evaluation = trainer.evaluate() if evaluate else None
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (fed, counts))
    return {
        "parameters": {key: _whole(value) for key, value in trainer.model.state_dict().items()},
        "history": trainer.state.log_history,
        "evaluation": evaluation,
        "redone": trainer.redone.num_redone_steps,
        "fed": [rank[0] for rank in everywhere],
        "counts": [rank[1] for rank in everywhere],
        "dtypes": {name: sorted(seen) for name, seen in dtypes.items()},
        "wrapped": type(trainer.model_wrapped).__name__,
    }


def _noted(function: Any, seen: set[str]) -> Any:
    """Return a collective that notes the dtypes of the tensors it is given."""

    def noted(*arguments: Any, **keywords: Any) -> Any:
        tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
        seen.update(str(tensor.dtype) for tensor in tensors if tensor.dtype.is_floating_point)
        return function(*arguments, **keywords)

    return noted


def _whole(value: torch.Tensor) -> torch.Tensor:
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _let_accelerate_shard_on_cpu() -> None:
    """Lift accelerate's rule that FSDP needs an accelerator; torch's FSDP2 itself runs on CPU over gloo."""
    from accelerate import state
    from accelerate.utils import DistributedType

    initialise = state.AcceleratorState.__init__

    def patched(self, *arguments, fsdp_plugin=None, **keywords):
        initialise(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":  # as it does where there is an accelerator
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    state.AcceleratorState.__init__ = patched


if __name__ == "__main__":
    main(sys.argv[1])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    os._exit(0)  # at the interpreter's end gloo's threads have been seen to abort a rank whose work was done
