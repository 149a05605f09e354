"""Readers of relation data: the four forms give the same rows, the real MNRE is read as it was counted."""

import json
from collections import Counter

import pytest

from dataset_scripts import load
from modeling_more.data.entity_formats import read_labelled
from modeling_more.data.relation_formats import ENTITY_DATA, holds_pairs, read_pairs, read_relations
from modeling_more.training.posts import split_holdout
from re_runs import marked_lines, mnre_line, pairs

NESTED = {"id": "n", "tokens": ["New", "York", "Times", "!"], "head": [0, 3], "tail": [0, 2], "relation": "None"}
TOUCHING = {"id": "t", "tokens": ["Ada", "Oslo"], "head": [1, 2], "tail": [0, 1], "relation": "/loc/loc/contain"}


def core(rows: list[dict]) -> list[tuple]:
    return [(row["tokens"], row["head"], row["tail"], row["relation"]) for row in rows]


def test_all_forms_hold_the_same_rows(tmp_path):
    rows = [*pairs(7), NESTED, TOUCHING]
    (tmp_path / "mnre.txt").write_text("\n".join(map(mnre_line, rows)) + "\n\n")
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "marked.txt").write_text("\r\n".join("\n".join(map(marked_lines, rows)).split("\n")))
    for name in ("mnre.txt", "own.jsonl", "list.json", "marked.txt"):
        assert core(read_relations(tmp_path / name)) == core(rows), name
    own = read_relations(tmp_path / "own.jsonl")
    assert [row["id"] for row in own] == [row["id"] for row in rows] and own[0]["image_id"] is None
    assert (
        own[0]["knowledge_text"][0]["text"] == rows[0]["knowledge_text"][0]["text"] and own[7]["knowledge_text"] == []
    )
    raw = read_relations(tmp_path / "mnre.txt", id_prefix="train")
    assert raw[3]["id"] == "train-3" and raw[3]["image_id"] == "picture.jpg" and "knowledge_text" not in raw[3]
    marked = read_relations(tmp_path / "marked.txt", knowledge_column="knowledge_image")
    assert marked[0]["knowledge_image"][0]["text"] == rows[0]["knowledge_text"][0]["text"]
    assert marked[8]["knowledge_image"] == []


BOTH = {"tokens": ["Ada", "in", "Oslo"], "ner_tags": ["B-PER", "O", "B-LOC"]}
SPANS = {"head": [0, 1], "tail": [2, 3]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**BOTH, **SPANS, "relation": "None"}, True),
        ({**BOTH, "head": [2, 0, 2]}, False),  # of a parser
        ({**BOTH, "relation": "None"}, False),
        ({**BOTH, "relation": None}, False),
        ({**BOTH, **SPANS, "ner_tags": None, "relation": None}, True),
        ({"tokens": BOTH["tokens"], **SPANS}, True),
        ({"text": "Ada", "relation": "None"}, True),
        ({"text": "Ada"}, False),
        (["Ada", "a.jpg", "news", []], False),
    ],
)
def test_a_file_of_pairs_is_told_from_one_of_posts(tmp_path, row, expected):
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    assert holds_pairs(tmp_path / "own.jsonl") is expected


MARKED = "IMGID:7\n<E>\t/y\nAda\tB-PER\n</E>\tO\nin\tO\n<O>\tO\nOslo\tB-LOC\n</O>\tO\n\n"


@pytest.mark.parametrize(
    "text",
    [
        MARKED + MARKED,
        (MARKED + MARKED).replace("\t", " "),
        (MARKED + MARKED).replace("\t", "   "),
        (MARKED + MARKED).replace("\tO\n", "\tO \n").replace("/y", "/y\u00a0"),
        (MARKED + MARKED).replace("\n", "\r"),
        (MARKED + "\ufeff" + MARKED).replace("\n", "\r\r\n"),
        MARKED[:-1] + "\t\n" + MARKED[:-1] + "\n\ufeff",
        "-DOCSTART- O\n" + MARKED[:-1] + "-DOCSTART-\tO\n# id 7\tdomain=en\n" + MARKED,
        (MARKED + MARKED).replace("\t", "\tNN\t"),
    ],
)
def test_the_marked_form_is_read_as_other_people_write_it(tmp_path, text):
    (tmp_path / "marked.txt").write_bytes(text.encode())
    for read in (read_relations, read_pairs):
        rows = read(tmp_path / "marked.txt")
        assert [(row["image_id"], row["tokens"], row["head"], row["tail"]) for row in rows] == [
            ("7", ["Ada", "in", "Oslo"], [0, 1], [2, 3])
        ] * 2
    assert [row["relation"] for row in read_relations(tmp_path / "marked.txt")] == ["/y", "/y"]


def test_the_columns_of_the_marked_form_can_be_named(tmp_path):
    path = tmp_path / "marked.txt"
    path.write_text("\n".join(line and f"7 {line}" for line in MARKED.replace("\t", " ").split("\n")[1:]))
    for read in (read_relations, read_pairs):
        assert read(path, columns=[2, 3])[0]["tokens"] == ["Ada", "in", "Oslo"]
        with pytest.raises(ValueError, match=r"marked.txt, line 1: the first column holds nothing but numbers"):
            read(path)


def test_text_with_character_spans_and_pairs_to_predict(tmp_path):
    row = {"text": "Ada Lovelace, of London!", "head": [0, 12], "tail": {"start": 17, "end": 23}, "relation": "None"}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row))
    [read] = read_relations(path)
    words = read["tokens"]
    assert words[slice(*read["head"])] == ["Ada", "Lovelace"] and words[slice(*read["tail"])] == ["London"]

    path.write_text(
        json.dumps({"text": row["text"], "entities": [[0, 12], [17, 23], [14, 16]]})
        + "\n"
        + json.dumps({"id": 7, "tokens": ["Ada", "in", "Oslo"], "head": [0, 1], "tail": [2, 3]})
    )
    several, one = read_pairs(path)
    assert several["entities"] == [[0, 2], [4, 5], [3, 4]] and several["offsets"][1] == [4, 12]
    assert (one["id"], one["head"], one["tail"], one["text"]) == ("7", [0, 1], [2, 3], "Ada in Oslo")


def test_entities_that_were_predicted_or_annotated(tmp_path, caplog):
    """What run_ner.py writes can be classified; a row about one pair keeps it, whatever else the post holds."""
    path = tmp_path / "posts.jsonl"
    post = {"id": "p", "tokens": ["Ada", "in", "Oslo"], "entities": [{"start": 0, "end": 1}, {"start": 2, "end": 3}]}
    path.write_text(json.dumps(post) + "\n" + json.dumps({**post, "tags": ["B-PER", "O", "B-LOC"], "gold": []}))
    assert [row["entities"] for row in read_pairs(path)] == [[[0, 1], [2, 3]]] * 2
    with pytest.raises(ValueError, match='line 1: no "relation"'):
        read_relations(path)

    pair = {**post, "head": [2, 3], "tail": [0, 1], "relation": "None"}
    path.write_text(json.dumps(pair))
    for read in (read_relations, read_pairs):
        [row] = read(path)
        assert (row["head"], row["tail"]) == ([2, 3], [0, 1]) and "entities" not in row
    path.write_text(json.dumps({**post, "relation": "None"}))
    with pytest.raises(ValueError, match='line 1: no "head"'):
        read_relations(path)

    # characters where the post is text, and what had to be widened is counted
    text = "Ada-like in Oslo"
    spans = [{"start": 9, "end": 10, "char_start": 0, "char_end": 8}, [12, 15]]
    path.write_text(json.dumps({"text": text, "entities": spans}))
    assert read_pairs(path)[0]["entities"] == [[0, 3], [4, 5]]
    assert "posts.jsonl: 1 of 2 mentions begin or end inside a word" in caplog.text
    path.write_text(json.dumps({"text": text, "entities": [[0, 3], [0, 2]]}))
    with pytest.raises(ValueError, match=r'line 1: two of "entities" are the same words \[0, 1\]'):
        read_pairs(path)

    (tmp_path / "marked.txt").write_text(marked_lines(pairs(1)[0]))
    assert read_pairs(tmp_path / "marked.txt", knowledge_column="knowledge_image")[0]["knowledge_image"]


def test_rows_of_one_post_are_held_out_together(shared_data, tmp_path):
    """A gate that learned from a post whose other pairs the experts know would trust them too much."""
    rows = load("mnre", "none", shared_data / "mnre", tmp_path)["train"].to_list()
    kept, held = split_holdout(rows, 0.2)
    known = {tuple(row["tokens"]) for row in kept}
    assert len(kept) + len(held) == 12247 and 0.17 < len(held) / 12247 < 0.23
    assert not [row for row in held if tuple(row["tokens"]) in known]


GOOD = json.dumps({"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": "None"})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty"),
        (GOOD + "\n{", "line 2: not JSON"),
        (GOOD.replace("[1, 2]", "[1, 3]"), 'line 1: "tail" [1, 3] is empty or outside the post of 2 words'),
        (GOOD.replace("[1, 2]", "[0, 1]"), "line 1: head and tail are the same words"),
        (GOOD.replace("[1, 2]", '"b"'), 'line 1: a span of "tail" should be [start, end]'),
        (GOOD.replace('"tail"', '"other"'), 'line 1: no "tail"'),
        (GOOD.replace('"relation"', '"label"'), 'line 1: no "relation"'),
        (GOOD.replace('"None"', '"/x"'), "line 1: unknown relation '/x'; the relations are None, /y"),
        ('{"tokens": ["a"], "ner_tags": ["O"]}', f"line 1: {ENTITY_DATA}"),
        ("a\tO\nb\tB-PER\n", f"line 1: {ENTITY_DATA}"),
        ("a\tB-creative-work\r\n", f"line 1: {ENTITY_DATA}"),
        ("a\tS-PER\n", f"line 1: {ENTITY_DATA}"),
        ("-DOCSTART- -X- O\n\nEU NNP B-ORG\n", f"line 1: {ENTITY_DATA}"),
        ('[["Ada", "url", "topic", [["Ada", "Person", 0, 3, "wiki"]]]]', f"item 1: {ENTITY_DATA}"),
        ("a\tO\n\n" + marked_lines(TOUCHING), "line 1: the post lacks <E>, </E>, <O>, </O>"),
        ("nothing of the kind", "line 1: a line is a word, a tab and a label"),
        ("<E>\tNone\na\tO\n</E>\tO\n<O>\tO\nb\tO\n", "line 1: the post lacks </O>"),
        ("<E>\tNone\n<E>\tO\n", "line 2: a second <E>"),
        ("<E>\t/y z\na\tO\n", "line 1: the label '/y z' has white space within"),
        ("<E>\tNone\na NN O\n</E>\tO\n", "line 2: 3 columns where the file has 2"),
        ("<E>\tNone\na\t \n", "line 2: no label"),
        ("a O\nb B-PER\n", f"line 1: {ENTITY_DATA}"),
        ("\ufeff\n\ufeff", "empty"),
        ("<E>\tNone\na\t/y\n", "line 2: the relation '/y' stands beside a word"),
        ("{'token': ['a'], 'h': __import__('os').system('true')}", "line 1: no Python literal"),
        ("{'token': ['a', 'b'], 'h': {'pos': [0, 1]}, 't': {'pos': [1, 2]}}", 'line 1: no "relation"'),
    ],
)
def test_bad_input_is_named(tmp_path, content, told):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(ValueError) as raised:
        read_relations(path, labels=["None", "/y"])
    assert told in str(raised.value) and "bad.txt" in str(raised.value)


def test_the_entity_reader_sends_relation_data_away(tmp_path):
    for content in (mnre_line(NESTED), GOOD, marked_lines(NESTED)):
        (tmp_path / "x.txt").write_text(content)
        with pytest.raises(ValueError, match=r"use run_re\.py"):
            read_labelled(tmp_path / "x.txt")


def test_mnre_is_read_as_counted(shared_data, tmp_path):
    """The counts of the data's README."""
    data = load("mnre", "none", shared_data / "mnre", tmp_path)
    expected = {
        "train": (12247, 7744, 23, 1397, 59),
        "validation": (1624, 1000, 23, 197, 3),
        "test": (1614, 974, 21, 214, 5),
    }
    assert (
        data["train"].features["relation"].names[0] == "None" and len(data["train"].features["relation"].names) == 23
    )
    for split, (rows, none, labels, swapped, nested) in expected.items():
        found = data[split].to_list()
        relations = Counter(row["relation"] for row in found)
        assert (len(found), relations[0], len(relations)) == (rows, none, labels)
        assert sum(row["tail"][0] < row["head"][0] for row in found) == swapped
        overlapping = [row for row in found if row["head"][0] < row["tail"][1] and row["tail"][0] < row["head"][1]]
        assert len(overlapping) == nested and all(row["head"] != row["tail"] for row in overlapping)
