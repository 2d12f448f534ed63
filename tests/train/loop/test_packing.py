"""Packed and padding-free rows: each token has the loss and the group that it has alone; the fused head is exact."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from common.errors import UserError
from tests.train.conftest import COLUMNS, write_shards
from tests.train.loop.test_exactness import OTHERS
from tests.train.runs import history, make_config, make_objective, make_trainer, small_model, trainer_over
from train.data.collate import EXTRA_KEYS
from train.data.loading import TrainingData, load_data, open_shards
from train.data.plan import plan_groups
from train.loop.isolation import check_isolation
from train.loop.trainer import GOTrainer
from train.run import _packed

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 280,
}
MODELS = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=6),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=8),
}
LEAKING = {
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=280),
    "opt": OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=280, word_embed_proj_dim=32
    ),
}
FORMS = {
    "sft": {"objective": "sft"},
    "go": {"objective": "go"},
    "sample": {"objective": "go", "worst_over": "sample"},
    "rho1": {"objective": "rho1", "grouper": "reference"},
    **OTHERS,
}


def model_of(config, attention=None):
    torch.manual_seed(0)
    options = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config, **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tokenizer):
    return write_shards(tmp_path_factory.mktemp("packing") / "shards", tokenizer, 18, COLUMNS, seed=3)


def packed_trainer(shards, tokenizer, output, model, column="first", **changes):
    """A trainer over rows of `max_length` tokens, packed as `train run` does it; and the documents that went in."""
    objective = make_objective(changes.pop("objective", "go"), changes)
    args = make_config(output, objective=objective.name, eta=0.6, max_steps=1, **changes)
    opened = open_shards([str(shards)])
    plan = plan_groups(opened, column, objective.needs, args.eta, args.resolved_ties)
    data = load_data(opened, plan, args.max_length, 0.0, args.seed, output / ".data")
    rows = _packed(TrainingData(data.train, None, data.report), args).train
    return GOTrainer(model, args, objective, plan, rows, processing_class=tokenizer), data.train


def token_table(trainer, model):
    """Return for each document, by its token ids: losses, groups and supervised of its tokens but the first."""
    table = {}
    model.eval()
    for batch in trainer.get_train_dataloader():
        extra = {key: batch.get(key) for key in EXTRA_KEYS}
        inputs = {key: value for key, value in batch.items() if key not in EXTRA_KEYS}
        with torch.no_grad():
            tokens = trainer._observed(model(**inputs, use_cache=False, fused_lm_head=True), inputs, extra)
        ids = batch["input_ids"][0].tolist()
        document = batch["document"][0].tolist()
        starts = [index for index in range(len(ids)) if index == 0 or document[index] != document[index - 1]]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            predicted = slice(start, end - 1)  # position j - 1 of the outputs predicts token j
            key = tuple(ids[start:end])
            assert key not in table, "every document once"
            table[key] = (tokens.loss[predicted], tokens.group[predicted], tokens.supervised[predicted])
            assert len(set(tokens.document[predicted].tolist())) == 1
            if start:  # the first token of a document is nobody's to predict
                assert not tokens.supervised[start - 1]
                assert not tokens.group[start - 1]
    return table


def check_against_alone(table, documents, model, max_length):
    """Compare with each document by itself, by full logits and `F.cross_entropy`."""
    assert len(table) == len(documents)
    for row in documents:
        ids = torch.tensor(row["input_ids"])
        assert len(ids) <= max_length
        loss, important, supervised = table[tuple(ids.tolist())]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        expected = cross_entropy(logits, ids[1:].long(), reduction="none")
        assert supervised.tolist() == row["supervised"][1:].tolist()
        torch.testing.assert_close(loss[supervised], expected[supervised], atol=1e-5, rtol=0)
        if "group" in row:
            assert important.tolist() == row["group"][1:].tolist()
        else:
            excess = (expected - torch.tensor(row["reference_loss"][1:]))[supervised]
            keep = -(-int(supervised.sum()) * 2 // 5)  # eta 0.6, the rank rule
            chosen = torch.zeros(len(excess), dtype=torch.bool)
            chosen[excess.argsort(descending=True, stable=True)[:keep]] = True
            assert important[supervised].tolist() == chosen.tolist()


class TestPackedRows:
    @pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
    @pytest.mark.parametrize("max_length", [96, 24])  # several documents a row; documents cut to fit
    def test_losses_and_groups_are_those_of_each_document_alone(
        self, strategy, max_length, shards, tokenizer, tmp_path
    ):
        model = small_model(tokenizer)
        trainer, documents = packed_trainer(
            shards,
            tokenizer,
            tmp_path,
            model,
            packing=True,
            packing_strategy=strategy,
            max_length=max_length,
            per_device_train_batch_size=2,
        )
        assert len(trainer.train_dataset) < len(documents)
        check_against_alone(token_table(trainer, model), documents, model, max_length)

    @pytest.mark.parametrize(
        "settings", [{"packing": True, "max_length": 96}, {"padding_free": True, "max_length": 64}]
    )
    @pytest.mark.parametrize("objective", ["rho1", "go"])
    def test_groups_from_the_excess_loss(self, settings, objective, shards, tokenizer, tmp_path):
        model = small_model(tokenizer)
        settings = {**settings, "objective": objective, **({"dynamic_groups": True} if objective == "go" else {})}
        trainer, documents = packed_trainer(shards, tokenizer, tmp_path, model, "reference", **settings)
        check_against_alone(token_table(trainer, model), documents, model, 96)

    @pytest.mark.parametrize("form", FORMS)
    def test_a_training_is_the_same(self, form, shards, tokenizer, tmp_path):
        """All documents in one step: packing changes their order, which a step does not depend on."""
        settings = {"optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0, **FORMS[form]}
        column = settings.pop("grouper", "first")
        packed, documents = packed_trainer(
            shards,
            tokenizer,
            tmp_path / "packed",
            small_model(tokenizer),
            column,
            packing=True,
            max_length=96,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=18,
            **settings,
        )
        packed.args.max_steps = 4
        packed.train()
        plain = make_trainer(
            shards,
            tokenizer,
            tmp_path / "plain",
            small_model(tokenizer),
            grouper=column,
            eta=0.6,
            max_steps=4,
            per_device_train_batch_size=len(documents),
            **settings,
        )
        plain.train()
        for name, value in plain.model.state_dict().items():
            torch.testing.assert_close(packed.model.state_dict()[name], value, atol=1e-5, rtol=0)
        for name in ("loss", "loss_important", "important_share"):
            assert history(packed, name) == pytest.approx(history(plain, name), abs=1e-5)

    def test_wrapped_rows_are_refused(self, shards, tokenizer, tmp_path):
        with pytest.raises(UserError, match="packing_strategy wrapped"):
            make_trainer(shards, tokenizer, tmp_path, grouper="first", packing=True, packing_strategy="wrapped")


class TestIsolation:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("name", MODELS)
    def test_documents_do_not_see_each_other(self, name, attention):
        model = model_of(MODELS[name], attention)
        add_fused_lm_head(model)
        collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        model.train()
        check_isolation(model, collator)
        assert model.training
        batch = collator([{"input_ids": list(range(start, start + 9))} for start in (10, 40, 70)])
        other = collator([{"input_ids": list(range(start, start + 9))} for start in (110, 40, 170)])
        model.eval()
        logits = [
            model(input_ids=b["input_ids"], position_ids=b["position_ids"], use_cache=False).logits
            for b in (batch, other)
        ]
        assert torch.equal(logits[0][:, 9:18], logits[1][:, 9:18])

    @pytest.mark.parametrize("setting", [{"packing": True}, {"padding_free": True}])
    @pytest.mark.parametrize("name", LEAKING)
    def test_a_model_that_drops_the_boundaries_is_refused(self, name, setting, shards, tokenizer, tmp_path):
        with pytest.raises(UserError, match="documents in one row see each other"):
            make_trainer(
                shards, tokenizer, tmp_path, model_of(LEAKING[name]), grouper="first", max_length=64, **setting
            )
        make_trainer(shards, tokenizer, tmp_path / "padded", model_of(LEAKING[name]), grouper="first")


class TestFusedHead:
    @pytest.mark.parametrize("tied", [True, False])
    def test_gradients_with_unequal_weights_and_masked_positions(self, tied, tokenizer):
        torch.manual_seed(1)
        ids = torch.randint(0, len(tokenizer), (3, 17))
        labels = ids.masked_fill(torch.rand(ids.shape) < 0.4, -100)
        labels[2] = -100  # a row without a supervised token
        weights = torch.rand(3, 16) * (torch.rand(3, 16) < 0.7) * 5  # zeros among them
        gradients = []
        for is_fused in (False, True):
            model = small_model(tokenizer, tied)
            add_fused_lm_head(model)
            if is_fused:
                outputs = model(input_ids=ids, labels=labels, fused_lm_head=True)
                assert torch.equal(outputs.label_mask, labels[:, 1:] != -100)
                losses = -outputs.log_probs
            else:
                logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
                losses = cross_entropy(logits, labels[:, 1:], reduction="none", ignore_index=-100)
            (losses * weights).sum().backward()
            gradients.append([losses.detach(), *(parameter.grad for parameter in model.parameters())])
        for plain, fused in zip(*gradients, strict=True):
            torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


NOTHING = {"input_ids": [[5, 6, 7, 8], [9, 10]], "supervised": [[False] * 4, [False] * 2]}


class TestNothingSupervised:
    """A batch, a step, a whole run without a supervised token: a finite zero, and parameters that stay."""

    @pytest.mark.parametrize("objective", ["sft", "go", "sample", "rho1"])
    @pytest.mark.parametrize("layout", ["padded", "padding_free", "packed"])
    def test_gives_a_finite_zero(self, objective, layout, tokenizer, tmp_path):
        rows = dict(NOTHING)
        if objective == "rho1":
            rows["reference_loss"] = [[0.5] * 4, [0.5] * 2]
        else:
            rows["group"] = rows["supervised"]
        settings = {"objective": "go", "worst_over": "sample"} if objective == "sample" else {"objective": objective}
        settings |= {"padding_free": {"padding_free": True}, "packed": {"packing": True, "max_length": 8}}.get(
            layout, {}
        )
        if layout == "packed":
            rows = {name: [[*column[0], *column[1]]] * 2 for name, column in rows.items()}
            rows["seq_lengths"] = [[4, 2]] * 2
        data = Dataset.from_dict(rows).with_format("numpy")
        chosen = make_objective(settings.pop("objective"), settings)
        args = make_config(
            tmp_path,
            objective=chosen.name,
            max_steps=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            weight_decay=0.0,
            logging_nan_inf_filter=False,  # it would hide a NaN
            **settings,
        )
        model = small_model(tokenizer)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = trainer_over(data, model, args, tokenizer, data, chosen)
        trainer.train()
        assert history(trainer, "loss") == [0.0, 0.0]
        assert history(trainer, "grad_norm") == [0.0, 0.0]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert trainer.evaluate()["eval_loss"] == 0.0

    @pytest.mark.parametrize("objective", ["go", "rho1"])
    def test_such_rows_change_nothing_for_the_others(self, objective, tokenizer, tmp_path):
        """A step of two documents, and the same step with two micro-batches that hold nothing."""
        real = {"input_ids": [[5, 6, 7, 8, 20, 30], [9, 10, 11]], "supervised": [[False, *[True] * 5], [True] * 3]}
        real["group"] = [[False, True, False, False, True, False], [False] * 3]
        results = []
        for extra in (0, 2):
            rows = {name: values + [values[0]] * extra for name, values in real.items()}
            rows["supervised"] = real["supervised"] + [[False] * 6] * extra
            if objective == "rho1":
                rows["reference_loss"] = [[0.5] * len(ids) for ids in rows["input_ids"]]
                rows.pop("group")
            data = Dataset.from_dict(rows).with_format("numpy")
            args = make_config(
                tmp_path / str(extra),
                objective=objective,
                max_steps=3,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=2 + extra,
                optim="sgd",
                learning_rate=0.3,
                max_grad_norm=0.0,
            )
            trainer = trainer_over(data, small_model(tokenizer), args, tokenizer)
            trainer.train()
            results.append(trainer)
        few, many = results
        for name, value in few.model.state_dict().items():
            torch.testing.assert_close(many.model.state_dict()[name], value, atol=1e-5, rtol=0)
        assert history(few, "loss") == pytest.approx(history(many, "loss"), abs=1e-6)
