"""Linear layers through oneDNN: the same numbers, and who takes them."""

import platform

import pytest
import torch

from annotate.groupers.llmlingua2.checkpoint import Checkpoint
from annotate.groupers.llmlingua2.model import Compressor
from annotate.groupers.rho1.reference_loss import ReferenceModel
from annotate.models.onednn import OnednnLinear, use_onednn
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import save_compressor, small_tokenizer
from tests.annotate.groupers.rho1.rho1_models import make_model, save_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine().lower() not in ("x86_64", "amd64"),
    reason="torch without oneDNN, or not x86",
)


def layers(model) -> list[torch.nn.Linear]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def test_products_and_parameters_are_the_same():
    model = make_model("qwen2")  # has layers with a bias and layers without
    assert {layer.bias is None for layer in layers(model)} == {True, False}
    inputs = [torch.randn(3, 17, layer.in_features) for layer in layers(model)]
    with torch.inference_mode():
        expected = [layer(values) for layer, values in zip(layers(model), inputs, strict=True)]
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        use_onednn(model)
        found = [layer(values) for layer, values in zip(layers(model), inputs, strict=True)]
    assert all(type(layer) is OnednnLinear for layer in layers(model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_low_precision_stays_as_it_is():
    model = make_model("llama").bfloat16()
    use_onednn(model)
    assert not any(isinstance(layer, OnednnLinear) for layer in layers(model))


def test_scorers_take_it_but_not_beside_the_package(tmp_path):
    path = save_checkpoint(tmp_path / "reference")
    reference = ReferenceModel(path, "--reference-model", None, "float32", "cpu")
    checkpoint = Checkpoint.find(str(save_compressor(tmp_path / "bert", "bert", small_tokenizer("bert"))))
    for model, taken in (
        (reference.model, True),
        (Compressor(checkpoint).model, True),
        (Compressor(checkpoint, package_parity=True).model, False),
    ):
        assert all((type(layer) is OnednnLinear) is taken for layer in layers(model))
