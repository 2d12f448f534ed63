"""A run's settings as one flat table, and what of it makes a point.

What enters: the content of `run.json`. What leaves: `{flag: value}`. Next: `points.py` groups runs with equal tables,
and `--baseline key=value` is looked up in them.
"""

from typing import Any

from train.objectives.reads import unread_settings

# Where a run lies, how it is watched, who runs it: two runs that differ in nothing else are of one point.
NOT_OF_A_POINT = frozenset(
    [
        "seed",
        "data_seed",
        "point",
        "output_dir",
        "overwrite_output_dir",
        "logging_dir",
        "run_name",
        "resume_from_checkpoint",
        "report_to",
        "project",
        "trackio_space_id",
        "hub_model_id",
        "hub_token",
        "hub_strategy",
        "hub_private_repo",
        "hub_always_push",
        "hub_revision",
        "push_to_hub",
        "push_to_hub_token",
        "disable_tqdm",
        "log_level",
        "log_level_replica",
        "local_rank",
        "ddp_port",
        "address",
        "logging_steps",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "save_only_model",
        "save_on_each_node",
        "logging_strategy",
        "logging_first_step",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "model_name_or_path",
    ]
)


def flat_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a run by the names of their flags; what its objective does not read is left out."""
    objective = content.get("objective", {})
    settings = {
        **content.get("model", {}),
        **content.get("training", {}),
        **content.get("run", {}),
        **objective,
        "grouper": content.get("data", {}).get("column", content.get("run", {}).get("grouper")),
    }
    unread = unread_settings(settings)
    return {name: value for name, value in settings.items() if name not in unread}


def point_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that make a point: without the seed, and without where the run lies."""
    return {name: value for name, value in flat_settings(content).items() if name not in NOT_OF_A_POINT}


def shown(value: Any) -> str:
    """Return a setting as it is written on a command line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(map(shown, value))
    return str(value)
