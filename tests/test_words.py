"""The word splitter: offsets, styles, and how far it reproduces the words of the real sets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_more.conll import read_conll
from modeling_more.tagging import Span
from modeling_more.words import STYLES, align_spans, split_words


def words(text: str, style: str = "twitter17") -> list[str]:
    return [word.word for word in split_words(text, style)]


def test_twitter17_splits_off_hashes_ats_and_punctuation() -> None:
    text = "RT @ada: #Oslo's 10,000 fans, 13.5 km :) http://t.co/a1?b=c"
    expected = "RT @ ada : # Oslo ' s 10,000 fans , 13.5 km :) http://t.co/a1?b=c".split(" ")
    assert words(text) == expected


def test_twitter15_keeps_hashes_ats_hyphens_and_entities() -> None:
    text = "RT @ada_l: #Oslo-fans &amp; well-known w/ 9/11.. -- $AAPL http://t.co/a1"
    expected = "RT @ada_l : #Oslo-fans &amp ; well-known w/ 9/11 . . -- $AAPL http://t.co/a1".split(" ")
    assert words(text, "twitter15") == expected


@pytest.mark.parametrize("style", ["twitter17", "twitter15"])
def test_punctuation_after_a_link_is_no_part_of_it(style: str) -> None:
    assert words("(see http://t.co/a.b?c=d), http://t.co/e.", style) == (
        ["(", "see", "http://t.co/a.b?c=d", ")", ",", "http://t.co/e", "."]
    )


def test_whitespace_style_splits_at_ascii_white_space_only() -> None:
    assert words("a,b\tc\n d\u00a0e \u200b", "whitespace") == ["a,b", "c", "d\u00a0e", "\u200b"]


def test_combining_marks_stay_with_their_letter_and_selectors_stand_alone() -> None:
    assert words("e\u0301te\u0301 नमस्ते \u2764\ufe0f") == ["e\u0301te\u0301", "नमस्ते", "\u2764", "\ufe0f"]


def test_nothing_in_an_empty_text() -> None:
    assert words("") == words(" \n\u00a0") == []


def test_unknown_style() -> None:
    with pytest.raises(ValueError, match="'moses' is unknown: give one of twitter17, twitter15, whitespace"):
        split_words("a", "moses")


@given(st.text(max_size=60), st.sampled_from(STYLES))
def test_offsets_are_exact_and_no_character_is_lost(text: str, style: str) -> None:
    end = 0
    for word in split_words(text, style):
        assert text[word.start : word.end] == word.word and word.start < word.end
        assert text[end : word.start].isspace() or end == word.start
        end = word.end
    assert not text[end:].strip()


def test_spans_are_put_onto_words() -> None:
    found = split_words("Ada Lovelace met Babbage")
    assert align_spans(found, [(0, 12, "PER"), (17, 24, "PER")]) == ([Span(0, 2, "PER"), Span(3, 4, "PER")], 0, 0)


def test_spans_across_word_borders_are_widened_and_counted() -> None:
    found = split_words("pre-Columbian Mexico", "twitter15")
    assert align_spans(found, [(4, 13, "MISC"), (14, 20, "LOC")]) == ([Span(0, 1, "MISC"), Span(1, 2, "LOC")], 1, 0)


def test_of_overlapping_spans_the_longest_stays_and_white_space_holds_none() -> None:
    found = split_words("New York Times  today")
    spans = [(0, 8, "LOC"), (0, 14, "ORG"), (14, 16, "MISC")]
    assert align_spans(found, spans) == ([Span(0, 3, "ORG")], 0, 2)


@pytest.mark.parametrize(
    ("folder", "style", "floor"),
    [
        ("twitter2017", "twitter17", 0.999),
        ("twitter2017", "whitespace", 1.0),
        ("twitter2015", "twitter15", 0.996),
        ("twitter2015", "twitter17", 0.90),
        ("twitter2015", "whitespace", 1.0),
    ],
)
def test_words_of_the_real_sets_are_kept(shared_data: Path, folder: str, style: str, floor: float) -> None:
    kept = total = 0
    for split in ("train", "valid", "test"):
        for row in read_conll(shared_data / folder / f"{split}.txt"):
            found = {(word.start, word.end) for word in split_words(" ".join(row["tokens"]), style)}
            start = 0
            for token in row["tokens"]:
                kept += (start, start + len(token)) in found
                start += len(token) + 1
                total += 1
    assert kept / total >= floor
