"""The settings of the service: environment variables with the prefix `SFT_GO_`, read when the app is created.

What enters: an environment. What leaves: checked `Settings`. `annotate serve` turns its flags into these variables, so
`uvicorn services.app:create_app --factory` is configured in the same way. Next: `services.catalog` loads what they
name.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from annotate.run.flags import flag_kind, registered_flags
from common.errors import UserError, raise_together
from services.connections import ConnectionLimits
from services.metrics import Metrics

PREFIX = "SFT_GO_"
OTHERS = {"SFT_GO_DATA_HOME", "SFT_GO_CACHE"}  # read by `annotate run`, and for what URLs name


def _setting(default: Any, check: Callable[[Any], bool] | None = None, expected: str = "", **options: Any) -> Any:
    """Return a field with a check; `expected` completes the sentence "expected …"."""
    return field(default=default, metadata={"check": check, "expected": expected}, **options)


def _positive(default: int) -> Any:
    return _setting(default, lambda value: value > 0, "a positive whole number")


def _seconds(default: float) -> Any:
    return _setting(default, lambda value: 0 < value < 1e6, "seconds above 0")


@dataclass(frozen=True)
class Settings:
    """What the service serves, and its limits. The variable of `max_inputs` is `SFT_GO_MAX_INPUTS`, and so on."""

    # What is served. Lists are separated by the system's path separator (":"), as PATH is.
    state: tuple[str, ...] = ()  # shard directories, each `DIR` or `name=DIR`
    groupers: tuple[str, ...] = ()  # only these; by default what the directories hold and the models named below
    tokenizer: str | None = None  # target tokenizer where there is no shard directory: a directory or a hub id
    template: str = "plain"  # for messages, where there is no shard directory
    max_length: int = _setting(4096, lambda value: value > 1, "at least 2 tokens")  # the same
    flags: Mapping[str, Any] = field(default_factory=dict)  # of groupers: `SFT_GO_REFERENCE_MODEL`, as registered
    # Who may use it. Not a flag: a command line can be read by everyone on the machine.
    api_key: str | None = _setting(None, lambda value: len(value) > 0, "a key that is not empty", repr=False)
    # Limits of a request; what is over them is answered with 413.
    max_body_bytes: int = _positive(4 * 2**20)
    max_inputs: int = _positive(128)
    max_input_characters: int = _positive(200_000)
    max_request_tokens: int = _positive(65_536)  # over all inputs, each cut at the maximum length
    # Batching, for each grouper's thread.
    max_queue: int = _positive(1024)  # inputs that wait; what is over it is answered with 429
    max_batch_tokens: int = _positive(8192)  # target tokens scored together; 1 turns batching off
    batch_window_ms: float = _setting(4.0, lambda value: 0 <= value < 10_000, "milliseconds in [0, 10000)")
    # Connections (`services.connections`).
    idle_timeout_s: float = _seconds(5.0)  # until a request begins
    read_timeout_s: float = _seconds(20.0)  # from a request's first byte to its last
    write_timeout_s: float = _seconds(60.0)  # for a client to take its answer
    max_connections: int = _positive(512)
    max_header_bytes: int = _positive(32_768)
    # A second port for `/metrics`, without the key; on the first port it is under the key.
    metrics_port: int | None = _setting(None, lambda value: 0 < value < 65_536, "a port in 1 to 65535")
    metrics_host: str = "127.0.0.1"
    allow_pickle: bool = False  # weights in PyTorch's own format, which is a program, beside safetensors
    drain_s: float = _setting(30.0, lambda value: value >= 0, "seconds, 0 or more")  # for requests taken before SIGTERM

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; variables that are empty count as not set.

        Raises:
            UserError: a value cannot be read or is out of range, or the settings contradict each other; lists them all.
        """
        environment = os.environ if environment is None else environment
        problems: list[str] = []
        own = [(item, item.type) for item in dataclasses.fields(cls) if item.name != "flags"]
        values = _read(environment, own, problems)
        flags = _read(environment, [(item, flag_kind(item)) for item, _ in registered_flags().values()], problems)
        raise_together(problems)
        settings = cls(**values, flags=flags)
        raise_together(settings.contradictions())
        return settings

    def contradictions(self) -> list[str]:
        """Say which settings cannot go together."""
        problems = []
        if not self.state and self.tokenizer is None:
            problems.append(
                "expected a shard directory (--state, SFT_GO_STATE) or a target tokenizer (--tokenizer, "
                "SFT_GO_TOKENIZER), found neither. A shard directory brings its tokenizer, its template and what its "
                "groupers fitted; make one with `annotate run`."
            )
        if self.state and self.tokenizer is not None:
            problems.append("--tokenizer goes without --state: a shard directory brings its own tokenizer. Drop one.")
        if self.flags.get("base_model") and not self.flags.get("reference_model"):
            problems.append("--base-model is read with --reference-model only. Add it, or drop --base-model.")
        if self.max_queue < self.max_inputs:
            problems.append(
                f"--max-queue {self.max_queue} is below --max-inputs {self.max_inputs}: a full request would never fit."
            )
        return problems

    def connection_limits(self, metrics: Metrics) -> ConnectionLimits:
        """Return what `services.connections` reads."""
        names = ("idle_timeout_s", "read_timeout_s", "write_timeout_s", "max_connections", "max_header_bytes")
        return ConnectionLimits(**{name: getattr(self, name) for name in names}, metrics=metrics)

    def unknown(self, environment: Mapping[str, str] | None = None) -> list[str]:
        """Return the variables with the prefix that nothing reads: probably misspelt."""
        environment = os.environ if environment is None else environment
        names = [item.name for item in dataclasses.fields(self) if item.name != "flags"]
        known = {PREFIX + name.upper() for name in (*names, *registered_flags())} | OTHERS
        return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _read(
    environment: Mapping[str, str], items: Iterable[tuple[dataclasses.Field[Any], Any]], problems: list[str]
) -> dict[str, Any]:
    """Return the values of the fields, each with its type, that have a variable; add what is wrong to `problems`."""
    values: dict[str, Any] = {}
    for item, kind in items:
        name = PREFIX + item.name.upper()
        text = environment.get(name, "")
        if not text.strip():
            continue
        try:
            values[item.name] = _parse(text, kind)
        except ValueError:
            problems.append(f"{name}={text}: expected {_KINDS.get(kind, 'a value')}.")
            continue
        check = item.metadata.get("check")
        if check is not None and not check(values[item.name]):
            shown = "…" if item.name == "api_key" else text
            problems.append(f"{name}={shown}: expected {item.metadata['expected']}.")
    return values


_KINDS: dict[Any, str] = {int: "a whole number", int | None: "a whole number", float: "a number", bool: "true or false"}


def _parse(text: str, kind: Any) -> Any:
    """Turn the text of a variable into the type of its field."""
    if kind in (int, int | None):
        return int(text)
    if kind is float:
        return float(text)
    if kind is bool:
        value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower())
        if value is None:
            raise ValueError(text)
        return value
    if kind == tuple[str, ...]:
        # The colon of s3:// separates nothing.
        return tuple(part for part in re.split(rf"{re.escape(os.pathsep)}(?!//)", text) if part)
    return text


def split_name(state: str) -> tuple[str | None, str]:
    """Split `name=DIR` of `--state` into the name (None when there is none) and the directory."""
    name, separator, directory = state.partition("=")
    if not separator or "/" in name or os.sep in name:
        return None, state
    if not name or not directory:
        raise UserError(f"--state {state}: expected DIR or name=DIR.")
    return name, directory
