"""The flags that this project adds to TRL's: what to train on, and what to minimise.

What enters: nothing heavier than the standard library, so that `train run --help` answers at once. What leaves: two
dataclasses, the field names of which are the flags. Next: `config.py` joins them with TRL's own and the objectives'.
"""

from dataclasses import dataclass, field

from common.thresholds import Ties

DEFAULT_ETA = 0.7  # the paper's value for half of its runs (appendix F)


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
            "With an objective that needs no groups it only serves the curves."
        },
    )
    documents: str | None = field(
        default=None,
        metadata={
            "help": "Train only on the documents whose ids this file lists, one a line, such as `annotate select` "
            "writes. Held-out documents stay what they are."
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
    token_losses: int | None = field(
        default=None,
        metadata={
            "help": "Keep what each token of the first N held-out documents costs, before the first step and after the "
            "last, in token_losses.parquet: `train inspect` shows it. Needs --eval_fraction. Default: none."
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

    def problems(self) -> list[str]:
        """Return what is wrong with these settings, one sentence each, naming the flag."""
        found = []
        if not self.shards:
            found.append("--shards: expected one or more directories made by `annotate run`, found none.")
        if not 0.0 <= self.eval_fraction < 1.0:
            found.append(f"--eval_fraction: expected a share in [0, 1), found {self.eval_fraction}.")
        if self.eval_seed < 0:
            found.append(f"--eval_seed: expected a whole number of at least 0, found {self.eval_seed}.")
        if self.eval_eta is not None and not 0.0 <= self.eval_eta < 1.0:
            found.append(f"--eval_eta: expected a share in [0, 1), as --eta, found {self.eval_eta}.")
        if self.token_losses is not None and self.token_losses < 1:
            found.append(f"--token_losses: expected a number of documents of at least 1, found {self.token_losses}.")
        return found


@dataclass
class GroupingSettings:
    """What is minimised, and how scores become groups; an objective's own flags stand beside it."""

    objective: str | None = field(default=None, metadata={"help": "What is minimised, by name; see the list below."})
    eta: float = field(
        default=DEFAULT_ETA,
        metadata={
            "help": "The share of a document's supervised tokens that is NOT important, in [0, 1): 0.9 means that the "
            "top tenth is important. Applied when the shards are loaded, so no second annotation is needed."
        },
    )
    ties: Ties | None = field(
        default=None,
        metadata={
            "help": "threshold: scores equal to the threshold are unimportant. rank: exactly ceil((1 - eta) n) tokens "
            "of each document are important. Default threshold."
        },
    )

    @property
    def resolved_ties(self) -> Ties:
        """`ties` or its default."""
        return self.ties or "threshold"

    def problems(self) -> list[str]:
        """Return what is wrong with these settings, one sentence each, naming the flag."""
        if 0.0 <= self.eta < 1.0:
            return []
        return [
            f"--eta: expected the share of tokens that is NOT important, in [0, 1), for example 0.9 for the top "
            f"tenth; found {self.eta}."
        ]
