"""The splitters of text: offsets, words, and how far it reproduces the words of the real sets."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_more.data.conll import read_conll
from modeling_more.data.entity_formats import read_jsonl
from modeling_more.data.relation_formats import read_relations
from modeling_more.tagging import Span
from modeling_more.words import SPLITTERS, align_spans, split_words


def words(text: str, splitter: str = "twitter17") -> list[str]:
    return [word.word for word in split_words(text, splitter)]


def test_twitter17_splits_off_hashes_ats_and_punctuation() -> None:
    text = "RT @ada: #Oslo's 10,000 fans, 13.5 km :) http://t.co/a1?b=c"
    expected = "RT @ ada : # Oslo ' s 10,000 fans , 13.5 km :) http://t.co/a1?b=c".split(" ")
    assert words(text) == expected


def test_twitter15_keeps_hashes_ats_hyphens_and_entities() -> None:
    text = "RT @ada_l: #Oslo-fans &amp; well-known w/ 9/11.. -- $AAPL http://t.co/a1"
    expected = "RT @ada_l : #Oslo-fans &amp ; well-known w/ 9/11 . . -- $AAPL http://t.co/a1".split(" ")
    assert words(text, "twitter15") == expected


@pytest.mark.parametrize("splitter", ["twitter17", "twitter15"])
def test_punctuation_after_a_link_is_no_part_of_it(splitter: str) -> None:
    assert words("(see http://t.co/a.b?c=d), http://t.co/e.", splitter) == (
        ["(", "see", "http://t.co/a.b?c=d", ")", ",", "http://t.co/e", "."]
    )


def test_whitespace_style_splits_at_ascii_white_space_only() -> None:
    assert words("a,b\tc\n d\u00a0e \u200b", "whitespace") == ["a,b", "c", "d\u00a0e", "\u200b"]


def test_combining_marks_stay_with_their_letter_and_selectors_stand_alone() -> None:
    assert words("e\u0301te\u0301 नमस्ते \u2764\ufe0f") == ["e\u0301te\u0301", "नमस्ते", "\u2764", "\ufe0f"]


# text | its words, by blanks
UNSPACED = {
    "Chinese": ("张伟和李娜在北京大学。", "张 伟 和 李 娜 在 北 京 大 学 。"),
    "Japanese with Latin and digits": ("iPhone15を2台、買うよー", "iPhone15 を 2 台 、 買 う よ ー"),
    "kana with combining and half-width voicing": ("か\u3099くｶﾞｽ", "か\u3099 く ｶﾞ ｽ"),
    "Thai": ("น้ำ ที่กรุงเทพ ๒๕๖๐", "น้ ำ ที่ ก รุ ง เ ท พ ๒๕๖๐"),
    "Lao": ("ນ້ຳ", "ນ້ ຳ"),
    "Khmer": ("ភ្នំពេញ។", "ភ្ នំ ពេ ញ ។"),
    "Myanmar": ("ရန်ကုန်", "ရ န် ကု န်"),
    "beyond the first plane": ("\U00020bb7野家\U000e0100\U00030000", "\U00020bb7 野 家\U000e0100 \U00030000"),
    "digits between": ("2024年10,000人", "2024 年 10,000 人"),
    "a link before and a full-width stop after": (
        "看http://t.co/a1很好，http://t.co/b2。",
        "看 http://t.co/a1 很 好 ， http://t.co/b2 。",
    ),
    "links": ("https://t.co/a1を https://t.co/b2。", "https://t.co/a1 を https://t.co/b2 。"),
    "Korean": ("한국(韓國)은 나라다", "한국 ( 韓 國 ) 은 나라다"),
    "Hindi": ("नमस्ते क्\u200dष", "नमस्ते क्\u200dष"),
    "Persian": ("می\u200cخواهم", "می\u200cخواهم"),
    "entity of HTML": ("A&amp;北京", None),
}


@pytest.mark.parametrize("splitter", ["twitter17", "twitter15"])
@pytest.mark.parametrize(("text", "expected"), UNSPACED.values(), ids=UNSPACED)
def test_letters_of_scripts_without_blanks_are_words(text: str, expected: str | None, splitter: str) -> None:
    if expected is not None:
        assert words(text, splitter) == expected.split(" ")
    assert not any(len(word) > 1 and "京" in word for word in words(text, splitter))


def test_hashtags_in_scripts_without_blanks() -> None:
    assert words("#北京 @京-a", "twitter15") == words("#北京 @京-a") == ["#", "北", "京", "@", "京", "-", "a"]
    assert words("#iPhone発売", "twitter15") == ["#iPhone", "発", "売"]


def test_spans_of_a_chinese_text_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "zh.jsonl"
    file.write_text('{"text": "张伟和李娜在北京大学学习", "spans": [[0, 2, "PER"], [3, 5, "PER"], [6, 10, "ORG"]]}\n')
    (row,) = read_jsonl(file)
    assert row["tokens"] == list("张伟和李娜在北京大学学习")
    assert row["ner_tags"] == "B-PER I-PER O B-PER I-PER O B-ORG I-ORG I-ORG I-ORG O O".split(" ")
    assert not caplog.records
    pair = {"text": "张伟在北京", "head": [0, 2], "tail": [3, 5], "relation": "lives"}
    (tmp_path / "re.jsonl").write_text(json.dumps(pair) + "\n")
    (row,) = read_relations(tmp_path / "re.jsonl")
    assert (row["head"], row["tail"]) == ([0, 2], [3, 5])


def test_nothing_in_an_empty_text() -> None:
    assert words("") == words(" \n\u00a0") == []


def test_unknown_splitter() -> None:
    with pytest.raises(ValueError, match="'moses' is unknown: give one of twitter17, twitter15, whitespace"):
        split_words("a", "moses")


@given(st.text(max_size=60), st.sampled_from(SPLITTERS))
def test_offsets_are_exact_and_no_character_is_lost(text: str, splitter: str) -> None:
    end = 0
    for word in split_words(text, splitter):
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
    ("folder", "splitter", "floor"),
    [
        ("twitter2017", "twitter17", 0.999),
        ("twitter2017", "whitespace", 1.0),
        ("twitter2015", "twitter15", 0.996),
        ("twitter2015", "twitter17", 0.90),
        ("twitter2015", "whitespace", 1.0),
    ],
)
def test_words_of_the_real_sets_are_kept(shared_data: Path, folder: str, splitter: str, floor: float) -> None:
    kept = total = 0
    for split in ("train", "valid", "test"):
        for row in read_conll(shared_data / folder / f"{split}.txt"):
            found = {(word.start, word.end) for word in split_words(" ".join(row["tokens"]), splitter)}
            start = 0
            for token in row["tokens"]:
                kept += (start, start + len(token)) in found
                start += len(token) + 1
                total += 1
    assert kept / total >= floor
