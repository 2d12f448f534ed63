"""The parameters after ten optimizer steps do not depend on how a step is split, and equal a plain loop's.

Plain gradient descent without clipping, so that a gradient of the wrong size shows: AdamW and clipping would hide it.
The steps hold 8 documents of uneven lengths, the last one of each epoch 5 or 1. Most documents have no important token,
so many micro-batches, and at some steps a whole rank, have none.
"""

import numpy as np
import pytest
import torch

from tests.train import ranks
from tests.train.conftest import COLUMNS, write_shards
from tests.train.reference import descend, objective
from tests.train.runs import QUIET, history, make_trainer, small_model
from train.loop.step import Step
from train.objectives.base import worst_group
from train.objectives.go import GroupOptimization
from train.objectives.tokens import Sums, count_tokens, group_sums

STEPS = 10
PLAIN = {
    "optim": "sgd",
    "learning_rate": 0.3,  # at 1.0 the losses diverge, and rounding errors with them
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "max_steps": STEPS,
    "eta": 0.7,
    "grouper": "first",
}
FORMS = {
    "sft": {"objective": "sft"},
    "go": {"objective": "go", "lambda_max": 0.9},
    "go decaying": {"objective": "go", "lambda_max": 0.9, "lambda_min": 0.3},
    "go sample": {"objective": "go", "worst_over": "sample"},
    "rho1": {"objective": "rho1", "grouper": "reference"},
    "go dynamic": {"objective": "go", "dynamic_groups": True, "grouper": "reference"},
}
OTHERS = {
    "go quantiles": {"objective": "go", "group_quantiles": "0.4,0.8", "ties": "rank"},
    "go soft": {"objective": "go", "soft_groups": 0.3, "grouper": "second"},
    "dro": {"objective": "dro", "dro_step": 0.5},
    "dro previous": {"objective": "dro", "dro_step": 0.5, "dro_q": "previous"},
    "dft": {"objective": "dft", "learning_rate": 60.0},  # its gradients are as small as its probabilities
    "asft": {"objective": "asft", "anchor_weight": 0.05, "learning_rate": 60.0},
    "eaft": {"objective": "eaft"},
    "weighted": {"objective": "weighted", "weight_temperature": 2.0, "weight_floor": 0.1, "grouper": "second"},
    "cleaned": {"objective": "cleaned", "grouper": "second"},
}
FORMS |= OTHERS
SPLITS = ((8, 1), (4, 2), (2, 4), (1, 8))  # batch, accumulated
CURVES = ("loss", "loss_all", "loss_important", "loss_unimportant", "important_share", "worst_group", "lambda")


def split(batch, accumulated):
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}


def sparse_shards(path, tokenizer, num_documents):
    """Documents of 8 to 39 tokens; about two in three have equal scores throughout, so no important token."""
    rng = np.random.default_rng(5)
    documents = []
    for _ in range(num_documents):
        length, prompt = int(rng.integers(8, 40)), int(rng.integers(1, 6))
        scores = {name: rng.random(length).astype(np.float32) for name in COLUMNS}
        if rng.random() < 0.65:
            scores["first"][:] = 0.5
        documents.append(
            {
                "input_ids": rng.integers(2, len(tokenizer), length).tolist(),
                "supervised": [False] * prompt + [True] * (length - prompt),
                **{name: values.tolist() for name, values in scores.items()},
            }
        )
    return write_shards(path, tokenizer, columns=COLUMNS, documents=documents)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tokenizer):
    return {n: sparse_shards(tmp_path_factory.mktemp("sparse") / str(n), tokenizer, n) for n in (21, 17)}


@pytest.fixture(scope="module")
def truth(tmp_path_factory, tokenizer, shards):
    """Return, for a form, a number of documents and tied weights or not: the plain loop's parameters and losses."""
    known = {}

    def of(form, num_documents=21, tied=True):
        key = (form, num_documents, tied)
        if key not in known:
            settings = {**PLAIN, **FORMS[form], **split(8, 1)}
            model = small_model(tokenizer, tied)
            trainer = make_trainer(
                shards[num_documents], tokenizer, tmp_path_factory.mktemp("truth"), model, **settings
            )
            loader, steps = trainer.get_train_dataloader(), []
            for epoch in range(-(-STEPS // len(loader))):
                loader.set_epoch(epoch)
                steps += list(loader)
            steps = steps[:STEPS]
            losses = descend(model, steps, settings["learning_rate"], objective(settings))
            moved = max_difference(model.state_dict(), small_model(tokenizer, tied).state_dict())
            assert moved > 0.05, "the runs must go far, compared with a tolerance of 1e-5"
            known[key] = (model.state_dict(), losses, [ranks.fed_documents([batch]) for batch in steps])
        return known[key]

    return of


def train(shards, tokenizer, output, form, batch, accumulated, **changes):
    settings = {**PLAIN, **FORMS[form], **split(batch, accumulated), **changes}
    trainer = make_trainer(shards, tokenizer, output, small_model(tokenizer), **settings)
    trainer.train()
    return trainer


def max_difference(some, other):
    assert some.keys() == other.keys()
    return max((some[name] - other[name]).abs().max().item() for name in some)


class TestAccumulation:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_split_equals_the_plain_loop(self, form, shards, truth, tokenizer, tmp_path):
        parameters, losses, _ = truth(form)
        curves = {}
        for batch, accumulated in SPLITS[::3] if form in OTHERS else SPLITS:
            trainer = train(shards[21], tokenizer, tmp_path / str(batch), form, batch, accumulated)
            assert max_difference(trainer.model.state_dict(), parameters) < 1e-5, (batch, accumulated)
            assert history(trainer, "loss") == pytest.approx(losses, abs=1e-5)
            for name in CURVES:
                values = history(trainer, name)
                assert values == pytest.approx(curves.setdefault(name, values), abs=1e-5), (name, batch)
        assert (
            form == "go quantiles" or len(curves["loss_important"]) >= STEPS - 2
        )  # in two steps not one token is important

    @pytest.mark.parametrize("guess", [0, 1])
    def test_a_wrong_guess_at_every_micro_batch(self, guess, shards, truth, tokenizer, tmp_path, monkeypatch):
        monkeypatch.setattr(Step, "guess", lambda self: torch.tensor(guess))
        trainer = train(shards[21], tokenizer, tmp_path, "go", 2, 4)
        assert max_difference(trainer.model.state_dict(), truth("go")[0]) < 1e-5
        assert history(trainer, "loss") == pytest.approx(truth("go")[1], abs=1e-5)
        wrong = sum(worst != guess for worst in history(trainer, "worst_group"))
        assert 0 < wrong < STEPS
        assert trainer.redone.num_redone_steps == wrong
        per_step = [min(4, -(-documents // 2)) - 1 for documents in (8, 8, 5)]  # the last one is never guessed
        steps = enumerate(history(trainer, "worst_group"))
        assert trainer.redone.num_redone_batches == sum(per_step[i % 3] for i, worst in steps if worst != guess)
        assert history(trainer, "redone_steps")[-1] == wrong

    def test_a_maximum_for_each_micro_batch_is_another_training(self, shards, truth, tokenizer, tmp_path, monkeypatch):
        """The control: what every loop that splits a step does, and the tests above would notice."""
        weights = GroupOptimization.weights

        def naive(self, tokens, counts, decision, moment):
            sums = group_sums(tokens)
            return weights(self, tokens, counts, worst_group(Sums(sums, sums[:0]), count_tokens(tokens)), moment)

        monkeypatch.setattr(GroupOptimization, "weights", naive)
        monkeypatch.setattr("train.loop.trainer.wrong_batches", lambda *arguments: [])
        whole = train(shards[21], tokenizer, tmp_path / "8", "go", 8, 1)
        assert max_difference(whole.model.state_dict(), truth("go")[0]) < 1e-5
        parts = train(shards[21], tokenizer, tmp_path / "2", "go", 2, 4)
        assert max_difference(parts.model.state_dict(), truth("go")[0]) > 1e-3

    @pytest.mark.parametrize(("batch", "accumulated"), SPLITS)
    def test_sft_is_trls_own_trainer(self, batch, accumulated, shards, tokenizer, tmp_path):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        ours = train(shards[21], tokenizer, tmp_path / "ours", "sft", batch, accumulated)
        rows = [ours.train_dataset[index] for index in range(21)]
        labels = [[int(i) if s else -100 for i, s in zip(r["input_ids"], r["supervised"], strict=True)] for r in rows]
        data = Dataset.from_dict({"input_ids": [r["input_ids"].tolist() for r in rows], "labels": labels})
        settings = {name: value for name, value in PLAIN.items() if name not in ("eta", "grouper")}
        args = SFTConfig(
            output_dir=str(tmp_path / "trl"), logging_steps=1, **{**QUIET, **settings, **split(batch, accumulated)}
        )
        theirs = SFTTrainer(small_model(tokenizer), args, train_dataset=data, processing_class=tokenizer)
        theirs.train()
        assert max_difference(ours.model.state_dict(), theirs.model.state_dict()) == 0
        assert history(ours, "loss") == history(theirs, "loss")


RANK_RUNS = {
    **{form: {**FORMS[form], **split(2, 2)} for form in FORMS},
    "guess 0": {**FORMS["go"], **split(2, 2), "guess": 0},
    "untied": {**FORMS["go"], **split(2, 2), "guess": 1, "model": {"tied": False}},
    "not accumulated": {**FORMS["go"], **split(4, 1)},
    "checkpointed": {**FORMS["go"], **split(2, 2), "gradient_checkpointing": True, "guess": 0},
}
WITH_DDP_ONLY = ("go dynamic", "not accumulated", "checkpointed", *OTHERS)  # for time; asft has no sharded copy


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def on_two_ranks(request, tmp_path_factory, shards):
    """Train everything on two ranks, in one process group, and return what reads the results."""
    shared = {**PLAIN, "shards": shards[21]}
    if request.param == "ddp":
        extra = {
            "one document left": {**FORMS["go"], **split(2, 2), "shards": shards[17]},
            "one document left, rho1": {**FORMS["rho1"], **split(2, 2), "shards": shards[17]},
            "resumed": {**FORMS["go"], **split(2, 2), "resume_at": 5},
            "held out": {**FORMS["go"], **split(2, 2), "max_steps": 1, "eval_fraction": 0.35, "evaluate": True}
            | {"per_device_eval_batch_size": 2, "learning_rate": 0.0},
        }
        runs = {**RANK_RUNS, **extra}
    else:
        shared |= {"fsdp": True, "fsdp_config": {}}
        runs = {name: run for name, run in RANK_RUNS.items() if name not in WITH_DDP_ONLY}
    folder = tmp_path_factory.mktemp(request.param) / "job"
    ranks.launch(folder, {name: {**shared, **run} for name, run in runs.items()}, request.param == "fsdp2")
    return request.param, lambda name: ranks.load(folder, name)


@pytest.mark.slow
class TestTwoRanks:
    @pytest.mark.parametrize("name", RANK_RUNS)
    def test_equals_the_plain_loop(self, name, on_two_ranks, truth):
        kind, result_of = on_two_ranks
        if kind != "ddp" and name in WITH_DDP_ONLY:
            pytest.skip("run with DDP only, for time")
        result = result_of(name)
        parameters, losses, fed = truth(name if name in FORMS else "go", tied=name != "untied")
        assert result["wrapped"] == ("DistributedDataParallel" if kind == "ddp" else "FSDPLlamaForCausalLM")
        assert [sorted(a + b) for a, b in zip(*result["fed"], strict=True)] == fed  # the very same documents, once each
        assert max_difference(result["parameters"], parameters) < 1e-5
        assert logged(result, "loss") == pytest.approx(losses, abs=1e-5)

    def test_wrong_guesses_are_counted(self, on_two_ranks):
        _, result_of = on_two_ranks
        for name, guess in (("guess 0", 0), ("untied", 1)):
            result = result_of(name)
            wrong = sum(worst != guess for worst in logged(result, "worst_group"))
            assert 0 < wrong < STEPS
            assert result["redone"] == wrong == logged(result, "redone_steps")[-1]

    def test_the_data_has_what_is_hard(self, on_two_ranks):
        """A group absent from micro-batches and from a whole rank, and a last step that does not fill the ranks."""
        _, result_of = on_two_ranks
        counts = result_of("go")["counts"]
        steps = list(zip(*counts, strict=True))
        hard = [step for step in steps if sum(batch.groups[1] for rank in step for batch in rank)]
        assert len(hard) >= STEPS - 2
        assert any(not batch.groups[1] for step in hard for rank in step for batch in rank)
        assert any(not sum(batch.groups[1] for batch in rank) for step in hard for rank in step)
        assert [sum(batch.documents for rank in step for batch in rank) for step in steps[:3]] == [8, 8, 5]

    def test_a_rank_without_any_document(self, on_two_ranks, truth):
        kind, result_of = on_two_ranks
        if kind != "ddp":
            pytest.skip("run with DDP only, for time")
        for name, form in (("one document left", "go"), ("one document left, rho1", "rho1")):
            result = result_of(name)
            assert [sum(batch.supervised for batch in rank[2]) > 0 for rank in result["counts"]] == [True, False]
            assert max_difference(result["parameters"], truth(form, 17)[0]) < 1e-5
            assert logged(result, "loss") == pytest.approx(truth(form, 17)[1], abs=1e-5)

    def test_resumed_in_the_second_epoch(self, on_two_ranks, truth):
        kind, result_of = on_two_ranks
        if kind != "ddp":
            pytest.skip("run with DDP only, for time")
        result = result_of("resumed")
        assert [sorted(a + b) for a, b in zip(*result["fed"], strict=True)] == truth("go")[2][5:]
        assert max_difference(result["parameters"], truth("go")[0]) < 1e-5

    def test_evaluation_takes_every_held_out_document_once(self, on_two_ranks, shards, tokenizer, tmp_path):
        kind, result_of = on_two_ranks
        if kind != "ddp":
            pytest.skip("run with DDP only, for time")
        changes = {"eval_fraction": 0.35, "learning_rate": 0.0, "max_steps": 1}
        alone = train(shards[21], tokenizer, tmp_path, "go", 8, 1, **changes)
        assert len(alone.eval_dataset) == 7
        expected, found = alone.evaluate(), result_of("held out")["evaluation"]
        for name in ("loss", "loss_all", "loss_important", "loss_unimportant", "important_share"):
            assert found[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], abs=1e-5)


def logged(result, name):
    return [entry[name] for entry in result["history"] if name in entry]
