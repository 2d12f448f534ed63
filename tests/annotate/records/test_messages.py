"""OpenAI's and ShareGPT's forms in full: what each becomes, and exactly which tokens are supervised."""

import json

import pytest

from annotate.records.columns import check_columns, parse_mapping, rename
from annotate.records.conversations import Conversation, DocumentError, Turn, detect_format, to_conversation
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import make_template
from common.errors import UserError

EOS = "<|eos|>"
ASK = {"role": "user", "content": "What is 2 + 2?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}
WITH_TOOL = {
    "messages": [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ],
    "tools": [TOOL],
}
WRITTEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
# The record, its format, and the texts that are supervised with the template plain.
SUPERVISED = {
    "tool calls, null content": (WITH_TOOL, "messages", [WRITTEN_CALL, EOS, "It is 4.", EOS]),
    "text before a call": (
        {"messages": [ASK, {"role": "assistant", "content": "Let me add.", "tool_calls": [CALL]}]},
        "messages",
        [f"Let me add.\n{WRITTEN_CALL}", EOS],
    ),
    "function_call, function": (
        {
            "messages": [
                ASK,
                {"role": "assistant", "function_call": {"name": "add", "arguments": "not json"}},
                {"role": "function", "name": "add", "content": "4"},
                {"role": "assistant", "content": "4"},
            ]
        },
        "messages",
        ['<tool_call>\n{"name": "add", "arguments": "not json"}\n</tool_call>', EOS, "4", EOS],
    ),
    "content parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Four"}, "."]},
            ]
        },
        "messages",
        ["Four.", EOS],
    ),
    "a refusal": (
        {"messages": [ASK, {"role": "assistant", "content": None, "refusal": "No."}]},
        "messages",
        ["No.", EOS],
    ),
    "weight 0": (
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": "Five.", "weight": 0},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Four.", "weight": 1},
            ]
        },
        "messages",
        ["Four.", EOS],
    ),
    "messages as a string": (
        {"messages": json.dumps([ASK, {"role": "assistant", "content": "4"}]), "tools": json.dumps([TOOL])},
        "messages",
        ["4", EOS],
    ),
    "sharegpt that ends with a human": (
        {
            "conversations": [
                {"from": "human", "value": "q1"},
                {"from": "gpt", "value": "a1"},
                {"from": "human", "value": "q2"},
            ]
        },
        "sharegpt",
        ["a1", EOS],
    ),
    "sharegpt with tools": (
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "function_call", "value": '{"name": "add"}'},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "4"},
            ],
        },
        "sharegpt",
        ['{"name": "add"}', EOS, "4", EOS],
    ),
    "conversations with role and content": (
        {"conversations": [ASK, {"role": "assistant", "content": "4"}]},
        "sharegpt",
        ["4", EOS],
    ),
}


@pytest.fixture(scope="module")
def target(sample_tokenizer):
    return TargetTokenizer(str(sample_tokenizer))


@pytest.mark.parametrize("name", SUPERVISED)
def test_exactly_these_tokens_are_supervised(name, target):
    record, format_name, texts = SUPERVISED[name]
    assert detect_format([record], "x") == format_name
    segments = make_template("plain", target.tokenizer)(to_conversation(record, format_name))
    batch = target.tokenize([segments], ["d"], [0], 4096, with_spans=False).batch
    expected = [
        token
        for text in texts
        for token in (
            [target.special_id(EOS)] if text == EOS else target.backend.encode(text, add_special_tokens=False).ids
        )
    ]
    assert batch.input_ids[batch.supervised].tolist() == expected


def test_the_whole_document_with_tools(target):
    render = make_template("plain", target.tokenizer)
    text = "".join(segment.text for segment in render(to_conversation(WITH_TOOL, "messages")))
    assert text == (
        f"System: Tools:\n{json.dumps(TOOL)}\nUser: What is 2 + 2?\nAssistant: {WRITTEN_CALL}{EOS}"
        f"\nTool: 4\nAssistant: It is 4.{EOS}"
    )
    alpaca = make_template("alpaca", target.tokenizer)(to_conversation(WITH_TOOL, "messages"))
    assert alpaca[3].text == "\n\n### Tool:\n4\n\n### Response:\n"


def test_a_chat_template_shows_tools_or_refuses_the_record(target):
    tokenizer = target.tokenizer
    kept = tokenizer.chat_template
    try:
        with pytest.raises(DocumentError, match="`tool_calls`, which the chat template does not show"):
            make_template("chat", tokenizer)(to_conversation(WITH_TOOL, "messages"))
        tokenizer.chat_template = (
            "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
            "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}<|eos|>"
            "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        )
        segments = make_template("chat", tokenizer)(to_conversation(WITH_TOOL, "messages"))
        assert [segment.text for segment in segments if segment.supervised] == ["add(2)", EOS, "It is 4.", EOS]
        weighted = make_template("chat", tokenizer)(to_conversation(SUPERVISED["weight 0"][0], "messages"))
        assert [segment.text for segment in weighted if segment.supervised] == ["Four.", EOS]
    finally:
        tokenizer.chat_template = kept


def test_dropped_turns_are_counted():
    record = SUPERVISED["sharegpt that ends with a human"][0]
    assert to_conversation(record, "sharegpt") == Conversation(
        [Turn("user", "q1"), Turn("assistant", "a1")], dropped_turns=1
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ASK, {"role": "assistant", "content": None}], "missing_field"),
        ([ASK, {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}], "unsupported_content"),
        ([ASK, {"role": "assistant", "content": "", "tool_calls": []}], "empty_response"),
        ([ASK, {"role": "assistant", "tool_calls": [{"id": "x"}]}], "wrong_type"),
        ([ASK, {"role": "assistant", "tool_calls": "{"}], "wrong_type"),
        ([ASK, {"role": "assistant", "content": "a\ud800"}], "invalid_unicode"),
        ("[not json", "wrong_type"),
    ],
)
def test_what_cannot_be_read_has_a_reason(messages, reason):
    with pytest.raises(DocumentError) as caught:
        to_conversation({"messages": messages}, "messages")
    assert caught.value.reason == reason


def test_a_file_of_mixed_formats_is_read_record_by_record():
    records = [
        {"instruction": "q", "output": "a", "messages": None},
        {"messages": [ASK, {"role": "assistant", "content": "a"}], "instruction": None, "output": None},
        {"prompt": "q", "completion": "a"},
        {"text": "t"},
    ]
    assert detect_format(records, "x") == "mixed"
    turns = [to_conversation(record, "mixed") for record in records]
    assert [len(conversation.turns) for conversation in turns] == [2, 2, 2, 0]
    assert turns[3].text == "t"
    with pytest.raises(DocumentError, match=r"columns of this record \(question\)"):
        to_conversation({"question": "q"}, "mixed")
    with pytest.raises(DocumentError, match="looks like prompt_completion, not alpaca; --format mixed"):
        to_conversation(records[2], "alpaca")


def test_columns_under_other_names():
    mapping = parse_mapping(["prompt=question", "completion=answer"])
    record = rename({"question": "q", "answer": "a", "text": "not this"}, mapping)
    assert detect_format([record], "x") == "prompt_completion"
    assert to_conversation(record, "prompt_completion").turns == [Turn("user", "q"), Turn("assistant", "a")]
    assert rename({"body": "t", "instruction": "i"}, parse_mapping([], "body")) == {"text": "t"}
    assert rename(["no object"], mapping) == ["no object"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["prompt"], "expected field=column"),
        (["promt=q"], "Did you mean prompt"),
        (["prompt=a", "prompt=b"], "already a"),
    ],
)
def test_wrong_mappings(flags, says):
    with pytest.raises(UserError, match=says):
        parse_mapping(flags)


def test_a_column_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"has no column 'questoin'\. Did you mean question"):
        check_columns({"prompt": "questoin"}, [{"question": "q"}], "x.json")
    with pytest.raises(UserError, match="--text-column goes without"):
        parse_mapping(["prompt=q"], "body")
