import warnings
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from modeling_more.tagging import (
    Span,
    allowed_transitions,
    bio_labels,
    bio_to_bioes,
    bioes_labels,
    entity_types,
    spans_to_bio,
    spans_to_bioes,
    tags_to_spans,
)

TYPES = ["PER", "LOC", "A-B"]
TAGS = st.lists(st.sampled_from(bioes_labels(TYPES)), max_size=12)


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Span], int]:
    spans, position = [], 0
    for gap, width, type_ in draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from(TYPES)), max_size=6)
    ):
        spans.append(Span(position + gap, position + gap + width, type_))
        position += gap + width
    return spans, position + draw(st.integers(0, 3))


@given(TAGS)
@settings(max_examples=1000, deadline=None)
def test_lenient_reading_is_seqevals(tags: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = [(start, end + 1, type_) for type_, start, end in get_entities(tags)]
    assert tags_to_spans(tags) == expected


@given(TAGS)
@settings(max_examples=300, deadline=None)
def test_strict_reading_is_the_lenient_one_without_stray_openings(tags: list[str]) -> None:
    assert tags_to_spans(tags, strict=True) == [span for span in tags_to_spans(tags) if tags[span.start][0] in "BS"]


@given(sentences())
@settings(max_examples=300, deadline=None)
def test_round_trips(sentence: tuple[list[Span], int]) -> None:
    spans, length = sentence
    bio, bioes = spans_to_bio(spans, length), spans_to_bioes(spans, length)
    assert len(bio) == len(bioes) == length
    for tags in (bio, bioes):
        assert tags_to_spans(tags) == tags_to_spans(tags, strict=True) == spans
        assert bio_to_bioes(tags) == bioes


def test_by_hand() -> None:
    tags = ["I-PER", "I-PER", "O", "B-LOC", "I-PER", "B-PER", "B-PER"]
    assert tags_to_spans(tags) == [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "PER"), (5, 6, "PER"), (6, 7, "PER")]
    assert tags_to_spans(tags, strict=True) == [(3, 4, "LOC"), (5, 6, "PER"), (6, 7, "PER")]
    assert bio_to_bioes(tags) == ["B-PER", "E-PER", "O", "S-LOC", "S-PER", "S-PER", "S-PER"]
    assert tags_to_spans([]) == []


def test_labels() -> None:
    assert bio_labels(["PER", "LOC"]) == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert bioes_labels(["PER"]) == ["O", "B-PER", "I-PER", "E-PER", "S-PER"]
    assert entity_types(["O", "I-LOC", "B-PER", "S-LOC"]) == ["LOC", "PER"]


@pytest.mark.parametrize("tag", ["X", "", "B", "B-", "PER", "B_PER", "b-PER", "O-PER"])
def test_unknown_tags_are_named(tag: str) -> None:
    for read in (entity_types, tags_to_spans):
        with pytest.raises(ValueError, match=repr(tag)):
            read(["O", tag])


@pytest.mark.parametrize("spans", [[(0, 2, "A"), (1, 3, "A")], [(2, 2, "A")], [(2, 6, "A")], [(-1, 1, "A")]])
def test_bad_spans_are_errors(spans: list[tuple[int, int, str]]) -> None:
    for write in (spans_to_bio, spans_to_bioes):
        with pytest.raises(ValueError, match="span"):
            write(spans, 5)


def test_allowed_transitions_are_those_of_bioes_sequences() -> None:
    labels = bioes_labels(["A", "B"])
    start, follows, end = allowed_transitions(labels)
    for length in (1, 2, 3, 4):
        # Every set of entities, written out: between two words there is a border or not, each piece O or an entity.
        written = set()
        for borders in product([True, False], repeat=length - 1):
            edges = [0, *(i + 1 for i, border in enumerate(borders) if border), length]
            pieces = list(pairwise(edges))
            for types in product(["O", "A", "B"], repeat=len(pieces)):
                spans = [Span(s, e, t) for (s, e), t in zip(pieces, types, strict=True) if t != "O"]
                written.add(tuple(spans_to_bioes(spans, length)))
        allowed = {
            tuple(labels[i] for i in path)
            for path in product(range(len(labels)), repeat=length)
            if start[path[0]] and end[path[-1]] and all(follows[i][j] for i, j in pairwise(path))
        }
        assert allowed == written


def test_allowed_transitions_want_bioes_labels() -> None:
    with pytest.raises(ValueError, match="E-PER, S-PER"):
        allowed_transitions(bio_labels(["PER"]))


# From the data set's own README: sentences, entities opened by B-, entities as seqeval reads them.
COUNTS = {
    ("twitter2015", "train"): (4000, 6166, 6352, {"PER": 2217, "LOC": 2091, "ORG": 927, "OTHER": 931}),
    ("twitter2015", "valid"): (1000, 1541, 1594, {"PER": 552, "LOC": 522, "ORG": 247, "OTHER": 220}),
    ("twitter2015", "test"): (3257, 5072, 5207, {"PER": 1816, "LOC": 1697, "ORG": 839, "OTHER": 720}),
    ("twitter2017", "train"): (3373, 6049, 6049, {"PER": 2943, "LOC": 731, "ORG": 1674, "MISC": 701}),
    ("twitter2017", "valid"): (723, 1324, 1324, {"PER": 626, "LOC": 173, "ORG": 375, "MISC": 150}),
    ("twitter2017", "test"): (723, 1351, 1351, {"PER": 621, "LOC": 178, "ORG": 395, "MISC": 157}),
}


@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_counts_of_the_real_sets(shared_data: Path, name: str, split: str) -> None:
    sentences_, strict, lenient, per_type = COUNTS[name, split]
    blocks = (shared_data / name / f"{split}.txt").read_text(encoding="utf-8").strip("\n").split("\n\n")
    tagged = [[line.rsplit("\t", 1)[1] for line in block.split("\n") if "\t" in line] for block in blocks]
    strict_spans = [span for tags in tagged for span in tags_to_spans(tags, strict=True)]
    assert len(tagged) == sentences_
    assert len(strict_spans) == strict
    assert {type_: sum(span.type == type_ for span in strict_spans) for type_ in per_type} == per_type
    assert sum(len(tags_to_spans(tags)) for tags in tagged) == lenient
