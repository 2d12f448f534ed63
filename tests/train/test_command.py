"""The real command: a run from shards to a checkpoint, its files, and what it says when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tests.train.conftest import build_tokenizer, write_shards
from tests.train.runs import make_model
from train.cli import main

TRAIN = Path(sys.executable).with_name("train")
SHORT = ["--max_steps", "3", "--per_device_train_batch_size", "4", "--save_strategy", "no"]


def command(*arguments, cwd=None):
    """Run the installed command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [str(TRAIN), *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=240
    )


def fails(capsys, *arguments):
    """Run the command in this process and return its one error message."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("run")
    shards = write_shards(place / "shards", tokenizer, 40)
    (place / "run.yaml").write_text("max_steps: 12\neta: 0.7\nlogging_steps: 1\nseed: 3\n")
    done = command(
        *("run", "--shards", shards, "--config", "run.yaml", "--eta", "0.9", "--eval_fraction", "0.2"),
        *("--per_device_train_batch_size", "8", "--output_dir", "out", "--save_strategy", "no"),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    return place / "out", done.stdout, shards


class TestWholeRun:
    def test_loads_with_the_usual_classes(self, finished):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        output, _, _ = finished
        model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
        assert model.config.num_hidden_layers == 4
        assert model.config.vocab_size == len(tokenizer)

    def test_says_what_it_trains_on(self, finished):
        _, printed, _ = finished
        assert "documents           32, and 8 held out" in printed
        assert "column first, eta 0.9" in printed
        assert "maximum taken over  all tokens of the optimizer step" in printed
        assert "step    12/12" in printed
        assert "next: compare it with" in printed

    def test_logs_the_curves_at_every_step(self, finished):
        output, _, _ = finished
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        names = ("loss", "loss_all", "loss_important", "loss_unimportant", "worst_group", "lambda", "important_share")
        assert [line["step"] for line in steps] == list(range(1, 13))
        assert all(name in line for line in steps for name in names)
        assert steps[-1]["loss_all"] < steps[0]["loss_all"]
        held_out = [line for line in lines if "eval_loss" in line]
        assert [line["step"] for line in held_out] == [4, 8, 12]  # after each epoch
        assert all({"eval_loss_all", "eval_loss_important", "eval_loss_unimportant"} <= set(line) for line in held_out)

    def test_run_file_names_shards_settings_and_versions(self, finished):
        from common.manifest import manifest_hash

        output, _, shards = finished
        content = json.loads((output / "run.json").read_text())
        assert content["shards"][0]["manifest_sha256"] == manifest_hash(shards)
        assert content["objective"]["eta"] == 0.9  # the command line wins over the YAML file
        assert content["objective"]["lambda_max"] == 0.9
        assert content["training"]["seed"] == 3
        assert content["steps"] == 12
        assert {"torch", "trl", "transformers", "sft-go"} <= set(content["versions"])
        assert content["final_metrics"]["loss_all"] > 0
        assert content["data"]["column"] == "first"

    def test_draws_the_curves_and_leaves_no_scratch_files(self, finished):
        output, _, _ = finished
        assert (output / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
        assert not (output / ".data").exists()

    def test_a_finished_run_is_not_overwritten(self, finished, capsys):
        output, _, shards = finished
        assert "finished run" in fails(capsys, "run", "--shards", shards, "--output_dir", output, *SHORT)


class TestDefaults:
    def test_output_directories_do_not_collide(self, shards, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            with pytest.raises(SystemExit) as stop:
                main(["run", "--shards", str(shards), "--use_cpu", *SHORT])
            assert stop.value.code == 0
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["go-first-shards", "go-first-shards-2"]

    def test_packed_or_not_the_first_losses_are_the_same(self, shards, tmp_path):
        results = []
        one_step = ["--max_steps", "1", "--per_device_train_batch_size", "100", "--save_strategy", "no"]
        for words in ([], ["--packing"], ["--padding_free"]):
            output = tmp_path / f"out{len(results)}"
            with pytest.raises(SystemExit) as stop:
                main(["run", "--shards", str(shards), "--use_cpu", "--output_dir", str(output), *one_step, *words])
            assert stop.value.code == 0
            metrics = json.loads((output / "run.json").read_text())["final_metrics"]
            results.append([metrics[name] for name in ("loss", "loss_all", "loss_important", "important_share")])
        assert results[1] == pytest.approx(results[0], abs=1e-5)
        assert results[2] == pytest.approx(results[0], abs=1e-5)


class TestErrors:
    def test_all_settings_problems_come_together(self, shards, capsys):
        text = fails(capsys, "run", "--eta", "1.0", "--lambda_max", "2", "--eval_fraction", "1.5")
        for flag in ("--eta", "--lambda_max", "--eval_fraction", "--shards"):
            assert flag in text
        assert "-0.1" in fails(capsys, "run", "--shards", shards, "--eta", "-0.1")

    @pytest.mark.parametrize(
        ("words", "file", "expected"),
        [
            (["--eta", "1.5", "--lambda-max", "2"], "", ["--eta: ", "--lambda_max: "]),
            (["--lambda_min", "0.5"], "lambda_max: 0.4", ["--lambda_min: "]),  # of the file's
            (["--lambda_min", "0.95"], "lambda_max: 1.0", []),
            (["--objective", "sft"], "preset: lima-3b-tfidf\nlambda_max: 2", []),  # the parser's: sft has none
            (["--objective", "dro", "--group_quantiles", "0.9,0.5"], "dro_step: -1", ["--group_quant", "--dro_step: "]),
            (["--no_bf16", "--eval_fraction"], "", ["--eval_fraction: expected a value."]),
            ([], "objective: gi", []),
        ],
    )
    def test_numbers_out_of_range_are_told_without_torch(self, words, file, expected, shards, tmp_path):
        from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
        from train.settings.early import check_early, underscored

        (tmp_path / "run.yaml").write_text(file or "{}")
        words = underscored(["--shards", str(shards), "--config", str(tmp_path / "run.yaml"), *words])
        told = ""
        try:
            check_early(words, OBJECTIVES, DEFAULT_OBJECTIVE)
        except UserError as error:
            told = str(error)
        assert all(text in told for text in expected)
        assert bool(told) == bool(expected)
        code = f"import sys, train.cli; train.cli.main({['run', *words]!r})"
        if expected:
            done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
            assert done.returncode == 1
            assert "| torch" not in done.stderr

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--etta", "0.5"], "--etta"),
            (["--eta", "high"], "--eta"),
            (["--grouper", "nonsense"], "nonsense"),
            (["--model", "no/such-model"], "no/such-model"),
            (["--config", "nowhere.yaml"], "nowhere.yaml"),
            (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor"),
            (["--completion_only_loss", "true"], "--completion_only_loss"),
            (["--worst_over", "token"], "--worst_over"),
        ],
    )
    def test_flags(self, words, expected, shards, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert expected in fails(capsys, "run", "--shards", shards, *words)
        assert not (tmp_path / "runs").exists()

    def test_an_unknown_name_in_the_yaml_file(self, shards, capsys, tmp_path):
        (tmp_path / "run.yaml").write_text("etta: 0.5\n")
        assert "etta" in fails(capsys, "run", "--shards", shards, "--config", tmp_path / "run.yaml")

    def test_shards_that_are_missing_unfinished_or_truncated(self, shards, capsys, tmp_path):
        assert "no such directory" in fails(capsys, "run", "--shards", tmp_path / "missing")
        (shards / "part-00000.parquet").write_bytes(b"PAR1")
        assert "part-00000.parquet" in fails(capsys, "run", "--shards", shards)
        for name in ("manifest.json", "manifest.copy.json"):
            (shards / name).unlink()
        (shards / ".work").mkdir()
        assert "did not finish" in fails(capsys, "run", "--shards", shards)

    def test_a_tokenizer_that_is_not_the_models(self, shards, capsys, tmp_path):
        other = build_tokenizer("entirely different words were merged here")
        make_model(other).save_pretrained(tmp_path / "model")
        other.save_pretrained(tmp_path / "model")
        text = fails(capsys, "run", "--shards", shards, "--model", tmp_path / "model")
        assert "fingerprint" in text
        assert "annotate run --tokenizer" in text

    def test_a_slow_tokenizer(self, shards, capsys, tmp_path, tokenizer):
        from transformers import ByT5Tokenizer

        make_model(tokenizer).save_pretrained(tmp_path / "model")
        ByT5Tokenizer().save_pretrained(tmp_path / "model")
        assert "fast tokenizer" in fails(capsys, "run", "--shards", shards, "--model", tmp_path / "model")

    def test_a_model_without_a_tokenizer(self, shards, capsys, tmp_path, tokenizer):
        make_model(tokenizer).save_pretrained(tmp_path / "model")
        assert "tokenizer" in fails(capsys, "run", "--shards", shards, "--model", tmp_path / "model")

    def test_a_model_of_ones_own_trains(self, shards, tmp_path, tokenizer):
        make_model(tokenizer).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        output = tmp_path / "out"
        words = ["--model", str(tmp_path / "model"), "--use_cpu", "--output_dir", str(output), *SHORT]
        with pytest.raises(SystemExit) as stop:
            main(["run", "--shards", str(shards), "--objective", "sft", *words])
        assert stop.value.code == 0
        assert (output / "model.safetensors").is_file()

    def test_unknown_command(self, capsys):
        assert "unknown command" in fails(capsys, "runn")


class TestHelp:
    @pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
    def test_answers_at_once_and_without_torch(self, words):
        code = f"import sys, train.cli; train.cli.dispatch({words!r}); print('torch' in sys.modules)"
        best_s = 1e9
        for _ in range(3):
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            best_s = min(best_s, time.perf_counter() - started)
        assert done.stdout.endswith("False\n")
        assert best_s < 1.0

    def test_names_every_flag_of_ours(self):
        import dataclasses

        from train.cli import run_help
        from train.objectives import OBJECTIVES
        from train.settings.flags import GroupingSettings, RunSettings

        text = run_help()
        for settings in (RunSettings, GroupingSettings, *(kind.Settings for kind in OBJECTIVES.values())):
            assert all(f"--{field.name}" in text for field in dataclasses.fields(settings))

    def test_all_flags_of_trl_are_there(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["run", "--help-all"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(flag in text for flag in ("--packing", "--use_peft", "--fsdp", "--eta", "--shards"))


def test_a_reader_that_goes_away_gets_no_traceback():
    code = "from train.cli import main; main(['presets'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


def test_flags_are_found_by_argparse_alone():
    from train.settings.arguments import scan

    words = ["--shards", "a", "--eta", "-0.5", "--shards", "b", "c", "--use_cpu", "--max-steps=3", "--shards=d", "--x"]
    found, rest = scan(words, ("shards", "max_steps", "use_cpu", "seed"))
    assert found == {"shards": ["a", "b", "c", "d"], "max_steps": ["3"], "use_cpu": []}
    assert rest == ["--eta", "-0.5", "--x"]


def test_the_command_is_installed():
    assert shutil.which("train", path=str(TRAIN.parent))
    assert torch.get_num_threads() > 0


def test_a_dry_run_says_the_steps_and_leaves_nothing(tmp_path, shards, capsys):
    words = ["run", "--shards", str(shards), "--dry-run", "--output_dir", str(tmp_path / "out"), "--max-steps", "7"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "7, 3 an epoch" in said
    assert "nothing was trained" in said
    assert not (tmp_path / "out").exists()
