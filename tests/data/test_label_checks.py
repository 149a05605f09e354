"""The check of labels: hidden ones, numbers of classes, white space, misspelt names."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from modeling_more.data.entity_formats import read_labelled
from modeling_more.data.relation_formats import check_pair, read_relations
from modeling_more.data.rows import check_tag
from modeling_more.data.tasks import ENTITIES, RELATIONS, Task
from named_sets import load_set
from ner_runs import write_jsonl

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
RELATION_NAMES = ["None", "/a", "/b"]


def tagged(rows: list[list[int | None] | None], names: list[str] | None = None) -> Dataset:
    labels = List(ClassLabel(names=names or TAGS))
    tokens = [["Ada", "sings"]] * len(rows)
    return Dataset.from_dict(
        {"tokens": tokens, "ner_tags": rows}, Features({"tokens": List(Value("string")), "ner_tags": labels})
    )


def related(rows: list[int | None]) -> Dataset:
    features = {
        "tokens": List(Value("string")), "head": List(Value("int32")), "tail": List(Value("int32")),
        "relation": ClassLabel(names=RELATION_NAMES),
    }  # fmt: skip
    columns = {"tokens": [["a", "b"]] * len(rows), "head": [[0, 1]] * len(rows), "tail": [[1, 2]] * len(rows)}
    return Dataset.from_dict(columns | {"relation": rows}, Features(features))


# --- hidden labels


@pytest.mark.parametrize("hidden", [[-1, -1], None, [None, None]])
def test_hidden_tags_are_no_label(hidden: Any) -> None:
    """-1 is not the last class: such a split has no labels."""
    rows = load_set({"validation": tagged([[1, 0], [0, 0]]), "test": tagged([hidden, hidden])})
    assert [row["ner_tags"] for row in rows["validation"]] == [["B-PER", "O"], ["O", "O"]]
    assert [row["ner_tags"] for row in rows["test"]] == [None, None]


@pytest.mark.parametrize("hidden", [-1, None])
def test_hidden_relations_are_no_label(hidden: int | None) -> None:
    rows = load_set({"validation": related([1, 2]), "test": related([hidden, hidden])}, RELATIONS)
    assert [row["relation"] for row in rows["validation"]] == ["/a", "/b"]
    assert [row["relation"] for row in rows["test"]] == [None, None]


@pytest.mark.parametrize(
    ("data", "schema", "told"),
    [
        (tagged([[1, 0], [-1, -1]]), ENTITIES, "split test, row 1"),
        (tagged([[1, 0], None]), ENTITIES, "split test, row 1"),
        (tagged([[1, 0], [1, -1]]), ENTITIES, "split test, row 1"),
        (tagged([[-1, 0]]), ENTITIES, "split test, row 0"),
        (tagged([[None, 0]]), ENTITIES, "split test, row 0"),
        (related([-1, 2]), RELATIONS, "split test, row 0"),
        (related([1, None]), RELATIONS, "split test, row 1"),
    ],
)
def test_labels_beside_hidden_ones_are_an_error(data: Dataset, schema: Task, told: str) -> None:
    with pytest.raises(ValueError) as raised:
        load_set({"test": data}, schema)
    assert told in str(raised.value) and "label" in str(raised.value) and "own" in str(raised.value)


def test_hidden_labels_in_files(tmp_path: Path) -> None:
    for hidden in ({"tokens": ["a"], "ner_tags": None}, {"tokens": ["a"], "tags": [-1]}, {"text": "a", "spans": None}):
        assert [row["ner_tags"] for row in read_labelled(write_jsonl(tmp_path / "x.jsonl", [hidden] * 2))] == [
            None
        ] * 2
        labelled = {"tokens": ["a"], "ner_tags": ["O"]}
        with pytest.raises(ValueError, match=r"x\.jsonl, line 2: no label"):
            read_labelled(write_jsonl(tmp_path / "x.jsonl", [labelled, hidden, labelled]))
    pair = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2]}
    for label in (None, -1):
        assert read_relations(write_jsonl(tmp_path / "x.jsonl", [pair | {"relation": label}]))[0]["relation"] is None
        with pytest.raises(ValueError, match=r"x\.jsonl, line 1: no label"):
            read_relations(write_jsonl(tmp_path / "x.jsonl", [pair | {"relation": label}, pair | {"relation": "/a"}]))
    (tmp_path / "mnre.txt").write_text(
        str({"token": ["a", "b"], "h": {"pos": [0, 1]}, "t": {"pos": [1, 2]}, "relation": None})
    )
    assert read_relations(tmp_path / "mnre.txt")[0]["relation"] is None


def test_a_number_that_is_no_class(tmp_path: Path) -> None:
    for number in (5, -2, -100):
        data = tagged([[0, 0]])
        table = data.data.table.set_column(1, "ner_tags", pa.array([[number, 0]], pa.list_(pa.int64())))
        data = Dataset(table, info=data.info)
        with pytest.raises(ValueError, match=f"split test, row 0.*label {number} is none of the 5 classes"):
            load_set({"test": data})


# --- labels with white space

BLANKS = [" ", "\t", "\u00a0", "\u3000", "\u2009", "\u200b", "\ufeff", "\r", "\n", "\x85", "\u2028"]


@pytest.mark.parametrize("blank", BLANKS)
def test_white_space_around_a_label_is_dropped(blank: str, tmp_path: Path) -> None:
    tags = {"tokens": ["Ada", "x"], "ner_tags": [f"B-PER{blank}", f"{blank}O"]}
    spans = {"text": "Ada x", "spans": [[0, 3, f"{blank}PER{blank}"]]}
    rows = read_labelled(write_jsonl(tmp_path / "x.jsonl", [tags, spans]), types=["PER"])
    assert [row["ner_tags"] for row in rows] == [["B-PER", "O"]] * 2
    pair = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": f"{blank}/a{blank}"}
    assert read_relations(write_jsonl(tmp_path / "x.jsonl", [pair]), ["None", "/a"])[0]["relation"] == "/a"
    wiki = [["Ada x", "u", "t", [["Ada", f"Person{blank}", 0, 3, "u"]]]]
    (tmp_path / "w.json").write_text(json.dumps(wiki))
    assert read_labelled(tmp_path / "w.json")[0]["ner_tags"] == ["B-Person", "O"]
    # also where the names are those of a ClassLabel, and where a data set holds strings
    names = ["O", f"B-PER{blank}"]
    assert load_set({"test": tagged([[1, 0]], names)})["test"][0]["ner_tags"] == ["B-PER", "O"]
    assert load_set({"test": Dataset.from_list([tags])})["test"][0]["ner_tags"] == ["B-PER", "O"]


@pytest.mark.parametrize("blank", BLANKS)
def test_white_space_within_a_label_is_an_error(blank: str, tmp_path: Path) -> None:
    for row in (
        {"tokens": ["Ada"], "ner_tags": [f"B-creative{blank}work"]},
        {"tokens": ["Ada"], "ner_tags": [f"B-{blank}PER"]},
        {"text": "Ada", "spans": [[0, 3, f"creative{blank}work"]]},
        {"text": "Ada", "spans": [{"start": 0, "end": 3, "label": f"creative{blank}work"}]},
    ):
        file = write_jsonl(tmp_path / "x.jsonl", [{"tokens": ["a"], "ner_tags": ["O"]}, row])
        with pytest.raises(ValueError, match=r"x\.jsonl, line 2: .* white space within"):
            read_labelled(file)
    pair = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2]}
    rows = [pair | {"relation": "/a"}, pair | {"relation": f"born{blank}in"}]
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: .* white space within"):
        read_relations(write_jsonl(tmp_path / "x.jsonl", rows))
    with pytest.raises(ValueError, match="split test.* white space within"):
        load_set({"test": tagged([[1, 0]], ["O", f"B-a{blank}b"])})


def test_labels_that_are_fine(tmp_path: Path) -> None:
    """Any script, signs, and joiners within a word, which are no white space."""
    for type_ in ("creative-work", "Größe", "人名", "نیم\u200cفاصله", "per:city_of_birth", "a/b(c,d)", "😀", "B-PER"):
        row = {"text": "Ada", "spans": [[0, 3, type_]]}
        assert read_labelled(write_jsonl(tmp_path / "x.jsonl", [row]))[0]["ner_tags"] == [f"B-{type_}"]


def test_both_lines_of_the_case_are_one_type() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("no shared cases")
    assert [row["ner_tags"] for row in read_labelled(folder / "labels" / "spans.jsonl")] == [["B-PER", "O"]] * 2


def test_a_misspelt_label_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown label 'B-PRE'; the types are PER, LOC: did you mean PER\\?"):
        check_tag("B-PRE", "x.jsonl, line 2", ["PER", "LOC"])
    row = {"tokens": ["Ada", "Oslo"], "head": [0, 1], "tail": [1, 2], "relation": "/per/loc/livesin"}
    with pytest.raises(ValueError, match="did you mean /per/loc/lives_in\\?"):
        check_pair(row, "x.jsonl, line 2", labels=["None", "/per/loc/lives_in"])
