"""The flags that this project adds to TRL's: what to train on, and what to minimise.

What enters: nothing heavier than the standard library, so that `train run --help` answers at once. What leaves: two
dataclasses, the field names of which are the flags. Next: `config.py` joins them with TRL's own.
"""

from dataclasses import dataclass, field
from typing import Literal

from common.thresholds import Ties

WorstOver = Literal["batch", "sample"]
SelectOver = Literal["document", "batch"]
DEFAULT_ETA = 0.7  # the paper's value for half of its runs (appendix F)
DEFAULT_LAMBDA = 0.9  # the paper's value for every run with a lambda (appendix F)


@dataclass
class RunSettings:
    """What to train, on which shards."""

    preset: str | None = field(
        default=None,
        metadata={
            "help": "One of the paper's recipes, such as lima-3b-llmlingua2 (`train presets` lists them). Other flags "
            "and --config win over it."
        },
    )
    shards: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or more shard directories made by `annotate run`: paths, or URLs such as s3://bucket/shards. "
            "The flag may be repeated."
        },
    )
    grouper: str | None = field(
        default=None,
        metadata={
            "help": "The score column that splits tokens into groups. Not needed when the shards hold one column. "
            "With objective sft it only serves the curves."
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "A hub id, a checkpoint directory, or `tiny`: a 4-layer Llama with random weights over the "
            "shards' tokenizer, for trying things out."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Documents (with --packing: packed rows) of one optimizer step over all processes. "
            "--gradient_accumulation_steps follows from it, --per_device_train_batch_size and the number of processes."
        },
    )
    eval_fraction: float = field(
        default=0.0,
        metadata={
            "help": "The share of documents held out for evaluation, in [0, 1), chosen by --eval_seed. Evaluated after "
            "each epoch unless --eval_strategy says otherwise. At the end, eval_documents.parquet holds each held-out "
            "document's loss, by the groups of --eval_groupers."
        },
    )
    eval_seed: int = field(
        default=0,
        metadata={
            "help": "Chooses the held-out documents, where --seed does not: runs of several seeds are asked the same "
            "questions, and can be compared document by document."
        },
    )
    eval_groupers: list[str] | None = field(
        default=None,
        metadata={
            "help": "The score columns by whose groups each held-out document's loss is kept, whichever the run trains "
            "on. Default: every importance column of the shards. Needs --eval_fraction."
        },
    )
    eval_eta: float | None = field(
        default=None,
        metadata={
            "help": "The eta of the groups of --eval_groupers. Default: --eta. Runs of several etas are compared by "
            "groups only if all are given the same."
        },
    )
    permute_groups: bool = field(
        default=False,
        metadata={
            "help": "The control of a run with groups: each training document's groups are dealt out anew among its "
            "tokens, by --seed and the document's id, so that every document keeps its number of important tokens and "
            "chance says which. Groups of an excess loss select as many tokens, by chance. Held-out documents keep the "
            "grouper's groups."
        },
    )
    point: str | None = field(
        default=None,
        metadata={
            "help": "A name for the run's settings without the seed, kept in run.json: runs of one point are compared "
            "as its repetitions. `train sweep` sets it."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Read shards and settings, say what would be trained, in how many steps and how much memory, and "
            "train nothing."
        },
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "Train in this many processes, started by Ray: one a GPU where there are GPUs, else on CPUs. Not "
            "with torchrun or accelerate launch, which start processes themselves."
        },
    )
    address: str | None = field(
        default=None,
        metadata={"help": "The Ray cluster for --workers, such as auto. Default: this machine."},
    )


@dataclass
class ObjectiveSettings:
    """What is minimised. None means: not given, take the default."""

    objective: str = field(
        default="go",
        metadata={
            "help": "sft: mean loss over the supervised tokens. go: group optimization (paper eq. 3). "
            "rho1: mean loss over the tokens with the highest excess loss (paper section 3.3)."
        },
    )
    eta: float = field(
        default=DEFAULT_ETA,
        metadata={
            "help": "The share of a document's supervised tokens that is NOT important, in [0, 1): 0.9 means that the "
            "top tenth is important. Applied when the shards are loaded, so no second annotation is needed."
        },
    )
    lambda_max: float | None = field(
        default=None,
        metadata={
            "help": f"go: the weight of the worst group's loss at the first step, in [0, 1] (paper eq. 5). "
            f"Default {DEFAULT_LAMBDA}."
        },
    )
    lambda_min: float | None = field(
        default=None,
        metadata={
            "help": "go: the lower bound that lambda decays to, in [0, lambda_max]. Default: lambda_max, a constant."
        },
    )
    worst_over: WorstOver | None = field(
        default=None,
        metadata={
            "help": "go: take the worst group over all tokens of the optimizer step (batch), or document by document "
            "(sample). Default batch."
        },
    )
    ties: Ties | None = field(
        default=None,
        metadata={
            "help": "threshold: scores equal to the threshold are unimportant. rank: exactly ceil((1 - eta) n) tokens "
            "of each document are important. Default threshold."
        },
    )
    select_over: SelectOver | None = field(
        default=None,
        metadata={
            "help": "rho1 and dynamic groups: rank the excess loss within each document, or over the batch of one "
            "forward pass. Default document."
        },
    )
    dynamic_groups: bool = field(
        default=False,
        metadata={
            "help": "go: compute the groups anew at each step from the excess loss against a column of reference "
            "losses (the rho1 grouper's). rho1 always does."
        },
    )

    def problems(self, names: tuple[str, ...] = ("sft", "go", "rho1")) -> list[str]:
        """Return what is wrong with these settings, one sentence each; `names` are the objectives there are."""
        found: list[str] = []
        if self.objective not in names:
            found.append(f"--objective: expected one of {', '.join(names)}, found {self.objective!r}.")
            return found
        if not 0.0 <= self.eta < 1.0:
            found.append(
                f"--eta: expected the share of tokens that is NOT important, in [0, 1), for example 0.9 for the top "
                f"tenth; found {self.eta}."
            )
        for name, meaning in (("lambda_max", "lambda"), ("lambda_min", "lambda"), ("worst_over", "worst group")):
            if self.objective != "go" and getattr(self, name) is not None:
                found.append(f"--{name}: objective {self.objective} has no {meaning}; remove the flag.")
        if self.objective == "go":
            found += _check_lambda(self.resolved_lambda_max, self.lambda_min)
        if self.objective != "go" and self.dynamic_groups:
            always = "rho1 computes its groups anew at each step anyway" if self.objective == "rho1" else "sft has none"
            found.append(f"--dynamic_groups: only for objective go ({always}); remove the flag.")
        if self.ties == "threshold" and self.is_dynamic:
            found.append("--ties threshold: groups from the excess loss always use the rank rule; remove the flag.")
        if self.select_over is not None and not self.is_dynamic:
            found.append("--select_over: only for objective rho1 or with --dynamic_groups; remove the flag.")
        return found

    @property
    def is_dynamic(self) -> bool:
        """Whether the groups follow from each step's own losses."""
        return self.objective == "rho1" or (self.objective == "go" and self.dynamic_groups)

    @property
    def resolved_lambda_max(self) -> float:
        """`lambda_max` or its default."""
        return DEFAULT_LAMBDA if self.lambda_max is None else self.lambda_max

    @property
    def resolved_lambda_min(self) -> float:
        """`lambda_min` or its default."""
        return self.resolved_lambda_max if self.lambda_min is None else self.lambda_min

    @property
    def resolved_ties(self) -> Ties:
        """`ties` or its default."""
        return self.ties or "threshold"

    @property
    def resolved_worst_over(self) -> WorstOver:
        """`worst_over` or its default."""
        return self.worst_over or "batch"

    @property
    def resolved_select_over(self) -> SelectOver:
        """`select_over` or its default."""
        return self.select_over or "document"


def _check_lambda(largest: float, smallest: float | None) -> list[str]:
    found = []
    if not 0.0 <= largest <= 1.0:
        found.append(f"--lambda_max: expected a weight in [0, 1], found {largest}.")
    if smallest is None:
        return found
    if not 0.0 <= smallest <= 1.0:
        found.append(f"--lambda_min: expected a weight in [0, 1], found {smallest}.")
    elif smallest > largest:
        found.append(f"--lambda_min: expected at most --lambda_max ({largest}), found {smallest}. Lambda decays.")
    return found
