"""`annotate inspect`: spans recovered from shards, the terminal, and the self-contained HTML file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from annotate.records.conversations import to_conversation
from annotate.run.pipeline import Settings, run
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import make_template
from annotate.views.inspection import inspect_shards, ranks
from common.thresholds import important_tokens
from common.viewer.page import embed_json, script, write_page
from common.viewer.spans import recover_spans, special_tokens, token_texts
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import SAMPLE, TRICKY, small_tokenizer
from tests.services.browser import browser

TEXTS = [
    *TRICKY,
    *SAMPLE[:60],
    " leading",
    "trailing \n\n",
    "\n",
    "<|eos|> spelled out",
    "a<!--</script>b",
    "👨‍👩‍👧‍👦" * 9,
]


def conversations(template: str) -> list:
    """Return conversations of one, two and three rounds over awkward texts."""
    if template == "text":
        return [to_conversation({"text": text}, "text") for text in TEXTS if text.strip()]
    texts = [text for text in TEXTS if text.strip()]
    found = []
    for index in range(len(texts)):
        messages = []
        for turn in range(1 + index % 3):
            question, answer = texts[(index + 7 * turn + 3) % len(texts)], texts[(index + turn) % len(texts)]
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        found.append(to_conversation({"messages": messages}, "messages"))
    return found


def compare(target: TargetTokenizer, template: str, max_length: int = 4096) -> tuple[int, int]:
    """Compare recovered spans with those that tokenizing gave; return the tokens, and those that are approximate."""
    render = make_template("plain" if template == "text" else template, target.tokenizer)
    documents = [render(conversation) for conversation in conversations(template)]
    rows = range(len(documents))
    batch = target.tokenize(documents, [str(row) for row in rows], rows, max_length, with_spans=True).batch
    approximate = 0
    for number in range(len(batch)):
        here = batch.tokens_of(number)
        found = recover_spans(batch.texts[number], batch.input_ids[here], batch.supervised[here], target)
        approximate += found.num_approximate
        assert (found.spans >= 0).all()
        assert (found.spans <= len(batch.texts[number])).all()
        assert (found.spans[:, 0] <= found.spans[:, 1]).all()
        if not found.num_approximate:
            # Where a special token stands among white space that the tokenizer drops, nobody can tell.
            wide = found.spans[:, 0] < found.spans[:, 1]
            np.testing.assert_array_equal(wide, batch.spans[here][:, 0] < batch.spans[here][:, 1])
            np.testing.assert_array_equal(found.spans[wide], batch.spans[here][wide])
    return batch.num_tokens, approximate


@pytest.mark.parametrize("template", ["text", "plain", "alpaca", "chat"])
def test_spans_are_recovered_exactly(sample_tokenizer, template):
    assert compare(TargetTokenizer(str(sample_tokenizer)), template)[1] == 0


@pytest.mark.parametrize(("template", "max_length"), [("text", 3), ("text", 9), ("plain", 40), ("chat", 40)])
def test_cut_documents_are_exact_but_for_a_last_word(sample_tokenizer, template, max_length):
    tokens, approximate = compare(TargetTokenizer(str(sample_tokenizer)), template, max_length)
    assert approximate < 0.1 * tokens


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_tokenizers_that_change_white_space(tmp_path, family):
    """WordPiece and Unigram decoders do not give the text back; the ids do."""
    tokenizer = small_tokenizer(family)
    tokenizer.eos_token = tokenizer.sep_token or tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    tokens, approximate = compare(TargetTokenizer(str(tmp_path)), "plain")
    assert approximate < 0.02 * tokens


@pytest.mark.slow
def test_real_documents(shared):
    target = TargetTokenizer(str(shared / "tokenizers" / "llama-3"))
    for template in ("plain", "alpaca", "text"):
        assert compare(target, template)[1] == 0


def test_token_texts_by_hand(sample_tokenizer):
    target = TargetTokenizer(str(sample_tokenizer))
    names = special_tokens(target)
    bos, eos = target.special_id("<|bos|>"), target.special_id("<|eos|>")
    spans = np.array([[0, 0], [0, 2], [2, 3], [2, 3], [3, 3]])
    assert token_texts("ab😀", np.array([bos, 7, 8, 9, eos]), spans, names) == ["<|bos|>", "ab", "😀", "😀", "<|eos|>"]


def test_ranks_by_hand():
    scores, supervised = np.array([9.0, 3.0, 1.0, 3.0, 7.0]), np.array([False, True, True, True, True])
    np.testing.assert_allclose(ranks(scores, supervised), [0, 0.5, 0, 0.5, 1])
    np.testing.assert_allclose(ranks(np.ones(3), np.ones(3, dtype=bool)), [0.5, 0.5, 0.5])


@pytest.fixture(scope="module")
def shards(tmp_path_factory, sample_tokenizer) -> Path:
    out = tmp_path_factory.mktemp("inspect") / "shards"
    groupers = ("tfidf", "random")
    settings = Settings("sample", groupers, out, str(sample_tokenizer), limit=30, rows_per_shard=8, engine="local")
    run(settings, Console(quiet=True))
    return out


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run the real command."""
    line = [sys.executable, "-c", "from annotate.cli import main; main()", "inspect", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


def data_of(path: Path) -> dict:
    """Return the view in an HTML file."""
    (found,) = re.findall(r'<script type="application/json" id="viewer-data">(.*?)</script>', path.read_text("utf-8"))
    return json.loads(found)


def test_the_terminal_shows_the_groups(shards):
    result = command(shards, "--grouper", "tfidf", "--eta", "0.8", "--document", "3")
    assert result.returncode == 0, result.stderr
    html = shards.parent / "one.html"
    assert command(shards, "--grouper", "tfidf", "--document", "3", "--html", html).returncode == 0
    (document,) = data_of(html)["documents"]
    supervised = np.array(document["tokens"]["supervised"])
    groups = important_tokens(np.array(document["scores"]["tfidf"]), supervised, 0.8)
    count = int(groups.important.sum())
    assert f"eta 0.8: {count} of {supervised.sum()} supervised tokens important" in result.stdout
    marked = re.findall(r"\[\[(.*?)\]\]", result.stdout, flags=re.S)
    texts = [text for text, flag in zip(document["tokens"]["text"], groups.important, strict=True) if flag and text]
    assert marked == texts
    body = re.sub(r"\[\[(.*?)\]\]", r"\1", result.stdout, flags=re.S)
    assert document["text"].split("Assistant: ")[1].strip() in body


def test_colours_mark_shade_group_and_prompt(shards):
    # A process of its own: rich keeps a style's codes, whichever colours the console that it was first shown on had.
    colours = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    shown = command(shards, "--grouper", "tfidf", "--ties", "rank", "--document", "0", **colours).stdout
    assert "\x1b[2m" in shown  # dim: the prompt
    assert "\x1b[1;4;38;2" in shown  # bold and underlined: important
    assert len(set(re.findall(r"48;2;255;\d+;\d+", shown))) > 5  # shades


def test_html_holds_the_documents_and_nothing_from_elsewhere(shards, tmp_path):
    out = tmp_path / "out.html"
    result = command(shards, "--html", out, "--num", "12", "--eta", "0.9", "--ties", "rank")
    assert result.returncode == 0, result.stderr
    assert "12 documents, tfidf, random" in result.stdout
    view = data_of(out)
    assert len(view["documents"]) == 12
    assert (view["eta"], view["ties"], list(view["columns"])) == (0.9, "rank", ["tfidf", "random"])
    page = out.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)\w", page), "nothing is loaded"
    assert "url(" not in page
    assert "@import" not in page
    assert not list(tmp_path.glob(".*")), "no temporary file stays"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grouper", "llmlingua2"), "holds the score columns tfidf, random, not 'llmlingua2'"),
        (("--eta", "1.5"), "lies in [0, 1)"),
        (("--ties", "coin"), "expected threshold or rank"),
        (("--document", "9999"), "expected a row from 0 to 29"),
        (("--num", "0"), "at least 1"),
        (("--html", "nowhere/out.html"), "a directory that exists"),
    ],
)
def test_mistakes_are_said_in_a_sentence(shards, arguments, message):
    result = command(shards, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


def test_a_document_by_its_id(shards, tmp_path):
    inspect_shards(shards, [], 0.7, "threshold", None, 30, tmp_path / "all.html", Console(quiet=True))
    wanted = data_of(tmp_path / "all.html")["documents"][11]
    inspect_shards(shards, [], 0.7, "threshold", wanted["id"][:10], 1, tmp_path / "one.html", Console(quiet=True))
    assert data_of(tmp_path / "one.html")["documents"] == [wanted]


def test_no_text_can_leave_the_data():
    hostile = "</script><script>alert(1)</script><!-- <!DOCTYPE ]]> \u2028 😀"
    page = write_page({"documents": [hostile]})
    assert page.count("</script>") == 2
    assert "<!--" not in page
    assert json.loads(embed_json({"x": hostile})) == {"x": hostile}
    assert "</script" not in script()


@pytest.mark.browser
def test_the_pages_groups_are_those_of_the_trainer(tmp_path):
    """The page's own functions against numpy, bit for bit, on awkward scores."""
    generator = np.random.default_rng(0)
    cases = []
    for number in range(300):
        size = int(generator.integers(1, 60))
        scores = generator.normal(size=size).astype(np.float32)
        if number % 3 == 0:
            scores = np.round(scores)  # ties
        supervised = generator.random(size) < 0.7
        eta = float(np.round(generator.random() * 0.94, int(generator.integers(1, 6))))
        ties = ("threshold", "rank")[number % 2]
        groups = important_tokens(scores, supervised, eta, ties)
        threshold = None if np.isnan(groups.threshold) else groups.threshold
        cases.append([scores.tolist(), supervised.tolist(), eta, ties, groups.important.tolist(), threshold])
    page = tmp_path / "page.html"
    page.write_text(write_page(None), encoding="utf-8")
    with browser(tmp_path) as window:
        window.get(page.as_uri())
        wrong = window.execute_script(
            """
            return arguments[0].filter(([scores, supervised, eta, ties, important, threshold]) => {
              const found = sftGo.importantTokens(scores, supervised, eta, ties);
              const same = Number.isNaN(found.threshold) ? threshold === null : found.threshold === threshold;
              return !same || JSON.stringify(found.important) !== JSON.stringify(important);
            });
            """,
            cases,
        )
        counts = window.execute_script(
            "return [[0.7, 10], [0.9, 10], [1e-7, 3]].map(([e, n]) => sftGo.numImportant(e, n))"
        )
    assert wrong == []
    assert counts == [3, 1, 3]
