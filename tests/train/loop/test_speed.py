"""How fast a run was: by hand, in the log, at the end, and through a resume."""

import json

import numpy as np
import pytest

from tests.train.runs import make_trainer, small_model
from train.reports import speed
from train.reports.speed import Speed, device_peak, flops_per_token, speed_of


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


class TestByHand:
    def test_rates(self, clock):
        meter = Speed(flops_per_token=2e9, peak_flops=1e12)
        meter.pause()
        clock[0] += 2
        meter.step(600, 200)
        clock[0] += 2
        meter.step(1000, 100)
        entries = meter.flush()
        assert entries["tokens_per_s"] == 250.0  # 1000 tokens in 4 s
        assert entries["supervised_tokens_per_s"] == 75.0
        assert entries["mfu"] == 0.5  # 250 × 2e9 of 1e12
        assert meter.flush() == {}

    def test_evaluation_is_left_out(self, clock):
        meter = Speed()
        meter.pause()
        clock[0] += 1
        meter.step(100, 50)
        clock[0] += 60  # an evaluation
        meter.pause()
        clock[0] += 1
        meter.step(200, 50)
        assert meter.flush()["tokens_per_s"] == 100.0
        assert "mfu" not in meter.whole() or meter.whole()["mfu"] is None  # no peak, no figure

    def test_a_resumed_run_counts_all_tokens_and_its_own_seconds(self, clock):
        meter = Speed()
        meter.restore({"tokens": 1000, "supervised": 400})
        meter.pause()
        clock[0] += 1
        meter.step(1100, 50)
        whole = meter.whole()
        assert (whole["tokens_seen"], whole["supervised_tokens_seen"]) == (1100, 450)
        assert (whole["tokens_per_s"], whole["supervised_tokens_per_s"]) == (100.0, 50.0)

    def test_its_runtime_is_that_of_all_parts(self, clock):
        meter = Speed()
        clock[0] += 30  # the model is loaded
        meter.begin()
        clock[0] += 8
        state = meter.state()
        clock[0] += 2  # lost: it is killed here
        other = Speed()
        other.restore(state)
        other.begin()
        assert other.earlier_s == 8.0
        clock[0] += 5
        assert other.state()["runtime_s"] == 13.0

    def test_flops(self, tokenizer):
        model = small_model(tokenizer)  # tied: the embedding multiplies once, as the head
        weights = sum(p.numel() for p in model.parameters())
        lengths = np.array([10, 30])  # a token's document has (100 + 900) / 40 = 25 tokens on average
        assert flops_per_token(model, lengths) == 6 * weights + 6 * 32 * 2 * 25
        untied = small_model(tokenizer, tied=False)
        looked_up = untied.get_input_embeddings().weight.numel()
        weights = sum(p.numel() for p in untied.parameters()) - looked_up
        assert flops_per_token(untied, lengths) == 6 * weights + 6 * 32 * 2 * 25
        model.requires_grad_(False)
        weights = sum(p.numel() for p in model.parameters())
        assert flops_per_token(model, lengths) == 4 * weights + 6 * 32 * 2 * 25

    @pytest.mark.parametrize(
        ("name", "peak"),
        [
            ("NVIDIA H100 80GB HBM3", 989.4e12),
            ("NVIDIA H100 PCIe", 756.5e12),
            ("NVIDIA H200", 989.4e12),
            ("NVIDIA A100-SXM4-80GB", 312e12),
            ("NVIDIA A100 80GB PCIe", 312e12),
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of it
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("Some other device", None),
        ],
    )
    def test_peaks(self, name, peak):
        assert device_peak(name) == peak

    def test_every_peak_has_a_source(self):
        for device in json.loads(speed.PEAKS.read_text())["devices"]:
            assert device["source"]


def test_log_lines_and_totals(shards, tokenizer, tmp_path):
    trainer = make_trainer(shards, tokenizer, tmp_path, small_model(tokenizer), num_train_epochs=2)
    trainer.speed = speed_of(trainer, np.array([20]))
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_s"] > entry["supervised_tokens_per_s"] > 0 for entry in lines)
    assert all(entry["peak_memory_mib"] > 0 for entry in lines)
    assert all("mfu" not in entry for entry in lines)  # a CPU's peak is not in the table
    rows = trainer.train_dataset
    whole = trainer.speed.whole()
    assert whole["tokens_seen"] == 2 * sum(len(row["input_ids"]) for row in rows)
    assert whole["supervised_tokens_seen"] == 2 * sum(int(row["supervised"][1:].sum()) for row in rows)
