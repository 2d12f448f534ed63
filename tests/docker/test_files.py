"""The cluster's files hold only fields that the published schemas have, fit the commands, and share no disk.

`fields.json` holds the names of the published schemas at every level that the files use. That the image builds and runs
is checked by hand (README); no registry, Docker or Kubernetes is needed here.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from annotate.cli import app

ROOT = Path(__file__).resolve().parents[2]
FIELDS = json.loads((Path(__file__).parent / "fields.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "docker" / "rayjob.yaml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def test_the_ray_job_fits_the_published_fields():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(RAYJOB, FIELDS["rayjob"])
    RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["replicas"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replicas"):
        jsonschema.validate(RAYJOB, FIELDS["rayjob"])
    del RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["replicas"]


def test_compose_fits_the_published_fields():
    known = FIELDS["compose"]
    assert {name for name in COMPOSE if not name.startswith("x-")} <= set(known["top"])
    for name, service in COMPOSE["services"].items():
        assert set(service) <= set(known["service"]), name
        for part in ("build", "healthcheck", "deploy"):
            assert set(service.get(part, {})) <= set(known[part]), (name, part)
        needs = service.get("depends_on", [])
        assert set(needs) <= set(COMPOSE["services"]), name
        for need in needs.values() if isinstance(needs, dict) else ():
            assert need["condition"] in known["depends_on"]


def test_the_nodes_share_only_the_store():
    assert "volumes" not in COMPOSE
    assert not any("volumes" in service for service in COMPOSE["services"].values())
    assert COMPOSE["services"]["worker"]["deploy"]["replicas"] == 2
    for name in ("head", "worker", "serve"):
        assert "AWS_ENDPOINT_URL" in COMPOSE["services"][name]["environment"]
    assert "volumes" not in json.dumps(RAYJOB)


def stages() -> list[str]:
    return re.findall(r"^FROM .* AS ([\w-]+)$", DOCKERFILE, re.MULTILINE)


def test_images_are_built_from_stages_that_are_there():
    assert stages()[-1] == "sft-go", "the last stage is what a build without --target gives"
    built = {service["image"] for service in COMPOSE["services"].values() if "build" in service}
    for service in COMPOSE["services"].values():
        assert service["image"] in built
        assert service.get("build", {}).get("target", "sft-go") in stages()
        dockerfile = service.get("build", {}).get("dockerfile", "docker/Dockerfile")
        assert (ROOT / dockerfile).is_file()
    assert "ARG BASE=python:3.11-slim" in DOCKERFILE.splitlines()
    for folder in re.findall(r"^COPY (\w+) \w+$", DOCKERFILE, re.MULTILINE):
        assert (ROOT / folder).is_dir()


def annotate_commands() -> list[list[str]]:
    lines = [COMPOSE["services"]["serve"]["command"], RAYJOB["spec"]["entrypoint"]]
    comments = (ROOT / "docker" / "compose.yaml").read_text().splitlines()
    lines += [line.partition("exec head ")[2] for line in comments if "exec head annotate" in line]
    assert len(lines) == 3
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("words", annotate_commands(), ids=" ".join)
def test_the_commands_have_the_flags_that_they_are_given(words):
    program, name, *rest = words
    group = get_command(app)
    assert program == "annotate"
    flags = {flag for parameter in group.commands[name].params for flag in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= flags
