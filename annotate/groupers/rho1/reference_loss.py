"""Per-token cross-entropy and entropy under a frozen causal language model, without ever holding its full logits.

What enters: documents as flat token ids with offsets. What leaves: nats per token, which `rho1`, `entropy` and `sifd`
make their scores of. Documents share forward passes (`packing.py`): end to end on a CPU, where a neighbour
changes no bit; padded on the right on a GPU, where causal attention never looks, so that a neighbour changes a value by
rounding at most.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from annotate.models.checkpoints import load_model
from annotate.models.packing import Packing, close
from annotate.models.planning import ROWS
from common.errors import UserError

# Float32 logits that exist at one time, as [tokens of a chunk, vocabulary]: 32 MiB on a CPU, which stays near its
# caches; 512 MiB on a GPU, which wants larger products.
LOGITS_PER_CHUNK = {"cpu": 2**23, "cuda": 2**27}
BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}  # default budgets of a batch, padding included


class ReferenceModel:
    """A frozen causal language model that says how unexpected each token is."""

    def __init__(self, name: str, flag: str, revision: str | None, dtype: str, device: str):
        """Load the checkpoint and check that this module computes what the model itself would.

        Raises:
            UserError: the checkpoint does not load, is not a causal language model, or post-processes its logits in a
                way that is not known here.
        """
        from transformers import AutoModelForCausalLM

        from annotate.models.onednn import use_onednn

        self.where = f"{flag} {name}"
        self.model = load_model(AutoModelForCausalLM, name, flag, revision, dtype, device)
        use_onednn(self.model)
        self.device_kind = device.split(":")[0]
        config = self.model.config.get_text_config()
        self.head = self.model.get_output_embeddings()
        if config.is_encoder_decoder or self.head is None:
            raise UserError(f"{self.where}: expected a causal language model, found {type(self.model).__name__}.")
        self.vocab_size = int(self.head.weight.shape[0])
        # Tokens of the longest document that the model has positions for; None for models without such a limit.
        self.max_tokens: int | None = getattr(config, "max_position_embeddings", None)
        self._scale = _logit_scale(config)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._check_against_forward()
        self.packing = Packing(self.model)

    def losses(
        self, input_ids: np.ndarray, offsets: np.ndarray, documents: np.ndarray, batch_tokens: int
    ) -> np.ndarray:
        """Return each token's cross-entropy given its prefix within its document: −log p(w_j | w_1 … w_{j−1}).

        Equals, for each document alone and after a leading 0,
        `F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")`.

        Args:
            input_ids: int32 [num_tokens], flat.
            offsets: int64 [num_documents + 1].
            documents: int64 [any]: the documents to score; tokens of the others stay 0.
            batch_tokens: budget of a batch, padding included.

        Returns:
            float64 [num_tokens], nats; 0 for the first token of a document, which has no prefix. Not finite where the
            model's output is not. Float64 from the logarithm on, so that a difference of two is rounded once.
        """
        return self._measure(input_ids, offsets, documents, batch_tokens, _cross_entropy)

    def entropies(
        self, input_ids: np.ndarray, offsets: np.ndarray, documents: np.ndarray, batch_tokens: int
    ) -> np.ndarray:
        """Return the entropy of what each token was drawn from: −Σ_v p(v | w_1 … w_{j−1}) · log p(v | w_1 … w_{j−1}).

        Equals, for each document alone and after a leading 0,
        `torch.distributions.Categorical(logits=model(ids).logits[0, :-1].float()).entropy()`. Arguments and result are
        those of `losses`.
        """
        return self._measure(input_ids, offsets, documents, batch_tokens, _entropy)

    def _measure(
        self,
        input_ids: np.ndarray,
        offsets: np.ndarray,
        documents: np.ndarray,
        batch_tokens: int,
        quantity: Callable[[Any, Any], Any],
    ) -> np.ndarray:
        """Return what `quantity` makes of the logits that predict each token, and the token; float64 [num_tokens]."""
        import torch

        result = np.zeros(len(input_ids), dtype=np.float64)
        # The last token of a document predicts nothing that is asked for, so it is not fed.
        lengths = np.diff(offsets)[documents] - 1
        documents, lengths = documents[lengths > 0], lengths[lengths > 0]
        batches = list(self.packing.batches(offsets[documents], lengths, batch_tokens))
        if not batches:
            return result
        predicted = [batch.sources[batch.real] + 1 for batch in batches]
        laid = [(batch, input_ids[batch.sources].astype(np.int64), None) for batch in batches]
        # What follows each real token, and where the real ones are: with the tokens, all that the device needs to know.
        wanted = self.packing.together([input_ids[places].astype(np.int64) for places in predicted])
        kept = self.packing.together([np.flatnonzero(batch.real) for batch in batches])
        values = []
        inputs = self.packing.window(laid)
        for batch, targets, real in zip(batches, wanted, kept, strict=True):
            try:
                values.append(self._measure_batch(next(inputs), real, targets, quantity))
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{self.where}: a batch of {batch.sources.size} tokens does not fit into the device's memory. "
                    f"Lower --batch-tokens (now {batch_tokens}), or use --dtype bfloat16."
                ) from error
        result[np.concatenate(predicted)] = torch.cat(values).cpu().numpy()  # the only wait
        return result

    def _measure_batch(
        self, inputs: dict[str, Any], real: Any, wanted: Any, quantity: Callable[[Any, Any], Any]
    ) -> Any:
        """Return float64 [num_real] on the device.

        Args:
            inputs: of the model, for ids [rows, width].
            real: int64 [num_real], where in the flat rows the real tokens are.
            wanted: int64 [num_real], what follows each of them.
            quantity: of logits [tokens, vocabulary] and targets [tokens], float64 [tokens].
        """
        import torch

        with torch.inference_mode():
            # Not told which tokens are padding: on the right alone it changes nothing, and without a mask attention
            # takes its fast causal path. It repeats a document's own last token: attention gives padding the weight 0,
            # but 0 · NaN is NaN, so another token there could spoil a document that is sound.
            hidden = self._hidden(**inputs).flatten(0, 1)[real]
            rows = max(1, LOGITS_PER_CHUNK[self.device_kind] // self.vocab_size // ROWS) * ROWS
            values = torch.empty(len(wanted), dtype=torch.float64, device=hidden.device)
            for start in range(0, len(wanted), rows):
                chunk = slice(start, start + rows)
                logits = self._logits(_filled(hidden[chunk]))[: len(wanted[chunk])]
                values[chunk] = quantity(logits, wanted[chunk])
            return values

    def _hidden(self, **inputs: Any) -> Any:
        """Return the last hidden states [rows, width, hidden size] of input_ids [rows, width]."""
        return self.model.base_model(**inputs, use_cache=False)[0]

    def _logits(self, hidden: Any) -> Any:
        """Return the logits, float32 [tokens, vocabulary], of hidden states [tokens, hidden size]."""
        logits = self.head(hidden).float()  # the caller's own, to be changed in place
        if self._scale != 1.0:
            logits.mul_(self._scale)
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits

    def _check_against_forward(self) -> None:
        """Compare the logits with the model's own on a few random tokens, and look for a view of the future."""
        import torch

        low = self.head.weight.dtype != torch.float32
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocab_size, (2, 16), generator=generator)
        ids[1, :8] = ids[0, :8]  # one beginning, two continuations
        ids = ids.to(self.model.device)
        with torch.inference_mode():
            hidden = self._hidden(input_ids=ids)
            expected = self.model(input_ids=ids, use_cache=False).logits.float()
            found = self._logits(hidden.flatten(0, 1)).view(*ids.shape, -1)
        if not close(hidden[0, :8], hidden[1, :8], 1e-2 if low else 1e-5):
            raise UserError(
                f"{self.where}: expected a causal language model, but in {type(self.model).__name__} a token's output "
                "depends on the tokens after it."
            )
        if found.shape != expected.shape or not close(found, expected, 2e-2 if low else 1e-4):
            raise UserError(
                f"{self.where}: {type(self.model).__name__} turns its hidden states into logits in a way that is not "
                "known here (known: a linear head, then a scale and a soft cap), so its losses would be wrong. "
                "Use a reference model of another architecture."
            )


def _cross_entropy(logits: Any, targets: Any) -> Any:
    """Return −log softmax(logits)[target], float64 [tokens], of logits float32 [tokens, vocabulary], which it uses up.

    In place: torch.logsumexp would hold a second array of the chunk's size. The largest logit goes out of both terms,
    so the target's is the difference to it.
    """
    logits.sub_(logits.amax(dim=1, keepdim=True))
    chosen = logits.gather(1, targets[:, None]).squeeze(1).double()
    return logits.exp_().sum(dim=1).double().log_().sub_(chosen)


def _entropy(logits: Any, targets: Any) -> Any:
    """Return the entropy of softmax(logits), float64 [tokens], nats; as `_cross_entropy`, but with a second array.

    With z = logits − max and S = Σ exp(z): H = log S − Σ z·exp(z) / S. A z of −inf is a token that cannot come: it adds
    0, where 0 · −inf would be NaN; exp(−200) is 0 in float32.
    """
    logits.sub_(logits.amax(dim=1, keepdim=True)).clamp_(min=-200.0)
    weights = logits.exp()
    total = weights.sum(dim=1).double()
    return total.log().sub_(logits.mul_(weights).sum(dim=1).double().div_(total)).clamp_(min=0.0)


def _filled(hidden: Any) -> Any:
    """Return hidden states [tokens, hidden size] with zeros after them, up to a multiple of `ROWS` tokens."""
    import torch

    return torch.nn.functional.pad(hidden, (0, 0, 0, -len(hidden) % ROWS))


def _logit_scale(config: Any) -> float:
    """Return what the head's output is multiplied by: 1 for most, a setting of Cohere, Falcon-H1 and Granite."""

    def setting(name: str) -> float:
        return float(getattr(config, name, None) or 1.0)

    return setting("logit_scale") * setting("lm_head_multiplier") / setting("logits_scaling")
