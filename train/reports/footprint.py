"""How much memory one training pass takes, found by running the model on tensors without data.

What enters: a model's configuration and the shape of its largest batch. What leaves: bytes of weights, gradients and
optimizer, and the most that a forward and backward pass holds beside the weights. Next: `memory.py` puts them against
the device.

Nothing is written down about any architecture: the model itself runs, on fake tensors of torch, which have shapes,
dtypes and storages but no content. Every storage is counted from the operation that makes it to its last reference.
Deep models are run with few layers: the peak of each part of a pass is linear in their number.
"""

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATTENTION = "sft_go_counted"  # what attention kernels save, whatever the device
FEW, MORE = 2, 4  # layers of the two runs that a deep model is extrapolated from
WHOLE_UP_TO = 6  # layers of a model that is run as it is


@dataclass(frozen=True)
class Batch:
    """The shape of one micro-batch."""

    rows: int
    columns: int
    masked: bool  # attention is told by a mask [rows, columns, columns] who sees whom (padding, or documents in a row)


@dataclass(frozen=True)
class Footprint:
    """Bytes, of one process that holds the whole model."""

    weights: int
    trained: int  # of the weights that get gradients
    head: int  # of the embedding, or the larger of embedding and head: one piece for FSDP2
    layer: int  # of one layer's weights
    optimizer: int
    gradients: int
    pass_with_gradients: int  # the most that a pass holds beside the weights, its own gradients among it
    pass_alone: int  # the same without them


class _Live(TorchDispatchMode):
    """Count the bytes of all storages that operations have made and that are still there."""

    def __init__(self, before: Iterable[Any]) -> None:
        """Begin; storages that were there `before` are not counted, although views of them are made."""
        super().__init__()
        self.live = self.gradients = 0
        self.stage = "forward"
        self.known: set[int] = {storage._cdata for storage in before}
        self.peaks: dict[str, tuple[int, int]] = {}  # stage: most bytes, with and without gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.note(value.untyped_storage())
        whole, alone = self.peaks.get(self.stage, (0, 0))
        self.peaks[self.stage] = max(whole, self.live), max(alone, self.live - self.gradients)
        return out

    def note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def measure(
    config: Any,
    batch: Batch,
    dtype: torch.dtype,
    compute: torch.dtype | None = None,
    peft_config: Any = None,
    checkpointing: bool = False,
    accumulates: bool = False,
    state_bytes: float = 8.0,
) -> Footprint:
    """Return a model's footprint.

    Args:
        config: a `transformers` configuration of a causal language model.
        batch: the largest micro-batch.
        dtype: of the weights.
        compute: of autocast; None without it.
        peft_config: trains an adapter.
        checkpointing: layers are recomputed in the backward pass.
        accumulates: gradients of earlier micro-batches are there when a pass begins.
        state_bytes: of the optimizer, for a trained weight.
    """
    depth = config.get_text_config().num_hidden_layers
    settings = (batch, dtype, compute, peft_config, checkpointing, accumulates)
    if depth <= WHOLE_UP_TO:
        runs = [(depth, _run(config, *settings))]
    else:
        runs = [(layers, _run(_cut(config, layers), *settings)) for layers in (FEW, MORE)]
    values = {name: _at(depth, [(layers, run[name]) for layers, run in runs]) for name in runs[0][1]}
    peaks = {name: value for name, value in values.items() if name.startswith("peak ")}
    return Footprint(
        weights=values["weights"],
        trained=values["trained"],
        head=values["head"],
        layer=values["layer"],
        optimizer=int(values["trained_count"] * state_bytes),
        gradients=values["trained"],
        pass_with_gradients=max(value for name, value in peaks.items() if name.endswith("with")),
        pass_alone=max(value for name, value in peaks.items() if name.endswith("alone")),
    )


def _at(depth: int, points: list[tuple[int, int]]) -> int:
    """Return the value at `depth` of the line through one or two points."""
    (first, low), (last, high) = points[0], points[-1]
    return low if first == last else round(low + (high - low) * (depth - first) / (last - first))


def _cut(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(text, name, None):
            setattr(text, name, getattr(text, name)[:layers])
    return config


def _run(
    config: Any,
    batch: Batch,
    dtype: torch.dtype,
    compute: torch.dtype | None,
    peft_config: Any,
    checkpointing: bool,
    accumulates: bool,
) -> dict[str, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    eager = getattr(config.get_text_config(), "_attn_implementation", None) == "eager"
    with _counted_attention(), torch.device("meta"):
        options = {} if eager else {"attn_implementation": ATTENTION}
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, **options)
    if peft_config is not None:
        from peft import get_peft_model

        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        with torch.device("meta"):
            model = get_peft_model(model, copy.deepcopy(peft_config))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        base = model.get_base_model() if peft_config is not None else model
        base.tie_weights()
        if peft_config is None:
            add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if peft_config is not None:
                model.enable_input_require_grads()
        ids = torch.zeros(batch.rows, batch.columns, dtype=torch.long)
        inputs = {"input_ids": ids, "labels": ids, "position_ids": ids[:1]}
        live = _Live(tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
        _watch(model, base, live)
        autocast = torch.autocast("cpu", compute) if compute else nullcontext()
        with live:
            if batch.masked:
                inputs["attention_mask"] = ids.new_ones(batch.rows, 1, batch.columns, batch.columns, dtype=torch.bool)
            for _ in range(2 if accumulates else 1):
                live.stage = "forward"
                with autocast:
                    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
                live.stage = "head"
                (-outputs.log_probs).sum().backward()
                del outputs
        return _sizes(model, base) | {
            f"peak {stage} {kind}": value
            for stage, pair in live.peaks.items()
            for kind, value in zip(("with", "alone"), pair, strict=True)
        }


def _sizes(model: Any, base: Any) -> dict[str, int]:
    def size(module: Any) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters()) if module is not None else 0

    trained = [p for p in model.parameters() if p.requires_grad]
    layers = _layers(base)
    return {
        "weights": size(model),
        "trained": sum(p.numel() * p.element_size() for p in trained),
        "trained_count": sum(p.numel() for p in trained),
        "head": max(size(base.get_input_embeddings()), size(base.get_output_embeddings())),
        "layer": size(layers[0]) if layers else 0,
    }


def _layers(base: Any) -> list[Any]:
    depth = base.config.get_text_config().num_hidden_layers
    lists = [m for m in base.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    return list(lists[0]) if lists else []


def _watch(model: Any, base: Any, live: _Live) -> None:
    """Tell the parts of a backward pass apart, and its gradients from its other tensors."""
    layers = _layers(base)

    def entering(name: str) -> Any:
        def enter(gradient: Any) -> None:
            live.stage = name

        def hook(module: Any, arguments: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(enter)

        return hook

    for index, layer in enumerate(layers):
        part = "last layer" if index == len(layers) - 1 else "first layer" if index == 0 else "layers between"
        layer.register_forward_hook(entering(part))
    base.get_input_embeddings().register_forward_hook(entering("embedding"))
    seen: set[int] = set()

    def arrived(parameter: Any) -> None:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            live.gradients += parameter.grad.untyped_storage().nbytes()

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(arrived)


class _Attention(torch.autograd.Function):
    """What an attention kernel keeps for its backward pass: its inputs, its output, a number a row, and the mask."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any) -> Any:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, bias, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    bias = None
    if attention_mask is not None:  # transformers repeats keys and values where there is a mask
        repeat = query.shape[1] // key.shape[1]
        if repeat > 1:
            key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        bias = attention_mask.to(query.dtype)
    out = _Attention.apply(query, key, value, bias)
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def _counted_attention() -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    yield
