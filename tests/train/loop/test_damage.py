"""Checkpoints that were damaged after they were written: the file is named, and the newest whole one is taken."""

import json

import pytest
import torch

from common.errors import UserError
from tests.train.runs import make_trainer, parameters
from train.loop.checksums import CHECKSUMS_NAME, find_damage, write_checksums
from train.loop.replay import random_state, replayed
from train.loop.resume import find_checkpoint, find_fault, open_checkpoint


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {"truncated": (cut, "bytes, "), "altered": (flip, "was altered"), "missing": (lambda p: p.unlink(), "missing")}
HARMED = [
    ("truncated", "model.safetensors"),
    ("altered", "model.safetensors"),
    ("altered", "optimizer.pt"),
    ("missing", "scheduler.pt"),
    ("truncated", "rng_state.pth"),
]


@pytest.fixture
def run(shards, tokenizer, tmp_path):
    """Train four steps with a checkpoint after the second and the fourth; `train(resume)` does it again."""

    def train(resume=None):
        settings = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4, "max_steps": 4}
        trainer = make_trainer(shards, tokenizer, tmp_path / "out", **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


class TestDamagedCheckpoints:
    @pytest.mark.parametrize(("damage", "file"), HARMED)
    def test_the_file_is_named_and_the_one_before_it_is_taken(self, damage, file, run, tmp_path):
        whole = run()
        output = tmp_path / "out"
        last = output / "checkpoint-4"
        assert find_checkpoint(output) == last
        harm, words = DAMAGE[damage]
        harm(last / file)
        assert file in find_fault(last)
        assert words in find_fault(last)
        with pytest.raises(UserError, match=rf"checkpoint-4: {file} .*newest whole one"):
            open_checkpoint(last)
        assert find_checkpoint(output) == output / "checkpoint-2"
        resumed = run(resume=True)
        assert resumed.continued["step"] == 2
        torch.testing.assert_close(parameters(resumed), parameters(whole), atol=0, rtol=0)
        assert find_fault(last) is None  # written anew, with sums of its own

    def test_every_file_has_its_sum(self, run, tmp_path):
        run()
        checkpoint = tmp_path / "out" / "checkpoint-4"
        known = json.loads((checkpoint / CHECKSUMS_NAME).read_text())
        assert set(known) == {path.name for path in checkpoint.iterdir()} - {CHECKSUMS_NAME}
        flip(checkpoint / "trainer_state.json")
        assert find_fault(checkpoint) is not None

    def test_a_checkpoint_of_an_earlier_version_is_still_taken(self, run, tmp_path):
        run()
        checkpoint = tmp_path / "out" / "checkpoint-4"
        (checkpoint / CHECKSUMS_NAME).unlink()
        assert find_checkpoint(tmp_path / "out") == checkpoint

    def test_sums_that_cannot_be_read(self, tmp_path):
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "a").write_bytes(b"x" * 10)
        write_checksums(tmp_path)
        assert find_damage(tmp_path) is None
        (tmp_path / "part" / "a").write_bytes(b"x" * 9)
        assert find_damage(tmp_path) == "part/a has 9 bytes, 10 were written"
        (tmp_path / CHECKSUMS_NAME).write_text('{"part/a": {"bytes"')
        assert "cannot be read" in find_damage(tmp_path)


def test_a_pass_that_fails_leaves_the_random_state_as_it_was():
    device = torch.device("cpu")
    states = random_state(device)
    torch.rand(3)
    before = torch.get_rng_state()

    def fail():
        with replayed(states, device):
            torch.rand(5)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


class TestNothingTrained:
    def fails(self, capsys, *words):
        from train.cli import main

        with pytest.raises(SystemExit) as stop:
            main(["run", *map(str, words)])
        assert stop.value.code == 1
        return capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--max_steps", 0], "--max_steps 0: nothing would be trained"),
            (["--num_train_epochs", 0], "--num_train_epochs 0: nothing would be trained"),
            # 24 documents do not fill a batch
            (["--dataloader_drop_last", "true", "--per_device_train_batch_size", 50], "rows do not fill a batch of 50"),
        ],
    )
    def test_is_no_finished_run(self, words, text, shards, tmp_path, capsys):
        output = tmp_path / "out"
        assert text in self.fails(capsys, "--shards", shards, "--use_cpu", "--output_dir", output, *words)
        assert not (output / "run.json").exists()
