"""The matched control: each document keeps its number of important tokens, in places that chance says."""

import numpy as np
import pytest

from common.shards import ShardDirectory
from common.thresholds import num_important
from tests.train.conftest import COLUMNS, write_shards
from train.data.loading import GroupPlan, load_data
from train.data.permutation import permute_groups, random_reference_losses
from train.objectives.excess import select_top

OFFSETS = np.array([0, 5, 5, 9])
IDS = ["a", "empty", "b"]
DEALT = np.array([False, True, True, True, True, False, True, False, True])
GROUPS = np.array([True, True, False, False, True, True, True, False, False])


def load(shards, cache, permute_seed=None, column="first", dynamic=False, eta=0.7, ties="threshold", **settings):
    settings = {"max_length": 64, "eval_fraction": 0.0, "eval_seed": 0, **settings}
    plan = GroupPlan(column, dynamic, eta, ties, permute_seed)
    return load_data([ShardDirectory(shards)], plan, cache=cache, **settings)


class TestPermutation:
    def test_moves_only_what_is_dealt_and_keeps_each_documents_count(self):
        seen = set()
        for seed in range(60):
            out = permute_groups(GROUPS, DEALT, OFFSETS, IDS, seed)
            assert np.array_equal(out[~DEALT], GROUPS[~DEALT])
            assert (out[:5].sum(), out[5:].sum()) == (3, 2)
            seen.add(tuple(out[DEALT].tolist()))
        # document a: 2 of 4 tokens, 6 ways; document b: 1 of 2, 2 ways
        assert len(seen) == 12

    def test_chance_is_even_over_positions(self):
        groups = np.arange(400) % 10 == 0  # constant offsets: in document order, every tenth
        offsets = np.arange(0, 401, 10)
        ids = [str(n) for n in range(40)]
        total = sum(permute_groups(groups, np.ones(400, bool), offsets, ids, s).reshape(40, 10) for s in range(50))
        share = total.sum(axis=0) / (40 * 50)  # of 2,000 draws, each position is to have a tenth: sd 0.0067
        assert np.abs(share - 0.1).max() < 0.03

    def test_seed_and_id_decide_and_nothing_else(self):
        long = np.tile([True, False], 32)
        alone = permute_groups(long, np.ones(64, bool), np.array([0, 64]), ["x"], 3)
        twice = permute_groups(
            np.concatenate([long, long]), np.ones(128, bool), np.array([0, 64, 128]), ["other", "x"], 3
        )
        assert np.array_equal(alone, twice[64:])
        assert not np.array_equal(twice[:64], twice[64:])
        assert not np.array_equal(alone, permute_groups(long, np.ones(64, bool), np.array([0, 64]), ["x"], 4))
        assert permute_groups(long, np.ones(64, bool), np.array([0, 64]), ["x"], -1).sum() == 32

    def test_other_labels_than_two_groups_are_dealt_out_too(self):
        labels = np.array([0, 1, 2, 3, 2, 1, 0, 3, 3], dtype=np.int8)
        out = permute_groups(labels, DEALT, OFFSETS, IDS, 5)
        assert out.dtype == np.int8
        assert sorted(out[1:5]) == [1, 2, 2, 3]

    def test_reference_losses_by_chance_outweigh_any_loss(self):
        losses = np.linspace(0, 4, 9)
        chance = random_reference_losses(losses, DEALT, OFFSETS, IDS, 1)
        assert chance.dtype == np.float32
        assert np.allclose(chance[~DEALT], losses[~DEALT])
        import torch

        document = torch.tensor([0] * 5 + [1] * 4)
        chosen = [
            select_top(loss - torch.from_numpy(chance), torch.from_numpy(DEALT), document, torch.tensor([2, 1]))
            for loss in (torch.zeros(9), torch.linspace(12, 0, 9))
        ]
        assert torch.equal(*chosen)
        assert [int(chosen[0][:5].sum()), int(chosen[0][5:].sum())] == [2, 1]


class TestLoading:
    @pytest.mark.parametrize("ties", ["threshold", "rank"])
    @pytest.mark.parametrize("max_length", [64, 12])
    def test_every_document_keeps_its_number(self, tmp_path, tokenizer, ties, max_length):
        rng = np.random.default_rng(0)
        documents = [
            {
                "input_ids": rng.integers(2, 200, length).tolist(),
                "supervised": rng.random(length).tolist() < np.array(0.8),  # the first token too, sometimes
                "first": rng.integers(0, 3, length).astype(np.float32).tolist(),  # many ties
            }
            for length in rng.integers(2, 30, 40)
        ]
        documents = [{**d, "supervised": d["supervised"].tolist()} for d in documents]
        shards = write_shards(tmp_path / "s", tokenizer, documents=documents, rows_per_shard=7)
        options = {"ties": ties, "max_length": max_length, "eta": 0.5}
        plain = load(shards, tmp_path / "cache", **options)
        control = load(shards, tmp_path / "cache", permute_seed=1, **options)
        assert plain.report == control.report
        moved = 0
        for before, after in zip(plain.train, control.train, strict=True):
            assert np.array_equal(before["input_ids"], after["input_ids"])
            predicted = before["supervised"].copy()
            predicted[0] = False
            assert before["group"][predicted].sum() == after["group"][predicted].sum()
            assert np.array_equal(before["group"][~predicted], after["group"][~predicted])
            moved += not np.array_equal(before["group"], after["group"])
        assert moved > 20

    def test_held_out_documents_keep_the_groupers_groups(self, shards, tmp_path):
        plain, control = (load(shards, tmp_path / "cache", seed, eval_fraction=0.5, eta=0.5) for seed in (None, 1))
        same = [np.array_equal(a["group"], b["group"]) for a, b in zip(plain.eval, control.eval, strict=True)]
        assert all(same)
        same = [np.array_equal(a["group"], b["group"]) for a, b in zip(plain.train, control.train, strict=True)]
        assert not all(same)

    def test_is_the_same_whatever_is_held_out(self, shards, tmp_path):
        def groups(fraction):
            rows = load(shards, tmp_path / str(fraction), 1, eval_fraction=fraction).train
            return {tuple(row["input_ids"].tolist()): tuple(row["group"].tolist()) for row in rows}

        everything, some = groups(0.0), groups(0.4)
        assert len(some) < len(everything)
        assert all(everything[document] == important for document, important in some.items())

    def test_dynamic_groups_keep_their_number(self, tmp_path, tokenizer):
        shards = write_shards(tmp_path / "all", tokenizer, columns=COLUMNS)
        options = {"column": "reference", "dynamic": True}
        plain, control = (load(shards, tmp_path / "cache", seed, **options) for seed in (None, 1))
        assert plain.report == control.report
        wanted = sum(num_important(0.7, int(row["supervised"][1:].sum())) for row in control.train)
        assert control.report.important_tokens == wanted
        for row in control.train:
            assert (row["reference_loss"][row["supervised"]] < 0).all()
