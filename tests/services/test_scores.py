"""What the service answers: the scores of the annotation run, in the documented shape."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from rich.console import Console

from annotate.run.pipeline import run
from annotate.run.settings import Settings
from common.shards import ShardDirectory
from common.thresholds import important_tokens
from services.schemas import ScoreResponse
from tests.services.conftest import COLUMNS, DOCUMENTS, GROUPERS
from tests.services.running import Server

TOLERANCE = 1e-6  # for what models say; the others are exact
EXACT = ("tfidf", "frequency", "random")
TEXT = "The heart 🙂 pumps blood,\nand the lungs take up oxygen."


def score(server: Server, inputs: object, grouper: str, **options: object) -> dict:
    with server.client() as client:
        response = client.post("/v1/score", json={"inputs": inputs, "grouper": grouper, **options})
    assert response.status_code == 200, response.text
    ScoreResponse.model_validate(response.json())
    return response.json()


def compare_with_shards(client: httpx.Client, records: list, shards: Path, columns: tuple[str, ...]) -> int:
    """Score the records over HTTP, several a request, and compare every token with the shards. Return their number."""
    rows = [row for table in ShardDirectory(shards).tables() for row in table.to_pylist()]
    compared = 0
    for column in columns:
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            inputs = [records[row["source_row"]] for row in part]
            response = client.post("/v1/score", json={"inputs": inputs, "grouper": column})
            assert response.status_code == 200, response.text
            for row, result in zip(part, response.json()["results"], strict=True):
                assert result["text"] == row["text"]
                assert [token["id"] for token in result["tokens"]] == row["input_ids"]
                assert [token["supervised"] for token in result["tokens"]] == row["supervised"]
                scores = [token["score"] for token in result["tokens"]]
                difference = np.abs(np.array(scores) - row[column])
                assert difference.max() <= (0.0 if column in EXACT else TOLERANCE), (column, difference.max())
                compared += 1
    return compared


@pytest.mark.parametrize("column", COLUMNS)
def test_scores_are_those_of_the_shards(server, shards, sample_records, column):
    lines = sample_records.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line)["messages"] for line in lines]
    with server.client() as client:
        assert compare_with_shards(client, records, shards, (column,)) == DOCUMENTS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "tokenizer"), [("alpaca", "llama-3"), ("text", "llama-3"), ("alpaca", "sample"), ("text", "sample")]
)
def test_scores_are_those_of_the_shards_on_real_documents(
    tmp_path, shared, sample_tokenizer, models, template, tokenizer
):
    """200 documents of LIMA as messages and as plain text: with the real Llama 3 tokenizer, and with every grouper.

    The reference models have the shipped tokenizer, since 128,256 logits a token take minutes here.
    """
    records = json.loads((shared / "data" / "lima.json").read_text(encoding="utf-8"))
    lima = [
        [
            {"role": ("user", "assistant")[turn % 2], "content": text}
            for turn, text in enumerate(record["conversations"])
        ]
        for record in records
        if "conversations" in record
    ] or [
        [{"role": "user", "content": record["instruction"]}, {"role": "assistant", "content": record["output"]}]
        for record in records
        if not record.get("history")
    ]
    is_sample = tokenizer == "sample"
    inputs: list = lima[:DOCUMENTS]
    if template == "text":
        inputs = [messages[-1]["content"] for messages in inputs]
    data = tmp_path / "data.jsonl"
    name = "text" if template == "text" else "messages"
    data.write_text("".join(json.dumps({name: item}) + "\n" for item in inputs), encoding="utf-8")
    settings = Settings(
        data=str(data),
        groupers=GROUPERS if is_sample else tuple(name for name in GROUPERS if name != "rho1"),
        out=tmp_path / "shards",
        tokenizer=str(sample_tokenizer if is_sample else shared / "tokenizers" / "llama-3"),
        template=None if template == "text" else template,
        max_length=1024,
        engine="local",
        options=models if is_sample else replace(models, reference_model=None, base_model=None),
    )
    manifest = run(settings, Console(quiet=True)).manifest
    columns = tuple(manifest.columns)
    with Server(tmp_path / "log", "--state", settings.out) as running, running.wait().client() as client:
        compared = compare_with_shards(client, inputs, settings.out, columns)
    assert columns == (COLUMNS if is_sample else settings.groupers)
    assert compared == manifest.counts.documents * len(columns) > 190 * len(columns)
    assert manifest.counts.truncated > 0


def test_a_string_and_a_list_of_one_are_alike(server):
    alone, listed = score(server, TEXT, "tfidf", eta=0.5), score(server, [TEXT], "tfidf", eta=0.5)
    assert alone == listed
    conversation = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    assert score(server, conversation, "tfidf") == score(server, [conversation], "tfidf")
    mixed = score(server, [conversation, TEXT], "tfidf", eta=0.5)["results"]
    assert mixed[1] == alone["results"][0]


def test_tokens_show_their_characters(server):
    result = score(server, TEXT, "frequency")["results"][0]
    tokens = result["tokens"]
    assert result["text"] == TEXT
    assert [tokens[0]["text"], tokens[-1]["text"]] == ["<|bos|>", "<|eos|>"]
    assert [tokens[0]["supervised"], tokens[1]["supervised"], tokens[-1]["supervised"]] == [False, True, True]
    for token in tokens[1:-1]:
        assert token["text"] == TEXT[token["start"] : token["end"]] != ""
    # The emoji is several tokens of bytes in this small tokenizer: each shows the whole character.
    assert sum("🙂" in token["text"] for token in tokens) > 1
    assert {index for token in tokens for index in range(token["start"], token["end"])} == set(range(len(TEXT)))


@pytest.mark.parametrize("ties", ["threshold", "rank"])
@pytest.mark.parametrize("eta", [0, 0.5, 0.9])
def test_groups_are_those_of_the_trainer(server, eta, ties):
    conversation = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": TEXT}]
    result = score(server, conversation, "tfidf", eta=eta, ties=ties)["results"][0]
    scores = np.array([token["score"] for token in result["tokens"]])
    supervised = np.array([token["supervised"] for token in result["tokens"]])
    groups = important_tokens(scores, supervised, eta, ties)
    assert [token["important"] for token in result["tokens"]] == groups.important.tolist()
    assert result["threshold"] == groups.threshold
    assert not any(token["important"] for token in result["tokens"] if not token["supervised"])


def test_without_eta_there_are_no_groups(server):
    result = score(server, TEXT, "tfidf")["results"][0]
    assert result["threshold"] is None
    assert "important" not in result["tokens"][0]


def test_reference_losses_have_no_groups(server):
    assert score(server, TEXT, "rho1")["kind"] == "reference_loss"
    assert score(server, TEXT, "rho1_excess", eta=0.5)["kind"] == "importance"
    with server.client() as client:
        response = client.post("/v1/score", json={"inputs": TEXT, "grouper": "rho1", "eta": 0.5})
    assert response.status_code == 422
    assert "reference loss" in response.json()["error"]


def test_long_texts_are_scored_in_chunks_and_cut_at_the_maximum_length(server):
    long = "one two three. " * 2000
    results = score(server, [TEXT, long], "llmlingua2")["results"]
    assert [result["truncated"] for result in results] == [False, True]
    assert results[0]["num_chunks"] == 1
    assert results[1]["num_chunks"] > 5
    assert len(results[1]["tokens"]) == 4096
    assert long.startswith(results[1]["text"])
    assert results[1]["text"] != long
    assert score(server, long, "tfidf")["results"][0]["num_chunks"] == 1


def test_groupers_and_info_say_what_there_is(server, models):
    with server.client() as client:
        groupers = client.get("/v1/groupers").json()
        info = client.get("/info").json()
    assert [grouper["name"] for grouper in groupers] == list(COLUMNS)
    assert {grouper["name"]: grouper["kind"] for grouper in groupers}["rho1"] == "reference_loss"
    assert all(grouper["ready"] and grouper["tokenizers"] == ["sample"] for grouper in groupers)
    assert info["tokenizers"][0]["max_length"] == 4096
    # No directory of the server is told to clients.
    assert str(Path(models.flags["compressor_model"]).parent) not in json.dumps([groupers, info])
    assert "compressor" in json.dumps(groupers)


def test_the_tokenizer_can_be_named(server):
    assert score(server, TEXT, "tfidf", tokenizer="sample") == score(server, TEXT, "tfidf")
    with server.client() as client:
        response = client.post("/v1/score", json={"inputs": TEXT, "grouper": "tfidf", "tokenizer": "/etc/passwd"})
    assert (response.status_code, response.json()["error_type"]) == (422, "invalid_input")
