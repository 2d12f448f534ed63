"""Attention that is told lengths: the same as each document alone, on the CPU and through a kernel's contract."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma2Config, GemmaConfig

from tests.train import flash
from tests.train.loop.test_packing import LEAKING, MODELS, SMALL, model_of
from tests.train.runs import history, make_trainer, parameters, small_model
from train.loop import attention
from train.loop.attention import ATTENTION, _band, attend, use_lengths, variable_length
from train.loop.layout import Layout, decide
from train.settings.config import GOConfig

STEPS = {"max_steps": 4, "per_device_train_batch_size": 6, "optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0}


class TestAttend:
    def states(self, heads=4, kv_heads=2, lengths=(3, 7, 1)):
        torch.manual_seed(0)
        make = lambda n: torch.randn(1, n, sum(lengths), 8)  # noqa: E731
        edges = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
        return make(heads), make(kv_heads), make(kv_heads), edges

    def by_hand(self, query, key, value, edges, window=None):
        """softmax(q kᵀ / sqrt(d)) v, token by token."""
        out = torch.zeros(1, query.shape[2], query.shape[1], query.shape[3])
        for start, end in zip(edges.tolist(), edges.tolist()[1:], strict=False):
            for token in range(start, end):
                first = start if window is None else max(start, token - window + 1)
                for head in range(query.shape[1]):
                    of = head * key.shape[1] // query.shape[1]
                    scores = key[0, of, first : token + 1] @ query[0, head, token] / query.shape[3] ** 0.5
                    out[0, token, head] = scores.softmax(0) @ value[0, of, first : token + 1]
        return out

    @pytest.mark.parametrize("window", [None, 3])
    def test_by_hand(self, window):
        query, key, value, edges = self.states()
        module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
        found, _ = attend(module, query, key, value, None, sliding_window=window, cu_seq_lens_q=edges, max_length_q=7)
        torch.testing.assert_close(found, self.by_hand(query, key, value, edges, window), atol=1e-5, rtol=0)

    def test_a_window(self):
        assert _band(3, 3, torch.device("cpu")) is None
        assert _band(3, 2, torch.device("cpu"))[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]

    @pytest.mark.parametrize("release", ["2.10", "2.11", "2.13"])
    def test_torchs_kernel_by_the_arguments_of_each_release(self, release, monkeypatch):
        """The kernel itself needs a GPU; the stand-in keeps its dtypes, shapes and boundaries."""
        seen = {}

        def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=None, causal=False, gqa=False):
            assert key.shape[1] == query.shape[1] or gqa
            seen["heads"] = key.shape[1]
            return flash.flash_attn_varlen_func(
                query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, softmax_scale=scale, causal=causal
            )

        releases = {
            "2.10": lambda q, k, v, a, b, m, n, is_causal=False: kernel(q, k, v, a, b, m, n, None, is_causal),
            "2.11": lambda q, k, v, a, b, m, n, scale=None, window_size=(-1, -1): kernel(
                q, k, v, a, b, m, n, scale, window_size == (-1, 0)
            ),
            "2.13": lambda q, k, v, a, b, m, n, scale=None, window_size=(-1, -1), enable_gqa=False: kernel(
                q, k, v, a, b, m, n, scale, window_size == (-1, 0), enable_gqa
            ),
        }
        takes = {
            "2.10": {"is_causal"},
            "2.11": {"scale", "window_size"},
            "2.13": {"scale", "window_size", "enable_gqa"},
        }[release]
        monkeypatch.setattr(attention, "_kernel", lambda: (releases[release], frozenset(takes)))
        query, key, value, edges = self.states()
        flat = [states[0].transpose(0, 1).bfloat16() for states in (query, key, value)]
        found = variable_length(*flat, edges, 7, 8**-0.5, None)
        expected = self.by_hand(query, key, value, edges)[0]
        torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)
        assert seen["heads"] == (2 if release == "2.13" else 4)

    def test_the_installed_torch_takes_what_it_is_given(self):
        """On a CPU the call ends in the kernel's own refusal, not in one of its arguments."""
        query, key, value, edges = self.states()
        flat = [states[0].transpose(0, 1).bfloat16() for states in (query, key, value)]
        with pytest.raises((NotImplementedError, RuntimeError), match=r"CPU|flash"):
            variable_length(*flat, edges, 7, 8**-0.5, None)


class TestModels:
    @pytest.mark.parametrize("name", MODELS)
    def test_those_that_agree_use_it(self, name):
        model = model_of(MODELS[name])
        assert use_lengths(model)
        assert model.config.get_text_config()._attn_implementation == ATTENTION

    @pytest.mark.parametrize("name", ["bloom", "softcap"])
    def test_those_that_do_not_keep_their_own(self, name):
        softcap = Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=5.0)
        model = model_of(softcap if name == "softcap" else LEAKING[name])
        before = model.config._attn_implementation
        assert not use_lengths(model)
        assert model.config._attn_implementation == before


@pytest.mark.parametrize("form", ["sft", "go", "rho1"])
def test_padding_free_gives_the_losses_of_padded_rows(form, all_shards, tokenizer, tmp_path):
    """To 1e-5 in float32, over four steps, with the model's own attention on one side."""
    settings = {"objective": form, "grouper": "reference" if form == "rho1" else "first", **STEPS}
    padded = make_trainer(all_shards, tokenizer, tmp_path / "padded", small_model(tokenizer), **settings)
    padded.train()
    flat = make_trainer(all_shards, tokenizer, tmp_path / "flat", small_model(tokenizer), padding_free=True, **settings)
    assert use_lengths(flat.model, False, flat.accelerator.autocast)
    flat.train()
    assert flat.model.config._attn_implementation == ATTENTION
    for name in ("loss", "loss_all", *(["loss_important"] if form != "sft" else [])):
        assert history(flat, name) == pytest.approx(history(padded, name), abs=1e-5)
    torch.testing.assert_close(parameters(flat), parameters(padded), atol=1e-5, rtol=0)


class TestLayout:
    def decide(self, tmp_path, device="cuda", capability=(9, 0), attention=None, config=None, **settings):
        bf16 = settings.pop("bf16", True)
        args = GOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=bf16, **settings)
        return decide(args, set(settings), attention, config or MODELS["llama"], device, capability)

    def test_on_a_gpu_padding_free_with_lengths(self, tmp_path):
        assert self.decide(tmp_path) == Layout(True, True, "padding-free, torch's variable-length attention")

    def test_on_a_cpu_padded(self, tmp_path):
        found = self.decide(tmp_path, device="cpu", capability=None)
        assert found[:2] == (False, False)
        assert "--padding_free true" in found.why

    def test_what_is_asked_for_is_done(self, tmp_path):
        assert self.decide(tmp_path, padding_free=False)[:2] == (False, False)
        assert self.decide(tmp_path, device="cpu", padding_free=True)[:2] == (True, True)
        assert self.decide(tmp_path, packing=True, max_length=64)[:2] == (False, True)
        assert self.decide(tmp_path, attention="flash_attention_2")[:2] == (True, False)
        assert self.decide(tmp_path, attention="sdpa")[:2] == (False, False)

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"bf16": False}, "half precision"),
            ({"capability": (7, 5)}, "compute capability 8.0, this GPU has 7.5"),
            ({"torch_compile": True}, "torch.compile"),
            ({"config": Gemma2Config(**SMALL, attn_logit_softcapping=5.0)}, "caps its attention scores"),
            ({"config": GemmaConfig(**SMALL, head_dim=512)}, "heads of up to 256"),
        ],
    )
    def test_what_the_kernel_cannot_do_stays_padded(self, settings, why, tmp_path):
        found = self.decide(tmp_path, **settings)
        assert not found.padding_free
        assert why in found.why
