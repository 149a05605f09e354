"""Files and sets of other people that would be read wrongly in silence: other orders of classes, quotes, columns."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.relation_formats import read_relations
from modeling_more.data.tasks import ENTITIES, RELATIONS, Task
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import load_posts
from ner_runs import publish_folder

ONE = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
OTHER = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def load_folder(folder: str, cache: Path, schema: Task = ENTITIES) -> dict[str, list[dict[str, Any]]]:
    args = DataArguments(dataset=folder, cache_dir=str(cache))
    return load_posts(args, schema, lambda *_, **__: DatasetDict(), [])[0]


def tagged(names: list[str], tags: list[str]) -> Dataset:
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    numbers = [names.index(tag) for tag in tags]
    return Dataset.from_dict({"tokens": [["Ada"] * len(tags)] * 2, "ner_tags": [numbers] * 2}, features)


def related(relations: list[str]) -> Dataset:
    row = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2]}
    return Dataset.from_list([{**row, "relation": one} for one in relations])


# --- classes


def test_splits_whose_classes_have_another_order_are_refused(tmp_path: Path) -> None:
    """`load_dataset` casts all splits to the classes of the first, by number."""
    train, same = tagged(ONE, ["B-PER", "O"]), tagged(ONE[:3], ["B-PER", "O"])
    folder = publish_folder(tmp_path / "a", {"train": train, "test": tagged(OTHER, ["B-PER", "O"])})
    with pytest.raises(ValueError, match=r"split test: the column ner_tags names its classes O, B-LOC, .* casts"):
        load_folder(folder, tmp_path / "cache")
    # fewer names in the same order are the same numbers
    rows = load_folder(publish_folder(tmp_path / "b", {"train": train, "test": same}), tmp_path / "cache")
    assert rows["test"][0]["ner_tags"] == ["B-PER", "O"]
    splits = {
        split: related(["x"])
        .remove_columns("relation")
        .add_column("relation", [1])
        .cast_column("relation", ClassLabel(names=names))
        for split, names in (("train", ["None", "/a"]), ("validation", ["/a", "None"]))
    }
    with pytest.raises(ValueError, match="split validation: the column relation names"):
        load_folder(publish_folder(tmp_path / "c", splits), tmp_path / "cache", RELATIONS)


@pytest.mark.parametrize("name", ["dev", "valid", "val"])
def test_a_split_of_another_name_is_the_validation_split(tmp_path: Path, name: str) -> None:
    folder = publish_folder(tmp_path / "a", {"train": tagged(ONE, ["O"]), name: tagged(ONE, ["B-PER"])})
    assert set(load_folder(folder, tmp_path / "cache")) == {"train", "validation"}


# --- hidden and unknown labels


def test_minus_one_as_a_string_hides_a_label(tmp_path: Path) -> None:
    row = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": "-1"}
    sources = [json.dumps(row), str(row), "<E>\t-1\na\tO\n</E>\tO\n<O>\tO\nb\tO\n</O>\tO\n"]
    for source in sources:
        assert read_relations(write(tmp_path / "x.txt", source))[0]["relation"] is None
    tags = json.dumps({"tokens": ["a", "b"], "ner_tags": ["-1", " -1"]})
    assert read_labelled(write(tmp_path / "x.jsonl", tags))[0]["ner_tags"] is None
    with pytest.raises(ValueError, match="line 2: no label"):
        read_relations(write(tmp_path / "x.jsonl", json.dumps({**row, "relation": "/a"}) + "\n" + json.dumps(row)))


def test_minus_one_in_columns_of_strings_hides_labels(tmp_path: Path) -> None:
    """`datasets` casts a test split of numbers to the strings of the others."""
    test = related(["x"]).remove_columns("relation").add_column("relation", [-1])
    folder = publish_folder(tmp_path / "a", {"train": related(["/a", "None"]), "test": test})
    args = DataArguments(dataset=folder, cache_dir=str(tmp_path / "cache"))
    rows, types, _ = load_posts(args, RELATIONS, lambda *_, **__: DatasetDict(), [])
    assert rows["test"][0]["relation"] is None and types == ["/a", "None"]
    # as class_encode_column leaves it
    names = ClassLabel(names=["-1", "/a"])
    splits = {"train": related(["/a"]).cast_column("relation", names)}
    splits["test"] = related(["-1"]).cast_column("relation", names)
    args.dataset = publish_folder(tmp_path / "b", splits)
    rows, types, _ = load_posts(args, RELATIONS, lambda *_, **__: DatasetDict(), [])
    assert rows["test"][0]["relation"] is None and types == ["/a"]


def test_labels_that_training_lacks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = publish_folder(tmp_path / "a", {"train": related(["/a"]), "test": related(["/a", "/b"])})
    load_folder(folder, tmp_path / "cache", RELATIONS)
    assert "split test: /b occur there and not in the training posts" in caplog.text
    caplog.clear()
    folder = publish_folder(tmp_path / "b", {"train": related(["/a", "/b"]), "test": related(["/a"])})
    load_folder(folder, tmp_path / "cache", RELATIONS)
    assert "occur there" not in caplog.text


# --- tables


@pytest.mark.parametrize("name", ["p.tsv", "p.tab", "p.csv"])
def test_quotes_in_tables_of_tabs_are_text_unless_a_cell_is_quoted(tmp_path: Path, name: str) -> None:
    path = write(
        tmp_path / name,
        'id\ttext\n1\t"yes" she said\n2\t"Great minds\n3\tsaid "no"\n4\t"in ""quotes"""\n5\t"a\nb"\n6\t""\n7\t"\n',
    )
    assert [(row["id"], row["text"]) for row in read_posts(path)] == [
        ("1", '"yes" she said'), ("2", '"Great minds'), ("3", 'said "no"'), ("4", 'in "quotes"'), ("5", "a\nb"),
        ("6", ""), ("7", '"'),
    ]  # fmt: skip


def test_a_quoted_cell_that_would_swallow_posts_is_refused(tmp_path: Path) -> None:
    text = 'id\ttext\n0\tHi\n1\t"Great minds\n2\tAda is here\n3\tBo too\n4\tthink alike"\n'
    for end in ("\n", "\r\n", "\r"):
        with pytest.raises(ValueError, match=r"p\.tsv, line 3: a quoted cell goes on to line 6"):
            read_posts(write(tmp_path / "p.tsv", text.replace("\n", end)))


def test_a_cell_of_too_many_characters_is_named(tmp_path: Path) -> None:
    text = 'id,text\n1,"' + "a " * 70000 + '"\n'
    with pytest.raises(ValueError, match=r"p\.csv, line 2: a cell of more than 131072 characters"):
        read_posts(write(tmp_path / "p.csv", text))


# --- columns


@pytest.mark.parametrize(
    "text",
    [
        "1\tAda\tB-PER\tO\n2\tin\tO\tO\n3\tOslo\tB-LOC\tB-LOC\n",
        "Ada B-PER B-PER\nin O O\nOslo B-LOC O\n",
        "Ada NNP B-PER I-PER\nin IN O O\nOslo NNP B-LOC O\n",
    ],
)
def test_two_columns_of_labels_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.txt: columns \d and \d .*labels.*--columns"):
        read_labelled(write(tmp_path / "x.txt", text))


def test_chunks_are_no_second_column_of_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for tags in (("B-ORG", "O"), ("O", "O")):
        text = f"EU NNP B-NP {tags[0]}\nrejects VBZ B-VP {tags[1]}\n"
        assert read_labelled(write(tmp_path / "x.txt", text))[0]["ner_tags"] == list(tags)
    assert not caplog.text
    read_labelled(write(tmp_path / "x.txt", "Ada B-PER O\nin O O\n"))
    assert "columns 2 and 3 both hold labels, the last is read; --columns 1 2" in caplog.text


def test_an_index_is_not_guessed_of_posts_of_one_word(tmp_path: Path) -> None:
    for text in ("1 CD O\n\n2 LS O\n", "1\tCD\tO\n\n1\tLS\tO\n"):
        with pytest.raises(ValueError, match="the first column holds nothing but numbers; say .*--columns 2 3"):
            read_labelled(write(tmp_path / "x.txt", text))


CONLLU = "# sent_id = 1\n# text = Ada lives\n1\tAda\tAda\tPROPN\t_\n2\tlives\tlive\tVERB\t_\n\n1\tBo\tBo\tPROPN\t_\n"


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("p.conllu", CONLLU, None),
        ("p.txt", CONLLU, [2, 4]),
        ("p.iob2", "Ada\t_\nlives\t_\n\nBo\t_\n", None),
        ("p.conll", "Ada\t_\nlives\t_\n\nBo\t_\n", None),
        ("p.conll", "Ada\nlives\n\nBo\n", None),
        ("p.txt", "Ada _\nlives _\n\nBo _\n", [1, 2]),
    ],
)
def test_words_without_labels_are_predicted_for(
    tmp_path: Path, name: str, text: str, columns: list[int] | None
) -> None:
    posts = read_posts(write(tmp_path / name, text), columns=columns)
    assert [row["tokens"] for row in posts] == [["Ada", "lives"], ["Bo"]]


@pytest.mark.parametrize(
    "text",
    [
        CONLLU,
        "Ada\tPER\nlives\tNO\n\nBo\tPER\n",
        "1\tAda\tPER\n2\tlives\tNO\n",
        "Ada\t_\nlives\t_\n",
        "Ada _\nlives _\n",
        "Ada\t-1\nlives\t-1\n",
        "# text = Ada lives\nAda\tx\nlives\ty\n",
    ],
)
def test_columns_are_no_posts_of_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"p\.txt, line \d: .*--columns"):
        read_posts(write(tmp_path / "p.txt", text))
    with pytest.raises(ValueError, match=r"p\.ann: .*\.txt"):
        read_posts(write(tmp_path / "p.ann", "T1\tPER 0 3\tAda\n"))


@pytest.mark.parametrize(
    "text",
    ["Ada\tis here\n\nBo\tis there\n", "1\tAda is here\n2\tBo is there\n", "hi\tyou\n\nhey\tyou\n", "so _ sad _\n",
     "Ça va ?\nAda va ?\n", "Ada\n\nBo\n", "# of goals = 3\nAda is here\n", "Ada is here\tnow\n\nhm\n", ":\t_\n"],
)  # fmt: skip
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    posts = read_posts(write(tmp_path / "p.txt", text))
    assert [post["text"] for post in posts] == [line for line in text.split("\n") if line]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "tokens\tner_tags\nAda\tB-PER\nLovelace\tI-PER\n"),
        ("a.csv", "sentence_id,tokens,tags\n1,Ada,B-PER\n1,sings,O\n2,Bo,O\n"),
        ("a.csv", "sentence_id,token,tag\n1,Ada,B-PER\n1,sings,O\n"),
        ("a.tsv", "Token\tNER\nAda\tB-PER\nsings\tO\n"),
        ("a.csv", "tokens,tags\n" + "Ada,B-PER\n" * 21),
        ("a.csv", "tokens,tags\nAda,O\n\nBo,O\n"),
    ],
)
def test_tables_of_one_word_a_row_are_refused(tmp_path: Path, name: str, text: str) -> None:
    for read in (read_labelled, read_posts):
        with pytest.raises(ValueError, match=name):
            read(write(tmp_path / name, text))


def test_posts_of_one_word_are_posts(tmp_path: Path) -> None:
    for text in ("tokens,tags\nAda,B-PER\nBo,B-PER\n", "tokens,tags\n" + '"[""Ada""]",B-PER\n' * 30):
        assert read_labelled(write(tmp_path / "a.csv", text))[0]["tokens"] == ["Ada"]


# --- rows


def test_offsets_that_do_not_fit_leave_the_text_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"text": "Ada sings", "tokens": ["Ada", "sings"]}
    for offsets in ([[0, 3], [3, 8]], [[4, 9], [0, 3]], [[0, 2], [4, 9]]):
        [read] = read_posts(write(tmp_path / "a.jsonl", json.dumps({**row, "offsets": offsets})))
        assert read["offsets"] == [[0, 3], [4, 9]] and "1 of 1 texts do not hold their tokens" in caplog.text
        caplog.clear()
    read = read_posts(write(tmp_path / "a.jsonl", json.dumps({**row, "offsets": [[0, 3], [4, 9]]})))[0]
    assert read["text"] == "Ada sings" and not caplog.text


def test_labels_beside_null_ones_are_used(tmp_path: Path) -> None:
    for more in ({"tags": ["B-PER", "O"]}, {"text": "Ada sings", "spans": [[0, 3, "PER"]]}):
        row = {"tokens": ["Ada", "sings"], "ner_tags": None, **more}
        assert read_labelled(write(tmp_path / "a.jsonl", json.dumps(row)))[0]["ner_tags"] == ["B-PER", "O"]


@pytest.mark.parametrize("odd", ["\ufe0f", "\u034f", "\u2800", "\u3164", "\u061c", "\u206a", "\u200d", "\U000e0020"])
def test_what_is_not_seen_is_no_part_of_a_label(tmp_path: Path, odd: str) -> None:
    read = read_labelled(write(tmp_path / "a.jsonl", json.dumps({"tokens": ["a"], "ner_tags": [f"{odd}B-PER{odd}"]})))
    assert read[0]["ner_tags"] == ["B-PER"]
    with pytest.raises(ValueError, match="white space within"):
        read_labelled(write(tmp_path / "a.jsonl", json.dumps({"tokens": ["a"], "ner_tags": [f"B-{odd}PER"]})))


def test_joiners_between_letters_are_letters(tmp_path: Path) -> None:
    for name in ("می\u200cروم", "क्\u200dष"):
        row = {"tokens": ["a"], "ner_tags": [f"B-{name}"]}
        assert read_labelled(write(tmp_path / "a.jsonl", json.dumps(row)))[0]["ner_tags"] == [f"B-{name}"]


def test_tokens_as_objects_go_by_the_text(tmp_path: Path) -> None:
    row = {"text": "Ada sings", "tokens": [{"text": "Ada", "start": 0, "end": 3, "id": 0}], "spans": []}
    for read in (read_labelled, read_posts):
        assert read(write(tmp_path / "a.jsonl", json.dumps(row)))[0]["tokens"] == ["Ada", "sings"]
