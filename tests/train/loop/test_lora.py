"""LoRA by TRL's own flags: what is trained, what is saved, and what loads it."""

import json

import pytest
import torch

from tests.train.conftest import write_shards
from tests.train.runs import make_model
from train.cli import main

LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0"]
RATE = ["--learning_rate", "1e-2", "--max_steps", "6", "--per_device_train_batch_size", "24", "--save_steps", "3"]


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--use_cpu", *map(str, words)])
    return stop.value.code


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("lora")
    write_shards(place / "shards", tokenizer)
    make_model(tokenizer).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return place


@pytest.fixture(scope="module")
def trained(place):
    words = ["--shards", place / "shards", "--model", place / "model", "--objective", "go", *LORA, *RATE]
    assert run(*words, "--output_dir", place / "out") == 0
    return place / "out"


class TestTrained:
    @pytest.mark.parametrize("name", ["", "checkpoint-3"])
    def test_an_adapter_alone_is_saved(self, name, trained, place):
        held = {path.name for path in (trained / name).iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= held
        assert "model.safetensors" not in held
        settings = json.loads((trained / name / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (4, 8, "CAUSAL_LM")
        assert settings["base_model_name_or_path"] == str(place / "model")

    def test_the_loss_falls_and_the_curves_are_there(self, trained):
        entries = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
        losses = [entry["loss_all"] for entry in entries if "loss_all" in entry]
        assert losses[-1] < losses[0] - 0.02
        assert all("loss_important" in entry for entry in entries if "loss" in entry)

    def test_loads_with_the_usual_classes_and_merges(self, trained, place, tokenizer, tmp_path):
        from peft import AutoPeftModelForCausalLM
        from transformers import AutoModelForCausalLM

        ids = torch.tensor([[5, 9, 30, 7, 11]])
        base = AutoModelForCausalLM.from_pretrained(place / "model").eval()
        adapted = AutoPeftModelForCausalLM.from_pretrained(trained).eval()
        direct = AutoModelForCausalLM.from_pretrained(trained).eval()  # transformers knows adapters too
        with torch.no_grad():
            expected = adapted(ids).logits
            assert (expected - base(ids).logits).abs().max() > 1e-3  # it was trained
            torch.testing.assert_close(direct(ids).logits, expected, atol=1e-5, rtol=0)
            adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
            tokenizer.save_pretrained(tmp_path / "merged")
            merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
            torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=0)

    def test_the_base_is_as_it_was(self, trained, place, tokenizer):
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(place / "model")
        for tensor, other in zip(loaded.parameters(), make_model(tokenizer).parameters(), strict=True):
            assert torch.equal(tensor, other)

    def test_accumulation_changes_nothing(self, trained, place, tmp_path):
        from safetensors.torch import load_file

        words = ["--shards", place / "shards", "--model", place / "model", "--objective", "go", *LORA, *RATE]
        words += ["--adam_epsilon", "1e-6", "--save_strategy", "no"]
        results = []
        for split in ((4, 1), (1, 4)):
            output = tmp_path / str(split[0])
            sizes = ["--per_device_train_batch_size", split[0], "--gradient_accumulation_steps", split[1]]
            assert run(*words, *sizes, "--output_dir", output) == 0
            results.append(load_file(output / "adapter_model.safetensors"))
        for name, tensor in results[0].items():
            torch.testing.assert_close(results[1][name], tensor, atol=2e-5, rtol=0)

    def test_says_how_to_load_it(self, place, tmp_path, capsys):
        words = ["--shards", place / "shards", "--model", place / "model", *LORA, "--max_steps", "1"]
        assert run(*words, "--save_strategy", "no", "--output_dir", tmp_path / "out") == 0
        assert "AutoPeftModelForCausalLM" in capsys.readouterr().out


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--use_peft", "true", "--lora_target_modules", "q_proj", "lm_head"], "lm_head"),
            (
                ["--use_peft", "true", "--lora_target_modules", ".*(q_proj|_head)"],
                "lm_head",
            ),  # TRL's own refusal, as a sentence
            (["--use_peft", "true", "--lora_target_parameters", "lm_head.weight"], "lm_head"),
            (["--use_peft", "true", "--lora_target_modules", "nonsense"], "nonsense"),
            (["--use_peft", "true", "--lora_task_type", "SEQ_CLS"], "--lora_task_type"),
            (["--lora_r", "8"], "--lora_r"),
            (["--use_dora", "true"], "--use_dora"),
            (["--load_in_4bit", "true"], "--load_in_4bit"),
            (["--use_bnb_nested_quant", "true"], "--use_bnb_nested_quant"),
        ],
    )
    def test_flags(self, words, expected, place, tmp_path, capsys):
        output = ["--output_dir", tmp_path / "out"]
        assert run("--shards", place / "shards", "--model", place / "model", *words, *output) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert expected in text

    def test_the_tiny_model(self, place, capsys):
        assert run("--shards", place / "shards", "--use_peft", "true") == 1
        assert "--use_peft" in capsys.readouterr().err
