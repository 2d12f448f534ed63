"""The shipped sample: its records are well formed and varied, and its tokenizer is exact and reproducible."""

import json
import re
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

import annotate.sample
from annotate.sample.build_tokenizer import MODEL_MAX_LENGTH, SPECIAL_TOKENS, VOCAB_SIZE, build_tokenizer

SAMPLE = Path(annotate.sample.__file__).parent
RECORDS = SAMPLE / "records.jsonl"
TOKENIZER = SAMPLE / "tokenizer"

SCRIPTS = {
    "Arabic": r"[\u0600-\u06ff]",
    "Bengali": r"[\u0980-\u09ff]",
    "Cyrillic": r"[\u0400-\u04ff]",
    "Devanagari": r"[\u0900-\u097f]",
    "Greek": r"[\u0386-\u03ce]",
    "Han": r"[\u4e00-\u9fff]",
    "Hangul": r"[\uac00-\ud7af]",
    "Hebrew": r"[\u05d0-\u05ea]",
    "Kana": r"[\u3041-\u30ff]",
    "Tamil": r"[\u0b80-\u0bff]",
    "Thai": r"[\u0e01-\u0e5b]",
}
# Letters of other scripts, or the accented Latin ones that English words rarely need.
NOT_ENGLISH = "|".join([*SCRIPTS.values(), r"[äöüßéèêàçñáíóúãõąęłżőşğıøåằ-ỹ]"])
VARIETIES = {
    "joined emoji": (r"[\U0001F000-\U0001FAFF\u2600-\u27bf]\ufe0f?[\U0001F3FB-\U0001F3FF]?\u200d", 4),
    "flag": (r"[\U0001F1E6-\U0001F1FF]{2}", 2),
    "skin tone": (r"[\U0001F3FB-\U0001F3FF]", 5),
    "emoji": (r"[\U0001F300-\U0001FAFF\u2600-\u27bf]", 20),
    "combining accent": (r"[A-Za-z][\u0300-\u036f]", 5),
    "code fence": (r"(?m)^```\w*\n[\s\S]*?\n```$", 40),
    "Python": (r"(?m)^```python$", 15),
    "SQL": (r"(?m)^```sql$", 5),
    "shell": (r"(?m)^```bash$", 5),
    "JavaScript": (r"(?m)^```javascript$", 3),
    "indentation": (r"\n {4,}\S", 20),
    "tab": (r"\t", 3),
    "table": (r"(?m)^\|(?: ?:?-+:? ?\|)+$", 10),
    "list": (r"(?m)^(?:- |\d\. ).+\n(?:- |\d\. )", 20),
    "not English": (NOT_ENGLISH, 40),
    **{name: (pattern, 1) for name, pattern in SCRIPTS.items()},
}


@pytest.fixture(scope="module")
def records() -> list[list[dict[str, str]]]:
    """The messages of each record."""
    return [json.loads(line)["messages"] for line in RECORDS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def contents(messages: list[dict[str, str]], role: str) -> list[str]:
    return [message["content"] for message in messages if message["role"] == role]


def test_there_are_enough_records_of_a_shippable_size(records):
    assert len(records) >= 200
    assert 150_000 <= RECORDS.stat().st_size <= 350_000


def test_each_line_holds_one_record_in_plain_utf8():
    data = RECORDS.read_bytes()
    assert data.endswith(b"\n")
    assert b"\r" not in data
    # JSON escapes every line break, so only "\n" may separate records; U+2028 and the like would split lines elsewhere.
    assert data.decode().splitlines() == data.decode().removesuffix("\n").split("\n")
    for line in data.decode().splitlines():
        assert line == json.dumps(json.loads(line), ensure_ascii=False)


def test_each_record_is_well_formed(records):
    for line, record in zip(RECORDS.read_text(encoding="utf-8").splitlines(), records, strict=True):
        assert set(json.loads(line)) == {"messages"}
        for message in record:
            assert set(message) == {"role", "content"}
            assert message["content"], f"empty content: {line}"
            assert message["content"] == message["content"].strip(), f"white space around the content: {line}"
        roles = [message["role"] for message in record]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2), f"roles do not alternate: {line}"
        assert 1 <= len(turns) // 2 <= 4


def test_rounds_and_lengths_vary(records):
    rounds = [len(contents(record, "user")) for record in records]
    words = [len(text.split()) for record in records for text in contents(record, "assistant")]
    assert sum(count > 1 for count in rounds) >= 40
    assert set(rounds) == {1, 2, 3, 4}
    assert sum(record[0]["role"] == "system" for record in records) >= 15
    assert sum(count == 1 for count in words) >= 10
    assert sum(count >= 300 for count in words) >= 5


@pytest.mark.parametrize("variety", VARIETIES)
def test_required_varieties_are_present(records, variety):
    pattern, minimum = VARIETIES[variety]
    found = sum(any(re.search(pattern, message["content"]) for message in record) for record in records)
    assert found >= minimum, f"{found} records with {variety}, expected at least {minimum}"


def test_no_record_and_no_question_occurs_twice(records):
    questions = [contents(record, "user")[0].casefold() for record in records]
    assert len({json.dumps(record) for record in records}) == len(records)
    assert len(set(questions)) == len(questions)
    # Answers may coincide by accident when they are one word ("Yes"); longer ones would be copies.
    answers = [text for record in records for text in contents(record, "assistant") if len(text) > 20]
    assert len(set(answers)) == len(answers)


def test_code_in_answers_compiles(records):
    blocks = [
        block
        for record in records
        for text in contents(record, "assistant")
        for block in re.findall(r"^```(python|json)\n(.*?)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) >= 20
    for language, code in blocks:
        compile(code, "<record>", "exec") if language == "python" else json.loads(code)


def test_tokenizer_loads_and_is_fast(tokenizer):
    assert tokenizer.is_fast
    assert len(tokenizer) == VOCAB_SIZE == 4096
    assert tokenizer.model_max_length == MODEL_MAX_LENGTH == 4096
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [0, 1, 2, 3, 4, 5]
    assert (TOKENIZER / "tokenizer.json").stat().st_size < 400_000


def test_tokenizer_round_trips_every_text(tokenizer, records):
    for record in records:
        for message in record:
            text = message["content"]
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    "text", [" ", "\n\n", "a , b !", "\t\tx  ", "\x00\x7f", "\u200d", "👩🏽‍🚀", "𐍈", "naïve", "\r\n"]
)
def test_tokenizer_round_trips_texts_beyond_the_sample(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tokenizer_covers_every_byte_sequence(tokenizer):
    # Each code point of the planes in use, in one text per plane; surrogates are no text.
    for start, stop in [(0, 0xD800), (0xE000, 0x20000)]:
        text = "".join(map(chr, range(start, stop)))
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_bos_comes_first_and_nothing_is_appended(tokenizer):
    plain = tokenizer.encode("Hello there", add_special_tokens=False)
    assert tokenizer.encode("Hello there") == [tokenizer.bos_token_id, *plain]
    assert tokenizer("Hello", "there")["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.encode("") == [tokenizer.bos_token_id]


def test_offsets_point_at_the_characters(tokenizer):
    text = "naïve 北京 👍🏽 x"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["offset_mapping"][0] == (0, 0)
    covered = {i for start, end in encoded["offset_mapping"] for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_chat_template_gives_the_hand_written_text(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    text = "<|bos|><|system|>\nBe brief.<|eos|><|user|>\nHi<|eos|><|assistant|>\nHello!<|eos|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    prompt = text.removesuffix("Hello!<|eos|>")
    assert tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True) == prompt


def test_chat_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(TemplateError, match="Expected the role system, user or assistant, found tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "42"}], tokenize=False)


def test_assistant_mask_is_exactly_the_contents_and_eos(tokenizer, records):
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    for record in records:
        input_ids, mask = [tokenizer.bos_token_id], [0]
        for message in record:
            header = [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), *encode("\n")]
            body = [*encode(message["content"]), tokenizer.eos_token_id]
            input_ids += header + body
            mask += [0] * len(header) + [int(message["role"] == "assistant")] * len(body)

        encoded = tokenizer.apply_chat_template(record, return_dict=True, return_assistant_tokens_mask=True)
        assert encoded["input_ids"] == input_ids
        assert encoded["assistant_masks"] == mask


def test_every_record_fits_into_the_model_length(tokenizer, records):
    lengths = [len(tokenizer.apply_chat_template(record)["input_ids"]) for record in records]
    assert max(lengths) <= MODEL_MAX_LENGTH


def test_rebuilding_gives_the_shipped_bytes(tmp_path):
    """Fails when records.jsonl was changed and `python -m annotate.sample.build_tokenizer` was not run afterwards."""
    build_tokenizer(RECORDS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in TOKENIZER.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (TOKENIZER / path.name).read_bytes(), path.name
