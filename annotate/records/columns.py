"""Columns under other names: `--map prompt=question --map completion=answer`, `--text-column body`.

What enters: the flags, and records. What leaves: the same records with the names that the formats know. Next:
`annotate.records.conversations`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError
from common.hints import did_you_mean

FIELDS = (
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "response",
    "messages",
    "conversations",
    "system",
    "tools",
    "text",
)


def parse_mapping(flags: Iterable[str], text_column: str | None = None) -> dict[str, str]:
    """Return column names by field name.

    Raises:
        UserError: a flag is not `field=column`, names no field, or names one twice.
    """
    mapping: dict[str, str] = {}
    for flag in flags:
        name, separator, column = flag.partition("=")
        if not separator or not name or not column:
            raise UserError(f"--map {flag}: expected field=column, such as --map prompt=question.")
        if name not in FIELDS:
            raise UserError(
                f"--map {flag}: there is no field {name!r}.{did_you_mean(name, FIELDS)} "
                f"Expected one of {', '.join(FIELDS)}; the column's name stands after the equals sign."
            )
        if name in mapping:
            raise UserError(f"--map {flag}: {name} is already {mapping[name]}. Give each field once.")
        mapping[name] = column
    if text_column is not None:
        if mapping:
            raise UserError("--text-column goes without --map: a text is the whole record. Drop one.")
        mapping["text"] = text_column
    return mapping


def check_columns(mapping: Mapping[str, str], records: Iterable[Any], location: str) -> None:
    """Check that the first records have the mapped columns.

    Raises:
        UserError: none of them has one; names the nearest.
    """
    columns = sorted({str(name) for record in records if isinstance(record, Mapping) for name in record})
    for name, column in mapping.items():
        if column not in columns:
            flag = f"--map {name}={column}" if name != "text" else f"--text-column {column}"
            raise UserError(
                f"{flag}: {location} has no column {column!r}.{did_you_mean(column, columns)} "
                f"Found {', '.join(columns[:20]) or 'no columns'}."
            )


def rename(record: Any, mapping: Mapping[str, str]) -> Any:
    """Return the record under the formats' names: its mapped columns, and `system` or `tools` where it has them.

    Other columns are left out, so that a column nobody named cannot decide the format.
    """
    if not mapping or not isinstance(record, Mapping):
        return record
    kept = {name: record[name] for name in ("system", "tools") if name in record and name not in mapping}
    return {**kept, **{name: record.get(column) for name, column in mapping.items()}}
