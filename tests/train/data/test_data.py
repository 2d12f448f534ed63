"""From shards to rows and batches: cuts, groups, the held-out split, and what is refused."""

import numpy as np
import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from common.errors import UserError
from common.manifest import MANIFEST_NAME, WORK_NAME
from common.shards import ShardDirectory
from common.thresholds import important_tokens, num_important
from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import plan_for
from train.data.collate import GroupCollator
from train.data.loading import load_data, open_shards
from train.data.plan import GroupPlan
from train.objectives.excess import select_top

STATIC = GroupPlan("first", False, 0.5, "threshold")

# Supervised scores: document 0 has 1 2 3 4 (median 2.5), document 1 has 7 7, document 2 has nothing to predict.
BY_HAND = [
    {"input_ids": [2, 3, 4, 5, 6], "supervised": [False, True, True, True, True], "first": [9.0, 1.0, 4.0, 2.0, 3.0]},
    {"input_ids": [7, 8, 9], "supervised": [False, True, True], "first": [0.0, 7.0, 7.0]},
    {"input_ids": [10, 11], "supervised": [True, False], "first": [1.0, 0.0]},
]


def load(path, cache, plan=STATIC, max_length=64, eval_fraction=0.0, seed=42):
    return load_data([ShardDirectory(path)], plan, max_length, eval_fraction, seed, cache)


@pytest.fixture
def by_hand(tmp_path, tokenizer):
    return write_shards(tmp_path / "by_hand", tokenizer, documents=BY_HAND, rows_per_shard=2)


class TestRows:
    def test_by_hand(self, by_hand, tmp_path):
        data = load(by_hand, tmp_path / "cache")
        rows = [data.train[index] for index in range(len(data.train))]
        assert [row["input_ids"].tolist() for row in rows] == [[2, 3, 4, 5, 6], [7, 8, 9]]
        assert [row["group"].tolist() for row in rows] == [[0, 0, 1, 0, 1], [0] * 3]
        report = data.report
        assert (report.documents, report.dropped, report.held_out) == (2, 1, 0)
        assert (report.supervised_tokens, report.important_tokens) == (6, 2)
        assert report.share_quartiles == [0.0, 0.125, 0.25, 0.375, 0.5]
        assert (report.empty_important, report.empty_unimportant) == (1, 0)

    def test_max_length_cuts_before_the_threshold(self, by_hand, tmp_path):
        data = load(by_hand, tmp_path / "cache", max_length=3)  # document 0 keeps scores 1 4: median 2.5
        rows = [data.train[index] for index in range(2)]
        assert [row["input_ids"].tolist() for row in rows] == [[2, 3, 4], [7, 8, 9]]
        assert rows[0]["group"].tolist() == [0, 0, 1]
        assert data.report.truncated_here == 1

    @pytest.mark.parametrize("ties", ["threshold", "rank"])
    @pytest.mark.parametrize("eta", [0.0, 0.3, 0.9])
    def test_groups_are_those_of_the_thresholds(self, shards, tmp_path, eta, ties):
        data = load(shards, tmp_path / "cache", GroupPlan("first", False, eta, ties))
        documents = [row for table in ShardDirectory(shards).tables() for row in table.to_pylist()]
        assert len(data.train) == len(documents)
        for row, document in zip(data.train, documents, strict=True):
            groups = important_tokens(np.array(document["first"], np.float32), document["supervised"], eta, ties)
            assert np.array_equal(row["group"], groups.important)

    def test_reference_losses_stay_raw(self, all_shards, tmp_path):
        plan = GroupPlan("reference", True, 0.7, "threshold")
        data = load(all_shards, tmp_path / "cache", plan)
        documents = [row for table in ShardDirectory(all_shards).tables() for row in table.to_pylist()]
        for row, document in zip(data.train, documents, strict=True):
            assert row["reference_loss"].tolist() == document["reference"]
        wanted = sum(num_important(0.7, sum(d["supervised"][1:])) for d in documents)
        assert data.report.important_tokens == wanted

    def test_rows_are_mapped_from_disk_and_found_again(self, shards, tmp_path):
        first = load(shards, tmp_path / "cache")
        files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
        again = load(shards, tmp_path / "cache")
        assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files
        assert first.train.cache_files
        assert first.report == again.report

    def test_a_score_that_is_not_finite_names_the_document(self, tmp_path, tokenizer):
        bad = [BY_HAND[0], {**BY_HAND[1], "first": [0.0, float("nan"), 1.0]}]
        path = write_shards(tmp_path / "bad", tokenizer, documents=bad)
        with pytest.raises(UserError, match="d1"):
            load(path, tmp_path / "cache")


class TestHeldOut:
    def test_is_a_partition_that_the_seed_decides(self, shards, tmp_path):
        def ids(data):
            return {tuple(row["input_ids"].tolist()) for row in data}

        first = load(shards, tmp_path / "a", eval_fraction=0.25)
        same = load(shards, tmp_path / "b", eval_fraction=0.25)
        other = load(shards, tmp_path / "c", eval_fraction=0.25, seed=7)
        assert (len(first.train), len(first.eval)) == (18, 6)
        assert first.report.held_out == 6
        assert ids(first.eval) == ids(same.eval) != ids(other.eval)
        assert not ids(first.train) & ids(first.eval)
        assert ids(first.train) | ids(first.eval) == ids(load(shards, tmp_path / "d").train)

    def test_is_the_same_whatever_eta(self, shards, tmp_path):
        evals = [
            load(shards, tmp_path / str(eta), GroupPlan("first", False, eta, "rank"), eval_fraction=0.2).eval
            for eta in (0.3, 0.9)
        ]
        assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(*evals, strict=True))


class TestPlan:
    def test_the_only_column_needs_no_name(self, shards):
        assert plan_for(open_shards([str(shards)]), None).column == "first"

    def test_several_columns_need_a_name(self, all_shards):
        opened = open_shards([str(all_shards)])
        with pytest.raises(UserError, match="first, second, reference"):
            plan_for(opened, None)
        assert plan_for(opened, "second").column == "second"
        assert plan_for(opened, None, objective="rho1") == GroupPlan("reference", True, 0.7, "threshold")
        assert plan_for(opened, None, objective="sft").column is None

    def test_a_missing_column_says_how_to_add_it(self, shards):
        with pytest.raises(UserError, match="annotate run --grouper tfidf"):
            plan_for(open_shards([str(shards)]), "tfidf")

    def test_reference_losses_are_no_importance(self, all_shards):
        opened = open_shards([str(all_shards)])
        with pytest.raises(UserError, match="--dynamic_groups"):
            plan_for(opened, "reference")
        assert plan_for(opened, "reference", dynamic_groups=True).dynamic
        assert plan_for(opened, "reference", objective="sft").dynamic

    @pytest.mark.parametrize("settings", [{"objective": "rho1"}, {"dynamic_groups": True}])
    def test_importance_is_no_reference_loss(self, all_shards, settings):
        with pytest.raises(UserError, match="reference losses"):
            plan_for(open_shards([str(all_shards)]), "first", **settings)


class TestDirectories:
    def test_problems_of_all_directories_come_together(self, shards, tmp_path):
        unfinished = tmp_path / "unfinished"
        (unfinished / WORK_NAME).mkdir(parents=True)
        shard = shards / "part-00001.parquet"
        shard.write_bytes(shard.read_bytes()[:-10])
        with pytest.raises(UserError) as error:
            open_shards([str(tmp_path / "missing"), str(unfinished), str(shards)])
        text = str(error.value)
        assert "no such directory" in text
        assert "did not finish" in text
        assert "part-00001.parquet" in text

    def test_two_tokenizers_do_not_mix(self, shards, tmp_path, tokenizer):
        from tests.train.conftest import build_tokenizer

        other = write_shards(tmp_path / "other", build_tokenizer("entirely different words were merged here"))
        with pytest.raises(UserError, match="one tokenizer"):
            open_shards([str(shards), str(other)])
        assert (shards / MANIFEST_NAME).is_file()

    def test_directories_are_joined(self, shards, tmp_path, tokenizer):
        second = write_shards(tmp_path / "second", tokenizer, num_documents=5, seed=9)
        data = load_data(open_shards([str(shards), str(second)]), STATIC, 64, 0.0, 0, tmp_path / "cache")
        assert len(data.train) == 29


class TestCollator:
    EXAMPLES = (
        {"input_ids": [5, 6, 7, 8], "supervised": [True, False, True, True], "group": [True, False, True, False]},
        {"input_ids": [9, 4], "supervised": [False, True], "group": [False, True]},
    )

    def collate(self, examples, padding_free=False, eta=0.5, select_over="document", **other):
        base = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free, **other)
        plan = GroupPlan("first", "reference_loss" in examples[0], eta, "threshold")
        return GroupCollator(base, plan, select_over)([{k: np.array(v) for k, v in e.items()} for e in examples])

    def test_padded(self):
        batch = self.collate(self.EXAMPLES)
        assert batch["labels"].tolist() == [[5, -100, 7, 8], [-100, 4, -100, -100]]
        assert batch["input_ids"].dtype == torch.int64
        # Document 0's first token is supervised, but nothing predicts it.
        assert batch["group"].tolist() == [[False, False, True, False], [False, True, False, False]]
        assert batch["document"].tolist() == [[0] * 4, [1] * 4]
        assert batch["counts"] == (3, 2, (1, 2), ())

    def test_padding_free(self):
        batch = self.collate(self.EXAMPLES, padding_free=True)
        assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
        assert batch["labels"].tolist() == [[-100, -100, 7, 8, -100, 4]]
        assert batch["group"].tolist() == [[False, False, True, False, False, True]]
        assert batch["document"].tolist() == [[0, 0, 0, 0, 1, 1]]
        assert batch["counts"] == (3, 2, (1, 2), ())
        padded = self.collate(self.EXAMPLES, padding_free=True, pad_to_multiple_of=8)
        assert padded["group"].tolist() == [[False, False, True, False, False, True, False, False]]
        assert padded["counts"] == (3, 2, (1, 2), ())

    def test_packed_rows_hold_several_documents(self):
        packed = {
            "input_ids": [5, 6, 7, 9, 4],
            "supervised": [False, True, True, False, True],
            "group": [False, True, False, False, True],
            "seq_lengths": [3, 2],
        }
        batch = self.collate([packed, packed], padding_free=True)
        assert batch["document"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 3, 3]]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1] * 2]
        assert batch["counts"] == (6, 4, (2, 4), ())

    def test_dynamic_groups_are_counted_beforehand(self):
        rng = np.random.default_rng(0)
        examples = []
        for length in (3, 7, 12, 30):
            examples.append(
                {
                    "input_ids": rng.integers(0, 9, length),
                    "supervised": rng.random(length) < 0.8,
                    "reference_loss": rng.random(length).astype(np.float32),
                }
            )
        for over in ("document", "batch"):
            batch = self.collate(examples, eta=0.7, select_over=over)
            supervised = (batch["labels"] != -100)[:, 1:].flatten()
            document = batch["document"][:, 1:].flatten() * (over == "document")
            score = torch.rand(supervised.shape)
            selected = select_top(score, supervised, document, batch["num_selected"])
            assert int(selected.sum()) == batch["counts"][2][1]
        assert len(batch["num_selected"]) == 1

    def test_columns_that_the_tests_use_are_all_kinds(self):
        assert set(COLUMNS.values()) == {"importance", "reference_loss"}
