"""Held-out documents by hand: which there are, their numbers, their groups, and the sums that are kept."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.shards import ShardDirectory
from common.thresholds import important_tokens
from tests.train.conftest import COLUMNS, write_shards
from train.data.held_out import METADATA_KEY, load_held_out
from train.data.loading import GroupPlan, load_data
from train.data.yardsticks import Yardsticks

# Supervised scores: document 0 has 1 4 2 3 (median 2.5), 1 has 7 7, 2 has nothing to predict, 3 has 5 1, 5 the first.
BY_HAND = [
    {"input_ids": [2, 3, 4, 5, 6], "supervised": [False, True, True, True, True], "first": [9.0, 1.0, 4.0, 2.0, 3.0]},
    {"input_ids": [7, 8, 9], "supervised": [False, True, True], "first": [0.0, 7.0, 7.0]},
    {"input_ids": [10, 11], "supervised": [True, False], "first": [1.0, 0.0]},
    {"input_ids": [12, 13], "supervised": [True, True], "first": [5.0, 1.0]},
]
BY_FIRST = Yardsticks(("first",), 0.5, "threshold")


@pytest.fixture
def by_hand(tmp_path, tokenizer):
    return ShardDirectory(write_shards(tmp_path / "by_hand", tokenizer, documents=BY_HAND, rows_per_shard=2))


def load(shards, cache, yardsticks=BY_FIRST, max_length=64, eval_fraction=0.99, eval_seed=0):
    return load_held_out([shards], yardsticks, max_length, eval_fraction, eval_seed, cache)


class TestByHand:
    def test_rows(self, by_hand, tmp_path):
        held_out = load(by_hand, tmp_path)
        rows = [held_out.rows()[index] for index in range(3)]
        assert [row["input_ids"].tolist() for row in rows] == [[2, 3, 4, 5, 6], [7, 8, 9], [12, 13]]
        assert [row["token_number"].tolist() for row in rows] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]
        assert held_out.predicted().tolist() == [False, True, True, True, True, False, True, True, False, True]

    def test_sums(self, by_hand, tmp_path):
        losses = np.array([100, 1, 2, 4, 8, 100, 16, 32, 100, 64], dtype=np.float64)
        held_out = load(by_hand, tmp_path)
        table = held_out.write(tmp_path / "eval_documents.parquet", losses, eval_seed=0, model="tiny")
        read = pq.read_table(tmp_path / "eval_documents.parquet")
        assert read.equals(table)
        assert read.to_pydict() == {
            "document_id": ["d0", "d1", "d3"],
            "tokens": [4, 2, 1],
            "loss": [15.0, 48.0, 64.0],
            "first.important_tokens": [2, 0, 0],  # of d3 the first token alone is important, and nothing predicts it
            "first.important_loss": [2.0 + 8.0, 0.0, 0.0],
        }
        assert [str(field.type) for field in read.schema] == ["string", "int64", "double", "int64", "double"]
        assert json.loads(read.schema.metadata[METADATA_KEY]) == {
            "eval_hash": held_out.eval_hash(),
            **{"columns": ["first"], "eta": 0.5, "ties": "threshold", "eval_seed": 0, "model": "tiny"},
        }

    def test_a_loss_that_is_not_a_number_stays_one_and_stays_where_it_is(self, by_hand, tmp_path):
        losses = np.ones(10)
        losses[[1, 5]] = np.nan  # token 1 is unimportant; token 5 is not predicted
        table = load(by_hand, tmp_path).sum_by_document(losses).to_pydict()
        assert np.isnan(table["loss"]).tolist() == [True, False, False]
        assert table["first.important_loss"] == [2.0, 0.0, 0.0]

    def test_the_cut_comes_before_the_groups(self, by_hand, tmp_path):
        held_out = load(by_hand, tmp_path, max_length=3)  # document 0 keeps scores 1 4: median 2.5
        table = held_out.sum_by_document(np.arange(len(held_out.predicted()), dtype=np.float64)).to_pydict()
        assert table["tokens"] == [2, 2, 1]
        assert table["first.important_loss"] == [2.0, 0.0, 0.0]


class TestHash:
    def test_tells_documents_apart_by_content_and_choice_not_by_yardsticks(self, all_shards, tmp_path):
        opened = ShardDirectory(all_shards)
        none = Yardsticks((), 0.5, "threshold")
        same = load(opened, tmp_path, Yardsticks(("first", "second"), 0.7, "rank"), eval_fraction=0.5).eval_hash()
        assert same == load(opened, tmp_path, none, eval_fraction=0.5).eval_hash()
        others = [
            load(opened, tmp_path, none, eval_fraction=0.5, eval_seed=1),
            load(opened, tmp_path, none, eval_fraction=0.4),
            load(opened, tmp_path, none, eval_fraction=0.5, max_length=10),
        ]
        assert len({same, *(other.eval_hash() for other in others)}) == 4

    def test_sees_the_supervised_mask(self, tmp_path, tokenizer):
        hashes = set()
        for supervised in ([False, True, True], [True, True, True]):
            documents = [{"input_ids": [5, 6, 7], "supervised": supervised, "first": [0.0, 1.0, 2.0]}]
            path = write_shards(tmp_path / str(len(hashes)), tokenizer, documents=documents)
            hashes.add(load(ShardDirectory(path), tmp_path / "cache").eval_hash())
        assert len(hashes) == 2


@pytest.mark.parametrize("ties", ["threshold", "rank"])
def test_documents_and_groups_are_those_of_the_trainers_own_data(all_shards, tmp_path, ties):
    opened = ShardDirectory(all_shards)
    data = load_data([opened], GroupPlan("first", False, 0.3, ties), 20, 0.5, 7, tmp_path)
    held_out = load(opened, tmp_path, Yardsticks(("second", "first"), 0.3, ties), 20, 0.5, 7)
    rows = held_out.numbered(data.eval)
    assert len(rows) == 12
    number = 0
    ones = held_out.sum_by_document(np.ones(len(held_out.predicted()))).to_pydict()
    documents = {tuple(d["input_ids"][:20]): d for t in opened.tables() for d in t.to_pylist()}
    for index, row in enumerate(rows):
        assert row["token_number"].tolist() == list(range(number, number + len(row["input_ids"])))
        number += len(row["input_ids"])
        document = documents[tuple(row["input_ids"].tolist())]
        assert ones["document_id"][index] == document["document_id"]
        predicted = np.array(document["supervised"][:20])
        predicted[0] = False
        assert ones["tokens"][index] == ones["loss"][index] == predicted.sum()
        for column in ("first", "second"):
            scores, supervised = (np.array(document[name][:20]) for name in (column, "supervised"))
            expected = (important_tokens(scores, supervised, 0.3, ties).important & predicted).sum()
            assert ones[f"{column}.important_tokens"][index] == expected
    assert number == len(held_out.predicted())


def test_is_found_again_and_maps_its_file(all_shards, tmp_path):
    opened = ShardDirectory(all_shards)
    first = load(opened, tmp_path, eval_fraction=0.5)
    written = first.file.stat().st_mtime_ns
    assert load(opened, tmp_path, eval_fraction=0.5).file.stat().st_mtime_ns == written
    assert first.rows().cache_files


def test_a_score_that_is_not_finite_names_the_document_and_the_column(tmp_path, tokenizer):
    columns = {name: COLUMNS[name] for name in ("first", "second")}
    bad = [
        {**BY_HAND[0], "second": [0.0] * 5},
        {**BY_HAND[1], "second": [0.0, float("inf"), 1.0]},
    ]
    path = write_shards(tmp_path / "bad", tokenizer, documents=bad, columns=columns)
    with pytest.raises(UserError, match=r"'second' of document d1.*--eval_groupers"):
        load(ShardDirectory(path), tmp_path / "cache", Yardsticks(("first", "second"), 0.5, "threshold"))
    load(ShardDirectory(path), tmp_path / "cache")
