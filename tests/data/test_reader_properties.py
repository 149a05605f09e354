"""Any text is rows or one sentence to the readers, and what is written is read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_files import FILES
from fuzz_verdict import judge
from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.relation_formats import read_pairs, read_relations
from modeling_more.posts import word_offsets
from re_runs import marked_lines, mnre_line

KEYS = (
    "id", "tokens", "token", "ner_tags", "tags", "text", "spans", "offsets", "image_id", "image", "head", "h", "tail",
    "t", "relation", "entities", "knowledge_text", "title", "score", "match_start", "start", "end", "type", "pos",
    "caption", "path", "bytes", "lead",
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["O", "B-PER", "I-PER", "B-", "Ada", "None", "-1", "\ud800", ""])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=7) | st.lists(VALUES, min_size=4, max_size=5)
#: words as posts hold them: no white space that ends a cell or a line
WORDS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cf")), min_size=1, max_size=8),
    min_size=1, max_size=7,
)  # fmt: skip
TYPES = ("PER", "LOC", "creative-work")
FEW = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("archive", "images", "parquet")])
def test_any_text_is_rows_or_one_sentence(name: str, folder: Path) -> None:
    words = st.sampled_from(FILES[name].words) if FILES[name].words else st.nothing()
    texts = st.lists(words | st.sampled_from(["\n", "\t", " ", "\r", "Ada", "O"]) | st.text(max_size=5), max_size=25)

    @given(texts.map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
    @FEW
    def check(data: bytes) -> None:
        assert judge(FILES[name], data, folder) is None

    check()


@pytest.mark.parametrize("name", ["jsonl", "mnre", "captions", "articles"])
def test_any_rows_of_json_are_read_or_refused_in_one_sentence(name: str, folder: Path) -> None:
    def written(rows: list[Any]) -> bytes:
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    @given(st.lists(ROWS, min_size=1, max_size=3).map(written))
    @FEW
    def check(data: bytes) -> None:
        assert judge(FILES[name], data, folder) is None

    check()


@given(st.lists(st.lists(VALUES, min_size=3, max_size=5), min_size=1, max_size=3))
@FEW
def test_any_lists_are_no_crash_as_wikidiverse(folder: Path, rows: list[Any]) -> None:
    assert judge(FILES["wikidiverse"], json.dumps(rows).encode(), folder) is None


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    words = draw(WORDS)
    tags, inside = [], ""
    for _ in words:
        choice = draw(st.sampled_from(["O", "B", "I"]))
        if choice == "O" or (choice == "I" and not inside):
            inside = ""
            tags.append("O")
        else:
            inside = inside if choice == "I" else draw(st.sampled_from(TYPES))
            tags.append(f"{choice}-{inside}")
    return words, tags


@given(st.lists(tagged(), min_size=1, max_size=4))
@FEW
def test_posts_are_read_back_from_jsonl_and_conll(folder: Path, posts: list[tuple[list[str], list[str]]]) -> None:
    rows = [{"id": str(n), "tokens": words, "ner_tags": tags} for n, (words, tags) in enumerate(posts)]
    file = folder / "back.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [(row["tokens"], row["ner_tags"]) for row in read_labelled(file)] == posts
    assert [row["tokens"] for row in read_posts(file)] == [words for words, _ in posts]

    blocks = ["".join(f"{w}\t{tag}\n" for w, tag in zip(*post, strict=True)) for post in posts]
    file = folder / "back.conll"
    file.write_text("\n".join(blocks), encoding="utf-8")
    marks = {"<EOS>", "<E>", "</E>", "<O>", "</O>", "\ufeff"}
    odd = any(
        word in marks or word[0] in "#-" or word.isnumeric() or "IMGID" in word for words, _ in posts for word in words
    )
    if not odd:  # words that mean something to the format
        assert [(row["tokens"], row["ner_tags"]) for row in read_labelled(file)] == posts


@given(WORDS, st.data())
@FEW
def test_pairs_are_read_back_from_every_form(folder: Path, words: list[str], data: st.DataObject) -> None:
    words = ["Ada", *words, "Oslo"]
    count = len(words)
    spans = st.integers(0, count - 1).flatmap(lambda a: st.integers(a + 1, count).map(lambda b: [a, b]))
    head = data.draw(spans)
    tail = data.draw(spans.filter(lambda span: span != head))
    row = {"id": "0", "tokens": words, "head": head, "tail": tail, "relation": "/per/loc/lives"}
    written: dict[str, Callable[[], str]] = {
        "pairs.jsonl": lambda: json.dumps(row), "pairs.txt": lambda: mnre_line(row),
    }  # fmt: skip
    nested = head[0] < tail[1] and tail[0] < head[1]
    plain = not any(word[0] in "#-<" or "IMGID" in word or word.isnumeric() for word in words)
    if not nested and plain:
        written["marked.txt"] = lambda: marked_lines(row)
    for name, write in written.items():
        file = folder / name
        file.write_text(write() + "\n", encoding="utf-8")
        (found,) = read_relations(file)
        assert {key: found[key] for key in ("tokens", "head", "tail", "relation")} == {
            key: row[key] for key in ("tokens", "head", "tail", "relation")
        }, name
        assert read_pairs(file)[0]["head"] == head


@given(st.lists(st.text(max_size=4), max_size=6), st.text(max_size=20))
@FEW
def test_offsets_of_words_are_exact_or_none(words: list[str], text: str) -> None:
    words = [word for word in words if word]
    for whole in (text, " ".join(words), "\n".join(words) + " "):
        offsets = word_offsets(words, whole)
        if offsets is not None:
            assert [whole[start:end] for start, end in offsets] == words
    if not any(word != word.strip() for word in words):
        assert word_offsets(words, " ".join(words)) is not None
