"""What the shell offers on `train`'s command line, asked as typer's script asks, and by bash itself."""

import dataclasses
import os
import subprocess
import sys

import pytest

from train.cli import COMMANDS, main
from train.completion import completions
from train.objectives import OBJECTIVES
from train.settings.flags import GroupingSettings, RunSettings
from train.settings.recipes import preset_names


def offered(typed, monkeypatch, capsys):
    """Return what bash is told that may stand at the end of the typed line."""
    words = typed.split()
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - (not typed.endswith(" "))))
    monkeypatch.setenv("_TRAIN_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("train ", [*COMMANDS]),
        ("train sw", ["sweep"]),
        ("train run --lambda_m", ["--lambda_max", "--lambda_min"]),
        ("train run --max_st", ["--max_steps"]),  # TRL's
        ("train run --objective ", [*OBJECTIVES]),
        ("train run --worst_over ", ["batch", "sample"]),
        ("train run --preset lima-3b-", [name for name in preset_names() if name.startswith("lima-3b-")]),
        ("train presets show lima-8b-t", ["lima-8b-tfidf"]),
        ("train sweep --runs", ["--runs_at_once"]),
        ("train compare --h", ["--help", "--html"]),
        ("train sweep mine.ya", []),  # bash completes files
    ],
)
def test_what_may_come_next(typed, expected, monkeypatch, capsys):
    assert offered(typed, monkeypatch, capsys) == expected


def test_every_flag_of_this_project_is_offered():
    own = (RunSettings, GroupingSettings, *(kind.Settings for kind in OBJECTIVES.values()))
    wanted = {f"--{field.name}" for settings in own for field in dataclasses.fields(settings)}
    names = [flag.name for flag in completions(COMMANDS)["run"].flags]
    assert wanted < set(names)
    assert len(names) == len(set(names))
    for name in ("sweep", "compare", "evaluate", "inspect"):  # they say their flags by `build_parser`
        assert len(completions(COMMANDS)[name].flags) > 3


def test_bash_completes_once_it_is_installed(tmp_path):
    shim = tmp_path / "bin" / "train"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m train.cli "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    line = (
        "train --install-completion && . ~/.bashrc && complete -p train && "
        "COMP_WORDS=(train run --eta) COMP_CWORD=2 && _train_completion train && echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "completion installed in" in done.stdout
    assert "-F _train_completion train" in done.stdout
    assert done.stdout.splitlines()[-1] == "--eta"
