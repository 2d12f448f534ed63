"""Settings that would bypass the objective, contradict the shards or do nothing are refused; others are honoured."""

import json

import pytest
import torch

from common.errors import UserError
from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import history, make_config, make_objective, make_trainer, parameters
from train.run import configure
from train.settings.refusals import parallelism_problems

BYPASSING = [
    (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor"),
    (["--loss_type", "dft"], "--loss_type dft"),
    (["--average_tokens_across_devices", "false"], "--average_tokens_across_devices"),
    (["--optim", "lomo"], "--optim lomo"),
]
ALWAYS = [
    (["--completion_only_loss", "true"], "--completion_only_loss"),
    (["--completion_only_loss", "false"], "--completion_only_loss"),
    (["--assistant_only_loss", "true"], "--assistant_only_loss"),
    (["--dataset_text_field", "content"], "--dataset_text_field"),
    (["--dataset_kwargs", '{"skip_prepare_dataset": false}'], "--dataset_kwargs"),
    (["--chat_template_path", "template.jinja"], "--chat_template_path"),
    (["--eos_token", "<|im_end|>"], "--eos_token"),
    (["--pad_token", "<pad>"], "--pad_token"),
    (["--label_names", "labels"], "--label_names"),
    (["--length_column_name", "size"], "--length_column_name"),
    (["--truncation_mode", "keep_end"], "--truncation_mode keep_end"),
    (["--packing", "true", "--packing_strategy", "wrapped"], "--packing_strategy wrapped"),
    (["--max_length", "1"], "--max_length"),
    (["--max_length", "-5"], "--max_length"),
    (["--dataset_num_proc", "4"], "--dataset_num_proc"),
    (["--use_cache", "true"], "--use_cache"),
    (["--include_for_metrics", "inputs"], "--include_for_metrics"),
    (["--batch_eval_metrics", "true"], "--batch_eval_metrics"),
    (["--eval_accumulation_steps", "2"], "--eval_accumulation_steps"),
    (["--do_predict", "true"], "--do_predict"),
    (["--restore_callback_states_from_checkpoint", "true"], "--restore_callback_states_from_checkpoint"),
    (["--ignore_data_skip", "true"], "--ignore_data_skip"),
    (["--auto_find_batch_size", "true"], "--auto_find_batch_size"),
    (["--accelerator_config", '{"dispatch_batches": true}'], "dispatch_batches"),
    (["--accelerator_config", '{"split_batches": true}'], "split_batches"),
    (["--accelerator_config", '{"use_seedable_sampler": false}'], "use_seedable_sampler"),
    (["--eval_strategy", "epoch"], "--eval_fraction"),
    (["--eval_on_start", "true"], "--eval_fraction"),
    (["--per_device_eval_batch_size", "4"], "--eval_fraction"),
    (["--do_eval", "true"], "--eval_fraction"),
    (["--model_init_kwargs", '{"attn_implementation": "eager"}'], "--model_init_kwargs"),
    (["--dtype", "bfloat16"], "--dtype"),
    (["--attn_implementation", "eager"], "--attn_implementation"),
    (["--model_revision", "other"], "--model_revision"),
    (["--lora_r", "8"], "--lora_r"),
]


def said(*words):
    return configure([*words, "--shards", "nowhere", "--use_cpu"])


class TestRefused:
    @pytest.mark.parametrize("objective", ["go", "rho1"])
    @pytest.mark.parametrize(("words", "expected"), BYPASSING)
    def test_what_would_bypass_the_objective(self, objective, words, expected):
        with pytest.raises(UserError, match="would bypass") as error:
            said("--objective", objective, *words)
        assert expected in str(error.value)

    @pytest.mark.parametrize("words", [words for words, _ in BYPASSING[:3] if "dft" not in words])
    def test_the_plain_objective_takes_it_as_trl_does(self, words):
        said("--objective", "sft", *words)

    def test_trls_dft_under_another_name_of_the_loss(self):
        with pytest.raises(UserError, match="--objective dft"):
            said("--objective", "sft", "--loss_type", "dft")

    @pytest.mark.parametrize("objective", ["sft", "go"])
    @pytest.mark.parametrize(("words", "expected"), ALWAYS)
    def test_what_contradicts_the_shards_or_does_nothing(self, objective, words, expected):
        with pytest.raises(UserError) as error:
            said("--objective", objective, *words)
        assert expected in str(error.value)
        assert len(str(error.value).splitlines()) == 1  # one problem, one sentence

    @pytest.mark.parametrize(
        ("kernels", "expected"),
        [
            ({"fused_linear_cross_entropy": True}, "fused_linear_cross_entropy computes its own loss"),
            ({"cross_entropy": True}, "cross_entropy computes its own loss"),
            ({"rope": True}, "only with --use_liger_kernel true"),
        ],
    )
    def test_kernels_that_fuse_their_own_loss(self, kernels, expected, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps({"liger_kernel_config": kernels}))  # JSON is YAML
        with pytest.raises(UserError, match=expected):
            said("--config", str(path))

    def test_parallelism_that_splits_what_is_counted_as_a_whole(self):
        class Parallelism:
            cp_size, sp_size, tp_size, dp_shard_size = 1, 1, 2, 4

        assert ["tensor" in problem for problem in parallelism_problems(Parallelism())] == [True]
        assert parallelism_problems(None) == []

    def test_problems_come_together(self):
        with pytest.raises(UserError) as error:
            said("--label_smoothing_factor", "0.1", "--eta", "1", "--lora_r", "3", "--completion_only_loss", "true")
        assert str(error.value).startswith("4 problems")

    def test_a_preset_is_named_in_no_refusal_of_its_own(self):
        said("--preset", "lima-3b-llmlingua2")
        said("--preset", "alpaca-8b-rho1", "--model", "tiny")

    def test_a_configuration_may_be_used_twice(self, shards, tokenizer, tmp_path):
        args = make_config(tmp_path, max_steps=1)
        assert args.problems_with(make_objective()) == []
        args.dataset_kwargs = {"skip_prepare_dataset": True}  # what the trainer sets
        assert args.problems_with(make_objective()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    return write_shards(tmp_path_factory.mktemp("honoured") / "shards", tokenizer, 24, COLUMNS)


class TestHonoured:
    """Settings of TRL's that go through the overridden loss: the numbers show that they act, or that they do not."""

    def train(self, place, tokenizer, output, **changes):
        settings = {"max_steps": 4, "per_device_train_batch_size": 4, "grouper": "first", **changes}
        trainer = make_trainer(place, tokenizer, output, **settings)
        trainer.train()
        return trainer

    @pytest.mark.parametrize(
        "changes",
        [
            {"remove_unused_columns": False},
            {"dataloader_num_workers": 1},
            {"pad_to_multiple_of": 16},
            {"gradient_checkpointing": True},
            {"logging_strategy": "epoch"},
            {"include_num_input_tokens_seen": "all"},
        ],
    )
    def test_changes_no_parameter(self, changes, place, tokenizer, tmp_path):
        plain = self.train(place, tokenizer, tmp_path / "plain")
        other = self.train(place, tokenizer, tmp_path / "other", **changes)
        torch.testing.assert_close(parameters(other), parameters(plain), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        "changes",
        [
            {"neftune_noise_alpha": 50.0},
            {"max_length": 12},
            {"train_sampling_strategy": "group_by_length"},
            {"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 5},
            {"data_seed": 7},
            {"max_grad_norm": 0.01},
            {"weight_decay": 0.5},
            {"optim": "sgd"},
        ],
    )
    def test_changes_the_parameters(self, changes, place, tokenizer, tmp_path):
        left = {name: value for name, value in changes.items() if name != "dataloader_drop_last"}
        base = left if "dataloader_drop_last" in changes else {}
        plain = self.train(place, tokenizer, tmp_path / "plain", **base)
        other = self.train(place, tokenizer, tmp_path / "other", **changes)
        assert (parameters(other) - parameters(plain)).abs().max() > 1e-5
        assert all(loss > 0 for loss in history(other, "loss_important"))

    def test_noise_in_the_embeddings_is_the_same_when_a_pass_is_run_again(
        self, place, tokenizer, tmp_path, monkeypatch
    ):
        from train.loop.step import Step

        results = []
        for guess in (0, 1):  # one of the two is wrong at every step
            monkeypatch.setattr(Step, "guess", lambda self, guess=guess: torch.tensor(guess))
            split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "neftune_noise_alpha": 20.0}
            results.append(parameters(self.train(place, tokenizer, tmp_path / str(guess), **split)))
        torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


class TestHeldOut:
    @pytest.mark.parametrize(
        "words",
        [
            ("--eval_seed", "1"),
            ("--eval_groupers", "first"),
            ("--eval_eta", "0.0"),
        ],
    )
    def test_without_held_out_documents_its_settings_are_refused(self, words):
        with pytest.raises(UserError, match=f"{words[0]}: nothing is held out"):
            said(*words)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--eval_seed", "-1"), "--eval_seed"),
            (("--eval_eta", "1.0"), "--eval_eta"),
            (("--permute_groups", "--objective", "sft"), "--permute_groups"),
        ],
    )
    def test_values_out_of_range_are_refused(self, words, expected):
        with pytest.raises(UserError, match=expected):
            said("--eval_fraction", "0.5", *words)

    def test_a_repeated_flag_adds_columns(self):
        words = ("--eval_groupers", "first", "--eval_fraction", "0.5", "--eval_groupers", "second", "third")
        assert said(*words).run.eval_groupers == ["first", "second", "third"]
