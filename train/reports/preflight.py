"""What is about to be trained on, said before the first step.

What enters: the data report and the settings. What leaves: plain lines.
"""

from collections.abc import Sequence

from train.data.loading import DataReport
from train.data.plan import GroupPlan
from train.objectives.base import Objective
from train.settings.config import GOConfig


def preflight_lines(
    report: DataReport,
    plan: GroupPlan,
    args: GOConfig,
    objective: Objective,
    num_ranks: int,
    notes: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Return the preflight report, a line each; `notes` are rows about the device and the model."""
    rows = [("documents", _documents(report)), ("supervised tokens", f"{report.supervised_tokens:,}")]
    if plan.column is None:
        rows.append(("groups", "none: the shards do not say which column, so only loss and loss_all are logged"))
    else:
        rows += _groups(report, plan, objective)
    rows.append(("truncated", f"{report.truncated:,} documents by the annotation, {report.truncated_here:,} here"))
    rows += _objective(args, objective, num_ranks)
    rows += notes
    width = max(len(name) for name, _ in rows)
    return ["before the first step", *(f"  {name:<{width}}  {value}" for name, value in rows)]


def _documents(report: DataReport) -> str:
    text = f"{report.documents:,}"
    if report.held_out:
        text += f", and {report.held_out:,} held out"
    if report.dropped:
        text += f"; {report.dropped:,} left out for want of a supervised token"
    return text


def _groups(report: DataReport, plan: GroupPlan, objective: Objective) -> list[tuple[str, str]]:
    share = (report.important_tokens or 0) / max(report.supervised_tokens, 1)
    low, first, median, third, high = report.share_quartiles or [0.0] * 5
    where = f"column {plan.column}" + (f" less {plan.less}" if plan.less else "")
    how = f"{where}, eta {plan.eta:g}"
    if plan.dynamic:
        how += f", excess loss at each step, rank rule per {objective.select_over}"
    elif plan.quantiles is not None:
        how = f"{where}, {plan.num_groups} of them, cut at {', '.join(f'{q:g}' for q in plan.quantiles)}"
    elif plan.softness is not None:
        how += f", soft over {plan.softness:g} standard deviations"
    elif plan.over == "dataset":
        how += " over the whole data set"
    elif plan.ties == "rank":
        how += ", rank rule"
    if plan.permute_seed is not None:
        how += "; permuted within each document: the control"
    if objective.needs.kind is None:
        how += f"; for the curves only, the objective is {objective.name}"
    return [
        ("groups", how),
        ("important share", f"{share:.1%} of the supervised tokens"),
        *(
            [("  groups' tokens", ", ".join(f"{n:,}" for n in report.group_tokens or []))]
            if plan.num_groups > 2
            else []
        ),
        ("  over documents", f"min {low:.1%}, quartiles {first:.1%} / {median:.1%} / {third:.1%}, max {high:.1%}"),
        (
            "  empty groups",
            f"{report.empty_important:,} documents without important tokens, "
            f"{report.empty_unimportant:,} without unimportant ones",
        ),
    ]


def _objective(args: GOConfig, objective: Objective, num_ranks: int) -> list[tuple[str, str]]:
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_ranks
    step = (
        f"{args.per_device_train_batch_size} × {args.gradient_accumulation_steps} accumulated × {num_ranks} processes"
    )
    rows = [("step", f"{step} = {sequences} {'packed rows' if args.packing else 'documents'}")]
    return [*rows, *objective.describe()]
