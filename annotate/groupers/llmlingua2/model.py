"""The compressor: a token classifier that says how likely each word is to be kept.

What enters: texts. What leaves: their words with keep-probabilities. Texts go through in windows: while the device
works on one, a background thread tokenizes the next. On a GPU, inputs and results are copied asynchronously through
pinned memory, and the host waits once a window.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from annotate.groupers.llmlingua2.checkpoint import FLAG, Checkpoint
from annotate.groupers.llmlingua2.chunks import Chunks, make_chunks, tokenize
from annotate.groupers.llmlingua2.parity import make_package_chunks
from annotate.groupers.llmlingua2.rule import WordRule
from annotate.groupers.llmlingua2.words import Words, merge_words
from annotate.models.checkpoints import load_model, load_tokenizer
from annotate.models.packing import Packing
from common.errors import UserError

# Default budgets, padding included. On a CPU a batch's activations should stay near the caches; on a GPU the matrix
# products of XLM-R large are long past their peak size, and a batch takes tens of milliseconds and about 2 GiB.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
WINDOW_CHARACTERS = 1 << 18  # about 60,000 tokens, sorted by length together


class Compressor:
    """A loaded compressor.

    Attributes:
        tokenizer: the checkpoint's own fast tokenizer.
        model: the token classifier, in evaluation mode on its device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int | None = None,
        package_parity: bool = False,
    ):
        """Load tokenizer and model.

        Args:
            checkpoint: what `Checkpoint.find` returned.
            dtype: "float32", "bfloat16" or "float16".
            device: "cpu", "cuda" or "cuda:<number>".
            batch_tokens: most tokens of a batch, padding included (a longer single chunk is a batch of its own).
            package_parity: feed what the `llmlingua` package 0.2.2 feeds, and multiply with the library that it takes.

        Raises:
            UserError: the checkpoint does not load, or lacks weights such as the classifier's.
        """
        from transformers import AutoModelForTokenClassification

        from annotate.models.onednn import use_onednn

        self.package_parity = package_parity
        self.batch_tokens = batch_tokens or BATCH_TOKENS[device.split(":")[0]]
        self.tokenizer = load_tokenizer(checkpoint.location, FLAG, checkpoint.revision)
        self.rule = WordRule.of(self.tokenizer, checkpoint.name)
        self.before, self.after, self.pad = self._wrapping(checkpoint.name)
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        # Text that reads like a special token stays text, as it does in the target tokenizer; not so in the package.
        # (SentencePiece vocabularies hold such spellings as pieces: XLM-R still reads "</s>" as one, and scores it.)
        backend.encode_special_tokens = not package_parity
        self.model = load_model(
            AutoModelForTokenClassification, checkpoint.location, FLAG, checkpoint.revision, dtype, device
        )
        if not package_parity:  # there, rounding should be the package's too
            use_onednn(self.model)
        self.on_gpu = self.model.device.type == "cuda"
        self.packing = Packing(self.model)

    def _wrapping(self, name: str) -> tuple[int, int, int]:
        """Return the ids of the tokens before and after a chunk, and of the padding."""
        if self.package_parity:
            # The package names BERT's special tokens for every model; a vocabulary without them gives <unk>.
            before, after, pad = self.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[PAD]"])
            return before, after, pad
        around = self.tokenizer("")["input_ids"]
        if len(around) != 2 or self.tokenizer.pad_token_id is None:
            raise UserError(
                f"{FLAG} {name}: expected a tokenizer that puts one special token before and one after a text and "
                f"has a padding token, found {self.tokenizer.convert_ids_to_tokens(around)} and "
                f"{self.tokenizer.pad_token}. Restore the tokenizer's files as the checkpoint came with them."
            )
        return around[0], around[1], self.tokenizer.pad_token_id

    def chunks(self, texts: list[str]) -> Chunks:
        """Tokenize texts and cut them into chunks."""
        if self.package_parity:
            return make_package_chunks(self.tokenizer, texts, self.rule)
        tokens, _ = tokenize(self.tokenizer.backend_tokenizer, texts, self.rule.marker)
        return make_chunks(tokens, self.rule)

    def word_probabilities(self, texts: list[str]) -> Words:
        """Score texts.

        In float32, results equal to 1e-5 whatever texts come together and whatever the budget.

        Returns:
            the words of all texts, with their probability to be kept; an empty text has none, and no chunks.
        """
        parts: list[Words] = []
        launched: tuple[Chunks, Callable[[], np.ndarray]] | None = None
        with ThreadPoolExecutor(max_workers=1) as background:
            for chunks in _one_ahead(background, self.chunks, _windows(texts)):
                before, launched = launched, (chunks, self._launch(chunks))
                if before is not None:  # merged while a GPU works on the window that was just launched
                    parts.append(merge_words(before[0], before[1]()))
        if launched is not None:
            parts.append(merge_words(launched[0], launched[1]()))
        return Words.concatenate(parts)

    def _launch(self, chunks: Chunks) -> Callable[[], np.ndarray]:
        """Start scoring chunks; the returned function waits and gives float32 [num_tokens], a probability each."""
        import torch

        sizes = np.diff(chunks.offsets)
        lengths = sizes + 1 + chunks.closed  # with the special tokens
        starts = np.cumsum(lengths) - lengths
        places = np.arange(len(chunks.ids)) + np.repeat(starts + 1 - chunks.offsets[:-1], sizes)
        flat = np.full(int(lengths.sum()), self.after)  # the wrapped chunks, one after another
        flat[starts] = self.before
        flat[places] = chunks.ids
        seen = np.ones(len(flat), dtype=bool)
        seen[places] = chunks.attended

        batches = list(self.packing.batches(starts, lengths, self.batch_tokens))
        if not batches:
            return lambda: np.empty(0, dtype=np.float32)
        laid = [
            (batch, np.where(batch.real, flat[batch.sources], self.pad), seen[batch.sources] & batch.real)
            for batch in batches
        ]
        with torch.inference_mode():
            values = torch.cat([self._forward(inputs).flatten() for inputs in self.packing.window(laid)])
            if self.on_gpu:  # one copy for the window; it arrives with the stream
                values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            done = torch.cuda.Event() if self.on_gpu else None
            if done is not None:
                done.record(torch.cuda.current_stream(self.model.device))

        def finish() -> np.ndarray:
            if done is not None:
                done.synchronize()
            probabilities = np.empty(len(flat), dtype=np.float32)
            sources = np.concatenate([batch.sources.ravel() for batch in batches])
            real = np.concatenate([batch.real.ravel() for batch in batches])
            probabilities[sources[real]] = values.numpy()[real]
            return probabilities[places]

        return finish

    def _forward(self, inputs: dict[str, Any]) -> Any:
        """Return softmax(logits)[…, 1] as float32 [rows, width], on the model's device."""
        import torch

        logits = self.model(**inputs).logits.float()
        return torch.sigmoid(logits[..., 1] - logits[..., 0])  # the softmax of two


def _one_ahead(pool: Executor, function: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
    """Yield `function` of each item in order; while the caller works on one result, `pool` makes the next."""
    if not items:
        return
    following = pool.submit(function, items[0])
    for item in items[1:]:
        result = following.result()
        following = pool.submit(function, item)
        yield result
    yield following.result()


def _windows(texts: list[str]) -> list[list[str]]:
    """Split texts into consecutive runs of about `WINDOW_CHARACTERS`, each of at least one text."""
    if not texts:
        return []
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    cuts = np.flatnonzero(np.diff(ends // WINDOW_CHARACTERS)) + 1
    edges = [0, *cuts.tolist(), len(texts)]
    return [texts[start:stop] for start, stop in pairwise(edges)]
