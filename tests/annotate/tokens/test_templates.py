import pytest
from transformers import AutoTokenizer

from annotate.records.conversations import Conversation, Turn
from annotate.tokens.templates import Segment, make_template
from common.errors import UserError

EOS = Segment("<|eos|>", supervised=True, special=True)
TWO_ROUNDS = Conversation(
    [Turn("system", "s"), Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2")]
)


@pytest.fixture
def tokenizer(sample_tokenizer):
    return AutoTokenizer.from_pretrained(sample_tokenizer)


def test_alpaca_with_and_without_input(tokenizer):
    render = make_template("alpaca", tokenizer)
    with_input = render(Conversation([Turn("user", "q", "c"), Turn("assistant", "a")]))
    assert with_input[0].text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nq\n\n### Input:\nc\n\n### Response:\n"
    )
    assert with_input[1:] == [Segment("a", True), EOS]
    without = render(Conversation([Turn("user", "q"), Turn("assistant", "a")]))
    assert without[0].text.startswith("Below is an instruction that describes a task. Write a response")
    assert "### Input" not in without[0].text


def test_plain_over_several_turns(tokenizer):
    assert make_template("plain", tokenizer)(TWO_ROUNDS) == [
        Segment("System: s\nUser: q1\nAssistant: ", False),
        Segment("a1", True),
        EOS,
        Segment("\nUser: q2\nAssistant: ", False),
        Segment("a2", True),
        EOS,
    ]


def test_text_is_supervised_as_a_whole(tokenizer):
    for name in ("alpaca", "plain"):
        assert make_template(name, tokenizer)(Conversation(text="t")) == [Segment("t", True), EOS]


CHAT_SEGMENTS = [
    Segment("<|bos|>", False, True),
    Segment("<|system|>", False, True),
    Segment("\ns", False),
    Segment("<|eos|>", False, True),
    Segment("<|user|>", False, True),
    Segment("\nq1", False),
    Segment("<|eos|>", False, True),
    Segment("<|assistant|>", False, True),
    Segment("\n", False),
    Segment("a1", True),
    EOS,
]


def test_chat_with_generation_markers(tokenizer):
    segments = make_template("chat", tokenizer)(TWO_ROUNDS)
    assert segments[: len(CHAT_SEGMENTS)] == CHAT_SEGMENTS
    assert [segment.text for segment in segments if segment.supervised] == ["a1", "<|eos|>", "a2", "<|eos|>"]


def test_chat_without_markers_is_told_from_the_generation_prompt(tokenizer):
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|eos|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    segments = make_template("chat", tokenizer)(TWO_ROUNDS)
    # the line break after the end-of-turn token is not supervised
    assert [segment.text for segment in segments if segment.supervised] == ["a1", "<|eos|>", "a2", "<|eos|>"]
    assert segments[-1] == Segment("\n", False)


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}…{% else %}{{ m.content }}{% endif %}"
        "<|eos|>{% endfor %}"
    )
    with pytest.raises(UserError, match=r"no \{% generation %\} markers"):
        make_template("chat", tokenizer)


def test_what_a_tokenizer_lacks_is_said(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        make_template("chat", tokenizer)
    with pytest.raises(UserError, match="expected one of alpaca, plain, chat"):
        make_template("vicuna", tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end-of-turn"):
        make_template("plain", tokenizer)
