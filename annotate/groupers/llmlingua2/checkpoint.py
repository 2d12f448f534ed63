"""Compressor checkpoints: which ones can be used, found out before any work and without reading weights.

What enters: the value of `--compressor-model`, a directory or a hub id. What leaves: a checked `Checkpoint`, which
`annotate.groupers.llmlingua2.model` loads in the process that scores.
"""

from dataclasses import dataclass
from typing import Any

from annotate.groupers.llmlingua2.rule import WordRule
from annotate.models.checkpoints import absolute_name, checkpoint_revision, load_config, load_tokenizer
from common.errors import raise_together
from common.tokenizers import require_fast

FLAG = "--compressor-model"
DEFAULT_MODEL = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
MAX_INPUT = 512  # tokens that the model sees at once, special tokens included; the compressors were trained with it


@dataclass(frozen=True)
class Checkpoint:
    """A compressor that can be used."""

    name: str  # as the user wrote it
    location: str  # what is loaded: an absolute directory, since a worker may stand elsewhere, or the hub id
    revision: str

    @classmethod
    def find(cls, name: str) -> "Checkpoint":
        """Check files, config and tokenizer of a checkpoint, and identify its content.

        Raises:
            UserError: files are missing, the hub is out of reach, or it is no token classifier with two labels, 512
                positions and a fast tokenizer whose words can be told apart.
        """
        revision = checkpoint_revision(name, FLAG, with_tokenizer=True)
        config = load_config(name, FLAG, revision)
        problems = _config_problems(name, config)
        if not problems:
            tokenizer = load_tokenizer(name, FLAG, revision)
            require_fast(tokenizer, name)
            num_tokens = len(WordRule.of(tokenizer, name).begins)
            if num_tokens > config.vocab_size:
                problems.append(
                    f"{FLAG} {name}: its tokenizer has {num_tokens} tokens, its model {config.vocab_size}. "
                    "They do not belong together."
                )
        raise_together(problems)
        return cls(name, absolute_name(name, FLAG), revision)


def _config_problems(name: str, config: Any) -> list[str]:
    """Say why a model with this config cannot be a compressor; an empty list when it can."""
    architectures = config.architectures or []
    if not any("ForTokenClassification" in architecture for architecture in architectures):
        found = ", ".join(architectures) or f"a {config.model_type} config that names no architecture"
        return [
            f"{FLAG} {name}: expected a token classifier (an architecture such as XLMRobertaForTokenClassification), "
            f"found {found}. Give an LLMLingua-2 checkpoint, such as {DEFAULT_MODEL}."
        ]
    problems = []
    if config.num_labels != 2:
        problems.append(
            f"{FLAG} {name}: expected a token classifier with 2 labels (0 drop, 1 keep), found {config.num_labels}. "
            f"Give an LLMLingua-2 checkpoint, such as {DEFAULT_MODEL}."
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and ("roberta" in config.model_type or config.model_type == "camembert"):
        positions -= config.pad_token_id + 1  # this family counts positions from the padding id + 1
    if positions is not None and positions < MAX_INPUT:
        problems.append(
            f"{FLAG} {name}: expected at least {MAX_INPUT} positions (510 tokens and two special ones), found "
            f"{positions}. Give a checkpoint with max_position_embeddings for {MAX_INPUT} tokens."
        )
    return problems
