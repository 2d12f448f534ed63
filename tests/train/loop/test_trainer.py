"""The trainer: its curves, its exactness over split steps, and what it refuses."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from common.errors import UserError
from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import history, make_config, make_model, make_trainer, parameters, trainer_over
from train.data.collate import COUNTS
from train.loop.step import Step

FORMS = {
    "sft": {"objective": "sft"},
    "go": {"objective": "go"},
    "go decaying": {"objective": "go", "lambda_max": 0.9, "lambda_min": 0.05},
    "go sample": {"objective": "go", "worst_over": "sample"},
    "rho1": {"objective": "rho1", "grouper": "reference"},
    "go dynamic": {"objective": "go", "dynamic_groups": True, "grouper": "reference"},
}


def uneven_shards(path, tokenizer):
    """22 documents: an incomplete last step; two with one score throughout, so with an empty important group."""
    return write_shards(path, tokenizer, 22, COLUMNS, seed=4)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, tokenizer):
    return uneven_shards(tmp_path_factory.mktemp("uneven") / "shards", tokenizer)


def train(uneven, tokenizer, output, batch, accumulated, form, **changes):
    settings = {"grouper": "first", "eta": 0.7, **FORMS[form], **changes}
    trainer = make_trainer(
        uneven,
        tokenizer,
        output,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        max_steps=settings.pop("max_steps", 7),
        **settings,
    )
    trainer.train()
    return trainer


class TestCurves:
    def test_first_step_equals_full_logits(self, shards, tokenizer, tmp_path):
        model = make_model(tokenizer)
        trainer = make_trainer(shards, tokenizer, tmp_path, model, max_steps=1, per_device_train_batch_size=4, eta=0.7)
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
        groups = ([], [])
        for row in range(4):
            for position in range(1, batch["input_ids"].shape[1]):
                if batch["labels"][row, position] != -100:
                    target = batch["input_ids"][row, position]
                    loss = cross_entropy(logits[row, position - 1][None], target[None]).item()
                    groups[int(batch["group"][row, position])].append(loss)
        trainer.train()
        (entry,) = [line for line in trainer.state.log_history if "loss" in line]
        unimportant, important = (sum(group) / len(group) for group in groups)
        every = sum(map(sum, groups)) / sum(map(len, groups))
        assert entry["loss_important"] == pytest.approx(important, abs=1e-5)
        assert entry["loss_unimportant"] == pytest.approx(unimportant, abs=1e-5)
        assert entry["loss_all"] == pytest.approx(every, abs=1e-5)
        assert entry["worst_group"] == float(important >= unimportant)
        assert entry["lambda"] == 0.9
        assert entry["important_share"] == pytest.approx(len(groups[1]) / sum(map(len, groups)))
        assert entry["loss"] == pytest.approx(0.1 * every + 0.9 * max(important, unimportant), abs=1e-4)

    @pytest.mark.parametrize("form", FORMS)
    def test_evaluation_is_the_objective_over_the_whole_held_out_set(self, form, uneven, tokenizer, tmp_path):
        settings = {"grouper": "first", **FORMS[form], "eval_fraction": 0.5, "eval_strategy": "no"}
        results = []
        for batch in (2, 11):  # however it is batched
            trainer = make_trainer(
                uneven, tokenizer, tmp_path / str(batch), per_device_eval_batch_size=batch, **settings
            )
            results.append(trainer.evaluate())
        for name in ("loss", "loss_all", "loss_important", "loss_unimportant", "important_share"):
            assert results[0][f"eval_{name}"] == pytest.approx(results[1][f"eval_{name}"], abs=1e-5)
        if form == "sft":
            assert results[0]["eval_loss"] == results[0]["eval_loss_all"]
        if form == "go":
            worst = max(results[0]["eval_loss_important"], results[0]["eval_loss_unimportant"])
            assert results[0]["eval_loss"] == pytest.approx(0.1 * results[0]["eval_loss_all"] + 0.9 * worst)

    def test_shards_without_a_chosen_column_give_the_plain_loss_alone(self, uneven, tokenizer, tmp_path):
        trainer = train(uneven, tokenizer, tmp_path, 4, 1, "sft", grouper=None, max_steps=2)
        assert history(trainer, "loss_all") == pytest.approx(history(trainer, "loss"), abs=1e-4)
        assert history(trainer, "loss_important") == []

    def test_a_log_line_over_several_steps_is_their_mean(self, uneven, tokenizer, tmp_path):
        each = train(uneven, tokenizer, tmp_path / "1", 4, 1, "go", max_steps=4)
        pairs = train(uneven, tokenizer, tmp_path / "2", 4, 1, "go", max_steps=4, logging_steps=2)
        values = history(each, "loss_important")
        means = [(values[0] + values[1]) / 2, (values[2] + values[3]) / 2]
        assert history(pairs, "loss_important") == pytest.approx(means, abs=1e-6)


class TestPlainTraining:
    def test_sft_is_trl(self, uneven, tokenizer, tmp_path):
        from trl import SFTConfig, SFTTrainer

        from tests.train.runs import QUIET

        ours = train(uneven, tokenizer, tmp_path / "ours", 4, 2, "sft", max_steps=5)
        rows = [ours.train_dataset[index] for index in range(len(ours.train_dataset))]
        labels = [[int(i) if s else -100 for i, s in zip(r["input_ids"], r["supervised"], strict=True)] for r in rows]
        plain = Dataset.from_dict({"input_ids": [r["input_ids"].tolist() for r in rows], "labels": labels})
        args = SFTConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=5,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=1,
            **QUIET,
        )
        theirs = SFTTrainer(make_model(tokenizer), args, train_dataset=plain, processing_class=tokenizer)
        theirs.train()
        assert torch.equal(parameters(ours), parameters(theirs))
        for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"):
            assert history(ours, name) == history(theirs, name)

    def test_go_without_lambda_is_sft(self, uneven, tokenizer, tmp_path):
        plain = train(uneven, tokenizer, tmp_path / "sft", 4, 1, "sft", max_steps=30)
        go = train(uneven, tokenizer, tmp_path / "go", 4, 1, "go", max_steps=30, lambda_max=0.0, lambda_min=0.0)
        torch.testing.assert_close(parameters(go), parameters(plain), atol=1e-6, rtol=0)
        assert history(go, "loss_important") == pytest.approx(history(plain, "loss_important"), abs=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    def test_loss_falls(self, form, uneven, tokenizer, tmp_path):
        losses = history(train(uneven, tokenizer, tmp_path, 8, 1, form, max_steps=12), "loss_all")
        assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.1

    def test_rho1_with_eta_zero_is_sft(self, uneven, tokenizer, tmp_path):
        plain = train(uneven, tokenizer, tmp_path / "sft", 4, 1, "sft", grouper="reference")
        rho1 = train(uneven, tokenizer, tmp_path / "rho1", 4, 1, "rho1", eta=0.0)
        torch.testing.assert_close(parameters(rho1), parameters(plain), atol=1e-5, rtol=0)

    def test_lambda_decays(self, uneven, tokenizer, tmp_path):
        trainer = train(uneven, tokenizer, tmp_path, 8, 1, "go decaying", max_steps=4, lambda_min=0.5)
        assert history(trainer, "lambda") == pytest.approx([0.9, 0.675, 0.5, 0.5])


class TestSplitSteps:
    """With AdamW and clipping, as runs have them; `test_exactness.py` is the thorough one."""

    @pytest.mark.parametrize("form", ["sft", "go"])
    def test_accumulation_changes_nothing(self, form, uneven, tokenizer, tmp_path):
        whole = train(uneven, tokenizer, tmp_path / "8", 8, 1, form)
        split = train(uneven, tokenizer, tmp_path / "2", 2, 4, form)
        torch.testing.assert_close(parameters(split), parameters(whole), atol=1e-5, rtol=0)
        assert history(split, "grad_norm") == pytest.approx(history(whole, "grad_norm"), abs=1e-5)

    def test_redone_passes_drop_the_same_units(self, uneven, tokenizer, tmp_path, monkeypatch):
        results = []
        for guess in (0, 1):
            monkeypatch.setattr(Step, "guess", lambda self, guess=guess: torch.tensor(guess))
            model = make_model(tokenizer)
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = 0.3
            results.append(train(uneven, tokenizer, tmp_path / str(guess), 2, 4, "go", model=model))
        torch.testing.assert_close(parameters(results[0]), parameters(results[1]), atol=1e-5, rtol=0)
        assert history(results[0], "loss") == pytest.approx(history(results[1], "loss"), abs=1e-4)

    def test_counts_are_known_before_the_first_pass(self, uneven, tokenizer, tmp_path):
        trainer = make_trainer(
            uneven, tokenizer, tmp_path, grouper="first", per_device_train_batch_size=4, gradient_accumulation_steps=2
        )
        batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
        counts = trainer._step.counts
        assert counts.documents == 8
        assert counts.supervised == sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
        assert counts.groups[1] == sum(int(b["group"].sum()) for b in batches)
        assert all(COUNTS in batch for batch in batches)


class TestNothingSupervised:
    @pytest.mark.parametrize("objective", ["sft", "go"])
    def test_a_batch_without_supervised_tokens_gives_a_finite_zero(self, objective, tokenizer, tmp_path):
        rows = {"input_ids": [[5, 6, 7, 8]] * 2, "supervised": [[False] * 4] * 2, "important": [[False] * 4] * 2}
        data = Dataset.from_dict(rows).with_format("numpy")
        args = make_config(tmp_path, objective=objective, max_steps=2, per_device_train_batch_size=1, weight_decay=0.0)
        model = make_model(tokenizer)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        trainer = trainer_over(data, model, args, tokenizer)
        trainer.train()
        assert history(trainer, "loss") == [0.0, 0.0]
        assert torch.equal(parameters(trainer), before)


class TestPaddingFree:
    @pytest.mark.parametrize("form", FORMS)
    def test_same_as_padded(self, form, uneven, tokenizer, tmp_path):
        padded = train(uneven, tokenizer, tmp_path / "padded", 4, 2, form, max_steps=4)
        flat = train(uneven, tokenizer, tmp_path / "flat", 4, 2, form, max_steps=4, padding_free=True)
        torch.testing.assert_close(parameters(flat), parameters(padded), atol=2e-5, rtol=0)
        for name in ("loss_all", "loss_important", "important_share"):
            assert history(flat, name) == pytest.approx(history(padded, name), abs=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("objective", ["go", "rho1"])
    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
            ({"loss_type": "dft"}, "loss_type"),
            ({"average_tokens_across_devices": False}, "average_tokens_across_devices"),
            ({"liger_kernel_config": {"fused_linear_cross_entropy": True}}, "liger_kernel_config"),
            ({"completion_only_loss": True}, "completion_only_loss"),
            ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy"),
        ],
    )
    def test_settings_that_bypass_the_objective(self, objective, changes, word, all_shards, tokenizer, tmp_path):
        grouper = "first" if objective == "go" else "reference"
        with pytest.raises(UserError, match=word):
            make_trainer(all_shards, tokenizer, tmp_path, grouper=grouper, objective=objective, **changes)

    def test_compute_loss_func(self, shards, tokenizer, tmp_path):
        data = make_trainer(shards, tokenizer, tmp_path).train_dataset
        with pytest.raises(UserError, match="compute_loss_func"):
            trainer_over(data, make_model(tokenizer), make_config(tmp_path), None, compute_loss_func=lambda *a, **k: 0)
