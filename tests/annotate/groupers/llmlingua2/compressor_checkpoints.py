"""Compressor checkpoints with random weights in the real architectures, and the `llmlingua` package as the reference.

What enters: texts to train a tokenizer on. What leaves: a directory as `save_pretrained` writes it. Used by the
tests of the compressor and by its benchmark.
"""

import argparse
import difflib
import inspect
import json
import random
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertTokenizer,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
    XLMRobertaTokenizer,
)

# The package picks its word rule by these names in a checkpoint's path.
PACKAGE_NAMES = {"bert": "bert-base-multilingual-cased", "xlm-roberta": "xlm-roberta-large"}


# Real text that is always at hand: the shipped records in many languages, and Python's own modules of many chunks.
_RECORDS = Path(__file__).parents[4] / "annotate" / "sample" / "records.jsonl"
SAMPLE = [
    "\n".join(message["content"] for message in json.loads(line)["messages"])
    for line in _RECORDS.read_text(encoding="utf-8").splitlines()
]
MODULES = [inspect.getsource(module) for module in (difflib, textwrap, random, argparse)]
PARAGRAPHS = [paragraph for module in MODULES for paragraph in module.split("\n\n") if paragraph.strip()]
# What tokenizers trip over: other scripts, unknown characters, special tokens spelled out, the marker itself.
TRICKY = [
    "Hello world",
    "a",
    ".",
    "...!?,;:()[]{}\"'",
    "one  two\tthree\n\nfour\r\nfive\u3000six",
    "Beijing 我爱北京天安门。东京タワー",
    "cafe\u0301 nai\u0308ve Ångström ﬁne ½ cup ① Ⅷ",
    "👩‍👩‍👧 family 😀😀 end ☃ x☃y",
    "a\x00b\u200bc \x07d \x7f e",
    "def f(x):\n    return x**2 + 1  # [0]",
    "do not [SEP] mix [PAD] these [UNK] in [CLS] or <s> </s> <pad> <unk> <mask> here",
    "low_line ▁marker a▁b ##hash a##b",
    "3.14 and 2,000.5 e.g. this. That",
]


@lru_cache
def small_tokenizer(family: str) -> Any:
    """Return a tokenizer of 3,000 entries, too few for all characters of the text that it is trained on."""
    return TRAIN[family]([*PARAGRAPHS, *SAMPLE[:300]], 3000)


def train_bert_tokenizer(texts: list[str], vocabulary: int) -> BertTokenizer:
    """Return a cased WordPiece tokenizer with BERT's own normalizer and pre-tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)


def train_xlm_roberta_tokenizer(texts: list[str], vocabulary: int) -> XLMRobertaTokenizer:
    """Return a Unigram tokenizer with XLM-R's vocabulary layout (<s>, <pad>, </s>, <unk>, …, <mask>)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    trained = XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])
    # Stands for XLM-R's own table, which turns newlines and other white space to spaces and applies NFKC.
    trained.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    return trained


TRAIN = {"bert": train_bert_tokenizer, "xlm-roberta": train_xlm_roberta_tokenizer}


def save_compressor(directory: Path, family: str, tokenizer: Any, seed: int = 0, **settings: Any) -> Path:
    """Save a random token classifier and its tokenizer; by default 2 layers, 32 wide. Return the directory.

    Weights are drawn wider than usual and the classifier wider still, so that probabilities are spread over (0, 1) and
    a wrong mask, position or neighbour moves them by far more than rounding does.
    """
    classes = {
        "bert": (BertConfig, BertForTokenClassification, {"max_position_embeddings": 512}),
        "xlm-roberta": (
            XLMRobertaConfig,
            XLMRobertaForTokenClassification,
            {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0},
        ),
    }
    config_class, model_class, own = classes[family]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    values = {"num_labels": 2, "initializer_range": 0.2, **own, **size, **settings}
    torch.manual_seed(seed)
    model = model_class(config_class(vocab_size=len(tokenizer), **values))
    model.eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.classifier.weight, std=1.0)
        logits = model(torch.randint(5, len(tokenizer), (4, 128))).logits.flatten(0, 1)
        # Margins between the labels with mean 0 and standard deviation 2.
        margins = logits - logits[:, :1]
        scale = 2.0 / margins.std(dim=0).clamp(min=1e-6).max()
        model.classifier.weight.mul_(scale)
        model.classifier.bias.copy_(-scale * logits.mean(dim=0))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class _OneToken:
    """Stands for the OpenAI tokenizer, which the package fetches from the network in its constructor."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [0]


def load_package(directory: Path, device: str = "cpu") -> Any:
    """Return the `llmlingua` package's compressor for a checkpoint, in the dtype of its files (here float32).

    The only thing replaced is `tiktoken.encoding_for_model`, which needs the network. The package counts tokens with
    it for its price estimate, and to weight words when it looks for the threshold above which a word is kept; chunks,
    words and probabilities are there before that, and nothing after that is compared. The directory name must hold one
    of `PACKAGE_NAMES`.
    """
    import llmlingua
    import tiktoken

    original = tiktoken.encoding_for_model
    tiktoken.encoding_for_model = lambda model: _OneToken()
    state = torch.random.get_rng_state()
    try:
        package = llmlingua.PromptCompressor(str(directory), device_map=device, use_llmlingua2=True)
    finally:
        tiktoken.encoding_for_model = original
        torch.random.set_rng_state(state)
    package.model.eval()
    return package


def package_chunks(package: Any, texts: list[str]) -> list[list[str]]:
    """Return the package's chunks of each text, as the strings that it makes of them."""
    return [package._PromptCompressor__chunk_context(text, chunk_end_tokens={".", "\n"}) for text in texts]


def package_words(package: Any, chunks: list[list[str]]) -> tuple[list[list[str]], list[list[float]]]:
    """Return the package's words and word probabilities of each document.

    They are those that it compresses prompts by (`__compress`); it gives away the words but not the probabilities, so
    the method that computes them is listened to. (Its other path, `__get_context_prob`, repeats the first sub-token's
    probability for the whole word, and only ranks documents with it.)
    """
    heard: list[list[float]] = []
    original = package._PromptCompressor__token_prob_to_word_prob

    def listen(*args: Any, **kwargs: Any) -> list[float]:
        heard.append(original(*args, **kwargs))
        return heard[-1]

    package._PromptCompressor__token_prob_to_word_prob = listen
    try:
        _, words, _ = package._PromptCompressor__compress(chunks, reduce_rate=0.5)
    finally:
        del package._PromptCompressor__token_prob_to_word_prob
    flat = iter(heard)
    return words, [[float(p) for _ in document for p in next(flat)] for document in chunks]
