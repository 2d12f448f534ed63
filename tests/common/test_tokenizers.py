import json
import shutil

import pytest
from transformers import AutoTokenizer

from common.errors import UserError
from common.tokenizers import require_fast, tokenizer_fingerprint


def test_the_same_files_have_the_same_fingerprint_wherever_they_lie(sample_tokenizer, tmp_path):
    first = AutoTokenizer.from_pretrained(sample_tokenizer)
    first.save_pretrained(tmp_path / "copy")
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / "copy"))


def test_padding_does_not_count(sample_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(sample_tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize("pad", ["<|eos|>", "<|user|>", "[PAD]"], ids=["EOS", "another token", "a new token"])
def test_the_token_that_pads_does_not_count(sample_tokenizer, pad):
    tokenizer = AutoTokenizer.from_pretrained(sample_tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.add_special_tokens({"pad_token": pad})
    assert tokenizer.pad_token == pad
    assert tokenizer_fingerprint(tokenizer) == before


def test_a_new_token_that_does_not_pad_counts(sample_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(sample_tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    assert tokenizer_fingerprint(tokenizer) != before


def test_another_vocabulary_or_end_of_turn_counts(sample_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(sample_tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.eos_token = "<|user|>"
    assert tokenizer_fingerprint(tokenizer) != before
    shutil.copytree(sample_tokenizer, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / "other")) != before


def test_a_slow_tokenizer_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(UserError, match="expected a fast tokenizer"):
        require_fast(CanineTokenizer(), "google/canine-s")
