"""Settings from variables, and what a server is made of before it listens."""

import dataclasses
import shutil

import pytest
from rich.console import Console

from annotate.groupers.base import GrouperOptions
from annotate.models.checkpoints import require_safetensors
from common.errors import UserError
from services.app import build_app
from services.catalog import build_catalog
from services.errors import ApiError
from services.metrics import Metrics
from services.settings import Settings


def test_variables_become_settings():
    settings = Settings.from_environment(
        {
            "SFT_GO_STATE": "a=one:two",
            "SFT_GO_MAX_INPUTS": "7",
            "SFT_GO_BATCH_WINDOW_MS": "1.5",
            "SFT_GO_PACKAGE_PARITY": "true",
            "SFT_GO_API_KEY": "key",
            "SFT_GO_DTYPE": "",
            "OTHER": "x",
        }
    )
    assert settings.state == ("a=one", "two")
    assert (settings.max_inputs, settings.batch_window_ms) == (7, 1.5)
    assert settings.flags == {"package_parity": True}
    assert "key" not in repr(settings).replace("api_key", "")


def test_all_wrong_variables_are_told_together():
    environment = {"SFT_GO_MAX_INPUTS": "many", "SFT_GO_MAX_QUEUE": "-1", "SFT_GO_PACKAGE_PARITY": "perhaps"}
    with pytest.raises(UserError) as raised:
        Settings.from_environment(environment)
    for name in environment:
        assert name in str(raised.value)
    assert "3 problems" in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "found neither"),
        ({"SFT_GO_STATE": "a", "SFT_GO_TOKENIZER": "b"}, "Drop one"),
        ({"SFT_GO_TOKENIZER": "b", "SFT_GO_BASE_MODEL": "c"}, "--reference-model"),
        ({"SFT_GO_TOKENIZER": "b", "SFT_GO_MAX_QUEUE": "4", "SFT_GO_MAX_INPUTS": "5"}, "would never fit"),
    ],
)
def test_settings_that_contradict_each_other(environment, message):
    with pytest.raises(UserError, match=message):
        Settings.from_environment(environment)


def test_misspelt_variables_are_found():
    settings = Settings(tokenizer="b")
    assert settings.unknown({"SFT_GO_MAX_INPUT": "3", "SFT_GO_DATA_HOME": "/d", "SFT_GO_STATE": ""}) == [
        "SFT_GO_MAX_INPUT"
    ]


def test_two_directories_stand_side_by_side_and_share_models(shards, models):
    catalog = build_catalog(Settings(state=(f"first={shards}", f"second={shards}")), Metrics())
    assert list(catalog.targets) == ["first", "second"]
    first, second = catalog.find("llmlingua2", "first"), catalog.find("llmlingua2", "second")
    assert first.worker is second.worker, "one copy of a model"
    assert catalog.find("tfidf", "first").worker is not catalog.find("tfidf", "second").worker
    assert catalog.find("tfidf", None).target.name == "first"
    for grouper, tokenizer in ((None, None), ("nothing", None), ("tfidf", "third")):
        with pytest.raises(ApiError):
            catalog.find(grouper, tokenizer)
    with pytest.raises(UserError, match="Name the shard directories"):
        build_catalog(Settings(state=(str(shards), str(shards))), Metrics())


def test_only_the_named_groupers_are_served(shards):
    catalog = build_catalog(Settings(state=(str(shards),), groupers=("random",)), Metrics())
    assert [column.name for column in catalog.columns] == ["random"]
    assert catalog.find(None, None).name == "random"


def test_models_by_flag_without_shards(models, sample_tokenizer):
    given = {name: models.flags[name] for name in ("compressor_model", "reference_model")}
    catalog = build_catalog(Settings(tokenizer=str(sample_tokenizer), flags=given), Metrics())
    assert [column.name for column in catalog.columns] == ["llmlingua2", "rho1"]


@pytest.mark.parametrize(("grouper", "columns"), [("entropy", ["entropy"]), ("sifd", ["sifd", "sifd_gain"])])
def test_every_grouper_over_a_model_can_be_named(grouper, columns, models, sample_tokenizer):
    variables = {"SFT_GO_TOKENIZER": str(sample_tokenizer), "SFT_GO_GROUPERS": grouper}
    variables["SFT_GO_REFERENCE_MODEL"] = models.flags["reference_model"]
    catalog = build_catalog(Settings.from_environment(variables), Metrics())
    assert [column.name for column in catalog.columns] == columns
    settings = Settings.from_environment({**variables, "SFT_GO_COMPRESSOR_MODEL": models.flags["compressor_model"]})
    with pytest.raises(UserError, match=f"--compressor-model is read by none of .*: {grouper}"):
        build_catalog(settings, Metrics())


def test_a_model_is_for_what_the_shards_hold_before_it_is_for_another(tmp_path, models, sample_tokenizer):
    from annotate.run.pipeline import run
    from annotate.run.settings import Settings as Run

    out, options = tmp_path / "shards", GrouperOptions(reference_model=models.flags["reference_model"], device="cpu")
    tokenizer = str(sample_tokenizer)
    asked = {"data": "sample", "out": out, "tokenizer": tokenizer, "limit": 5, "engine": "local", "options": options}
    run(Run(groupers=("entropy",), **asked), Console(quiet=True))
    state = (str(out),)
    assert [column.name for column in build_catalog(Settings(state=state), Metrics()).columns] == ["entropy"]
    given = {"reference_model": models.flags["base_model"]}
    (column,) = build_catalog(Settings(state=state, flags=given), Metrics()).columns
    assert column.worker.grouper.parameters["reference_model"] == models.flags["base_model"]


def test_what_the_shards_were_made_with_is_not_changed_by_a_flag(shards):
    build_catalog(Settings(state=(str(shards),), groupers=("random",), flags={"seed": 0}), Metrics())
    with pytest.raises(UserError, match=r"--seed 5: .* has random with 0"):
        build_catalog(Settings(state=(str(shards),), groupers=("random",), flags={"seed": 5}), Metrics())


def test_damaged_directories_are_refused(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    (broken / "state" / "tfidf.parquet").unlink()
    with pytest.raises(UserError, match="what tfidf fitted is missing"):
        build_catalog(Settings(state=(str(broken),)), Metrics())
    path = broken / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"<|bos|>"', '"<|other|>"'), encoding="utf-8")
    with pytest.raises(UserError, match="expected the tokenizer that the shards were made with"):
        build_catalog(Settings(state=(str(broken),)), Metrics())


def test_weights_that_can_run_programs_are_not_loaded_unless_told_so(tmp_path, models, sample_tokenizer):
    import torch
    from safetensors.torch import load_file

    home = tmp_path / "reference"
    shutil.copytree(models.flags["reference_model"], home)
    torch.save(load_file(home / "model.safetensors"), home / "pytorch_model.bin")
    (home / "model.safetensors").unlink()
    settings = Settings(tokenizer=str(sample_tokenizer), flags={"reference_model": str(home)})
    with pytest.raises(UserError, match=r"--reference-model .*pytorch_model\.bin.*--allow-pickle"):
        build_app(settings)
    build_app(dataclasses.replace(settings, allow_pickle=True))
    require_safetensors(False)
