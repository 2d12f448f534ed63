"""dft is TRL's own `loss_type="dft"`, and unlike there, evaluation reports it too."""

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.train.conftest import write_shards
from tests.train.runs import QUIET, history, make_model, make_trainer, parameters


@pytest.mark.parametrize(("batch", "accumulated"), [(4, 1), (2, 2)])
def test_equals_trls_after_twenty_steps(batch, accumulated, tokenizer, tmp_path):
    shards = write_shards(tmp_path / "shards", tokenizer, 24)
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "max_steps": 20}
    ours = make_trainer(shards, tokenizer, tmp_path / "ours", objective="dft", **split)
    ours.train()
    rows = [ours.train_dataset[index] for index in range(len(ours.train_dataset))]
    labels = [[int(i) if s else -100 for i, s in zip(r["input_ids"], r["supervised"], strict=True)] for r in rows]
    data = Dataset.from_dict({"input_ids": [r["input_ids"].tolist() for r in rows], "labels": labels})
    args = SFTConfig(output_dir=str(tmp_path / "trl"), logging_steps=1, loss_type="dft", **{**QUIET, **split})
    theirs = SFTTrainer(make_model(tokenizer), args, train_dataset=data, processing_class=tokenizer)
    theirs.train()
    torch.testing.assert_close(parameters(ours), parameters(theirs), atol=1e-6, rtol=0)
    assert history(ours, "loss") == pytest.approx(history(theirs, "loss"), abs=1e-6)


def test_evaluation_reports_it(tokenizer, tmp_path):
    shards = write_shards(tmp_path / "shards", tokenizer, 12)
    trainer = make_trainer(shards, tokenizer, tmp_path / "out", objective="dft", eval_fraction=0.5)
    found, total, count = trainer.evaluate(), 0.0, 0
    for row in trainer.eval_dataset:
        ids = torch.tensor(row["input_ids"]).long()[None]
        with torch.no_grad():
            log_p = trainer.model(input_ids=ids).logits[0, :-1].double().log_softmax(dim=-1)
        log_p = log_p.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(row["supervised"])[1:]]
        total, count = total - float((log_p.exp() * log_p).sum()), count + len(log_p)
    assert found["eval_loss"] == pytest.approx(total / count, abs=1e-6)
    assert found["eval_loss"] < found["eval_loss_all"] / 10  # the plain mean is another number
