"""Private names of other libraries: each that `train/` uses is listed, and each that is listed is there."""

import ast
import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version
from trl import SFTTrainer

from train.loop.private import PRIVATE, TRAINER

ROOT = Path(__file__).resolve().parents[3] / "train"
LIBRARIES = ("accelerate", "peft", "ray", "torch", "transformers", "trl")
OURS = {"GOTrainer", "ResumableTrainer"}  # classes that inherit private names, and could hide one by accident
STANDARD = {"_asdict", "_replace", "_exit", "_actions", "_option_string_actions"}  # named tuples, os, argparse
LISTED = {private.name for private in PRIVATE}
FILES = sorted(ROOT.rglob("*.py"))


def has_name(owner, name):
    """Return whether a module's text, or a class with its bases, has a name, on its instances too."""
    module_name, _, class_name = owner.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return False
    if not class_name:
        return re.search(rf"\b{re.escape(name)}\b", inspect.getsource(module)) is not None
    kind = getattr(module, class_name, None)
    return kind is not None and (hasattr(kind, name) or name in instance_names(kind))


def instance_names(kind):
    """Return the names that a class and its bases define, or set on `self` anywhere in their sources."""
    names = set()
    for base in kind.__mro__[:-1]:
        names |= set(vars(base))
        names |= set(re.findall(r"\bself\.(\w+)(?:\s*:[^=\n]+)?\s*[-+]?=[^=]", inspect.getsource(base)))
    return names


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(trees):
    """Return private names that `train/` defines, or sets on `self`, outside the trainers."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if getattr(node.value, "id", None) == "self" else set()
    return {name for name in found if is_private(name)} - LISTED


def private_uses(tree):
    """Return the private attributes that a file reads, by `getattr` too, and what it imports from private modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value):
                yield name.value, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
            inner = any(map(is_private, node.module.split(".")))
            yield from ((alias.name, node.lineno) for alias in node.names if inner or is_private(alias.name))


def classes(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in OURS]


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name)
def test_is_there(private):
    library = private.owner.split(".")[0]
    installed = version("transformers" if private.since else library)
    if private.since and Version(installed) < Version(private.since):
        pytest.skip(f"came with transformers {private.since}")
    assert has_name(private.owner, private.name), f"{library} {installed} has no {private.name}: {private.used_for}"


def test_every_private_name_that_is_used_is_listed(trees):
    own = own_names(trees.values())
    unlisted = [
        f"{path.relative_to(ROOT.parent)}:{line}: {name}"
        for path, tree in trees.items()
        for name, line in private_uses(tree)
        if name not in LISTED | own | STANDARD
    ]
    assert not unlisted, f"add to train/loop/private.py: {unlisted}"


def test_what_the_trainers_share_with_their_bases_is_listed(trees):
    """A method or an attribute of ours that a base class has as well is an override, meant or not."""
    inherited = {name for name in instance_names(SFTTrainer) if is_private(name)}
    assert {"_metrics", "_tr_loss", "_wrap_model"} <= inherited
    found = [node for tree in trees.values() for node in classes(tree)]
    assert {node.name for node in found} == OURS
    names = {name for node in found for name, _ in private_uses(node)}
    names |= {inner.name for node in found for inner in node.body if isinstance(inner, ast.FunctionDef)}
    assert {name for name in names & inherited if is_private(name)} <= LISTED


def test_nothing_is_listed_that_is_not_used(trees):
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES if path.name != "private.py")
    assert [private.name for private in PRIVATE if private.name not in text] == []


def test_deep_imports_that_no_release_promises_are_listed(trees):
    """What TRL keeps in its `utils`, and other libraries below their second level."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(("trl.", "accelerate.data_loader")):
                assert {alias.name for alias in node.names} <= LISTED, path


@pytest.mark.parametrize(
    ("owner", "name"), [(TRAINER, "_gone"), ("trl.gone", "gone"), ("trl.trainer.sft_trainer:Gone", "x"), ("trl", "_x")]
)
def test_what_is_gone_is_noticed(owner, name):
    assert not has_name(owner, name)
