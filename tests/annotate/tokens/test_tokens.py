import json

import numpy as np
import pytest

from annotate.records.conversations import to_conversation
from annotate.tokens.target import TargetTokenizer, load_tokenizer
from annotate.tokens.templates import Segment, make_template
from common.errors import UserError


@pytest.fixture(scope="module")
def target(sample_tokenizer):
    return TargetTokenizer(str(sample_tokenizer))


@pytest.fixture(scope="module")
def documents(sample_records, target):
    render = make_template("plain", target.tokenizer)
    records = [json.loads(line) for line in sample_records.read_text(encoding="utf-8").splitlines()]
    return [render(to_conversation(record, "messages")) for record in records]


def tokenize(target, documents, max_length=4096, with_spans=True):
    names = [str(i) for i in range(len(documents))]
    return target.tokenize(documents, names, range(len(documents)), max_length, with_spans)


def reference(target, document):
    """One document, segment by segment, in plain Python."""
    ids, supervised, spans, text = list(target.prefix), [False] * len(target.prefix), [(0, 0)] * len(target.prefix), ""
    for segment in document:
        if segment.special:
            ids.append(target.tokenizer.get_vocab()[segment.text])
            supervised.append(segment.supervised)
            spans.append((len(text), len(text)))
            continue
        encoding = target.backend.encode(segment.text, add_special_tokens=False)
        ids += encoding.ids
        supervised += [segment.supervised] * len(encoding.ids)
        spans += [(start + len(text), end + len(text)) for start, end in encoding.offsets]
        text += segment.text
    return ids, supervised, spans, text


@pytest.mark.parametrize("with_spans", [False, True])
def test_a_whole_shard_equals_document_by_document(target, documents, with_spans):
    result = tokenize(target, documents, with_spans=with_spans)
    batch = result.batch
    assert (result.num_truncated, result.unsupervised) == (0, [])
    for index, document in enumerate(documents):
        ids, supervised, spans, text = reference(target, document)
        where = batch.tokens_of(index)
        assert batch.input_ids[where].tolist() == ids
        assert batch.supervised[where].tolist() == supervised
        assert batch.texts[index] == text
        if with_spans:
            assert list(map(tuple, batch.spans[where].tolist())) == spans
        else:
            assert batch.spans is None


def test_by_hand(target):
    document = [Segment("ab ", False), Segment("c", True), Segment("<|eos|>", True, True)]
    batch = tokenize(target, [document]).batch
    assert target.tokenizer.convert_ids_to_tokens(batch.input_ids.tolist()) == ["<|bos|>", "ab", "Ġ", "c", "<|eos|>"]
    assert batch.supervised.tolist() == [False, False, False, True, True]
    assert batch.spans.tolist() == [[0, 0], [0, 2], [2, 3], [3, 4], [4, 4]]
    assert batch.texts == ["ab c"]


def test_text_that_reads_like_a_special_token_stays_text(target):
    batch = tokenize(target, [[Segment("a<|eos|>b", True), Segment("<|eos|>", True, True)]]).batch
    eos = target.special_id("<|eos|>")
    assert batch.input_ids.tolist().count(eos) == 1
    assert batch.texts == ["a<|eos|>b"]


def test_the_prefix_comes_once(target, documents):
    render = make_template("chat", target.tokenizer)
    conversation = to_conversation(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages"
    )
    batch = tokenize(target, [render(conversation), documents[0]]).batch
    bos = target.special_id("<|bos|>")
    for index in range(2):
        ids = batch.input_ids[batch.tokens_of(index)].tolist()
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_one_character_over_several_tokens_and_truncation_inside_it(target):
    document = [Segment("x", True), Segment("𒀀", True)]  # four bytes that no merge joins
    whole = tokenize(target, [document]).batch
    assert whole.num_tokens == 6
    assert whole.spans[2:].tolist() == [[1, 2]] * 4
    cut = tokenize(target, [document], max_length=4)
    assert cut.num_truncated == 1
    assert cut.batch.input_ids.tolist() == whole.input_ids[:4].tolist()
    assert cut.batch.texts == ["x𒀀"]


def test_truncation_keeps_the_first_tokens_and_the_text_that_they_cover(target, documents):
    whole, cut = tokenize(target, documents).batch, tokenize(target, documents, max_length=40)
    lengths = whole.lengths
    kept = [row for row in range(len(documents)) if row not in cut.unsupervised]
    assert cut.unsupervised, "some sample prompt is longer than 40 tokens"
    assert cut.num_truncated == sum(lengths[row] > 40 for row in kept)
    for index, row in enumerate(kept):
        ids = cut.batch.input_ids[cut.batch.tokens_of(index)]
        assert ids.tolist() == whole.input_ids[whole.tokens_of(row)][:40].tolist()
        assert whole.texts[row].startswith(cut.batch.texts[index])
        spans = cut.batch.spans[cut.batch.tokens_of(index)]
        if lengths[row] > 40:
            assert len(cut.batch.texts[index]) == spans[:, 1].max()
        assert cut.batch.supervised[cut.batch.tokens_of(index)].any()


def test_a_subset_of_documents(target, documents):
    batch = tokenize(target, documents).batch
    chosen = batch.select(np.array([1, 5]))
    again = tokenize(target, [documents[1], documents[5]]).batch
    assert chosen.input_ids.tolist() == again.input_ids.tolist()
    assert chosen.offsets.tolist() == again.offsets.tolist()
    assert chosen.spans.tolist() == again.spans.tolist()
    assert chosen.source_rows.tolist() == [1, 5]


def test_tokenizers_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"(?s)--tokenizer .*nowhere: no such directory"):
        load_tokenizer(str(tmp_path / "nowhere"))
    from transformers import CanineTokenizer

    CanineTokenizer().save_pretrained(tmp_path / "slow")
    with pytest.raises(UserError, match=r"fast tokenizer|could not be loaded"):
        load_tokenizer(str(tmp_path / "slow"))
