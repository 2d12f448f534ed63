"""Which columns held-out documents are measured by."""

import pytest

from common.errors import UserError
from tests.train.conftest import COLUMNS, write_shards
from train.data.loading import open_shards
from train.data.yardsticks import Yardsticks, plan_yardsticks


def test_the_default_is_every_importance_column(all_shards):
    opened = open_shards([str(all_shards)])
    assert plan_yardsticks(opened, None, 0.7, "threshold") == Yardsticks(("first", "second"), 0.7, "threshold")
    assert plan_yardsticks(opened, ["second", "second"], 0.7, "rank").columns == ("second",)


def test_the_default_is_what_all_directories_hold(all_shards, tmp_path, tokenizer):
    other = write_shards(tmp_path / "other", tokenizer, columns={"second": "importance", "third": "importance"})
    opened = open_shards([str(all_shards), str(other)])
    assert plan_yardsticks(opened, None, 0.7, "threshold").columns == ("second",)


def test_columns_that_cannot_be_one_are_refused_together(all_shards, tmp_path, tokenizer):
    other = write_shards(tmp_path / "other", tokenizer, columns=COLUMNS)
    opened = open_shards([str(all_shards), str(other)])
    with pytest.raises(UserError) as error:
        plan_yardsticks(opened, ["first", "reference", "thrid"], 0.7, "threshold")
    text = str(error.value)
    assert text.count("--eval_groupers thrid") == 2
    assert "reference model's losses" in text
    assert "first, second" in text
