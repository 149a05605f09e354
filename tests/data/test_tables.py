"""CSV, TSV and Parquet by column, to train on and to predict for; one reader for both."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.relation_formats import read_pairs, read_relations
from ner_runs import write_jsonl


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def texts(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["text"]) for row in read_posts(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'id,text\n1,"Ada sings"\n2,"Bo, ""the"" cat"\n'),
        ("p.CSV", '\ufeffid,text\r\n1,Ada sings\r\n2,"Bo, ""the"" cat"'),
        ("p.csv", 'Text , ID\n"Ada sings",1\n\n"Bo, ""the"" cat",2\n\n'),
        ("p.csv", 'id;text;likes\n1;Ada sings;7\n2;"Bo, ""the"" cat";8\n'),
        ("p.csv", 'id\ttext\n1\tAda sings\n2\t"Bo, ""the"" cat"\n'),
        ("p.tsv", 'id\ttext\n1\tAda sings\n2\t"Bo, ""the"" cat"\n'),
        ("p.tsv", 'text\tid\rAda sings\t1\r"Bo, ""the"" cat"\t2\r'),
    ],
)
def test_tables_of_text(tmp_path: Path, name: str, content: str) -> None:
    assert texts(write(tmp_path / name, content)) == [("1", "Ada sings"), ("2", 'Bo, "the" cat')]


def test_columns_and_lists(tmp_path: Path) -> None:
    rows = [
        {"id": "7", "image": "7.jpg", "tokens": ["Ada", "in", "#Oslo"], "ner_tags": ["B-PER", "O", "B-LOC"]},
        {"id": "8", "image": None, "tokens": ["a,b", '"'], "ner_tags": ["O", "O"]},
    ]
    expected = [
        {"id": row["id"], "image_id": row["image"], "tokens": row["tokens"], "ner_tags": row["ner_tags"]}
        for row in rows
    ]
    assert read_labelled(write_jsonl(tmp_path / "a.jsonl", rows)) == expected
    # as a frame writes them: JSON, Python's lists, and words between blanks
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert read_labelled(tmp_path / "a.parquet") == expected
    for write_list in (json.dumps, str, " ".join):
        lines = ["id,image,tokens,ner_tags"]
        for row in rows:
            cells = [row["id"], row["image"] or "", write_list(row["tokens"]), write_list(row["ner_tags"])]
            lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
        assert read_labelled(write(tmp_path / "a.csv", "\n".join(lines))) == expected, write_list
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        read = read_posts(tmp_path / name)
        assert [(row["tokens"], row["image_id"]) for row in read] == [(r["tokens"], r["image"]) for r in rows]
        assert not any("ner_tags" in row for row in read)


def test_text_and_spans_in_tables(tmp_path: Path) -> None:
    row = {
        "text": "Ada in  Oslo",
        "spans": [{"start": 0, "end": 3, "label": "PER"}, {"start": 8, "end": 12, "label": "LOC"}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    write(tmp_path / "a.csv", 'text,spans\nAda in  Oslo,"[[0, 3, ""PER""], [8, 12, ""LOC""]]"\n')
    for name in ("a.parquet", "a.csv"):
        [read] = read_labelled(tmp_path / name)
        assert read["ner_tags"] == ["B-PER", "O", "B-LOC"] and read["text"] == row["text"] and read["id"] == "a-0"


def test_numbers_with_the_names_that_datasets_stores(tmp_path: Path) -> None:
    """`Dataset.to_parquet` writes a ClassLabel's names into the file."""
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-PER"]))})
    Dataset.from_dict({"tokens": [["Ada", "x"]], "ner_tags": [[1, 0]]}, features).to_parquet(tmp_path / "a.parquet")
    assert read_labelled(tmp_path / "a.parquet")[0]["ner_tags"] == ["B-PER", "O"]
    Dataset.from_dict({"tokens": [["Ada", "x"]], "ner_tags": [[-1, -1]]}, features).to_parquet(tmp_path / "a.parquet")
    assert read_labelled(tmp_path / "a.parquet")[0]["ner_tags"] is None
    spans = {"tokens": List(Value("string")), "head": List(Value("int32")), "tail": List(Value("int32"))}
    features = Features({**spans, "relation": ClassLabel(names=["None", "/a"])})
    row = {"tokens": [["a", "b"]], "head": [[0, 1]], "tail": [[1, 2]], "relation": [1]}
    Dataset.from_dict(row, features).to_parquet(tmp_path / "a.parquet")
    assert read_relations(tmp_path / "a.parquet")[0]["relation"] == "/a"


def test_relations_in_tables(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'id,text,head,tail,relation\n1,Ada in Oslo,"[0, 3]","[7, 11]",/a \n')
    [row] = read_relations(tmp_path / "a.csv")
    assert (row["id"], row["head"], row["tail"], row["relation"]) == ("1", [0, 1], [2, 3], "/a")
    write(tmp_path / "a.tsv", "tokens\thead\ttail\nAda in Oslo\t[0, 1]\t[2, 3]\n")
    assert read_pairs(tmp_path / "a.tsv")[0]["tail"] == [2, 3]
    write(tmp_path / "b.csv", 'text,entities\nAda in Oslo,"[[0, 3], [7, 11]]"\n,[]\n')
    assert [row["entities"] for row in read_pairs(tmp_path / "b.csv")] == [[[0, 1], [2, 3]], []]
    pq.write_table(pa.table({"tokens": [["a", "b"]], "head": [[0, 1]], "tail": [[1, 2]]}), tmp_path / "a.parquet")
    assert read_pairs(tmp_path / "a.parquet")[0]["head"] == [0, 1]
    with pytest.raises(ValueError, match=r'a\.parquet, row 1: no "relation"'):
        read_relations(tmp_path / "a.parquet")


def test_a_label_that_is_hidden_in_a_table(tmp_path: Path) -> None:
    head = "tokens,ner_tags\n"
    for cell in ("", "-1 -1", '"[-1, -1]"'):
        assert read_labelled(write(tmp_path / "a.csv", f"{head}Ada x,{cell}\n"))[0]["ner_tags"] is None
        with pytest.raises(ValueError, match=r"a\.csv, line 3: no label"):
            read_labelled(write(tmp_path / "a.csv", f"{head}Ada x,O O\nAda x,{cell}\n"))
    for cell in ("", "-1"):
        write(tmp_path / "a.csv", f'tokens,head,tail,relation\na b,"[0,1]","[1,2]",{cell}\n')
        assert read_relations(tmp_path / "a.csv")[0]["relation"] is None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "id,tweet\n1,Ada\n", "line 1: no column text or tokens, but id, tweet"),
        ("p.tsv", "id\ttweet\n1\tAda\n", "line 1: no column text or tokens, but id, tweet"),
        ("p.csv", "id,text\n1,Hello, Ada\n", "line 2: 3 columns where the header has 2"),
        ("p.csv", 'id,text\n1,"a\nb"\n2\n', "line 4: 1 columns where the header has 2"),
        ("p.csv", 'id,text\n1,"Ada\n2,Bo\n', "line 2: no CSV"),
        ("p.csv", "text,text\na,b\n", "line 1: two columns are named text"),
        ("p.csv", "id,text\n", "no rows"),
        ("p.csv", "", "the file is empty"),
        ("p.csv", 'tokens\n"[""Ada"", ""x"""\n', 'line 2: "tokens" begins like a list'),
        ("p.csv", "tokens\n\"['Ada' 'x']\"\n", 'line 2: "tokens" begins like a list'),
        ("p.csv", "id,text,tokens\n1,,\n", None),
        ("p.parquet", "PAR1 and no more", "not a Parquet file"),
        ("p.parquet", "", "the file is empty"),
    ],
)
def test_bad_tables_are_told_with_their_line(tmp_path: Path, name: str, content: str, told: str | None) -> None:
    path = write(tmp_path / name, content)
    if told is None:
        assert read_posts(path)[0]["tokens"] == []
        return
    with pytest.raises(ValueError) as raised:
        read_posts(path)
    assert told in str(raised.value) and name in str(raised.value)


def test_parquet_without_rows_or_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: .*no rows"):
        read_posts(tmp_path / "a.parquet")
    pq.write_table(pa.table({"tweet": ["Ada"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no column text or tokens, but tweet"):
        read_posts(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["Ada", None]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'a\.parquet, row 2: no "text"'):
        read_posts(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'a\.parquet, row 1: "text" should be a string'):
        read_posts(tmp_path / "a.parquet")


def test_parquet_of_frames(tmp_path: Path) -> None:
    """Categories, large strings, an index, pictures with their bytes: what other programs write."""
    table: Any = pa.table(
        {
            "text": pa.array(["Ada", "Ada"]).dictionary_encode(),
            "id": pa.array([3.0, None]),
            "image": pa.array([{"bytes": b"x", "path": "3.jpg"}, None]),
            "__index_level_0__": [0, 1],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    read = read_posts(tmp_path / "a.parquet")
    assert [(row["id"], row["image_id"], row["tokens"]) for row in read] == [
        ("3", "3.jpg", ["Ada"]),
        ("a-1", None, ["Ada"]),
    ]
    pq.write_table(pa.table({"tokens": pa.array([["Ada"]], pa.large_list(pa.large_string()))}), tmp_path / "b")
    assert read_posts(tmp_path / "b")[0]["tokens"] == ["Ada"]  # told by its first bytes


def test_files_of_words_and_tags_stay_what_they_are(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.csv"):
        path = write(tmp_path / name, "text\tO\nAda\tB-PER\n\nBo\tO\n")
        assert [row["tokens"] for row in read_labelled(path)] == [["text", "Ada"], ["Bo"]]
        assert [row["tokens"] for row in read_posts(path)] == [["text", "Ada"], ["Bo"]]


@pytest.mark.parametrize("header", ["tokens\tner_tags", "token\ttag", "word,tags", "tokens,tags"])
def test_a_header_above_words_and_tags_makes_no_posts_of_one_word(tmp_path: Path, header: str) -> None:
    text = header + "\nAda\tB-PER\nsings\tO\n\nBo\tO\n"
    for name in ("a.tsv", "a.csv"):
        path = write(tmp_path / name, text if "\t" in header else text.replace("\t", ","))
        for read in (read_labelled, read_posts):
            with pytest.raises(ValueError, match=name):
                read(path)


# --- one reader


def test_whatever_trains_can_be_predicted_for(tmp_path: Path) -> None:
    wiki = [["Ada in Oslo.", "https://x.example/a.svg", "t", [["Ada", "Person", 0, 3, "u"]]]]
    (tmp_path / "w.json").write_text(json.dumps(wiki))
    (tmp_path / "l.jsonl").write_text(json.dumps(wiki[0]) + "\n" + json.dumps(wiki[0]))
    for name in ("w.json", "l.jsonl"):
        labelled, plain = read_labelled(tmp_path / name), read_posts(tmp_path / name)
        for key in ("id", "image_id", "tokens", "text", "offsets"):
            assert [row[key] for row in plain] == [row[key] for row in labelled], key
    for content in (
        "{'token': ['a'], 'h': {}, 't': {}, 'relation': 'None'}",
        "<E>\tNone\na\tO\n</E>\tO\n",
        "<E> None\na O\n</E> O\n",
        '{"tokens": ["a"], "h": {}, "t": {}, "relation": "x"}',
    ):
        (tmp_path / "r.txt").write_text(content)
        with pytest.raises(ValueError, match=r"r\.txt, line 1: this is relation data, use run_re\.py"):
            read_posts(tmp_path / "r.txt")


def test_empty_text_is_an_empty_post(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": ""}, {"text": " \u3000\n"}, {"tokens": []}, {"text": "Ada"}]
    read = read_posts(write_jsonl(tmp_path / "x.jsonl", rows))
    assert [(row["id"], row["tokens"], row["offsets"]) for row in read] == [
        ("a", [], []), ("x-1", [], []), ("x-2", [], []), ("x-3", ["Ada"], [[0, 3]]),
    ]  # fmt: skip
    # to learn or to score from nothing is a mistake
    for row in ({"text": "", "spans": []}, {"text": " \u00a0", "spans": []}, {"tokens": [], "ner_tags": []}):
        with pytest.raises(ValueError, match=r"x\.jsonl, line 1: "):
            read_labelled(write_jsonl(tmp_path / "x.jsonl", [row]))
    # an empty cell is an empty post; of pairs, one without any
    assert [row["tokens"] for row in read_posts(write(tmp_path / "x.csv", "id,text\n1,\n2,Ada\n"))] == [[], ["Ada"]]
    [row] = read_pairs(write_jsonl(tmp_path / "x.jsonl", [{"text": "", "entities": []}]))
    assert (row["tokens"], row["entities"]) == ([], [])
    with pytest.raises(ValueError, match=r'x\.jsonl, line 1: "head" \[0, 1\] is empty or outside'):
        read_pairs(write_jsonl(tmp_path / "x.jsonl", [{"text": "", "head": [0, 1], "tail": [1, 2]}]))


def test_a_line_keeps_its_number(tmp_path: Path) -> None:
    read = read_posts(write(tmp_path / "x.txt", "\n \t\r\nAda\r\n\nBo\n\u00a0\n\n"))
    assert [(row["id"], row["tokens"]) for row in read] == [("x-3", ["Ada"]), ("x-5", ["Bo"]), ("x-6", [])]
    for name in ("x.txt", "x.jsonl", "x.csv"):  # nothing, but for a byte-order mark
        for read_any in (read_posts, read_labelled, read_pairs):
            with pytest.raises(ValueError, match="the file is empty"):
                read_any(write(tmp_path / name, "\ufeff\n \r\n"))
