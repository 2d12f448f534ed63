"""The paper's recipes: each value against a table written from the paper, and how presets, files and flags combine."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.manifest import load_manifest
from tests.train.conftest import COLUMNS, write_shards
from train.cli import main
from train.run import configure
from train.settings.arguments import gather, split_step
from train.settings.recipes import preset_names, preset_text, read_preset

PAPER = Path(__file__).resolve().parents[4] / "shared" / "PAPER.md"
HUB = {"3b": "meta-llama/Llama-3.2-3B", "8b": "meta-llama/Llama-3.1-8B"}

# Section 4 and appendix F, by hand: learning rate, eta, lambda's first and last value.
METHODS = {
    ("lima", "3b", "baseline"): (1e-5, None, None, None),
    ("lima", "3b", "tfidf"): (1e-5, 0.90, 0.9, 0.9),
    ("lima", "3b", "rho1"): (1e-5, 0.55, None, None),
    ("lima", "3b", "llmlingua2"): (1e-5, 0.70, 0.9, 0.07),
    ("lima", "8b", "baseline"): (1e-5, None, None, None),
    ("lima", "8b", "tfidf"): (1e-5, 0.85, 0.9, 0.9),
    ("lima", "8b", "rho1"): (1e-5, 0.70, None, None),
    ("lima", "8b", "llmlingua2"): (1e-5, 0.70, 0.9, 0.9),
    ("alpaca", "3b", "baseline"): (6e-6, None, None, None),
    ("alpaca", "3b", "tfidf"): (1e-6, 0.70, 0.9, 0.9),
    ("alpaca", "3b", "rho1"): (5e-7, 0.70, None, None),
    ("alpaca", "3b", "llmlingua2"): (6e-7, 0.25, 0.9, 0.9),
    ("alpaca", "8b", "baseline"): (1e-7, None, None, None),
    ("alpaca", "8b", "tfidf"): (6e-7, 0.60, 0.9, 0.9),
    ("alpaca", "8b", "rho1"): (6e-7, 0.40, None, None),
    ("alpaca", "8b", "llmlingua2"): (6e-7, 0.25, 0.9, 0.05),
}
# Epochs, batch, weight decay, warm-up ratio.
SCHEDULES = {
    ("lima", "3b"): (15, 64, 0.1, 0.0),
    ("lima", "8b"): (15, 64, 0.1, 0.0),
    ("alpaca", "3b"): (1, 32, 0.05, 0.07),
    ("alpaca", "8b"): (2, 32, 0.05, 0.07),
}
OBJECTIVES = {"baseline": "sft", "tfidf": "go", "rho1": "rho1", "llmlingua2": "go"}
RUNS = ["-".join(run) for run in METHODS]


def words(*flags):
    return [*flags, "--shards", "nowhere", "--use_cpu"]


class TestValues:
    def test_all_sixteen_are_there(self):
        assert sorted(preset_names()) == sorted(RUNS)

    @pytest.mark.parametrize("name", RUNS)
    def test_what_a_run_gets_is_what_the_paper_says(self, name):
        dataset, size, method = name.split("-")
        rate, eta, largest, smallest = METHODS[dataset, size, method]
        epochs, batch, decay, warm_up = SCHEDULES[dataset, size]
        run, args, model, objective, given, _ = configure(words("--preset", name))
        assert run.model == HUB[size]
        assert args.objective == OBJECTIVES[method]
        assert args.learning_rate == rate
        assert args.num_train_epochs == epochs
        assert args.weight_decay == decay
        assert args.warmup_steps == warm_up  # below 1: a share of the steps
        assert args.lr_scheduler_type == "cosine"
        assert args.adam_epsilon == 1e-8
        assert str(args.optim.value).startswith("adamw_torch")
        assert args.max_length == 4096
        assert run.global_batch_size == batch
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == batch
        if eta is None:
            assert run.grouper is None
            assert "eta" not in given
        else:
            assert run.grouper == method
            assert args.eta == eta
        if largest is None:
            assert not hasattr(objective.settings, "lambda_max")
        else:
            assert (objective.settings.lambda_max, objective.settings.lambda_min) == (largest, smallest)
            assert (objective.settings.worst_over, args.ties) == ("batch", "threshold")
        assert not args.packing
        assert model.dtype == "float32"

    @pytest.mark.parametrize("name", RUNS)
    def test_the_file_says_what_was_chosen(self, name):
        text = preset_text(name)
        chosen = text[text.index("# What the paper does not give") :]
        for word in ("max_grad_norm", "adam_beta1", "adam_beta2", "packing", "dtype", "Precision", "template"):
            assert word in chosen
        assert f"--preset {name} " in text

    @pytest.mark.skipif(not PAPER.is_file(), reason="the paper's facts are not beside this checkout")
    def test_the_tables_of_the_paper(self):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in PAPER.read_text(encoding="utf-8").splitlines()
            if line.startswith("| ")
        ]
        methods = [row for row in rows if len(row) == 6 and row[1] in ("3B", "8B")]
        assert len(methods) == 16
        for dataset, size, method, rate, eta, weight in methods:
            preset = read_preset(f"{dataset}-{size}-{method}".lower())
            assert preset["learning_rate"] == float(rate)
            assert preset.get("eta") == (None if eta == "–" else float(eta))
            numbers = [float(word) for word in weight.split() if word[0].isdigit()]  # 0.9 static; 0.9 → 0.07 decaying
            expected = [numbers[0], numbers[-1]] if numbers else []
            assert [preset[name] for name in ("lambda_max", "lambda_min") if name in preset] == expected
        schedules = [row for row in rows if len(row) == 6 and row[0] in ("LIMA", "Alpaca") and "Llama" in row[1]]
        seen = 0
        for dataset, models, epochs, batch, decay, warm_up in schedules:
            for size in ("3b", "8b"):
                if size.upper() not in models:
                    continue
                for method in OBJECTIVES:
                    preset = read_preset(f"{dataset.lower()}-{size}-{method}")
                    found = [
                        preset[n] for n in ("num_train_epochs", "global_batch_size", "weight_decay", "warmup_steps")
                    ]
                    assert found == [float(cell) for cell in (epochs, batch, decay, warm_up)]
                    seen += 1
        assert seen == 16


class TestPrecedence:
    def test_flags_over_file_over_preset(self, tmp_path):
        (tmp_path / "run.yaml").write_text("learning_rate: 3.0e-5\neta: 0.5\n")
        flags = words("--preset", "lima-3b-tfidf", "--config", str(tmp_path / "run.yaml"), "--eta", "0.6")
        run, args, _, _, _, over = configure(flags)
        assert (args.learning_rate, args.eta, args.weight_decay) == (3e-5, 0.6, 0.1)
        assert set(over) == {"learning_rate", "eta"}
        assert run.preset == "lima-3b-tfidf"

    def test_a_file_may_name_the_preset(self, tmp_path):
        (tmp_path / "run.yaml").write_text("preset: alpaca-8b-rho1\nseed: 3\n")
        run, args, *_ = configure(words("--config", str(tmp_path / "run.yaml")))
        assert (run.preset, args.eta, args.seed) == ("alpaca-8b-rho1", 0.4, 3)

    def test_another_objective_leaves_what_belonged_to_the_presets_own(self):
        _, args, _, objective, _, over = configure(words("--preset", "lima-3b-tfidf", "--objective", "sft"))
        assert (args.objective, objective.name, args.learning_rate) == ("sft", "sft", 1e-5)
        assert {"objective", "lambda_max", "lambda_min", "worst_over"} <= set(over)

    def test_another_name_for_the_model(self):
        assert configure(words("--preset", "lima-3b-tfidf", "--model_name_or_path", "mine"))[0].model == "mine"

    @pytest.mark.parametrize("name", ["lima3b-tfidf", "../conftest", ""])
    def test_unknown_presets_are_named(self, name):
        with pytest.raises(UserError, match=r"no such preset|expected a value"):
            configure(words(f"--preset={name}") if name else words("--preset"))


class TestStep:
    """global = per device × accumulated × processes, by hand."""

    @pytest.mark.parametrize(
        ("said", "processes", "device", "accumulated"),
        [
            ({}, 1, 8, 8),
            ({}, 8, 8, 1),
            ({}, 16, 4, 1),
            ({"per_device_train_batch_size": "4"}, 1, 4, 16),
            ({"per_device_train_batch_size": 16}, 2, 16, 2),
            ({"gradient_accumulation_steps": 4}, 8, 2, 4),
            ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, 8, 2, 4),
            ({"workers": 4}, 1, 8, 2),
        ],
    )
    def test_the_batch_is_kept(self, said, processes, device, accumulated):
        found = split_step({"global_batch_size": 64, **said}, processes)
        assert found == {"per_device_train_batch_size": device, "gradient_accumulation_steps": accumulated}

    def test_a_batch_that_eight_does_not_divide(self):
        assert split_step({"global_batch_size": 30}, 1)["per_device_train_batch_size"] == 6

    def test_without_a_batch_nothing_is_settled(self):
        assert split_step({"per_device_train_batch_size": 3}, 2) == {}

    @pytest.mark.parametrize(
        ("said", "processes", "words"),
        [
            ({}, 3, "3 processes"),
            ({"per_device_train_batch_size": 3}, 1, "--per_device_train_batch_size 3"),
            ({"gradient_accumulation_steps": 5}, 1, "--gradient_accumulation_steps 5"),
            ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, 1, "--global_batch_size 32"),
            ({"per_device_train_batch_size": "many"}, 1, "whole number"),
            ({"global_batch_size": 0}, 1, "at least 1"),
        ],
    )
    def test_what_does_not_divide(self, said, processes, words):
        with pytest.raises(UserError, match=words):
            split_step({"global_batch_size": 64, **said}, processes)

    def test_the_launchers_processes_count(self):
        def nothing_else(words):
            return frozenset()

        assert gather(words("--preset", "lima-3b-tfidf"), 4, nothing_else).settings["gradient_accumulation_steps"] == 2
        flags = words("--preset=lima-3b-tfidf", "--per-device-train-batch-size", "4")
        assert gather(flags, 4, nothing_else).settings["gradient_accumulation_steps"] == 4


class TestCommand:
    def test_lists_and_shows(self, capsys):
        for rest in ([], ["show", "lima-3b-llmlingua2"]):
            with pytest.raises(SystemExit) as stop:
                main(["presets", *rest])
            assert stop.value.code == 0
        listed, shown = capsys.readouterr().out.split("# SFT-GO")
        for name in RUNS:
            assert sum(line.startswith(f"{name} ") for line in listed.splitlines()) == 1
        assert "0.9 → 0.07" in listed
        assert "lambda_min: 0.07" in shown

    @pytest.mark.parametrize("rest", [["show"], ["show", "nonsense"], ["nonsense"]])
    def test_says_what_is_wrong(self, rest, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["presets", *rest])
        assert stop.value.code == 1
        assert capsys.readouterr().err.startswith("error: ")

    def test_answers_at_once(self):
        heavy = {"torch", "transformers", "trl", "datasets", "pyarrow", "ray"}
        code = f"import sys, train.cli; train.cli.dispatch(['presets']); print(sorted({heavy!r} & set(sys.modules)))"
        best_s = 1e9
        for _ in range(3):  # seconds of processor time: the clock's depend on what else the machine does
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best_s = min(best_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.endswith("[]\n")
        assert best_s < 1.0

    def test_a_run_by_a_preset(self, tmp_path, tokenizer, capsys):
        shards = write_shards(tmp_path / "shards", tokenizer, 70, {**COLUMNS, "tfidf": "importance"})
        flags = ["--model", "tiny", "--max_steps", "2", "--save_strategy", "no", "--use_cpu"]
        flags += ["--per_device_train_batch_size", "16", "--output_dir", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as stop:
            main(["run", "--preset", "lima-3b-tfidf", "--shards", str(shards), *flags])
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert "16 × 4 accumulated × 1 processes = 64 documents" in printed
        assert "preset lima-3b-tfidf, with other settings: model tiny" in printed
        content = json.loads((tmp_path / "out" / "run.json").read_text())
        assert content["run"]["preset"] == "lima-3b-tfidf"
        assert content["objective"]["eta"] == 0.9
        assert content["training"]["learning_rate"] == 1e-5
        assert content["data"]["column"] == "tfidf"

    def test_shards_cut_shorter_than_the_recipes_context(self, tmp_path, tokenizer, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)  # a run that is not refused would write there
        shards = write_shards(tmp_path / "shards", tokenizer, 10, {"tfidf": "importance"})
        manifest = load_manifest(shards)
        dataclasses.replace(manifest, counts=dataclasses.replace(manifest.counts, truncated=3)).save(shards)
        with pytest.raises(SystemExit) as stop:
            main(["run", "--preset", "lima-3b-tfidf", "--shards", str(shards), "--model", "tiny", "--use_cpu"])
        assert stop.value.code == 1
        assert "--max_length 4096" in capsys.readouterr().err
