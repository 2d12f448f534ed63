"""What one `--data` names: a place or a dataset of the hub, and how much of it.

What enters: the text after the flag. What leaves: a `Selection`. Next: `annotate.records.sources` finds it.

    data/a.json            a file, a directory, a pattern such as 'data/*.jsonl', a URL, or - for standard input
    owner/name:config[validation]    a dataset of the hub, with its configuration and split (default: train)
    data/a.json@0.3        three tenths of the records; @2.5: all of them twice, and every second one once more
"""

import re
from dataclasses import dataclass

from common.errors import UserError

HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[\w.-]+))?(\[(?P<split>[^\[\]]+)\])?")
SHARE = re.compile(r"(?P<rest>.+)@(?P<share>\d+(\.\d*)?|\.\d+)")
MOST = 100  # times that a source may be repeated


@dataclass(frozen=True)
class Selection:
    """A part of the source."""

    name: str
    share: float = 1.0

    @property
    def shares(self) -> list[float]:
        """The share of each pass over it: [1.0, 1.0, 0.5] for 2.5."""
        whole, rest = int(self.share), round(self.share % 1, 9)
        return [1.0] * whole + ([rest] if rest else [])


def parse_selection(text: str) -> Selection:
    """Read the text after `--data`.

    Raises:
        UserError: the weight is zero or absurd.
    """
    match = SHARE.fullmatch(text)
    if match is None or ("://" in text and "/" not in match["rest"].partition("://")[2]):
        return Selection(text)
    share = float(match["share"])
    if not 0 < share <= MOST:
        raise UserError(f"--data {text}: expected a weight above 0 and of at most {MOST}, found {match['share']}.")
    return Selection(match["rest"], share)


def parse_hub(name: str) -> dict[str, str] | None:
    """Return the arguments of `datasets.load_dataset` for a name that can be the hub's; None for any other."""
    match = HUB.fullmatch(name)
    if match is None:
        return None
    arguments = {"path": match["name"]}
    if match["config"]:
        arguments["name"] = match["config"]
    if match["split"]:
        arguments["split"] = match["split"]
    return arguments
