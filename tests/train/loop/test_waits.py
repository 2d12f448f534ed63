"""A training step waits for the device no more often than TRL's own: what would wait is counted on the CPU."""

import pytest
import torch
from datasets import Dataset

from tests.train import runs
from tests.train.runs import QUIET, make_config, make_trainer, small_model
from tests.train.waits import Waits, waits_of, watched
from train.loop import attention

STEPS = 4  # of which the first warms up
FORMS = {
    "sft": {"objective": "sft"},
    "go": {"objective": "go"},
    "rho1": {"objective": "rho1", "grouper": "reference"},
}
SETTINGS = {"logging_steps": 1000, "max_steps": STEPS, "per_device_train_batch_size": 2}


def pinned(args):
    """Return settings with pinned memory, which they have on a GPU and put away on a CPU."""
    args.dataloader_pin_memory = True
    return args


@pytest.fixture
def ours(all_shards, tokenizer, tmp_path, monkeypatch):
    """The product's trainer."""
    monkeypatch.setattr(runs, "make_config", lambda *args, **changes: pinned(make_config(*args, **changes)))

    def make(form, **changes):
        settings = {"grouper": "first", "eta": 0.7, **SETTINGS, **FORMS[form], **changes}
        return make_trainer(all_shards, tokenizer, tmp_path, small_model(tokenizer), **settings)

    return make


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, tokenizer):
    """The waits of TRL's trainer over the rows of another; each layout is measured once."""
    from trl import SFTConfig, SFTTrainer

    known = {}

    def measure(trainer, **changes):
        key = tuple(changes.items())
        if key in known:
            return known[key]
        rows = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
        labels = [[int(i) if s else -100 for i, s in zip(r["input_ids"], r["supervised"], strict=True)] for r in rows]
        data = Dataset.from_dict({"input_ids": [r["input_ids"].tolist() for r in rows], "labels": labels})
        output = str(tmp_path_factory.mktemp("trl"))
        prepared = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        args = pinned(SFTConfig(output_dir=output, **{**QUIET, **SETTINGS, **prepared, **changes}))
        base = SFTTrainer(small_model(tokenizer), args, train_dataset=data, processing_class=tokenizer)
        known[key] = waits_of(base)
        return known[key]

    return measure


@pytest.mark.parametrize("flat", [False, True], ids=["padded", "padding-free"])
class TestTrainingStep:
    @pytest.mark.parametrize("form", FORMS)
    def test_waits_no_more_often_than_trl(self, form, flat, ours, theirs):
        trainer = ours(form, padding_free=flat)
        expected, found = theirs(trainer, padding_free=flat), waits_of(trainer)
        assert expected["_local_scalar_dense"] >= STEPS - 1, "TRL reads its metrics once a step: nothing was counted"
        assert found - expected == {}, f"beyond TRL's {dict(expected)}"

    def test_with_accumulation_go_reads_once_a_step_which_passes_guessed_wrong(self, flat, ours, theirs):
        accumulated = {"padding_free": flat, "gradient_accumulation_steps": 2}
        trainer = ours("go", **accumulated)
        expected, found = theirs(trainer, **accumulated), waits_of(trainer)
        assert found - expected == {"tolist": STEPS - 1}, f"beyond TRL's {dict(expected)}"


class TestAttention:
    def test_the_kernel_is_called_without_a_wait(self, ours, monkeypatch):
        def kernel(query, key, value, edges_of_queries, edges_of_keys, longest_query, longest_key, **options):
            assert edges_of_queries.dtype == torch.int32
            return query

        trainer = ours("go", padding_free=True)
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
        tokens = batch["input_ids"].shape[1]
        states = torch.zeros(1, 2, tokens, 8)
        monkeypatch.setattr(attention, "_kernel", lambda: (kernel, frozenset(("scale", "enable_gqa"))))
        waits = Waits()
        waits.is_counting = True
        with watched(waits):
            attention._on_gpu(states, states, states, batch["cu_seq_lens_q"], batch["max_length_q"], None, 0.0, None)
        assert waits.kinds == {}


WAITING = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.clone().index_put_((x > 0,), torch.ones(3)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x.long()),
    "repeat": lambda x: x.repeat_interleave(x.long()),
    "made there": lambda x: torch.tensor([1.0], device="cpu"),
}
FREE = {
    "arithmetic": lambda x: (x * 2).sum() / 3,
    "fill": lambda x: x.masked_fill(x > 0, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "index": lambda x: x[torch.arange(2)],
    "sort": lambda x: x.argsort(),
    "repeat by a number": lambda x: x.repeat_interleave(2),
    "made here": lambda x: torch.zeros((), device="cpu"),
}


class TestCounting:
    """What the other tests rest on: each kind of wait is seen, and what does not wait is not."""

    @staticmethod
    def count(act):
        waits = Waits()
        waits.is_counting = True
        with watched(waits):
            act(torch.tensor([1.0, 2.0, 3.0]))
        return sum(waits.kinds.values())

    @pytest.mark.parametrize("kind", WAITING)
    def test_sees(self, kind):
        assert self.count(WAITING[kind]) == 1

    @pytest.mark.parametrize("kind", FREE)
    def test_does_not_see(self, kind):
        assert self.count(FREE[kind]) == 0
