"""How sequences of different lengths share a model's forward pass, and get the same scores in any company.

What enters: a model, and sequences of tokens as a flat array with starts and lengths. What leaves: batches under a
token budget (`planning.py`), and what the model is to be called with. Next: `reference_loss` and `compressor.model`.

On a CPU, sequences are packed: laid end to end in one row, each with its own positions, and attention sees each alone.
Nothing is computed for padding, and a sequence's float32 scores are the same bits whatever shares its batch, in a shard
or in a request to the service: attention does not know the others, a row of a matrix product does not depend on the
other rows as long as there are 16 or more, and activation functions take their vector form for every element as long as
the number of rows is a multiple of 32. (Measured with torch 2.13 and one to four threads on an AMD EPYC. Where a number
of threads shares large arrays out in odd pieces, single activations may round differently.)

On a GPU, one sequence after another would leave most of it idle: there they are padded to rows of equal width. Nothing
there waits for the device: what a window of batches needs is copied to it once, through pinned memory, and masks are
given ready to use, since transformers looks into a two-dimensional one, once a batch, to see whether it can go. The
kernels change with the number of rows, so scores move by a rounding step or two. A model on a CPU whose attention
cannot be packed is padded too.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np

from annotate.models.planning import MAX_PADDING, Batch, lay_end_to_end, lay_in_rows, plan_packed, plan_padded

ATTENTION = "sft_go_packed"  # the name under which transformers knows `_attend`


class Packing:
    """A model's way to take several sequences at once.

    Attributes:
        packed: sequences are laid end to end, without padding.
    """

    def __init__(self, model: Any):
        """Choose the way; `model` is one of transformers', loaded and on its device."""
        import torch

        self.device = model.device
        self._most_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
        embeddings = getattr(model.base_model, "embeddings", None)
        # RoBERTa's family counts positions from the padding's id on, and gives a padding token that id itself.
        self._padding_id = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        self._attention = model.config.get_text_config()._attn_implementation
        self.packed = self.device.type == "cpu" and model.dtype == torch.float32 and self._pack(model)

    def batches(self, starts: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> Iterator[Batch]:
        """Yield batches that cover every sequence once, longest first.

        Args:
            starts: int64 [sequences], the place of each one's first token in the flat array.
            lengths: int64 [sequences], at least 1.
            batch_tokens: most tokens of a batch, padding included (a longer sequence is a batch of its own).
        """
        if self.packed:
            for chosen in plan_packed(lengths, batch_tokens):
                yield lay_end_to_end(starts[chosen], lengths[chosen])
        else:
            for chosen in plan_padded(lengths, batch_tokens, MAX_PADDING[self.device.type]):
                yield lay_in_rows(starts[chosen], lengths[chosen], self._most_positions)

    def window(self, laid: Sequence[tuple[Batch, np.ndarray, np.ndarray | None]]) -> Iterator[dict[str, Any]]:
        """Yield what `inputs` gives for each batch, its ids and who is seen; padded ones are copied all at once."""
        if self.packed:
            for batch, ids, seen in laid:
                yield self.inputs(batch, ids, seen)
            return
        tokens = self.together([ids for _, ids, _ in laid])
        masks = iter(self.together([seen for _, _, seen in laid if _hides(seen)]))
        for (_, _, seen), ids in zip(laid, tokens, strict=True):
            yield {"input_ids": ids, "attention_mask": self._ready(next(masks)) if _hides(seen) else None}

    def together(self, arrays: list[np.ndarray]) -> list[Any]:
        """Return arrays of one dtype as tensors on the device: one copy, of which each is a part, without waiting."""
        if not arrays:
            return []
        whole = self._put(np.concatenate([array.ravel() for array in arrays]))
        sizes = [array.size for array in arrays]
        return [part.view(array.shape) for part, array in zip(whole.split(sizes), arrays, strict=True)]

    def _ready(self, seen: Any) -> Any:
        """Return a mask, bool [rows, width], as attention takes it: for `sdpa`, bool [rows, 1, width, width]."""
        if self._attention != "sdpa":
            return seen
        return seen[:, None, None, :].expand(-1, -1, seen.shape[1], -1)

    def inputs(self, batch: Batch, ids: np.ndarray, seen: np.ndarray | None = None) -> dict[str, Any]:
        """Return the arguments that the model, or its `base_model`, is to be called with.

        Args:
            batch: from `batches`.
            ids: int64 [rows, width].
            seen: bool [rows, width], the tokens that others attend to. None is all of them, filling too, which may be
                so where attention is causal, and where nothing is padded.
        """
        if batch.edges is None:
            mask = self._ready(self._put(seen)) if _hides(seen) else None
            return {"input_ids": self._put(ids), "attention_mask": mask}
        sequences = [
            (slice(start, stop), None if seen is None else _additive_mask(seen[0, start:stop]))
            for start, stop in pairwise(batch.edges.tolist())
        ]
        positions = self._positions(ids[0], batch.edges)
        return {"input_ids": self._put(ids), "position_ids": self._put(positions[None]), "sequences": sequences}

    def _put(self, array: np.ndarray) -> Any:
        """Copy an array to the device, without waiting."""
        import torch

        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _positions(self, ids: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Return the position of each token in its sequence as the model counts them, int64 like ids [num_tokens]."""
        sizes = np.diff(edges)
        if self._padding_id is None:
            return np.arange(len(ids)) - np.repeat(edges[:-1], sizes)
        counted = ids != self._padding_id
        before = np.concatenate([[0], np.cumsum(counted)])
        return self._padding_id + (before[1:] - np.repeat(before[edges[:-1]], sizes)) * counted

    def _pack(self, model: Any) -> bool:
        """Make a model's attention see packed sequences each alone; return False, and change nothing, if it cannot.

        Tried out on random tokens: architectures differ in what they make of positions and attention.
        """
        import torch
        from transformers import AttentionInterface

        config = model.config.get_text_config()
        if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            return False  # such as a window that only longer documents would show
        if not getattr(model, "_can_set_attn_implementation", lambda: True)():
            return False  # it would log a warning
        lengths = np.array([7, 14, 11])  # no filling
        starts = np.cumsum(lengths) - lengths
        batch = lay_end_to_end(starts, lengths)
        ids = np.random.default_rng(0).integers(config.vocab_size, size=batch.sources.shape)
        before = model.config._attn_implementation
        AttentionInterface.register(ATTENTION, _attend)
        with torch.inference_mode():
            try:
                alone = [model.base_model(input_ids=self._put(part))[0] for part in np.split(ids, starts[1:], axis=1)]
                model.set_attn_implementation(ATTENTION)
                together = model.base_model(**self.inputs(batch, ids))[0]
                if close(together, torch.cat(alone, dim=1), 1e-5):
                    return True
            except (TypeError, ValueError, RuntimeError, IndexError):
                pass
        model.set_attn_implementation(before)
        return False


def _hides(seen: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Return whether some tokens are not seen."""
    return seen is not None and not seen.all()


def close(found: Any, expected: Any, tolerance: float) -> bool:
    """Return whether two tensors differ by at most `tolerance` of the largest finite value; NaN equals NaN."""
    import torch

    finite = expected[torch.isfinite(expected)]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(found, expected, rtol=0.0, atol=tolerance * largest, equal_nan=True)


def _additive_mask(seen: np.ndarray) -> Any:
    """Return what attention adds for tokens that are not seen, float32 [1, 1, 1, tokens]; None where all are."""
    import torch

    if seen.all():
        return None
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(len(seen)).masked_fill_(torch.from_numpy(~seen), lowest)[None, None, None]


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, sequences: list | None = None, **options: Any
) -> tuple[Any, None]:
    """Attention for transformers' `AttentionInterface`: its own, called for each packed sequence.

    Args:
        module: the attention layer.
        query: float [1, heads, tokens, head size]; key and value likewise.
        attention_mask: used where nothing is packed.
        sequences: for each one the slice of its tokens, and an additive mask or None.
        options: as transformers gives them.

    Returns:
        float [1, tokens, heads, head size], and no weights.

    Raises:
        ValueError: the layer wants a sliding window, or a soft cap.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if options.get("sliding_window") is not None:
        raise ValueError("a sliding window cannot be packed")
    if sequences is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    outputs = [
        sdpa_attention_forward(module, query[:, :, tokens], key[:, :, tokens], value[:, :, tokens], mask, **options)[0]
        for tokens, mask in sequences
    ]
    return torch.cat(outputs, dim=1), None
