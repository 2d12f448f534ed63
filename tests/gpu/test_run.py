"""The scripts that carry wheels to a machine without a network: what they say of wheels, and of what is missing."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gpu import main

HERE = Path(__file__).parent
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a copy of run.sh, beside a main.py that prints where a carried module lies."""
    room = tmp_path / "tree" / "tests" / "gpu"
    room.mkdir(parents=True)
    shutil.copy(HERE / "run.sh", room)
    (room / "main.py").write_text(
        "import os, sys; sys.path.append(os.environ['SFT_GO_SITE']); import carried as c; print(c)"
    )

    def call():
        environment = {**os.environ, "PYTHON": sys.executable, "SITE": str(tmp_path / "site"), "OUT": str(tmp_path)}
        command = ["bash", str(room / "run.sh"), "--device", "cpu"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    call.wheels = room / "wheels"
    return call


def carry(wheels, number, folders, version, files, made=1):
    """Put one folder in the place of those that an earlier upload brought."""
    shutil.rmtree(wheels, ignore_errors=True)
    folder = wheels / str(number)
    folder.mkdir(parents=True)
    (folder / "set").write_text(f"{number} {folders} {version} {made}\n")
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_wheels_of_another_python_are_refused(run):
    carry(run.wheels, 1, 1, "2.7", {})
    done = run()
    assert done.returncode == 1
    assert "for Python 2.7" in done.stderr
    assert f"wheels.sh {VERSION}" in done.stderr


def test_a_wheel_in_pieces_of_two_uploads_is_put_together_where_dill_takes_it_for_installed(run, tmp_path):
    wheel = tmp_path / "carried-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carried/__init__.py", "x = 1\n" * 100)
    data = wheel.read_bytes()
    carry(run.wheels, 1, 2, VERSION, {wheel.name + ".00": data[:80]})
    done = run()
    assert done.returncode == 0
    assert "1 of 2 folders are here" in done.stdout
    carry(run.wheels, 2, 2, VERSION, {wheel.name + ".01": data[80:]})
    done = run()
    assert done.returncode == 0, done.stderr
    assert "site-packages/carried" in done.stdout
    shutil.rmtree(run.wheels)  # a later command carries nothing
    assert "site-packages/carried" in run().stdout


def test_wheels_fetched_later_are_taken_as_well(run, tmp_path):
    for made, name in enumerate(("other", "carried")):
        wheel = tmp_path / f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
        carry(run.wheels, 1, 1, VERSION, {wheel.name: wheel.read_bytes()}, made)
        done = run()
    assert "site-packages/carried" in done.stdout, done.stderr


def test_what_is_missing_is_named_with_the_command_that_fetches_it(monkeypatch):
    assert main.missing() == []  # the tests' own environment has all of packages.txt
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("trl", "dill") else find_spec(name))
    monkeypatch.setattr(sys, "argv", ["main", "--device", "cpu", "--out", "none"])
    with pytest.raises(SystemExit, match=rf"no trl, dill. .*wheels.sh {VERSION} trl dill`"):
        main.main()


def test_a_module_that_is_not_listed_is_refused():
    done = subprocess.run(
        ["bash", str(HERE / "wheels.sh"), VERSION, "nonesuch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "packages.txt has no nonesuch" in done.stderr
