"""Where a run goes, and what it goes on from.

What enters: the configuration. What leaves: the output directory and the checkpoint in it, or what stands in the way;
and what is said of both before the first step. Next: `resume.py` takes the checkpoint up.
"""

from pathlib import Path
from typing import Any

from common.errors import UserError
from train.loop.resume import checkpoints, find_checkpoint, find_fault, open_checkpoint
from train.reports.files import RUN_NAME
from train.settings.arguments import world_size
from train.settings.config import Configuration


def choose_directory(configuration: Configuration, column: str | None, shards_name: str) -> tuple[Path, Path | None]:
    """Return where the run goes (what the user said, or the first free name under runs/), and what it goes on from.

    Raises:
        UserError: the directory holds another run, or none to go on from.
    """
    args, resume = configuration.args, configuration.args.resume_from_checkpoint
    if isinstance(resume, str):
        open_checkpoint(Path(resume))
    if "output_dir" in configuration.given or isinstance(resume, str):
        output = Path(args.output_dir if "output_dir" in configuration.given else Path(resume).absolute().parent)
        newest = find_checkpoint(output) if resume is True else Path(resume) if resume else None
        if (output / RUN_NAME).exists() and newest is None:
            raise UserError(
                f"--output_dir {output}: holds a finished run already ({RUN_NAME})"
                f"{', without a checkpoint to go on from' if resume else ''}. Choose another directory, or remove this "
                "one."
            )
        if not resume and (held := checkpoints(output)):
            raise UserError(
                f"--output_dir {output}: holds an unfinished run ({held[-1].name}). Go on with it by "
                "--resume_from_checkpoint true, choose another directory, or remove this one."
            )
        return output, newest
    if resume:
        raise UserError(
            "--resume_from_checkpoint: add the --output_dir of the run, or give the checkpoint's directory."
        )
    if world_size() > 1:
        raise UserError("--output_dir: several processes need to agree on it, so it has no default here; give one.")
    needs_column = configuration.objective.needs.kind is not None
    name = "-".join([args.objective, *([str(column)] if needs_column else []), shards_name])
    number = 1
    while (output := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return output, None


def beginning_lines(configuration: Configuration, checkpoint: Path | None) -> list[str]:
    """Return what is said of the preset and of the checkpoint before the first step."""
    run, args, over = configuration.run, configuration.args, configuration.over_preset
    lines = []
    if run.preset:
        changed = ", ".join(f"{name} {value}" for name in over if (value := _shown(configuration, name)) is not None)
        lines.append(f"  preset {run.preset}" + (f", with other settings: {changed}" if changed else ""))
    if checkpoint is not None:
        lines.append(f"  going on from {checkpoint}")
    elif args.resume_from_checkpoint:
        lines.append(f"  no whole checkpoint in {args.output_dir} yet, so from the first step")
    if args.resume_from_checkpoint is True:
        held = checkpoints(Path(args.output_dir))
        later = held[held.index(checkpoint) + 1 :] if checkpoint in held else held
        lines += [f"  passed over {path}: {fault}" for path in later if (fault := find_fault(path))]
    return lines


def _shown(configuration: Configuration, name: str) -> Any:
    holders = (configuration.run, configuration.args, configuration.model)
    value = next((getattr(holder, name) for holder in holders if hasattr(holder, name)), None)
    return getattr(value, "value", "its default" if value is None else value)
