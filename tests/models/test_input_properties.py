"""Any words become sub-tokens, windows, labels and markers without one being lost, doubled or moved."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_more.encoding import encode_posts
from modeling_more.processing_more import MARKERS, MoReProcessor
from modeling_more.tagging import Span, bioes_labels, spans_to_bio, tags_to_spans

WORD = (
    st.text(min_size=1, max_size=6)
    | st.sampled_from(["Ada", "Lindau", "<E>", "</E>", "[SEP]", "</s>", "\ufe0f", "\u200d", "東京", " ", "x" * 90])
).filter(lambda word: not any("\ud800" <= letter <= "\udfff" for letter in word))  # fmt: skip
POST = st.lists(WORD, min_size=1, max_size=40)
ENTRY = st.fixed_dictionaries({"title": st.sampled_from(["", "Oslo"]), "text": st.text(max_size=30)})
FEW = settings(max_examples=60, deadline=None)
LABELS = bioes_labels(["PER", "LOC"])


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def processor(request: pytest.FixtureRequest, tiny_encoder: Any) -> MoReProcessor:
    return MoReProcessor.from_encoder_pretrained(tiny_encoder(request.param), max_length=24, markers=True)


def first_pieces(processor: MoReProcessor, words: list[str]) -> list[int]:
    """The first sub-token of each word, each word by itself between two others."""
    return [processor._tokenize_words([["Ada", word, "Ada"]])[0][1][0] for word in words]


@given(words=POST, entries=st.none() | st.lists(ENTRY, max_size=3))
@FEW
def test_every_word_has_one_place_whatever_is_read(processor: MoReProcessor, words: list[str], entries: Any) -> None:
    (post,) = processor.encode([words], [entries])
    rows, places = post["input_ids"], list(zip(post["word_rows"], post["word_positions"], strict=True))
    assert len(places) == len(words) and places == sorted(set(places))  # one each, none shared, in order
    assert post["cut_words"] == 0 and max(map(len, rows)) <= 24
    assert [rows[row][position] for row, position in places] == first_pieces(processor, words)
    tokenizer = processor.tokenizer
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in rows)
    (alone,) = processor.encode([words])
    assert places == list(zip(alone["word_rows"], alone["word_positions"], strict=True))  # knowledge moves none
    (cut,) = processor.encode([words], truncate=True)
    kept = len(cut["word_positions"])
    assert kept + cut["cut_words"] == len(words) and len(cut["input_ids"]) == 1
    assert cut["word_positions"] == [position for row, position in places if row == 0][:kept] or len(rows) > 1


@st.composite
def posts_with_spans(draw: st.DrawFn) -> dict[str, Any]:
    words, spans, position = draw(POST), [], 0
    while position < len(words):
        start = position + draw(st.integers(0, 3))
        end = start + draw(st.integers(1, 4))
        if end > len(words):
            break
        spans.append(Span(start, end, draw(st.sampled_from(["PER", "LOC"]))))
        position = end
    return {"tokens": words, "spans": spans, "ner_tags": spans_to_bio(spans, len(words))}


@given(posts=st.lists(posts_with_spans(), min_size=1, max_size=3))
@FEW
def test_entities_survive_sub_tokens_and_windows(tiny_encoder: Any, posts: list[dict[str, Any]]) -> None:
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=16)
    label2id = {label: number for number, label in enumerate(LABELS)}
    for post, row in zip(posts, encode_posts(posts, processor, label2id), strict=True):
        assert tags_to_spans([LABELS[label] for label in row["labels"]], strict=True) == post["spans"]
    for post, row in zip(posts, encode_posts(posts, processor, label2id, truncate=True), strict=True):
        assert [LABELS[label] for label in row["labels"]] == [
            LABELS[label] for label in encode_posts([post], processor, label2id)[0]["labels"][: len(row["labels"])]
        ]


@given(words=POST.filter(lambda words: len(words) > 1), data=st.data())
@FEW
def test_markers_stand_once_around_their_entities(
    processor: MoReProcessor, words: list[str], data: st.DataObject
) -> None:
    count = len(words)
    spans = st.integers(0, count - 1).flatmap(lambda a: st.integers(a + 1, count).map(lambda b: (a, b)))
    head, tail = data.draw(spans), data.draw(spans)
    pieces = processor._tokenize_words([words])[0]
    units, places = processor._mark(pieces, {0: head, 1: tail})
    ids = processor.tokenizer.convert_tokens_to_ids(list(MARKERS))
    at = [[n for n, unit in enumerate(units) if unit == [id_]] for id_ in ids]
    assert all(len(found) == 1 for found in at)  # also where the post's own words are "<E>"
    (opens_head,), (closes_head,), (opens_tail,), (closes_tail,) = at
    assert places == [opens_head, opens_tail]
    bare = [unit for unit in units if unit[0] not in ids]
    assert bare == pieces
    for (start, end), first, last in ((head, opens_head, closes_head), (tail, opens_tail, closes_tail)):
        inside = [unit for unit in units[first:last] if unit[0] not in ids]
        assert inside == pieces[start:end]
    (post,) = processor.encode([words], None, [(head, tail)])
    assert len(post["word_positions"]) == 2 and post["cut_words"] == 0
    found = [
        post["input_ids"][row][place] for row, place in zip(post["word_rows"], post["word_positions"], strict=True)
    ]
    assert found == [ids[0], ids[2]]
