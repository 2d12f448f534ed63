"""Check that .ci/constraints.txt holds every dependency of pyproject.toml, in a version that its bounds allow."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LEFT_OUT = {"torch", "sft-go"}  # see .ci/lock


def main() -> int:
    """Print what is missing; return 1 if anything is."""
    here = Path(__file__).parent
    project = tomllib.loads((here.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]
    lines = (here / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    locked = {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}
    problems = []
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if name not in locked or locked[name] not in requirement.specifier:
            problems.append(f"{requirement}: locked is {locked.get(name, 'nothing')}. Run .ci/lock.")
    print(*problems, sep="\n", end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
