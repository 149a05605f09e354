"""Posts, words and knowledge of any size: read in linear time, as before where they are of a usual one, or refused."""

import resource
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_tokenizer
from mixture_experts import LABELS
from modeling_more import positions
from modeling_more.encoding import ALONE, encode_posts, evaluation_loader
from modeling_more.modeling_more import MoReForRelationExtraction, MoReForTokenClassification
from modeling_more.pipelines import EntityPipeline, predict
from modeling_more.processing_more import MARKERS, MoReProcessor
from modeling_more.sub_tokens import CHARACTERS, UNSURE, SubTokens
from modeling_more.words import SPLITTERS, align_spans, has_more_words, split_words, words_around
from re_runs import RELATIONS

#: texts of one kind of character, which invite a pattern to go back and try again
ODD = [
    *("a", " ", "\n", "1", "-", ".", "/", "@", "#", "&", "_", "\0", "\u00a0", "漢", "\u0301", "\u200d", "…"),
    *("a-", "a/", "1,", "1.", "w/", "&#", "ht", "https://", "https:.", ";-", "a\u0301", "a\u200d", "漢\ufe00", "@a-"),
    *("aGVsbG8+/=", "https://x.org/a.", "\U0001f468\u200d\U0001f469\u200d", "\u0661,", "\u0e01\u0e49", "a)", "http…"),
]  # fmt: skip


# --- splitters


@pytest.mark.parametrize("splitter", SPLITTERS)
@given(parts=st.lists(st.tuples(st.sampled_from([*ODD, "b"]), st.integers(1, 60)), max_size=5))
@settings(max_examples=150, deadline=None)
def test_words_are_where_they_say_and_hold_all_but_blanks(splitter: str, parts: list[tuple[str, int]]) -> None:
    text = "".join(part * times for part, times in parts)
    words = split_words(text, splitter)
    assert all(text[start:end] == word for word, start, end in words)
    assert all(first.end <= second.start for first, second in zip(words, words[1:], strict=False))
    ends, starts = [0, *(word.end for word in words)], [*(word.start for word in words), len(text)]
    between = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    assert not "".join(between).strip()
    for limit in {0, max(0, len(words) - 1), len(words), len(text)}:
        assert has_more_words(text, limit, splitter) == (len(words) > limit)


def test_millions_of_odd_characters_end_and_take_no_memory() -> None:
    """In a process of its own: one that goes back never ends, one that remembers its way grew by 460 MB."""
    script = f"""
import resource
from modeling_more.words import SPLITTERS, split_words
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for odd in {ODD!r}:
    text = odd * (300_000 // len(odd))
    for splitter in SPLITTERS:
        split_words(text, splitter)
before = used()
split_words("a" * 4_000_000, "twitter15")
print((used() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


@given(
    text=st.text(st.sampled_from("ab \n\u00a0\x1c"), max_size=25), start=st.integers(-2, 27), end=st.integers(-2, 27),
    number=st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_words_around_a_place_are_those_of_all_words(text: str, start: int, end: int, number: int) -> None:
    import re

    spans = [match.span() for match in re.finditer(r"\S+", text)]
    expected = text
    if len(spans) > number:
        matched = [i for i, (a, b) in enumerate(spans) if a < end and b > start] or [0]
        first = matched[0] if len(matched) > number else (matched[0] + matched[-1] + 1 - number) // 2
        first = max(0, min(first, len(spans) - number))
        expected = text[spans[first][0] : spans[first + number - 1][1]]
    assert words_around(text, start, end, number) == expected


def test_ten_thousand_spans_are_put_onto_a_hundred_thousand_words() -> None:
    words = [("ab", 3 * i, 3 * i + 2) for i in range(100_000)]
    spans = [(30 * i + 1, 30 * i + 5, "X") for i in range(10_000)]
    aligned = align_spans(words, [*spans, (2, 3, "Y")])
    assert [(span.start, span.end) for span in aligned.spans] == [(10 * i, 10 * i + 2) for i in range(10_000)]
    assert (aligned.crossing, aligned.dropped) == (10_000, 1)


# --- sub-tokens


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert"])
def test_the_beginning_of_a_text_has_the_sub_tokens_of_the_whole(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    reader = SubTokens(tokenizer)
    words = ["Ada", "Lovelace", "漢字", "é", "don't", "!!!", "</s>", "x" * 150, "\u200d", "10,000", "\n"]

    @given(
        st.lists(st.tuples(st.sampled_from(words), st.sampled_from([" ", "  ", "\n", ""])), min_size=1, max_size=900)
    )
    @settings(max_examples=25, deadline=None)
    def check(parts: list[tuple[str, str]]) -> None:
        text = "".join(word + space for word, space in parts)
        whole = reader._of_whole_texts([text])[0]
        for most in (1, 8, 64):
            [read] = reader.of_texts([text], most)
            if len(text) <= CHARACTERS * most:
                assert read == (whole, 0)
            else:
                assert read.pieces[:most] == whole[:most] and (read.behind == 0 or len(read.pieces) == most)
                assert read.behind or read.pieces == whole

    check()


def test_of_a_huge_entry_and_a_huge_word_only_the_beginning_is_tokenised(
    tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("roberta"), max_length=64)
    given_texts: list[str] = []
    real = processor.tokenizer._encode_plus

    def noted(text: Any, *args: Any, **kwargs: Any) -> Any:
        given_texts.extend(word for post in text for word in ([post] if isinstance(post, str) else post))
        return real(text, *args, **kwargs)

    monkeypatch.setattr(processor.tokenizer, "_encode_plus", noted)
    entry = {"title": "Lindau", "text": "Lindau is a town . " * 200_000, "score": 1.0}
    posts = [["Ada", "in", "Lindau"], ["a" * 1_000_000, "Lindau"]]
    first, second = processor.encode(posts, [[entry], [entry]])
    assert 0 < sum(map(len, given_texts)) < 100 * CHARACTERS * (64 + UNSURE)
    assert len(first["input_ids"][0]) == 64 and first["cut_knowledge"] > 990_000
    assert len(second["word_positions"]) == 2
    assert processor.encode([["word"] * 1_000_000], truncate=True)[0]["cut_words"] > 999_900
    entry = {**entry, "match_start": 1_900_000, "match_end": 1_900_010}
    processor.knowledge_words = 3
    assert processor.entry_text(entry) == "[ Lindau ] . Lindau is"


# --- windows


def entity_model(tiny_encoder: Any, max_length: int = 16) -> tuple[Any, MoReProcessor]:
    torch.manual_seed(0)
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=max_length)
    model = MoReForTokenClassification.from_encoder_pretrained(
        tiny_encoder("bert"), id2label=dict(enumerate(LABELS))
    ).eval()
    return model, processor


def test_the_windows_of_a_post_are_read_a_few_at_once(tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = entity_model(tiny_encoder)
    inputs = processor(words=[[f"w{i % 7}" for i in range(300)], ["Ada", "met", "Rivera"]])
    with torch.no_grad():
        together = model(**inputs).logits
    monkeypatch.setattr(positions, "TOKENS_AT_ONCE", 5 * 16)
    seen = []
    model.encoder.embeddings.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with torch.no_grad():
        few = model(**inputs).logits
    assert max(seen) == 5 and sum(seen) == len(inputs["input_ids"]) > 20
    assert torch.allclose(few[inputs["word_mask"]], together[inputs["word_mask"]], atol=1e-5)
    seen.clear()
    model(**inputs)  # with gradients all are kept anyway
    assert seen == [len(inputs["input_ids"])]


def test_a_long_post_is_a_batch_of_its_own_and_results_stay_in_order(tiny_encoder: Any) -> None:
    model, processor = entity_model(tiny_encoder, max_length=512)
    pipeline = EntityPipeline(model, processor)
    posts = [{"tokens": ["Ada", "met"] * n} for n in (1, ALONE, 3, 5, ALONE // 2 + 1)]
    encoded = encode_posts(posts, processor)
    from modeling_more.data_collator import MoReDataCollator

    collate = MoReDataCollator(processor)
    batches = [batch["index"].tolist() for batch in evaluation_loader(encoded, collate, pipeline.accelerator, 16)]
    assert batches == [[1], [4], [3, 2, 0]]
    assert [len(row["tokens"]) for row in pipeline(posts)] == [len(post["tokens"]) for post in posts]


def relation_processor(tiny_encoder: Any, max_length: int = 40) -> MoReProcessor:
    return MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=max_length, markers=True)


@given(
    st.lists(st.sampled_from(["a", "Ada", "Lovelace", "x" * 30, "漢"]), min_size=2, max_size=60), st.data(),
    st.sampled_from([8, 12, 40]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_markers_are_read_wherever_they_stand(words: list[str], data: st.DataObject, max_length: int) -> None:
    processor = MARKING
    processor.max_length = max_length
    spans = st.integers(0, len(words) - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(start + 1, min(len(words), start + 4)))
    )
    head, tail = data.draw(spans), data.draw(spans)
    [post] = processor.encode([words], None, [(head, tail)])
    opening = processor.tokenizer.convert_tokens_to_ids([MARKERS[0], MARKERS[2]])
    assert all(len(row) <= max_length for row in post["input_ids"]) and post["cut_words"] == 0
    read = [post["input_ids"][row][at] for row, at in zip(post["word_rows"], post["word_positions"], strict=True)]
    assert read == opening
    pieces = processor._tokenize_words([words])[0]
    for place, (row, at) in enumerate(zip(post["word_rows"], post["word_positions"], strict=True)):
        behind = [id_ for id_ in post["input_ids"][row][at + 1 :] if id_ not in MARKER_IDS]
        first = pieces[(head, tail)[place][0]]
        assert behind[: len(first)][: max_length - 5] == first[: len(behind) - 1][: max_length - 5]


MARKING = MoReProcessor(tiny_tokenizer("bert"), markers=True)
MARKER_IDS = set(MARKING.tokenizer.convert_tokens_to_ids(list(MARKERS)))


def test_a_window_around_both_entities_or_one_around_each_which_is_told(
    tiny_encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    processor = relation_processor(tiny_encoder)
    words = ["again"] * 90_000
    near, far = processor.encode(
        [words, words], None, [((50_000, 50_001), (50_001, 50_002)), ((10, 11), (89_990, 89_991))]
    )
    assert near["word_rows"] == [0, 0] and len(near["input_ids"]) == 1 and 30 < len(near["input_ids"][0]) <= 40
    left, right = near["word_positions"][0] - 1, len(near["input_ids"][0]) - 1 - near["word_positions"][1]
    assert left > 5 and right > 5  # both sides are read
    assert far["word_rows"] == [0, 1] and all(30 < len(row) <= 40 for row in far["input_ids"])
    model = MoReForRelationExtraction.from_encoder_pretrained(
        tiny_encoder("bert"), num_tokens=len(processor.tokenizer), id2label=dict(enumerate(RELATIONS))
    )
    post = {"tokens": ["again"] * 300, "entities": [[0, 1], [3, 4], [290, 291]]}
    [found] = predict(model, processor, [post])
    assert len(found["relations"]) == 6
    assert "4 of 6 pairs stand too far apart for one window" in caplog.text


# --- limits


def test_what_is_too_large_is_refused_before_anything_is_computed(tiny_encoder: Any) -> None:
    model, processor = entity_model(tiny_encoder)
    model.forward = None  # nothing may run
    for post in ({"id": "b", "text": "a b c d"}, {"id": "b", "tokens": ["a"] * 4}):
        with pytest.raises(ValueError, match=r"^post 1 \(id b\) has more than 3 words: split it, or raise max_words$"):
            predict(model, processor, [{"text": "Ada"}, post], max_words=3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="post 0 has more than 100000 words"):
        predict(model, processor, [{"text": "a " * 5_000_000}])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 200  # not all of it was split
    processor = relation_processor(tiny_encoder)
    model = MoReForRelationExtraction.from_encoder_pretrained(
        tiny_encoder("bert"), num_tokens=len(processor.tokenizer), id2label=dict(enumerate(RELATIONS))
    )
    entities = [[i, i + 1] for i in range(10_000)]
    with pytest.raises(ValueError, match='post 0: 10000 "entities" make 99990000 pairs, at most 10000 are classified'):
        predict(model, processor, [{"tokens": ["a"] * 10_000, "entities": entities}])
