"""The model and the tokenizer of a run, and the check that the shards were made with this very tokenizer.

What enters: a hub id, a directory, or `tiny`; the shards. What leaves: a loaded model and its fast tokenizer.
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from common.downloads import on_disk
from common.errors import UserError
from common.manifest import TOKENIZER_NAME
from common.shards import ShardDirectory
from common.tokenizers import require_fast, tokenizer_fingerprint
from train.loop.devices import device_map
from train.settings.config import GOConfig

TINY = "tiny"
CHECKPOINTING_FROM = 1_000_000_000  # parameters, where memory was not estimated; smaller models fit without


def load_tokenizer(name: str, shards: ShardDirectory, args: GOConfig, model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer and compare it with the shards'.

    Raises:
        UserError: it cannot be loaded, is a slow one, or has another fingerprint than the shards.
    """
    source = on_disk(str(shards.path / TOKENIZER_NAME) if name == TINY else name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=model.model_revision, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(_unreachable("tokenizer", source, error)) from error
    require_fast(tokenizer, source)
    wanted = shards.manifest.tokenizer
    found = tokenizer_fingerprint(tokenizer)
    if found != wanted.fingerprint:
        raise UserError(
            f"--model {name}: its tokenizer is not the one that {shards.path} was annotated with: expected "
            f"{wanted.name} (fingerprint {wanted.fingerprint[:12]}…), found fingerprint {found[:12]}…. Token ids mean "
            f"other tokens there. Annotate again with `annotate run --tokenizer {name} …`, or train the model of "
            f"{wanted.name}."
        )
    return tokenizer


def load_config(name: str, tokenizer: PreTrainedTokenizerBase, args: GOConfig, model: ModelConfig) -> PretrainedConfig:
    """Load the model's configuration, without its weights.

    Raises:
        UserError: it cannot be loaded.
    """
    if name == TINY:
        return tiny_config(tokenizer, args.max_length or 4096)
    try:
        return AutoConfig.from_pretrained(
            on_disk(name), revision=model.model_revision, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(_unreachable("model", name, error)) from error


def load_model(name: str, tokenizer: PreTrainedTokenizerBase, args: GOConfig, model: ModelConfig) -> PreTrainedModel:
    """Load the model, or make the tiny one from the seed.

    Raises:
        UserError: it cannot be loaded.
    """
    set_seed(args.seed)
    if name == TINY:
        return tiny_model(tokenizer, args.max_length or 4096)
    options: dict[str, Any] = {
        "revision": model.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    options |= args.model_init_kwargs or {}
    args.model_init_kwargs = None  # used here; the trainer would warn about it
    quantization = get_quantization_config(model)
    if quantization is not None:
        options["quantization_config"] = quantization
    options["device_map"] = device_map(args, options.get("device_map"), quantization is not None)
    try:
        return create_model_from_path(on_disk(name), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(_unreachable("model", name, error)) from error


def tiny_model(tokenizer: PreTrainedTokenizerBase, max_length: int) -> LlamaForCausalLM:
    """Return a 4-layer Llama with random weights over the tokenizer's vocabulary."""
    return LlamaForCausalLM(tiny_config(tokenizer, max_length))


def tiny_config(tokenizer: PreTrainedTokenizerBase, max_length: int) -> LlamaConfig:
    """Return its configuration."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _unreachable(what: str, name: str, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return (
        f"--model {name}: could not load the {what} ({type(error).__name__}: {first}). Give a local checkpoint "
        "directory with tokenizer.json, a hub id that this machine can reach and your account may read "
        "(`hf auth login`), or `tiny`."
    )
