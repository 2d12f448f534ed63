import pytest

from annotate.records.conversations import DocumentError, Turn, detect_format, to_conversation
from common.errors import UserError

USER, ASSISTANT = Turn("user", "q"), Turn("assistant", "a")

GOOD = [
    ("alpaca", {"instruction": "q", "input": "c", "output": "a"}, [Turn("user", "q", "c"), ASSISTANT]),
    ("alpaca", {"instruction": "q", "output": "a"}, [USER, ASSISTANT]),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, [USER, ASSISTANT]),
    ("prompt_completion", {"prompt": "q", "response": "a"}, [USER, ASSISTANT]),
    (
        "prompt_completion",
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        [Turn("system", "s"), USER, ASSISTANT],
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [USER, ASSISTANT],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [USER, ASSISTANT],
    ),
    ("lima", {"conversations": ["q", "a", "q", "a"]}, [USER, ASSISTANT, USER, ASSISTANT]),
    (
        "lima",
        {"instruction": "q", "input": "", "output": "a", "history": [["q1", "a1"]]},
        [Turn("user", "q1"), Turn("assistant", "a1"), USER, ASSISTANT],
    ),
]


@pytest.mark.parametrize(("name", "record", "turns"), GOOD)
def test_every_format_is_detected_and_read(name, record, turns):
    assert detect_format([None, record], "x") == name
    assert to_conversation(record, name).turns == turns


def test_text_is_one_supervised_piece():
    assert detect_format([{"text": "t"}], "x") == "text"
    assert to_conversation({"text": "t"}, "text").text == "t"


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("alpaca", {"instruction": "q", "output": ""}, "empty_response"),
        ("alpaca", {"instruction": "q", "output": " \n"}, "empty_response"),
        ("alpaca", {"instruction": "q", "output": 7}, "wrong_type"),
        ("alpaca", {"instruction": "q", "output": None}, "missing_field"),
        ("alpaca", {"instruction": "q"}, "missing_field"),
        ("alpaca", {"instruction": "\ud800", "output": "a"}, "invalid_unicode"),
        ("alpaca", ["q", "a"], "not_an_object"),
        ("messages", {"messages": "q"}, "wrong_type"),
        ("messages", {"messages": ["q"]}, "wrong_type"),
        ("messages", {"messages": []}, "missing_response"),
        ("messages", {"messages": [{"role": "user", "content": "q"}]}, "missing_response"),
        ("messages", {"messages": [{"role": "wizard", "content": "q"}]}, "unknown_role"),
        ("messages", {"messages": [{"role": "assistant"}]}, "missing_field"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": ""}, {"role": "assistant", "content": "a"}]},
            "empty_response",
        ),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "q"}]}, "unknown_role"),
        ("lima", {"conversations": ["q", 1]}, "wrong_type"),
        ("lima", {"conversations": ["q"]}, "missing_response"),
        ("lima", {"instruction": "q", "output": "a", "history": [["q"]]}, "wrong_type"),
        ("text", {"text": "  "}, "empty_response"),
    ],
)
def test_what_cannot_become_a_document_has_a_reason(name, record, reason):
    with pytest.raises(DocumentError) as caught:
        to_conversation(record, name)
    assert caught.value.reason == reason
    assert str(caught.value).endswith(".")


def test_unknown_columns_are_named():
    with pytest.raises(UserError, match=r"found answer, question.*--format"):
        detect_format([{"question": "q", "answer": "a"}], "x.json")
