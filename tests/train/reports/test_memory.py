"""Memory by arithmetic before a model is loaded: its parts by hand, and the whole beside what really lives."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl import ModelConfig
from trl.trainer.utils import add_fused_lm_head

from tests.train.runs import make_config
from train.loop import fitting
from train.loop.fitting import fit, padding_share
from train.reports import footprint
from train.reports.footprint import Batch, measure
from train.reports.memory import GIB, Estimate, estimate, largest_batch, memory_lines
from train.reports.rounding import rounding_lines, smallest_that_stays, unchanged_share


def config_of(layers=3, **changes):
    settings = {
        "vocab_size": 600,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**settings, **changes})


def settings(**changes):
    base = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "world_size": 1, "fsdp": False}
    return SimpleNamespace(**{**base, "bf16": False, "fp16": False, "optim": "adamw_torch_fused", **changes})


class TestParts:
    def test_by_hand(self):
        config = config_of()
        weights = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
        found = estimate(config, Batch(2, 16, False), settings(), "float32", None, False)
        assert found.weights == 4 * weights
        assert found.gradients == 4 * weights
        assert found.optimizer == 8 * weights
        assert found.total == 16 * weights + found.activations
        half = estimate(config, Batch(2, 16, False), settings(), "bfloat16", None, False)
        assert (half.weights, half.gradients, half.optimizer) == (2 * weights, 2 * weights, 4 * weights)

    def test_fsdp_shares_and_ddp_does_not(self):
        config, batch = config_of(), Batch(2, 16, False)
        alone = estimate(config, batch, settings(), "float32", None, False)
        ddp = estimate(config, batch, settings(world_size=8), "float32", None, False)
        shared = estimate(config, batch, settings(world_size=8, fsdp=True), "float32", None, False)
        assert ddp == alone
        for name in ("weights", "gradients", "optimizer"):
            assert getattr(shared, name) == getattr(alone, name) / 8
        assert shared.copies > 0

    def test_the_largest_batch(self):
        lengths = np.array([5, 9, 2, 7, 9])
        args = settings(per_device_train_batch_size=3)
        assert largest_batch(lengths, args, flat=False, masked=False) == Batch(3, 9, True)
        assert largest_batch(lengths, args, flat=True, masked=False) == Batch(1, 25, False)
        args = settings(per_device_train_batch_size=2)
        assert largest_batch(lengths, args, flat=False, masked=False) == Batch(2, 9, False)  # nothing is padded

    def test_depth_is_extrapolated_exactly(self, monkeypatch):
        config, batch = config_of(layers=9), Batch(2, 64, False)
        for checkpointing in (False, True):
            few = measure(config, batch, torch.float32, None, None, checkpointing)
            monkeypatch.setattr(footprint, "WHOLE_UP_TO", 20)
            whole = measure(config, batch, torch.float32, None, None, checkpointing)
            monkeypatch.undo()
            for name, value in vars(whole).items():
                assert getattr(few, name) == pytest.approx(value, rel=0.01), name


class TestAgainstWhatLives:
    """The same pass with real tensors and the real attention: the most bytes of storages that are alive at a time."""

    @pytest.mark.parametrize("kind", ["plain", "recomputed", "lora", "bf16"])
    @pytest.mark.parametrize(
        "shape", [{"layers": 6}, {"hidden_size": 256, "intermediate_size": 700}, {"vocab_size": 9000}]
    )
    def test_the_peak_of_a_pass(self, shape, kind):
        config, batch = config_of(**shape), Batch(2, 96, False)
        peft_config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if kind == "lora" else None
        compute = torch.bfloat16 if kind == "bf16" else None
        found = measure(config, batch, torch.float32, compute, peft_config, kind == "recomputed")
        model = LlamaForCausalLM(config).train()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if peft_config:
            model = get_peft_model(model, peft_config)
        if kind == "recomputed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.randint(0, config.vocab_size, (batch.rows, batch.columns))
        live = footprint._Live(t.untyped_storage() for t in (*model.parameters(), *model.buffers()))
        with live:
            with torch.autocast("cpu", compute) if compute else nullcontext():
                outputs = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
            (-outputs.log_probs).sum().backward()
        measured = max(whole for whole, _ in live.peaks.values())
        assert found.pass_with_gradients == pytest.approx(measured, rel=0.1)
        assert found.trained == sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)

    def test_recomputing_takes_less(self):
        config, batch = config_of(layers=6), Batch(4, 128, False)
        plain, recomputed = (measure(config, batch, torch.float32, None, None, kind) for kind in (False, True))
        assert recomputed.pass_with_gradients < 0.75 * plain.pass_with_gradients


class TestVerdict:
    FOUND = Estimate(2 * GIB, 2 * GIB, 4 * GIB, 1 * GIB, 0, Batch(4, 512, True), False)

    def test_it_fits(self):
        lines = memory_lines(self.FOUND, 16 * GIB, "this machine's memory", settings())
        assert lines[0] == ("memory", "about 9.0 GiB of 16.0 GiB (this machine's memory), fits")
        assert "optimizer 4.0 GiB" in lines[1][1]
        assert "4 × 512 tokens at most" in lines[1][1]
        assert len(lines) == 2

    def test_what_to_change(self):
        lines = dict(memory_lines(self.FOUND, 9.5 * GIB, "a device", settings()))  # some is for others
        assert "MORE THAN THERE IS" in lines["memory"]
        for flag in ("--gradient_checkpointing true", "--per_device_train_batch_size", "--fsdp true", "--use_peft"):
            assert flag in lines["  to change"]


@pytest.fixture
def rows():
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [list(range(n)) for n in (100, 90, 80, 20, 10, 5, 5, 5)]})


class TestFitting:
    """What the user left open is chosen by the estimate: recomputed layers, and smaller micro-batches."""

    def fit(self, rows, tmp_path, monkeypatch, available, given=(), can_split=True, **changes):
        monkeypatch.setattr(fitting, "SMALL", 0)
        monkeypatch.setattr(fitting, "available_bytes", lambda device: (available, "a device"))
        args = make_config(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **changes)
        return args, fit(
            args,
            frozenset(given),
            ModelConfig(dtype="float32"),
            config_of(5, intermediate_size=2048),
            rows,
            None,
            can_split,
        )

    def test_recomputes_only_where_it_must(self, rows, tmp_path, monkeypatch):
        _, roomy = self.fit(rows, tmp_path, monkeypatch, 16 * GIB)
        assert not roomy.memory.checkpointing
        _, tight = self.fit(rows, tmp_path, monkeypatch, roomy.memory.total * 0.95)
        assert tight.memory.checkpointing
        assert tight.memory.total < roomy.memory.total
        _, asked = self.fit(rows, tmp_path, monkeypatch, 16 * GIB, given={"gradient_checkpointing"})
        assert not asked.memory.checkpointing  # as the flag says

    def test_splits_a_step_whose_size_was_given(self, rows, tmp_path, monkeypatch):
        _, roomy = self.fit(rows, tmp_path, monkeypatch, 16 * GIB)
        floor = roomy.memory.weights + roomy.memory.gradients + roomy.memory.optimizer
        args, found = self.fit(rows, tmp_path, monkeypatch, floor * 1.001)
        assert args.per_device_train_batch_size == 1
        assert args.gradient_accumulation_steps == 8  # the same step
        assert not found.memory.fits(floor * 1.001)  # and what there is, is said
        assert "MORE THAN THERE IS" in dict(found.lines)["memory"]
        args, _ = self.fit(rows, tmp_path, monkeypatch, floor * 1.001, given={"per_device_train_batch_size"})
        assert args.per_device_train_batch_size == 4
        args, _ = self.fit(rows, tmp_path, monkeypatch, floor * 1.001, can_split=False)
        assert args.per_device_train_batch_size == 4

    def test_a_model_that_cannot_be_estimated_is_no_failure(self, rows, tmp_path, monkeypatch):
        monkeypatch.setattr("train.reports.memory.measure", lambda *a, **k: 1 / 0)
        _, found = self.fit(rows, tmp_path, monkeypatch, GIB)
        assert found.memory is None
        assert "not estimated" in dict(found.lines)["memory"]

    def test_padding(self):
        assert padding_share(np.array([10, 10, 10, 10]), 2) == 0.0
        assert padding_share(np.array([10, 30]), 2) == pytest.approx(1 - 40 / 60)


class TestRounding:
    @pytest.mark.parametrize(
        ("rate", "bits", "least"), [(1e-5, 7, 2.0**-8), (2.0**-17, 7, 2.0**-8), (1e-5, 10, 2.0**-5)]
    )
    def test_by_hand(self, rate, bits, least):
        """Neighbours of 2^-8 are 2^-15 away in bfloat16: half of it is 1.5e-5. Those of 2^-9: 7.6e-6."""
        assert smallest_that_stays(rate, bits) == least

    @pytest.mark.parametrize("rate", [1e-5, 1e-4])
    def test_a_real_step_leaves_as_many_unchanged(self, rate):
        model = LlamaForCausalLM(config_of()).bfloat16()
        share = unchanged_share(model, rate)
        before = [p.detach().clone() for p in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0).step()
        same = sum(int((p == b).sum()) for p, b in zip(model.parameters(), before, strict=True))
        total = sum(p.numel() for p in model.parameters())
        assert 0.01 < share < 0.99
        assert share == pytest.approx(same / total, abs=0.01)

    def test_said_only_where_it_matters(self):
        model = LlamaForCausalLM(config_of(1))
        assert rounding_lines(model, 1e-5) == []
        assert "of the weights unchanged" in rounding_lines(model.bfloat16(), 1e-5)[0][1]
        model.requires_grad_(False)
        assert rounding_lines(model, 1e-5) == []
