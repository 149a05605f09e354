"""The one check of rows: files, tables, data sets and predict() refuse and accept the same, and name the place."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from mixture_experts import save_expert
from modeling_more import MoReForRelationExtraction, MoReForTokenClassification, MoReProcessor, predict
from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.relation_formats import read_pairs, read_relations
from modeling_more.data.tasks import RELATIONS
from modeling_more.knowledge.captions import read_captions
from modeling_more.knowledge.entities import read_predictions
from named_sets import Rows, load_set
from ner_runs import write_jsonl

HALF = "\ud83d"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: Any, tiny_encoder: Callable[[str], str]) -> dict[str, tuple[Any, Any]]:
    """A random expert of each task."""
    found = {}
    for task, kind in (("entities", MoReForTokenClassification), ("relations", MoReForRelationExtraction)):
        folder = save_expert(tmp_path_factory.mktemp(task), task, tiny_encoder("bert"), max_length=64)
        found[task] = kind.from_pretrained(folder), MoReProcessor.from_pretrained(folder)
    return found


# --- rows that are none, from every source

BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "more tags than words": ({"tokens": ["a", "b"], "ner_tags": ["O"] * 4}, "2 tokens but 4 labels"),
    "fewer hidden tags": ({"tokens": ["a", "b"], "ner_tags": [-1]}, "2 tokens but 1 labels"),
    "no words": ({"tokens": [], "ner_tags": []}, '"tokens" is empty'),
    "no tokens": ({"tokens": None, "ner_tags": ["O"]}, 'no "tokens"'),
    "a word that is null": ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, '"tokens" should be a list of words'),
    "an empty word": ({"tokens": ["a", ""], "ner_tags": ["O", "O"]}, "none of them empty"),
    "a string": ({"tokens": "Ada x", "ner_tags": ["O"] * 5}, '"tokens" should be a list of words'),
    "numbers without names": ({"tokens": ["a"], "ner_tags": [3]}, "should be a list of names"),
    "a tag of neither kind": ({"tokens": ["a"], "ner_tags": ["PER"]}, "unknown label 'PER'"),
    "a string of tags": ({"tokens": ["a"], "ner_tags": "O"}, "should be a list of names"),
    "knowledge": ({"tokens": ["a"], "ner_tags": ["O"], "knowledge_text": [{"title": "x"}]}, "ranked list"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_told_with_its_place(case: str, tmp_path: Path, experts: Any) -> None:
    row, told = BAD_ROWS[case]
    good = {"tokens": ["Ada"], "ner_tags": ["O"]}
    for file in write_rows(tmp_path / "x", [{**dict.fromkeys(row), **good}, row]):
        with pytest.raises(ValueError) as raised:
            read_labelled(file)
        assert told in str(raised.value) and file.name in str(raised.value) and " 2" in str(raised.value), file.name
    try:
        data = Dataset.from_list([row])
    except pa.ArrowInvalid:
        return
    with pytest.raises(ValueError) as raised:
        load_set({"validation": Dataset.from_list([good]), "test": data})
    assert told in str(raised.value) and "split test, row 0" in str(raised.value)
    if "tag" in case or "label" in case or "number" in case:
        return
    for task in ("entities", "relations"):
        post = {**row, "entities": []} if task == "relations" else row
        if case in ("no words", "no tokens"):
            continue  # an empty post gives an empty result; one without words and text has a test of its own
        with pytest.raises(ValueError) as raised:
            predict(*experts[task], [{"text": "fine", "entities": []}, post])
        assert told in str(raised.value) and "post 1" in str(raised.value)


def write_rows(path: Path, rows: Rows) -> list[Path]:
    """The rows as JSONL and, where they have types that Parquet can hold, as Parquet."""
    files = [write_jsonl(path.with_suffix(".jsonl"), rows)]
    try:
        pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
        files.append(path.with_suffix(".parquet"))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    return files


def test_rows_of_relations_are_checked_in_sets(experts: Any) -> None:
    good = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": "/a"}
    for change, told in (
        ({"tail": [1, 3]}, '"tail" [1, 3] is empty or outside the post of 2 words'),
        ({"tail": [0, 1]}, "head and tail are the same words"),
        ({"head": None}, 'no "head"'),
        ({"tokens": []}, '"tokens" is empty'),
        ({"relation": ""}, '"relation" should be a name'),
    ):
        with pytest.raises(ValueError) as raised:
            load_set({"test": Dataset.from_list([good, {**good, **change}])}, RELATIONS)
        assert told in str(raised.value) and "split test, row 1" in str(raised.value)


def test_sets_of_text_and_spans() -> None:
    rows = [{"text": "I saw  Ada.", "spans": [{"start": 7, "end": 10, "label": "PER"}]}]
    [row] = load_set({"test": Dataset.from_list(rows)})["test"]
    assert (row["ner_tags"], row["text"], row["offsets"][2]) == (["O", "O", "B-PER", "O"], "I saw  Ada.", [7, 10])
    [row] = load_set({"test": Dataset.from_list([{"tokens": ["Ada"], "tags": ["S-PER"], "topic": 3}])})["test"]
    assert row["ner_tags"] == ["B-PER"]


def test_predict_says_what_a_post_is(experts: Any) -> None:
    entities, relations = experts["entities"], experts["relations"]
    for post, told in (
        ("Ada sings", "post 0 is a str"),
        ({"tokens": "Ada x"}, 'post 0: "tokens" should be a list of words'),
        ({"tokens": {"a": 1}}, 'post 0: "tokens" should be a list of words'),
        ({"text": 5}, 'post 0: "text" should be a string'),
        ({"text": b"Ada"}, 'post 0: "text" should be a string'),
        ({}, "post 0 has neither text nor tokens"),
        ({"tokens": ["Ada"], "text": "Ada", "offsets": [[0, 3], [4, 5]]}, 'post 0: "offsets"'),
        ({"tokens": ["Ada"], "text": "Ada", "offsets": [[0, 9]]}, 'post 0: "offsets"'),
        ({"text": "Ada", "knowledge_text": ["x"]}, 'post 0: "knowledge_text" should be a ranked list'),
    ):
        with pytest.raises(ValueError) as raised:
            predict(*entities, [post])
        assert told in str(raised.value)
    with pytest.raises(ValueError, match='post 0: "tokens" should be a list of words'):
        predict(*relations, [{"tokens": "Ada x", "head": [0, 1], "tail": [2, 3]}])
    # what can be read as words is read
    import numpy as np

    for words in (("Ada", "sings"), np.array(["Ada", "sings"])):
        assert predict(*entities, [{"tokens": words}])[0]["tokens"] == ["Ada", "sings"]
    # knowledge needs no more than its text
    assert predict(*entities, [{"text": "Ada", "knowledge_text": [{"text": "Ada sings"}]}])
    assert [row["entities"] for row in predict(*entities, [{"text": ""}, {"text": " \u00a0\n"}, {"tokens": []}])] == [
        []
    ] * 3
    assert predict(*relations, [{"id": 3, "text": "", "entities": []}]) == [
        {"id": 3, "text": "", "tokens": [], "relations": [], "knowledge": []}
    ]


# --- offsets

TEXT = "I saw  Angela Merkel's car, in Berlin!"


def test_text_is_kept_with_the_offsets_of_its_words(tmp_path: Path) -> None:
    row = {"text": TEXT, "spans": [[7, 20, "PER"], [31, 37, "LOC"]]}
    [read] = read_labelled(write_jsonl(tmp_path / "x.jsonl", [row]))
    assert read["text"] == TEXT and [TEXT[a:b] for a, b in read["offsets"]] == read["tokens"]
    both = [row, {"tokens": ["Ada", "x"], "ner_tags": ["B-PER", "O"]}]
    _, words = read_labelled(write_jsonl(tmp_path / "x.jsonl", both))
    assert (words["text"], words["offsets"]) == ("Ada x", [[0, 3], [4, 5]])
    pair = {"text": TEXT, "head": [7, 20], "tail": [31, 37], "relation": "/a"}
    [read] = read_relations(write_jsonl(tmp_path / "x.jsonl", [pair]))
    assert read["text"] == TEXT and [TEXT[a:b] for a, b in read["offsets"]] == read["tokens"]
    (tmp_path / "w.json").write_text(json.dumps([[TEXT, "u", "t", []]]))
    assert read_labelled(tmp_path / "w.json")[0]["text"] == TEXT


def test_words_are_found_in_a_text_that_is_given_with_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in predictions/*.jsonl, which run_re.py reads; another text is not believed, which is told."""
    rows = [
        {"tokens": ["I", "saw", "Ada", "."], "text": "I  saw Ada.", "ner_tags": ["O"] * 4},
        {"tokens": ["I", "saw", "Ada", "."], "text": "I was with Ada.", "ner_tags": ["O"] * 4},
    ]
    file = write_jsonl(tmp_path / "x.jsonl", rows)
    for read in (read_labelled, read_posts):
        caplog.clear()
        first, second = read(file)
        assert first["text"] == "I  saw Ada." and first["offsets"] == [[0, 1], [3, 6], [7, 10], [10, 11]]
        assert second["text"] == "I saw Ada ."
        assert "1 of 2" in caplog.text and "x.jsonl" in caplog.text
    write_jsonl(file, [{**row, "entities": [[0, 1], [2, 3]]} for row in rows])
    assert [row["text"] for row in read_pairs(file)] == ["I  saw Ada.", "I saw Ada ."]


def test_predictions_refer_to_the_text(experts: Any) -> None:
    for post in ({"text": TEXT}, {"text": "😀  Ada\u00a0Lovelace\r\nmet e\u0301 in ＬＯＮＤＯＮ"}, {"text": "\n Ada"}):
        [found] = predict(*experts["entities"], [post])
        assert found["text"] == post["text"]
        for entity in found["entities"]:
            assert post["text"][entity["char_start"] : entity["char_end"]] == entity["text"]
    [found] = predict(*experts["relations"], [{"text": TEXT, "head": [7, 20], "tail": [31, 37]}])
    [pair] = found["relations"]
    assert (pair["head_chars"], pair["tail_chars"], found["text"]) == ([7, 20], [31, 37], TEXT)
    assert (pair["head_text"], pair["tail_text"], pair["head"]) == ("Angela Merkel", "Berlin", [2, 4])
    # a span within a word is widened, and so are its characters
    [found] = predict(*experts["relations"], [{"text": TEXT, "head": [8, 19], "tail": [31, 37]}])
    assert found["relations"][0]["head_chars"] == [7, 20]
    [found] = predict(*experts["relations"], [{"tokens": ["Ada", "in", "Oslo"], "head": [0, 1], "tail": [2, 3]}])
    assert "head_chars" not in found["relations"][0] and "text" not in found


# --- half a surrogate pair


def entity_rows() -> dict[str, dict[str, Any]]:
    good = {"id": "1", "image": "2.jpg", "tokens": ["Ada"], "ner_tags": ["B-PER"]}
    entry = {"title": "Ada", "text": "Ada sings"}
    return {
        "a word": good | {"tokens": [HALF]},
        "text": {"text": f"hi {HALF} Ada", "spans": []},
        "an id": good | {"id": HALF},
        "an image": good | {"image": HALF},
        "a tag": good | {"ner_tags": [f"B-{HALF}"]},
        "a span": {"text": "Ada", "spans": [[0, 3, HALF]]},
        "a title": good | {"knowledge_text": [entry | {"title": HALF}]},
        "an entry": good | {"knowledge_image": [entry, entry | {"text": HALF}]},
        "a source": good | {"knowledge_text": [entry | {"source": HALF}]},
    }


def escaped(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # with \ud83d, as json writes it
    return path


@pytest.mark.parametrize("case", entity_rows())
def test_half_a_surrogate_pair_is_told_with_its_line(case: str, tmp_path: Path, experts: Any) -> None:
    row = entity_rows()[case]
    file = escaped(tmp_path / "x.jsonl", [{"tokens": ["a"], "ner_tags": ["O"]}, row])
    told = r"x\.jsonl, line 2: .*half a surrogate pair"
    with pytest.raises(ValueError, match=told):
        read_labelled(file)
    if case in ("a tag", "a span"):
        return
    with pytest.raises(ValueError, match=told):
        read_posts(file)
    pair = {"head": [0, 1], "tail": [1, 2], "relation": "/a"}
    row = {**row, **pair, "tokens": [*row["tokens"], "b"]} if "tokens" in row else {**row, **pair, "tail": [3, 4]}
    escaped(file, [{"tokens": ["a", "b"], **pair}, row])
    for read in (read_relations, read_pairs):
        with pytest.raises(ValueError, match=told):
            read(file)
    if case == "an image":
        return
    with pytest.raises(ValueError, match="post 1.*half a surrogate pair"):
        predict(*experts["relations"], [{"text": "", "entities": []}, row])
    with pytest.raises(ValueError, match="post 1.*half a surrogate pair"):
        predict(*experts["entities"], [{"text": ""}, row])


def test_half_a_surrogate_pair_in_other_places(tmp_path: Path) -> None:
    pair = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": HALF}
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: .*half a surrogate pair"):
        read_relations(escaped(tmp_path / "x.jsonl", [pair]))
    literal = {"token": [HALF, "b"], "h": {"pos": [0, 1]}, "t": {"pos": [1, 2]}, "relation": "None"}
    (tmp_path / "m.txt").write_text(ascii(literal))
    for read in (read_relations, read_pairs):
        with pytest.raises(ValueError, match=r"m\.txt, line 1: .*half a surrogate pair"):
            read(tmp_path / "m.txt")
    for value in (
        [HALF, "u", "t", []],
        ["Ada", f"u/{HALF}.jpg", "t", []],
        ["Ada", "u", "t", [["Ada", HALF, 0, 3, "u"]]],
    ):
        (tmp_path / "w.json").write_text(json.dumps([value]))
        with pytest.raises(ValueError, match=r"w\.json, item 1: .*half a surrogate pair"):
            read_labelled(tmp_path / "w.json")
    for read_more, line in (
        (read_captions, {"image_id": "a", "caption": HALF}),
        (lambda file: read_predictions([file]), {"id": "a", "entities": [{"text": HALF}]}),
    ):
        with pytest.raises(ValueError, match=r"x\.jsonl, line 1: .*half a surrogate pair"):
            read_more(escaped(tmp_path / "x.jsonl", [line]))
    # as bytes they are no UTF-8
    for name, content in (("a.txt", b"Ada\n\xed\xa0\xbd\n"), ("a.csv", b"text\n\xed\xa0\xbd\n"),
                          ("a.conll", b"Ada\tO\n\xed\xa0\xbd\tO\n")):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}, line 2: not UTF-8"):
            read_posts(tmp_path / name)
    strings = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\3\0\0\0\6\0\0\0"), pa.py_buffer(b"Ada\xed\xa0\xbd")
    )
    pq.write_table(pa.table({"text": strings}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet, row 2: .*UTF-8"):
        read_posts(tmp_path / "x.parquet")
    data = Dataset(pa.table({"id": strings, "tokens": [["a"], ["b"]], "ner_tags": [["O"], ["O"]]}))
    with pytest.raises(ValueError, match="split test, row 1.*UTF-8"):
        load_set({"test": data})


# --- ids


def test_ids_and_images_are_names(tmp_path: Path) -> None:
    good = {"tokens": ["a"], "ner_tags": ["O"]}
    rows = [good | {"id": 7, "image": 3}, good | {"id": 7.0, "image": 3.0}, good | {"id": "", "image": ""},
            good | {"id": None, "image_id": {"bytes": None, "path": "p/3.jpg"}}]  # fmt: skip
    read = read_labelled(write_jsonl(tmp_path / "x.jsonl", rows))
    assert [row["id"] for row in read] == ["7", "7", "x-2", "x-3"]
    assert [row["image_id"] for row in read] == ["3", "3", None, "p/3.jpg"]
    for name in ("id", "image_id"):
        for value in (["a"], {"a": 1}, True):
            with pytest.raises(ValueError, match=f'line 1: "{name}" should be'):
                read_labelled(write_jsonl(tmp_path / "x.jsonl", [good | {name: value}]))


def test_scores_of_knowledge_are_numbers(tmp_path: Path) -> None:
    good = {"tokens": ["a"], "ner_tags": ["O"]}
    for entry in (
        {"text": "x", "score": "high"},
        {"text": "x", "match_start": [1]},
        {"text": "x", "match_end": math.inf},
        {"text": "x", "match_end": 2**31},
        {"text": "x", "score": 10**400},
        {"text": "x", "score": [1]},
        {"text": "x", "scale": -1},
        {"text": "x", "scale": math.inf},
        {"text": "x", "scale": 3.5e38},
        {"text": "x", "scale": "1"},
        {"text": "x", "title": ["t"]},
    ):
        with pytest.raises(ValueError, match='line 1: "knowledge_text" should be a ranked list'):
            read_labelled(write_jsonl(tmp_path / "x.jsonl", [good | {"knowledge_text": [entry]}]))
    entries = [{"text": "x", "score": 2}, {"text": "x", "score": math.nan, "match_start": math.nan, "title": None}]
    [row] = read_labelled(write_jsonl(tmp_path / "x.jsonl", [good | {"knowledge_text": entries}]))
    assert [entry["score"] for entry in row["knowledge_text"]] == [2.0, 0.0]
    entries = [{"text": "x", "scale": scale} for scale in (3, math.nan, None)] + [{"text": "x"}]
    [row] = read_labelled(write_jsonl(tmp_path / "x.jsonl", [good | {"knowledge_text": entries}]))
    assert [entry["scale"] for entry in row["knowledge_text"]] == [3.0, 0.0, 0.0, 0.0]


def test_predict_takes_arrays_token_and_tokens_as_objects(experts: dict[str, tuple[Any, Any]]) -> None:
    """What frames, MNRE's own rows and annotation tools hold."""
    words = ["Ada", "in", "Oslo"]
    plain = {"tokens": words, "head": [0, 1], "tail": [2, 3]}
    expected = predict(*experts["relations"], [plain])[0]["relations"]
    arrays = {"tokens": np.array(words), "head": np.array([0, 1]), "tail": [np.int64(2), np.int32(3)]}
    for post in (arrays, {"token": words, "h": {"pos": [0, 1]}, "t": {"pos": np.array([2, 3])}}):
        assert predict(*experts["relations"], [post])[0]["relations"] == expected
    assert predict(*experts["relations"], [{"tokens": words, "entities": np.array([[0, 1], [2, 3]])}])
    assert predict(*experts["entities"], [{"token": words}])[0]["tokens"] == words
    objects = [{"text": "Ada", "start": 0, "end": 3}]
    assert predict(*experts["entities"], [{"text": "Ada in Oslo", "tokens": objects}])[0]["tokens"] == words
