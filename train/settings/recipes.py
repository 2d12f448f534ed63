"""The paper's recipes as presets: one YAML file each in `presets/`, with flags under their own names.

What enters: a preset's name. What leaves: its settings, which `arguments.py` lays under the configuration file and the
command line; or the table that `train presets` prints. Imports nothing heavy.
"""

import difflib
from pathlib import Path
from typing import Any

from common.errors import UserError

PRESETS = Path(__file__).with_name("presets")
HEADER = (
    "preset",
    "model",
    "objective",
    "grouper",
    "eta",
    "lambda",
    "epochs",
    "batch",
    "learning rate",
    "warm-up",
    "weight decay",
)


def preset_names() -> list[str]:
    """Return the presets' names: by data set and model, the baseline first."""
    names = [path.stem for path in PRESETS.glob("*.yaml")]
    return sorted(names, key=lambda name: (name.split("-")[:2], not name.endswith("baseline"), name))


def preset_text(name: str) -> str:
    """Return a preset's file, comments and all.

    Raises:
        UserError: there is no such preset.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{name}: no such preset.{hint} `train presets` lists them.")
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's settings, by flag.

    Raises:
        UserError: there is no such preset.
    """
    import yaml

    return yaml.safe_load(preset_text(name))


def preset_table() -> list[str]:
    """Return the lines of `train presets`."""
    rows = [HEADER, *(_row(name, read_preset(name)) for name in preset_names())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(name: str, preset: dict[str, Any]) -> tuple[str, ...]:
    largest, smallest = preset.get("lambda_max"), preset.get("lambda_min")
    decay = "–" if largest is None else f"{largest:g}" if largest == smallest else f"{largest:g} → {smallest:g}"
    return (
        name,
        preset["model"].rpartition("/")[2],
        preset["objective"],
        preset.get("grouper", "–"),
        f"{preset['eta']:.2f}" if "eta" in preset else "–",
        decay,
        str(preset["num_train_epochs"]),
        str(preset["global_batch_size"]),
        f"{preset['learning_rate']:.0e}".replace("e-0", "e-"),
        f"{preset['warmup_steps']:g}",
        f"{preset['weight_decay']:g}",
    )
